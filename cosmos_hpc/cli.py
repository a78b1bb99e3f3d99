"""The command line: ``key=value`` for configuration, flags only for how a command behaves."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

# Everything else is imported by the command that needs it: --help stays quick.
from cosmos_hpc import cli_completion, cli_runs
from cosmos_hpc.errors import CosmosError, RequestError, explain_os_error
from cosmos_hpc.utils.imports import end_quickly

_EPILOG = """\
examples:
  cosmos-hpc sample-videos videos
  cosmos-hpc submit recipe=ar_tiny data.input=videos
  cosmos-hpc download ar4b
  cosmos-hpc status ar_tiny-1a2b3c4d
  cosmos-hpc generate ar_tiny-1a2b3c4d input=frame.png
  cosmos-hpc report ar_tiny-1a2b3c4d
exit codes: 0 done, 1 the work failed, 2 the request was wrong
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cosmos-hpc",
        description="Post-train NVIDIA's Cosmos-1.0 autoregressive world models.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False)

    settings = "recipe=NAME, cluster=NAME, section.key=value, cluster.key=value"
    submit = command("submit", "run a recipe, or resume its run")
    submit.add_argument("settings", nargs="*", metavar="key=value", help=settings)
    submit.add_argument("--name", help="name of the run; the same request gets the same by default")
    submit.add_argument("--stages", help="only these stages, separated by commas")
    submit.add_argument(
        "--dry-run", action="store_true", help="print what would be submitted, as shell text"
    )
    submit.add_argument("--output", metavar="DIR", help="with --dry-run: write the scripts there")

    plan = command("plan", "show what would run, without running it")
    plan.add_argument("settings", nargs="*", metavar="key=value", help=settings)
    plan.add_argument("--json", action="store_true", help="as JSON")

    recipes = command("recipes", "list the recipes, or print one fully resolved")
    recipes.add_argument("name", nargs="?", help="of a recipe, or path of a YAML file")
    recipes.add_argument("settings", nargs="*", metavar="key=value", help="overrides to apply")
    recipes.add_argument("--json", action="store_true", help="as JSON")

    known = command("settings", "what settings there are: list those below a prefix, or show one")
    known.add_argument("prefix", nargs="?", default="", help="such as train, or train.gpus")
    form = known.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="as JSON")
    form.add_argument("--markdown", action="store_true", help="all of them, as docs/settings.md")

    download = command("download", "fetch what recipes need from the Hub, below HF_HOME")
    download.add_argument(
        "settings",
        nargs="*",
        metavar="RECIPE | key=value",
        help="names of recipes, or paths of YAML files; overrides that each of them gets",
    )

    cluster = command("cluster", "write a profile of this Slurm cluster, or check one before use")
    actions = cluster.add_subparsers(dest="action", metavar="ACTION", required=True)
    text = "write a profile of the Slurm cluster that this machine belongs to"
    init = actions.add_parser("init", help=text, description=text, allow_abbrev=False)
    init.add_argument("name", nargs="?", help="of the profile; by default the cluster's own")
    text = "what works and what does not of a profile, before anything is started"
    check = actions.add_parser("check", help=text, description=text, allow_abbrev=False)
    check.add_argument("name", help="of the profile, or path of a YAML file")
    check.add_argument("settings", nargs="*", metavar="key=value", help="overrides to check with")

    status = command("status", "show how far a run is")
    status.add_argument("run", help="name or path of the run")
    status.add_argument("--json", action="store_true", help="as JSON")

    status.add_argument(
        "-w", "--watch", action="store_true", help="show it anew until nothing works on the run"
    )

    cli_runs.add_runs(command)

    logs = command("logs", "print the logs of a run")
    logs.add_argument("run", help="name or path of the run")
    logs.add_argument("stage", nargs="?", metavar="STAGE[.TASK]", help="only this one")
    logs.add_argument("-f", "--follow", action="store_true", help="follow while the run lasts")

    cancel = command("cancel", "stop a run at a safe point; submitting it again resumes it")
    cancel.add_argument("run", help="name or path of the run")
    cancel.add_argument(
        "--now", action="store_true", help="kill its Slurm jobs; work since a safe point is lost"
    )

    retry = command("retry", "resume what failed or was stopped, as the run was submitted")
    retry.add_argument("run", help="name or path of the run")
    retry.add_argument(
        "stage", nargs="?", metavar="STAGE[.TASK]", help="from this stage on; only this task"
    )

    generate = command("generate", "continue pictures or videos with the weights of a run or model")
    generate.add_argument(
        "source", help="name or path of a run, path of a checkpoint, or name of a recipe"
    )
    generate.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="input=FILE or a list, prompt=TEXT, samples, seconds, top_p, seed, ...; cluster=NAME, "
        "recipe=NAME, section.key=value",
    )
    generate.add_argument("--name", help="of the run that holds the samples")
    generate.add_argument(
        "--dry-run", action="store_true", help="print what would be submitted, as shell text"
    )
    generate.add_argument("--output", metavar="DIR", help="with --dry-run: write the scripts there")

    evaluate = command("evaluate", "score runs on held-out clips, beside references")
    evaluate.add_argument("runs", nargs="+", metavar="RUN", help="names or paths of runs")
    evaluate.add_argument("--json", action="store_true", help="as JSON")

    report = command("report", "a page of a run: what it did, its data, losses, samples and scores")
    report.add_argument("run", help="name or path of the run")

    convert = command("convert", "turn published PyTorch weights into a NeMo checkpoint, or back")
    convert.add_argument("source", help=".pt or .safetensors file, or folder of a checkpoint")
    convert.add_argument("target", help="NAME.pt, NAME.safetensors, or a folder for NeMo's form")
    convert.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="recipe=NAME whose model it is, dtype=bfloat16 or float32, base=PATH of the weights "
        "beside which adapters were trained",
    )

    samples = command("sample-videos", "make videos of drifting lights to try things with")
    samples.add_argument("folder", help="to write mp4 files into")
    samples.add_argument(
        "settings",
        nargs="*",
        metavar="key=value",
        help="count, frames, height, width, rate (frames per second), seed",
    )

    tokenizer = command("small-tokenizer", "write a small tokenizer with Cosmos' interface")
    tokenizer.add_argument("folder", help="to write encoder.jit and decoder.jit into")
    tokenizer.add_argument(
        "settings", nargs="*", metavar="key=value", help="compression=[8,16,16] or [4,8,8]"
    )

    completion = command("completion", "print a script with which a shell completes these commands")
    completion.add_argument("shell", choices=cli_completion.SHELLS)
    return parser


