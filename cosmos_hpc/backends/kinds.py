"""Opens cluster profiles: the one place that maps kinds to backends."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cosmos_hpc.backends.base import Backend
from cosmos_hpc.config.clusters import BUILT_IN, Cluster, find_profile
from cosmos_hpc.errors import CosmosError, RequestError
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.queue import Queue
from cosmos_hpc.utils.imports import load
from cosmos_hpc.utils.mappings import load_mapping
from cosmos_hpc.utils.settings import apply_overrides, validate

AnyBackend = Backend[Any, Any, Any]

#: Backends by the ``kind`` of their profiles; imported when one of theirs is opened.
KINDS = {
    BUILT_IN: "cosmos_hpc.backends.local:LocalBackend",
    "docker": "cosmos_hpc.backends.docker:DockerBackend",
    "slurm": "cosmos_hpc.backends.slurm.backend:SlurmBackend",
}
#: Seconds between looks at what has done its work and is about to end.
_END_SECONDS = 1.0


def _backend(kind: Any, where: str) -> type[AnyBackend]:
    if not isinstance(kind, str) or kind not in KINDS:
        raise RequestError(f"{where}: kind={kind!r}: there are {', '.join(KINDS)}")
    backend: type[AnyBackend] = load(KINDS[kind])
    return backend


def schemas() -> dict[str, type[Cluster]]:
    """What profiles say, by their kind."""
    return {kind: _backend(kind, "KINDS").schema for kind in KINDS}


def load_cluster(name: str = BUILT_IN, overrides: Iterable[str] = ()) -> Cluster:
    """A cluster profile by name, or by path when it ends in ``.yaml``.

    A profile of kind ``local`` or ``docker`` says only what differs from this machine's numbers.

    Raises:
        RequestError: no such profile, an unknown key or a wrong type.
    """
    changes = list(overrides)
    data = find_profile(name, _kind_in(changes))
    where = f"cluster {data['name']}"
    schema = _backend(data["kind"], where).schema
    data = apply_overrides({**schema.defaults(), **data}, changes, schema)
    return validate(schema, schema.completed(data), where)


def _kind_in(overrides: Iterable[str]) -> str | None:
    """The kind that overrides ask for, which says what else they may hold."""
    kinds = [value for key, _, value in (o.partition("=") for o in overrides) if key == "kind"]
    return kinds[-1] if kinds else None


def read_cluster(path: Path) -> Cluster:
    """The resolved profile that a run was submitted with."""
    data = load_mapping(path)
    return validate(_backend(data.get("kind"), str(path)).schema, data, str(path))


def open_backend(cluster: Cluster) -> AnyBackend:
    """The backend of a profile."""
    return _backend(cluster.kind, f"cluster {cluster.name}")(cluster)


def seconds_between_looks(run: RunFolder) -> float:
    """How often a run that is watched is looked at: a queue is asked less often than a disk."""
    return 2.0 if open_backend(read_cluster(run.cluster_file)).returns_when == "done" else 10.0


def queues_of(runs: Iterable[RunFolder]) -> dict[Path, Queue]:
    """What is queued or working of many runs, by their paths: each cluster is asked once."""
    found: dict[Path, Queue] = {}
    places: dict[tuple[str, str], tuple[AnyBackend, list[RunFolder]]] = {}
    for run in runs:
        try:
            profile = read_cluster(run.cluster_file)
            run.id()  # by which its jobs are found
        except (CosmosError, KeyError, TypeError) as e:
            found[run.path] = Queue(problem=str(e))
            continue
        place = places.setdefault((profile.kind, profile.name), (open_backend(profile), []))
        place[1].append(run)
    for backend, own in places.values():
        found.update(zip((run.path for run in own), backend.queues(own), strict=True))
    return found


def wait_for_end(runs: Sequence[RunFolder]) -> None:
    """Wait for submits and jobs of runs that have done their work, but not ended.

    Until then other settings would be refused.
    """
    while any(queue.alive for queue in queues_of(runs).values()):
        time.sleep(_END_SECONDS)
