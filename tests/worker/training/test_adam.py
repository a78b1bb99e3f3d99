"""AdamW in one pass against PyTorch's; with Megatron's optimizer: test_distributed.py."""

import copy
import itertools
import math

import pytest
import torch

from cosmos_hpc.models.checkpoints.published import one_rank
from cosmos_hpc.worker.training.adam import (
    FusedAdam,
    gradient_norm,
    joined,
    scale_in_step,
    split,
)

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


def in_bf16(plain):
    """Copies of parameters in bf16; the parameters themselves are rounded as well."""
    for parameter in plain:
        parameter.data = parameter.data.bfloat16().float()
    return [parameter.detach().bfloat16() for parameter in plain]


def draw_gradients(*lists, dtype=torch.float32):
    for same in zip(*lists, strict=True):
        gradient = (3 * torch.randn(same[0].shape)).to(dtype)
        for parameter in same:
            if parameter.dtype == torch.float32:
                parameter.grad = gradient.float().clone()
            else:
                parameter.decoupled_grad = gradient.clone()


@pytest.mark.usefixtures("without_the_compiler")
@pytest.mark.parametrize("largest", [1.0, 1e6])
def test_steps_are_those_of_pytorch_s_with_clipped_gradients(largest, alone):
    plain, fused = parameters(), parameters()
    expected, got = torch.optim.AdamW(plain, **SETTINGS), FusedAdam(fused, **SETTINGS)
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


@pytest.mark.usefixtures("without_the_compiler")
@pytest.mark.parametrize("gradients", [torch.float32, torch.bfloat16])
def test_bf16_weights_are_float32_ones_in_two_parts(gradients):
    plain = parameters()
    fused = in_bf16(plain)
    expected, got = torch.optim.AdamW(plain, **SETTINGS), FusedAdam(fused, **SETTINGS)
    for _ in range(20):
        draw_gradients(plain, fused, dtype=gradients)
        expected.step()
        got.step()
    for wanted, weight in zip(plain, fused, strict=True):
        exact = joined(weight.view(torch.int16), got.state[weight]["master_param"])
        torch.testing.assert_close(exact, wanted.data)
        assert torch.equal(weight, exact.bfloat16())
        assert got.state[weight]["exp_avg"].dtype == torch.float32


def test_halves_of_a_float32_number_are_exact():
    torch.manual_seed(1)
    numbers = torch.cat(
        [
            torch.randn(10_000) * 10.0 ** torch.randint(-30, 30, (10_000,)),
            torch.tensor([0.0, -0.0, 1.0, -1.0, 1 + 2**-8, -1 - 2**-8, 1 + 3 * 2**-8, 1e-45]),
            torch.tensor([torch.inf, -torch.inf, torch.finfo().max, torch.finfo().tiny]),
        ]
    )
    high, low = split(numbers)
    assert high.dtype == low.dtype == torch.int16
    assert torch.equal(joined(high, low).view(torch.int32), numbers.view(torch.int32))
    # Rounded to the nearest, of two equally near ones away from zero.
    error = (high.view(torch.bfloat16).double() - numbers.double()).abs()
    other = (numbers.bfloat16().double() - numbers.double()).abs()
    assert torch.equal(error[numbers.isfinite()], other[numbers.isfinite()])
    assert not split(numbers[:100].bfloat16().float())[1].any()
    # What is no number stays so in both, whichever of its bits are set.
    bits = torch.tensor([0x7FC00000, 0x7FFFFFFF, 0x7FFF8000, 0x7F800001, -1, -0x400000])
    high, low = split(bits.int().view(torch.float32))
    assert high.view(torch.bfloat16).isnan().all() and joined(high, low).isnan().all()


@pytest.mark.usefixtures("without_the_compiler")
def test_moments_in_bf16():
    """Their error is that of rounding; it does not grow."""
    plain = parameters()
    fused = in_bf16(plain)
    expected, got = torch.optim.AdamW(plain, **SETTINGS), FusedAdam(fused, **SETTINGS)
    got.moments = torch.bfloat16
    for _ in range(200):
        draw_gradients(plain, fused)
        expected.step()
        got.step()
    for wanted, weight in zip(plain, fused, strict=True):
        for name in ("exp_avg", "exp_avg_sq"):
            moment, value = got.state[weight][name], expected.state[wanted][name]
            assert moment.dtype == torch.bfloat16
            assert (moment.float() - value).norm() < 0.01 * value.norm()
        exact = joined(weight.view(torch.int16), got.state[weight]["master_param"])
        assert (exact - wanted).norm() < 0.01 * wanted.norm()


