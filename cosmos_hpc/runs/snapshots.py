"""The code that a run uses and its origin: a copy of the package, versions, git state."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from cosmos_hpc.config.recipe_files import recipes_folder
from cosmos_hpc.utils import files

_PACKAGES = [
    "cosmos-hpc",
    "nemo_run",
    "submitit",
    "huggingface_hub",
    "torch",
    "av",
    "nemo_toolkit",
    "megatron-core",
    "lightning",
    "wandb",
]

#: Of the files that a stage may need.
_SUFFIXES = (".py", ".sh", ".typed", ".yaml", ".j2")

#: Beside the snapshot of the package: runs one task with that snapshot.
LAUNCHER = "run_task.py"
_LAUNCHER_TEXT = '''"""Runs one task of one stage: python run_task.py SPEC TASK."""

import sys
import uuid

if __name__ == "__main__":
    from cosmos_hpc.worker.__main__ import main

    sys.exit(main(sys.argv[1:]))
'''


def snapshot_code(target: Path) -> str:
    """Copy this package and its recipes below ``target``, unless they are there already.

    Returns:
        A digest of the code, the name of the folder that holds the copy.
    """
    package = Path(__file__).resolve().parents[1]
    sources = {p.relative_to(package): p for p in package.rglob("*") if p.suffix in _SUFFIXES}
    # In a checkout the recipes lie beside the package.
    sources |= {Path("recipe_files", p.name): p for p in recipes_folder().glob("*.yaml")}
    digest = hashlib.sha256(_LAUNCHER_TEXT.encode())
    for place, path in sorted(sources.items()):
        digest.update(str(place).encode() + b"\0" + path.read_bytes())
    name = digest.hexdigest()[:12]
    if not (target / name).exists():
        temporary = target / f".{name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        for place, path in sources.items():
            copy = temporary / package.name / place
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, copy)
        (temporary / LAUNCHER).write_text(_LAUNCHER_TEXT)
        files.publish(temporary, target / name)
    return name


def git_state() -> dict[str, Any] | None:
    """Commit and changed files of the checkout that this package lies in; None outside one."""
    package = Path(__file__).resolve().parents[1]

    def git(*args: str) -> str:
        command = ["git", "-C", str(package), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    try:
        # In site-packages below some other repository the files are not tracked.
        git("ls-files", "--error-unmatch", __file__)
        changed = [line[3:] for line in git("status", "--porcelain").splitlines()]
        return {"commit": git("rev-parse", "HEAD").strip(), "changed": changed}
    except (OSError, subprocess.CalledProcessError):
        return None


def installed_versions() -> dict[str, str]:
    """Versions of the packages that a run depends on, without importing them."""
    import importlib.metadata  # takes longer than all else here

    versions = {"python": sys.version.split()[0]}
    for package in _PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
