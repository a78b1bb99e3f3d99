"""Small pieces of HTML, in which all text is escaped."""

from __future__ import annotations

import base64
import html
import re
from collections.abc import Iterable, Sequence

#: What HTML cannot hold, halves of surrogate pairs, which stand for bytes that are not UTF-8, and
#: characters that turn the direction of a line or are not to be seen: a name could pose as another.
_UNREADABLE = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff"
    "\ufdd0-\ufdef\ufffe\uffff]"
)

#: Of tables, in a notebook that is light or dark.
_TABLE = "border-collapse:collapse;text-align:left"
_CELL = "padding:.2em .8em .2em 0;text-align:left;vertical-align:top"


def readable(text: object) -> str:
    r"""Text that any page can show: bytes that are not UTF-8 as ``\xff``, others as ``\u202e``."""
    return _UNREADABLE.sub(_as_escape, str(text))


def _as_escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    if 0xDC80 <= code <= 0xDCFF:  # Python's stand-in for a byte
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def escaped(text: object) -> str:
    """Text for between tags and for quoted attributes."""
    return html.escape(readable(text))


def table(headings: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "") -> str:
    """A table of texts.

    Args:
        headings: of the columns; none for rows that each begin with their own.
        rows: their cells; the first of each is its heading.
        caption: what the table is of.
    """
    parts = [f'<table style="{_TABLE}">']
    if caption:
        parts.append(f'<caption style="{_CELL};font-weight:bold">{escaped(caption)}</caption>')
    if headings:
        cells = "".join(f'<th scope="col" style="{_CELL}">{escaped(h)}</th>' for h in headings)
        parts.append(f"<thead><tr>{cells}</tr></thead>")
    parts.append("<tbody>")
    for first, *others in rows:
        cells = "".join(f'<td style="{_CELL}">{escaped(cell)}</td>' for cell in others)
        parts.append(f'<tr><th scope="row" style="{_CELL}">{escaped(first)}</th>{cells}</tr>')
    parts.append("</tbody></table>")
    return "".join(parts)


def folded(title: str, content: str) -> str:
    """HTML that unfolds below its title."""
    return f"<details><summary>{escaped(title)}</summary>{content}</details>"


def data_uri(data: bytes, kind: str) -> str:
    """A file as an address that holds it; ``kind`` is its media type."""
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"
