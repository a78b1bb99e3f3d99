"""Checks an image: are the locked versions there, and are they what Python imports?

``check.py`` needs no GPU and imports nothing large; ``check.py --import`` imports all of it, for a
machine with a GPU and its driver.
"""

import importlib
import importlib.metadata
import importlib.util
import re
import sys
from pathlib import Path

import tomllib
from packaging.requirements import Requirement

HERE = Path(__file__).resolve().parent
#: Modules that the container may have copies of elsewhere, and what they belong to.
MODULES = {
    "av": "av",
    "megatron.core": "megatron-core",
    "nemo": "nemo-toolkit",
    "submitit": "submitit",
    "transformers": "transformers",
    "zarr": "zarr",
}
#: For submitting, which is not done in a container.
LOGIN_ONLY = {"docker", "leptonai"}


def find(name: str) -> Path:
    """A file beside this one, or of the checkout that this lies in."""
    return next(path for path in (HERE / name, HERE.parent / name) if path.exists())


def installed(name: str) -> str:
    """Version of a package."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def locked() -> list[str]:
    """What of the lock file is not there, or is hidden by something else."""
    problems = []
    for name, version in re.findall(r"^(\S+)==(\S+)", find("requirements.lock").read_text(), re.M):
        if installed(name) != version:
            problems.append(f"{name} is {installed(name)}, and not {version}")
    for module, package in MODULES.items():
        spec = importlib.util.find_spec(module)
        where = Path(str(spec.origin)).resolve() if spec and spec.origin else Path("nowhere")
        try:
            home = Path(str(importlib.metadata.distribution(package).locate_file(""))).resolve()
        except importlib.metadata.PackageNotFoundError:
            continue
        if home not in where.parents:
            problems.append(f"{module} comes from {where}, and not from {home}")
    return problems


def untested() -> list[str]:
    """What of the container's own is outside the ranges that the package is tested with."""
    project = tomllib.loads(find("pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    found = []
    for line in [*project["dependencies"], *extras["worker"], *extras["train"]]:
        wanted = Requirement(line)
        if wanted.name in LOGIN_ONLY | {"cosmos-hpc"}:
            continue
        version = installed(wanted.name)
        if version == "not installed" or not wanted.specifier.contains(version, prereleases=True):
            found.append(f"{wanted.name} is {version}; tested is {wanted.specifier}")
    return found


def main(arguments: list[str]) -> int:
    """Print what was found; 1 where the image cannot be used."""
    for line in untested():
        print(f"  note     {line}")
    problems = locked()
    for line in problems:
        print(f"  problem  {line}")
    if not problems:
        print("  ok       the locked packages are installed, and are what is imported")
    if arguments == ["--import"]:
        for module in ("torch", *MODULES, "nemo.collections.llm"):
            importlib.import_module(module)
        print("  ok       all of it can be imported")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
