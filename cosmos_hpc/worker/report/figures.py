"""Figures of the report, as SVG that takes its colours and letters from the page."""

from __future__ import annotations

import io
import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from xml.etree import ElementTree

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from cosmos_hpc.runs.report import Training
from cosmos_hpc.utils.html import readable

#: Points of a line at most; more cannot be seen.
_POINTS = 600
#: Inches: as wide as a phone, so that letters have one size on all screens.
_WIDTH, _HEIGHT = 4.9, 3.1
_SVG = "http://www.w3.org/2000/svg"
_XLINK = "{http://www.w3.org/1999/xlink}href"

#: Colours that matplotlib is told, and the variables of the page that stand in their place.
_VARIABLES = {
    "#010203": "--ink",
    "#010204": "--faint",
    "#010205": "--trained",
    "#010206": "--initial",
    "#010207": "--tokenizer",
    "#010208": "--repeat",
}
_COLOURS = {variable.strip("-"): colour for colour, variable in _VARIABLES.items()}
#: How the lines of a figure are drawn, and what they are called, by the key of the metrics.
SERIES = {
    "trained": ("post-trained", "-"),
    "initial": ("before training", "-."),
    "tokenizer": ("tokenizer alone", "--"),
    "repeat": ("last given frame repeated", ":"),
}
#: Of lines to compare with.
_REFERENCE: Any = {"color": _COLOURS["ink"], "linewidth": 1}
_STYLE: Any = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "svg.hashsalt": "cosmos-hpc",
    "font.size": 10,
    "font.family": "DejaVu Sans",
    "text.color": _COLOURS["ink"],
    "axes.labelcolor": _COLOURS["ink"],
    "axes.edgecolor": _COLOURS["faint"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": _COLOURS["faint"],
    "ytick.color": _COLOURS["faint"],
    "xtick.labelcolor": _COLOURS["ink"],
    "ytick.labelcolor": _COLOURS["ink"],
    "axes.grid": True,
    "grid.color": _COLOURS["faint"],
    "grid.alpha": 0.3,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True)
class Drawn:
    """A figure of the page.

    Attributes:
        svg: to stand in the page.
        caption: what it shows, in words.
    """

    svg: str
    caption: str


def losses(training: Training) -> Drawn | None:
    """Training and validation loss over steps, with the losses to compare with."""
    points, validated = training.points("loss"), training.points("validation_loss")
    if not points:
        return None

    def draw(axes: Axes) -> None:
        many = len(points) > 200
        style: dict[str, Any] = {"color": _COLOURS["trained"]}
        _line(axes, points, **style, **({"alpha": 0.35, "linewidth": 0.8} if many else {}))
        if many:
            _line(axes, _smooth(points), **style)
        axes.lines[-1].set_label("training")
        if validated:
            marker = "o" if len(validated) <= 60 else ""
            _line(axes, validated, color=_COLOURS["initial"], marker=marker, markersize=3.5)
            axes.lines[-1].set_label("validation")
        for (name, loss), dashes in zip(
            training.reference.items(), ("--", ":", "-."), strict=False
        ):
            axes.axhline(
                loss, label=f"{readable(name)[:40]}, {loss:.2f}", linestyle=dashes, **_REFERENCE
            )
        axes.set(xlabel="step", ylabel="loss per token (nats)")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    first, last = points[0], points[-1]
    caption = (
        f"Loss per token in nats: training, from {first[1]:.3f} at step {first[0]:,} to "
        f"{last[1]:.3f} at step {last[0]:,}"
    )
    if validated:
        caption += f"; validation, {validated[-1][1]:.3f} at step {validated[-1][0]:,}"
    said = {
        "untrained": "a model that knows nothing",
        "unigram": "one that knows how frequent each token is",
    }
    known = [f"{said.get(n, n)} has {loss:.2f}" for n, loss in training.reference.items()]
    return Drawn(_svg("losses", draw, caption), f"{caption}. {_sentence(known)}".strip())


