"""What the commands do with their arguments."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

# Everything else is imported by the command that needs it: --help stays quick.
from cosmos_hpc.cli import completion, runs
from cosmos_hpc.cli.parser import make_parser
from cosmos_hpc.errors import RequestError

TYPE_CHECKING = False  # as in typing
if TYPE_CHECKING:
    from typing import Any

    from cosmos_hpc.run import Run
    from cosmos_hpc.sweep import Sweep


def _named(settings: Sequence[str], named: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """``named`` with the values of these keys, and the other ``key=value`` arguments."""
    found = {**named}
    others = []
    for setting in settings:
        key, sep, value = setting.partition("=")
        if sep and key in named:
            found[key] = value
        else:
            others.append(setting)
    return found, others


def _split_settings(settings: Sequence[str]) -> tuple[str, str, list[str]]:
    """The recipe, the cluster and the overrides in ``key=value`` arguments."""
    from cosmos_hpc.config.clusters import BUILT_IN

    named, overrides = _named(settings, {"recipe": "", "cluster": BUILT_IN})
    if not named["recipe"]:
        from cosmos_hpc.config.recipe_files import recipe_names
        from cosmos_hpc.utils.settings import nearest

        hints = [nearest(o.partition("=")[0], named) for o in overrides]
        bare = [f"; did you mean recipe={o}?" for o in overrides if o in recipe_names()]
        hint = next(filter(None, bare + hints), f"; there are {', '.join(recipe_names())}")
        raise RequestError(f"recipe= is missing{hint}")
    return named["recipe"], named["cluster"], overrides


def _submit(arguments: argparse.Namespace) -> None:
    from cosmos_hpc import api

    recipe, cluster, overrides = _split_settings(arguments.settings)
    stages = None if arguments.stages is None else arguments.stages.split(",")
    if arguments.output is not None and not arguments.dry_run:
        raise RequestError("--output goes with --dry-run")
    with _going_on(_AS_STATUS_SAYS):
        run = api.submit(
            recipe,
            cluster,
            overrides,
            name=arguments.name,
            stages=stages,
            dry_run=arguments.dry_run,
            output=arguments.output,
        )
    print(run.dry_run if arguments.dry_run else _status_of(run))


#: A training does so from its last checkpoint.
_AS_STATUS_SAYS = ", and cosmos-hpc status says from where"


@contextlib.contextmanager
def _going_on(where: str = " from here") -> Iterator[None]:
    """Say of an interrupted command that it can be repeated, and where it resumes."""
    import signal

    # A closed terminal or a kill stops the tasks as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        print(f"\ninterrupted; the same command resumes{where}", file=sys.stderr)
        raise SystemExit(130) from None


def _interrupt(number: int, _: Any) -> None:
    raise KeyboardInterrupt


def _plan(arguments: argparse.Namespace) -> None:
    from cosmos_hpc import api

    plan = api.plan(*_split_settings(arguments.settings))
    _print(plan.as_dict() if arguments.json else plan.render())


def _recipes(arguments: argparse.Namespace) -> None:
    from cosmos_hpc.config.recipe_files import read_recipe, recipe_names

    if arguments.name:
        from cosmos_hpc.config.recipes import load_recipe
        from cosmos_hpc.utils.settings import dump_yaml

        recipe = load_recipe(arguments.name, arguments.settings)
        _print(recipe.as_dict() if arguments.json else dump_yaml(recipe).rstrip())
        return
    # As the files say it: shipped recipes are known to be right, and checking them takes longer.
    described = {name: read_recipe(name).get("description", "") for name in recipe_names()}
    width = max(map(len, described))
    lines = [f"{name:<{width}}  {text}" for name, text in described.items()]
    _print(described if arguments.json else "\n".join(lines))


def _settings(arguments: argparse.Namespace) -> None:
    from cosmos_hpc.backends.kinds import schemas
    from cosmos_hpc.runs.reference import reference
    from cosmos_hpc.runs.reference_text import markdown, render

    known = reference(schemas())
    if arguments.markdown:
        _print(markdown(known))
        return
    found = known.below(arguments.prefix)
    _print([setting.as_dict() for setting in found] if arguments.json else render(found))


def _download(arguments: argparse.Namespace) -> None:
    from cosmos_hpc import api

    names = [setting for setting in arguments.settings if "=" not in setting]
    overrides = [setting for setting in arguments.settings if "=" in setting]
    if not names:
        from cosmos_hpc.config.recipe_files import recipe_names

        raise RequestError(f"download needs a recipe; there are {', '.join(recipe_names())}")
    with _going_on():
        folders = api.download(names, overrides)
    print(folders if folders else f"{' and '.join(names)}: {folders}")


def _cluster(arguments: argparse.Namespace) -> None:
    from cosmos_hpc import api

    if arguments.action == "init":
        path = api.init_cluster(arguments.name)
        print(path.read_text(), end="")
        print(f"wrote {path}", file=sys.stderr)
        return
    findings = api.check_cluster(arguments.name, arguments.settings)
    print(findings)
    if findings.problems:
        from cosmos_hpc.utils.progress import count_of

        problems = count_of(findings.problems, "problem")
        raise RequestError(f"{problems} with cluster {arguments.name}")


def _logs(arguments: argparse.Namespace) -> None:
    from cosmos_hpc.api import Run
    from cosmos_hpc.runs.log_filter import LogFilter
    from cosmos_hpc.utils.progress import count_of

    run = Run(arguments.run)
    chosen = _stage_and_task(arguments.stage or "")
    if arguments.follow:
        said, read = False, LogFilter(arguments.raw)
        for text in run.follow(*chosen):
            said = True
            print(read(text), end="", flush=True)
        print(read.end(), end="")
        if said:
            return
    for name, path in run.logs(*chosen).items():
        print(f"==> {name}  {path} <==")
        read = LogFilter(arguments.raw)
        text = path.read_text(errors="replace") if path.exists() else "(nothing yet)"
        print(read(text) + read.end())
        if read.left_out:
            lines = count_of(read.left_out, "line")
            print(f"(without {lines} of libraries, which --raw shows)")


def _cancel(arguments: argparse.Namespace) -> None:
    from cosmos_hpc.runs.cleaning import takers_of
    from cosmos_hpc.runs.listing import find_runs
    from cosmos_hpc.runs.sweeps import membership
    from cosmos_hpc.sweep import Sweep, named

    found = named(arguments.run)
    if not found.cancel(now=arguments.now):
        print(f"nothing works on {arguments.run}")
        return
    print(_status_of(found))
    if not isinstance(found, Sweep) and (member := membership(found.folder)):
        takers = takers_of([found.folder], find_runs(found.path.parent))[found.path]
        names = [taker.name for taker in takers]
        sweep = found.path.with_name(member.sweep)
        if names:
            print(f"  its tokens are missing to {', '.join(names)}; cosmos-hpc retry {sweep}")


def _status_of(found: Run | Sweep) -> str:
    from cosmos_hpc.sweep import Sweep

    return found.render() if isinstance(found, Sweep) else found.status().render()


def _retry(arguments: argparse.Namespace) -> None:
    from cosmos_hpc.sweep import Sweep, named

    found = named(arguments.run)
    with _going_on(_AS_STATUS_SAYS):
        if not isinstance(found, Sweep):
            found.retry(*_stage_and_task(arguments.stage or ""))
        elif arguments.stage:
            raise RequestError(
                f"{found.name} is a sweep: retry {arguments.stage} of one of its runs"
            )
        else:
            found.retry()
    print(_status_of(found))


def _stage_and_task(text: str) -> tuple[str | None, int | None]:
    stage, _, task = text.partition(".")
    if task and not task.isdigit():
        raise RequestError(f"{text!r} is not STAGE or STAGE.TASK, with TASK a number")
    return stage or None, int(task) if task else None


def _generate(arguments: argparse.Namespace) -> None:
    from cosmos_hpc import api

    named, overrides = _named(arguments.settings, {"recipe": None, "cluster": None})
    if arguments.output is not None and not arguments.dry_run:
        raise RequestError("--output goes with --dry-run")
    with _going_on():
        run = api.generate(
            arguments.source,
            overrides,
            cluster=named["cluster"],
            recipe=named["recipe"],
            name=arguments.name,
            dry_run=arguments.dry_run,
            output=arguments.output,
        )
    print(run.dry_run if arguments.dry_run else run.status().render())


def _evaluate(arguments: argparse.Namespace) -> None:
    from cosmos_hpc.api import compare
    from cosmos_hpc.runs.scores import render_scores
    from cosmos_hpc.sweep import named, runs_of

    runs = runs_of([named(name) for name in arguments.runs])
    with _going_on():
        found = {run.folder.name: run.evaluate() for run in runs}
    scores = {name: own for name, own in found.items() if own is not None}
    if arguments.json:
        _print(scores)
    elif scores:
        _print(render_scores(scores))
        if len(runs) > 1 and (differ := compare(runs).render_settings()):
            _print(f"\n{differ}")
    for name in found.keys() - scores.keys():
        print(f"{name}: queued; the same command shows its scores when they are there")


def _report(arguments: argparse.Namespace) -> None:
    from cosmos_hpc.sweep import named

    found = named(arguments.run)
    with _going_on():
        print(found.report().path)


def _convert(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from cosmos_hpc.worker.requests import Conversion, check_conversion

    settings = _section(Conversion, arguments.settings)
    if not arguments.source or not arguments.target:
        raise RequestError("convert needs a source and a target; one of them is empty")
    source, target = (Path(p).expanduser() for p in (arguments.source, arguments.target))
    check_conversion(source, target, settings)
    # With it comes torch, which takes longer than any of this.
    from cosmos_hpc.worker.convert import convert

    convert(source, target, settings)
    print(f"wrote {arguments.target}")


def _sample_videos(arguments: argparse.Namespace) -> None:
    from cosmos_hpc import api
    from cosmos_hpc.utils.progress import count_of

    folder = api.sample_videos(arguments.folder, arguments.settings)
    count = sum(1 for _ in folder.glob("*.mp4"))
    print(f"{folder} has {count_of(count, 'video')}")


def _small_tokenizer(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from cosmos_hpc.worker.requests import SmallTokenizer

    chosen = _section(SmallTokenizer, arguments.settings)
    from cosmos_hpc.worker.tokenizers.small import write_small_tokenizer

    write_small_tokenizer(Path(arguments.folder), chosen.compression)
    print(f"wrote encoder.jit and decoder.jit into {arguments.folder}")


def _completion(arguments: argparse.Namespace) -> None:
    print(completion.completion_script(arguments.shell, make_parser()), end="")


def _section(schema: Any, settings: Sequence[str]) -> Any:
    from cosmos_hpc.utils.settings import apply_overrides, validate

    return validate(schema, apply_overrides({}, settings, schema), "request")


def _print(value: Any) -> None:
    import json

    print(value if isinstance(value, str) else json.dumps(value, indent=2))


#: What each command does.
COMMANDS: dict[str, Callable[[argparse.Namespace], None]] = {
    "submit": _submit,
    "plan": _plan,
    "recipes": _recipes,
    "settings": _settings,
    "download": _download,
    "cluster": _cluster,
    "status": runs.status,
    "runs": runs.runs,
    "logs": _logs,
    "cancel": _cancel,
    "retry": _retry,
    "generate": _generate,
    "evaluate": _evaluate,
    "report": _report,
    "convert": _convert,
    "sample-videos": _sample_videos,
    "small-tokenizer": _small_tokenizer,
    "completion": _completion,
}
