"""What a video token is: latent shapes, the FSQ code and the special ids.

Pure arithmetic without torch, shared by the login node (to check sizes before a
job is queued) and the workers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Annotated

from cosmos_hpc.utils.annotations import Checked, InWords

#: Levels of the finite scalar quantiser of Cosmos' discrete tokenizers. The first level is the
#: least significant digit of an id.
FSQ_LEVELS = (8, 8, 8, 5, 5, 5)
#: Number of ids that the quantiser can produce.
NUM_IDS = math.prod(FSQ_LEVELS)
#: Special ids, which are read but never predicted.
BEGIN_OF_VIDEO, PADDING = NUM_IDS, NUM_IDS + 2
#: Rows of the embedding of a prompt: its tokens, and zeros after them.
TEXT_POSITIONS = 512
#: (time, height, width) factors of the two published tokenizers.
COMPRESSIONS = ((8, 16, 16), (4, 8, 8))


def _published(value: tuple[int, int, int]) -> tuple[int, int, int]:
    if value not in COMPRESSIONS:
        known = " or ".join(str(list(c)) for c in COMPRESSIONS)
        raise ValueError(f"{list(value)} is not a tokenizer's compression; use {known}")
    return value


#: (time, height, width) factors of a published tokenizer, as a setting.
Compression = Annotated[
    tuple[int, int, int],
    Checked(_published),
    InWords(" or ".join(f"`{list(factors)}`" for factors in COMPRESSIONS)),
]

#: Hub repository of the tokenizer for each compression.
TOKENIZERS = {
    (8, 16, 16): "nvidia/Cosmos-1.0-Tokenizer-DV8x16x16",
    (4, 8, 8): "nvidia/Cosmos-0.1-Tokenizer-DV4x8x8",
}


def latent_shape(
    frames: int, height: int, width: int, compression: Sequence[int]
) -> tuple[int, int, int]:
    """Shape ``(T, H, W)`` of the tokens of a clip; they are flattened with W fastest.

    The tokenizers are causal in time: the first frame has a latent frame of its own, and every
    further ``compression[0]`` frames share one.

    Raises:
        ValueError: the clip's size is not one that the tokenizer divides; the message says
            which number is wrong and names the nearest right ones.
    """
    time, rows, columns = compression
    if frames < 1 or (frames - 1) % time:
        below = max(1, (frames - 1) // time * time + 1)
        raise ValueError(
            f"frames={frames} is not {time}k+1; the nearest are {below} and {below + time}"
        )
    for name, size, factor in (("height", height, rows), ("width", width, columns)):
        if size < factor or size % factor:
            below = max(factor, size // factor * factor)
            raise ValueError(
                f"{name}={size} is not a multiple of {factor}; the nearest are "
                f"{below} and {below + factor}"
            )
    return 1 + (frames - 1) // time, height // rows, width // columns
