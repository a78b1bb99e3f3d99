"""What ``cluster init`` makes of the names that clusters give their GPUs."""

import pytest

from cosmos_hpc.backends.kinds import load_cluster
from cosmos_hpc.backends.slurm.facts import Facts, Partition
from cosmos_hpc.backends.slurm.init import propose
from cosmos_hpc.errors import RequestError


def profile(tmp_path, **gpus):
    partition = Partition("gpu", True, True, 1440, 4, gpus, 64)
    facts = Facts("c", "24.05", 1001, False, [partition], {}, None, set())
    path = tmp_path / "c.yaml"
    path.write_text(propose(facts))
    return str(path)


@pytest.mark.parametrize(
    ("name", "gpu"),
    [
        ("h100", "H100-80"),
        ("nvidia_h100_80gb_hbm3", "H100-80"),
        ("nvidia_a100-sxm4-40gb", "A100-40"),
        ("a100_80g", "A100-80"),
        ("a100-pcie-80gb", "A100-80"),
        ("a100", "A100-40"),  # which of the two is not said: the smaller one
        ("nvidia_h200", "H200-141"),
        ("nvidia_h100_nvl_94gb", 94.0),
        ("rtx_a6000_48gb", 48.0),
        ("a100_1g.5gb", 5.0),
        ("nvidia_h100_80gb_hbm3_3g.40gb", 40.0),
        ("1g.10gb", 10.0),
        ("a100_2g_10gb", 10.0),
    ],
)
def test_names_that_say_what_they_are(tmp_path, name, gpu):
    cluster = load_cluster(profile(tmp_path, **{name: 4}))
    assert (cluster.gpu, cluster.gres) == (gpu, f"gpu:{name}")


@pytest.mark.parametrize("name", ["tesla", "ha100x", "rtx", "3090", "nvidia_gh200_480gb"])
def test_others_are_asked_for_and_not_guessed(tmp_path, name):
    with pytest.raises(RequestError, match=r"gpu: say what GPUs there are: .* such as 48GB"):
        load_cluster(profile(tmp_path, **{name: 4}))


def test_whole_cards_come_before_slices(tmp_path):
    cluster = load_cluster(profile(tmp_path, **{"a100_1g.5gb": 7, "a100": 2}))
    assert (cluster.gres, cluster.gpus_per_node) == ("gpu:a100", 2)


def test_partitions_without_gpus_need_no_type(tmp_path):
    assert load_cluster(profile(tmp_path)).gpus_per_node == 0
