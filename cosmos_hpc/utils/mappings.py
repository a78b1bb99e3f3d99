"""YAML files as plain mappings, and what can be done with those; without the checks of types."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from cosmos_hpc.errors import RequestError

#: In C where PyYAML was built with that, many times as fast.
_SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class _Loader(_SafeLoader):
    """PyYAML's safe loader, which reads ``5e-5`` and ``24:00:00`` as YAML 1.2 does."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    """A mapping whose keys all differ; PyYAML would silently keep the last."""
    keys: list[Any] = []
    for node_of_key, _ in node.value:
        key = loader.construct_object(node_of_key, deep=True)
        if key in keys:
            raise yaml.constructor.ConstructorError(
                None, None, f"{key!r} stands there twice", node_of_key.start_mark
            )
        keys.append(key)
    return loader.construct_mapping(node, deep=True)


_Loader.add_constructor("tag:yaml.org,2002:map", _mapping)
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?\d*|\.\d+)[eE][-+]?\d+$"),
    list("-+0123456789."),
)
# ``24:00:00`` is a text, not a number to the base of 60 as in YAML 1.1.
for _first in "0123456789":
    _Loader.yaml_implicit_resolvers[_first].insert(
        0, ("tag:yaml.org,2002:str", re.compile(r"^\d+(:\d+)+$"))
    )


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML.

    Raises:
        RequestError: the text is not YAML; says in which line of ``where``.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a subclass of SafeLoader
    # The latter of bytes that are not UTF-8, and of dates that are none, such as 2020-13-01.
    except (yaml.YAMLError, ValueError) as e:
        # PyYAML's name for a text, where that of a file would stand.
        said = re.sub(r'\s+in "<unicode string>",', " in", str(e)).replace("\n", ", ")
        raise RequestError(f"{where} is not valid YAML: {said}") from None


def load_mapping(path: Path) -> dict[str, Any]:
    """Read a YAML file that holds a mapping.

    Raises:
        RequestError: it cannot be read, is not YAML, or holds something else.
    """
    try:
        value = parse_yaml(path.read_text(), str(path))
    except (OSError, UnicodeDecodeError) as e:
        raise RequestError(f"cannot read {path}: {e}") from None
    if not isinstance(value, dict) or not all(isinstance(k, str) for k in value):
        raise RequestError(f"{path} must hold a mapping of settings")
    return value


def merge(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` on top, mappings merged key by key."""
    merged = dict(base)
    for key, value in changes.items():
        old = merged.get(key)
        if isinstance(old, Mapping) and isinstance(value, Mapping):
            value = merge(old, value)
        merged[key] = value
    return merged


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one, with dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = value
    return flat
