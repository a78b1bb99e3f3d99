"""Fused kernels against what they stand for, without the compiler; compiled: test_gpu.py."""

import pytest
import torch
from megatron.core.models.common.embeddings import rope_utils
from msgspec.structs import replace

from cosmos_hpc.models import fusions
from cosmos_hpc.models.config import ModelConfig
from cosmos_hpc.models.fusions import (
    AddedByProducts,
    _scale,
    _total_norm,
    apply_rotary,
    choose_fusions,
    rms_norm,
    swiglu_gradient,
)
from cosmos_hpc.models.positions import rotary_angles
from tests.models.test_decoder import MODEL


@pytest.fixture(autouse=True)
def without_the_compiler():
    with torch.compiler.set_stance("force_eager"):
        yield


def gradients(function, *inputs):
    inputs = [x.detach().requires_grad_() for x in inputs]
    out = function(*inputs)
    torch.manual_seed(1)
    (out * torch.randn_like(out)).sum().backward()
    return out.detach(), [x.grad for x in inputs]


@pytest.mark.parametrize("model", [MODEL, replace(MODEL, kv_channels=6)])
def test_rotary_and_its_gradient_are_megatron_s(model: ModelConfig):
    angles = rotary_angles(model)[:, None, None]
    t = torch.randn(len(angles), 2, 3, model.kv_channels)
    expected, [wanted] = gradients(lambda x: rope_utils._apply_rotary_pos_emb_bshd(x, angles), t)
    got, [found] = gradients(lambda x: apply_rotary(x, angles, rotary_interleaved=False), t)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(found, wanted)
    assert apply_rotary(t.bfloat16(), angles).dtype == torch.bfloat16


@pytest.mark.parametrize("worth_compiling", [0, 1000])
def test_norms_and_their_gradients_are_pytorch_s(worth_compiling, monkeypatch):
    monkeypatch.setattr(fusions, "_WORTH_COMPILING", worth_compiling)
    x, weight = torch.randn(5, 3, 12), torch.randn(12)
    expected, wanted = gradients(
        lambda x, w: torch.nn.functional.rms_norm(x, (12,), w, 1e-5), x, weight
    )
    got, found = gradients(lambda x, w: rms_norm(x, (12,), w, 1e-5), x, weight)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(found, wanted)


def test_the_gradient_of_swiglu_is_that_of_its_definition():
    def swiglu(y):
        gate, up = y.chunk(2, -1)
        return torch.nn.functional.silu(gate) * up

    y, gradient = torch.randn(5, 2, 12, requires_grad=True), torch.randn(5, 2, 6)
    swiglu(y).backward(gradient)
    torch.testing.assert_close(swiglu_gradient(gradient, y.detach()), y.grad)
    half = swiglu_gradient(gradient.bfloat16(), y.detach().bfloat16())
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), y.grad, rtol=0.02, atol=0.02)


def test_gradients_add_up_in_place():
    inputs, gradient, total = torch.randn(7, 3), torch.randn(7, 4), torch.randn(4, 3)
    expected = total + gradient.t() @ inputs
    AddedByProducts.wgrad_gemm_accum_fp32(inputs, gradient, total)
    torch.testing.assert_close(total, expected)


def test_gradients_are_measured_and_scaled_together():
    gradients = [torch.randn(7, 3), torch.randn(5)]
    expected = torch.cat([gradient.flatten() for gradient in gradients])
    found, _ = _total_norm(1, torch.zeros(1), [gradients], False)
    torch.testing.assert_close(found, expected.norm()[None])
    others = [torch.empty(7, 3), torch.empty(5)]
    _scale(1, torch.zeros(1), [gradients, others], 0.5)
    _scale(1, torch.zeros(1), [gradients, gradients], 0.5)
    for scaled in (gradients, others):
        torch.testing.assert_close(torch.cat([s.flatten() for s in scaled]), expected / 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPU")
def test_nothing_is_fused_without_a_gpu():
    assert choose_fusions(["rotary"]) == []
