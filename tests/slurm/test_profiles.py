"""``cluster init`` and ``cluster check`` on a real Slurm."""

import re
import sys

import pytest
import yaml

from cosmos_hpc.backends.findings import libraries
from tests.conftest import cosmos_hpc
from tests.slurm.login import PROFILE, Login


def run(lab, *words, cwd, **env):
    """A command as on the cluster's login node, inside somebody's allocation."""
    inherited = {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "64", "SBATCH_PARTITION": "nope"}
    return cosmos_hpc(*words, cwd=cwd, env={**lab.environment, **inherited, **env})


@pytest.fixture
def profile(any_lab, tmp_path):
    """The proposed profile of the lab, in a working folder."""
    assert run(any_lab, "cluster", "init", "mine", cwd=tmp_path).code == 0
    return tmp_path


def test_init_proposes_what_slurm_says(any_lab, tmp_path):
    # As under cron, or after su.
    outcome = run(any_lab, "cluster", "init", cwd=tmp_path, USER="")
    assert outcome.code == 0, outcome.err
    path = tmp_path / "clusters" / "lab.yaml"
    assert outcome.out == path.read_text()
    found = yaml.safe_load(outcome.out)
    assert found["kind"] == "slurm"
    assert (found["gpu"], found["gpus_per_node"], found["gres"]) == ("H100-80", 8, "gpu:h100")
    assert (found["gpu_partition"], found["cpu_partition"]) == ("gpu", "cpu")
    assert found["time"]["train"] == "04:00:00"
    assert found["max_array_size"] == 1001
    assert found["container"] is None
    assert "this cluster has no pyxis" in outcome.out
    assert found["account"] == ("lab" if any_lab.accounting else None)
    again = run(any_lab, "cluster", "init", cwd=tmp_path)
    assert again.code == 2
    assert "clusters/lab.yaml exists" in again.err


def test_a_proposed_profile_passes_its_check_and_plans(any_lab, profile):
    outcome = run(any_lab, "cluster", "check", "mine", cwd=profile, HF_TOKEN="x" * 9)
    assert outcome.code == 0, outcome.out + outcome.err
    assert "Slurm would take a job of stage train" in outcome.out
    assert "HF_TOKEN is set" in outcome.out
    assert "x" * 9 not in outcome.out + outcome.err
    assert ("without accounting" in outcome.out) == (not any_lab.accounting)
    plan = run(any_lab, "plan", "recipe=ar12b", "cluster=mine", cwd=profile)
    assert "parameter model on 8 H100-80 GPUs" in plan.out, plan.err


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("gpu_partition=gpus", "gpu_partition: there is no partition gpus; did you mean gpu?"),
        ("cpu_partition=night", "cpu_partition: there is no partition night; there are gpu, cpu"),
        ("time.download=05:00:00", "time.download=05:00:00 is above the 240 minutes that cpu"),
        ("time.train=3-00:00:00", "time.train=3-00:00:00 is above the 2880 minutes that gpu"),
        ("gpus_per_node=16", "gpus_per_node=16 with gres=gpu:h100, but a node of gpu has 8 of h1"),
        ("gpu=H200-141", "gpu=H200-141, but Slurm calls GPUs of gpu h100; set gpu to H100-80"),
        ("gres=gpu:a100", "but a node of gpu has 8 of h100"),
        ("nodes=9", "nodes=9, but gpu has 3"),
        ("max_array_size=5000", "max_array_size=5000, but the cluster's MaxArraySize is 1001"),
        ("container=/no/image.sqsh", "container /no/image.sqsh is not there or not readable"),
        ("container=nvcr.io#x:1", "this cluster has no pyxis: srun knows no --container-image"),
        ("sbatch=['--constraint=nvl']", "Slurm would not take a job of stage train: "),
        ("runs=/proc/none", "runs=/proc/none: writing to /proc failed"),
    ],
)
def test_check_says_what_will_not_work(lab, tmp_path, override, expected):
    assert run(lab, "cluster", "init", "mine", cwd=tmp_path).code == 0
    outcome = run(lab, "cluster", "check", "mine", override, cwd=tmp_path)
    assert outcome.code == 2
    assert f"problem  {expected}" in outcome.out.replace("  problem ", "problem ") or (
        expected in outcome.out
    )
    assert "with cluster mine" in outcome.err


