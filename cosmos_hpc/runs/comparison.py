"""Several runs beside each other: how far they are, their losses and scores, and what differs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from msgspec import Struct

from cosmos_hpc.config.overrides import written
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.progress import numbers
from cosmos_hpc.runs.scores import aligned
from cosmos_hpc.utils import files
from cosmos_hpc.utils.html import table
from cosmos_hpc.utils.mappings import flatten

#: Columns: what each holds, and its digits.
_COLUMNS = {
    "step": ("step", 0),
    "loss": ("training loss", 4),
    "validation_loss": ("validation loss", 4),
    "test_loss": ("held-out loss", 4),
    "top1": ("top-1", 4),
    "psnr": ("PSNR (dB)", 2),
    "ssim": ("SSIM", 4),
    "lpips": ("LPIPS", 4),
}
#: Settings that say what a run is called, not what it does.
_NAMES = ("name", "description")


class Comparison(Struct, frozen=True):
    """A table of runs, which shows itself as text and in a notebook.

    Attributes:
        names: of the runs, in order.
        scores: of each run ``step``, ``loss`` of the last step and ``validation_loss`` of the last
            validation, both in nats per token, and ``tokens_per_second``. Of the evaluate stage
            ``test_loss`` (nats per token) and ``top1`` of held-out clips, ``psnr`` (dB), ``ssim``
            and ``lpips`` of generated ones. None where there is none.
        settings: those of the recipes that differ, each with its value in every run.
    """

    names: list[str]
    scores: list[dict[str, float | None]]
    settings: dict[str, list[Any]]

    def __repr__(self) -> str:
        return self.render()

    def _repr_html_(self) -> str:
        heads, *rows = self.score_rows()
        parts = [table(heads, rows)]
        if self.settings:
            heads, *rows = self.setting_rows()
            parts.append(table(heads, rows, "settings that differ"))
        return "".join(parts)

    def render(self) -> str:
        """The tables as text: scores, one line per run; then the settings that differ."""
        parts = [aligned([*self.score_rows()])]
        if self.settings:
            parts += ["", self.render_settings()]
        return "\n".join(parts)

    def render_settings(self) -> str:
        """The settings that differ as text, one line each; empty where none does."""
        rows = [*self.setting_rows()]
        return "\n".join(["settings that differ", aligned(rows)]) if self.settings else ""

    def score_rows(self) -> Iterator[tuple[str, ...]]:
        """Heads, then of each run its name and its scores, without those that none has."""
        shown = [key for key in _COLUMNS if any(row[key] is not None for row in self.scores)]
        yield ("run", *(_COLUMNS[key][0] for key in shown))
        for name, row in zip(self.names, self.scores, strict=True):
            yield (name, *(_number(row[key], _COLUMNS[key][1]) for key in shown))

    def setting_rows(self) -> Iterator[tuple[str, ...]]:
        """Heads, then of each setting that differs its name and its value in each run."""
        yield ("setting", *self.names)
        for key, values in self.settings.items():
            yield (key, *("-" if value is None else written(value) for value in values))


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def compare_runs(runs: Sequence[RunFolder]) -> Comparison:
    """Compare runs by what they have written so far; nothing is computed anew."""
    recipes = [flatten(run.recipe().as_dict()) for run in runs]
    keys = list(dict.fromkeys(key for one in recipes for key in one))
    settings = {key: [recipe.get(key) for recipe in recipes] for key in keys if key not in _NAMES}
    return Comparison(
        [run.name for run in runs],
        [_scores_of(run) for run in runs],
        {key: values for key, values in settings.items() if any(v != values[0] for v in values)},
    )


def _scores_of(run: RunFolder) -> dict[str, float | None]:
    metrics = files.read_json(run.evaluation.metrics) or {}
    frames = (metrics.get("generated") or {}).get("trained") or {}
    tokens = (metrics.get("teacher_forced") or {}).get("trained") or {}
    return {
        **numbers(run)._asdict(),
        "test_loss": tokens.get("loss"),
        "top1": tokens.get("top1"),
        **{name: frames.get(name) for name in ("psnr", "ssim", "lpips")},
    }
