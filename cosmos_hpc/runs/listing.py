"""The runs of a folder beside each other: how far each is, its last loss, its size on disk."""

from __future__ import annotations

import contextlib
import math
import os
import stat
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from msgspec import Struct, field, to_builtins
from msgspec.structs import replace

from cosmos_hpc.config.overrides import written
from cosmos_hpc.errors import CosmosError, RequestError, explain_os_error
from cosmos_hpc.runs.disk_use import DiskUse, entries_below, size
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.queue import Queue
from cosmos_hpc.runs.scores import aligned
from cosmos_hpc.runs.status import RunState, StageState, read_state
from cosmos_hpc.runs.sweeps import Membership, membership
from cosmos_hpc.utils import files
from cosmos_hpc.utils.html import escaped, table
from cosmos_hpc.utils.progress import count_of, duration

#: Folders of a run whose files are its results: the newest of them tells when it last got on.
_RESULTS = ("data", "tokenizer", "tokens", "train", "generated", "evaluation", "report")


class ListedRun(Struct, frozen=True):
    """A line of the list.

    Attributes:
        name, path: of the run.
        state: as ``status`` says it, or ``damaged`` where the folder cannot be read.
        stage: the one that is worked on, or that is next; of a run that is done, its last one.
        step: training steps so far; None before the first.
        loss: of the last step, in nats per token.
        validation_loss: of the last validation, in nats per token.
        last_progress: when a result was last written, seconds since the epoch; None before that.
        bytes: that the folder takes on the disk; what links point to is not counted.
        shared_bytes: of these, those of files that runs before it in the list have as well: runs of
            a sweep share their tokens.
        checkpoint: path of the newest whole checkpoint.
        problem: why something of this is not known.
        sweep: that the run belongs to; None for others.
        swept: settings that are swept in it, each with its value in this run.
    """

    name: str
    path: str
    state: str
    stage: str = ""
    step: int | None = None
    loss: float | None = None
    validation_loss: float | None = None
    last_progress: float | None = None
    bytes: int = 0
    shared_bytes: int = 0
    checkpoint: str | None = None
    problem: str = ""
    sweep: str | None = None
    swept: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return to_builtins(self)


def find_runs(folder: Path) -> list[RunFolder]:
    """The runs of a folder, by name; none where it is empty.

    Raises:
        RequestError: there is no such folder, it is a file, or it may not be read.
    """
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        found = files.file_in_place_of(folder)
        what = f"{found} is a file" if found else f"there is no folder {os.path.abspath(folder)}"
        raise RequestError(
            f"{what}; give the folder that holds runs, or cluster=NAME for the one that a profile "
            f"names as runs"
        ) from None
    except OSError as e:
        raise RequestError(explain_os_error(e, "listing runs")) from None
    # os.path's answer is no, not an error, where a folder may not be read.
    there = (n for n in names if os.path.isfile(folder / n / "run.json"))  # noqa: PTH113
    return [RunFolder(folder / name) for name in there]


def find_sweep(name: str, runs: str = "runs") -> list[RunFolder]:
    """The runs of a sweep by its name, as runs are named; in the order of their values.

    None where there is no such sweep.
    """
    for path in (Path(name), Path(runs) / name):
        if path.parent.is_dir():
            members = [(run, _membership(run)) for run in find_runs(path.parent)]
            found = [(run, own.settings) for run, own in members if own and own.sweep == path.name]
            if found:
                return [run for run, _ in sorted(found, key=lambda pair: _order(pair[1]))]
    return []


def _membership(run: RunFolder) -> Membership | None:
    with contextlib.suppress(CosmosError):
        return membership(run)
    return None


def _order(settings: Mapping[str, Any]) -> list[tuple[float, str]]:
    """Numbers by their size, behind them what is none."""
    return [
        (value, "") if isinstance(value, int | float) else (math.inf, str(value))
        for value in settings.values()
    ]