def test_a_gpu_of_another_name_may_be_meant_so(lab, profile):
    """Plans for less memory than there is do no harm."""
    other = run(lab, "cluster", "check", "mine", "gpu=A100-80", cwd=profile)
    assert (other.code, "note" in other.out) == (0, True)
    assert "gpu=A100-80, but Slurm calls GPUs of gpu h100" in other.out
    part = run(lab, "cluster", "check", "mine", "gpu=40GB", cwd=profile)
    assert (part.code, "Slurm calls" in part.out) == (0, False)


def test_an_account_and_a_qos_that_are_not_yours(any_lab, profile):
    words = ("account=physics", "qos=urgent")
    outcome = run(any_lab, "cluster", "check", "mine", *words, cwd=profile)
    if any_lab.accounting:
        assert outcome.code == 2
        assert "account=physics; yours are lab, root" in outcome.out
    else:
        assert "Slurm does not tell here which account and qos you may use" in outcome.out


def test_a_python_that_lacks_what_jobs_need(lab, profile, tmp_path):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -I -S "$@"\n')
    bare.chmod(0o755)
    outcome = run(lab, "cluster", "check", "mine", f"python={bare}", cwd=profile)
    assert outcome.code == 2
    assert f"problem  python={bare} has no {', '.join(libraries())}; pip install" in outcome.out
    assert "'.[train]'" in outcome.out
    assert "or say python: or container: in the profile" in outcome.out
    outcome = run(lab, "cluster", "check", "mine", cwd=profile)
    assert f"python: {sys.executable} has {', '.join(libraries())}" in outcome.out
    outcome = run(lab, "cluster", "check", "mine", "python=/no/python", cwd=profile)
    assert "note     python=/no/python does not run here" in outcome.out


def test_a_partition_that_is_down(lab, tmp_path):
    assert run(lab, "cluster", "init", "mine", cwd=tmp_path).code == 0
    lab.run("scontrol", "update", "partitionname=cpu", "state=down")
    try:
        outcome = run(lab, "cluster", "check", "mine", cwd=tmp_path)
    finally:
        lab.run("scontrol", "update", "partitionname=cpu", "state=up")
    assert "cpu_partition: cpu is down" in outcome.out
    assert outcome.code == 2


def test_a_limit_of_a_qos(any_lab, profile):
    """Of the one that jobs name, of the default one, and of that of a partition."""
    if not any_lab.accounting:
        pytest.skip("Slurm has no QOS without accounting")

    def most(*words):
        out = run(any_lab, "cluster", "check", "mine", *words, cwd=profile).out
        return re.findall(r"you may have (\d+) jobs in the queue; with max_submit=(\d+)", out)

    user = ("sacctmgr", "-i", "modify", "user", "root", "set")
    limits = (
        "MaxSubmitJobsPerUser=6",
        "GrpSubmitJobs=8",
        "MaxWall=60",
        "MaxTRESPerUser=gres/gpu=4",
    )
    any_lab.run("sacctmgr", "-i", "add", "qos", "small", *limits)
    try:
        any_lab.run(*user, "qos+=small")
        assert most("qos=small") == [("6", "6")]
        assert most("qos=normal") == most() == []
        any_lab.run(*user, "defaultqos=small")
        assert most() == [("6", "6")]
        proposed = run(any_lab, "cluster", "init", "other", cwd=profile).out
        assert "max_submit: 6" in proposed
        assert 'train: "01:00:00"' in proposed
        checked = run(any_lab, "cluster", "check", "mine", cwd=profile).out
        assert "note     time.train=04:00:00 is above the 60 minutes that QOS small" in checked
        assert "note     a job of 8 GPUs is above the 4 that QOS small allows" in checked
        any_lab.run(*user, "defaultqos=normal")
        assert most() == []
        any_lab.run("scontrol", "update", "partitionname=cpu", "qos=small")
        assert most() == [("6", "6")]
    finally:
        any_lab.run("scontrol", "update", "partitionname=cpu", "qos=")
        any_lab.run(*user, "defaultqos=-1", "qos=normal")
        any_lab.run("sacctmgr", "-i", "delete", "qos", "small")


