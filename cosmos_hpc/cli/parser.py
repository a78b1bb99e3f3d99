"""The words of the command line: commands, flags, and what each takes."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from cosmos_hpc.cli import runs as of_runs
from cosmos_hpc.cli.completion import SHELLS

TYPE_CHECKING = False  # as in typing
if TYPE_CHECKING:
    from typing import Any

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


class _Unasked:
    """Stands for the parser of a command that is not called: making all of them takes time."""

    def __init__(self, **_: object) -> None:
        pass

    def _nothing(self, *_: object, **__: object) -> _Unasked:
        return self

    add_argument = add_subparsers = add_parser = add_mutually_exclusive_group = _nothing


def make_parser(words: Sequence[str] | None = None) -> argparse.ArgumentParser:
    """The parser of all commands.

    Args:
        words: that it is going to parse, where it need not know the arguments of other commands.
    """
    first = words[0] if words else "--help"

    def parser_of(prog: str, **options: Any) -> argparse.ArgumentParser | _Unasked:
        # Behind a flag the command is not known yet.
        known = words is None or (first[:1] == "-" and first not in ("-h", "--help"))
        if known or prog.endswith(f" {first}"):
            return argparse.ArgumentParser(prog=prog, **options)
        return _Unasked()

    parser = argparse.ArgumentParser(
        prog="cosmos-hpc",
        description="Post-train NVIDIA's Cosmos-1.0 autoregressive world models.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="store_true", help="print the version")
    commands = parser.add_subparsers(  # type: ignore[call-overload]
        dest="command",
        metavar="COMMAND",
        parser_class=parser_of,
    )

    def command(name: str, text: str) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=text, description=text, allow_abbrev=False)

    settings = "recipe=NAME, cluster=NAME, section.key=value, cluster.key=value"
    submit = command(
        "submit",
        "run a recipe, or resume its run; a sweep of runs where settings have several values",
    )
    several = "; model.key=A,B and train.key=A,B make a run of each combination, a sweep"
    submit.add_argument("settings", nargs="*", metavar="key=value", help=settings + several)
    submit.add_argument(
        "--name", help="name of the run or sweep; the same request gets the same by default"
    )
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
    status.add_argument("run", help="name or path of the run, or of a sweep")
    status.add_argument("--json", action="store_true", help="as JSON")

    status.add_argument(
        "-w", "--watch", action="store_true", help="show it anew until nothing works on it"
    )

    of_runs.add_runs(command)

    logs = command("logs", "print the logs of a run")
    logs.add_argument("run", help="name or path of the run")
    logs.add_argument("stage", nargs="?", metavar="STAGE[.TASK]", help="only this one")
    logs.add_argument("-f", "--follow", action="store_true", help="follow while the run lasts")
    logs.add_argument(
        "--raw", action="store_true", help="with all that libraries say of themselves"
    )

    cancel = command("cancel", "stop a run at a safe point; submitting it again resumes it")
    cancel.add_argument("run", help="name or path of the run, or of a sweep")
    cancel.add_argument(
        "--now", action="store_true", help="kill its Slurm jobs; work since a safe point is lost"
    )

    retry = command("retry", "resume what failed or was stopped, as the run was submitted")
    retry.add_argument("run", help="name or path of the run, or of a sweep")
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
    evaluate.add_argument(
        "runs", nargs="+", metavar="RUN", help="names or paths of runs, or sweeps"
    )
    evaluate.add_argument("--json", action="store_true", help="as JSON")

    report = command("report", "a page of a run: what it did, its data, losses, samples and scores")
    report.add_argument("run", help="name or path of the run, or of a sweep: its runs side by side")

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
    completion.add_argument("shell", choices=SHELLS)
    return parser
