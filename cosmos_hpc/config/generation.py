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
        input: picture, video, folder of these, or ``.jsonl`` or ``.txt`` list of them, to generate
            from. A run with it has no training: it generates from the weights that
            ``train.init_from`` names. None: held-out clips of the run, after its training.
        prompt: for an ``input`` that is one picture or video, in models with text.
        actions: JSON file with a list of actions, one per step, for an ``input`` that is one
            picture, in models with actions. None: each entry of a list names its own.
        action_stats: JSON file with ``shift`` and ``scale``, by which actions of an ``input`` are
            made like those that the model was trained on; filled in where its run has made one.
        clips: held-out clips to generate from, each of another video as long as there are enough.
        samples: different samples of each clip or input.
        condition_frames: true frames that a sample begins with: the first ones of a held-out clip,
            the last ones of a video of ``input``. A picture is one. The number is 1 plus a multiple
            of the frames in one latent frame; None: 9, or as many as leave one to generate.
        frames: of a sample, condition included; None: those of a clip. Beyond a clip, the last
            frames are the condition of a next one.
        seconds: the length of a sample instead of ``frames``, at the frame rate of the video.
        temperature: at least 0; 0 takes the likeliest token.
        top_p: from 0, the likeliest token alone, to 1, all tokens.
        seed: of all samples; each has random numbers of its own, which follow from it.
        batch_size: samples that a GPU generates at the same time; in bf16, tokens may depend on it.
            None: the plan chooses, 8 or as many as fit.
        tasks: array tasks that share the samples; 0: none are generated. None: the plan chooses.
        initial: generate a sample of each held-out clip from the weights that the training began
            from as well, to compare with.
        guard: a function ``guard(prompt, frames)`` that is given the prompt (or None) and frames
            (uint8 ``[T, H, W, 3]``), first of the condition and then of the sample, and refuses
            with a text that says why, or returns None.
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
        clips: held-out clips (pairs of frames, with actions) whose tokens are predicted.
    """

    clips: PositiveInt = 64
