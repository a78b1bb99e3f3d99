"""What is to be generated: one item per sample, in groups that a GPU works on at the same time."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from cosmos_hpc.config.recipes import Recipe

#: Whose weights a sample is from: those after the training, or those that it began from.
WeightsName = Literal["trained", "initial"]


@dataclass(frozen=True)
class Clip:
    """A clip of a run, or an input, to generate from.

    Attributes:
        number: of the clip, from 0.
        identity: tells it from others, whatever else is generated: its random numbers follow.
        source: path of the video or picture.
        given: true frames that its samples begin with.
        rate: frames per second; None where only the file tells.
        record: what its samples' records say of it beside that.
    """

    number: int
    identity: str
    source: str
    given: int
    rate: float | None = None
    record: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Item:
    """One sample.

    Attributes:
        clip: that it continues.
        sample: number among those of the clip.
        weights: whose it is.
        seed: of its random numbers.
    """

    clip: Clip
    sample: int
    weights: WeightsName
    seed: int

    @property
    def key(self) -> str:
        """Names its files."""
        what = "initial" if self.weights == "initial" else f"s{self.sample}"
        return f"{self.clip.number:04d}-{what}"

    def seed_of(self, part: int) -> int:
        """Of one clip, or one step, of a sample that has several."""
        return derived(self.seed, str(part)) if part else self.seed


def derived(seed: int, text: str) -> int:
    """A seed of 63 bits that follows from another one and a text, and from nothing else."""
    digest = hashlib.sha256(f"{seed}:{text}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def items_of(clips: list[Clip], recipe: Recipe) -> list[Item]:
    """The samples of some clips; those of the initial weights last, one per clip."""
    generate = recipe.generate

    def item(clip: Clip, sample: int, weights: WeightsName) -> Item:
        # The same random numbers for both weights: what differs is what was learned.
        seed = derived(generate.seed, f"{clip.identity}:{sample}")
        return Item(clip, sample, weights, seed)

    items = [item(clip, sample, "trained") for clip in clips for sample in range(generate.samples)]
    if recipe.trains and generate.initial:
        items += [item(clip, 0, "initial") for clip in clips]
    return items


def groups_of(items: list[Item], size: int) -> Iterator[list[Item]]:
    """Items in groups of one model and of conditions of one length.

    They do not depend on how many tasks share them: in bf16 a token may depend on how many samples
    are generated with it.
    """

    def alike(item: Item) -> tuple[bool, int]:
        return item.weights == "initial", item.clip.given

    for _, same in itertools.groupby(sorted(items, key=alike), key=alike):
        remaining = list(same)
        yield from (remaining[at : at + size] for at in range(0, len(remaining), size))
