"""Files of recipes, as plain data: quick to list, and not checked yet."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cosmos_hpc.errors import RequestError
from cosmos_hpc.utils.mappings import flatten, load_mapping, merge


def recipes_folder() -> Path:
    """Where the shipped recipes lie: inside the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    return next(p for p in (package / "recipe_files", package.parent / "recipes") if p.is_dir())


def recipe_names() -> list[str]:
    """Names of the shipped recipes, sorted."""
    return sorted(p.stem for p in recipes_folder().glob("*.yaml"))


def read_recipe(name: str, above: tuple[str, ...] = ()) -> dict[str, Any]:
    """A recipe file as plain data, on top of the recipe that its ``base`` names.

    Args:
        name: of a shipped recipe, or path of a file that ends in ``.yaml``.
        above: recipes that have this one as their base.

    Raises:
        RequestError: there is none, it is its own base, or it is not a mapping in YAML.
    """
    if name in above:
        raise RequestError(f"recipe {name} is its own base, through {' and '.join(above)}")
    own = name.endswith((".yaml", ".yml"))
    path = Path(name) if own else recipes_folder() / f"{name}.yaml"
    if not own and name not in recipe_names():
        from cosmos_hpc.utils.settings import nearest

        known = recipe_names()
        hint = nearest(name, known) or f"; there are {', '.join(known)}"
        raise RequestError(f"unknown recipe {name!r}{hint}")
    data = load_mapping(path)
    base = data.pop("base", None)
    data["name"] = path.stem
    return merge(read_recipe(str(base), (*above, name)), data) if base else data


def settings_in(name: str) -> dict[str, Any]:
    """What the file of a recipe sets, by dotted name and as written, its bases included."""
    return flatten(read_recipe(name))
