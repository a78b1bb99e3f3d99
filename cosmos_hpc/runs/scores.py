"""Tables of scores: of one run beside its references, and of several runs beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cosmos_hpc.utils.progress import count_of

#: What is compared, in the words of a table.
ROWS = {
    "trained": "after post-training",
    "initial": "before post-training",
    "repeat": "last given frame repeated",
    "tokenizer": "tokenizer alone",
}
#: Scores of frames, and their digits in a table.
_OF_FRAMES = {"psnr": ("PSNR (dB)", 2), "ssim": ("SSIM", 4), "lpips": ("LPIPS", 4)}
#: Scores of predicted tokens.
_OF_TOKENS = {"loss": ("loss per token", 4), "top1": ("top-1", 4), "top5": ("top-5", 4)}


def render_scores(runs: Mapping[str, Mapping[str, Any]]) -> str:
    """The scores of runs as text.

    Args:
        runs: by name, what the evaluate stage has written of each.
    """
    several = len(runs) > 1
    parts = []
    for name, metrics in runs.items():
        part = (
            f"{count_of(metrics['clips'], 'clip')} of part {metrics['part']}"
            if metrics["part"]
            else "no clips"
        )
        parts.append(f"{name + ': ' if several else ''}{metrics['task']}, {part}")
        parts += [f"  note: {note}" for note in metrics["notes"]]
    frames = _table(runs, "generated", _OF_FRAMES)
    tokens = _table(runs, "teacher_forced", _OF_TOKENS)
    if frames:
        given = " and ".join({str(m["condition_frames"]) for m in runs.values()})
        parts += ["", f"new frames of generated clips, {given} frames given", frames]
    if tokens:
        parts += ["", "tokens of held-out clips, each from the true ones before it", tokens]
    return "\n".join(parts)


def _table(
    runs: Mapping[str, Mapping[str, Any]], section: str, columns: Mapping[str, tuple[str, int]]
) -> str:
    """The rows of all runs that have some score; empty where there is none."""
    several = len(runs) > 1
    rows = []
    for name, metrics in runs.items():
        for what, words in ROWS.items():
            scores = (metrics[section] or {}).get(what)
            if scores:
                label = f"{name}: {words}" if several else words
                rows.append((label, [scores.get(column) for column in columns]))
    shown = [
        number for number in range(len(columns)) if any(row[number] is not None for _, row in rows)
    ]
    heads = [list(columns.values())[number] for number in shown]
    lines = [["", *(head for head, _ in heads)]]
    for label, values in rows:
        cells = [
            _number(values[number], digits)
            for number, (_, digits) in zip(shown, heads, strict=True)
        ]
        lines.append([label, *cells])
    return aligned(lines) if rows else ""


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Rows of cells as text: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  "
        + "  ".join(
            cell.rjust(width) if number else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
