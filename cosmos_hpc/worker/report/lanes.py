"""The time line of the report: where on the page each attempt at a task is drawn."""

from __future__ import annotations

import datetime
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from cosmos_hpc.runs.timeline import Stay, gaps, merged
from cosmos_hpc.utils.progress import duration

#: Attempts of a stage that are drawn one by one; of more, how many were under way.
_SINGLE = 120
#: Steps in which that is drawn.
_STEPS = 160
#: Per cent of the width that stand for a pause, and that lie between two labels at least.
_BREAK, _APART = 3.0, 19.0
#: Pixels of a bar, with what is between two, and of all of a stage at most.
_BAR, _MOST = 7, 84
#: Seconds between labels.
_NICE = (
    *(1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800, 21600, 43200),
    *(86400 * days for days in (1, 2, 5, 10, 30, 90)),
)


@dataclass(frozen=True)
class Bar:
    """A rectangle: ``x`` and ``width`` in per cent, ``y`` and ``height`` in pixels."""

    x: float
    width: float
    y: float
    height: float
    how: str
    title: str


@dataclass
class Lane:
    """The bars of one stage.

    Attributes:
        stage: its name.
        text: what a person reads beside it.
        bars: one an attempt, or of many how many were under way.
        height: pixels.
    """

    stage: str
    text: str
    bars: list[Bar]
    height: float


@dataclass
class Lanes:
    """The time line.

    Attributes:
        lanes: one per stage.
        ticks: per cent and label of moments.
        breaks: per cent of pauses, and how long they were.
    """

    lanes: list[Lane] = field(default_factory=list)
    ticks: list[tuple[float, str]] = field(default_factory=list)
    breaks: list[tuple[float, str]] = field(default_factory=list)


class _Axis:
    """From moments to per cent of the width; long pauses are cut short.

    Args:
        stays: of all stages.
    """

    def __init__(self, stays: Sequence[Stay]) -> None:
        spans = merged(stays)
        busy = sum(end - begin for begin, end in spans)
        long = max(60.0, busy / 4)
        parts = [list(spans[0])]
        self.pauses: list[float] = []
        for gap, (begin, end) in zip(gaps(spans), spans[1:], strict=True):
            if gap > long and len(parts) < 12:
                self.pauses.append(gap)
                parts.append([begin, end])
            else:
                parts[-1][1] = end
        self.parts = [(begin, end) for begin, end in parts]
        total = sum(end - begin for begin, end in self.parts) or 1.0
        self._scale = (100 - _BREAK * (len(parts) - 1)) / total

    def at(self, moment: float) -> float:
        place = 0.0
        for begin, end in self.parts:
            if moment <= end:
                return place + max(0.0, moment - begin) * self._scale
            place += (end - begin) * self._scale + _BREAK
        return place - _BREAK

    def breaks(self) -> list[tuple[float, str]]:
        ends = [self.at(end) for _, end in self.parts]
        return [(e + _BREAK / 2, duration(p)) for e, p in zip(ends, self.pauses, strict=False)]

    def ticks(self) -> list[tuple[float, str]]:
        total = self.parts[-1][1] - self.parts[0][0]
        form = "%d %b %H:%M" if total > 86400 else "%H:%M:%S" if total < 1200 else "%H:%M"
        every = next((n for n in _NICE if n * self._scale >= _APART), _NICE[-1])
        moments = [
            moment
            for begin, end in self.parts
            for moment in (begin, *range(int(begin // every + 1) * every, int(end) + 1, every))
        ]
        ticks: list[tuple[float, str]] = []
        for moment in moments:
            place = self.at(moment)
            # A label stands to the right of its moment.
            if place <= 100 - _APART / 2 and (not ticks or place - ticks[-1][0] >= _APART):
                ticks.append((place, f"{utc(moment):{form}}"))
        return ticks


def utc(moment: float) -> datetime.datetime:
    """A moment as a date."""
    return datetime.datetime.fromtimestamp(moment, datetime.timezone.utc)


def draw(stays: Sequence[Stay]) -> Lanes:
    """Positions of everything; empty without attempts."""
    if not stays:
        return Lanes()
    axis = _Axis(stays)
    by_stage: dict[str, list[Stay]] = defaultdict(list)
    for stay in stays:
        by_stage[stay.stage].append(stay)
    lanes = [_lane(axis, stage, of_stage) for stage, of_stage in by_stage.items()]
    return Lanes(lanes, axis.ticks(), axis.breaks())


def _lane(axis: _Axis, stage: str, stays: list[Stay]) -> Lane:
    rows = _rows(stays)
    if len(stays) > _SINGLE or len(rows) * (_BAR + 1) > _MOST:
        bars, height = _counts(axis, stays), _MOST / 2
    else:
        size = max(_BAR, 14 - 2 * len(rows))
        bars = [
            _bar(axis, stay, row * (size + 1), size)
            for row, some in enumerate(rows)
            for stay in some
        ]
        height = len(rows) * (size + 1)
    return Lane(stage, _text(stays), bars, height)


def _rows(stays: list[Stay]) -> list[list[Stay]]:
    """Attempts that do not overlap in one row, as few rows as there can be."""
    rows: list[list[Stay]] = []
    for stay in stays:
        free = [row for row in rows if (row[-1].ended or row[-1].started) <= stay.started]
        if free:
            free[0].append(stay)
        else:
            rows.append([stay])
    return rows


def _bar(axis: _Axis, stay: Stay, y: float, height: float) -> Bar:
    begin, end = axis.at(stay.started), axis.at(stay.ended or stay.started)
    x = min(begin, 99.5)
    return Bar(x, max(end - x, 0.5), y, height, stay.how or "unknown", _describe(stay))


def _describe(stay: Stay) -> str:
    """An attempt in a line."""
    took = f" {duration(stay.ended - stay.started)}" if stay.ended else ""
    where = f" on {stay.node}" if stay.node else ""
    how = stay.how or "no end noted"
    return f"{stay.label}: {how},{took} from {utc(stay.started):%H:%M:%S}{where}"


def _counts(axis: _Axis, stays: list[Stay]) -> list[Bar]:
    """How many attempts were under way, over time."""
    edges: dict[int, list[int]] = defaultdict(lambda: [0, 0])
    for stay in stays:
        begin, end = axis.at(stay.started), axis.at(stay.ended or stay.started)
        first = min(_STEPS - 1, int(begin / 100 * _STEPS))
        last = min(_STEPS - 1, int(end / 100 * _STEPS))
        edges[first][0] += 1
        edges[last + 1][1] += 1
    counts, now = [], 0
    for step in range(_STEPS):
        began, ended = edges[step]
        now += began - ended
        counts.append(now)
    most, full = max(counts), _MOST / 2
    return [
        Bar(
            step * 100 / _STEPS,
            100 / _STEPS,
            full * (1 - count / most),
            full * count / most,
            "done",
            f"{count} tasks under way",
        )
        for step, count in enumerate(counts)
        if count
    ]


def _text(stays: list[Stay]) -> str:
    """How much there was, how long it took from the first to the last, and how it ended."""
    tasks = len({stay.task for stay in stays})
    seconds = sum(end - begin for begin, end in merged(stays))
    parts = [f"{tasks:,} tasks"] if tasks > 1 else []
    if len(stays) > tasks:
        parts.append(f"{len(stays):,} attempts")
    parts += [duration(seconds)] if seconds else []
    for how in ("failed", "killed", "stopped", "cancelled", "unstarted"):
        count = sum(stay.how == how for stay in stays)
        parts += [f"{count:,} {how}"] if count else []
    return ", ".join(parts)
