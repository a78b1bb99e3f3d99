"""The words of the command line about many runs, and about one while it works."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from cosmos_hpc.errors import RequestError

TYPE_CHECKING = False  # as in typing
if TYPE_CHECKING:
    from pathlib import Path

    from cosmos_hpc.runs.folder import RunFolder

# Everything else is imported by the command that needs it: --help stays quick.

_PLACE = "folder of runs, or cluster=NAME for that of a profile; runs by default"
_ACTIONS = ("list", "rm", "prune")


def add_runs(command: Callable[[str, str], argparse.ArgumentParser]) -> None:
    """Add the command ``runs`` and its actions to a parser.

    Args:
        command: makes a command's parser from its name and what it does.
    """
    runs = command("runs", "list the runs of a folder, delete some, or what they need no more")
    actions = runs.add_subparsers(dest="action", metavar="ACTION", required=True)

    def action(name: str, text: str) -> argparse.ArgumentParser:
        return actions.add_parser(name, help=text, description=text, allow_abbrev=False)

    shown = action("list", "state, step, loss and size of each run; also without this word")
    shown.add_argument("place", nargs="?", default="runs", help=_PLACE)
    shown.add_argument("--json", action="store_true", help="as JSON")

    removed = action("rm", "delete runs with all that they have made; asks first")
    removed.add_argument("runs", nargs="+", metavar="RUN", help="names or paths of runs, or sweeps")
    removed.add_argument("--yes", action="store_true", help="do not ask")

    pruned = action(
        "prune",
        "delete checkpoints of finished trainings beside the last one, journals of published "
        "shards and what killed writers have left; shows them and asks first",
    )
    pruned.add_argument("place", nargs="?", default="runs", help=_PLACE)
    pruned.add_argument("--yes", action="store_true", help="do not ask")


def with_action(words: Sequence[str]) -> list[str]:
    """The words of a command, with the action ``list`` where ``runs`` names none."""
    if not words or words[0] != "runs" or {*words[1:2]} & {*_ACTIONS, "-h", "--help"}:
        return [*words]
    return ["runs", "list", *words[1:]]


def runs(arguments: argparse.Namespace) -> None:
    """Carry out ``runs``.

    Raises:
        RequestError: there is no such folder or run, or something may not be deleted.
    """
    {"list": _list, "rm": _remove, "prune": _prune}[arguments.action](arguments)


def _found(place: str) -> tuple[Path, list[RunFolder]]:
    """A folder of runs as a person names it, and its runs."""
    from pathlib import Path

    from cosmos_hpc.backends.kinds import load_cluster
    from cosmos_hpc.runs.listing import find_runs

    key, sep, name = place.partition("=")
    folder = Path(load_cluster(name).runs if sep and key == "cluster" else place)
    # Before the first run there is no folder either.
    absent = place == "runs" and not folder.exists()
    return folder, [] if absent else find_runs(folder)


def _list(arguments: argparse.Namespace) -> None:
    from cosmos_hpc.backends.kinds import queues_of
    from cosmos_hpc.runs.listing import list_runs, render_list

    folder, found = _found(arguments.place)
    listed = list_runs(found, queues_of(found))
    if arguments.json:
        import json

        print(json.dumps([run.as_dict() for run in listed], indent=2))
    else:
        print(render_list(listed) if listed else f"no runs in {folder.absolute()}")


def _remove(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from cosmos_hpc.backends.kinds import queues_of
    from cosmos_hpc.runs import cleaning
    from cosmos_hpc.runs.disk_use import DiskUse, size, use_of
    from cosmos_hpc.sweep import Sweep, named, runs_of
    from cosmos_hpc.utils.progress import count_of

    wanted = [named(name) for name in arguments.runs]
    chosen = [*{run.path: run.folder for run in runs_of(wanted)}.values()]
    paths = {run.path for run in chosen}
    queues = queues_of(chosen)
    for run in chosen:
        if why := cleaning.why_not(run, queues[run.path]):
            raise RequestError(f"nothing was deleted: run {run.name}: {why}")
    needed, total = _needed(chosen), DiskUse()
    for run in chosen:
        use = use_of(run.path)
        total.include(use)
        print(f"{run.path}  {size(use.bytes)}{needed[run.path]}")
    kept = total.bytes - total.freed
    stays = f"; {size(kept)} are of files that other folders have as well" if kept else ""
    print(f"frees {size(total.freed)}{stays}")
    _ask(f"delete {count_of(len(chosen), 'run')}?", arguments.yes)
    links = [link for name in arguments.runs for link in (Path(name), Path("runs", name))]
    links = [link for link in links if link.is_symlink() and link.resolve() in paths]
    pages = [one.page for one in wanted if isinstance(one, Sweep) and one.page.exists()]
    cleaning.remove_runs(chosen, queues_of)
    for path in (*links, *pages):
        path.unlink()


def _needed(chosen: Sequence[RunFolder]) -> dict[Path, str]:
    """What other runs need of runs that are to be deleted, in words; by the paths of the latter.

    Raises:
        RequestError: somebody works on a run that needs something.
    """
    from cosmos_hpc.backends.kinds import queues_of
    from cosmos_hpc.runs import cleaning
    from cosmos_hpc.runs.listing import find_runs

    words = {run.path: "" for run in chosen}
    folders = dict.fromkeys(run.path.parent for run in chosen)
    # Each is read once, however many are to be deleted.
    others = [other for folder in folders for other in find_runs(folder) if other.path not in words]
    for found, what in (
        (cleaning.readers_of(chosen, others), "begins from a checkpoint of"),
        (cleaning.takers_of(chosen, others), "has yet to take over the tokens of"),
    ):
        for run in chosen:
            busy = queues_of(found[run.path])
            for other in found[run.path]:
                if cleaning.why_not(other, busy[other.path]):
                    raise RequestError(
                        f"nothing was deleted: run {other.name}, which is not done, {what} run "
                        f"{run.name}"
                    )
                words[run.path] += f"; run {other.name} {what} it"
    return words


def _prune(arguments: argparse.Namespace) -> None:
    from cosmos_hpc.backends.kinds import queues_of
    from cosmos_hpc.runs import cleaning
    from cosmos_hpc.runs.disk_use import size
    from cosmos_hpc.utils.progress import count_of

    folder, found = _found(arguments.place)
    queues = queues_of(found)
    idle = [run for run in found if not cleaning.why_not(run, queues[run.path])]
    last = cleaning.last_checkpoints(idle)
    removals = cleaning.spare(idle, last, among=found)
    if len(idle) < len(found):
        left = count_of(len(found) - len(idle), "run")
        print(f"left alone: {left} with work, or whose queue is not known")
    nothing = f"nothing to free in {folder.absolute()}"
    print(cleaning.render_removals(removals) if removals else nothing)
    if kept := cleaning.render_kept(last.values()):
        print(kept)
    if not removals:
        return
    _ask(f"free {size(sum(removal.bytes for removal in removals))}?", arguments.yes)
    print(f"freed {size(cleaning.remove(removals, queues_of))}")


def _ask(question: str, yes: bool) -> None:
    """Have a person confirm something that cannot be undone.

    Raises:
        RequestError: they do not, or nobody can be asked.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise RequestError(f"nothing was deleted: {question} Nobody can be asked here; add --yes")
    if input(f"{question} [y/N] ").strip().lower() not in ("y", "yes"):
        raise RequestError("nothing was deleted")


def status(arguments: argparse.Namespace) -> None:
    """Carry out ``status``.

    Raises:
        RequestError: there is no such run.
    """
    import json

    from cosmos_hpc.sweep import Sweep, named

    run = named(arguments.run)
    if arguments.watch and arguments.json:
        raise RequestError("--watch shows a run to people and --json to programs; choose one")
    if arguments.watch:
        run.watch()
        return
    if isinstance(run, Sweep):
        listed = [one.as_dict() for one in run.status()]
        print(json.dumps(listed, indent=2) if arguments.json else run.render())
        return
    state = run.status()
    if arguments.json:
        print(json.dumps(state.as_dict(), indent=2))
    else:
        print(state.render())
