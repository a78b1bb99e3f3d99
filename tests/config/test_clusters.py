import os
import re

import pytest

from cosmos_hpc.backends.kinds import load_cluster
from cosmos_hpc.backends.slurm import facts as slurm
from cosmos_hpc.backends.slurm.profile import SlurmCluster
from cosmos_hpc.config.gpus import gpu_type, visible_gpus
from cosmos_hpc.errors import RequestError
from cosmos_hpc.utils.settings import validate
from tests.backends.slurm.test_jobs import PROFILE


def test_local_is_built_in():
    cluster = load_cluster()
    assert (cluster.name, cluster.kind, cluster.runs) == ("local", "local", "runs")
    assert cluster.parallel >= 1


def test_profiles_are_searched_in_the_working_folder_then_the_user_s(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    own = tmp_path / "config" / "cosmos-hpc" / "clusters"
    own.mkdir(parents=True)
    (own / "box.yaml").write_text("parallel: 3\n")
    assert load_cluster("box").parallel == 3
    (tmp_path / "clusters").mkdir()
    (tmp_path / "clusters" / "box.yaml").write_text("parallel: 5\nruns: elsewhere\n")
    assert load_cluster("box").parallel == 5
    assert load_cluster("box", ["parallel=7"]).parallel == 7
    with pytest.raises(RequestError, match="unknown cluster 'bxo'; did you mean box"):
        load_cluster("bxo")


def test_only_the_gpus_that_are_ours(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    assert visible_gpus() == ["2", "5"]
    cluster = load_cluster()
    assert (cluster.gpus, cluster.parallel) == (2, 2)
    with pytest.raises(RequestError, match="parallel=3 array tasks need as many GPUs, and gpus=2"):
        load_cluster("local", ["parallel=3"])
    assert load_cluster("local", ["gpus=0"]).gpus == 0
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert load_cluster().gpus == 0


@pytest.mark.parametrize(
    ("overrides", "gpus"),
    [(["gpus=1"], 1), (["gpus=1", "gpu=H100-80"], 1), (["gpu=H100-80"], 8)],
)
def test_as_many_tasks_run_at_a_time_as_there_are_gpus(monkeypatch, overrides, gpus):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    cluster = load_cluster("local", overrides)
    assert (cluster.gpus, cluster.parallel) == (gpus, gpus)


def test_a_wrong_key_in_a_profile(tmp_path):
    path = tmp_path / "box.yaml"
    path.write_text("paralel: 3\n")
    with pytest.raises(RequestError, match="unknown setting 'paralel'; did you mean parallel"):
        load_cluster(str(path))


def test_gpus_of_a_slurm_cluster_are_those_of_a_node(tmp_path):
    profile = tmp_path / "c.yaml"
    profile.write_text("kind: slurm\ngpu_partition: gpu\n")
    with pytest.raises(
        RequestError, match="did you mean gpus_per_node, or train.gpus for those of"
    ):
        load_cluster(str(profile), ["gpus=4"])


def test_times_need_no_quotes(tmp_path):
    profile = tmp_path / "c.yaml"
    profile.write_text(
        "kind: slurm\ngpu_partition: gpu\ncpu_partition: cpu\nparallel: 4\n"
        "time: {train: 24:00:00, preprocess: 04:00:00}\n"
    )
    cluster = load_cluster(str(profile))
    assert (cluster.time.train, cluster.time.preprocess) == ("24:00:00", "04:00:00")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("kind: [slurm]", "kind=['slurm']: there are"),
        ("gpu: H100-80\ngpus: 0\nparallel: many", "parallel='many'"),
    ],
)
def test_values_of_a_wrong_type_are_an_error_not_a_traceback(tmp_path, text, message):
    profile = tmp_path / "c.yaml"
    profile.write_text(text + "\n")
    with pytest.raises(RequestError, match=re.escape(message)):
        load_cluster(str(profile))


def test_of_several_kinds_of_nodes_the_largest_counts(tmp_path, monkeypatch):
    """A partition has a line for each kind of node."""
    program = tmp_path / "sinfo"
    program.write_text(
        "#!/bin/sh\n"
        'echo "gpu*|up|1-00:00:00|2|64|gpu:a100:8"\n'
        'echo "gpu*|up|1-00:00:00|3|32|gpu:a100:4,gpu:v100:2"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (partition,) = slurm._partitions()
    assert partition.gpus == {"a100": 8, "v100": 2}
    assert (partition.nodes, partition.cpus) == (5, 32)


def test_gpus_by_type_or_memory():
    assert load_cluster("local", ["gpu=H200-141"]).gpu_bytes == 150.1e9
    assert load_cluster("local", ["gpu=96gb"]).gpu_bytes == 96e9
    assert load_cluster("local", ["gpu=B200-192"]).gpus == 8
    for wrong in ("h100", "V100-32", "0", "-5", "nan", "many"):
        with pytest.raises(RequestError, match=r"gpu: (unknown GPU|a GPU has)"):
            load_cluster("local", [f"gpu={wrong}"])
    with pytest.raises(RequestError, match="unknown GPU 'h100'; did you mean H100-80"):
        load_cluster("local", ["gpu=h100"])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("NVIDIA H100 80GB HBM3, 81559", "H100-80"),
        ("NVIDIA H200, 143771", "H200-141"),
        ("NVIDIA A100-SXM4-40GB, 40960", "A100-40"),
        ("NVIDIA L40S, 46068", 48.3),
    ],
)
def test_the_type_of_this_machine_s_gpu(line, expected):
    assert gpu_type(line) == expected


@pytest.mark.parametrize("flag", ["--array=1-9", "--job-name=x", "--export=ALL", "--wait"])
def test_flags_that_the_scripts_need_for_themselves_are_refused(flag):
    name = flag.partition("=")[0]
    with pytest.raises(RequestError, match=f"{name} is set by the scripts themselves"):
        validate(SlurmCluster, {**PROFILE, "parallel": 1, "sbatch": [flag]}, "x")


def test_memory_is_asked_for_in_one_way():
    profile = {**PROFILE, "parallel": 1, "mem_per_gpu": "60G"}
    cluster = validate(SlurmCluster, profile, "x")
    assert [cluster.memory(gpus) for gpus in (0, 1, 8)] == [None, "60G", "480G"]
    with pytest.raises(RequestError, match="mem_per_gpu=60G and --mem=0 in sbatch; choose one"):
        validate(SlurmCluster, {**profile, "sbatch": ["--mem=0"]}, "x")
    with pytest.raises(RequestError, match="mem_per_gpu.*'60' is not an amount of memory, such"):
        validate(SlurmCluster, {**profile, "mem_per_gpu": "60"}, "x")
