"""Shows the progress of stages on a terminal, in a notebook or in a log."""

from __future__ import annotations

import contextlib
import shutil
import sys
import time
from typing import TextIO

from cosmos_hpc.utils.notebook import Output, in_notebook, preformatted, progress_line
from cosmos_hpc.utils.progress import duration


class Console:
    """Lines about stages, on one stream.

    Args:
        stream: where to write; whether it is a terminal decides the form.
        every: seconds between progress lines where it is not.
    """

    def __init__(self, stream: TextIO | None = None, every: float = 15.0) -> None:
        self.stream = stream or sys.stderr
        self.every = every
        self.live = self.stream.isatty()
        self._started = self._said = time.monotonic()
        self._last = ""

    def say(self, message: str) -> None:
        """A line of its own."""
        self._clear()
        self._print(message)

    def begin(self, stage: str) -> None:
        """A stage begins."""
        self._started = self._said = time.monotonic()
        self._last = ""
        self._show(stage, "starting")

    def due(self) -> bool:
        """Whether :meth:`progress` would show anything now; finding out what may take a while."""
        return self.live or time.monotonic() - self._said >= self.every

    def progress(self, stage: str, text: str, fraction: float | None = None) -> None:
        """How far the stage is; shown when it is time to and there is news.

        Args:
            stage: its name.
            text: in words.
            fraction: of the work that is done, from 0 to 1, if that is known.
        """
        if text == self._last or not self.due():
            return
        self._said, self._last = time.monotonic(), text
        self._show(stage, text, fraction)

    def end(self, stage: str, state: str, text: str = "") -> None:
        """A stage has ended."""
        took = duration(time.monotonic() - self._started)
        self.say(f"  {stage:<11} {state}{', ' + text if text else ''} ({took})")

    def _show(self, stage: str, text: str, fraction: float | None = None) -> None:
        line = f"  {stage:<11} {text}"
        if self.live:
            self._clear()
            self._print(line[: shutil.get_terminal_size().columns - 1], end="")
        else:
            self._print(line)

    def _clear(self) -> None:
        if self.live:
            self._print("\r\x1b[2K", end="")

    def _print(self, text: str, end: str = "\n") -> None:
        # Nobody may be reading any more (`submit | head`, a closed terminal): the work continues.
        with contextlib.suppress(BrokenPipeError):
            print(text, end=end, file=self.stream, flush=True)


class NotebookConsole(Console):
    """One output of a notebook's cell: lines of text, and a bar for the stage that is worked on."""

    def __init__(self) -> None:
        super().__init__(every=1.0)
        self.live = False
        self._output = Output()
        self._lines: list[str] = []

    def _show(self, stage: str, text: str, fraction: float | None = None) -> None:
        self._draw(progress_line(stage, text, fraction), f"  {stage:<11} {text}")

    def _print(self, text: str, end: str = "\n") -> None:
        self._lines.append(text)
        self._draw()

    def _draw(self, html: str = "", text: str = "") -> None:
        said = "\n".join(self._lines)
        self._output.draw(preformatted(said) + html, f"{said}\n{text}")


def usual_console() -> Console:
    """Where progress is shown unless a caller says so: a notebook's cell, or standard error."""
    return NotebookConsole() if in_notebook() else Console()
