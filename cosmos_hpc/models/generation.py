"""The tokens that continue a clip, sampled one after the other from a decoder."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cosmos_hpc.errors import RequestError
from cosmos_hpc.models.cache import CachedDecoder, step_form
from cosmos_hpc.models.checkpoints.published import PublishedModel
from cosmos_hpc.models.config import ModelConfig
from cosmos_hpc.models.decoder import CosmosDecoder

#: Steps for which a CUDA graph is worth the capture.
STEPS_TO_CAPTURE = 8

# Constants of SplitMix64 (Steele, Lea and Flood, "Fast splittable pseudorandom number generators",
# 2014, in the variant of Vigna's splitmix64.c), as signed numbers: torch multiplies int64 modulo
# 2**64, which is the same for both.
_GAMMA = 0x9E3779B97F4A7C15 - 2**64
_FIRST, _SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64


def generate(
    model: nn.Module,
    ids: Tensor,
    new_ids: int,
    context: Tensor | None = None,
    action: Tensor | None = None,
    temperature: float = 1.0,
    top_p: float = 0.8,
    seed: int | Sequence[int] = 0,
) -> Tensor:
    """Continue clips by sampling from a model, one token after the other.

    Neither ``ids`` nor the result hold special ids. For models with text or actions,
    begin-of-video is put in front here, and is no part of the result. There is no end-of-video:
    exactly ``new_ids`` ids are drawn, all of them ids of the tokenizer.

    An id is drawn from the softmax of the logits over the temperature, cut to its nucleus: the
    likeliest ids, up to the one with which their probabilities together pass ``top_p``. All of
    that is float32, whatever the dtype of the weights.

    An item's draws depend on its seed and on where in the clip they are (:func:`uniforms`), not on
    the batch, on the other items or on the number of ids asked for. In bfloat16 logits, and with
    them now and then an id, do depend on the size of the batch: kernels round differently.

    On a GPU a step is compiled (once a process and batch size) and captured in a CUDA graph; on a
    CPU it runs as it is. The model is not changed.

    Args:
        model: of :func:`cosmos_hpc.models.from_published`, or a
            :class:`cosmos_hpc.models.decoder.CosmosDecoder` that is complete on this rank, on any
            device and in any dtype.
        ids: the clips' first tokens in the order T, H, W, int64 ``[batch, prompt]`` on any device.
            With text or actions the prompt may be empty.
        new_ids: how many ids to add; prompt and new ones fit into a clip of the model.
        context: for models with text, the embedding ``[batch, text positions, context_width]`` of
            any float dtype, all of whose positions are seen. The published models read 512, those
            after the text zero.
        action: for models with actions, in place of a context, ``[batch, action_width]``.
        temperature: at least 0; 0 takes the likeliest id.
        top_p: from 0, the likeliest id alone, to 1, all ids.
        seed: any integer, of which item ``i`` has ``seed + i``; or a seed for each item.

    Returns:
        The prompts and what continues them, int64 ``[batch, prompt + new_ids]`` on the device of
        ``ids``.

    Raises:
        RequestError: the arguments are not such, or not those of this model; or the model is
            spread over several ranks.
    """
    decoder = _whole_decoder(model)
    _check_ids(decoder.architecture, ids, new_ids)
    _check_condition(decoder, len(ids), context, action)
    _check_sampling(temperature, top_p)
    seeds = _seeds(seed, len(ids))
    device = decoder.embedding.word_embeddings.weight.device
    on_device = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
    with torch.no_grad(), on_device:
        draw = _Draw(seeds, temperature, top_p, device)
        read = _context(decoder, context, action)
        return _continue(decoder, ids.to(device), new_ids, read, draw).to(ids.device)


def _continue(
    decoder: CosmosDecoder, ids: Tensor, new_ids: int, context: Tensor | None, draw: _Draw
) -> Tensor:
    """Prompts and new tokens, both on the device of the decoder."""
    batch, prompt = ids.shape
    if not new_ids:
        return ids.clone()
    clip = F.pad(ids, (0, new_ids))
    inputs = ids
    if context is not None:
        inputs = F.pad(ids, (1, 0), value=begin_of_video(decoder.architecture))
    first = inputs.shape[1] - prompt
    # For a complete clip, whatever is asked for: compiled code is for a cache of one length.
    length = first + math.prod(decoder.architecture.latent_shape)
    cached = CachedDecoder(decoder, batch, length, context)
    # Of the id drawn last; on the device, as a captured step counts on by itself.
    index = torch.full((1,), prompt, device=ids.device)
    clip.index_copy_(1, index, draw(cached.prefill(inputs), index))

    def step() -> None:
        last = clip.index_select(1, index)[:, 0]
        position = index + first
        index.add_(1)
        clip.index_copy_(1, index, draw(cached.step(last, position), index))

    _repeat(step, new_ids - 1, ids.device)
    return clip


def _repeat(step: Callable[[], None], times: int, device: torch.device) -> None:
    """Run a step ``times`` times, on a GPU through a CUDA graph.

    Nothing in between waits for the device.
    """
    if device.type != "cuda" or times < STEPS_TO_CAPTURE:
        for _ in range(times):
            step()
        return
    # The first compiles kernels and lets libraries allocate, which a capture may not.
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for _ in range(times - 1):
        graph.replay()
    # The graph's memory goes back with it, and has to be out of use by then.
    torch.cuda.current_stream(device).synchronize()


class _Draw:
    """Samples a token for each item of a batch, on the device of the logits."""

    def __init__(
        self, seeds: Sequence[int], temperature: float, top_p: float, device: torch.device
    ) -> None:
        self._greedy = temperature == 0
        states = torch.tensor([_signed(s) for s in seeds], dtype=torch.int64, device=device)
        self._states = _mix(states)
        # Tensors, so that other values need no other compiled code. The sum of all probabilities
        # is not quite 1: a bound of infinity keeps them all.
        limits = [temperature, top_p if top_p < 1 else math.inf]
        self._temperature, self._top_p = torch.tensor(limits, device=device)

    def __call__(self, logits: Tensor, index: Tensor) -> Tensor:
        """Ids int64 ``[batch, 1]``.

        Args:
            logits: float32 ``[batch, output vocabulary]``.
            index: of the id in the clip, int64 ``[1]``.
        """
        if self._greedy:
            return logits.argmax(-1, keepdim=True)
        form = step_form(logits.device)
        numbers = form(uniforms)(self._states, index)
        ids: Tensor = form(sample)(logits, numbers, self._temperature, self._top_p)
        return ids


def sample(logits: Tensor, numbers: Tensor, temperature: Tensor, top_p: Tensor) -> Tensor:
    """Sample from the nucleus of each row, by inverting its cumulative distribution.

    An id is in the nucleus if those that are likelier have at most ``top_p`` together; so the
    likeliest always is, and so is the one that crosses the bound. Of equally likely ids the
    smaller comes first.

    Args:
        logits: float32 ``[batch, vocabulary]``.
        numbers: of [0, 1), float32 ``[batch]``.
        temperature: above 0, float32 without dimensions.
        top_p: ``[batch]``; infinite for all tokens.

    Returns:
        int64 ``[batch, 1]``.
    """
    # From the largest down, so that no division by a small temperature overflows.
    scaled = (logits - logits.amax(-1, keepdim=True)) / temperature
    likely, order = scaled.softmax(-1).sort(dim=-1, descending=True, stable=True)
    total = likely.cumsum(-1)
    before = F.pad(total[:, :-1], (1, 0))
    last = (before <= top_p).sum(-1, keepdim=True) - 1
    aim = numbers[:, None] * total.gather(-1, last)
    # Rounding may lift the aim to the whole of the nucleus.
    place = (total <= aim).sum(-1, keepdim=True).minimum(last)
    return order.gather(-1, place)


def uniforms(states: Tensor, index: Tensor) -> Tensor:
    """Random numbers of [0, 1) that depend on nothing but a stream and a place in it.

    SplitMix64 as a counter-based generator: its state after ``n`` numbers is that at the start plus
    ``n`` times a constant, so that any number of a stream can be had at once, in integer arithmetic
    on any device and inside of a captured CUDA graph. The upper 24 bits make the number.

    Args:
        states: of the streams at their start, int64 ``[batch]``.
        index: place in the streams from 0, int64 ``[1]``.

    Returns:
        Multiples of ``2**-24``, float32 ``[batch]``.
    """
    return (_mix(states + (index + 1) * _GAMMA) >> 40 & (1 << 24) - 1).float() * 2.0**-24


def _mix(z: Tensor) -> Tensor:
    """SplitMix64's hash of int64 numbers, which as a signed number may be negative."""
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """To the right, with zeros from the left."""
    return z >> bits & (1 << 64 - bits) - 1


