"""The main job: raw videos in, a post-trained model out, through interruptions too."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cosmos_hpc.api import Run
from cosmos_hpc.runs.folder import RunFolder
from cosmos_hpc.runs.stages import marker_path
from cosmos_hpc.utils import files
from tests.conftest import CANARIES, REQUEST, cosmos_hpc, steps_of

pytestmark = pytest.mark.slow


def test_raw_videos_in_a_trained_model_out(finished):
    assert finished.first.code == 0, finished.first.err
    run = RunFolder(finished.path)
    assert "checkpoint  " in finished.first.out
    for path in (
        run.train.loss_curve,
        run.train.metrics,
        run.tokens.prefix.with_suffix(".bin"),
        run.tokens.clips,
    ):
        assert path.stat().st_size > 0
    assert run.train.loss_curve.read_bytes().startswith(b"\x89PNG")
    marker = files.read_json(marker_path(run, "train"))
    checkpoint = run.path / marker["checkpoint"]
    assert (checkpoint / "weights" / ".metadata").is_file()
    assert (checkpoint / "context" / "io.json").is_file()
    # At least two array tasks, each with a log of its own.
    assert run.data.num_shards() >= 2
    logs = Run(finished.path).logs("preprocess")
    assert len(set(logs.values())) == run.data.num_shards()
    assert all("is complete" in path.read_text() for path in logs.values())


def test_the_model_learns_more_than_the_frequency_of_ids(finished):
    marker = files.read_json(marker_path(RunFolder(finished.path), "train"))
    assert marker["first_loss"] == pytest.approx(marker["reference"]["untrained"], abs=0.2)
    last = [loss for _, loss in Run(finished.path).losses()][-5:]
    assert max(last) < marker["reference"]["untrained"] - 3
    assert max(last) < marker["reference"]["unigram"] - 1


def test_progress_reads_well_in_a_log_file(finished):
    text = finished.first.err
    assert "\r" not in text
    assert "\x1b" not in text
    assert "  preprocess  done, 8/8 videos (" in text
    assert "  train       step " in text
    assert "s/step, " in text
    assert " left" in text


def test_status_and_logs(finished):
    shown = cosmos_hpc("status", "whole", cwd=finished.home)
    assert shown.code == 0
    assert "whole: done" in shown.out
    assert "train       done     step 24/24, loss " in shown.out
    as_json = json.loads(cosmos_hpc("status", "whole", "--json", cwd=finished.home).out)
    assert [stage["state"] for stage in as_json["stages"]] == ["done"] * 5
    logs = cosmos_hpc("logs", "whole", "train", cwd=finished.home)
    assert "step 24/24, loss" in logs.out
    assert "[NeMo " not in logs.out and "Warning: " not in logs.out
    assert "[NeMo " in cosmos_hpc("logs", "whole", "train", "--raw", cwd=finished.home).out
    one = cosmos_hpc("logs", str(finished.path), "preprocess.1", cwd=finished.home)
    assert one.out.count("==> preprocess.1 ") == 1
    assert "==> preprocess.0 " not in one.out


def test_the_same_request_again_redoes_nothing(finished):
    run = RunFolder(finished.path)
    kept = [p for p in run.path.rglob("*") if p.is_file() and p.suffix in (".bin", ".distcp")]
    before = {p: p.stat().st_mtime_ns for p in kept}
    source = json.loads(run.data.shards.read_text())["root"]
    again = cosmos_hpc(
        "submit", *REQUEST, f"data.input={source}", "--name", "whole", cwd=finished.home
    )
    assert again.code == 0, again.err
    assert again.err.count("done before") == 5
    assert {p: p.stat().st_mtime_ns for p in kept} == before


def test_another_request_may_not_take_over_a_run(finished):
    source = json.loads(RunFolder(finished.path).data.shards.read_text())["root"]
    other = cosmos_hpc(
        "submit",
        *REQUEST,
        f"data.input={source}",
        "data.frames=25",
        "--name",
        "whole",
        cwd=finished.home,
    )
    assert other.code == 2
    assert "run whole was made with data.frames=17, not 25; choose another --name" in other.err


def test_secrets_are_nowhere(finished):
    texts = [finished.first.out, finished.first.err]
    for path in finished.home.rglob("*"):
        if path.is_file():
            texts.append(path.read_bytes().decode("latin-1"))
    for name, value in CANARIES.items():
        assert not any(value in text for text in texts), name


def test_weights_and_biases_works_offline(finished):
    assert list((finished.path / "train" / "wandb").glob("offline-run-*/run-*.wandb"))


def submit_again(finished, home, *overrides):
    """Submit the finished run's request again, with overrides, from another folder."""
    source = json.loads(RunFolder(finished.path).data.shards.read_text())["root"]
    request = [*REQUEST, f"data.input={source}", *overrides, "--name", "whole"]
    return cosmos_hpc("submit", *request, cwd=home)


