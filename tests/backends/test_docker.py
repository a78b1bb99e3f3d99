"""Runs in containers of a real engine."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cosmos_hpc.backends.docker import Containers, DockerCluster, containers_of
from cosmos_hpc.backends.kinds import load_cluster
from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.errors import RequestError
from cosmos_hpc.runs.folder import RunFolder
from tests.conftest import CANARIES, SMALL_CLIPS, cosmos_hpc
from tests.engine import Engine, missing_programs
from tests.nemo_run import unpacked

#: Of another user, as which to submit.
USER = 12345


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A Docker engine."""
    missing = missing_programs()
    if missing or os.geteuid() != 0:
        if os.environ.get("CI"):
            pytest.fail(f"an engine for the tests needs root, and {missing} are not installed")
        pytest.skip(f"needs root and podman; not installed: {', '.join(missing)}")
    folder = Path(tempfile.mkdtemp(prefix="engine-"))
    folder.chmod(0o755)
    try:
        with Engine(folder) as started:
            yield started
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def box(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Engine, str]]:
    """The engine, and a profile for it."""
    monkeypatch.setenv("DOCKER_HOST", engine.host)
    for name in ("HF_HOME", "HF_HUB_CACHE", "HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    yield engine, engine.profile(tmp_path / "box.yaml")
    left = engine.containers()
    engine.remove_all()  # or the next tests would fail as well
    assert left == []


def _spy(folder: Path) -> Path:
    """A Python that notes what it was given; the secrets by their digest."""
    spy = folder / "spy.sh"
    spy.write_text(
        "#!/bin/bash\n"
        # In one piece: others note theirs at the same time.
        'digest=$(printf %s "$HF_TOKEN" | sha256sum)\n'
        'noted=("$(id -u)" "$(id -g)" "$(id -G)" "$OMP_NUM_THREADS" "$digest")\n'
        f"printf '%s\\n' \"${{noted[@]}}\" >>{folder}/notes\n"
        f'exec {sys.executable} "$@"\n'
    )
    spy.chmod(0o755)
    (folder / "notes").touch()
    (folder / "notes").chmod(0o666)
    return spy


@pytest.mark.slow
def test_from_videos_to_a_model_in_containers(
    box: tuple[Engine, str], tmp_path: Path, scenes: Path
) -> None:
    engine, _ = box
    spied = tmp_path / "spied"
    spied.mkdir()
    spy = _spy(spied)
    profile = engine.profile(tmp_path / "spy.yaml", f"{spied}:{spied}", python=str(spy))
    home = tmp_path / "home"
    home.mkdir()
    outcome = cosmos_hpc(
        "submit",
        "recipe=ar_tiny",
        f"cluster={profile}",
        f"data.input={scenes}",
        *SMALL_CLIPS,
        "train.max_steps=3",
        "--name",
        "boxed",
        cwd=home,
        env={**CANARIES, "WANDB_MODE": "offline"},
    )
    assert outcome.code == 0, outcome.err
    run = home / "runs" / "boxed"
    state = json.loads(cosmos_hpc("status", run, "--json", cwd=home).out)
    assert state["state"] == "done"
    tasks = {stage["name"]: stage["tasks"] for stage in state["stages"]}
    assert tasks == {
        "download": 1,
        "preprocess": 2,
        "finalize": 1,
        "train": 1,
        "generate": 1,
        "evaluate": 1,
        "report": 1,
    }
    assert len(list((run / "generated").glob("*.mp4"))) == 2
    assert "after post-training" in (run / "evaluation" / "table.txt").read_text()
    assert (run / "report" / "report.html").stat().st_size > 10_000
    assert "step 3/3" in "".join(p.read_text() for p in run.rglob("log_*-train-0.out"))

    # Variables reached every container, and none of their values a file.
    digest = hashlib.sha256(CANARIES["HF_TOKEN"].encode()).hexdigest()
    assert (spied / "notes").read_text().count(digest) == 8
    kept = b""
    for path in home.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            packed = list(unpacked(content))
            kept += b"".join(packed)
            for secret in CANARIES.values():
                assert secret.encode() not in content, path
                assert not any(secret.encode() in text for text in packed), path
    assert b"FromEnvironment" in kept and b"WANDB_API_KEY" in kept
    for secret in CANARIES.values():
        assert secret not in outcome.out + outcome.err


@pytest.mark.slow
def test_runs_of_a_sweep_share_tokens(
    box: tuple[Engine, str], tmp_path: Path, scenes: Path
) -> None:
    """The second run's container sees the folder of the first, whose files it links."""
    _, profile = box
    outcome = cosmos_hpc(
        *("submit", "recipe=ar_tiny", f"cluster={profile}", f"data.input={scenes}", *SMALL_CLIPS),
        *("train.seed=1,2", "--stages", "download,preprocess,finalize", "--name", "boxed"),
        cwd=tmp_path,
    )
    assert outcome.code == 0, outcome.err
    assert outcome.err.count("preprocess  done, 8/8 videos") == 1
    first, second = (tmp_path / "runs" / f"boxed-seed{seed}" / "tokens" for seed in (1, 2))
    assert (second / "tokens.bin").samefile(first / "tokens.bin")


@pytest.mark.slow
def test_files_belong_to_who_submits(box: tuple[Engine, str], tmp_path: Path, scenes: Path) -> None:
    """Also where the run folder's name is hard on a shell."""
    engine, _ = box
    place = Path(tempfile.mkdtemp(dir=engine.folder))
    try:
        videos, home = place / "videos", place / 'it\'s "my" $HOME'
        videos.mkdir(mode=0o755)
        for video in sorted(scenes.iterdir())[:2]:
            shutil.copy(video, videos)
        home.mkdir()
        spy = _spy(place)
        mounts = f"{spy}:{spy}:ro", f"{place}/notes:{place}/notes"
        profile = engine.profile(place / "box.yaml", *mounts, python=str(spy))
        for path in (place, home):
            os.chown(path, USER, USER)
        # Of root's rights only that to read: this Python may lie in a folder of root's.
        as_user = ["setpriv", f"--reuid={USER}", f"--regid={USER}", "--groups=12346"]
        as_user += ["--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search"]
        arguments = ["recipe=ar_tiny", f"cluster={profile}", f"data.input={videos}"]
        arguments += ["--stages", "download,preprocess", "--name", "mine"]
        done = subprocess.run(
            [*as_user, sys.executable, "-m", "cosmos_hpc", "submit", *arguments],
            cwd=home,
            env={**os.environ, "HOME": str(home)},
            capture_output=True,
            text=True,
            timeout=600,
        )
        assert done.returncode == 0, done.stderr
        made = [p for p in (home / "runs").rglob("*") if not p.is_symlink()]
        assert any(p.name == "tokens.bin" for p in made)
        assert any(p.name.startswith("log_") for p in made)
        assert {(p.stat().st_uid, p.stat().st_gid) for p in made} == {(USER, USER)}
        uid, gid, groups, threads, _ = (place / "notes").read_text().splitlines()[-5:]
        assert (uid, gid) == (str(USER), str(USER))
        assert "12346" in groups.split()
        assert int(threads) >= 1
    finally:
        shutil.rmtree(place)


@pytest.mark.slow
def test_a_dry_run_prints_what_can_be_pasted(
    box: tuple[Engine, str], tmp_path: Path, scenes: Path
) -> None:
    """Into a shell with Docker's program; here podman's, which takes the same flags."""
    engine, profile = box
    home = tmp_path / "a b"
    home.mkdir()
    request = ["submit", "recipe=ar_tiny", f"cluster={profile}", f"data.input={scenes}"]
    printed = cosmos_hpc(*request, "--dry-run", "--name", "x", cwd=home, env=CANARIES)
    assert printed.code == 0, printed.err
    assert engine.containers() == []
    assert not any(secret in printed.out for secret in CANARIES.values())
    commands = [line for line in printed.out.splitlines() if line.startswith("docker run ")]
    assert len(commands) == 8
    assert all("--env=HF_TOKEN " in command for command in commands)
    program = f'docker() {{ podman --remote --url {engine.host} "$@"; }}; {commands[0]}'
    done = subprocess.run(["bash", "-c", program], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert (home / "runs" / "x" / "tokenizer" / "done.json").exists()


@pytest.mark.slow
def test_a_failing_task_is_explained(box: tuple[Engine, str], tmp_path: Path, scenes: Path) -> None:
    _, profile = box
    request = ["submit", "recipe=ar_tiny", f"cluster={profile}", f"data.input={scenes}"]
    outcome = cosmos_hpc(
        *request, "cluster.python=/no/python", "--name", "bad", cwd=tmp_path, timeout=60
    )
    assert outcome.code == 1
    assert "download: ended without a reason" in outcome.err
    assert "/no/python: No such file" in outcome.err
    outcome = cosmos_hpc(*request, "cluster.mounts=[]", "--name", "bare", cwd=tmp_path, timeout=60)
    assert outcome.code == 1
    assert outcome.err.splitlines()[-1].startswith("error: Docker did not start download-0: ")
    assert "bash" in outcome.err


def test_what_is_missing_is_said_before_anything_starts(
    box: tuple[Engine, str], tmp_path: Path, scenes: Path
) -> None:
    _, profile = box

    def refused(*further: str, **env: str) -> str:
        request = ["submit", "recipe=ar_tiny", f"cluster={profile}", f"data.input={scenes}"]
        outcome = cosmos_hpc(*request, *further, "--name", "never", cwd=tmp_path, env=env)
        assert outcome.code == 2
        assert not (tmp_path / "runs").exists()
        return outcome.err

    assert "docker pull nothing:here" in refused("cluster.image=nothing:here")
    assert "no Docker engine answers at unix:///nowhere" in refused(DOCKER_HOST="unix:///nowhere")
    for far in ("tcp://127.0.0.1:2375", "ssh://me@far"):
        assert f"at {far} is not at a socket of this machine" in refused(DOCKER_HOST=far)
    assert "mounts /nowhere, which does not exist" in refused("cluster.mounts=[/nowhere:/x]")
    colon = tmp_path / "a:b"
    shutil.copytree(scenes, colon)
    assert "holds a ':'" in refused(f"data.input={colon}")


def test_folders_are_seen_at_their_own_paths(
    box: tuple[Engine, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, profile = box
    cluster = load_cluster(profile, [f"mounts=[{tmp_path}:/lists:ro]", "environment=[HF_TOKEN]"])
    assert isinstance(cluster, DockerCluster)
    run = RunFolder(tmp_path / "runs" / "x")
    weights = tmp_path / "weights.pt"
    recipe = load_recipe(
        "ar_tiny", [f"data.input={tmp_path}", f"train.init_from={weights}", "data.tokenizer=me/it"]
    )
    own = [f"{run.path}:{run.path}:rw", f"{tmp_path}:{tmp_path}:ro", f"{weights}:{weights}:ro"]
    texts = load_recipe("ar_tiny_v2w", [f"data.input={tmp_path}", "data.text_encoder=/models/t5"])
    assert "/models/t5:/models/t5:ro" in containers_of(run, texts, cluster).volumes
    given = containers_of(run, recipe, cluster)
    assert given.volumes == [*own, f"{tmp_path}:/lists:ro"]
    assert given.names == []
    assert given.user == f"{os.getuid()}:{os.getgid()}"
    # The Hub's cache is made for what is to be fetched, and its path is the same wherever one is.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HOME", "hub")
    monkeypatch.setenv("HF_TOKEN", "secret")
    given = containers_of(run, recipe, cluster)
    assert (tmp_path / "hub").is_dir()
    assert f"{tmp_path}/hub:{tmp_path}/hub:rw" in given.volumes
    assert given.values["HF_HOME"] == f"{tmp_path}/hub"
    assert given.names == ["HF_TOKEN"] and "secret" not in str(given)


def _wait(log: Path, text: str, process: subprocess.Popen[bytes], seconds: float = 280) -> None:
    until = time.monotonic() + seconds
    while text not in log.read_text():
        assert process.poll() is None and time.monotonic() < until, log.read_text()
        time.sleep(0.2)


@pytest.fixture
def submit(
    box: tuple[Engine, str], tmp_path: Path, scenes: Path
) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a submit of the run x, which writes into the file ``log``; killed after the test."""
    started = []

    def start(*further: str) -> subprocess.Popen[bytes]:
        request = ["submit", "recipe=ar_tiny", f"cluster={box[1]}", f"data.input={scenes}"]
        command = [sys.executable, "-m", "cosmos_hpc", *request, *SMALL_CLIPS, *further]
        command += ["--name", "x"]
        with open(tmp_path / "log", "wb") as f:
            started.append(subprocess.Popen(command, cwd=tmp_path, stdout=f, stderr=f))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_no_container_is_left_behind_unnoticed(
    box: tuple[Engine, str], tmp_path: Path, submit: Callable[..., subprocess.Popen[bytes]]
) -> None:
    engine, _ = box
    log = tmp_path / "log"
    first = submit("train.max_steps=900")
    _wait(log, "train       step", first)
    assert len(engine.containers()) == 1
    first.send_signal(signal.SIGINT)
    assert first.wait(timeout=120) == 130
    assert engine.containers() == []

    second = submit("train.max_steps=900")
    _wait(log, "train       step", second)
    second.kill()
    second.wait()
    # The container works on, and everybody can see it.
    (left,) = engine.containers()
    state = json.loads(cosmos_hpc("status", "x", "--json", cwd=tmp_path).out)
    assert state["state"] == "running"
    third = submit("train.max_steps=900")
    _wait(log, "train is still being worked on by process", third)
    assert f"on {left}; waiting" in log.read_text()
    assert cosmos_hpc("cancel", "x", cwd=tmp_path).code == 0
    assert third.wait(timeout=120) == 1
    assert "stopped on request" in log.read_text()
    until = time.monotonic() + 20
    while engine.containers() and time.monotonic() < until:
        time.sleep(0.2)
    state = json.loads(cosmos_hpc("status", "x", "--json", cwd=tmp_path).out)
    assert state["state"] == "stopped"


@pytest.mark.slow
def test_an_engine_that_goes_away_ends_the_wait(
    box: tuple[Engine, str], tmp_path: Path, submit: Callable[..., subprocess.Popen[bytes]]
) -> None:
    engine, _ = box
    log = tmp_path / "log"
    stages = "--stages", "download,preprocess"
    process = submit(*stages)
    _wait(log, "preprocess  starting", process)
    # Both run: one that is only created would never be started.
    until = time.monotonic() + 60
    while len(engine.containers(all=False)) < 2:
        assert time.monotonic() < until
        time.sleep(0.1)
    engine.stop()
    try:
        assert process.wait(timeout=60) == 1
        said = log.read_text().splitlines()[-1]
        assert re.search("error: (no Docker engine answers|the Docker engine.* not answer)", said)
        assert "the same command resumes" in said
    finally:
        engine.start()
    # Its containers go on, and the same command with what they have done.
    process = submit(*stages)
    assert process.wait(timeout=600) == 0, log.read_text()
    until = time.monotonic() + 30
    while engine.containers() and time.monotonic() < until:
        time.sleep(0.2)


def test_gpus_are_asked_for_by_their_names() -> None:
    from docker.types import HostConfig

    from cosmos_hpc.backends.experiments import docker_executor

    containers = Containers("sha256:0", "python3", [], "1:1", [], "1g")
    executor = docker_executor(containers, ["1", "GPU-5e1f"])
    asked = executor.additional_kwargs["device_requests"]
    (request,) = HostConfig(version="1.41", device_requests=asked)["DeviceRequests"]
    assert request["DeviceIDs"] == ["1", "GPU-5e1f"]
    assert request["Capabilities"] == [["compute", "utility"]]
    assert executor.num_gpus is None
    assert "device_requests" not in docker_executor(containers, []).additional_kwargs


def test_nemo_run_still_makes_folders_without_quotes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When this fails, what mends it can go: see _mend_docker_executor."""
    program = (
        "import sys, nemo_run\n"
        "executor = nemo_run.DockerExecutor(container_image='x', packager=nemo_run.Packager())\n"
        "executor.assign('id', sys.argv[1], 'task', 'job')\n"
        "executor.package(executor.packager, 'job')\n"
    )
    folder = tmp_path / "a b"
    environment = {**os.environ, "NEMORUN_HOME": str(tmp_path / "nemo_run")}
    command = [sys.executable, "-c", program, str(folder)]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, timeout=60)
    assert not (folder / "job" / "code").exists()
    assert (tmp_path / "a").exists()


def test_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    path = tmp_path / "box.yaml"
    path.write_text("kind: docker\nimage: nemo:1\n")
    cluster = load_cluster(str(path))
    assert isinstance(cluster, DockerCluster)
    assert (cluster.name, cluster.gpus, cluster.python) == ("box", 0, "python3")
    assert "HF_TOKEN" in cluster.environment
    for wrong in ("environment=[HF_TOKEN=abc]", "shm_size=many", "mounts=[data]", "image="):
        with pytest.raises(RequestError, match=wrong.partition("=")[0]) as refusal:
            load_cluster(str(path), [wrong])
        assert "abc" not in str(refusal.value)
    path.write_text("kind: docker\n")
    with pytest.raises(RequestError, match="image"):
        load_cluster(str(path))
