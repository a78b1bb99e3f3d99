"""The reference of settings: complete, true, and the page as the code says it."""

import json
import sys
from typing import Annotated, Literal

import pytest
from msgspec import Meta

from cosmos_hpc.backends.kinds import schemas
from cosmos_hpc.config.clusters import OVERRIDE_PREFIX
from cosmos_hpc.config.recipe_files import recipe_names
from cosmos_hpc.config.recipes import Recipe, load_recipe
from cosmos_hpc.errors import RequestError
from cosmos_hpc.runs.create import CHANGEABLE
from cosmos_hpc.runs.reference import reference
from cosmos_hpc.runs.reference_text import markdown, render
from cosmos_hpc.utils.annotations import PositiveInt
from cosmos_hpc.utils.described import describe, first_sentence
from cosmos_hpc.utils.mappings import flatten
from cosmos_hpc.utils.settings import Section, leaf_keys
from tests.conftest import REPOSITORY, cosmos_hpc


class Inner(Section, frozen=True, kw_only=True):
    """Something.

    Attributes:
        first, second: steps of both. And more,
            over two lines.
        third: what :class:`a.b.Thing` does with ``x``; None: nothing.

    Raises:
        fourth: no attribute.
    """

    first: PositiveInt
    second: Annotated[float, Meta(ge=0, lt=1)] | None = None
    third: list[Literal["a", "b"]] | None = None
    fourth: int = 4


class Outer(Section, frozen=True, kw_only=True):
    """Around it.

    Attributes:
        inner: the inner one.
    """

    inner: Inner = Inner(first=7)


def test_what_a_schema_says():
    first, second, third, fourth = describe(Outer)
    assert (first.name, first.type, first.default) == ("inner.first", "whole number above 0", 7)
    assert not first.required
    assert describe(Inner)[0].required
    assert first.text == "`first`, `second`: steps of both. And more, over two lines."
    assert first_sentence(first.text) == "`first`, `second`: steps of both"
    assert second.type == "number from 0 to below 1, or `null`"
    # A description of several says no unit of one of them.
    assert second.unit is None
    assert third.type == "list, each: `a` or `b`, or `null`"
    assert third.text == "what `Thing` does with `x`; `null`: nothing."
    assert fourth.text == ""


def test_every_setting_and_section_is_there_and_described():
    known = reference(schemas())
    named = set(leaf_keys(Recipe))
    for schema in schemas().values():
        named |= leaf_keys(schema, OVERRIDE_PREFIX).keys()
    assert {s.name for s in known.settings} == named
    assert [s.name for s in known.settings if not s.described.text] == []
    assert [name for name, text in known.sections.items() if not text] == []
    # Types of which nothing is said in words would show as Python prints them.
    assert [s.name for s in known.settings if set("<>()") & set(s.described.type)] == []


def test_what_is_said_is_true():
    known = {s.name: s for s in reference(schemas()).settings if not s.kinds}
    assert {name for name, s in known.items() if s.changeable} == CHANGEABLE
    for recipe in recipe_names():
        loaded = flatten(load_recipe(recipe).as_dict())
        for name in loaded.keys() & known.keys() - {"name"}:
            said = known[name].recipes.get(recipe, known[name].described.default)
            assert loaded[name] == said, (recipe, name)
    assert known["train.learning_rate"].recipes["ar4b_lora"] == 1e-4
    units = {"data.frames": "frames", "data.height": "pixels", "data.start": "seconds"}
    assert {name: known[name].described.unit for name in units} == units
    assert known["train.max_steps"].described.unit == "steps"
    assert known["train.learning_rate"].described.unit is None


def test_the_page_is_what_the_code_says(tmp_path):
    page = (REPOSITORY / "docs" / "settings.md").read_text()
    shown = cosmos_hpc("settings", "--markdown", cwd=tmp_path)
    assert shown.out == page, "write it: cosmos-hpc settings --markdown > docs/settings.md"
    # Of the code, not of the machine.
    assert sys.executable not in page
    assert page == markdown(reference(schemas())) + "\n"
    assert "](docs/settings.md)" in (REPOSITORY / "README.md").read_text()


def test_in_a_terminal(tmp_path):
    listed = cosmos_hpc("settings", "train.w", cwd=tmp_path).out.splitlines()
    assert [line.split()[0] for line in listed] == [
        "train.warmup_steps",
        "train.weight_decay",
        "train.wandb.project",
        "train.wandb.entity",
        "train.wandb.tags",
    ]
    assert "0.01" in listed[1] and listed[1].endswith("AdamW's weight decay")
    known = reference(schemas())
    assert "default  500000\n" in render(known.below("model.rotary_base"))
    whole = render(known.below("data.frames"))
    assert "unit: frames" in whole
    assert "default  33" in whole
    assert "may not change" in whole
    assert "17: ar4b_dv4x8x8" in whole
    assert render(known.below("learning_rate")) == render(known.below("train.learning_rate"))
    assert [s.name for s in known.below("frames")] == ["data.frames", "generate.frames"]
    with pytest.raises(RequestError, match=r"begins with 'trian'; did you mean train\?"):
        known.below("trian")
    two = json.loads(cosmos_hpc("settings", "cluster.python", "--json", cwd=tmp_path).out)
    assert [(one["kinds"], one["default"]) for one in two] == [
        (["docker"], "python3"),
        (["slurm"], None),
    ]
    assert "python3 in a container" in two[1]["default_words"]
    everything = render(known.below(""))
    assert "\ncluster.time.train " in everything and "\nmodel.num_layers " in everything
