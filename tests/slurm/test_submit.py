"""Whole runs on a real Slurm: from videos to a model, in all the ways to submit them."""

import json
import shutil
import subprocess
import sys

import pytest

from cosmos_hpc.runs.stages import STAGES
from tests.conftest import CANARIES, REPOSITORY, SHELLCHECK, SMALL_CLIPS
from tests.slurm.login import Login

TRAINING = ("train.max_steps=4", "train.save_every=2", "train.validate_every=2")
TRAINING += ("generate.tasks=0", *SMALL_CLIPS)


@pytest.fixture(scope="module")
def login(lab, tmp_path_factory):
    return Login(lab, tmp_path_factory.mktemp("login"))


@pytest.fixture(scope="module")
def trained(login, scenes):
    """A run on two nodes with two ranks each, submitted with secrets around."""
    login.submit(
        "two-nodes",
        f"data.input={scenes}",
        "data.videos_per_shard=4",
        *TRAINING,
        "train.gpus=4",
        "train.tensor_parallel=2",
        "train.micro_batch_size=2",
        **CANARIES,
        WANDB_MODE="offline",
    )
    login.wait("two-nodes", "report", "done", "failed")
    return login.run("two-nodes")


def losses(run):
    rows = [json.loads(line) for line in (run / "train" / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.mark.slow
def test_four_ranks_on_two_nodes_and_two_on_one_give_the_same_losses(login, trained):
    assert login.status("two-nodes")["state"] == "done", login.explain("two-nodes")
    log = next((trained / "logs" / "train").glob("*.log")).read_text()
    assert "nnodes=2" in (trained / "scripts" / "train_sbatch.sh").read_text()
    assert "Starting with 4 processes" in log
    # The same tokens on one node.
    other = login.run("one-node")
    other.mkdir()
    for part in ("data", "tokens", "tokenizer"):
        shutil.copytree(trained / part, other / part)
    recipe = (trained / "recipe.yaml").read_text()
    (other / "recipe.yaml").write_text(recipe)
    source = json.loads((trained / "data" / "shards.json").read_text())["root"]
    login.submit(
        "one-node",
        f"data.input={source}",
        "data.videos_per_shard=4",
        *TRAINING,
        "train.gpus=2",
        "train.tensor_parallel=2",
        "train.micro_batch_size=4",
        "--stages=train",
    )
    assert login.wait("one-node", "train", "done", "failed")["state"] == "done"
    assert "nnodes" not in (other / "scripts" / "train_sbatch.sh").read_text()
    assert losses(other) == pytest.approx(losses(trained), rel=1e-4)


@pytest.mark.slow
def test_secrets_are_nowhere(login, trained):
    """In no file of the run, no output, no script that Slurm has stored."""
    places = [trained, login.lab.folder / "log", login.lab.folder / "spool"]
    # Slurm keeps the environment of a job, which is how the values travel, in files of its own.
    stored = [
        p for p in (login.lab.folder / "state").rglob("*") if p.is_file() and p.name == "script"
    ]
    assert stored
    for secret in CANARIES.values():
        for place in [*places, *stored]:
            found = subprocess.run(
                ["grep", "-rlF", "--binary-files=text", secret, str(place)], capture_output=True
            )
            assert found.stdout == b""
        assert secret not in login.lab.run("scontrol", "show", "job", "--details")
    # The job did get them: W&B was on.
    log = next((trained / "logs" / "train").glob("*.log")).read_text()
    assert "wandb" in log.lower()


def test_a_refused_submit_leaves_nothing(login, scenes):
    words = ("submit", "recipe=ar_tiny", "cluster=mine", f"data.input={scenes}", "--name", "big")
    for wrong in ("gpu_partition=big", "time.train=9-00:00:00"):
        outcome = login.command(*words, f"cluster.{wrong}")
        assert outcome.code == 2
        assert "No job of this run was submitted" in outcome.err
        assert not login.run("big").exists()
    # What only Slurm itself knows.
    outcome = login.command(*words, "cluster.sbatch=['--constraint=none']")
    assert (outcome.code, "Slurm would not take" in outcome.err) == (2, True), outcome.err
    assert login.status("big")["state"] == "prepared"


def test_the_pasted_dry_run_does_what_submit_does(login, scenes):
    """From inside an allocation, from a folder that is no repository."""
    request = ("data.input=" + str(scenes), "data.videos_per_shard=4")
    stages = ("--stages", "download,preprocess,finalize")
    dry = login.submit("pasted", *request, *stages, "--dry-run")
    text = dry.out
    assert login.queued("pasted") == []
    assert login.status("pasted")["state"] == "prepared"
    checked = subprocess.run(
        [SHELLCHECK, "-s", "bash", "-"], input=text, capture_output=True, text=True
    )
    assert checked.returncode == 0, checked.stdout
    inside = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "64", "SBATCH_PARTITION": "nope"}
    pasted = subprocess.run(
        ["bash"],
        input=text,
        env={**login.lab.environment, **inside},
        capture_output=True,
        text=True,
        cwd=login.home,
    )
    assert pasted.returncode == 0, pasted.stderr
    assert login.status("pasted")["state"] in ("queued", "running")
    # A submit finds these jobs, and adds none.
    again = login.submit("pasted", *request, *stages)
    assert "job" not in again.err.partition("run ")[2]
    login.wait("pasted", "finalize", "done", "failed")
    assert login.stage("pasted", "finalize")["state"] == "done", login.explain("pasted")


def test_a_dry_run_writes_scripts_and_may_be_changed_afterwards(login, scenes):
    words = (f"data.input={scenes}", "cluster.parallel=4", "--dry-run", "--output", "scripts")
    outcome = login.submit("dry", *words)
    written = sorted(p.name for p in (login.home / "scripts").iterdir())
    assert written == sorted([*(f"{stage}_sbatch.sh" for stage in STAGES), "submit.sh"])
    assert outcome.out.split() == [
        *(str(login.home / "scripts" / f"{stage}_sbatch.sh") for stage in STAGES),
        "scripts/submit.sh",
    ]
    for path in (login.home / "scripts").iterdir():
        assert subprocess.run([SHELLCHECK, str(path)]).returncode == 0
    login.submit("dry", *words, "data.videos_per_shard=3", "train.max_steps=7")
    shards = json.loads((login.run("dry") / "data" / "shards.json").read_text())
    assert len(shards["bounds"]) - 1 == 4  # as many as tasks run at a time
    assert not (login.run("dry") / "stages" / "jobs.jsonl").exists()
    assert login.command("submit", "recipe=ar_tiny", "--output", "x").code == 2


def test_what_slurm_would_not_take_is_refused_before_anything_is_queued(login, scenes):
    request = ("submit", "recipe=ar_tiny", "cluster=mine", f"data.input={scenes}", "--name")
    for number, (override, expected) in enumerate(
        [
            ("cluster.gpu_partition=nope", "gpu_partition: there is no partition nope"),
            ("cluster.time.download=3-00:00:00", "above the 240 minutes that cpu allows"),
            ("cluster.gres=gpu:a100", "but a node of gpu has 8 of h100"),
            ("cluster.sbatch=['--constraint=x']", "not take the job of stage download"),
            ("cluster.gpus_per_node=5", "train.gpus=9 does not spread over nodes of 5 GPUs"),
            ("cluster.time.train=00:05:00", "leaves no time to work"),
        ]
    ):
        more = ("train.gpus=9", "train.global_batch_size=72") if "spread" in expected else ()
        outcome = login.command(*request, f"bad{number}", override, *more)
        assert outcome.code == 2, outcome.out
        assert expected in outcome.err
        assert "Traceback" not in outcome.err
        assert login.queued(f"bad{number}") == []


def test_a_failed_stage_cancels_what_waits_for_it(login, tmp_path):
    """And a retry resumes from there; completed work is skipped."""
    videos = tmp_path / "videos"
    videos.mkdir()
    for number in range(4):
        (videos / f"{number}.mp4").write_text("no video")
    words = (f"data.input={videos}", "data.max_failed_fraction=0")
    login.submit("broken", *words)
    login.wait("broken", "finalize", "failed")
    login.until(lambda: login.queued("broken") == [])
    state = login.status("broken")
    assert state["state"] == "failed"
    states = [stage["state"] for stage in state["stages"]]
    assert states == ["done", "done", "failed", *["waiting"] * 4]
    assert "no video could be prepared: 4 of 4" in state["stages"][2]["errors"]["0"]
    assert "cosmos-hpc retry broken" in state["note"]
    outcome = login.command("retry", "broken", "finalize")
    assert outcome.code == 0, outcome.err
    queued = login.queued("broken")
    assert {name.partition(".")[0] for name in queued} == set(list(STAGES)[2:])
    login.wait("broken", "finalize", "failed")
    login.until(lambda: login.queued("broken") == [])


def test_uncommitted_code_is_what_runs(login, scenes, tmp_path):
    """Submitted from a changed checkout: its snapshot runs, and the change is on record."""
    checkout = tmp_path / "checkout"
    for folder in ("cosmos_hpc", "recipes"):
        shutil.copytree(REPOSITORY / folder, checkout / folder)
    git = ["git", "-C", str(checkout), "-c", "user.name=x", "-c", "user.email=x@x"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    worker = checkout / "cosmos_hpc" / "worker" / "stages" / "download.py"
    worker.write_text(worker.read_text() + "\nprint('changed by hand')\n")
    words = (f"data.input={scenes}", "--stages", "download")
    login.submit("changed", *words, PYTHONPATH=str(checkout))
    login.wait("changed", "download")
    assert "changed by hand" in login.command("logs", "changed", "download").out
    info = json.loads((login.run("changed") / "run.json").read_text())
    assert "cosmos_hpc/worker/stages/download.py" in info["git"]["changed"]


def test_inside_an_allocation_and_with_inherited_variables(login, scenes):
    """submit in a job's shell takes nothing of that job."""
    words = ["submit", "recipe=ar_tiny", "cluster=mine", "--name", "inside", "--stages", "download"]
    command = [sys.executable, "-m", "cosmos_hpc", *words, f"data.input={scenes}"]
    done = subprocess.run(
        ["salloc", "-Q", "--ntasks=3", "--partition=urgent", *command],
        env={**login.lab.environment, "SBATCH_NTASKS": "8", "SBATCH_TIMELIMIT": "9-00"},
        cwd=login.home,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    login.wait("inside", "download")
    shown = login.lab.run("scontrol", "show", "job", login.submitted("inside")[0])
    assert "Partition=cpu" in shown
    assert "NumTasks=1" in shown
    assert "TimeLimit=02:00:00" in shown


def test_in_a_container(pyxis_lab, scenes, tmp_path):
    """What pyxis is asked for: the run folder and the videos at their paths, no home."""
    login = Login(pyxis_lab, tmp_path)
    image = tmp_path / "image.sqsh"
    image.touch()
    words = (f"cluster.container={image}", f"cluster.python={sys.executable}")
    # The folder of the Hub's files lies behind a link.
    link, real = tmp_path / "link", tmp_path / "real"
    real.mkdir()
    link.symlink_to(real)
    words += ("--stages", "download,preprocess")
    login.submit("inside", f"data.input={scenes}", *words, HF_HOME=str(link))
    login.wait("inside", "preprocess", "done", "failed")
    assert login.stage("inside", "preprocess")["state"] == "done", login.explain("inside")
    run = login.run("inside")
    # Other tests use the cluster as well.
    steps = [dict(step["options"]) for step in pyxis_lab.container_steps()]
    steps = [options for options in steps if options.get("container-workdir") == str(run)]
    assert len(steps) == 3
    for options in steps:
        assert options["container-image"] == str(image)
        mounts = options["container-mounts"].split(",")
        assert {f"{path}:{path}" for path in (run, scenes, link, real)} <= set(mounts)
        assert "no-container-mount-home" in options
        assert "COSMOS_HPC_STOP" in options["container-env"].split(",")


def test_runs_of_a_sweep_share_tokens_in_containers(pyxis_lab, scenes, tmp_path):
    """What links the tokens sees the folder of the run that prepares them."""
    login = Login(pyxis_lab, tmp_path)
    image = tmp_path / "image.sqsh"
    image.touch()
    words = (f"cluster.container={image}", f"cluster.python={sys.executable}", "train.seed=1,2")
    login.submit("s", f"data.input={scenes}", *words, "--stages", "download,preprocess,finalize")
    login.wait("s-seed2", "finalize", "done", "failed")
    first, second = (login.run(f"s-seed{seed}") for seed in (1, 2))
    assert (second / "tokens" / "tokens.bin").samefile(first / "tokens" / "tokens.bin")
    steps = [dict(step["options"]) for step in pyxis_lab.container_steps()]
    mounts = [s["container-mounts"] for s in steps if s.get("container-workdir") == str(second)]
    assert len(mounts) == 2
    assert all(f"{second.parent}:{second.parent}" in each.split(",") for each in mounts)


def test_a_container_without_pyxis_is_refused(login, scenes, tmp_path):
    image = tmp_path / "image.sqsh"
    image.touch()
    outcome = login.command(
        *("submit", "recipe=ar_tiny", "cluster=mine", f"data.input={scenes}", "--name", "boxed"),
        *(f"cluster.container={image}",),
    )
    assert outcome.code == 2
    assert "this cluster has no pyxis" in outcome.err
    assert login.queued("boxed") == []


def test_a_training_with_too_little_memory_for_a_checkpoint_is_taken_back(login, scenes, tmp_path):
    request = ("submit", "recipe=ar4b", "cluster=mine", f"data.input={scenes}", "--name", "large")
    request += ("train.gpus=1", "cluster.sbatch=['--hold']")
    request += ("cluster.check_disk=false", "--stages", "download,preprocess,finalize,train")
    hub = {"HF_HOME": str(tmp_path)}
    refused = login.command(*request, **hub)
    assert refused.code == 2
    assert "gives the job of stage train 1 GB of memory, and writing a checkpoint takes 48 GB" in (
        refused.err
    )
    assert "set cluster.mem_per_gpu=53G" in refused.err
    assert login.queued("large") == []
    taken = login.command(*request, "cluster.mem_per_gpu=53G", **hub)
    assert taken.code == 0, taken.err
    (train,) = login.jobs("large", "train", "PENDING")
    assert "mem=53G" in login.lab.run("scontrol", "show", "job", train)
    assert login.command("cancel", "large").code == 0
    assert login.command(*request, "cluster.check_memory=false", **hub).code == 0
    assert login.command("cancel", "large").code == 0
