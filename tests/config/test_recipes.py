import pytest
from msgspec.structs import replace

from cosmos_hpc.config.recipe_files import recipe_names
from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.errors import RequestError
from cosmos_hpc.models.config import FUSIONS
from cosmos_hpc.utils.settings import dump_yaml

# From the models' published descriptions: layers, width, vocabulary, inputs of a sample, billions
# of parameters that the names promise.
PUBLISHED = {
    "ar4b": (16, 4096, 64000, 12800, 4),
    "ar12b": (40, 5120, 64000, 12800, 12),
    "ar5b_v2w": (16, 4096, 64064, 12864, 5),
    "ar13b_v2w": (40, 5120, 64064, 12864, 13),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models(name):
    layers, width, vocabulary, inputs, billions = PUBLISHED[name]
    recipe = load_recipe(name)
    model = recipe.model_for_clips()
    assert (model.num_layers, model.hidden_size, model.vocab_size) == (layers, width, vocabulary)
    assert (model.num_attention_heads, model.num_query_groups, model.kv_channels) == (32, 8, 128)
    assert (model.ffn_hidden_size, model.output_vocab_size) == (14336, 64000)
    assert model.rotary_base == 500_000
    assert model.latent_shape == (5, 40, 64)
    assert model.sequence_length == inputs
    assert model.num_parameters / 1e9 == pytest.approx(billions, abs=0.5)
    assert (model.yarn_scale is not None) == ("12b" in name or "13b" in name)
    assert (model.context_width == 1024) == name.endswith("v2w")


def test_every_recipe_loads_and_survives_being_printed(tmp_path):
    assert {*PUBLISHED, "ar_tiny"} <= set(recipe_names())
    for name in recipe_names():
        recipe = load_recipe(name)
        printed = tmp_path / f"{name}.yaml"
        text = dump_yaml(recipe)
        printed.write_text(text.split("\n", 1)[1])  # the name follows from the file
        assert load_recipe(str(printed)) == recipe


def test_overrides_are_typed():
    recipe = load_recipe(
        "ar_tiny", ["train.learning_rate=5e-4", "data.input=007", "train.init_from=null"]
    )
    assert recipe.train.learning_rate == 5e-4
    assert recipe.data.input == "007"
    assert recipe.train.init_from is None


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("train.max_step=3", "unknown setting 'train.max_step'; did you mean train.max_steps?"),
        ("max_steps=3", "did you mean train.max_steps?"),
        ("data.split.trian=1", "did you mean data.split.train?"),
        ("train.max_steps=many", "train.max_steps='many': expected whole number above 0"),
        ("train.max_steps=1.5", "train.max_steps=1.5"),
        ("train.max_steps=0", "train.max_steps=0: expected whole number above 0"),
        ("train.precision=bf1", "did you mean bf16?"),
        ("data.frames=32", "frames=32 is not 8k+1; the nearest are 25 and 33"),
        ("data.height=100", "height=100 is not a multiple of 16; the nearest are 96 and 112"),
        ("data.compression=[1,2,3]", "is not a tokenizer's compression; use [8, 16, 16] or [4"),
        ("train.global_batch_size=3", "is not a multiple of micro_batch_size=8 times 1"),
        ("train.tensor_parallel=3", "tensor_parallel=3 does not divide gpus=1"),
        ("model.num_query_groups=3", "num_query_groups=3 does not divide num_attention_heads=4"),
        ("model.yarn_scale=2", "YaRN needs all of its yarn_ settings"),
        ("model.context_width=8", "context_width goes with task=video2world"),
        ("data.text_encoder=small", "text_encoder goes with task=video2world"),
        ("model.vocab_size=100", "must hold the 64000 tokens"),
        ("train.learning_rate=.inf", "train.learning_rate=inf: expected number above 0"),
        ("train.learning_rate=.nan", "train.learning_rate=nan: expected number above 0"),
        ("train.max_steps=true", "train.max_steps=True: expected whole number above 0"),
        ("train.tensorboard=1", "train.tensorboard=1: expected true or false"),
        (
            "train.fusions=[loss,nroms]",
            "['loss', 'nroms']: expected list, each: `attention_inputs`, ",
        ),
        ("train.fusions=[loss,nroms]", "; did you mean norms?"),
        ("generate.guard=mine", "expected `module:function` or `path/to/file.py:function`, or"),
        ("train.warmup_steps=120", "warmup_steps=120 is not below max_steps=120"),
        ("train.min_learning_rate=1", "min_learning_rate=1.0 is above learning_rate=0.003"),
        ("train.schedule=cosin", "did you mean cosine?"),
        (
            "train.freeze=[layers.1-2]",
            "train.freeze names layer 2, and the model has layers 0 to 1",
        ),
        ("train.freeze=[head]", "'head' is no part of a model; there are embedding, output_layer"),
        ("train.condition_frames=8", "condition_frames=8 is not 8k+1; the nearest are 1 and 9"),
        ("train.condition_frames=17", "leaves none of data.frames=17 to predict"),
        ("train.lora.rank=4", "lora needs init_from"),
        ("train.moment_precision=bf16", "moment_precision=bf16 needs precision=bf16"),
        ("data.input=", "data.input='': expected path or name, or `null`, of length >= 1"),
        (
            "data.compression=[8,16]",
            "data.compression=[8, 16]: expected `[8, 16, 16]` or `[4",
        ),
        ("name=foo", "unknown setting 'name'"),
        (
            "data.split=0.8,0.1,0.1",
            "data.split is a group of settings, which take their values one by one: "
            "data.split.train=..., data.split.validation=..., data.split.test=..., data.split.seed",
        ),
        ("train.lora=null", "which take their values one by one: train.lora.rank=..., "),
        ("train=5", ", train.recompute=... and "),
        ("frames", "'frames' is not key=value"),
        ("data.frames=[", "the value of data.frames is not valid YAML"),
    ],
)
def test_a_wrong_override_is_one_clear_sentence(override, says):
    with pytest.raises(RequestError) as e:
        load_recipe("ar_tiny", [override])
    assert says in str(e.value)
    assert "\n" not in str(e.value)
    assert e.value.exit_code == 2


