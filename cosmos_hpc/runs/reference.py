"""The settings that people write, each with what there is to know of it, from the typed models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from cosmos_hpc.config.clusters import OVERRIDE_PREFIX, Cluster
from cosmos_hpc.config.recipe_files import recipe_names, settings_in
from cosmos_hpc.config.recipes import Recipe
from cosmos_hpc.config.synonyms import SYNONYMS
from cosmos_hpc.errors import RequestError
from cosmos_hpc.runs.create import CHANGEABLE
from cosmos_hpc.utils.described import Described, describe, describe_sections
from cosmos_hpc.utils.settings import nearest

#: Of a cluster, what decides in which folder a run is looked for.
_OF_THE_FOLDER = f"{OVERRIDE_PREFIX}runs"


@dataclass(frozen=True)
class Setting:
    """A setting of recipes, or of cluster profiles.

    Attributes:
        described: its name, type, default, unit and description.
        changeable: whether a run may be continued with another value.
        recipes: what shipped recipes set it to, themselves or through their base, by recipe.
        kinds: of the cluster profiles that have it so; empty for settings of recipes.
    """

    described: Described
    changeable: bool
    recipes: Mapping[str, Any] = field(default_factory=dict)
    kinds: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """As it is written in an override."""
        return self.described.name

    @property
    def section(self) -> str:
        """Its name without the last part; empty for the recipe itself."""
        return self.name.rpartition(".")[0]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        own = {"changeable": self.changeable, "recipes": self.recipes, "kinds": self.kinds}
        return {**asdict(self.described), **own}


@dataclass(frozen=True)
class Reference:
    """All settings.

    Attributes:
        settings: of recipes, then of cluster profiles, which share those that are the same.
        sections: what each group of settings is, by its name.
    """

    settings: Sequence[Setting]
    sections: Mapping[str, str]

    def below(self, prefix: str) -> list[Setting]:
        """The settings of that name, else all whose names begin so, else those that end with it.

        Raises:
            RequestError: there is none; names what may be meant.
        """
        found = (
            [s for s in self.settings if s.name == prefix]
            or [s for s in self.settings if s.name.startswith(prefix)]
            or [s for s in self.settings if s.name.endswith(f".{prefix}")]
        )
        if not found:
            known = [*(setting.name for setting in self.settings), *self.sections]
            hint = nearest(prefix, dict.fromkeys(known), SYNONYMS)
            raise RequestError(f"no setting begins with {prefix!r}{hint}")
        return found


def reference(clusters: Mapping[str, type[Cluster]]) -> Reference:
    """The reference of all settings.

    Args:
        clusters: the schemas of profiles by kind.
    """
    sections = describe_sections(Recipe)
    for schema in clusters.values():
        sections |= describe_sections(schema, OVERRIDE_PREFIX)
    return Reference([*_of_recipes(), *_of_clusters(clusters)], sections)


def _of_recipes() -> list[Setting]:
    shipped = {name: settings_in(name) for name in recipe_names()}
    return [
        Setting(
            described,
            described.name in CHANGEABLE,
            {
                recipe: values[described.name]
                for recipe, values in shipped.items()
                if described.name in values and described.name != "name"
            },
        )
        for described in describe(Recipe)
    ]


def _of_clusters(clusters: Mapping[str, type[Cluster]]) -> list[Setting]:
    """Those of all kinds first, then those of fewer."""
    found: list[Setting] = []
    for kind, schema in clusters.items():
        for described in describe(schema, OVERRIDE_PREFIX):
            new = Setting(described, described.name != _OF_THE_FOLDER, kinds=(kind,))
            same = next((n for n, s in enumerate(found) if s.described == described), None)
            if same is None:
                found.append(new)
            else:
                found[same] = replace(new, kinds=(*found[same].kinds, kind))
    return sorted(found, key=lambda setting: len(setting.kinds) < len(clusters))
