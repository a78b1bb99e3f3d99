"""Megatron's decoder against the plain statement of the architecture, logits and gradients."""

import math

import pytest
import torch
from msgspec.structs import asdict, replace

from cosmos_hpc.config.recipe_files import recipe_names
from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.errors import RequestError
from cosmos_hpc.models import ModelConfig, from_published
from cosmos_hpc.models.checkpoints.weights import weights_of
from cosmos_hpc.models.positions import absolute_positions, rotary_angles
from cosmos_hpc.models.shapes import published_shapes
from tests.models import reference
from tests.ranks import run_ranks

SIZES = {
    "num_layers": 2,
    "hidden_size": 64,
    "ffn_hidden_size": 96,
    "num_attention_heads": 4,
    "num_query_groups": 2,
    "kv_channels": 32,
    "vocab_size": 80,
    "output_vocab_size": 80,
    "latent_shape": (2, 3, 4),
    "rotary_base": 500_000,
}
YARN = {
    "yarn_scale": 2.0,
    "yarn_beta_fast": 4.0,
    "yarn_beta_slow": 1.0,
    "yarn_original_latent_shape": (2, 3, 4),
}
TEXT = {"vocab_size": 96, "context_width": 48, "pad_to_multiple_of": 8}
ACTION = {"action_width": 7, "latent_shape": (2, 3, 5), "pad_to_multiple_of": 16}
VARIANTS = {
    "4b": {},
    "12b": YARN,
    "5b": TEXT,
    "13b": {**YARN, **TEXT},
    "5b action": {**TEXT, **ACTION},
    "13b action": {**YARN, **TEXT, **ACTION},
}


def sizes(variant):
    return {**SIZES, **VARIANTS[variant]}


def weights(config, seed=0, scale=0.1):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator) * scale + (len(shape) == 1)
        for name, shape in published_shapes(config).items()
    }


def to_megatron(tensors, config):
    """Names and values of the parameters that tensors with published names become."""
    return {
        weight.module_name: weight.pack([tensors[part] for part in weight.parts])
        for weight in weights_of(config)
    }


