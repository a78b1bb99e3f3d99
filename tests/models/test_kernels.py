"""Triton kernels, without a GPU as Triton's interpreter runs them."""

import os
import subprocess
import sys

import pytest
import torch
from megatron.core.models.common.embeddings import rope_utils
from msgspec.structs import replace

from cosmos_hpc.models import ModelConfig, from_published
from cosmos_hpc.models.attention_inputs import queries_keys_values
from cosmos_hpc.models.cache import attend_masked
from cosmos_hpc.models.layers import RotatedSelfAttention
from cosmos_hpc.models.positions import rotary_angles
from cosmos_hpc.models.prefix_attention import attend_in_parts
from tests.conftest import REPOSITORY
from tests.models.checkpoints.test_published import inputs, sizes, weights
from tests.models.test_decoder import MODEL
from tests.models.test_fusions import gradients
from tests.ranks import run_ranks

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="compiled in test_gpu.py")

EPS = 1e-5


def step_by_step(angles):
    """What the kernel does, as Megatron does it."""

    def parts(projected, query_weight, key_weight):
        *_, slots, d = projected.shape
        query, key, value = projected.split([slots - 2, 1, 1], dim=3)
        query = torch.nn.functional.rms_norm(query.flatten(2, 3), (d,), query_weight, EPS)
        key = torch.nn.functional.rms_norm(key.flatten(2, 3), (d,), key_weight, EPS)
        query, key = (
            rope_utils._apply_rotary_pos_emb_bshd(x, angles, rotary_interleaved=False)
            for x in (query, key)
        )
        return torch.cat((query, key, value.flatten(2, 3)), 2)

    return parts


@pytest.mark.parametrize(("batch", "groups", "queries"), [(1, 1, 1), (2, 3, 2), (3, 2, 4)])
def test_queries_keys_and_values_and_their_gradients_are_megatron_s(batch, groups, queries):
    angles = rotary_angles(replace(MODEL, kv_channels=16))[:, None, None]
    d = angles.shape[-1]
    projected = torch.randn(len(angles), batch, groups, queries + 2, d)
    given = (projected, torch.randn(d), torch.randn(d))
    expected, wanted = gradients(step_by_step(angles), *given)

    def fused(*given):
        return torch.cat(queries_keys_values(*given, angles, EPS), 2)

    got, found = gradients(fused, *given)
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    halves = queries_keys_values(*(x.bfloat16() for x in given), angles, EPS)
    assert {x.dtype for x in halves} == {torch.bfloat16}


def test_frozen_norms_get_no_gradient():
    angles = rotary_angles(replace(MODEL, kv_channels=8))[:, None, None]
    projected = torch.randn(len(angles), 1, 1, 3, 8, requires_grad=True)
    weight = torch.ones(8)
    query, key, value = queries_keys_values(projected, weight, weight, angles, EPS)
    (query + key + value).sum().backward()
    assert projected.grad is not None
    assert weight.grad is None
    assert torch.equal(projected.grad[..., -1, :], torch.ones_like(value))


def logits_and_gradients(w, config, ids, condition):
    model = from_published(w, config).train()
    for parameter in model.parameters():
        parameter.requires_grad_()
    logits = model(ids, **condition)
    torch.manual_seed(1)
    (logits * torch.randn_like(logits)).sum().backward()
    return logits.detach(), torch.cat([p.grad.flatten() for p in model.parameters()])


@pytest.mark.parametrize("variant", ["12b", "13b"])
def test_a_model_learns_the_same_with_the_kernel(variant, monkeypatch):
    config = ModelConfig(**sizes(variant))
    w = weights(config)
    ids, condition = inputs(config)
    expected, wanted = logits_and_gradients(w, config, ids, condition)
    monkeypatch.setattr(RotatedSelfAttention, "kernel", staticmethod(queries_keys_values))
    got, found = logits_and_gradients(w, config, ids, condition)
    assert not torch.equal(found, wanted), "the kernel was not used"
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
    assert (found - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.slow
@pytest.mark.parametrize("case", ["kernel+sequence", "kernel+context+full"])
def test_ranks_that_share_a_model_agree_with_the_kernel_as_well(tmp_path, case):
    done = run_ranks(tmp_path, "tests.models.parallel_worker", case, "13b", ranks=2)
    assert done.succeeded, done.log[-3000:]
    assert done.log.count("agrees") == 2


def test_heads_that_the_kernel_cannot_take_do_without(monkeypatch):
    def refuse(*_):
        raise AssertionError("heads of 12 channels are none of 2, 4, 8...")

    config = replace(ModelConfig(**sizes("4b")), kv_channels=12)
    ids, condition = inputs(config)
    w = weights(config)
    expected = from_published(w, config)(ids, **condition)
    monkeypatch.setattr(RotatedSelfAttention, "kernel", staticmethod(refuse))
    assert torch.equal(from_published(w, config)(ids, **condition), expected)


@pytest.mark.parametrize(("used", "programs"), [(1, 3), (64, 1), (65, 2), (150, 3)])
def test_attention_to_a_prefix_sees_nothing_behind_it(used, programs):
    batch, groups, heads, length, width = 2, 2, 6, 150, 32
    keys, values = torch.randn(2, batch, groups, length, width)
    q = torch.randn(batch, heads, 1, width)
    position = torch.tensor([used - 1])
    expected = attend_masked(q, keys, values, position)
    hidden = [torch.cat([x[:, :, :used], x[:, :, used:] + torch.nan], 2) for x in (keys, values)]
    parts, logarithms = attend_in_parts(q, *hidden, position, programs)
    got = (parts * logarithms.softmax(-1)[..., None]).sum(2)
    torch.testing.assert_close(got, expected[:, :, 0], rtol=1e-4, atol=1e-4)


def test_it_compiles_for_an_h100_with_full_loads_and_no_spilled_registers(tmp_path):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    environment["TRITON_CACHE_DIR"] = str(tmp_path)
    subprocess.run(
        [sys.executable, "-m", "tests.models.compile_worker"],
        cwd=REPOSITORY,
        env=environment,
        check=True,
    )
