"""Containers that do not start on a node, on a real Slurm: the script of a job, without a run."""

import json
import time

import pytest

from cosmos_hpc.backends.slurm.jobs import JobSpec
from cosmos_hpc.backends.slurm.profile import SlurmCluster
from cosmos_hpc.backends.slurm.script import render
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.snapshots import snapshot_code
from cosmos_hpc.runs.stages import STAGES, RunStage
from cosmos_hpc.utils.settings import validate
from tests.backends.slurm.test_jobs import PROFILE
from tests.conftest import executables

#: In the place of Python: a worker that is done when all nodes have come.
WORKER = """\
echo "ran on $SLURMD_NODENAME in $(ls -d /cosmos-hpc-container)"
: >"$COSMOS_HPC_STOP.$SLURMD_NODENAME"
for _ in {1..100}; do
    there=("$COSMOS_HPC_STOP".n?)
    [ ${#there[@]} -lt "$SLURM_NNODES" ] || break
    sleep 0.1
done
[ ${#there[@]} -ge "$SLURM_NNODES" ] || exit 1
for word in begun done; do : >"$COSMOS_HPC_STOP.$word"; done
"""
#: What pyxis calls for containers, with the folders that stand for them here.
ENROOT = """\
cd {containers}/"$SLURMD_NODENAME" || exit
case $1 in list) ls;; remove) rmdir "$3" && echo "removed $3 on $SLURMD_NODENAME";; esac
"""


class Submitted:
    """A job of the stage train in a container."""

    def __init__(self, lab, folder, worker, nodes=1):
        self.lab, self.run = lab, RunFolder(folder / "run")
        for path in (
            self.run.attempts("x", 0),
            self.run.error("x", 0),
            self.run.task_stop("x", 0),
            self.run.logs / "train" / "x",
        ):
            path.parent.mkdir(parents=True)
        code = self.run.path / "code"
        commands = executables(
            folder / "bin", worker=worker, enroot=ENROOT.format(containers=lab.containers)
        )
        settings = {
            **PROFILE,
            "parallel": 1,
            "container": "/images/x.sqsh",
            "python": str(commands / "worker"),
            # Half a minute is too long for a test.
            "setup": ["sleep() { command sleep 0.5; }", f"PATH={commands}:$PATH"],
        }
        job = JobSpec(RunStage(STAGES["train"], ranks=nodes), nodes=nodes)
        cluster = validate(SlurmCluster, settings, "x")
        text = render(job, self.run, cluster, "id", code / snapshot_code(code))
        script = folder / "job.sh"
        script.write_text(text)
        self.id = lab.run("sbatch", "--parsable", str(script)).strip()

    @property
    def notes(self):
        path = self.run.attempts("train", 0)
        rows = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
        return [(row["why"], row["node"]) for row in rows]

    @property
    def log(self):
        return (self.run.logs / "train" / f"{self.id}.log").read_text()

    def until(self, condition):
        deadline = time.monotonic() + 90
        while not condition():
            assert time.monotonic() < deadline, (self.notes, self.log)
            time.sleep(0.2)


@pytest.mark.parametrize("nodes", [1, 2])
def test_a_node_without_pyxis_is_left(pyxis_lab, tmp_path, nodes):
    """The first node of the job, whose srun refuses the flags, or one that ignores them."""
    wrong = f"n{nodes}"
    with pyxis_lab.without_pyxis(wrong):
        job = Submitted(pyxis_lab, tmp_path, WORKER, nodes)
        job.until(lambda: [why for why, _ in job.notes][-1:] in (["done"], ["failed"]))
    assert job.notes[1] == ("unstarted", wrong)
    assert [why for why, _ in job.notes] == ["", "unstarted", "", "done"], job.log
    said = "unrecognized option" if nodes == 1 else f"{wrong} runs this outside of the container"
    assert said in job.log
    assert f"the job is kept off {wrong}" in job.log
    assert f"ran on {wrong} in" not in job.log


def test_a_container_that_a_lost_step_has_left_is_removed(pyxis_lab, tmp_path):
    lost = f'[ -n "${{SLURM_RESTART_COUNT:-}}" ] || {{ kill -9 $PPID; exit; }}\n{WORKER}'
    job = Submitted(pyxis_lab, tmp_path, lost)
    job.until(lambda: list(pyxis_lab.containers.glob(f"*/pyxis_{job.id}.0")))
    time.sleep(2)
    # srun waits for ever, until somebody ends the job.
    assert job.notes == [("", "n1")]
    pyxis_lab.run("scontrol", "requeue", job.id)
    job.until(lambda: [why for why, _ in job.notes][-1:] in (["done"], ["failed"]))
    assert [why for why, _ in job.notes][-1] == "done", job.log
    assert f"removed pyxis_{job.id}.0 on n1" in job.log
    assert not list(pyxis_lab.containers.glob(f"*/pyxis_{job.id}.*"))