def test_a_run_killed_between_its_last_checkpoint_and_its_marker_is_finished(finished, tmp_path):
    copy = tmp_path / "runs" / "whole"
    shutil.copytree(finished.path, copy, symlinks=True)
    before = (copy / "train" / "done.json").read_text()
    (copy / "train" / "done.json").unlink()
    (copy / "train" / "loss.png").unlink()
    again = submit_again(finished, tmp_path)
    assert again.code == 0, again.err
    assert (copy / "train" / "done.json").read_text() == before
    assert (copy / "train" / "loss.png").exists()


def test_validations_fall_on_their_steps(finished):
    rows = files.read_jsonl(RunFolder(finished.path).train.metrics)
    assert [row["step"] for row in rows if "validation_loss" in row] == [0, 12, 24]


def test_without_validation_the_last_step_is_saved_all_the_same(finished, tmp_path):
    """In a folder with a space and a quote."""
    home = tmp_path / "it's mine"
    home.mkdir()
    short = submit_again(
        finished,
        home,
        "data.split.validation=0",
        "train.max_steps=2",
        "cluster.parallel=1",
    )
    assert short.code == 0, short.err
    marker = files.read_json(marker_path(RunFolder(home / "runs" / "whole"), "train"))
    assert marker["checkpoint"].startswith("train/checkpoints/step=1-")
    assert "whole: done" in cosmos_hpc("status", "whole", cwd=home).out


def test_a_longer_run_goes_on_with_another_layout(finished, tmp_path):
    """Tensor parallel 2 over gloo reads a checkpoint of one rank, optimizer included."""
    copy = tmp_path / "runs" / "whole"
    shutil.copytree(finished.path, copy, symlinks=True)
    longer = submit_again(
        finished, tmp_path, "train.max_steps=27", "train.gpus=2", "train.tensor_parallel=2"
    )
    assert longer.code == 0, longer.err
    losses = dict(Run(copy).losses())
    assert sorted(losses) == list(range(1, 28))
    before = dict(Run(finished.path).losses())
    assert all(losses[step] == before[step] for step in before)
    assert all(losses[step] < before[16] for step in (25, 26, 27))


def descendants(pid):
    children = {}
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            parent = int(status.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(status.parent.name))
    found, queue = [], [pid]
    while queue:
        found += children.get(queue[0], [])
        queue += children.get(queue.pop(0), [])
    return found


def is_task(pid):
    try:
        return b"/stages/" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:  # it has ended meanwhile
        return False


def interrupt(submit, how):
    """Stop a submit as a person, a crash of the login node, or the out-of-memory killer would."""
    if how == "ctrl-c":
        os.killpg(submit.pid, signal.SIGINT)
        # -2 before Python has set up its handlers, 0 when it was ending just then.
        assert submit.wait(timeout=60) in (130, -signal.SIGINT, 0)
    elif how == "kill":
        submit.kill()
        submit.wait(timeout=60)
    else:
        # There is none for a moment between two stages, and one that had marked its work as done
        # does not count.
        while submit.poll() is None:
            for task in filter(is_task, descendants(submit.pid)):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(task, signal.SIGKILL)
            time.sleep(0.05)
        assert submit.returncode == 1


def test_interrupted_at_any_moment_it_ends_in_the_same_result(finished, tmp_path):
    """Stopped again and again, the tokens and every loss are those of the undisturbed run."""
    moments = random.Random(os.environ.get("COSMOS_HPC_TEST_SEED", "5"))
    source = json.loads(RunFolder(finished.path).data.shards.read_text())["root"]
    command = [sys.executable, "-m", "cosmos_hpc", "submit", *REQUEST, f"data.input={source}"]
    command += ["data.batch_size=1", "--name", "broken"]
    run, whole = RunFolder(tmp_path / "runs" / "broken"), RunFolder(finished.path)
    with open(tmp_path / "log", "w") as log:
        # By whom, and when: from a training step on, a moment later.
        for how, step, least, most in (
            ("ctrl-c", 0, 2, 12),
            ("worker", 0, 2, 8),
            ("ctrl-c", 3, 0, 1.5),
            ("worker", 10, 0, 1.5),
            # Its workers go on by themselves: the next submit waits for them.
            ("kill", 17, 0, 1),
        ):
            began = time.time()
            submit = subprocess.Popen(
                command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
            )
            while steps_of(run, since=began) < step:
                assert submit.poll() is None
                time.sleep(0.05)
            try:
                submit.wait(timeout=moments.uniform(least, most))
            except subprocess.TimeoutExpired:
                interrupt(submit, how)
        subprocess.run(command, cwd=tmp_path, stdout=log, stderr=log, check=True, timeout=300)
    # Training itself was interrupted at least three times.
    assert (tmp_path / "log").read_text().count("  train       starting") >= 4
    for name in ("tokens.bin", "tokens.idx", "clips.jsonl"):
        assert (run.tokens.path / name).read_bytes() == (whole.tokens.path / name).read_bytes()
    losses = Run(run.path).losses()
    assert [step for step, _ in losses] == list(range(1, 25))
    expected = [loss for _, loss in Run(whole.path).losses()]
    assert [loss for _, loss in losses] == pytest.approx(expected, rel=1e-4)
    steps = [
        [row["step"] for row in files.read_jsonl(r.train.metrics) if "validation_loss" in row]
        for r in (run, whole)
    ]
    assert steps[0] == steps[1]


