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

    def start(self, text, squeue="echo RUNNING", restarts=0):
        folder = executables(
            self.commands, squeue=squeue, scontrol=f'echo "$@" >>{self.record}', sleep=""
        )
        environment = {"PATH": f"{folder}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
        environment |= {"SLURM_RESTART_COUNT": str(restarts), "SLURMD_NODENAME": "n1"}
        return subprocess.Popen(["bash", "-c", text], env=environment)

    def code(self, work, squeue="echo RUNNING", restarts=0, **settings):
        return self.start(self.text(work, **settings), squeue, restarts).wait(timeout=60)

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
    log = job.run.path / "logs/train/7.log"
    log.parent.mkdir(parents=True)
    log.write_text("srun: error: of an attempt before\n")
    says = [
        "slurmstepd: error: execve(): python3: No such file or directory",
        "srun: error: n1: task 0: Exited with exit code 2",
    ]
    work = "; ".join(f"echo '{line}' >>$run/$log" for line in [*says, "a line of the site"])
    assert job.code(f"{BEGUN}; {work}") == 75
    assert job.why == "killed"
    assert job.code(f"{work}; return 2", restarts=1) == 75
    assert job.why == "unstarted"
    assert job.record.read_text() == "requeue 7\n" * 2
    assert job.code(f"{work}; return 2", restarts=2) == 1
    assert job.reason == f"did not start, attempt 3 of 3, on n1: {says[0]}"


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
        ("echo CANCELLED", "cancelled", ""),
        ("echo COMPLETING", "cancelled", ""),
        ("exit 1", "killed", "Slurm did not say whether it is to be queued again"),
    ],
)
def test_what_slurm_says_of_the_job_decides_whether_it_comes_back(job, squeue, why, reason):
    assert job.code("true", squeue) == (1 if reason else 75)
    assert job.why == why
    assert reason in job.reason
    assert not job.requeued
