"""What bash and zsh complete; neither starts Python for it."""

import shutil
import subprocess

import pytest

from cosmos_hpc.utils import files
from tests.conftest import SHELLCHECK, cosmos_hpc

#: Completes a line as readline does, with an empty PATH: nothing can be started.
BASH = """
source ./script
PATH=/nowhere
COMP_LINE=$1 COMP_POINT=${#1}
_cosmos_hpc
printf '%s\\n' "${COMPREPLY[@]}"
"""
#: Completes a line, as the completion system of zsh hands it over; what it would add is printed.
ZSH = """
compdef() { :; }
compadd() { shift $@[(i)--]; print -rl -- "$@" }
compset() { :; }
_files() { print -rl -- *; }
source ./script
PATH=/nowhere
words=("${(@s: :)1}") CURRENT=$#words PREFIX=$words[-1]
_cosmos_hpc
"""


def shells():
    return [
        pytest.param(shell, marks=pytest.mark.skipif(not shutil.which(shell), reason=f"no {shell}"))
        for shell in ("bash", "zsh")
    ]


@pytest.fixture(params=shells())
def complete(request, tmp_path):
    """Says what completes a line."""
    made = cosmos_hpc("completion", request.param, cwd=tmp_path)
    assert made.code == 0, made.err
    (tmp_path / "script").write_text(made.out)
    for name in ("alpha", "beta"):
        files.write_json(tmp_path / "runs" / name / "run.json", {})
    files.write_atomic(tmp_path / "clusters/site.yaml", "")
    files.write_atomic(tmp_path / "own.yaml", "")
    code, shell = (BASH, ["bash", "-c"]) if request.param == "bash" else (ZSH, ["zsh", "-fc"])

    def found(line):
        done = subprocess.run(
            [*shell, code, "x", line],
            cwd=tmp_path,
            env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=True,
        )
        assert not done.stderr
        # zsh filters by itself; bash replaces what stands behind "=".
        last = line.rpartition(" ")[2]
        cut = last.partition("=")[2] if request.param == "bash" else last
        return sorted(word for word in done.stdout.split() if word.startswith(cut))

    found.bash = request.param == "bash"
    return found


def behind(complete, key, *values):
    """Values of a key, with it where the shell wants that."""
    return [value if complete.bash else f"{key}={value}" for value in values]


def test_words_are_completed(complete):
    assert {"submit", "runs", "status", "--version"} <= {*complete("cosmos-hpc ")}
    assert complete("cosmos-hpc sub") == ["submit"]
    assert complete("cosmos-hpc runs ") == ["--help", "list", "prune", "rm"]
    assert complete("cosmos-hpc runs rm ") == ["--help", "--yes", "alpha", "beta"]
    assert complete("cosmos-hpc status --json a") == ["alpha"]
    assert complete("cosmos-hpc logs alpha tr") == ["train"]
    assert complete("cosmos-hpc submit train.max_s") == ["train.max_steps="]
    assert "cluster.gpu_partition=" in complete("cosmos-hpc submit cluster.gpu_p")
    assert complete("cosmos-hpc cluster check s") == ["site"]


def test_values_are_completed(complete):
    line = "cosmos-hpc submit cluster=site recipe=ar4b_l"
    assert complete(line) == behind(complete, "recipe", "ar4b_lora")
    assert complete("cosmos-hpc plan recipe=o") == behind(complete, "recipe", "own.yaml")
    assert complete("cosmos-hpc plan cluster=") == behind(complete, "cluster", "local", "site")


def test_files_are_completed(tmp_path):
    (tmp_path / "script").write_text(cosmos_hpc("completion", "bash", cwd=tmp_path).out)
    (tmp_path / "my videos").mkdir()
    words = ["bash", "-c", BASH, "x", "cosmos-hpc submit data.input=my"]
    done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "my videos\n"
    lint = [SHELLCHECK, "--shell=bash", "script"]
    assert subprocess.run(lint, cwd=tmp_path).returncode == 0
    refused = cosmos_hpc("completion", "fish", cwd=tmp_path)
    assert refused.code == 2
    assert "choose from bash, zsh" in refused.err.replace("'", "")
