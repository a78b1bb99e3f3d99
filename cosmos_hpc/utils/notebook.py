"""Outputs of a notebook's cell that are drawn anew as work gets on."""

from __future__ import annotations

import sys
import warnings
from typing import Any

from cosmos_hpc.utils.html import escaped

# tqdm, which libraries bring, asks for widgets when it is imported in a kernel. None are used here.
warnings.filterwarnings("ignore", message="IProgress not found")


def in_notebook() -> bool:
    """Whether this process is a kernel of Jupyter, whose outputs can be drawn anew."""
    # Not imported: in a kernel it is already, and elsewhere nobody needs it.
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return getattr(shell, "kernel", None) is not None


class Output:
    """One output of the cell that runs; it appears when it is first drawn."""

    def __init__(self) -> None:
        self._handle: Any = None

    def draw(self, html: str, text: str) -> None:
        """Show this in place of what was shown before.

        Args:
            html: for notebooks.
            text: the same for programs that show no HTML.
        """
        from IPython.display import display

        content = {"text/html": html, "text/plain": text}
        if self._handle is None:
            self._handle = display(content, raw=True, display_id=True)
        else:
            self._handle.update(content, raw=True)


def bar(fraction: float) -> str:
    """A progress bar; ``fraction`` of it, from 0 to 1, is filled."""
    percent = f"{100 * fraction:.0f}%"
    style = "vertical-align:middle;width:16em"
    return f'<progress value="{fraction:.4f}" max="1" style="{style}">{percent}</progress>'


def progress_line(name: str, text: str, fraction: float | None) -> str:
    """A line about work: its name, a bar where its fraction is known, and words."""
    drawn = "" if fraction is None else f"{bar(fraction)} "
    return f"<div><b>{escaped(name)}</b> {drawn}{escaped(text)}</div>"


def preformatted(text: str) -> str:
    """Text with its line breaks and columns."""
    return f'<pre style="margin:0;white-space:pre-wrap">{escaped(text)}</pre>'
