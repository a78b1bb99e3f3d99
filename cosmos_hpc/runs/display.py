"""How runs show themselves in a notebook, as HTML in which all text is escaped."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cosmos_hpc.utils.html import data_uri, escaped, table
from cosmos_hpc.utils.notebook import progress_line

if TYPE_CHECKING:
    from cosmos_hpc.runs.samples import Sample, Samples
    from cosmos_hpc.runs.status import RunState, StageState

#: Bytes of videos that one cell of a notebook shows.
_BYTES = 24_000_000
#: Failed tasks of a stage whose reasons are shown.
_REASONS = 3

_ROW = "display:flex;flex-wrap:wrap;gap:.8em;margin:.3em 0 1em"
_VIDEO = "display:block;max-width:100%;height:auto"


class Page:
    """A page of a run, which shows itself in a notebook.

    Args:
        path: see the attribute.

    Attributes:
        path: of the file, which holds all that it shows.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def __repr__(self) -> str:
        return f"Page({str(self.path)!r})"

    def __fspath__(self) -> str:
        return str(self.path)

    def _repr_html_(self) -> str:
        # In a frame of its own: neither changes how the other looks.
        text = escaped(self.path.read_text())
        return (
            f'<p>{escaped(self.path)}</p><iframe srcdoc="{text}" title="{escaped(self.path.name)}" '
            f'sandbox="allow-scripts" style="width:100%;height:48em;border:0"></iframe>'
        )


def state_html(state: RunState) -> str:
    """The state of a run: one row per stage, bars of those that run, failures, and results."""
    rows = [(s.name, s.state, _tasks(s), _details(s)) for s in state.stages]
    parts = [table(("stage", "state", "tasks", "progress"), rows, f"{state.name}: {state.state}")]
    parts += [
        progress_line(stage.name, "", stage.fraction)
        for stage in state.stages
        if stage.state == "running" and stage.fraction is not None
    ]
    if state.failed_videos:
        title = f"failed videos, listed in {state.failed_list}"
        parts.append(table(("kind", "videos"), state.failed_videos.items(), title))
    if state.results:
        parts.append(table(("result", "path"), state.results.items()))
    if state.note:
        parts.append(f"<p>{escaped(state.note)}</p>")
    return "".join(parts)


def _tasks(stage: StageState) -> str:
    return f"{stage.done_tasks} of {stage.tasks}"


def _details(stage: StageState) -> str:
    said = [*([stage.progress] if stage.progress else []), *stage.queue_lines()]
    for task, reason in list(stage.errors.items())[:_REASONS]:
        said.append(f"task {task}: {reason}" if stage.tasks > 1 else reason)
    if len(stage.errors) > _REASONS:
        said.append(f"and {len(stage.errors) - _REASONS} more failed tasks")
    return "; ".join(said)


def samples_html(samples: Samples) -> str:
    """The samples of each clip side by side, with the true video where there is one."""
    if not len(samples):
        return "<p>no samples: the generate stage has not made any yet</p>"
    left, parts = _BYTES, []
    clips = samples.clips()
    for shown, (clip, of_clip) in enumerate(clips.items()):
        videos = list(_videos_of(samples, of_clip))
        left -= sum(path.stat().st_size for _, path in videos)
        if left < 0:
            parts.append(
                f"<p>{len(clips) - shown} of {len(clips)} clips are left out, whose videos would "
                f"make the notebook too large; show a part of them, as in samples[:4]</p>"
            )
            break
        record = of_clip[0].record
        title = f"clip {clip} of {record.get('source')}"
        if record.get("prompt"):
            title += f": {record['prompt']}"
        figures = "".join(_figure(name, path) for name, path in videos)
        parts.append(f'<div>{escaped(title)}<div style="{_ROW}">{figures}</div></div>')
    return "".join(parts)


def _videos_of(samples: Samples, of_clip: list[Sample]) -> Iterator[tuple[str, Path]]:
    clip = of_clip[0].clip
    named = [("truth", samples.truth(clip))]
    named += [(sample.by, sample.path) for sample in of_clip]
    named += [("tokenizer alone", samples.tokenizer(clip))]
    return ((name, path) for name, path in named if path.is_file())


def _figure(name: str, path: Path) -> str:
    source = data_uri(path.read_bytes(), "video/mp4")
    return (
        f'<figure style="margin:0"><video src="{source}" style="{_VIDEO}" controls loop muted '
        f'playsinline aria-label="{escaped(name)}"></video>'
        f"<figcaption>{escaped(name)}</figcaption></figure>"
    )
