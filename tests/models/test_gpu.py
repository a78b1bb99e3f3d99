"""The decoder in bf16 on a GPU beside float32 on the CPU. Only where there is a GPU."""

import pytest
import torch

from cosmos_hpc.models import ModelConfig, cache, from_published, generate
from cosmos_hpc.models.cache import CachedDecoder, attend_masked, attend_prefix
from tests.models.checkpoints.test_published import VARIANTS, inputs, sizes, weights
from tests.models.test_generation import clips, condition, model_of, with_begin

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def on_gpu(config, w, transformer_impl, change=lambda settings: None):
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    from cosmos_hpc.models.checkpoints.published import load_weights, one_rank
    from cosmos_hpc.models.checkpoints.published_files import PublishedWeights
    from cosmos_hpc.models.decoder import CosmosDecoder
    from cosmos_hpc.models.megatron import megatron_config

    one_rank()
    model_parallel_cuda_manual_seed(1)
    settings = megatron_config(
        config, False, transformer_impl, bf16=True, params_dtype=torch.bfloat16
    )
    change(settings)
    decoder = CosmosDecoder(settings, config, pre_process=True, post_process=True)
    decoder = decoder.cuda().bfloat16()
    load_weights(decoder, config, PublishedWeights(w, "test"))
    return decoder.eval()