def test_a_changed_copy_is_checked_as_well():
    train = load_recipe("ar_tiny").train
    assert replace(train, max_steps=7) == load_recipe("ar_tiny", ["train.max_steps=7"]).train
    with pytest.raises(ValueError, match="warmup_steps=120 is not below max_steps=120"):
        replace(train, warmup_steps=train.max_steps)
    with pytest.raises(ValueError, match="freeze: 'head' is no part of a model"):
        replace(train, freeze=["head"])
    with pytest.raises(AttributeError):
        train.max_steps = 7


def test_a_tokenizer_goes_with_its_compression():
    with pytest.raises(RequestError, match="the tokenizer for it is .*DV4x8x8"):
        load_recipe("ar4b", ["data.compression=[4,8,8]"])
    changed = load_recipe(
        "ar4b",
        [
            "data.compression=[4,8,8]",
            "data.tokenizer=nvidia/Cosmos-0.1-Tokenizer-DV4x8x8",
            "data.frames=17",
            "data.height=320",
            "data.width=512",
        ],
    )
    assert changed.model_for_clips().latent_shape == (5, 40, 64)


@pytest.mark.parametrize(
    ("recipe", "overrides", "says"),
    [
        ("ar_tiny", ["gpus=4", "tensor_parallel=4"], "tensor_parallel=4 does not divide model.num"),
        ("ar_tiny", ["gpus=2", "context_parallel=4"], "context_parallel=4 does not divide gpus=2"),
        (
            "ar4b",
            ["gpus=6", "tensor_parallel=2", "context_parallel=2"],
            "tensor_parallel=2 times context_parallel=2 does not divide gpus=6",
        ),
        (
            "ar4b",
            ["gpus=16", "tensor_parallel=4", "context_parallel=4"],
            "train.tensor_parallel=4 times train.context_parallel=4 does not divide "
            "model.num_query_groups=8",
        ),
        (
            "ar4b",
            ["context_parallel=2", "transformer_impl=transformer_engine"],
            "context_parallel=2 needs local layers, and transformer_impl is transformer_engine",
        ),
        (
            "ar4b",
            ["gpus=8", "tensor_parallel=1", "context_parallel=2", "global_batch_size=6"],
            "global_batch_size=6 is not a multiple of micro_batch_size=1 times 4 data-parallel",
        ),
    ],
)
def test_ranks_must_divide_what_they_share(recipe, overrides, says):
    with pytest.raises(RequestError) as e:
        load_recipe(recipe, [f"train.{override}" for override in overrides])
    assert says in str(e.value)
    assert "\n" not in str(e.value)


def test_parts_of_a_sequence_must_be_equal():
    odd = "model.pad_to_multiple_of=1"  # 12 801 inputs
    with pytest.raises(RequestError, match="context_parallel=2 does not divide the 12801 inputs"):
        load_recipe("ar5b_v2w", [odd, "train.context_parallel=2"])
    spread = ["train.tensor_parallel=2", "train.context_parallel=2", "train.sequence_parallel=true"]
    with pytest.raises(RequestError, match="times train.context_parallel=2 does not divide the 12"):
        load_recipe("ar5b_v2w", ["model.pad_to_multiple_of=2", *spread])


