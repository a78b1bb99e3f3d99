"""Shows the state of a run while somebody works on it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import TextIO

from cosmos_hpc.runs.status import RunState
from cosmos_hpc.utils.notebook import Output, in_notebook

#: Seconds between lines of progress where they are not drawn over each other.
_LINES_EVERY = 15.0
#: States in which a run may still get on by itself.
_AT_WORK = ("running", "queued")


def watch(look: Callable[[], RunState], stream: TextIO, every: float = 2.0) -> RunState:
    """Show a run's state until nothing works on it.

    On a terminal and in a notebook the state is drawn anew every few seconds. Elsewhere a line is
    printed when the state of a stage has changed, and now and then when only its progress has.

    Args:
        look: reads the state.
        stream: where to show it; not used in a notebook.
        every: seconds between looks.

    Returns:
        The state at the end.
    """
    screen: _Notebook | _Screen | _Lines
    if in_notebook():
        screen = _Notebook()
    else:
        screen = _Screen(stream) if stream.isatty() else _Lines(stream)
    known = False
    while True:
        state = look()
        screen.show(state)
        known |= state.state != "unknown"
        # A queue that has answered before may do so again.
        if state.state not in _AT_WORK and not (known and state.state == "unknown"):
            return state
        time.sleep(every)


class _Notebook:
    """Draws a state in an output of a cell."""

    def __init__(self) -> None:
        self._output = Output()

    def show(self, state: RunState) -> None:
        self._output.draw(state._repr_html_(), state.render())


class _Screen:
    """Draws a state over the one before."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._rows = 0

    def show(self, state: RunState) -> None:
        columns, rows = shutil.get_terminal_size()
        lines = state.render().splitlines()
        heights = [max(1, -(-len(line) // columns)) for line in lines]
        # What has left the screen above cannot be drawn over.
        while len(lines) > 1 and sum(heights) >= rows:
            lines.pop()
            heights.pop()
        up = f"\x1b[{self._rows}F\x1b[J" if self._rows else ""
        self._rows = sum(heights)
        print(up + "\n".join(lines), file=self._stream, flush=True)


class _Lines:
    """A line for each stage that has got on."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown: dict[str, tuple[str, str]] = {}
        self._said = 0.0

    def show(self, state: RunState) -> None:
        due = time.monotonic() - self._said >= _LINES_EVERY or state.state not in _AT_WORK
        for stage in state.stages:
            now, before = (stage.state, stage.progress), self._shown.get(stage.name, ("", ""))
            if now[0] != before[0] or (due and now != before):
                self._shown[stage.name], self._said = now, time.monotonic()
                text = (
                    f"{time.strftime('%H:%M:%S')}  {stage.name:<11} {': '.join(filter(None, now))}"
                )
                print(text, file=self._stream, flush=True)
        if state.state not in _AT_WORK:
            print(f"{state.name}: {state.state}", file=self._stream, flush=True)
