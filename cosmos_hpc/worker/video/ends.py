"""Whether a file ends where its last packet does, or before.

Durations and numbers of frames in headers say nothing of that: trims, held frames and parts of
longer films are sound and disagree with them. What counts is whether the file is cut within a part
that holds packets, or before one that the container points at.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

import av

from cosmos_hpc.worker.video.spans import WHOLE, Span

#: Elements of Matroska: the head of a file, the whole, groups of packets, and what holds none of
#: them: tables of times, tags, attachments, chapters, tracks, the head, where to find these,
#: padding, and a checksum.
_EBML, _SEGMENT, _CLUSTER = 0x1A45DFA3, 0x18538067, 0x1F43B675
_TABLES = {
    *(0x1C53BB6B, 0x1254C367, 0x1941A469, 0x1043A770, 0x1654AE6B, 0x1549A966, 0x114D9B74),
    *(0xEC, 0xBF),
}
#: Bytes of a packet of MPEG-TS, and the first of them.
_TRANSPORT, _SYNC = 188, 0x47
#: Kinds of tags of FLV: sound, video, data; and the bytes of a tag before its content.
_FLV_TAGS, _FLV_VIDEO, _FLV_HEAD = (8, 9, 18), 9, 11
#: Bytes of a page of Ogg before its table of segments, and of the longest page.
_PAGE_HEAD, _PAGE = 27, 65307
#: What the object of ASF begins with that holds the packets, and less than it has where it was
#: sent and nobody knew how long it was to be.
_ASF_DATA, _ASF_LEAST = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c"), 100
#: Bytes of the longest head of an element.
_HEAD = 12
#: Parts that are looked at, of a file that seems to have ever more of them.
_MAX_PARTS = 1 << 20


def is_cut(
    path: Path,
    container: av.container.InputContainer,
    stream: av.video.stream.VideoStream,
    last: int | None,
    span: Span = WHOLE,
) -> bool:
    """Whether a file, read to its end, lacks packets of a stream that should follow.

    Args:
        last: time for decoding of the last packet that was read, in the stream's time base.
        span: which bytes of the file are the video's.

    Raises:
        OSError: the file cannot be read.
    """
    entries, name, size = stream.index_entries, container.format.name, span.bytes_of(path)
    if name.startswith("mov"):
        # Its index has every packet, and is in order of these times. FFmpeg stops as well where
        # packets of another stream are beyond the end of the file.
        for number in range(len(entries) - 1, -1, -1):
            entry = entries[number]
            if last is not None and entry.timestamp <= last:
                return False
            if not entry.is_discard:
                return True
        return False
    last_known = entries[-1].pos if len(entries) else 0
    with span.open(path) as f:
        if name.startswith("matroska"):
            return _matroska_is_cut(f, size, last_known)
        if name == "avi":
            more = stream.frames > (-1 if last is None else last) + 1
            return _avi_is_cut(f, size) or (more and _is_blank(f, last_known))
        if name == "mpegts":
            return _transport_is_cut(f, size, stream.id)
        if name == "flv":
            known = [entry.pos for entry in entries if entry.pos < size]
            return _flv_is_cut(f, size, known[-1] if known else 0)
        if name == "ogg":
            return _ogg_is_cut(f, size, stream.index)
        if name == "asf":
            return _asf_is_cut(f, size)
    return False


def _matroska_is_cut(f: BinaryIO, size: int, cluster: int) -> bool:
    """Whether a cluster is cut or damaged, or the file ends between two before its segment does."""
    place, end, end_of_cluster = 0, None, 0
    for _ in range(_MAX_PARTS):
        head = _element(f, place)
        if head is None:
            # The end, or less than the head of a part before it, or something that is no part.
            return end is not None and place < end
        number, content, length = head
        if end is not None and place >= end and number not in (_EBML, _SEGMENT):
            return False  # behind the segment there is no film
        after = content + length if length is not None else None
        if number == _SEGMENT:
            end = after
            at_cluster = _element(f, cluster) if cluster >= content else None
            place = cluster if at_cluster and at_cluster[0] == _CLUSTER else content
        elif number == _CLUSTER and (after is None or after <= size):
            place, end_of_cluster = content, after or 0
        elif after is None:
            return False
        elif after > size or place < end_of_cluster < after:
            return number not in _TABLES
        else:
            place = after
    return False


def _element(f: BinaryIO, place: int) -> tuple[int, int, int | None] | None:
    """Number of an EBML element, where its content begins, and its bytes; None: not known."""
    f.seek(place)
    head = f.read(_HEAD)
    if not head or not head[0] >> 4:
        return None
    width = 9 - head[0].bit_length()
    if len(head) <= width or not head[width]:
        return None
    number = int.from_bytes(head[:width], "big")
    bits = 9 - head[width].bit_length()
    if len(head) < width + bits:
        return None
    ones = (1 << 7 * bits) - 1
    length = int.from_bytes(head[width : width + bits], "big") & ones
    return number, place + width + bits, None if length == ones else length


def _avi_is_cut(f: BinaryIO, size: int) -> bool:
    """Whether a list of packets (``movi``) ends beyond the end of the file."""
    place = 0
    for _ in range(_MAX_PARTS):
        f.seek(place)
        head = f.read(12)
        if len(head) < 12:
            return False
        name, length, kind = struct.unpack("<4sI4s", head)
        if name == b"RIFF":
            place += 12
            continue
        if kind == b"movi" and name == b"LIST":
            # Written to a pipe, or by a recorder that did not finish: nobody knows.
            known = 4 <= length < 0xFFFFFFF0
            if not known or place + 8 + length > size:
                return known
        place += 8 + length + length % 2
    return False


def _is_blank(f: BinaryIO, place: int) -> bool:
    """Whether nothing but zeros is where the packet should be that follows one in an AVI file."""
    f.seek(place + 4)
    length = int.from_bytes(f.read(4), "little")
    f.seek(place + 8 + length + length % 2)
    return f.read(8) == bytes(8)


def _transport_is_cut(f: BinaryIO, size: int, stream: int) -> bool:
    """Whether the file ends within a packet of the transport that is one of the stream's."""
    rest = size % _TRANSPORT
    f.seek(max(0, size - rest - _TRANSPORT))
    tail = f.read()
    whole, part = tail[:_TRANSPORT], tail[_TRANSPORT:]
    if len(part) < 3 or whole[0] != _SYNC or part[0] != _SYNC:
        return False
    return int.from_bytes(part[1:3], "big") & 0x1FFF == stream


