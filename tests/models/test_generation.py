"""Generation against whole forward passes, and its sampler against a slow one in float64."""

import math
import time

import pytest
import torch

from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.errors import RequestError
from cosmos_hpc.models import ModelConfig, from_published, generate
from cosmos_hpc.models.cache import CachedDecoder, attend_masked, attend_prefix
from cosmos_hpc.models.generation import _mix, _signed, begin_of_video, sample, uniforms
from tests.models import reference
from tests.models.checkpoints.test_published import VARIANTS, sizes, weights

CLIP = {variant: math.prod(sizes(variant)["latent_shape"]) for variant in VARIANTS}


def condition(config, batch=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    if config.action_width:
        return {"action": torch.randn(batch, config.action_width, generator=generator)}
    if config.context_width:
        return {"context": torch.randn(batch, 5, config.context_width, generator=generator)}
    return {}


def clips(config, batch=3):
    generator = torch.Generator().manual_seed(2)
    shape = (batch, math.prod(config.latent_shape))
    return torch.randint(0, config.output_vocab_size, shape, generator=generator)


def with_begin(config, ids):
    if config.context_width is None:
        return ids
    return torch.nn.functional.pad(ids, (1, 0), value=begin_of_video(config))


def model_of(variant, **other):
    config = ModelConfig(**{**sizes(variant), **other})
    return from_published(weights(config), config), config


@torch.no_grad()
def cached_logits(model, config, inputs, prompt, conditions):
    """Logits of all positions from ``prompt - 1`` on, the inputs being fed one by one."""
    context = conditions.get("context")
    if "action" in conditions:
        context = reference.action_context(dict(model.decoder.state_dict()), conditions["action"])
    cached = CachedDecoder(model.decoder, len(inputs), inputs.shape[1], context)
    out = [cached.prefill(inputs[:, :prompt])]
    for place in range(prompt, inputs.shape[1]):
        out.append(cached.step(inputs[:, place], torch.tensor([place])))
    return torch.stack(out, 1)


@pytest.mark.parametrize("prompt", [1, 2, 13])
@pytest.mark.parametrize("variant", VARIANTS)
def test_cached_logits_are_those_of_whole_passes_at_every_position(variant, prompt):
    model, config = model_of(variant)
    conditions = condition(config)
    inputs = with_begin(config, clips(config))
    with torch.no_grad():
        whole = model(inputs, **conditions)
    got = cached_logits(model, config, inputs, prompt, conditions)
    assert got.shape == (3, inputs.shape[1] - prompt + 1, config.output_vocab_size)
    torch.testing.assert_close(got, whole[:, prompt - 1 :], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("variant", VARIANTS)
def test_temperature_0_takes_the_likeliest_ids_of_whole_passes(variant):
    model, config = model_of(variant)
    # Or the absolute positions drown the ids, and the likeliest is always the same.
    model.decoder.embedding.word_embeddings.weight.data.mul_(30)
    conditions, prompt = condition(config), clips(config)[:, :7]
    got = generate(model, prompt, CLIP[variant] - 7, **conditions, temperature=0)
    expected = prompt
    with torch.no_grad():
        while expected.shape[1] < CLIP[variant]:
            logits = model(with_begin(config, expected), **conditions)
            expected = torch.cat([expected, logits[:, -1:].argmax(-1)], 1)
    assert torch.equal(got, expected)
    assert len(got[:, 7:].unique()) > 5


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_prompt_comes_back_with_ids_of_the_tokenizer_behind_it(variant):
    model, config = model_of(variant)
    ids = clips(config)[:, :5]
    before = ids.clone()
    got = generate(model, ids, 11, **condition(config), temperature=3.0, top_p=1.0)
    assert got.shape == (3, 16)
    assert got.dtype == torch.int64
    assert torch.equal(ids, before)
    assert torch.equal(got[:, :5], before)
    assert got.min() >= 0
    assert got.max() < config.output_vocab_size
    # May be trained on, as a tensor of inference mode might not.
    got[0, 0] += 1
    assert torch.equal(ids, before)
    assert torch.equal(generate(model, ids, 0, **condition(config)), before)


@pytest.mark.parametrize("variant", ["5b", "5b action"])
def test_a_condition_is_enough_to_begin_with(variant):
    model, config = model_of(variant)
    nothing = torch.empty(3, 0, dtype=torch.long)
    got = generate(model, nothing, CLIP[variant], **condition(config), temperature=0)
    with torch.no_grad():
        whole = model(with_begin(config, got), **condition(config))
    assert torch.equal(got, whole[:, : CLIP[variant]].argmax(-1))


@pytest.mark.parametrize("variant", ["4b", "13b", "5b action"])
def test_an_item_does_not_depend_on_its_neighbours(variant):
    model, config = model_of(variant)
    ids, conditions = clips(config)[:, :6], condition(config)
    together = generate(model, ids, 15, **conditions, seed=10, top_p=0.95)
    for item in range(3):
        one = slice(item, item + 1)
        mine = {name: tensor[one] for name, tensor in conditions.items()}
        alone = generate(model, ids[one], 15, **mine, seed=10 + item, top_p=0.95)
        assert torch.equal(alone, together[one])
    back = generate(
        model,
        ids.flip(0),
        15,
        **{name: tensor.flip(0) for name, tensor in conditions.items()},
        seed=[12, 11, 10],
        top_p=0.95,
    )
    assert torch.equal(back.flip(0), together)
    same = generate(model, ids[:1].expand(3, -1), 15, **_first(conditions), seed=10, top_p=0.95)
    assert len({tuple(row.tolist()) for row in same}) == 3


def _first(conditions):
    return {name: tensor[:1].expand(3, *tensor.shape[1:]) for name, tensor in conditions.items()}


def test_what_is_drawn_in_two_calls_is_what_one_draws():
    model, config = model_of("13b")
    ids, conditions = clips(config)[:, :4], condition(config)
    once = generate(model, ids, 20, **conditions, seed=3)
    half = generate(model, ids, 9, **conditions, seed=3)
    assert torch.equal(half, once[:, :13])
    assert torch.equal(generate(model, half, 11, **conditions, seed=3), once)
    assert not torch.equal(generate(model, ids, 20, **conditions, seed=4), once)


def slow_sample(logits, number, temperature, top_p):
    """One row in float64: the nucleus id by id, then the first whose share reaches the number."""
    exponentials = [math.exp((x - max(logits)) / temperature) for x in logits]
    ranked = sorted(range(len(logits)), key=lambda n: (-exponentials[n], n))
    probabilities = [exponentials[n] / math.fsum(exponentials) for n in ranked]
    nucleus, together = [], 0.0
    for id_, p in zip(ranked, probabilities, strict=True):
        if together > top_p:
            break
        nucleus.append((id_, p))
        together += p
    reached = 0.0
    for id_, p in nucleus:
        reached += p
        if reached > number * together:
            return id_
    return nucleus[-1][0]


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("top_p", [0.0, 0.4, 0.8, 1.0])
def test_the_sampler_draws_what_a_slow_one_does(temperature, top_p):
    logits = torch.randn(200, 60) * 3
    numbers = torch.rand(200)
    numbers[0] = 0
    bound = top_p if top_p < 1 else math.inf
    got = sample(logits, numbers, torch.tensor(temperature), torch.tensor(bound))
    expected = [
        slow_sample(row.tolist(), number.item(), temperature, bound)
        for row, number in zip(logits, numbers, strict=True)
    ]
    assert got[:, 0].tolist() == expected


def test_the_nucleus_is_complete_at_full_vocabulary():
    """Each id of the nucleus comes with its share; sums in bfloat16 would have steps of 0.004."""
    logits = torch.randn(1, 64_000)
    numbers = torch.cat([torch.linspace(0, 1 - 2.0**-24, 200), torch.linspace(0.999, 0.9999, 50)])
    drawn = sample(logits.expand(250, -1), numbers, torch.tensor(0.5), torch.tensor(0.8))[:, 0]
    p = (logits[0].double() / 0.5).softmax(-1).sort(descending=True)
    total = p.values.cumsum(-1)
    size = int((total - p.values <= 0.8).sum())
    expected = torch.searchsorted(total[:size], numbers.double() * total[size - 1], right=True)
    rank = p.indices.argsort()[drawn]
    assert rank.max() < size
    # On the edge of two ids float32 may take the neighbour.
    assert (rank - expected).abs().max() <= 1


def test_extreme_logits_are_drawn_from():
    logits = torch.tensor([[0.0, 1e30, -1e30], [5.0, 5.0, 5.0], [-math.inf, 0.0, -math.inf]])
    numbers, least = torch.full((3,), 0.9), torch.tensor(1e-30)
    got = sample(logits, numbers, least, torch.tensor(math.inf))
    assert got[:, 0].tolist() == [1, 2, 1]
    # Of equal ones the smaller first: the nucleus of 0.3 is the first alone.
    got = sample(logits, numbers, least, torch.tensor(0.3))
    assert got[:, 0].tolist() == [1, 0, 1]


def test_random_numbers_are_those_of_splitmix64():
    # From the public test of splitmix64.c at seed 1234567.
    known = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    states = torch.tensor([1234567])
    for place, value in enumerate(known):
        got = uniforms(states, torch.tensor([place]))
        assert got.item() == (value >> 40) * 2.0**-24
    # As plain integers, for states of all signs.
    for number in (0, -1, 2**63 - 1, -(2**63), 987654321987654321):
        z = number % 2**64
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
        assert _mix(torch.tensor([number])).item() == _signed(z ^ (z >> 31))


def test_random_numbers_are_even_and_independent_of_each_other():
    states = _mix(torch.arange(400))
    numbers = torch.stack([uniforms(states, torch.tensor([n])) for n in range(500)])
    assert numbers.min() >= 0 and numbers.max() < 1
    counts = torch.histc(numbers.flatten(), 100, 0, 1)
    # Chi squared of 99 degrees of freedom: 99 +- 14.
    assert 50 < ((counts - 2000).square() / 2000).sum() < 160
    for first, second in (
        (numbers[1:], numbers[:-1]),
        (numbers[:, 1:], numbers[:, :-1]),
        (numbers[1:, 1:], numbers[:-1, :-1]),
        (numbers[1:, :-1], numbers[:-1, 1:]),
    ):
        pair = torch.stack([first.flatten(), second.flatten()])
        # The standard deviation of a correlation of 200 000 pairs is 0.0022.
        assert abs(torch.corrcoef(pair)[0, 1]) < 0.01
    assert ((numbers.mean(0) - 0.5).abs() < 0.07).all()


def test_draws_follow_the_model_s_probabilities():
    model, _ = model_of("4b", latent_shape=(1, 1, 2))
    prompt = torch.full((6000, 1), 3)
    drawn = generate(model, prompt, 1, top_p=1.0)[:, 1]
    with torch.no_grad():
        expected = model(prompt[:1])[0, -1].softmax(-1)
    seen = torch.bincount(drawn, minlength=80) / 6000
    assert (seen - expected).abs().max() < 4 * (0.25 / 6000) ** 0.5


def test_a_mask_sees_the_same_prefix():
    keys, values = torch.randn(2, 3, 2, 20, 8)
    q = torch.randn(3, 4, 1, 8)
    for place in (0, 7, 19):
        position = torch.tensor([place])
        torch.testing.assert_close(
            attend_masked(q, keys, values, position), attend_prefix(q, keys, values, position)
        )


def test_models_of_bfloat16_generate():
    model, config = model_of("13b")
    ids = clips(config)[:, :6]
    got = generate(model.bfloat16(), ids, 18, **condition(config), seed=1)
    assert got.shape == (3, 24)
    assert torch.equal(got, generate(model.decoder, ids, 18, **condition(config), seed=1))


@pytest.mark.parametrize("name", ["ar_tiny", "ar_tiny_v2w", "ar_tiny_action"])
def test_a_clip_of_the_small_recipes_takes_seconds(name):
    config = load_recipe(name).model_for_clips()
    model = from_published(weights(config), config)
    clip, frame = math.prod(config.latent_shape), math.prod(config.latent_shape[1:])
    started = time.perf_counter()
    got = generate(model, clips(config, 1)[:, :frame], clip - frame, **condition(config, 1))
    print(f"{clip - frame} ids in {time.perf_counter() - started:.1f} s")
    assert got.shape == (1, clip)


IDS = torch.zeros(2, 8, dtype=torch.long)
WORDS = torch.zeros(2, 5, 48)


@pytest.mark.parametrize(
    ("variant", "arguments", "expected"),
    [
        ("4b", {"ids": IDS.float()}, r"ids are int64 .batch, prompt., not torch.float32 .2, 8."),
        ("4b", {"ids": IDS.int()}, "ids are int64"),
        ("4b", {"ids": IDS[0]}, "ids are int64"),
        ("4b", {"ids": IDS[:0]}, "ids are int64"),
        ("4b", {"ids": IDS[:, :0]}, "a prompt of at least one id"),
        ("4b", {"ids": IDS + 80}, "ids of a clip are 0 to 79, without special ids; .* 80 to 80"),
        ("4b", {"ids": IDS - 1}, "ids of a clip are 0 to 79"),
        ("5b", {"ids": IDS + 80, "context": WORDS}, "ids of a clip are 0 to 79"),
        ("4b", {"new_ids": 17}, "8 tokens and 17 new ones; a clip of this model has 24"),
        ("5b", {"new_ids": 17, "context": WORDS}, "8 tokens and 17 new ones; .* has 24"),
        ("4b", {"new_ids": -1}, "8 tokens and -1 new ones"),
        ("4b", {"new_ids": 2.5}, "new_ids=2.5 is not an integer"),
        ("4b", {"context": WORDS}, "takes neither a context nor an action"),
        ("4b", {"action": WORDS[:, 0]}, "takes neither a context nor an action"),
        ("5b", {}, "this model needs a context"),
        ("5b", {"action": WORDS[:, 0, :7]}, "takes a context and no action"),
        ("5b", {"context": WORDS[:1]}, r"context is floats .2, text positions, 48., not"),
        ("5b", {"context": WORDS[..., :9]}, r"context is floats .2, text positions, 48., not"),
        ("5b", {"context": WORDS.long()}, r"context is floats .2, text positions, 48., not"),
        ("5b", {"context": WORDS[:, :0]}, r"context is floats .2, text positions, 48., not"),
        ("5b action", {}, "either a context or an action"),
        ("5b action", {"action": WORDS[:, 0, :7], "context": WORDS}, "either a context or an"),
        ("5b action", {"action": WORDS[:, 0, :6]}, r"action is floats .2, 7., not"),
        ("4b", {"temperature": -0.1}, "temperature=-0.1 is not a number of at least 0"),
        ("4b", {"temperature": math.nan}, "temperature=nan"),
        ("4b", {"temperature": math.inf}, "temperature=inf"),
        ("4b", {"top_p": 1.1}, "top_p=1.1 is not a number from 0 to 1"),
        ("4b", {"top_p": math.nan}, "top_p=nan"),
        ("4b", {"seed": [1, 2, 3]}, "one for each of the 2 items"),
        ("4b", {"seed": [1, 2.5]}, "one for each of the 2 items"),
    ],
)
def test_wrong_arguments_are_one_sentence(variant, arguments, expected):
    model, _ = model_of(variant)
    with pytest.raises(RequestError, match=expected) as raised:
        generate(model, **{"ids": IDS, "new_ids": 4, **arguments})
    assert "\n" not in str(raised.value)


def test_models_that_cannot_generate_are_named():
    with pytest.raises(RequestError, match="needs a CosmosDecoder, not a Linear"):
        generate(torch.nn.Linear(1, 1), IDS, 1)
    model, _ = model_of("5b", vocab_size=80)
    with pytest.raises(RequestError, match="no begin-of-video: it reads 80 ids and predicts 80"):
        generate(model, IDS, 1, context=WORDS)
    model, _ = model_of("4b")
    model.decoder.config.tensor_model_parallel_size = 2
    with pytest.raises(RequestError, match="is split, with tensor parallel size 2"):
        generate(model, IDS, 1)


def test_any_integer_is_a_seed():
    model, config = model_of("4b")
    ids = clips(config)[:, :4]
    for seed in (-5, 2**63 - 1, 2**70):
        got = generate(model, ids, 8, seed=seed, top_p=1.0)
        assert torch.equal(got, generate(model, ids, 8, seed=[seed, seed + 1, seed + 2], top_p=1.0))
