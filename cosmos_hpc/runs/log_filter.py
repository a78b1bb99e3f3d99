"""Tells what a log says of the work from what libraries say of themselves."""

from __future__ import annotations

import re
from collections.abc import Iterator

#: Lines with which a library begins to say something that is neither the work nor an error. An
#: unknown line stays: it may be why a task failed.
_NOISE = re.compile(
    "|".join(
        (
            r"\[NeMo [IWD] ",
            r"\S+:\d+: \w*Warning: ",  # Python's warnings
            r"[IW]\d{4} \d\d:\d\d:\d\d\.\d+ ",  # torch's log
            r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d[,.]\d+ - \S+ - (DEBUG|INFO|WARNING) - ",
            r"submitit INFO \(",
            r"(GPU|TPU|HPU) available: ",
            r"(\[rank: \d+\] )?Seed set to \d+",
            r"(\[rank: \d+\] )?LOCAL_RANK: \d+ - ",
            r"Initializing distributed: |distributed_backend=|All distributed processes registered",
            r"Setting OMP_NUM_THREADS environment variable ",
            r"(WARNING: )?(OneLogger|No exporters were provided|transformer_engine not installed)",
            r"fused_indices_to_multihot ",
            r"Epoch \d+, global step \d+: ",
            r"Restor(ing states|ed all states) from the checkpoint ",
            r"`Trainer\.fit` stopped: ",
            r"srun: cluster configuration lacks support for cpu binding",
            # Lightning's table of a model.
            r"  \| Name +\| Type ",
            r"\d+ +\| \S+ +\| ",
            r"[\d.]+( [KMBT])? +(Trainable|Non-trainable|Total|Modules in) ",
            r"[\d.]+ +Total estimated model params size ",
            r"[*-]{20,}$",
        )
    )
)


class LogFilter:
    """Leaves lines of libraries out of a log that comes in pieces.

    Args:
        raw: leave out nothing.

    Attributes:
        left_out: how many lines so far.
    """

    def __init__(self, raw: bool = False) -> None:
        self.raw = raw
        self.left_out = 0
        self._rest = ""
        self._within = False  # something that goes on in indented lines

    def __call__(self, text: str) -> str:
        """What of a next piece is to be read; an incomplete line waits for its end."""
        if self.raw:
            return text
        *lines, self._rest = (self._rest + text).split("\n")
        return "".join(f"{line}\n" for line in self._kept(lines))

    def end(self) -> str:
        """What is left of it."""
        rest, self._rest = self._rest, ""
        return "".join(self._kept([rest] if rest else []))

    def _kept(self, lines: list[str]) -> Iterator[str]:
        for line in lines:
            begins = _NOISE.match(line) is not None
            goes_on = self._within and (not line.strip() or line[0] in " \t")
            self._within = begins or goes_on
            if self._within:
                self.left_out += 1
            else:
                yield line