def test_nodes_that_are_away_are_waited_for(lab, tmp_path, scenes):
    """sbatch queues such jobs; what it refuses for good is refused all the same."""
    login = Login(lab, tmp_path / "home")
    login.lab.run("scontrol", "update", "nodename=n[1-3]", "state=drain", "reason=power")
    try:
        checked = login.command("cluster", "check", "mine")
        assert checked.code == 0, checked.out
        assert "note     a job of stage train would have to wait: of 3 nodes of gpu, 3 drained" in (
            checked.out
        )
        outcome = login.submit("waits", f"data.input={scenes}")
        assert "train       of 3 nodes of gpu, 3 drained; it waits until they are" in outcome.err
        assert len(login.jobs("waits", "train", "PENDING")) == 1
        words = ("submit", "recipe=ar_tiny", "cluster=mine", f"data.input={scenes}", "--name=no")
        refused = login.command(*words, "cluster.sbatch=['--mincpus=10000']")
        assert refused.code == 2
        assert "Slurm does not take" in refused.err
        assert login.queued("no") == []
    finally:
        login.command("cancel", "waits", "--now")
        login.lab.run("scontrol", "update", "nodename=n[1-3]", "state=resume")


def test_without_slurm_it_is_one_sentence(tmp_path):
    (tmp_path / "clusters").mkdir()
    (tmp_path / "clusters" / "mine.yaml").write_text(PROFILE)
    for words in (("init",), ("check", "mine")):
        env = {"PATH": "/nowhere", "SLURM_CONF": ""}
        outcome = cosmos_hpc("cluster", *words, cwd=tmp_path, env=env)
        assert outcome.code == 2
        assert outcome.err.count("\n") == 1
        assert "run this on a login node" in outcome.err
    assert [path.name for path in tmp_path.rglob("*")] == ["clusters", "mine.yaml"]


def test_this_machine_can_be_checked_as_well(tmp_path):
    outcome = cosmos_hpc("cluster", "check", "local", cwd=tmp_path)
    assert outcome.code == 0, outcome.err
    assert f"ok       runs: {tmp_path}/runs can be written" in outcome.out
    assert f"ok       python: {sys.executable} has {', '.join(libraries())}" in outcome.out
    outcome = cosmos_hpc("cluster", "check", "local", "gpus=64", "parallel=1", cwd=tmp_path)
    assert outcome.code == 2
    assert "problem  gpus=64, and this machine has" in outcome.out


def test_a_limit_of_jobs_in_the_queue(any_lab, profile, scenes):
    """Slurm counts array tasks one by one; with fewer allowed they take turns of several shards."""
    if not any_lab.accounting:
        pytest.skip("Slurm has no such limit without accounting")
    any_lab.run("sacctmgr", "-i", "modify", "user", "root", "set", "maxsubmit=6")
    try:
        outcome = run(any_lab, "cluster", "check", "mine", cwd=profile)
        assert "max_submit=None, but you may have 6 jobs in the queue" in outcome.out
        words = ("submit", "recipe=ar_tiny", "cluster=mine", f"data.input={scenes}", "--name=x")
        words += ("data.videos_per_shard=1", "cluster.gres=gpu", "cluster.sbatch=['--hold']")
        refused = run(any_lab, *words, cwd=profile)
        assert refused.code == 2
        assert "with max_submit=6 array tasks prepare several shards" in refused.err
        taken = run(any_lab, *words, "cluster.max_submit=6", cwd=profile)
        assert taken.code == 0, taken.err
        assert "3 array tasks" in taken.err
        # What is in the queue already counts.
        more = [word if word != "--name=x" else "--name=y" for word in words]
        refused = run(any_lab, *more, "cluster.max_submit=6", cwd=profile)
        assert refused.code == 2
        assert "you have 6 jobs in the queue, and max_submit=6 leaves no room for 4" in refused.err
        any_lab.run("sacctmgr", "-i", "modify", "user", "root", "set", "maxsubmit=11")
        assert "2 array tasks" in run(any_lab, *more, "cluster.max_submit=11", cwd=profile).err
        again = run(any_lab, "cluster", "init", "other", cwd=profile)
        assert "max_submit: 11" in again.out
        for name in ("x", "y"):
            assert run(any_lab, "cancel", name, cwd=profile).code == 0
    finally:
        any_lab.run("sacctmgr", "-i", "modify", "user", "root", "set", "maxsubmit=-1")