def test_ctrl_c_blames_no_video(scenes, tmp_path):
    """Also where the worker is busy, so that it has to be killed."""
    command = [sys.executable, "-m", "cosmos_hpc", "submit", "recipe=ar_tiny", "--name", "x"]
    command += [f"data.input={scenes}", "cluster.parallel=1", "--stages", "download,preprocess"]
    run = RunFolder(tmp_path / "runs" / "x")
    for _ in range(2):
        with open(tmp_path / "log", "a") as log:
            submit = subprocess.Popen(
                command, cwd=tmp_path, stdout=log, stderr=log, start_new_session=True
            )
        while not (files.read_json(run.tokens.in_flight(0)) or {}).get("in_hand"):
            assert submit.poll() is None
            time.sleep(0.01)
        (worker,) = (p for p in descendants(submit.pid) if is_task(p))
        os.kill(worker, signal.SIGSTOP)
        interrupt(submit, "ctrl-c")
        assert files.read_json(run.tokens.in_flight(0)) == {"deaths": {}, "in_hand": {}}
    done = cosmos_hpc(*command[3:], cwd=tmp_path)
    assert done.code == 0, done.err
    assert "8/8 videos" in done.err and "failed" not in done.err


def test_a_failing_stage_says_why_and_the_next_submit_goes_on(scenes, tmp_path):
    request = ["submit", "recipe=ar_tiny", f"data.input={scenes}", "--name", "x"]
    request += ["cluster.parallel=1"]
    tokenizer = tmp_path / "mine"
    tokenizer.mkdir()
    refused = cosmos_hpc(*request, f"data.tokenizer={tokenizer}", cwd=tmp_path)
    assert refused.code == 2
    assert "has no encoder.jit and no decoder.jit" in refused.err
    for name in ("encoder.jit", "decoder.jit"):
        (tokenizer / name).write_bytes(b"half of a file")
    failing = cosmos_hpc(*request, f"data.tokenizer={tokenizer}", cwd=tmp_path)
    assert failing.code == 1, failing.err
    assert "encoder.jit" in failing.err
    shown = cosmos_hpc("status", "x", cwd=tmp_path)
    assert "x: failed" in shown.out
    assert "encoder.jit" in shown.out
    made = cosmos_hpc("small-tokenizer", str(tokenizer), cwd=tmp_path)
    assert made.code == 0
    prepared = cosmos_hpc(
        *request, f"data.tokenizer={tokenizer}", "--stages", "download,preprocess", cwd=tmp_path
    )
    assert prepared.code == 0, prepared.err
    # The first submit asked for all stages.
    assert "x: stopped" in cosmos_hpc("status", "x", cwd=tmp_path).out


def test_retry_of_one_task_does_no_other(scenes, tmp_path):
    request = ["submit", "recipe=ar_tiny", f"data.input={scenes}", "data.videos_per_shard=3"]
    times = {"PYTHONPROFILEIMPORTTIME": "1"}
    begun = cosmos_hpc(*request, "--name", "x", "--stages", "download", cwd=tmp_path, env=times)
    assert begun.code == 0, begun.err
    # The submit itself has no need of torch, whose import takes longer than all else it does.
    imported = {line.rpartition("|")[2].strip() for line in begun.err.splitlines()}
    assert "nemo_run" in imported and "torch.nn" not in imported
    wrong = cosmos_hpc("retry", "x", "preprocess.3", cwd=tmp_path)
    assert (wrong.code, "there is no preprocess.3 in run x" in wrong.err) == (2, True), wrong.err
    shown = cosmos_hpc("status", "x", cwd=tmp_path).out
    assert "x: partial" in shown
    assert "cosmos-hpc retry x preprocess" in shown
    again = cosmos_hpc("retry", "x", cwd=tmp_path)
    assert (again.code, "starting" in again.err) == (0, False), again.err
    again = cosmos_hpc("retry", "x", "preprocess.1", cwd=tmp_path)
    assert again.code == 0, again.err
    run = RunFolder(tmp_path / "runs" / "x")
    assert [run.tokens.shard(n).exists() for n in range(3)] == [False, True, False]


