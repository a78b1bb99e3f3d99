"""What pages have in common: their templates, what these call, and what no page may show."""

from __future__ import annotations

import base64
import datetime
import hashlib
import os
import re
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from cosmos_hpc.config.clusters import PASSED_ON
from cosmos_hpc.utils.html import readable
from cosmos_hpc.utils.progress import duration
from cosmos_hpc.worker.report import lanes

#: Rows of the tables of attempts, and of clips.
ROWS = 60
#: Values of these variables must not be on a page, wherever they come from.
_SECRETS = [name for name in PASSED_ON if name.endswith(("_TOKEN", "_KEY"))]
_SHAPE_OF_SECRETS = re.compile(r"hf_[A-Za-z0-9]{20,}")


def fill(template: str, **values: Any) -> str:
    """A page from a template of this folder, with the time, and without secrets.

    Args:
        template: name of its file.
        values: by the names that it uses.
    """
    made = datetime.datetime.now(datetime.timezone.utc)
    return _without_secrets(_environment().get_template(template).render(made=made, **values))


def _environment() -> Environment:
    """The templates of this folder, and what they call."""
    found = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # What is no text is left to Jinja; of texts, what no page can show is written out.
        finalize=lambda value: readable(value) if type(value) is str else value,
    )
    found.filters.update(duration=duration, utc=lanes.utc)
    found.filters["number"] = number
    found.filters["short"] = _short
    found.globals["script_hash"] = _hash_of(found, "script.js.j2")
    found.globals["rows"] = ROWS
    return found


def _hash_of(templates: Environment, name: str) -> str:
    """What a browser compares the one script of the page with before it runs it."""
    script = templates.get_template(name).render()
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def number(value: float | None, digits: int = 2) -> str:
    """A number as a person reads it; a dash where there is none."""
    return "–" if value is None else f"{value:,.{digits}f}"  # noqa: RUF001


def _short(text: object, most: int = 300) -> str:
    """The text, or its beginning and its end."""
    whole = str(text)
    if len(whole) <= most:
        return whole
    return f"{whole[: most * 2 // 3]} … {whole[-(most // 3) :]}"


def _without_secrets(page: str) -> str:
    """A page without values of secrets that are set here, and without what looks like one."""
    for value in (os.environ.get(name, "") for name in _SECRETS):
        if len(value) >= 8:
            page = page.replace(value, "(secret)")
    return _SHAPE_OF_SECRETS.sub("(secret)", page)
