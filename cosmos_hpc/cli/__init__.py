"""The command line: ``key=value`` for configuration, flags only for how a command behaves."""

from __future__ import annotations

# Only what every command needs is imported here: --help and completion answer at once.
import os
import sys
import warnings
from collections.abc import Sequence

from cosmos_hpc.cli.commands import COMMANDS
from cosmos_hpc.cli.parser import make_parser
from cosmos_hpc.cli.runs import with_action
from cosmos_hpc.errors import CosmosError, explain_os_error


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code: 0 done, 1 the work failed, 2 the request was wrong."""
    if not sys.warnoptions:
        # Of the libraries, about each other: nothing that the person at the terminal can act on.
        warnings.simplefilter("ignore")
    words = with_action(sys.argv[1:] if arguments is None else arguments)
    parser = make_parser(words)
    if words and words[0] not in COMMANDS and (hint := _nearest_command(words[0])):
        parser.error(f"there is no command {words[0]!r}{hint}")
    chosen, rest = parser.parse_known_args(words)
    dashed = [r.lstrip("-") for r in rest if r.startswith("--") and "." in r.partition("=")[0]]
    if dashed:
        parser.error(f"settings are written without dashes: {' '.join(dashed)}")
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
    from cosmos_hpc.utils.imports import end_quickly

    end_quickly()
    try:
        COMMANDS[chosen.command](chosen)
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


def _nearest_command(word: str) -> str:
    if word.startswith("-"):
        return ""
    from cosmos_hpc.utils.settings import nearest

    return nearest(word, COMMANDS)