def loaded(before, weights, copies):
    """The fused AdamW of copies of weights, with the state of another one, after a step of both."""
    after = FusedAdam(copies, **SETTINGS)
    after.load_state_dict(copy.deepcopy(before.state_dict()))
    draw_gradients(weights, copies)
    before.step()
    after.step()
    return after


@pytest.mark.usefixtures("without_the_compiler")
@pytest.mark.parametrize("moments", [torch.float32, torch.bfloat16])
def test_a_state_is_loaded_as_it_was(moments):
    weights = in_bf16(parameters())
    before = FusedAdam(weights, **SETTINGS)
    before.moments = moments
    draw_gradients(weights)
    before.step()
    copies = [weight.clone() for weight in weights]
    after = loaded(before, weights, copies)
    for weight, same in zip(weights, copies, strict=True):
        assert torch.equal(weight, same)
        assert after.state[same]["exp_avg"].dtype == moments
        for name, value in before.state[weight].items():
            assert torch.equal(after.state[same][name], value)


@pytest.mark.usefixtures("without_the_compiler")
def test_a_training_goes_on_from_the_state_of_pytorch_s():
    plain = parameters()
    before = torch.optim.AdamW(plain, **SETTINGS)
    draw_gradients(plain)
    before.step()
    fused = copy.deepcopy(plain)
    loaded(before, plain, fused)
    for wanted, parameter in zip(plain, fused, strict=True):
        torch.testing.assert_close(parameter, wanted)


def test_weights_are_decayed_apart_from_their_gradients_only():
    with pytest.raises(ValueError, match="decays weights apart"):
        FusedAdam(parameters(), adam_w_mode=False)


NO_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def steps_in_a_buffer(device, weights, moments, gradients):
    """Weights, which are parts of a buffer as Megatron keeps them, and their state after steps."""
    shapes = [(64, 32), (64,), (1,), (32, 64), (2048,)]
    starts = [0, *itertools.accumulate(math.prod(shape) for shape in shapes)]
    places = list(itertools.pairwise(starts))
    generator = torch.Generator().manual_seed(1)
    buffer = torch.randn(starts[-1], generator=generator).to(device, weights)
    sums = torch.empty(starts[-1], dtype=gradients, device=device)
    parts = [buffer[a:b] for a, b in places]
    adam = FusedAdam(parts, **SETTINGS)
    adam.moments = moments
    for scale in (None, 0.5):
        sums.copy_(torch.randn(starts[-1], generator=generator))
        for part, (a, b) in zip(parts, places, strict=True):
            part.decoupled_grad = sums[a:b]
            if scale:
                part.gradient_scale = torch.tensor(scale, device=device)
        adam.step()
    states = [[adam.state[part][name] for part in parts] for name in ("exp_avg", "exp_avg_sq")]
    if weights == torch.bfloat16:
        halves = ((part.view(torch.int16), adam.state[part]["master_param"]) for part in parts)
        states.append([joined(*pair) for pair in halves])
    return [tensor.cpu() for tensor in (buffer, *map(torch.cat, states))]


@pytest.mark.slow
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=NO_GPU)])
@pytest.mark.parametrize(
    ("weights", "moments", "gradients"),
    [
        (torch.float32, torch.float32, torch.float32),
        (torch.bfloat16, torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
    ],
)
def test_compiled_steps_are_those_that_are_not(device, weights, moments, gradients):
    with torch.compiler.set_stance("force_eager"):
        expected = steps_in_a_buffer("cpu", weights, moments, gradients)
    compiled = steps_in_a_buffer(device, weights, moments, gradients)
    for got, wanted in zip(compiled, expected, strict=True):
        near = {"rtol": 1e-2, "atol": 1e-5} if wanted.dtype == torch.bfloat16 else {}
        torch.testing.assert_close(got, wanted, **near)
