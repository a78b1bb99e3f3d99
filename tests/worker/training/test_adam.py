"""AdamW in one pass against PyTorch's; with Megatron's optimizer, on a GPU: test_gpu.py."""

import copy
import itertools
import math

import pytest
import torch

from cosmos_hpc.models.checkpoints.published import one_rank
from cosmos_hpc.worker.training.adam import FusedAdam, gradient_norm, scale_in_step

SETTINGS = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}
SHAPES = [(7, 3), (5,), (33, 17)]


@pytest.fixture
def without_the_compiler():
    with torch.compiler.set_stance("force_eager"):
        yield


@pytest.fixture
def alone():
    """A process group of one rank."""
    one_rank()


def parameters():
    torch.manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape)) for shape in SHAPES]


def draw_gradients(*lists):
    for same in zip(*lists, strict=True):
        gradient = 3 * torch.randn_like(same[0])
        for parameter in same:
            parameter.grad = gradient.clone()


@pytest.mark.usefixtures("without_the_compiler")
@pytest.mark.parametrize("largest", [1.0, 1e6])
def test_steps_are_those_of_pytorch_s_with_clipped_gradients(largest, alone):
    plain, fused = parameters(), parameters()
    expected, got = torch.optim.AdamW(plain, **SETTINGS), FusedAdam(fused, **SETTINGS)
    for parameter in fused[:2]:
        parameter.model_weight = torch.empty(parameter.numel(), dtype=torch.bfloat16)
    for _ in range(4):
        draw_gradients(plain, fused)
        norm = torch.nn.utils.clip_grad_norm_(plain, largest)
        expected.step()
        found = gradient_norm([parameter.grad for parameter in fused])
        torch.testing.assert_close(found, norm)
        scale_in_step(fused, largest, found, use_decoupled_grad=False)
        got.step()
    for wanted, parameter in zip(plain, fused, strict=True):
        torch.testing.assert_close(parameter, wanted)
        for name, value in expected.state[wanted].items():
            torch.testing.assert_close(got.state[parameter][name], value)
    for parameter in fused[:2]:
        assert torch.equal(parameter.model_weight, parameter.detach().flatten().bfloat16())


@pytest.mark.usefixtures("without_the_compiler")
def test_a_training_goes_on_from_the_state_of_pytorch_s():
    plain = parameters()
    before = torch.optim.AdamW(plain, **SETTINGS)
    draw_gradients(plain)
    before.step()
    fused = copy.deepcopy(plain)
    after = FusedAdam(fused, **SETTINGS)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    draw_gradients(plain, fused)
    before.step()
    after.step()
    for wanted, parameter in zip(plain, fused, strict=True):
        torch.testing.assert_close(parameter, wanted)


def test_weights_are_decayed_apart_from_their_gradients_only():
    with pytest.raises(ValueError, match="decays weights apart"):
        FusedAdam(parameters(), adam_w_mode=False)


@pytest.mark.slow
@pytest.mark.parametrize("in_bf16", [True, False])
def test_compiled_steps_of_weights_that_are_parts_of_a_buffer(in_bf16):
    """As Megatron keeps them: in float32 the weights are the model's own."""
    shapes = [(64, 32), (64,), (1,), (32, 64), (2048,)]
    starts = [0, *itertools.accumulate(math.prod(shape) for shape in shapes)]
    buffer = torch.randn(starts[-1])
    plain = [torch.nn.Parameter(buffer[a:b].clone()) for a, b in itertools.pairwise(starts)]
    parts = [buffer[a:b] for a, b in itertools.pairwise(starts)]
    models = torch.empty(starts[-1], dtype=torch.bfloat16)
    fused = [torch.nn.Parameter(part.clone() if in_bf16 else part) for part in parts]
    if in_bf16:
        for parameter, (a, b) in zip(fused, itertools.pairwise(starts), strict=True):
            parameter.model_weight = models[a:b]
    expected, got = torch.optim.AdamW(plain, **SETTINGS), FusedAdam(fused, **SETTINGS)
    for scale in (None, 0.5):
        draw_gradients(plain, fused)
        if scale:
            for wanted, parameter in zip(plain, fused, strict=True):
                wanted.grad *= scale
                parameter.gradient_scale = torch.tensor(scale)
        expected.step()
        got.step()
    result = torch.cat([parameter.detach() for parameter in plain])
    torch.testing.assert_close(torch.cat([p.detach() for p in fused]), result)
    if in_bf16:
        torch.testing.assert_close(models, result.bfloat16())
    else:
        torch.testing.assert_close(buffer, result)