def _signed(number: int) -> int:
    """A number modulo 2**64, as int64 holds it."""
    return (number + 2**63) % 2**64 - 2**63


def _seeds(seed: int | Sequence[int], batch: int) -> list[int]:
    if isinstance(seed, int):
        return [seed + item for item in range(batch)]
    seeds = list(seed)
    if len(seeds) != batch or not all(isinstance(s, int) for s in seeds):
        raise RequestError(f"seed is an integer or one for each of the {batch} items, not {seed}")
    return seeds


def begin_of_video(model: ModelConfig) -> int:
    """The token before a clip, in models that have one: the first id that is not predicted."""
    return model.output_vocab_size


def _whole_decoder(model: nn.Module) -> CosmosDecoder:
    decoder = model.decoder if isinstance(model, PublishedModel) else model
    if not isinstance(decoder, CosmosDecoder):
        raise RequestError(f"generate needs a CosmosDecoder, not a {type(decoder).__name__}")
    config = decoder.config
    sizes = {
        "tensor": config.tensor_model_parallel_size,
        "context": config.context_parallel_size,
        "pipeline": config.pipeline_model_parallel_size,
    }
    if max(sizes.values()) > 1 or not (decoder.pre_process and decoder.post_process):
        listed = ", ".join(f"{name} parallel size {size}" for name, size in sizes.items())
        raise RequestError(
            f"generate needs a decoder that is complete on this rank; this one is split, with "
            f"{listed}"
        )
    model_config = decoder.architecture
    if model_config.context_width and begin_of_video(model_config) >= model_config.vocab_size:
        raise RequestError(
            f"the model has no begin-of-video: it reads {model_config.vocab_size} ids and "
            f"predicts {model_config.output_vocab_size}"
        )
    return decoder


