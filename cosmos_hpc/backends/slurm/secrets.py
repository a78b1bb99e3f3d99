"""Secret values that jobs read from files, so that they are not passed to Slurm.

Slurm keeps the environment that a job is submitted with: in its state on the controller while the
job is known, and in the accounting database where ``AccountingStoreFlags`` has ``job_env``.
"""

from __future__ import annotations

import os
import re
import shlex
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from cosmos_hpc.backends.slurm.profile import SlurmCluster
from cosmos_hpc.errors import RequestError, explain_os_error

#: Variables whose values are nobody else's business, by what keeps them from Slurm.
_SECRETS = {"HF_TOKEN": "hf auth login", "WANDB_API_KEY": "wandb login"}
#: A line of a file of variables, as a shell reads it.
_VARIABLE = re.compile(r"\s*(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=")
#: Prints the password of a machine: words of .netrc stand on lines as one likes.
_OF_NETRC = (
    "tr -s '[:space:]' '\\n' <{file} | awk -v host={host} "
    '\'before == "machine" {{ on = $0 == host }} '
    'on && before == "password" {{ print; exit }} {{ before = $0 }}\''
)


@dataclass(frozen=True)
class Secrets:
    """How jobs get secret values.

    Attributes:
        read: names of the variables that the jobs read by themselves.
        lines: of shell, which do so.
        given: names of those that are set and that Slurm has to be given.
    """

    read: frozenset[str] = frozenset()
    lines: tuple[str, ...] = ()
    given: tuple[str, ...] = ()

    def note(self) -> str:
        """Which values are passed to Slurm, and how to avoid it; empty where there are none."""
        if not self.given:
            return ""
        logins = ", ".join(dict.fromkeys(_SECRETS[name] for name in self.given))
        return (
            f"Slurm is given the values of {', '.join(self.given)} with the jobs, and keeps them; "
            f"{logins}, or a file that secrets: in the profile names, has the jobs read them "
            f"instead"
        )


def find_secrets(cluster: SlurmCluster) -> Secrets:
    """Which of the variables set here the jobs of a profile can read from files.

    That is what the profile's file of variables holds, and a value that is set here where it is
    that of the Hub's or wandb's own login: the job reads the same file.

    Raises:
        RequestError: the file of variables cannot be read, or others may read it.
    """
    lines, names = [], _variables(cluster)
    if cluster.secrets:
        lines = ["set -a", f". {shlex.quote(_file(cluster))}", "set +a"]
    given = []
    for name in _SECRETS:
        value = os.environ.get(name)
        if not value or name in names or name not in cluster.environment:
            continue
        reading = next((words for words in _logins(name) if _printed(words) == value), None)
        if reading is None:
            given.append(name)
            continue
        names.add(name)
        lines += [f"{name}=$({reading})", f"export {name}"]
    if lines:
        lines = [
            "# Read here, so that Slurm is not given the values.",
            "{ set +vx; } 2>/dev/null",
            *lines,
        ]
    return Secrets(frozenset(names), tuple(lines), tuple(given))


def exported(cluster: SlurmCluster, secrets: Secrets) -> list[str]:
    """Names in the profile whose values are passed to Slurm."""
    return [name for name in cluster.environment if name not in secrets.read]


def _file(cluster: SlurmCluster) -> str:
    assert cluster.secrets is not None
    return os.path.abspath(Path(cluster.secrets).expanduser())


def _variables(cluster: SlurmCluster) -> set[str]:
    """Names of the variables in the profile's file."""
    if not cluster.secrets:
        return set()
    path = Path(_file(cluster))
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        text = path.read_text()
    except OSError as e:
        raise RequestError(explain_os_error(e, f"secrets={cluster.secrets}")) from None
    if mode & 0o077:
        raise RequestError(
            f"secrets={cluster.secrets} may be read by others, its mode is {mode:o}; "
            f"chmod 600 {shlex.quote(str(path))}"
        )
    return {found[1] for line in text.splitlines() if (found := _VARIABLE.match(line))}


def _logins(name: str) -> Iterator[str]:
    """Commands of shell that print what a login has kept of a variable."""
    if name == "HF_TOKEN":
        cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
        home = os.environ.get("HF_HOME") or f"{cache}/huggingface"
        path = os.environ.get("HF_TOKEN_PATH") or f"{home}/token"
        yield f"cat {_quoted(path)}"
    else:
        url = os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"
        host = shlex.quote(urlsplit(url).hostname or "")
        yield _OF_NETRC.format(file=_quoted(os.environ.get("NETRC") or "~/.netrc"), host=host)


def _quoted(path: str) -> str:
    return shlex.quote(os.path.abspath(Path(path).expanduser()))


def _printed(command: str) -> str:
    """What a job's shell would read; the job's home is this one's."""
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, errors="replace")
    return done.stdout.rstrip("\n")