def list_runs(runs: Sequence[RunFolder], queues: Mapping[Path, Queue]) -> list[ListedRun]:
    """A line of each run.

    Args:
        runs: the run folders.
        queues: what the queue says of each, by its path.
    """
    # Several at a time: each waits for a network file system.
    with ThreadPoolExecutor(files.THREADS) as pool:
        measured = pool.map(lambda run: _measured(run.path), runs)
        listed = pool.map(lambda run: _listed(run, queues[run.path]), runs)
    total = DiskUse()
    return [
        replace(
            line,
            bytes=use.bytes,
            shared_bytes=use.bytes - total.include(use),
            last_progress=line.last_progress or newest,
        )
        for line, (use, newest) in zip(listed, measured, strict=True)
    ]


def _listed(run: RunFolder, queue: Queue) -> ListedRun:
    try:
        state = read_state(run, queue)
    except (CosmosError, OSError, KeyError, ValueError) as e:
        problem = explain_os_error(e, "reading it") if isinstance(e, OSError) else str(e)
        return ListedRun(run.name, str(run.path), "damaged", problem=problem)
    at, member = _stage_at(state), _membership(run)
    return ListedRun(
        run.name,
        str(run.path),
        state.state,
        at.name if at else "",
        state.step,
        state.loss,
        state.validation_loss,
        last_progress=at.last_progress if at else None,
        checkpoint=state.checkpoint,
        problem=queue.problem,
        sweep=member.sweep if member else None,
        swept=member.settings if member else {},
    )


def _stage_at(state: RunState) -> StageState | None:
    """The stage that says most of a run: one that is worked on or failed, the next, or the last."""
    for word in (state.state, "stopped", "waiting"):
        for stage in state.stages:
            if stage.state == word != "done":
                return stage
    done = [stage for stage in state.stages if stage.state == "done"]
    return done[-1] if done else None


def _measured(folder: Path) -> tuple[DiskUse, float | None]:
    """What a run folder takes on the disk, and when its newest result was written."""
    use, newest = DiskUse(), 0.0
    for path, found in entries_below(folder):
        use.add(found)
        if path.relative_to(folder).parts[0] in _RESULTS and stat.S_ISREG(found.st_mode):
            newest = max(newest, found.st_mtime)
    return use, newest or None


_HEADS = ("run", "state", "stage", "step", "loss", "last progress", "size")


def render_list(listed: Sequence[ListedRun]) -> str:
    """The list as text: one line per run, and what is not known of some."""
    return "\n".join([aligned(_table(listed)), *(f"  {text}" for text in _summary(listed))])


def list_html(listed: Sequence[ListedRun]) -> str:
    """The list as :func:`render_list` says it, as HTML."""
    heads, *rows = _table(listed)
    return table(heads, rows) + "".join(f"<p>{escaped(text)}</p>" for text in _summary(listed))


def _table(listed: Sequence[ListedRun]) -> list[tuple[str, ...]]:
    """Heads and rows; with the settings of sweeps that there are."""
    swept = list(dict.fromkeys(key for run in listed for key in run.swept))
    return [
        (*_HEADS, *map(short_name, swept)),
        *((*_cells(run), *(written(run.swept.get(key, "-")) for key in swept)) for run in listed),
    ]


def short_name(key: str) -> str:
    """A swept setting without its section: ``learning_rate`` for ``train.learning_rate``."""
    return key.partition(".")[2]


def _summary(listed: Sequence[ListedRun]) -> list[str]:
    """How many runs there are, and what is not known of some."""
    problems = dict.fromkeys(run.problem for run in listed if run.problem)
    total = sum(run.bytes - run.shared_bytes for run in listed)
    return [f"{count_of(len(listed), 'run')}, {size(total)}", *problems]


def _cells(run: ListedRun) -> tuple[str, ...]:
    age = None if run.last_progress is None else max(0.0, time.time() - run.last_progress)
    return (
        run.name,
        run.state,
        run.stage or "-",
        "-" if run.step is None else str(run.step),
        "-" if run.loss is None else f"{run.loss:.4f}",
        "-" if age is None else f"{duration(age)} ago",
        size(run.bytes),
    )
