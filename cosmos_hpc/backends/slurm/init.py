"""Proposes a cluster profile from what Slurm says on a login node."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

from cosmos_hpc.backends.slurm.facts import Facts, Partition, read_facts
from cosmos_hpc.backends.slurm.gpu_names import gpus_named, is_slice
from cosmos_hpc.backends.slurm.profile import SlurmCluster, minutes
from cosmos_hpc.config.clusters import PASSED_ON, profile_folders
from cosmos_hpc.config.gpus import UNKNOWN_GPU
from cosmos_hpc.errors import RequestError
from cosmos_hpc.runs.stages import STAGES
from cosmos_hpc.utils import files
from cosmos_hpc.utils.settings import defaults


def init(name: str | None = None) -> Path:
    """Write a profile for the Slurm cluster that this machine belongs to.

    Args:
        name: of the profile; None: the cluster's own.

    Returns:
        The file, in the folder of profiles below the working folder.

    Raises:
        RequestError: there is no Slurm here, no partition is up, or the file exists.
    """
    facts = read_facts()
    path = profile_folders()[0] / f"{name or facts.cluster}.yaml"
    if path.exists():
        raise RequestError(f"{path} exists; change it there, or choose another name")
    files.write_atomic(path, propose(facts))
    return path


def propose(facts: Facts) -> str:
    """A profile as YAML with a comment for what to look at.

    Raises:
        RequestError: no partition is up.
    """
    up = [p for p in facts.partitions if p.up]
    if not up:
        raise RequestError(f"cluster {facts.cluster} has no partition that is up")
    gpu = _best([p for p in up if p.gpus]) or _best(up)
    cpu = _best([p for p in up if not p.gpus]) or _best([p for p in up if p != gpu]) or gpu
    assert gpu is not None and cpu is not None
    # Whole cards before slices of them, of which there are more.
    pieces = sorted(gpu.gpus.items(), key=lambda item: (is_slice(item[0]), -item[1]))
    kind, count = pieces[0] if pieces else ("", 0)
    known, note = _memory(kind) if count else (UNKNOWN_GPU, "")
    accounts = list(facts.associations)  # the default one first
    yours = "yours, the default first" if len(accounts) > 1 else "yours"
    parallel = defaults(SlurmCluster)["parallel"]
    lines = [
        f"# Proposed for {facts.cluster} (Slurm {facts.version}); change what does not fit, then",
        "# run cosmos-hpc cluster check.",
        _setting("kind", "slurm"),
        _setting("account", accounts[0] if accounts else None, _choice(yours, accounts)),
        _setting("qos", None, _choice("yours", sorted(set().union(*facts.associations.values())))),
        _setting("gpu_partition", gpu.name, _choice("up", [p.name for p in up])),
        _setting("cpu_partition", cpu.name),
        _setting("gpu", known, note),
        _setting("gpus_per_node", count, "" if count else "Slurm shows no GPUs here"),
        _setting("cpus_per_gpu", gpu.cpus // count if count else None),
        _setting("mem_per_gpu", None, "memory of the node with each GPU, such as 60G"),
        _setting("gres", f"gpu:{kind}" if kind else "gpu"),
        _setting("nodes", 1, f"most nodes of a job; {gpu.name} has {gpu.nodes}"),
        _setting("parallel", parallel, "array tasks at the same time"),
        _setting("max_array_size", facts.max_array_size),
        _setting(
            "max_submit",
            facts.most_jobs(None, [gpu.name, cpu.name]),
            "jobs that you may have in the queue",
        ),
        _setting("grace_seconds", 300, "before a time limit, to stop at a safe point"),
        _setting("runs", "runs", "on a file system that all nodes share"),
        "time:",
        *(f"  {line}" for line in _times(facts, gpu, cpu)),
        _setting("container", None, _container_note(facts)),
        _setting("mounts", [], "/from:/to in the container"),
        _setting("setup", [], "shell lines before the work, such as: module load cuda"),
        _setting("environment", PASSED_ON, "names, never values"),
        _setting("secrets", None, "your file of NAME=VALUE lines, which Slurm is not given"),
        _setting("sbatch", [], "further flags, such as --exclusive"),
    ]
    return "\n".join(lines) + "\n"


def _best(partitions: list[Partition]) -> Partition | None:
    """The default one, else that of most nodes."""
    return max(partitions, key=lambda p: (p.default, p.nodes), default=None)


def _memory(kind: str) -> tuple[str | None, str]:
    """The GPU type that Slurm's name for it means, and what to say of it."""
    known = gpus_named(kind)
    if not known:
        return None, f"Slurm calls it {kind!r}: give its type or memory, such as 48GB"
    if is_slice(kind):
        return known[0], "a slice of a GPU (MIG)"
    # An A100 may be one of two; the smaller one plans safely.
    return known[0], f"or {', '.join(known[1:])}" if known[1:] else ""


def _times(facts: Facts, gpu: Partition, cpu: Partition) -> list[str]:
    """Time limits, as long as the partitions and the default QOS allow."""
    lines = []
    for name, stage in STAGES.items():
        partition = gpu if stage.gpus else cpu
        of_qos = (one.minutes or math.inf for one in facts.ruling(None, [partition.name]).values())
        short = min(minutes(stage.time), partition.limit, *of_qos)
        assert not math.isinf(short)
        lines.append(_setting(name, f"{int(short) // 60:02d}:{int(short) % 60:02d}:00"))
    return lines


def _container_note(facts: Facts) -> str:
    if not facts.container_options:
        other = ", or with container_runtime: apptainer" if shutil.which("apptainer") else ""
        return f"this cluster has no pyxis: jobs run on the host's Python{other}"
    return "image for pyxis: /path/image.sqsh, or registry#name:tag"


def _choice(what: str, names: list[str]) -> str:
    return f"{what}: {', '.join(names)}" if names else ""


def _setting(key: str, value: Any, note: str = "") -> str:
    """A line of YAML; JSON's values are YAML's as well, whatever they hold."""
    return f"{key}: {json.dumps(value)}{'  # ' + note if note else ''}"
