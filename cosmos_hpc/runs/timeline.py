"""When the stages of a run were worked on: every attempt, from what their scripts and logs say."""

from __future__ import annotations

import bisect
import itertools
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.runs.attempts import attempted_tasks, read_attempts
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import STAGES, is_done, needed_for
from cosmos_hpc.utils import files

#: How a worker begins the lines that it says.
_TIME = re.compile(rb"^(\d\d):(\d\d):(\d\d) ", re.MULTILINE)
#: Bytes at the beginning and the end of a log in which such lines are looked for.
_PART = 1 << 16
#: Seconds that zones of time differ by, of a day, and by which a start may be noted late.
_ZONES, _DAY, _SLACK = 900, 86400, 5


@dataclass(frozen=True)
class Stay:
    """An attempt at a task, from when until when.

    Attributes:
        stage, task: what was worked on.
        started, ended: seconds since the epoch; ``ended`` is None where that is not known.
        how: how it ended: ``done``, ``failed``, ``stopped``, ``killed``, ``cancelled``,
            ``unstarted``, or empty where nothing says so.
        node: where; empty where it is not noted, as on this machine.
        log: its log file.
    """

    stage: str
    task: int
    started: float
    ended: float | None
    how: str
    node: str
    log: Path

    @property
    def label(self) -> str:
        """Names the task, ``STAGE`` or ``STAGE.TASK``."""
        return STAGES[self.stage].label(self.task)


def read_stays(run: RunFolder, recipe: Recipe, without: str = "") -> list[Stay]:
    """Every attempt at every task of a run, in the order in which they began.

    Jobs of a cluster note when they end. Where a submit works through the stages itself, on this
    machine, the last line of a log stands for that.

    Args:
        run: its folder.
        recipe: of the run.
        without: a stage to leave out.
    """
    noted = [
        Stay(name, task, a.started, a.ended, a.why, a.node, a.log)
        for name in STAGES
        for task in attempted_tasks(run, name)
        for a in read_attempts(run, name, task)
    ]
    found = noted + _of_this_machine(run, recipe)
    return sorted((s for s in found if s.stage != without), key=lambda s: s.started)


def _of_this_machine(run: RunFolder, recipe: Recipe) -> list[Stay]:
    stays = [
        Stay(row["stage"], row["task"], row["time"], None, "", "", run.path / row["log"])
        for row in files.read_jsonl(run.log_index)
        if row["stage"] in STAGES
    ]
    last = {(stay.stage, stay.task): stay for stay in stays}
    # Of earlier attempts nothing says how they ended.
    return [
        replace(stay, how=_outcome(run, recipe, stay) if stay.log == latest.log else "")
        for stay in _with_ends(stays)
        for latest in [last[stay.stage, stay.task]]
    ]


def _with_ends(stays: Sequence[Stay]) -> list[Stay]:
    starts: dict[object, list[float]] = defaultdict(list)
    for stay in sorted(stays, key=lambda s: s.started):
        starts[stay.stage].append(stay.started)
        starts[stay.stage, stay.task].append(stay.started)
    found: list[Stay] = []
    for stay in stays:
        moments = [_last_words(stay.log, stay.started), _followed_at(stay, starts)]
        end = min((moment for moment in moments if moment is not None), default=None)
        found.append(replace(stay, ended=end))
    return found


def _last_words(log: Path, started: float) -> float | None:
    """When a worker wrote the last line with a time into its log; None where there is none.

    Such lines tell the time of the day where it ran. Their zone follows from the first, which comes
    within a quarter of an hour; days that have passed, from the last change of the file. That alone
    would not do: in a copy of a run it is when the copy was made.
    """
    if not log.is_file():
        return None
    with open(log, "rb") as f:
        text = f.read(_PART)
        f.seek(max(f.tell(), os.path.getsize(log) - _PART))
        text += f.read()
    changed = log.stat().st_mtime
    times = [int(h) * 3600 + int(m) * 60 + int(s) for h, m, s in _TIME.findall(text)]
    if not times:
        return changed if changed >= started else None
    zone = (times[0] - started + _SLACK) // _ZONES * _ZONES
    end = started + max(0.0, (times[-1] - zone - started + _SLACK) % _DAY - _SLACK)
    agrees = changed > end and (changed - end) % _DAY < 2 * 60
    return changed if agrees else end


def _followed_at(stay: Stay, starts: Mapping[object, Sequence[float]]) -> float | None:
    """When the next attempt at the same task began, or a stage that needs its results."""
    later = [name for name in STAGES if stay.stage in needed_for(name)]
    found: list[float] = []
    for key in ((stay.stage, stay.task), *later):
        moments = starts.get(key, ())
        found += moments[bisect.bisect_right(moments, stay.started) :][:1]
    return min(found, default=None)


def _outcome(run: RunFolder, recipe: Recipe, stay: Stay) -> str:
    if is_done(run, recipe, stay.stage, stay.task):
        return "done"
    return "failed" if run.error(stay.stage, stay.task).exists() else ""


def busy_seconds(stays: Sequence[Stay]) -> float:
    """Seconds in which at least one of them was under way."""
    return sum(end - begin for begin, end in merged(stays))


def merged(stays: Sequence[Stay]) -> list[tuple[float, float]]:
    """Spans of time in which at least one of them was under way, in order."""
    spans: list[tuple[float, float]] = []
    for begin, end in sorted((s.started, s.ended or s.started) for s in stays):
        if spans and begin <= spans[-1][1]:
            spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
        else:
            spans.append((begin, end))
    return spans


def gaps(spans: Sequence[tuple[float, float]]) -> list[float]:
    """Seconds between spans that follow each other."""
    return [after[0] - before[1] for before, after in itertools.pairwise(spans)]
