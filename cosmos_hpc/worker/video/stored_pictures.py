"""Videos whose frames are compressed pictures in the rows of a Parquet file."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from cosmos_hpc.worker.video.frames import Shown
from cosmos_hpc.worker.video.problems import VideoError
from cosmos_hpc.worker.video.spans import Span, exact
from cosmos_hpc.worker.video.streams import MAX_PIXELS

#: How files of each kind of picture begin, and FFmpeg's decoder of them.
_KINDS = {b"\x89PNG": "png", b"\xff\xd8": "mjpeg", b"RIFF": "webp", b"BM": "bmp"}
#: Rows that are read at a time.
_BATCH = 64


class StoredPictures:
    """The pictures of an episode, as :class:`~cosmos_hpc.worker.video.frames.Video` gives frames.

    Args:
        path: of a Parquet file with ``episode_index`` and ``frame_index`` in each row.
        tick: called for every decoded picture.
        span: names the episode, the column of the pictures and their rate; they are bytes of PNG,
            JPEG, WebP or BMP, or as the ``datasets`` library has them a struct with ``bytes``.

    Raises:
        VideoError: the file is no Parquet, or has no such column.
    """

    #: As of a video: a stream of its own, nothing hidden, and all of it is there.
    stream = None
    hidden = (0, 0, 0, 0)
    complete = False

    def __init__(self, path: Path, tick: Callable[[], None] | None, span: Span) -> None:
        self._path, self._tick, self._span = path, tick or (lambda: None), span
        self.rate = exact(span.rate or 1)
        self.problems: list[str] = []
        self.end = Fraction(0)

    def __enter__(self) -> StoredPictures:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing is kept open."""

    def look_at_the_end(self) -> None:
        """Every row has been read."""

    def restart(self) -> None:
        """Every call of :meth:`frames_from` reads again."""

    def time_of(self, pts: int) -> Fraction:
        """When a picture is shown, by its number."""
        return pts / self.rate

    def frames_from(self, moment: Fraction) -> Iterator[Shown]:
        """Pictures from the one that is shown at ``moment`` on."""
        first = int((moment + self._span.slack / 2) * self.rate)
        for number, content in itertools.islice(enumerate(self._contents()), first, None):
            self._tick()
            try:
                frame = _decoded(content)
            except (av.error.FFmpegError, VideoError) as e:
                self.problems.append(f"picture {number}: {getattr(e, 'strerror', None) or e}")
                return
            self.end = (number + 1) / self.rate
            yield Shown(frame, number / self.rate, self.end, number, Fraction(1), None)

    def _contents(self) -> Iterator[Any]:
        """Bytes of the pictures, in their order."""
        import pyarrow as pa
        import pyarrow.dataset as ds

        column, due = str(self._span.column), 0
        try:
            data = ds.dataset(str(self._path), format="parquet")
            chosen = ds.field("episode_index") == self._span.episode
            rows = data.to_batches(
                columns=["frame_index", column],
                filter=chosen,
                batch_size=_BATCH,
                batch_readahead=1,
                fragment_readahead=1,
                use_threads=False,
            )
            for batch in rows:
                for number, picture in zip(*(c.to_pylist() for c in batch.columns), strict=True):
                    if number != due:
                        raise VideoError("unreadable", f"it has no picture {due}")
                    due += 1
                    yield picture.get("bytes") if isinstance(picture, dict) else picture
        except (pa.ArrowException, KeyError) as e:
            reason = str(e).partition("\n")[0]
            raise VideoError("unreadable", f"{self._path.name} cannot be read: {reason}") from None


def _decoded(content: Any) -> av.VideoFrame:
    """The picture in some bytes.

    Raises:
        VideoError: they are none that is known, or of absurd size.
        av.error.FFmpegError: they are damaged.
    """
    if not isinstance(content, bytes) or not content:
        raise VideoError("unreadable", "it holds no bytes")
    name = next((kind for begin, kind in _KINDS.items() if content.startswith(begin)), None)
    if name is None:
        raise VideoError("unreadable", "it is no PNG, JPEG, WebP or BMP")
    codec = av.CodecContext.create(name, "r")
    codec.options = {"max_pixels": str(MAX_PIXELS)}
    codec.thread_count = 1
    frames = [*codec.decode(av.Packet(content)), *codec.decode(None)]
    if len(frames) != 1 or not isinstance(frames[0], av.VideoFrame):
        raise VideoError("unreadable", "it is damaged")
    return frames[0]
