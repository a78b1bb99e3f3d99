"""Fixtures of a real Slurm."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.slurm.lab import Lab, missing_programs


def _lab(accounting: bool = False, pyxis: str | None = None) -> Iterator[Lab]:
    missing = missing_programs(accounting, pyxis is not None)
    if missing or os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail(f"a Slurm for the tests needs root, and {missing} are not installed")
        pytest.skip(f"needs root and a Slurm; not installed: {', '.join(missing)}")
    # Short: sockets lie in it.
    folder = Path(tempfile.mkdtemp(prefix="lab-"))
    try:
        with Lab(folder, accounting, pyxis=pyxis) as lab:
            yield lab
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def lab() -> Iterator[Lab]:
    """A cluster without accounting."""
    yield from _lab()


@pytest.fixture(scope="session")
def accounting_lab() -> Iterator[Lab]:
    """A cluster with accounting."""
    yield from _lab(accounting=True)


@pytest.fixture(
    scope="module", params=["lab", "accounting_lab"], ids=["without accounting", "accounting"]
)
def any_lab(request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A cluster without, and one with accounting; each is booted once for all files."""
    lab: Lab = request.getfixturevalue(request.param)
    # What other files have left in the queue would count in this one, and what it leaves in them.
    lab.clear()
    yield lab
    lab.clear()


@pytest.fixture(scope="session")
def pyxis_lab() -> Iterator[Lab]:
    """A cluster with a pyxis that has all options."""
    yield from _lab(pyxis="0.20")


@pytest.fixture(scope="session")
def old_pyxis_lab() -> Iterator[Lab]:
    """A cluster with a pyxis without --container-env."""
    yield from _lab(pyxis="0.11")
