"""What Slurm keeps of a job, and what it does not need to be given."""

import hashlib

from tests.conftest import CANARIES, executables
from tests.slurm.login import Login
from tests.slurm.test_interruptions import notes

#: In the place of Python: tells digests of what it was given, and that its work is done.
WORKER = """\
for name in HF_TOKEN WANDB_API_KEY MORE; do
    echo "$name is $(printf %s "${!name}" | sha256sum)"
done
for word in begun done; do : >"$COSMOS_HPC_STOP.$word"; done
"""
MORE = """it's "$HOME" and `id`"""


def keeps(lab, text):
    """Whether a value stands anywhere in what Slurm's controller keeps."""
    files = [path for path in (lab.folder / "state").rglob("*") if path.is_file()]
    assert files
    return any(text.encode() in path.read_bytes() for path in files)


def test_slurm_is_not_given_what_jobs_can_read(any_lab, tmp_path, scenes):
    """The Hub's login, that of wandb, and a file of the user's own."""
    login, home = Login(any_lab, tmp_path / "login"), tmp_path / "my home"
    home.mkdir()
    (home / "token").write_text(CANARIES["HF_TOKEN"])
    netrc = "machine other password x\nmachine api.wandb.ai\n  login user\n  password {}\n"
    (home / ".netrc").write_text(netrc.format(CANARIES["WANDB_API_KEY"]))
    own = home / "own"
    own.write_text("""# mine\nMORE='it'"'"'s "$HOME" and `id`'\n""")
    own.chmod(0o640)
    variables = {**CANARIES, "HF_HOME": str(home), "NETRC": str(home / ".netrc"), "MORE": MORE}
    python = executables(tmp_path / "bin", python=WORKER) / "python"
    words = (f"data.input={scenes}", "--stages=download", f"cluster.python={python}")
    words += ("cluster.environment=[HF_TOKEN, WANDB_API_KEY, MORE]", f"cluster.secrets={own}")

    request = ("submit", "recipe=ar_tiny", "cluster=mine", "--name=kept", *words)
    refused = login.command(*request, **variables)
    assert refused.code == 2
    assert "may be read by others, its mode is 640; chmod 600 " in refused.err
    own.chmod(0o600)
    taken = login.submit("kept", *words, **variables)
    assert "Slurm is given" not in taken.err
    (job,) = login.submitted("kept")
    login.until(lambda: [n["why"] for n in notes(login, "kept", "download")][-1:] == ["done"])
    log = login.command("logs", "kept", "download").out
    for name, value in {**CANARIES, "MORE": MORE}.items():
        assert f"{name} is {hashlib.sha256(value.encode()).hexdigest()}" in log
        assert not keeps(any_lab, value)
        assert value not in log + "".join(p.read_text() for p in login.run("kept").rglob("*.sh"))
    if any_lab.accounting:
        shown = ("sacct", f"--jobs={job}", "--env-vars")
        # The database hears of it a little later.
        login.until(lambda: "PATH=" in any_lab.run(*shown))
        kept = any_lab.run(*shown)
        assert not any(value in kept for value in (*CANARIES.values(), MORE))

    # One that stands in no file has to be given, which is said.
    held = ("cluster.sbatch=['--hold']", *words)
    other = login.submit("given", *held, **{**variables, "HF_TOKEN": "hf_another1"})
    assert "Slurm is given the values of HF_TOKEN with the jobs, and keeps them" in other.err
    assert keeps(any_lab, "hf_another1")
    settings = [word.removeprefix("cluster.") for word in words if word.startswith("cluster.")]
    checked = login.command("cluster", "check", "mine", *settings, **variables)
    assert "jobs read HF_TOKEN, MORE, WANDB_API_KEY by themselves" in checked.out
    assert login.command("cancel", "given").code == 0