def test_unknown_recipe_names_the_nearest():
    with pytest.raises(RequestError, match="unknown recipe 'ar_tinny'; did you mean ar_tiny"):
        load_recipe("ar_tinny")


def test_own_recipe_file_builds_on_a_shipped_one(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("base: ar_tiny\ntrain:\n  max_steps: 7\n")
    assert load_recipe(str(own)).train.max_steps == 7
    assert load_recipe(str(own)).name == "mine"
    own.write_text("base: ar_tiny\ntrain:\n  max_stepz: 7\n")
    with pytest.raises(RequestError, match="mine: unknown setting 'train.max_stepz'; did you mean"):
        load_recipe(str(own))
    own.write_text("base: ar_tiny\ntrain: {lora: 3}\n")
    with pytest.raises(RequestError, match="train.lora=3: expected settings by their names, or `n"):
        load_recipe(str(own))
    own.write_text(f"base: {own}\n")
    with pytest.raises(RequestError, match="is its own base"):
        load_recipe(str(own))
    own.write_text("base: ar_tiny\ntrain:\n  max_steps: 7\ntrain:\n  gpus: 1\n")
    with pytest.raises(RequestError, match="'train' stands there twice in line 4"):
        load_recipe(str(own))
    for text, says in (
        ("train: [\n", "did not find expected node content in line 2, column 1"),
        ("name: [a\ntrain: 1\n", "while parsing a flow sequence in line 1, column 7, did not find"),
        ("train: 2020-13-01\n", "month must be in 1..12"),
    ):
        own.write_text(text)
        with pytest.raises(RequestError) as e:
            load_recipe(str(own))
        assert "mine.yaml is not valid YAML: " in str(e.value) and says in str(e.value)
        assert "\n" not in str(e.value) and "<" not in str(e.value)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["train.lora.targets=[linear_kv]"], "this model has no linear_kv; it has linear_qkv, "),
        (["train.freeze=[embedding]"], "freeze does not go with lora"),
        (["train.moment_precision=bf16"], "moment_precision=bf16 does not go with lora"),
        (["train.gpus=4", "train.tensor_parallel=4", "train.lora.rank=6"], "does not divide lora"),
        (["train.lora.rank=0"], "train.lora.rank=0: expected whole number above 0"),
    ],
)
def test_adapters_that_cannot_be(overrides, says):
    with pytest.raises(RequestError) as e:
        load_recipe("ar4b_lora", overrides)
    assert says in str(e.value)
    assert load_recipe("ar5b_v2w_lora", ["train.lora.targets=[linear_kv]"]).train.lora.rank == 32


def test_moments_in_bf16_need_an_adam_that_has_them():
    moments = "train.moment_precision=bf16"
    with pytest.raises(RequestError, match="needs adam among the fusions, or transformer_impl=tr"):
        load_recipe("ar4b", [moments, "train.fusions=[loss]"])
    layers = "train.transformer_impl=transformer_engine"
    for others in ([], ["train.fusions=[adam]"], ["train.fusions=[loss]", layers]):
        assert load_recipe("ar4b", [moments, *others]).train.moment_precision == "bf16"


def test_which_kernels_are_fused():
    train = load_recipe("ar4b").train
    assert (train.fused, train.fuses_adam) == (FUSIONS, True)
    assert load_recipe("ar4b", ["train.fusions=[rotary]"]).train.fused == ["rotary"]
    engine = load_recipe("ar4b", ["train.transformer_impl=transformer_engine"]).train
    assert (engine.fused, engine.fuses_adam) == (("loss",), False)
    adapters = load_recipe("ar4b_lora").train
    assert (adapters.fused, adapters.fuses_adam) == (FUSIONS, False)


def test_frames_that_are_given_go_with_clips():
    recipe = load_recipe("ar4b", ["train.condition_frames=9"])
    assert recipe.train.given_ids(recipe.data) == 2 * 40 * 64
    with pytest.raises(RequestError, match="condition_frames does not go with task=action"):
        load_recipe("ar_tiny_action", ["train.condition_frames=1"])


def test_clips_of_a_video():
    data = load_recipe("ar_tiny", ["data.clips=all", "data.stride=5", "data.frame_rate=10"]).data
    assert (data.clips, data.stride, data.frame_rate, data.start) == ("all", 5, 10.0, 0.0)
    with pytest.raises(RequestError, match="stride=5 goes with clips=all"):
        load_recipe("ar_tiny", ["data.stride=5"])
    with pytest.raises(RequestError, match="data.start does not go with task=action"):
        load_recipe("ar_tiny_action", ["data.start=1"])
    for wrong in ("data.start=-1", "data.frame_rate=0", "data.decoders=-1", "data.clips=some"):
        with pytest.raises(RequestError):
            load_recipe("ar_tiny", [wrong])