def _flv_is_cut(f: BinaryIO, size: int, place: int) -> bool:
    """Whether the file ends within a tag of video; ``place`` is that of a tag, 0 of none."""
    if not place:
        f.seek(5)
        place = int.from_bytes(f.read(4), "big") + 4
    for _ in range(_MAX_PARTS):
        f.seek(place)
        head = f.read(_FLV_HEAD)
        kind = head[0] & 0x1F if head else None
        if kind not in _FLV_TAGS:
            return False
        after = place + _FLV_HEAD + int.from_bytes(head[1:4], "big")
        if len(head) < _FLV_HEAD or after > size:
            return kind == _FLV_VIDEO
        place = after + 4
    return False


def _ogg_is_cut(f: BinaryIO, size: int, stream: int) -> bool:
    """Whether the file ends within a page of a stream, of which the first pages tell the number."""
    f.seek(max(0, size - _PAGE))
    tail = f.read()
    page = tail[max(0, tail.rfind(b"OggS")) :]
    whole = _PAGE_HEAD + page[26] + sum(page[27 : 27 + page[26]]) if len(page) > 26 else 0
    if page[:4] != b"OggS" or len(page) >= whole > 0:
        return False
    place = 0
    for _ in range(stream):
        f.seek(place + 26)
        table = f.read(1)
        place += _PAGE_HEAD + sum(table) + sum(f.read(sum(table)))
    f.seek(place)
    return f.read(18)[14:] == page[14:18]


def _asf_is_cut(f: BinaryIO, size: int) -> bool:
    """Whether the object that holds the packets ends beyond the end of the file."""
    place = 0
    for _ in range(_MAX_PARTS):
        f.seek(place)
        name, length = f.read(16), int.from_bytes(f.read(8), "little")
        if name == _ASF_DATA:
            return length >= _ASF_LEAST and place + length > size
        if length < 24:
            return False
        place += length
    return False