def inputs(config, seed=1):
    """Ids, and what the model is conditioned on, by the names of its arguments."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, config.vocab_size, (2, config.sequence_length), generator=generator)
    if config.action_width:
        return ids, {"action": torch.randn(2, config.action_width, generator=generator)}
    if config.context_width:
        return ids, {"context": torch.randn(2, 5, config.context_width, generator=generator)}
    return ids, {}


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_all_gradients_agree(variant):
    config = ModelConfig(**sizes(variant))
    assert config.sequence_length == (32 if config.context_width else 24)
    w = {name: tensor.requires_grad_() for name, tensor in weights(config).items()}
    ids, condition = inputs(config)
    probe = torch.randn(2, config.sequence_length, config.output_vocab_size)

    expected = reference.logits(w, sizes(variant), ids, **condition)
    (expected * probe).sum().backward()
    model = from_published({name: tensor.detach() for name, tensor in w.items()}, config)
    got = model(ids, **condition)
    (got * probe).sum().backward()

    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    wanted = to_megatron({name: tensor.grad for name, tensor in w.items()}, config)
    found = {name: p.grad for name, p in model.decoder.named_parameters()}
    assert set(found) == set(wanted)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-4, msg=name)


@pytest.mark.parametrize("name", recipe_names())
def test_tables_agree_at_full_size(name):
    config = load_recipe(name).model_for_clips()
    c = asdict(config)
    torch.testing.assert_close(rotary_angles(config), reference.rotary_table(c))
    if config.context_width:
        # All rows of a narrow table, and all columns of some rows: every number of the whole would
        # take a minute of plain Python.
        narrow = replace(config, hidden_size=96)
        table = absolute_positions(narrow)
        torch.testing.assert_close(table, reference.absolute_table(asdict(narrow)))
        ids = math.prod(config.latent_shape)
        assert not table[0].any()
        assert not table[ids + 1 :].any()
        whole = absolute_positions(config)
        for row in (1, 2, ids // 3, ids - 1, ids):
            expected = reference.absolute_row(c, reference.positions(c)[row])
            torch.testing.assert_close(
                whole[row], torch.tensor(expected, dtype=torch.float64).float()
            )


@pytest.mark.parametrize("context_width", [None, 48])
@pytest.mark.parametrize("pad", [None, 5, 64])
def test_begin_of_video_comes_with_text_and_padding_by_itself(context_width, pad):
    c = {**SIZES, "context_width": context_width, "pad_to_multiple_of": pad}
    config = ModelConfig(**c)
    length = 24 + (context_width is not None)
    assert config.sequence_length == -(-length // (pad or 1)) * (pad or 1)
    torch.testing.assert_close(rotary_angles(config), reference.rotary_table(c))
    w, (ids, condition) = weights(config), inputs(config)
    with torch.no_grad():
        got = from_published(w, config)(ids, **condition)
    torch.testing.assert_close(got, reference.logits(w, c, ids, **condition), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "sizes",
    [
        {"kv_channels": 6, "num_query_groups": 1},
        {"kv_channels": 10, "rotary_base": 10000.0},
        {"latent_shape": (1, 1, 1), "vocab_size": 7, "output_vocab_size": 5},
        {"ffn_hidden_size": 33, "hidden_size": 22, "num_attention_heads": 3, "num_query_groups": 3},
        {"context_width": 7, "vocab_size": 81, "hidden_size": 50},
    ],
)
def test_any_sizes_will_do(sizes):
    c = {**SIZES, **sizes}
    config = ModelConfig(**c)
    w, (ids, condition) = weights(config), inputs(config)
    with torch.no_grad():
        got = from_published(w, config)(ids.int(), **condition)
    torch.testing.assert_close(got, reference.logits(w, c, ids, **condition), rtol=1e-4, atol=1e-4)
    assert sum(tensor.numel() for tensor in w.values()) == config.num_parameters


def test_angles_stay_exact_in_a_model_of_bfloat16():
    """Rounded to bfloat16 they are off by up to a tenth of a radian at the end of a clip."""
    model = from_published(weights(ModelConfig(**SIZES)), ModelConfig(**SIZES)).bfloat16()
    angles = model.decoder.rotary_pos_emb(24)
    assert angles.dtype == torch.float32
    torch.testing.assert_close(angles[:, 0, 0], reference.rotary_table(SIZES))


def test_arguments_that_are_not_the_model_s_are_one_sentence():
    plain, text, action = (ModelConfig(**sizes(v)) for v in ("4b", "5b", "5b action"))
    ids = torch.zeros(2, 24, dtype=torch.long)
    words = torch.zeros(2, 5, 48)
    for config, arguments, expected in (
        (plain, {"ids": ids.float()}, "ids are integers"),
        (plain, {"ids": ids[0]}, "ids are integers"),
        (plain, {"ids": torch.zeros(1, 25, dtype=torch.long)}, "25 tokens; a sample of this model"),
        (plain, {"ids": ids, "context": words}, "takes neither a context nor an action"),
        (text, {"ids": ids}, "needs a context"),
        (text, {"ids": ids, "context": words[:1]}, r"context is .2, text positions, 48."),
        (text, {"ids": ids, "context": words[..., :9]}, r"context is .2, text positions, 48."),
        (action, {"ids": ids, "context": words, "action": words[:, 0]}, "needs a context, or an"),
        (action, {"ids": ids, "action": torch.zeros(2, 6)}, r"action is .2, 7."),
    ):
        with pytest.raises(ValueError, match=expected):
            from_published(weights(config), config)(**arguments)
    with pytest.raises(ValueError, match="hidden_size=51 must be even"):
        ModelConfig(**{**SIZES, "hidden_size": 51, "context_width": 8})


def test_a_beginning_of_a_clip_is_enough():
    config = ModelConfig(**sizes("5b"))
    ids, condition = inputs(config)
    model = from_published(weights(config), config)
    with torch.no_grad():
        whole, part = model(ids, **condition), model(ids[:, :9], **condition)
    torch.testing.assert_close(part, whole[:, :9])


def test_bfloat16_weights_are_taken():
    config = ModelConfig(**sizes("4b"))
    half = {name: tensor.bfloat16() for name, tensor in weights(config).items()}
    model = from_published(half, config)
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_weights_of_another_model_are_named():
    config = ModelConfig(**sizes("5b"))
    other = weights(ModelConfig(**sizes("4b")))
    with pytest.raises(RequestError, match=r"14 missing \(model.layers.0.cross_attention_norm"):
        from_published(other, config)
    with pytest.raises(RequestError, match="1 misshapen .model.tok_embeddings.weight is .80, 64."):
        from_published(other, config)
    with pytest.raises(RequestError, match=r"14 unexpected"):
        from_published(weights(config), ModelConfig(**sizes("4b")))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "ranks"),
    [
        *(("plain", 2), ("sequence", 2), ("full", 2), ("selective", 2)),
        *(("context", 2), ("context+full", 2), ("context+sequence", 4)),
    ],
)
def test_ranks_that_share_a_model_agree_as_well(tmp_path, case, ranks):
    """All variants, one after another in the same processes."""
    worker = "tests.models.parallel_worker"
    done = run_ranks(tmp_path, worker, case, *VARIANTS, ranks=ranks, timeout=120)
    assert done.succeeded, done.log[-3000:]
    assert done.log.count("agrees") == ranks * len(VARIANTS)