def compared_losses(runs: Mapping[str, list[dict[str, Any]]], key: str, what: str) -> Drawn | None:
    """One loss of several runs over steps, a line for each run that has it.

    Args:
        runs: rows of the metrics of each run, by what it is called.
        key: of the loss in these rows.
        what: which loss it is, in a word.
    """
    lines = {
        name: [(row["step"], row[key]) for row in rows if key in row] for name, rows in runs.items()
    }
    lines = {name: points for name, points in lines.items() if points}
    if not lines:
        return None
    # All colours in one dash before the next dash: neighbours differ in colour.
    looks = itertools.cycle(itertools.product(("-", "--", ":", "-."), SERIES))

    def draw(axes: Axes) -> None:
        for (name, points), (dashes, colour) in zip(lines.items(), looks, strict=False):
            shown = _smooth(points) if len(points) > 200 else points
            marker = "o" if len(shown) <= 20 else ""
            look = {"linestyle": dashes, "marker": marker, "markersize": 3}
            _line(axes, shown, color=_COLOURS[colour], label=readable(name)[:60], **look)
        axes.set(xlabel="step", ylabel="loss per token (nats)")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    ends = {name: points[-1] for name, points in lines.items()}
    best = min(ends, key=lambda name: ends[name][1])
    caption = (
        f"Loss per token in nats, {what}, of {len(lines)} runs; the lowest at its end is "
        f"{ends[best][1]:.3f} at step {ends[best][0]:,}, with {readable(best)}"
    )
    return Drawn(_svg(f"compared-{key}", draw, caption), f"{caption}.")


def step_seconds(training: Training) -> Drawn | None:
    """Seconds of each step."""
    points = training.points("seconds")
    if len(points) < 2:
        return None
    middle = sorted(value for _, value in points)[len(points) // 2]

    def draw(axes: Axes) -> None:
        _line(axes, points, color=_COLOURS["trained"], linewidth=1)
        # The first step takes many times as long as all others, and a few wait for a checkpoint.
        axes.set_ylim(0, max(1e-6, 3 * middle))
        axes.axhline(middle, label=f"median, {middle:.3g} s", linestyle="--", **_REFERENCE)
        axes.set(xlabel="step", ylabel="seconds per step")
        axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))

    over = sum(value > 3 * middle for _, value in points)
    caption = f"Seconds per step: the median is {middle:.3g}"
    if over:
        caption += f"; {over:,} of {len(points):,} steps took more than three times as long"
    return Drawn(_svg("seconds", draw, caption), f"{caption}.")


def lengths(seconds: Sequence[float], videos: int, clip: float | None) -> Drawn | None:
    """How long the videos are: of those whose headers were read.

    Args:
        seconds: their lengths.
        videos: how many there are in all.
        clip: seconds of a clip, where that is known.
    """
    if not seconds:
        return None

    def draw(axes: Axes) -> None:
        axes.hist(seconds, bins=min(30, max(5, len(seconds) // 4)), color=_COLOURS["trained"])
        if clip:
            axes.axvline(clip, label=f"a clip, {clip:.3g} s", linestyle="--", **_REFERENCE)
        axes.set(xlabel="seconds", ylabel="videos")
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))

    ordered = sorted(seconds)
    middle = ordered[len(ordered) // 2]
    caption = (
        f"Length of the videos: {ordered[0]:.3g} to {ordered[-1]:.3g} s, the median is "
        f"{middle:.3g} s"
    )
    if len(seconds) < videos:
        caption += f"; of {len(seconds):,} of the {videos:,} videos, spread over all of them"
    return Drawn(_svg("lengths", draw, caption), f"{caption}.")


def per_frame(metrics: dict[str, Any], measure: str, unit: str, frame: str) -> Drawn | None:
    """A measure of the generated frames, one by one, with the references.

    Args:
        metrics: what the evaluation wrote.
        measure: ``psnr`` or ``ssim``.
        unit: of it.
        frame: what a frame is called.
    """
    key, generated = f"{measure}_per_frame", metrics["generated"]
    found = {name: generated[name][key] for name in SERIES if (generated.get(name) or {}).get(key)}
    if not found:
        return None
    first = metrics.get("condition_frames") or 0

    def draw(axes: Axes) -> None:
        _series(axes, found, first + 1)
        axes.set(xlabel=frame, ylabel=f"{measure.upper()}{unit and f' ({unit})'}")

    caption = f"{measure.upper()} of each new {frame}, mean over the clips"
    return Drawn(_svg(measure, draw, caption), f"{caption}; higher is better.")


def per_latent_frame(forced: dict[str, Any]) -> Drawn | None:
    """The loss of the tokens of each latent frame, with the true tokens before them given."""
    found = {
        name: [row["loss"] for row in forced[name]["per_latent_frame"]]
        for name in SERIES
        if (forced.get(name) or {}).get("per_latent_frame")
    }
    if not any(len(values) > 1 for values in found.values()):
        return None

    def draw(axes: Axes) -> None:
        _series(axes, found, 1)
        axes.set(xlabel="latent frame", ylabel="loss per token (nats)")

    caption = "Loss per token of each latent frame, with the true tokens before it given"
    return Drawn(_svg("latent", draw, caption), f"{caption}; lower is better.")


def _series(axes: Axes, found: dict[str, list[float]], first: int) -> None:
    for name, values in found.items():
        label, style = SERIES[name]
        points = list(enumerate(values, first))
        marker = "o" if len(points) <= 40 else ""
        look = {"linestyle": style, "marker": marker, "markersize": 3}
        _line(axes, points, color=_COLOURS[name], label=label, **look)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))