T = TypeVar("T")


def _named(settings: Sequence[str], named: dict[str, T]) -> tuple[dict[str, T | str], list[str]]:
    """``named`` with the values of these keys, and the other ``key=value`` arguments."""
    found: dict[str, T | str] = {**named}
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
        from cosmos_hpc.config.recipes import recipe_names
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
    with _going_on():
        run = api.submit(
            recipe,
            cluster,
            overrides,
            name=arguments.name,
            stages=stages,
            dry_run=arguments.dry_run,
            output=arguments.output,
        )
    print(run.dry_run if arguments.dry_run else run.status().render())


@contextlib.contextmanager
def _going_on() -> Iterator[None]:
    """Say of an interrupted command that it can be repeated."""
    # A closed terminal or a kill stops the tasks as Ctrl-C does.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _interrupt)
    try:
        yield
    except KeyboardInterrupt:
        print("\ninterrupted; the same command resumes from here", file=sys.stderr)
        raise SystemExit(130) from None


def _interrupt(number: int, _: Any) -> None:
    raise KeyboardInterrupt


def _plan(arguments: argparse.Namespace) -> None:
    from cosmos_hpc import api

    plan = api.plan(*_split_settings(arguments.settings))
    _print(plan.as_dict() if arguments.json else plan.render())


def _recipes(arguments: argparse.Namespace) -> None:
    from cosmos_hpc.config.recipes import load_recipe, recipe_names
    from cosmos_hpc.utils.settings import dump_yaml

    if arguments.name:
        recipe = load_recipe(arguments.name, arguments.settings)
        _print(recipe.model_dump(mode="json") if arguments.json else dump_yaml(recipe).rstrip())
        return
    described = {name: load_recipe(name).description for name in recipe_names()}
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
        from cosmos_hpc.config.recipes import recipe_names

        raise RequestError(f"download needs a recipe; there are {', '.join(recipe_names())}")
    with _going_on():
        folders = api.download(names, overrides)
    for repository, folder in folders.items():
        print(f"{repository}  {folder}")
    if not folders:
        print(f"{' and '.join(names)}: nothing of the Hub is needed")


def _cluster(arguments: argparse.Namespace) -> None:
    from cosmos_hpc import api

    if arguments.action == "init":
        path = api.init_cluster(arguments.name)
        print(path.read_text(), end="")
        print(f"wrote {path}", file=sys.stderr)
        return
    findings = api.check_cluster(arguments.name, arguments.settings)
    for finding in findings:
        print(f"  {finding.level:<8} {finding.text}")
    problems = sum(finding.level == "problem" for finding in findings)
    if problems:
        raise RequestError(
            f"{problems} problem{'s' * (problems > 1)} with cluster {arguments.name}"
        )


