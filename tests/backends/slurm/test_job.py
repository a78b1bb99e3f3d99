"""How a job works on a task: ``job.sh`` in real bash.

Slurm's commands are told what to say. A task is a shell function, as the rendered script defines
one before the lines of that file.
"""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from cosmos_hpc.backends.slurm import script
from cosmos_hpc.runs.attempts import read_attempt
from cosmos_hpc.runs.folder import RunFolder
from tests.conftest import executables

JOB = Path(script.__file__).with_name("job.sh")
#: What a worker says when it has done its task, and when it has stopped on request.
BEGUN, DONE, STOPPED = (f': >"$COSMOS_HPC_STOP.{word}"' for word in ("begun", "done", "stopped"))
REASON = "echo 'the disk is full' >\"$run/stages/errors/train.0.txt\""


class Job:
    """A job of the stage train: what it is given, and what came of it."""

    def __init__(self, folder):
        self.run = RunFolder(folder / "run")
        for name in ("attempts", "errors", "stops"):
            (self.run.path / "stages" / name).mkdir(parents=True)
        self.record = folder / "scontrol"
        self.commands = folder / "bin"

    def text(self, work, retries=2, requeues=20, before=""):
        return "\n".join(
            [
                f"run={self.run.path}; stage=train; job=7; log=logs/train/7.log",
                f"requeues={requeues}; retries={retries}",
                f"work() {{ {work}; }}",
                f"source {JOB}",
                before,
                "do_task 0",
            ]
        )

    def start(self, text, squeue="echo RUNNING", restarts=0, sbatch="exit 1", scontrol=""):
        says = f'case $1 in show) echo "JobId=7 ExcNodeList=n8 NodeList=n1 x";; {scontrol} esac'
        folder = executables(
            self.commands,
            squeue=squeue,
            scontrol=f'[ "$1" = show ] || echo "$@" >>{self.record}\n{says}',
            sbatch=f'echo "$@" >>{self.record}\n{sbatch}',
            sleep="",
        )
        environment = {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
        environment |= {"SLURM_RESTART_COUNT": str(restarts), "SLURMD_NODENAME": "n1"}
        return subprocess.Popen(["bash", "-c", text], env=environment)

    def code(self, work, squeue="echo RUNNING", restarts=0, sbatch="exit 1", **settings):
        text = self.text(work, **settings)
        return self.start(text, squeue, restarts, sbatch).wait(timeout=60)

    @property
    def commanded(self):
        """What Slurm was told to do."""
        return self.record.read_text().splitlines()

    def says(self, *lines):
        """A worker's shell text that leaves these in the log."""
        (self.run.path / "logs/train").mkdir(parents=True, exist_ok=True)
        return "; ".join(f"echo '{line}' >>$run/$log" for line in lines)

    @property
    def why(self):
        return read_attempt(self.run, "train", 0).why

    @property
    def reason(self):
        path = self.run.error("train", 0)
        return path.read_text().strip() if path.exists() else ""

    @property
    def requeued(self):
        return self.record.exists() and self.record.read_text() == "requeue 7\n"


@pytest.fixture
def job(tmp_path):
    return Job(tmp_path)


def test_a_task_that_is_done(job):
    assert job.code(DONE) == 0
    attempt = read_attempt(job.run, "train", 0)
    assert (attempt.job, attempt.node, attempt.why) == ("7", "n1", "done")
    assert attempt.log == job.run.path / "logs/train/7.log"
    assert not job.requeued


def test_a_task_that_leaves_a_reason_has_failed(job):
    assert job.code(f"{REASON}; return 1") == 1
    assert (job.why, job.reason, job.requeued) == ("failed", "the disk is full", False)


@pytest.mark.parametrize("work", ["true", "kill -9 $BASHPID", f"{BEGUN}; return 1"])
def test_a_worker_that_says_nothing_was_killed(job, work):
    """Also where srun returns 0, as it does when it has lost its node."""
    assert job.code(work) == 75
    assert (job.why, job.reason, job.requeued) == ("killed", "", True)


def test_what_an_attempt_before_has_left_does_not_count(job):
    job.run.error("train", 0).write_text("of yesterday")
    Path(f"{job.run.task_stop('train', 0)}.done").touch()
    assert job.code("true") == 75
    assert (job.why, job.reason) == ("killed", "")


def test_a_task_is_given_up_when_it_was_killed_too_often_in_one_job(job):
    codes = [job.code("true", restarts=n) for n in range(3)]
    assert codes == [75, 75, 1]
    assert job.reason == "ended 3 times without a reason, perhaps out of memory"
    assert job.why == "failed"


def test_a_worker_that_does_not_start_is_told_from_one_that_was_killed(job):
    says = [
        "slurmstepd: error: execve(): python3: No such file or directory",
        "srun: error: n1: task 0: Exited with exit code 2",
    ]
    work = job.says(*says, "a line of the site")
    (job.run.path / "logs/train/7.log").write_text("srun: error: of an attempt before\n")
    assert job.code(f"{BEGUN}; {work}") == 75
    assert job.why == "killed"
    assert job.code(f"{work}; return 2", restarts=1) == 75
    assert job.why == "unstarted"
    # No other node could take it.
    tried = "--test-only --exclude=n8,n1 bash"
    assert job.commanded == ["requeue 7", tried, "requeue 7"]
    assert job.code(f"{work}; return 2", restarts=2) == 1
    assert job.reason == f"did not start, attempt 3 of 3, on n1: {says[0]}"


@pytest.mark.parametrize(
    ("line", "node"),
    [
        ("srun: error: n2: task 1: Exited with exit code 1", "n2"),
        ("srun: error: n[2-3]: tasks 1-2: Exited with exit code 1", "n[2-3]"),
        ("srun: error: Task launch for StepId=7.0 failed on node n3: Unspecified error", "n3"),
        ("srun: error: Unable to create step for job 7: Invalid container", "n1"),
    ],
)
def test_a_job_goes_on_without_the_node_that_its_worker_did_not_start_on(job, line, node):
    """Which is not always the one that the script is on."""
    others = "srun: error: n1: task 0: Exited with exit code 143"
    work = job.says(line, others if node != "n1" else "")
    assert job.code(f"{work}; return 1", sbatch="") == 75
    avoided = f"n8,{node}"
    assert job.commanded[1:] == ["requeue 7", f"update JobId=7 ExcNodeList={avoided}"]
    work = job.says("srun: error: n5: task 0: Exited with exit code 1")
    assert job.code(f"{work}; return 1", restarts=1, retries=1) == 1
    assert job.reason.startswith(f"did not start, attempt 2 of 2, on {node}, n5: ")


def test_a_job_is_not_started_again_for_ever(job):
    assert job.code(STOPPED, restarts=4, requeues=4) == 1
    assert "requeues=4 times it was started again already" in job.reason
    assert not job.requeued


def test_a_cancelled_run_is_left(job):
    job.run.stop_request.touch()
    assert job.code(STOPPED) == 75
    assert (job.why, job.requeued) == ("cancelled", False)


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGTERM"])
def test_a_warning_reaches_the_worker_and_queues_the_job_again(job, name):
    stop = job.run.task_stop("train", 0)
    # The worker looks for the file, as ours do; sleep is a command that returns at once here.
    work = f'until [ -e "$COSMOS_HPC_STOP" ]; do read -rt 0.05 <> <(:); done; {STOPPED}'
    process = job.start(job.text(work))
    deadline = time.monotonic() + 30
    while not job.run.attempts("train", 0).exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert not stop.exists()
    process.send_signal(getattr(signal, name))
    assert process.wait(timeout=30) == 75
    assert stop.exists()
    assert (job.why, job.requeued) == ("stopped", True)


def test_a_warning_between_tasks_begins_no_other(job):
    text = job.text(f'echo begun >"$run/begun"; {DONE}', before="kill -USR1 $$")
    assert job.start(text).wait(timeout=30) == 75
    assert not (job.run.path / "begun").exists()
    assert (job.why, job.requeued) == ("stopped", True)


@pytest.mark.parametrize(
    ("squeue", "why", "reason"),
    [
        ("echo PENDING", "killed", ""),  # Slurm was faster
        ("echo 'Welcome to HPC'; echo CANCELLED; echo 'Have a nice day'", "cancelled", ""),
        ("echo COMPLETING", "cancelled", ""),
        ("exit 1", "killed", "Slurm did not say whether it is to be queued again"),
    ],
)
def test_what_slurm_says_of_the_job_decides_whether_it_comes_back(job, squeue, why, reason):
    assert job.code("true", squeue) == (1 if reason else 75)
    assert job.why == why
    assert reason in job.reason
    assert not job.requeued
