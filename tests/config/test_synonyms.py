"""Words that people know from elsewhere lead to the setting that is meant."""

import pytest

from cosmos_hpc.backends.kinds import load_cluster, schemas
from cosmos_hpc.config import synonyms
from cosmos_hpc.config.clusters import OVERRIDE_PREFIX
from cosmos_hpc.config.recipes import Recipe, load_recipe
from cosmos_hpc.errors import RequestError
from cosmos_hpc.utils.settings import leaf_keys


def refusal(load, *arguments):
    with pytest.raises(RequestError) as e:
        load(*arguments)
    return str(e.value)


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("lr", "train.learning_rate"),
        ("train.lr", "train.learning_rate"),
        ("optimizer.LR", "train.learning_rate"),
        ("epochs", "train.max_steps, which counts optimizer steps, not epochs"),
        ("trainer.max_epochs", "train.max_steps, which counts optimizer steps, not epochs"),
        ("num_epochs", "train.max_steps, which counts optimizer steps, not epochs"),
        ("steps", "train.max_steps"),
        ("batch_size", "train.global_batch_size"),
        ("train.batch_size", "train.global_batch_size"),
        # Other sections have settings of that name.
        ("evaluate.batch_size", "data.batch_size or generate.batch_size"),
        ("mbs", "train.micro_batch_size"),
        ("gbs", "train.global_batch_size"),
        ("num_gpus", "train.gpus"),
        ("gpus", "train.gpus"),
        ("devices", "train.gpus"),
        ("scheduler", "train.schedule"),
        ("warmup", "train.warmup_steps"),
        ("tp", "train.tensor_parallel"),
        ("cp", "train.context_parallel"),
        ("tensor-model-parallel-size", "train.tensor_parallel"),
        ("seq_len", "data.frames, from which, with height and width, the length of a sequence"),
        ("resolution", "data.height and data.width"),
        ("data.fps", "data.frame_rate"),
        ("pretrained", "train.init_from, the weights to start from"),
        ("resume_from", "train.init_from, the weights to start from; a run resumes when"),
        ("output_dir", "cluster.runs, the folder of all runs"),
        ("partition", "cluster.gpu_partition, of profiles of kind slurm"),
        ("walltime", "cluster.time.train, of profiles of kind slurm"),
        ("run_name", "--name, which names the run"),
        ("wandb_project", "train.wandb.project"),
        ("num_samples", "generate.samples"),
        ("seed", "data.split.seed or train.seed or generate.seed"),
    ],
)
def test_a_word_from_elsewhere_leads_to_the_setting(word, meant):
    said = refusal(load_recipe, "ar_tiny", [f"{word}=1"])
    assert said.startswith(f"unknown setting {word!r}; did you mean {meant}")
    assert said.endswith("?")


def test_in_a_file_as_well(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("base: ar_tiny\noptim:\n  lr: 1\n")
    assert "'optim.lr'; did you mean train.learning_rate?" in refusal(load_recipe, str(own))
    own.write_text("base: ar_tiny\ntrain:\n  batch_size: 1\n")
    assert "did you mean train.global_batch_size?" in refusal(load_recipe, str(own))
    own.write_text("base: ar_tiny\noptim:\n  1: {2: 3}\n")
    assert "unknown setting 'optim.1.2'" in refusal(load_recipe, str(own))
    own.write_text("kind: slurm\nparallel: 1\ngpu_partition: a\ncpu_partition: a\nwalltime: 1\n")
    assert "did you mean time.train" in refusal(load_cluster, str(own))


def test_of_clusters_without_their_prefix():
    said = refusal(load_cluster, "local", ["output_dir=x"])
    assert "did you mean runs, the folder of all runs?" in said
    assert "did you mean" not in refusal(load_cluster, "local", ["lr=1"])


def test_the_table_names_settings_that_exist_and_each_word_once():
    known = set(leaf_keys(Recipe)) | {"--name"}
    for schema in schemas().values():
        known |= leaf_keys(schema, OVERRIDE_PREFIX).keys()
    meant = {setting for row in synonyms._TABLE for setting in row[0]}
    assert meant <= known
    words = [word for row in synonyms._TABLE for word in row[2].split()]
    assert sorted(words) == sorted(synonyms.SYNONYMS)
