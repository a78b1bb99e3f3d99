"""How far a stage is, from what it has written so far.

Each function takes the run and the markers of the stage's tasks, of an array those that may be
there, and returns no words where there is nothing to say.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cosmos_hpc.data.shards import read_marker
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.sources import saved_checkpoint, steps_of
from cosmos_hpc.utils import files
from cosmos_hpc.utils.progress import count_of, duration


class HowFar(NamedTuple):
    """How far a stage is.

    Attributes:
        words: for a person; may be empty.
        fraction: of its work that is done, from 0 to 1; None where that is not known.
        speed: of work in progress, and how long the rest will take; may be empty.
        kept: says what of work that was stopped need not be done again, or nothing; only that
            looks for it on the disk.
    """

    words: str = ""
    fraction: float | None = None
    speed: str = ""
    kept: Callable[[], str] = str

    @property
    def working(self) -> str:
        """The words where somebody works on it."""
        return ", ".join(filter(None, (self.words, self.speed)))

    @property
    def stopped(self) -> str:
        """The words where nobody does, and it is not done."""
        return ", ".join(filter(None, (self.words, self.kept())))


def nothing(run: RunFolder, markers: Sequence[Path]) -> HowFar:
    """For stages that are either done or not."""
    return HowFar()


def no_results(run: RunFolder, marker: Path) -> dict[str, Path]:
    """For stages without results that people look at."""
    return {}


def train_results(run: RunFolder, marker: Path) -> dict[str, Path]:
    """The last checkpoint and the picture of the losses."""
    checkpoint = run.path / files.read_json(marker)["checkpoint"]
    return {"checkpoint": checkpoint, "loss curve": run.train.loss_curve}


def preprocess(run: RunFolder, markers: Sequence[Path]) -> HowFar:
    """Videos of all shards that are finished, and those that failed."""
    videos = failed = padded = 0
    published = {path.parent.name: read_marker(path.parent) for path in markers}
    for marker in filter(None, published.values()):
        videos += marker.videos
        failed += marker.failed
        padded += marker.padded
    folder = run.tokens.journal(0).parent
    for name in files.names_in(folder):
        shard, _, ending = name.partition(".")
        if ending == "jsonl" and not published.get(shard):
            rows = files.read_jsonl(folder / name)
            videos += sum(bool(row.get("last")) for row in rows)
            failed += sum("error" in row for row in rows)
            padded += sum(bool(row.get("padded")) for row in rows)
    notes = [f"{failed} failed"] if failed else []
    notes += [f"{padded} shorter than a clip, last frame repeated"] if padded else []
    total = run.data.num_videos()
    words = ", ".join([f"{videos}/{total} videos", *notes])
    return HowFar(words, videos / total if total else None)


def finalize(run: RunFolder, markers: Sequence[Path]) -> HowFar:
    """Clips, once they are counted."""
    marker = files.read_json(markers[0])
    if not marker:
        return HowFar()
    return HowFar(f"{count_of(marker['clips'], 'clip')} of {count_of(marker['videos'], 'video')}")


#: Bytes at the end of the metrics that are looked at, the more where they hold no validation.
_TAILS = (1 << 16, 1 << 22)
#: Steps whose median says how fast a training is: a step beside a checkpoint takes longer.
_RECENT = 20


class Numbers(NamedTuple):
    """How far a training is; each None where there is none yet.

    Attributes:
        step: steps so far.
        loss: of the last step, in nats per token.
        validation_loss: of the last validation, in nats per token.
        tokens_per_second: of all ranks, in the last steps.
    """

    step: int | None = None
    loss: float | None = None
    validation_loss: float | None = None
    tokens_per_second: float | None = None


def numbers(run: RunFolder) -> Numbers:
    """The last step of the training, its last validation, and its speed."""
    path = run.train.metrics
    last: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for tail in _TAILS if path.exists() else ():
        rows = files.last_rows(path, tail)
        for row in rows:
            last |= row if "loss" in row else {"validation_loss": row.get("validation_loss")}
        if "validation_loss" in last or path.stat().st_size <= tail:
            break  # else it may stand further up
    speeds = [row["tokens_per_second"] for row in rows if "tokens_per_second" in row][-_RECENT:]
    speed = statistics.median(speeds) if speeds else None
    return Numbers(last.get("step"), last.get("loss"), last.get("validation_loss"), speed)


def train(run: RunFolder, markers: Sequence[Path]) -> HowFar:
    """Steps, losses, the time that is left, and the last checkpoint."""
    rows = files.last_rows(run.train.metrics)
    steps = [row for row in rows if "loss" in row]
    if not steps:
        return HowFar()
    last = steps[-1]
    total = files.read_json(run.spec("train"))["recipe"]["train"]["max_steps"]
    # It may have been asked for more before.
    of = f"/{total}" if last["step"] <= total else f" (asked for: {total})"
    text = f"step {last['step']}{of}, loss {last['loss']:.3f}"
    validated = [row for row in rows if "validation_loss" in row]
    if validated:
        text += f", validation loss {validated[-1]['validation_loss']:.3f}"
        if last["step"] == total != validated[-1]["step"]:
            text += f" at step {validated[-1]['step']}"
    if last["step"] >= total:
        return HowFar(text, 1.0)
    seconds = statistics.median(row["seconds"] for row in steps[-_RECENT:])
    speed = f"{seconds:.2f} s/step, {duration((total - last['step']) * seconds)} left"
    return HowFar(text, last["step"] / total, speed, partial(_saved, run))


def _saved(run: RunFolder) -> str:
    saved = saved_checkpoint(run)
    return f"saved up to step {steps_of(saved)}" if saved else "no checkpoint yet"


def generate(run: RunFolder, markers: Sequence[Path]) -> HowFar:
    """Samples so far, and those that were refused."""
    made = len(list(run.generated.path.glob("*-s*.mp4")))
    refused = [files.read_json(path) for path in sorted(run.generated.refused.glob("*.json"))]
    first = f", {len(refused)} refused: {refused[0]['reason']}" if refused else ""
    words = f"{count_of(made, 'sample')}{first}" if made or refused else ""
    total = files.read_json(run.generated.total)
    ended = len(list(run.generated.path.glob("*.mp4"))) + len(refused)
    return HowFar(words, min(1.0, ended / total) if total else None)


def generate_results(run: RunFolder, marker: Path) -> dict[str, Path]:
    """The folder of the samples."""
    return {"samples": run.generated.path}


def evaluate(run: RunFolder, markers: Sequence[Path]) -> HowFar:
    """Scores of the generated frames, beside the references."""
    metrics = files.read_json(run.evaluation.metrics)
    if not metrics or not metrics["generated"]:
        return HowFar()
    words = {
        "trained": "generated",
        "repeat": "last frame repeated",
        "tokenizer": "tokenizer alone",
    }
    scores = metrics["generated"]
    said = [f"{scores[name]['psnr']:.1f} {word}" for name, word in words.items() if name in scores]
    return HowFar(f"PSNR (dB) {', '.join(said)}")


def evaluate_results(run: RunFolder, marker: Path) -> dict[str, Path]:
    """The table of scores."""
    return {"scores": run.evaluation.table}


def report_results(run: RunFolder, marker: Path) -> dict[str, Path]:
    """The page."""
    return {"report": run.report}
