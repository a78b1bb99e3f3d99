"""The sections of a recipe for what comes after the training: samples, and their scores."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from cosmos_hpc.utils.annotations import (
    InWords,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
)
from cosmos_hpc.utils.settings import PathText, Section

#: Frames that a sample is conditioned on where nothing is said: what NVIDIA tests its models with.
USUAL_CONDITION_FRAMES = 9

#: A function: ``module:function``, or ``path/to/file.py:function``.
FunctionName = Annotated[
    str,
    Meta(pattern=r"^[^:\s]+:[A-Za-z_][A-Za-z0-9_]*\Z"),
    InWords("`module:function` or `path/to/file.py:function`"),
]


class Generate(Section, frozen=True, kw_only=True):
    """Samples that a model continues.

    Attributes:
        input: what to generate from: a picture, a video, a folder of these, or a ``.jsonl`` or
            ``.txt`` list of them. A run with it has no training: it generates from the weights that
            ``train.init_from`` names. None: held-out clips of the run, after its training.
        prompt: text for an ``input`` that is one picture or video, in models with text.
        actions: JSON file with a list of actions, one per step, for an ``input`` that is one
            picture, in models with actions. None: each entry of a list names its own.
        action_stats: JSON file with ``shift`` and ``scale``, which bring actions of an ``input`` to
            the scale of those that the model was trained on; filled in where the run that trained
            it has made one.
        clips: held-out clips to generate from, each of another video as long as there are enough.
        samples: different samples of each clip or input.
        condition_frames: true frames that a sample begins with: the first ones of a held-out clip,
            the last ones of a video of ``input``; of a picture always 1. The number is 1 plus a
            multiple of the frames in one latent frame; None: 9, or as many as leave one to
            generate.
        frames: frames of a sample, with those that it begins with; None: those of a clip. A longer
            sample is made piece by piece, each of which begins with the last frames of the one
            before.
        seconds: length of a sample, instead of ``frames``, at the frame rate of the video.
        temperature: how freely tokens are drawn: 1 follows the model's probabilities, less prefers
            likely tokens, 0 always takes the likeliest.
        top_p: tokens are drawn from the likeliest ones whose probabilities add up to this: 0 is the
            likeliest alone, 1 all.
        seed: seed of all samples, each of which has random numbers of its own that follow from it.
        batch_size: samples that a GPU generates at the same time; in bf16, the tokens may depend on
            it. None: the plan chooses, 8 or as many as fit.
        tasks: array tasks that share the samples; 0: no samples are made. None: the plan chooses.
        initial: generate each held-out clip also from the weights that the training began with, to
            compare.
        guard: a function ``guard(prompt, frames)`` that may refuse a sample: it returns a text that
            says why, or else returns None. It is given the prompt (or None) and frames (uint8 ``[T,
            H, W, 3]``), first those that the sample begins with, then the sample's own.
    """

    input: PathText | None = None
    prompt: str | None = None
    actions: PathText | None = None
    action_stats: PathText | None = None
    clips: PositiveInt = 8
    samples: PositiveInt = 1
    condition_frames: PositiveInt | None = None
    frames: PositiveInt | None = None
    seconds: PositiveFloat | None = None
    temperature: NonNegativeFloat = 1.0
    top_p: Annotated[float, Meta(ge=0, le=1)] = 0.8
    seed: int = 0
    batch_size: PositiveInt | None = None
    tasks: NonNegativeInt | None = None
    initial: bool = True
    guard: FunctionName | None = None

    def _fits_together(self) -> None:
        if self.frames and self.seconds:
            raise ValueError("frames and seconds say the same; set one of them")
        for name in ("prompt", "actions"):
            if getattr(self, name) is not None and self.input is None:
                raise ValueError(f"{name} goes with input, the picture or video that it is for")
        if self.input is not None and self.tasks == 0:
            raise ValueError("tasks=0 generates nothing, and input is what to generate from")
        if self.prompt is not None and not self.prompt.strip():
            raise ValueError("prompt is blank; say what is to be seen")

    @property
    def guard_file(self) -> str | None:
        """The file that holds the guard; None where it is in a module, or there is none."""
        where = (self.guard or "").rpartition(":")[0]
        return where if where.endswith(".py") else None

    def given_frames(self, clip_frames: int, compression: int) -> int:
        """Frames of the condition, for clips of this length and a tokenizer's temporal compression.

        Returns:
            0 where a clip is one frame: nothing is left to generate.

        Raises:
            ValueError: ``condition_frames`` is not possible; names what is.
        """
        possible = range(1, clip_frames, compression)
        if self.condition_frames is None:
            usual = [n for n in possible if n <= USUAL_CONDITION_FRAMES]
            return usual[-1] if usual else 0
        if self.condition_frames not in possible:
            known = ", ".join(map(str, possible)) or "none"
            raise ValueError(
                f"condition_frames={self.condition_frames} does not fill complete latent frames of "
                f"a clip of {clip_frames} and leave some to generate; possible: {known}"
            )
        return self.condition_frames


class Evaluate(Section, frozen=True, kw_only=True):
    """Scores on held-out clips.

    Attributes:
        clips: held-out clips (with actions: pairs of frames) whose tokens are predicted and
            compared with the true ones.
    """

    clips: PositiveInt = 64