def _logs(arguments: argparse.Namespace) -> None:
    from cosmos_hpc.api import Run

    run = Run(arguments.run)
    chosen = _stage_and_task(arguments.stage or "")
    if arguments.follow:
        said = False
        for text in run.follow(*chosen):
            said = True
            print(text, end="", flush=True)
        if said:
            return
    for name, path in run.logs(*chosen).items():
        print(f"==> {name}  {path} <==")
        print(path.read_text(errors="replace") if path.exists() else "(nothing yet)")


def _cancel(arguments: argparse.Namespace) -> None:
    from cosmos_hpc.api import Run

    run = Run(arguments.run)
    if not run.cancel(now=arguments.now):
        print(f"nothing works on run {run.folder.name}")
        return
    print(run.status().render())


def _retry(arguments: argparse.Namespace) -> None:
    from cosmos_hpc.api import Run

    run = Run(arguments.run)
    with _going_on():
        run.retry(*_stage_and_task(arguments.stage or ""))
    print(run.status().render())


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
    from cosmos_hpc.api import Run
    from cosmos_hpc.runs.scores import render_scores

    runs = [Run(name) for name in arguments.runs]
    with _going_on():
        found = {run.folder.name: run.evaluate() for run in runs}
    scores = {name: own for name, own in found.items() if own is not None}
    if arguments.json:
        _print(scores)
    elif scores:
        _print(render_scores(scores))
    for name in found.keys() - scores.keys():
        print(f"{name}: queued; the same command shows its scores when they are there")


def _report(arguments: argparse.Namespace) -> None:
    from cosmos_hpc.api import Run

    run = Run(arguments.run)
    with _going_on():
        print(run.report().path)


def _convert(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from cosmos_hpc.worker.convert import Conversion, convert

    settings = _section(Conversion, arguments.settings)
    if not arguments.source or not arguments.target:
        raise RequestError("convert needs a source and a target; one of them is empty")
    source, target = (Path(p).expanduser() for p in (arguments.source, arguments.target))
    convert(source, target, settings)
    print(f"wrote {arguments.target}")


def _sample_videos(arguments: argparse.Namespace) -> None:
    from cosmos_hpc.worker.video.samples import SampleVideos, make_sample_videos

    make_sample_videos(arguments.folder, _section(SampleVideos, arguments.settings))
    print(f"wrote videos into {arguments.folder}")


def _small_tokenizer(arguments: argparse.Namespace) -> None:
    from pathlib import Path

    from cosmos_hpc.worker.tokenizers.small import SmallTokenizer, write_small_tokenizer

    chosen = _section(SmallTokenizer, arguments.settings)
    write_small_tokenizer(Path(arguments.folder), chosen.compression)
    print(f"wrote encoder.jit and decoder.jit into {arguments.folder}")


def _completion(arguments: argparse.Namespace) -> None:
    print(cli_completion.completion_script(arguments.shell, _parser()), end="")


def _section(schema: Any, settings: Sequence[str]) -> Any:
    from cosmos_hpc.utils.settings import apply_overrides, validate

    return validate(schema, apply_overrides({}, settings, schema), "request")


def _print(value: Any) -> None:
    print(value if isinstance(value, str) else json.dumps(value, indent=2))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 0 done, 1 the work failed, 2 the request was wrong."""
    if not sys.warnoptions:
        # Of the libraries, about each other: nothing that the person at the terminal can act on.
        warnings.simplefilter("ignore")
    parser = _parser()
    words = sys.argv[1:] if arguments is None else arguments
    chosen, rest = parser.parse_known_args(cli_runs.with_action(words))
    # argparse stops taking settings at the first flag; they may stand after it as well.
    if rest and (not hasattr(chosen, "settings") or any(r.startswith("-") for r in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    elif rest:
        chosen.settings += rest
    if chosen.version:
        from cosmos_hpc import __version__

        print(f"cosmos-hpc {__version__}")
        return 0
    if not chosen.command:
        parser.print_help()
        return 0
    commands = {
        "submit": _submit,
        "plan": _plan,
        "recipes": _recipes,
        "settings": _settings,
        "download": _download,
        "cluster": _cluster,
        "status": cli_runs.status,
        "runs": cli_runs.runs,
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
    end_quickly()
    try:
        commands[chosen.command](chosen)
    except CosmosError as e:
        print(f"error: {e}", file=sys.stderr)
        return e.exit_code
    except ModuleNotFoundError as e:
        extra = "train" if (e.name or "").startswith(("nemo", "megatron")) else "worker"
        print(
            f"error: this command needs {e.name}, which is not installed; "
            f"pip install -c constraints.txt '.[{extra}]'",
            file=sys.stderr,
        )
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # `cosmos-hpc logs | head`: nobody reads on, which is no error.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as e:
        print(f"error: {explain_os_error(e, chosen.command)}", file=sys.stderr)
        return 1
    return 0
