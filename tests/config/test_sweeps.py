"""Which settings with several values are a sweep, and what its runs are called."""

import pytest

from cosmos_hpc.config.overrides import as_list
from cosmos_hpc.config.sweeps import combinations, run_names, swept_values
from cosmos_hpc.errors import RequestError


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["train.learning_rate=1e-4,3e-4"], {"train.learning_rate": ["1e-4", "3e-4"]}),
        (["train.schedule=cosine, linear"], {"train.schedule": ["cosine", "linear"]}),
        (["train.gpus=1,null"], {"train.gpus": ["1", "null"]}),
        # What holds commas itself.
        (["train.fusions=[rotary,norms]"], {}),
        (["train.wandb.tags=[a,b]", "data.crop=[1,2,3]", "train.init_from=a,b.pt"], {}),
        (["train.init_from=choice(a.pt,b.pt)"], {"train.init_from": ["a.pt", "b.pt"]}),
        (["train.fusions=choice([rotary,norms],[])"], {"train.fusions": ["[rotary,norms]", "[]"]}),
        # The last one counts.
        (["train.seed=1,2", "train.seed=3"], {}),
        # From Python.
        ({"train": {"seed": [1, 2]}}, {"train.seed": ["1", "2"]}),
        ({"train.init_from": ["a.pt", "b.pt"]}, {"train.init_from": ["a.pt", "b.pt"]}),
        ({"train.fusions": ["rotary", "norms"]}, {}),
    ],
)
def test_several_values(overrides, expected):
    assert swept_values(as_list(overrides)) == expected


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.height=32,48"], r"data\.height has 2 values, and it decides what is prepared"),
        (["model.context_width=1,2"], r"model\.context_width has 2 values, and it decides what"),
        (["generate.seed=1,2"], r"generate\.seed has 2 values, and it changes nothing of what is"),
        (["train.seed=1,"], r"train\.seed=1,: a sweep needs two values or more"),
        (["train.seed=1,1"], r"the sweep has train\.seed=1 twice"),
        (["train.seed=1,x"], r"train\.seed"),
        ([f"train.seed={','.join(map(str, range(201)))}"], "a sweep of 201 runs; there may be 200"),
        (["train.seed=1,2", "generate.input=x.mp4"], "a recipe with generate.input only generates"),
    ],
)
def test_no_sweeps(overrides, message):
    with pytest.raises(RequestError, match=message):
        combinations("ar_tiny", overrides)


def test_names_follow_from_the_values():
    words = ["train.learning_rate=1e-4,3e-4", "train.schedule=cosine,linear", "train.max_steps=9"]
    found = combinations("ar_tiny", words)
    assert [one.recipe.train.max_steps for one in found] == [9] * 4
    assert found[2].settings == {"train.learning_rate": 3e-4, "train.schedule": "cosine"}
    names = run_names("x", [one.settings for one in found])
    assert names[0] == "x-lr1e-4-schedule_cosine"
    assert names[3] == "x-lr3e-4-schedule_linear"
    # However they are written, and whatever else the sweep has.
    more = combinations("ar_tiny", ["train.learning_rate=0.0003,1.0", *words[1:]])
    assert run_names("x", [one.settings for one in more])[:2] == names[2:]
    # Initials that two settings share, and values that no name can hold.
    clash = [{"train.weight_decay": 0.1, "model.wide_d": 0.1, "train.init_from": "/a b/c"}]
    assert run_names("x", clash) == ["x-train.weight_decay0.1-model.wide_d0.1-if_a-b-c"]
    alike = [{"train.init_from": "a b"}, {"train.init_from": "a/b"}]
    first, second = run_names("x", alike)
    assert first != second
    assert max(map(len, run_names("x", [{"train.init_from": "y" * 500}]))) < 200
