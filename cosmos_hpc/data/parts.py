"""The parts of a data set."""

#: Parts, and what the files of each are called in NVIDIA's guide and in the Bridge layout.
FOLDERS = {"train": "train", "validation": "val", "test": "test"}


def part_named(name: str) -> str | None:
    """The part that people call so; None where there is none."""
    names = {**{part: part for part in FOLDERS}, **{short: part for part, short in FOLDERS.items()}}
    return names.get(name)
