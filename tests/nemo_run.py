"""Programs with experiments of their own, and a search for secrets in what NeMo-Run keeps."""

from __future__ import annotations

import base64
import contextlib
import os
import re
import subprocess
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

from tests.conftest import CANARIES, REPOSITORY

#: Where nobody can make a folder.
CLOSED_HOME = {"HOME": "/dev/null/home"}

#: All that is missing of a run.
EXPERIMENT = """
import sys
from cosmos_hpc import nemo_run as cosmos

with cosmos.experiment(sys.argv[1], sys.argv[2].split(",")) as experiment:
    experiment.run(detach=True)
"""


def documented(beginning: str) -> str:
    """The block of Python in docs/nemo-run.md that begins so."""
    text = (REPOSITORY / "docs" / "nemo-run.md").read_text()
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    (found,) = (block for block in blocks if block.startswith(beginning))
    return str(found)


def run_program(
    text: str, *arguments: object, cwd: Path, env: dict[str, str], check: bool = True
) -> str:
    """Run a program in a folder, with ``NEMORUN_HOME`` in it; returns what it said."""
    program = cwd / "program.py"
    program.write_text(text)
    done = subprocess.run(
        [sys.executable, str(program), *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, **CLOSED_HOME, "NEMORUN_HOME": str(cwd / "home"), **env},
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def unpacked(content: bytes) -> Iterator[bytes]:
    """What NeMo-Run has packed in a file."""
    for packed in re.findall(rb"eJ[A-Za-z0-9_=+/-]{40,}", content):
        # Of a picture or video, in a page, a piece may look like it.
        with contextlib.suppress(zlib.error, ValueError):
            yield zlib.decompress(base64.urlsafe_b64decode(packed))


def assert_no_secrets(folder: Path, said: str = "") -> None:
    """The planted secrets are in no file of a folder, packed or not, nor in what was said."""
    files = [p for p in folder.rglob("*") if p.is_file() and not p.is_symlink()]
    assert any(p.name == "_CONFIG" for p in files)
    for path in files:
        content = path.read_bytes()
        for text in (content, *unpacked(content)):
            assert not any(secret.encode() in text for secret in CANARIES.values()), path
    assert not any(secret in said for secret in CANARIES.values())
