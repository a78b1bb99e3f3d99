"""Shows the state of a run, or of the runs of a sweep, while somebody works on it."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from cosmos_hpc.runs.listing import ListedRun, list_html, render_list
from cosmos_hpc.runs.status import RunState
from cosmos_hpc.utils.html import escaped
from cosmos_hpc.utils.notebook import Output, in_notebook

#: Seconds between lines of progress where they are not drawn over each other.
_LINES_EVERY = 15.0
#: States in which a run may still get on by itself.
_AT_WORK = ("running", "queued")
#: A look reads folders and asks a queue; the pause after it is at least this many times as long.
_REST = 9


@dataclass(frozen=True)
class View:
    """What is seen at one moment.

    Attributes:
        summary: one line: the name, and the state.
        text: one screen.
        html: the same for notebooks.
        runs: states of the runs, by their names.
        parts: of a run its stages, of a sweep its runs: by the name of each its state, and how far
            the work is.
    """

    summary: str
    text: str
    html: str
    runs: Mapping[str, str]
    parts: Mapping[str, tuple[str, str]]


def view_run(state: RunState) -> View:
    """A run and its stages."""
    return View(
        f"{state.name}: {state.state}",
        state.render(),
        state._repr_html_(),
        runs={state.name: state.state},
        parts={stage.name: (stage.state, stage.progress) for stage in state.stages},
    )


def view_sweep(name: str, listed: Sequence[ListedRun]) -> View:
    """The runs of a sweep beside each other."""
    counts = Counter(run.state for run in listed)
    summary = f"{name}: {', '.join(f'{count} {state}' for state, count in counts.items())}"
    return View(
        summary,
        f"{summary}\n{render_list(listed)}",
        f"<p>{escaped(summary)}</p>{list_html(listed)}",
        runs={run.name: run.state for run in listed},
        parts={run.name: _part(run) for run in listed},
    )


def _part(run: ListedRun) -> tuple[str, str]:
    state = f"{run.state}  {run.stage}" if run.state in _AT_WORK else run.state
    step = f"step {run.step}" if run.step is not None else ""
    loss = f"loss {run.loss:.4f}" if run.loss is not None else ""
    return state, ", ".join(filter(None, (step, loss)))


def watch(look: Callable[[], View], stream: TextIO, every: float = 2.0) -> None:
    """Show runs until nothing works on any of them.

    On a terminal and in a notebook they are drawn anew every few seconds. Elsewhere a line is
    printed when the state of a part has changed, and now and then when only its progress has.

    Args:
        look: reads their state.
        stream: where to show it; not used in a notebook.
        every: seconds between looks, more where these take long.
    """
    screen: _Notebook | _Screen | _Lines
    if in_notebook():
        screen = _Notebook()
    else:
        screen = _Screen(stream) if stream.isatty() else _Lines(stream)
    known: set[str] = set()
    while True:
        began = time.monotonic()
        view = look()
        known |= {name for name, state in view.runs.items() if state != "unknown"}
        # A queue that has answered before may do so again.
        ended = not any(
            state in _AT_WORK or (state == "unknown" and name in known)
            for name, state in view.runs.items()
        )
        screen.show(view, ended)
        if ended:
            return
        time.sleep(max(every, _REST * (time.monotonic() - began)))


class _Notebook:
    """Draws what is seen in an output of a cell."""

    def __init__(self) -> None:
        self._output = Output()

    def show(self, view: View, ended: bool) -> None:
        self._output.draw(view.html, view.text)


class _Screen:
    """Draws what is seen over what was seen before."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rows = 0

    def show(self, view: View, ended: bool) -> None:
        columns, rows = shutil.get_terminal_size()
        lines = view.text.splitlines()
        heights = [max(1, -(-len(line) // columns)) for line in lines]
        # What has left the screen above cannot be drawn over.
        while len(lines) > 1 and sum(heights) >= rows:
            lines.pop()
            heights.pop()
        up = f"\x1b[{self._rows}F\x1b[J" if self._rows else ""
        self._rows = sum(heights)
        print(up + "\n".join(lines), file=self._stream, flush=True)


class _Lines:
    """A line for each part that has got on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown: dict[str, tuple[str, str]] = {}
        self._said = 0.0

    def show(self, view: View, ended: bool) -> None:
        due = time.monotonic() - self._said >= _LINES_EVERY or ended
        width = max(11, *map(len, view.parts)) if view.parts else 0
        for name, now in view.parts.items():
            before = self._shown.get(name, ("", ""))
            if now[0] != before[0] or (due and now != before):
                self._shown[name], self._said = now, time.monotonic()
                said = ": ".join(filter(None, now))
                line = f"{time.strftime('%H:%M:%S')}  {name:<{width}} {said}"
                print(line, file=self._stream, flush=True)
        if ended:
            print(view.summary, file=self._stream, flush=True)