@pytest.mark.parametrize("transformer_impl", ["local", "transformer_engine"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_bf16_logits_are_those_of_float32_but_for_rounding(variant, transformer_impl):
    from cosmos_hpc.models.layers import have_transformer_engine

    if transformer_impl == "transformer_engine" and not have_transformer_engine():
        pytest.skip("needs Transformer Engine")
    config = ModelConfig(**sizes(variant))
    w = {name: tensor.bfloat16() for name, tensor in weights(config).items()}
    ids, condition = inputs(config)
    with torch.no_grad():
        expected = from_published(w, config)(ids, **condition)
        condition = {name: tensor.cuda() for name, tensor in condition.items()}
        got = on_gpu(config, w, transformer_impl)(input_ids=ids.cuda(), **condition)
    off = (got.float().cpu() - expected).norm() / expected.norm()
    print(f"{variant}, {transformer_impl}: relative difference {off:.4f}")
    assert off < 0.02
    assert got.dtype == torch.bfloat16


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(1, 8, 32, 12_800, 128), (3, 2, 4, 70, 32), (2, 1, 3, 9, 10)])
def test_the_kernel_sees_the_prefix_and_nothing_behind_it(shape, dtype, monkeypatch):
    monkeypatch.setattr(cache, "COMPILE", False)
    batch, groups, heads, length, width = shape
    keys, values = torch.randn(2, batch, groups, length, width, device="cuda", dtype=dtype)
    q = torch.randn(batch, heads, 1, width, device="cuda", dtype=dtype)
    for used in {1, 2, 9, min(64, length), min(65, length), length // 2, length}:
        position = torch.tensor([used - 1], device="cuda")
        exact = attend_masked(q.double(), keys.double(), values.double(), position)
        # What is behind must not be read, as it may be anything.
        hidden = [
            torch.cat([x[:, :, :used], x[:, :, used:] + torch.nan], 2) for x in (keys, values)
        ]
        got = attend_prefix(q, *hidden, position)
        assert got.dtype == dtype
        off = (got.double() - exact).norm() / exact.norm()
        assert off < (1e-5 if dtype == torch.float32 else 1e-2)


# Compiling takes a minute: of one item, whose products Inductor writes itself, and of several.
COMPILED = [("13b", 1), ("5b action", 3)]


@pytest.mark.parametrize(
    ("variant", "batch", "compiled"),
    [*((variant, 3, False) for variant in VARIANTS), *((*case, True) for case in COMPILED)],
)
def test_float32_draws_on_a_gpu_are_those_on_a_cpu(variant, batch, compiled, monkeypatch):
    """As many ids as it takes to capture a step."""
    monkeypatch.setattr(cache, "COMPILE", compiled)
    torch._dynamo.reset()
    model, config = model_of(variant)
    ids, conditions = clips(config)[:batch, :6], condition(config, batch)
    expected = [generate(model, ids, 17, **conditions, temperature=t) for t in (0, 1)]
    there = {name: tensor.cuda() for name, tensor in conditions.items()}
    model = model.cuda()
    for temperature, wanted in enumerate(expected):
        got = generate(model, ids.cuda(), 17, **there, temperature=temperature)
        assert got.is_cuda
        assert torch.equal(got.cpu(), wanted)
        assert torch.equal(generate(model, ids, 17, **there, temperature=temperature), wanted)


@pytest.mark.parametrize("transformer_impl", ["local", "transformer_engine"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_cached_bf16_logits_are_those_of_float32_but_for_rounding(
    variant, transformer_impl, monkeypatch
):
    from cosmos_hpc.models.layers import have_transformer_engine

    monkeypatch.setattr(cache, "COMPILE", False)

    if transformer_impl == "transformer_engine" and not have_transformer_engine():
        pytest.skip("needs Transformer Engine")
    config = ModelConfig(**sizes(variant))
    w = {name: tensor.bfloat16() for name, tensor in weights(config).items()}
    fed, conditions = with_begin(config, clips(config)), condition(config)
    decoder = on_gpu(config, w, transformer_impl)
    with torch.no_grad():
        expected = from_published(w, config)(fed, **conditions)
        context = conditions.get("context")
        if "action" in conditions:
            context = decoder.action_mlp(conditions["action"].cuda().bfloat16())[:, None]
        context = None if context is None else context.cuda()
        cached = CachedDecoder(decoder, len(fed), fed.shape[1], context)
        got = [cached.prefill(fed[:, :5].cuda())]
        for place in range(5, fed.shape[1]):
            got.append(cached.step(fed[:, place].cuda(), torch.tensor([place], device="cuda")))
    off = (torch.stack(got, 1).cpu() - expected[:, 4:]).norm() / expected[:, 4:].norm()
    print(f"{variant}, {transformer_impl}: relative difference {off:.4f}")
    assert off < 0.02


def gradients_of(decoder, ids, conditions):
    """As Megatron's data parallelism keeps them: float32, in ``main_grad``."""
    for parameter in decoder.parameters():
        parameter.main_grad = torch.zeros_like(parameter, dtype=torch.float32)
    logits = decoder(input_ids=ids, **conditions)
    generator = torch.Generator("cuda").manual_seed(2)
    logits.backward(torch.randn(logits.shape, generator=generator, device="cuda").bfloat16())
    # What no product has added there is in ``grad``.
    grads = ((p.main_grad, p.grad) for p in decoder.parameters())
    return torch.cat([(m if g is None else m + g).flatten() for m, g in grads])


@pytest.mark.parametrize("variant", VARIANTS)
def test_fused_kernels_give_the_gradients_of_the_others(variant, monkeypatch):
    """But for rounding: the fused ones round less often."""
    from megatron.core.fusions import fused_bias_swiglu
    from megatron.core.models.common.embeddings import rope_utils
    from megatron.core.tensor_parallel import layers as megatron_layers

    from cosmos_hpc.models import fusions
    from cosmos_hpc.models.config import FUSIONS
    from cosmos_hpc.models.fusions import fuse
    from cosmos_hpc.models.layers import RMSNorm, RotatedSelfAttention

    monkeypatch.setattr(fusions, "_WORTH_COMPILING", 0)
    # All that is changed for the process comes back after the test.
    monkeypatch.setattr(
        rope_utils, "_apply_rotary_pos_emb_bshd", rope_utils._apply_rotary_pos_emb_bshd
    )
    monkeypatch.setattr(fused_bias_swiglu, "swiglu_back", fused_bias_swiglu.swiglu_back)
    monkeypatch.setattr(RMSNorm, "kernel", RMSNorm.__dict__["kernel"])
    monkeypatch.setattr(RotatedSelfAttention, "kernel", None)
    monkeypatch.setattr(megatron_layers, "_grad_accum_fusion_available", False)
    monkeypatch.setattr(megatron_layers, "fused_weight_gradient_mlp_cuda", None, raising=False)
    config = ModelConfig(**sizes(variant))
    w = {name: tensor.bfloat16() for name, tensor in weights(config).items()}
    ids, conditions = inputs(config)
    ids, conditions = ids.cuda(), {name: tensor.cuda() for name, tensor in conditions.items()}
    plain = gradients_of(on_gpu(config, w, "local"), ids, conditions)
    fused = gradients_of(
        on_gpu(config, w, "local", lambda settings: fuse(settings, FUSIONS)), ids, conditions
    )
    off = (fused - plain).norm() / plain.norm()
    print(f"{variant}: relative difference {off:.4f}")
    assert off < 0.03
