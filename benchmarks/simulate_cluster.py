"""How long a planned data set takes on many workers: a simulation, nothing is decoded.

    python benchmarks/simulate_cluster.py [videos] [workers]

The shards are those that the package would pin; the cluster is a model. Videos lie in folders of a
thousand that are alike: lengths are lognormal, with a median of 12 s, a factor of e between folders
and of 1.8 within one; so are the bytes of a frame, with factors of 1.5 and 1.35. A frame takes a
worker 10 ms, from opening the file to the ids. All clips of the videos are taken. A worker takes
the next waiting shard, starts within 30 s, and works through its videos. An attempt may die
(`failures`: a share of the attempts, at a random moment; `preemptions`: a number an hour and
worker); its shard waits again after two minutes, behind the others, and goes on behind the last
batch that its journal holds, or without a journal from the beginning. The same seed gives the same
cluster.

`finish` is when the last shard is done, medians of five seeds; `ideal` is what equal shares without
any start would take; `idle` is the share of the workers' time until the finish in which they had
nothing to do; `slowest` is the longest shard beside the median one.
"""

from __future__ import annotations

import heapq
import itertools
import statistics
import sys
from dataclasses import dataclass

import numpy as np

from cosmos_hpc.data.shards import balanced_bounds
from cosmos_hpc.utils.progress import duration

FRAME_SECONDS, FRAME_RATE, OPENING_SECONDS = 0.010, 30, 0.05
START, BATCH, REQUEUE = 30.0, 4 * 33 * FRAME_SECONDS, 120.0
SEEDS = range(5)


@dataclass(frozen=True)
class Cluster:
    """What may happen to an attempt, and whether its shard remembers it."""

    failures: float = 0.0
    preemptions: float = 0.0
    journal: bool = True


@dataclass(frozen=True)
class Outcome:
    """Seconds until the last shard was done, seconds that workers were busy, and dead attempts."""

    finish: float
    busy: float
    died: int


def make_videos(count: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Frames and bytes of each video, and the seconds it takes, ``[count]`` each."""
    random = np.random.default_rng(seed)

    def alike(median: float, between: float, within: float) -> np.ndarray:
        folders = random.normal(0, between, -(-count // 1000)).repeat(1000)[:count]
        return median * np.exp(folders + random.normal(0, within, count))

    frames = np.maximum(1, alike(12, 1.0, 0.6) * FRAME_RATE).astype(np.int64)
    sizes = (frames * alike(8_000, 0.4, 0.3)).astype(np.int64) + 1
    return {"frames": frames, "bytes": sizes, "s": frames * FRAME_SECONDS + OPENING_SECONDS}


def shard_seconds(videos: dict[str, np.ndarray], unit: str, shards: int) -> list[float]:
    """What each shard takes when they are balanced by a unit."""
    count = len(videos["s"])
    costs = [1] * count if unit == "videos" else videos[unit].tolist()
    sums = np.concatenate([[0.0], np.cumsum(videos["s"])])
    bounds = balanced_bounds(costs, shards)
    return [float(sums[end] - sums[first]) for first, end in itertools.pairwise(bounds)]


def simulate(shards: list[float], workers: int, cluster: Cluster, seed: int) -> Outcome:
    """Work through the shards."""
    random = np.random.default_rng(seed)
    free = [0.0] * workers
    # (when it may begin, turn, seconds left): those of equal time begin in their order.
    waiting = [(0.0, turn, left) for turn, left in enumerate(shards)]
    turns = itertools.count(len(shards))
    finish = busy = 0.0
    died = 0
    while waiting:
        ready, _, left = heapq.heappop(waiting)
        begin = max(heapq.heappop(free), ready)
        whole = START + left
        death = random.uniform(0, whole) if random.random() < cluster.failures else np.inf
        if cluster.preemptions:
            death = min(death, random.exponential(3600 / cluster.preemptions))
        spent = min(whole, death)
        if death < whole:
            died += 1
            kept = max(0.0, spent - START - random.uniform(0, BATCH)) if cluster.journal else 0.0
            heapq.heappush(waiting, (begin + spent + REQUEUE, next(turns), left - kept))
        finish, busy = max(finish, begin + spent), busy + spent
        heapq.heappush(free, begin + spent)
    return Outcome(finish, busy, died)


def main(count: int = 1_000_000, workers: int = 500) -> None:
    """Print the tables."""
    videos = make_videos(count)
    work = float(videos["s"].sum())
    ideal = work / workers
    longest = float(videos["frames"].max()) / FRAME_RATE
    hours = videos["frames"].sum() / FRAME_RATE / 3600
    print(f"{count} videos, {hours:,.0f} hours in all, the longest {duration(longest)}")
    print(f"{work / 3600:,.0f} hours of work on {workers} workers, ideal {duration(ideal)}")
    line = "{:<9} {:>6}  {:<36} {:>12} {:>7} {:>6} {:>9} {:>6}"
    print(line.format("balanced", "shards", "", "finish", "ideal x", "idle", "slowest x", "died"))
    quiet = Cluster()
    cases = [(unit, n, quiet) for n in (workers, 4 * workers, 8 * workers) for unit in UNITS]
    for failures, preemptions in ((0.01, 0.0), (0.01, 0.2)):
        for n, journal in itertools.product((workers, 8 * workers), (True, False)):
            cases.append(("frames", n, Cluster(failures, preemptions, journal)))
    for unit, shards, cluster in cases:
        seconds = shard_seconds(videos, unit, shards)
        outcomes = [simulate(seconds, workers, cluster, seed) for seed in SEEDS]
        finish = statistics.median(o.finish for o in outcomes)
        idle = statistics.median(1 - o.busy / (o.finish * workers) for o in outcomes)
        died = statistics.median(o.died for o in outcomes)
        slowest = max(seconds) / statistics.median(seconds)
        numbers = duration(finish), f"{finish / ideal:.3f}", f"{idle:.1%}", f"{slowest:.2f}", died
        print(line.format(unit, shards, describe(cluster), *numbers))


UNITS = ("videos", "bytes", "frames")


def describe(cluster: Cluster) -> str:
    """The cluster in a few words."""
    parts = [f"{cluster.failures:.0%} fail"] if cluster.failures else []
    parts += [f"{cluster.preemptions:g}/h preempted"] if cluster.preemptions else []
    parts += ["no journal"] if not cluster.journal else []
    return ", ".join(parts)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
