import errno
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from cosmos_hpc.backends.findings import runs_finding
from cosmos_hpc.config.clusters import Cluster
from cosmos_hpc.errors import WorkError
from cosmos_hpc.utils import files


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path, small_disk):
    path = small_disk / "x.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(OSError, match="No space"):
        files.write_atomic(path, b"x" * 10_000_000)
    assert files.read_json(path) == {"a": 1}
    assert [p.name for p in small_disk.iterdir()] == ["x.json"]


def test_names_with_strange_bytes_survive(tmp_path):
    row = {"video": b"\xff\n.mp4".decode("utf-8", "surrogateescape")}
    files.write_jsonl(tmp_path / "x", [row])
    assert files.read_jsonl(tmp_path / "x") == [row]


@pytest.mark.parametrize("torn", [b'{"a"', b"\x00\x00", b'{"a": 2}', b"\xff\xfe\n"])
def test_half_a_line_counts_as_not_written(tmp_path, torn):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n' + torn)
    assert files.read_jsonl(path) == [{"a": 1}]


def test_appending_cuts_off_half_a_line(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": ')
    files.append_jsonl(path, {"a": 3})
    assert [json.loads(line) for line in path.read_text().splitlines()] == [{"a": 1}, {"a": 3}]


def test_a_lock_is_free_again_when_its_holder_is_killed(tmp_path):
    path = tmp_path / "lock"
    code = (
        "import sys, time, pathlib; from cosmos_hpc.utils import files\n"
        "with files.lock(pathlib.Path(sys.argv[1])): print('held', flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "held\n"
    assert files.is_locked(path)
    with pytest.raises(BlockingIOError, match=f"process {holder.pid} on "), files.lock(path):
        pass
    assert files.lock_holder(path) == f"process {holder.pid} on {platform.node()}"
    holder.kill()
    holder.wait()
    assert not files.is_locked(path)
    assert files.lock_holder(path) is None
    with files.lock(path):
        assert files.is_locked(path)
        assert files.is_locked(path)  # asking does not give it up


def test_who_may_only_read_sees_whether_a_lock_is_held():
    if os.geteuid():
        pytest.skip("needs root, to be somebody else")
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        path = Path(folder) / "lock"
        with files.lock(path):
            pass
        path.chmod(0o644)
        os.seteuid(65534)
        try:
            assert not files.is_locked(path)
        finally:
            os.seteuid(0)
        with files.lock(path):
            os.seteuid(65534)
            try:
                assert files.is_locked(path)
            finally:
                os.seteuid(0)


def test_a_file_system_without_locks_is_one_sentence(tmp_path, monkeypatch):
    """As Lustre without its option: the kernel's answer is stood for, no such system is at hand."""
    with files.lock(tmp_path / "lock"):
        pass

    def flock(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", flock)
    for ask in (lambda: files.is_locked(tmp_path / "lock"), lambda: enter(tmp_path / "other")):
        with pytest.raises(WorkError, match=f"{tmp_path} is on a file system without locks"):
            ask()
    # So does a check of the cluster.
    finding = runs_finding(Cluster(name="x", kind="local", parallel=1, runs=str(tmp_path)))
    assert finding.level == "problem" and "file system without locks" in finding.text


def enter(path):
    with files.lock(path):
        pass