def test_two_submits_of_one_run_at_a_time_are_refused(scenes, tmp_path):
    request = ["submit", "recipe=ar_tiny", f"data.input={scenes}", "--name", "x"]
    first = subprocess.Popen(
        [sys.executable, "-m", "cosmos_hpc", *request, "--stages", "download,preprocess"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    while not files.is_locked(tmp_path / "runs" / "x" / ".lock"):
        assert first.poll() is None
        time.sleep(0.01)
    second = cosmos_hpc(*request, cwd=tmp_path)
    assert second.code == 2
    assert f"run x is being worked on by process {first.pid} on " in second.err
    assert "running" in cosmos_hpc("status", "x", cwd=tmp_path).out
    interrupt(first, "ctrl-c")


def test_cancelled_at_safe_points_it_ends_in_the_same_result(finished, tmp_path):
    """Once while videos are prepared, once in training, and once without its submit."""
    source = json.loads(RunFolder(finished.path).data.shards.read_text())["root"]
    command = [sys.executable, "-m", "cosmos_hpc", "submit", *REQUEST, f"data.input={source}"]
    command += ["data.batch_size=1", "--name", "calm"]
    run = RunFolder(tmp_path / "runs" / "calm")

    def begun(path):
        return lambda: path.exists() and path.stat().st_size > 0

    def steps(count):
        return lambda: steps_of(run) >= count

    with open(tmp_path / "log", "w") as log:
        for reached, killed in (
            (begun(run.tokens.journal(0)), False),
            (steps(5), False),
            (steps(12), True),
        ):
            submit = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
            while not reached():
                assert submit.poll() is None
                time.sleep(0.05)
            if killed:
                submit.kill()
                submit.wait()
            cancel = subprocess.Popen(
                [sys.executable, "-m", "cosmos_hpc", "cancel", "calm"],
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                text=True,
            )
            while not run.stop_request.exists() and cancel.poll() is None:
                time.sleep(0.005)
            before = len(Run(run.path).losses())
            said, _ = cancel.communicate(timeout=280)
            assert (cancel.returncode, "calm: stopped" in said) == (0, True)
            assert submit.wait(timeout=60) in (1, -signal.SIGKILL)
            # Nothing but the current step was still done, and it is saved.
            done = len(Run(run.path).losses())
            assert done <= before + 2
            if done:
                assert list(run.train.checkpoints.glob(f"step={done - 1}-*"))
        assert "nothing works on calm" in cosmos_hpc("cancel", "calm", cwd=tmp_path).out
        subprocess.run(command, cwd=tmp_path, stdout=log, stderr=log, check=True, timeout=300)
    text = (tmp_path / "log").read_text()
    assert text.count("stopped on request; the same command resumes") == 2
    whole = RunFolder(finished.path)
    assert run.tokens.prefix.with_suffix(".bin").read_bytes() == (
        whole.tokens.prefix.with_suffix(".bin").read_bytes()
    )
    expected = [loss for _, loss in Run(whole.path).losses()]
    assert [loss for _, loss in Run(run.path).losses()] == pytest.approx(expected, rel=1e-4)


def test_training_reads_shards_that_were_not_joined(finished, tmp_path):
    """From the shards of the finished run, which are joined after all in the end."""
    copy, whole = RunFolder(tmp_path / "runs" / "whole"), RunFolder(finished.path)
    shutil.copytree(finished.path, copy.path, symlinks=True)
    shutil.rmtree(copy.train.path)
    for name in ("done.json", "tokens.bin", "tokens.idx", "clips.jsonl"):
        (copy.tokens.path / name).unlink()
    left = submit_again(finished, tmp_path, "data.join=false", "train.max_steps=2")
    assert left.code == 0, left.err
    assert not (copy.tokens.path / "tokens.bin").exists()
    losses = Run(copy.path).losses()
    assert losses == Run(whole.path).losses()[:2]
    joined = submit_again(finished, tmp_path, "data.join=true", "train.max_steps=2")
    assert joined.code == 0, joined.err
    for name in ("tokens.bin", "clips.jsonl"):
        assert (copy.tokens.path / name).read_bytes() == (whole.tokens.path / name).read_bytes()
    assert Run(copy.path).losses() == losses