def _check_ids(model: ModelConfig, ids: Tensor, new_ids: int) -> None:
    if ids.ndim != 2 or ids.dtype != torch.int64 or not len(ids):
        raise RequestError(f"ids are int64 [batch, prompt], not {_describe(ids)}")
    prompt, clip = ids.shape[1], math.prod(model.latent_shape)
    if not isinstance(new_ids, int):
        raise RequestError(f"new_ids={new_ids} is not an integer")
    if new_ids < 0 or prompt + new_ids > clip:
        raise RequestError(
            f"{prompt} tokens and {new_ids} new ones; a clip of this model has {clip}"
        )
    if not prompt:
        if model.context_width is None:
            raise RequestError("this model needs a prompt of at least one id")
        return
    least, most = (int(x) for x in ids.aminmax())
    if least < 0 or most >= model.output_vocab_size:
        raise RequestError(
            f"ids of a clip are 0 to {model.output_vocab_size - 1}, without special ids; these are "
            f"{least} to {most}"
        )


def _check_condition(
    decoder: CosmosDecoder, batch: int, context: Tensor | None, action: Tensor | None
) -> None:
    model = decoder.architecture
    width, numbers = model.context_width, model.action_width
    if width is None and (context is not None or action is not None):
        raise RequestError("this model takes neither a context nor an action")
    if action is not None and numbers is None:
        raise RequestError("this model takes a context and no action")
    if width is not None and (context is None) == (action is None):
        wanted = "a context" if numbers is None else "either a context or an action"
        raise RequestError(f"this model needs {wanted}")
    for name, given, shape in (
        ("context", context, (batch, "text positions", width)),
        ("action", action, (batch, numbers)),
    ):
        if given is None:
            continue
        fits = given.ndim == len(shape) and given.is_floating_point() and given.numel() > 0
        if not fits or any(
            isinstance(n, int) and n != m for n, m in zip(shape, given.shape, strict=True)
        ):
            sizes = ", ".join(map(str, shape))
            raise RequestError(f"{name} is floats [{sizes}], not {_describe(given)}")


def _check_sampling(temperature: float, top_p: float) -> None:
    # So written, these refuse what is not a number as well.
    if not 0 <= temperature < math.inf:
        raise RequestError(f"temperature={temperature} is not a number of at least 0")
    if not 0 <= top_p <= 1:
        raise RequestError(f"top_p={top_p} is not a number from 0 to 1")


def _context(
    decoder: CosmosDecoder, context: Tensor | None, action: Tensor | None
) -> Tensor | None:
    """What cross-attention reads, on the decoder's device; None for models without it."""
    weight = decoder.embedding.word_embeddings.weight
    if action is None:
        return None if context is None else context.to(weight.device)
    # Training repeats this row; attention to equal rows is attention to one of them.
    row: Tensor = decoder.action_mlp(action.to(weight.device, weight.dtype))
    return row[:, None]


def _describe(tensor: Tensor) -> str:
    return f"{tensor.dtype} {list(tensor.shape)}"
