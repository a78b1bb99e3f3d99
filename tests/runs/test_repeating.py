"""The command that repeats a run."""

import shlex
import subprocess

import pytest
from msgspec.structs import replace

from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.repeating import quoted, repeat_command
from cosmos_hpc.utils.settings import dump_yaml

OVERRIDES = (
    "data.input=/data/it's a $(folder)",
    "data.probe=true",
    "data.split.seed=7",
    "data.frame_rate=12.5",
    "data.split.validation=1e-05",
    "train.learning_rate=5e-5",
    "train.init_from=null",
    "train.gpus=8",
    "data.tokenizer=small",
    "data.compression=[4,8,8]",
    "data.frames=17",
)


@pytest.mark.parametrize("name", ["ar4b", "ar5b_v2w_dv4x8x8"])
def test_it_gives_the_same_recipe(name, tmp_path):
    recipe = load_recipe(name, OVERRIDES)
    command = repeat_command(RunFolder(tmp_path), recipe, "mine")
    program, submit, shipped, cluster, *overrides = shlex.split(command)
    assert (program, submit, shipped) == ("cosmos-hpc", "submit", f"recipe={name}")
    assert cluster == "cluster=mine"
    assert load_recipe(name, overrides) == recipe
    # Nothing that the recipe says itself.
    assert len(overrides) <= len(OVERRIDES)


def test_of_a_recipe_of_one_s_own(tmp_path):
    recipe = replace(load_recipe("ar_tiny", OVERRIDES), name="mine")
    run = RunFolder(tmp_path / "a run")
    run.path.mkdir()
    run.recipe_file.write_text(dump_yaml(recipe))
    _, _, named, *overrides = shlex.split(repeat_command(run, recipe, "local"))
    assert not overrides
    again = load_recipe(named.removeprefix("recipe="))
    assert replace(again, name="mine") == recipe


@pytest.mark.parametrize("word", ["plain", "a b", "it's", "\udcff\u202e\n\x1b'\\é$x", "é"])
def test_words_survive_the_shell(word):
    written = quoted(word)
    assert written.isprintable()
    said = subprocess.run(["bash", "-c", f"printf %s {written}"], capture_output=True, check=True)
    assert said.stdout == word.encode("utf-8", "surrogateescape")