def _sentence(parts: list[str]) -> str:
    text = "; ".join(parts)
    return text[:1].upper() + text[1:] + "." if text else ""


def _line(axes: Axes, points: Sequence[tuple[int, float | None]], **look: Any) -> None:
    kept = _thinned([(x, y) for x, y in points if y is not None and math.isfinite(y)])
    axes.plot([x for x, _ in kept], [y for _, y in kept], **look)


def _thinned(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """As many points as can be seen: of each group the lowest and the highest, in their order."""
    if len(points) <= _POINTS:
        return points
    size = -(-len(points) // (_POINTS // 2))
    kept = []
    for start in range(0, len(points), size):
        group = points[start : start + size]
        ends = {min(group, key=lambda p: p[1]), max(group, key=lambda p: p[1])}
        kept += sorted(ends)
    return kept


def _smooth(points: list[tuple[int, float]]) -> list[tuple[int, float]]:
    """Means of groups of steps."""
    good = [point for point in points if math.isfinite(point[1])]
    size = -(-len(good) // 60)
    groups = [good[start : start + size] for start in range(0, len(good), size)]
    return [(group[len(group) // 2][0], sum(y for _, y in group) / len(group)) for group in groups]


def _svg(name: str, draw: Any, caption: str) -> str:
    """What ``draw`` puts on axes, as an element for the page; ``name`` is its own on the page."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(_WIDTH, _HEIGHT), layout="constrained")
        figure.patch.set_alpha(0)
        axes = figure.subplots()
        axes.patch.set_alpha(0)
        draw(axes)
        handles, labels = axes.get_legend_handles_labels()
        if handles:
            figure.legend(handles, labels, loc="outside lower center", ncols=2)
        buffer = io.BytesIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return inline(buffer.getvalue(), name, caption)


def inline(svg: bytes, name: str, caption: str) -> str:
    """A file of matplotlib's as an element among others of a page.

    Its names get a beginning of their own, or go where nothing refers to them; what holds for all
    of a page goes as well; colours become variables of the page.
    """
    root = ElementTree.fromstring(svg)  # noqa: S314 - made by matplotlib just now
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}metadata", f"{{{_SVG}}}style"):
                parent.remove(child)
    used = set(re.findall(r'"#([^"]+)"|url\(#([^)]+)\)', svg.decode()))
    names = {one or other for one, other in used}
    for element in root.iter():
        _rename(element, names, name)
    for size in ("width", "height"):
        del root.attrib[size]
    root.set("role", "img")
    root.set("aria-label", readable(caption))
    ElementTree.register_namespace("", _SVG)
    text = ElementTree.tostring(root, encoding="unicode")
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, f"var({variable})")
    return text.replace(f' xmlns="{_SVG}"', "")


def _rename(element: ElementTree.Element, names: set[str], name: str) -> None:
    own = element.attrib.pop("id", None)
    if own in names:
        element.set("id", f"{name}-{own}")
    link = element.attrib.pop(_XLINK, None)
    if link:
        element.set("href", f"#{name}-{link[1:]}")
    for key, value in element.attrib.items():
        element.set(key, re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", value))
