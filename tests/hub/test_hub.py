"""What recipes need from the Hub: which files, what is checked first, and resuming."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import cosmos_hpc as ch
from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.errors import RequestError, WorkError
from cosmos_hpc.hub.cache import fetch_all
from cosmos_hpc.hub.needs import HubFiles, is_hub_name, matches, needs
from cosmos_hpc.runs.stages import marker_path
from cosmos_hpc.utils import files
from tests.conftest import CANARIES, REPOSITORY, cosmos_hpc

TOKENIZER = "nvidia/Cosmos-1.0-Tokenizer-DV8x16x16"
AR4B = "nvidia/Cosmos-1.0-Autoregressive-4B"
AR12B = "nvidia/Cosmos-1.0-Autoregressive-12B"
WEIGHTS = HubFiles(AR4B, ("nemo/*",))
TOKEN = CANARIES["HF_TOKEN"]


def fetch(need):
    """The folder with the files of one need."""
    return fetch_all([need])[need.repository]


@pytest.fixture
def published(hub):
    """The repositories of the recipes, with more in them than is needed."""
    hub.repositories[TOKENIZER] = {
        "encoder.jit": os.urandom(3_000_000),
        "decoder.jit": os.urandom(300_000),
        "autoencoder.jit": b"x",
        "config.json": b"{}",
    }
    for name in (AR4B, AR12B):
        hub.repositories[name] = {
            "model.pt": b"x",
            "nemo.txt": b"x",
            "config.json": b"{}",
            "nemo/context/model.json": b"[1]",
            "nemo/weights/__0_0.distcp": os.urandom(1_000_000),
            "nemo/weights/metadata.json": b"[2]",
        }
    return hub


def wanted(published, *repositories):
    """The files that should be fetched of repositories."""
    return sorted(
        f"{name}/{path}"
        for name in repositories
        for path in published.repositories[name]
        if path in ("encoder.jit", "decoder.jit") or path.startswith("nemo/")
    )


def cached(tmp_path) -> list[str]:
    """Files in the cache's snapshots, by their path in it."""
    return sorted(
        p.relative_to(tmp_path).as_posix()
        for p in (tmp_path / "hf" / "hub").glob("models--*/snapshots/**/*")
        if p.is_file()
    )


def storage(tmp_path, repository) -> Path:
    return tmp_path / "hf" / "hub" / f"models--{repository.replace('/', '--')}"


def test_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert all(map(is_hub_name, (TOKENIZER, AR4B, "a/b", "runs/first")))
    wrong = (
        "small",
        "/a/b",
        "./a",
        "../a",
        "~/a",
        "a/",
        "/a",
        "a/b/c",
        "a/b--c",
        "a/b.git",
        "a b/c",
    )
    assert not any(map(is_hub_name, wrong))
    (tmp_path / "runs" / "first").mkdir(parents=True)
    assert not is_hub_name("runs/first")


def test_alternatives_of_a_file():
    names = ["config.json", "model-1.safetensors", "model-2.safetensors", "pytorch_model.bin"]
    weights = "model*.safetensors|pytorch_model*.bin"
    assert matches(weights, names) == ["model-1.safetensors", "model-2.safetensors"]
    assert matches(weights, names[3:]) == ["pytorch_model.bin"]
    assert matches(weights, names[:1]) is None
    assert matches("tokenizer_config.json|", names) == []


def test_of_a_text_encoder_only_the_weights_of_one_kind_are_fetched(hub, tmp_path):
    listed = ("config.json", "spiece.model", "tokenizer.json", "pytorch_model.bin", "tf_model.h5")
    hub.repositories["google-t5/t5-11b"] = {name: name.encode() for name in listed}
    recipe = load_recipe("ar5b_v2w", ["train.init_from=null", f"data.tokenizer={tmp_path}"])
    (folder,) = fetch_all(needs(recipe)).values()
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "pytorch_model.bin",
        "tokenizer.json",
    ]
    del hub.repositories["google-t5/t5-11b"]["pytorch_model.bin"]
    with pytest.raises(RequestError, match=r"there is no model\*.safetensors\* or pytorch_model"):
        fetch_all(needs(recipe))


def test_needs(tmp_path):
    assert needs(load_recipe("ar_tiny")) == []
    assert needs(load_recipe("ar4b")) == [
        HubFiles(TOKENIZER, ("encoder.jit", "decoder.jit")),
        WEIGHTS,
    ]
    local = [f"data.tokenizer={tmp_path}", f"train.init_from={tmp_path}"]
    assert needs(load_recipe("ar4b", local)) == []


def test_exactly_what_the_recipes_need_each_repository_once(published, tmp_path):
    shown = cosmos_hpc("download", "ar4b", "ar12b", cwd=tmp_path)
    assert shown.code == 0, shown.err
    assert shown.err == ""
    expected = wanted(published, TOKENIZER, AR4B, AR12B)
    assert sorted(published.sent()) == expected
    lies = dict(line.split() for line in shown.out.splitlines()[-3:])
    assert list(lies) == [TOKENIZER, AR4B, AR12B]
    content = {}
    for name, folder in lies.items():
        for path in Path(folder).rglob("*"):
            if path.is_file():
                content[f"{name}/{path.relative_to(folder)}"] = path.read_bytes()
    assert sorted(content) == expected
    for name, files_of in published.repositories.items():
        for path, data in files_of.items():
            assert content.get(f"{name}/{path}", data) == data
    # Again: all is there.
    again = cosmos_hpc("download", "ar4b", "ar12b", cwd=tmp_path)
    assert again.out.splitlines() == shown.out.splitlines()[-3:]
    assert sorted(published.sent()) == expected


def test_overrides_and_recipes_that_need_nothing(published, tmp_path):
    folders = ch.download(["ar4b", "ar_tiny"], ["train.init_from=null"])
    assert list(folders) == [TOKENIZER]
    shown = cosmos_hpc("download", "ar_tiny", cwd=tmp_path)
    assert (shown.code, shown.out) == (0, "ar_tiny: nothing of the Hub is needed\n")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["ar4bb"], "unknown recipe 'ar4bb'; did you mean ar4b?"),
        (["ar4b", "ar12bb"], "unknown recipe 'ar12bb'; did you mean ar12b?"),
        (["ar4b", "train.init_form=x"], "did you mean train.init_from?"),
        (["ar4b", "train.init_from=nowhere"], "neither a file or folder on this machine, nor a"),
        (["ar4b", "data.tokenizer=smal"], "neither a folder, nor a Hub repository"),
        ([], "download needs a recipe; there are ar12b"),
    ],
)
def test_a_wrong_request_is_one_sentence(published, tmp_path, arguments, says):
    shown = cosmos_hpc("download", *arguments, cwd=tmp_path)
    assert shown.code == 2
    assert says in shown.err
    assert len(shown.err.splitlines()) == 1
    assert published.requests == []


def test_hf_home_must_be_set(published, tmp_path, monkeypatch):
    monkeypatch.delenv("HF_HOME")
    shown = cosmos_hpc("download", "ar4b", cwd=tmp_path)
    assert shown.code == 2
    assert (
        f"HF_HOME is not set: set it to a folder on the shared file system, where {TOKENIZER}"
        in (shown.err)
    )
    assert published.requests == []
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    fetch(WEIGHTS)
    assert (tmp_path / "cache" / "models--nvidia--Cosmos-1.0-Autoregressive-4B").is_dir()


def test_a_submit_needs_hf_home_before_anything_starts(tmp_path, scenes, monkeypatch):
    monkeypatch.delenv("HF_HOME", raising=False)
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.chdir(tmp_path)
    request = ("ar_tiny", "local", [f"data.input={scenes}", f"train.init_from={AR4B}"])
    with pytest.raises(RequestError, match=f"HF_HOME is not set.*where {AR4B} is kept"):
        ch.submit(*request)
    assert list(tmp_path.iterdir()) == []
    # Not for stages that take nothing from the Hub.
    monkeypatch.setattr("cosmos_hpc.backends.local.LocalBackend.submit", lambda *_: None)
    with pytest.raises(RequestError, match="finalize needs the results of download, preprocess"):
        ch.submit(*request, stages=["finalize"])
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    run = ch.submit(*request, dry_run=True)
    assert run.folder.recipe().train.init_from == AR4B
    monkeypatch.delenv("HF_HOME")
    files.write_json(marker_path(run.folder, "download"), {"tokenizer": "small", "folder": "."})
    ch.submit(*request)


@pytest.mark.parametrize("listing", [False, True])
def test_gated_repositories_are_named_together_and_nothing_is_fetched(published, tmp_path, listing):
    published.gated, published.gated_listing = {AR4B, AR12B}, listing
    shown = cosmos_hpc("download", "ar4b", "ar12b", cwd=tmp_path)
    assert shown.code == 2
    assert shown.err == (
        f"error: {AR4B} and {AR12B} are gated: accept the licence on each Hub page and set "
        f"HF_TOKEN\n"
    )
    assert published.sent() == []
    assert not (tmp_path / "hf").exists()


def test_a_token_without_and_with_access(published, tmp_path, monkeypatch):
    published.gated, published.tokens = {AR4B}, {TOKEN}
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(
        RequestError, match=f"{AR4B} is gated: accept its licence on its Hub page w"
    ):
        ch.download(["ar4b"])
    assert published.sent() == []
    published.allowed = {TOKEN}
    shown = cosmos_hpc("download", "ar4b", cwd=tmp_path)
    assert shown.code == 0, shown.err
    assert sorted(published.sent()) == wanted(published, TOKENIZER, AR4B)
    assert {r.token for r in published.requests} == {TOKEN}
    assert TOKEN not in shown.out + shown.err
    kept = [p for p in tmp_path.rglob("*") if p.is_file() and TOKEN.encode() in p.read_bytes()]
    assert kept == []


def test_a_stored_login_is_a_token_as_well(published, tmp_path):
    published.gated, published.tokens, published.allowed = {AR4B}, {TOKEN}, {TOKEN}
    files.write_atomic(tmp_path / "hf" / "token", TOKEN)
    fetch(WEIGHTS)
    assert sorted(published.sent()) == wanted(published, AR4B)


def test_a_wrong_token(published, tmp_path):
    shown = cosmos_hpc("download", "ar4b", cwd=tmp_path, env={"HF_TOKEN": TOKEN})
    assert shown.code == 2
    assert shown.err == ("error: HF_TOKEN was refused by the Hub: it is wrong or has expired\n")
    assert TOKEN not in shown.out + shown.err
    assert published.sent() == []


@pytest.mark.parametrize("token", [None, TOKEN])
def test_an_unknown_repository(published, monkeypatch, token):
    published.tokens = {TOKEN}
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(
        RequestError, match="there is no repository a/b on the Hub, or HF_TOKEN may"
    ):
        fetch_all([WEIGHTS, HubFiles("a/b", ("nemo/*",))])
    assert published.sent() == []


def test_a_file_that_the_repository_lacks(published):
    del published.repositories[TOKENIZER]["decoder.jit"]
    with pytest.raises(RequestError, match=f"{TOKENIZER} lacks a file: there is no decoder.jit"):
        ch.download(["ar4b"])
    with pytest.raises(RequestError, match=f"{AR4B} lacks a file: there is no nemu/*"):
        fetch(HubFiles(AR4B, ("nemu/*",)))
    assert published.sent() == []


def test_the_hub_is_ill(published):
    published.down = 500
    with pytest.raises(
        RequestError, match=f"the Hub answered 500 for {TOKENIZER}; try again later"
    ):
        ch.download(["ar4b"])


def test_the_disk_must_hold_what_is_missing(published, small_disk, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(small_disk / "hf"))
    fetch(HubFiles(TOKENIZER, ("encoder.jit",)))
    published.requests.clear()
    with pytest.raises(RequestError, match=r"take 0.0013 GB in .*hub, which has .* GB free; free"):
        ch.download(["ar4b"])
    assert published.sent() == []
    # What is there already needs no room.
    ch.download(["ar4b"], ["train.init_from=null"])
    assert published.sent() == [f"{TOKENIZER}/decoder.jit"]


def test_a_disk_that_fills_up_meanwhile(published, small_disk):
    # The check is made to see another, larger disk.
    published.repositories[AR4B]["nemo/weights/__0_0.distcp"] = os.urandom(3_000_000)
    (small_disk / "other").write_bytes(b"x" * 3_000_000)
    code = (
        "import shutil, sys; real = shutil.disk_usage;"
        "shutil.disk_usage = lambda p: real('/');"
        "from cosmos_hpc.cli import main; sys.exit(main(['download', 'ar4b']))"
    )
    env = {**os.environ, "HF_HOME": str(small_disk / "hf"), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 1
    assert "the disk is full; free some space and run the same command again" in done.stderr


def test_a_cache_that_cannot_be_written(published, tmp_path):
    shown = cosmos_hpc("download", "ar4b", cwd=tmp_path, env={"HF_HOME": "/sys/hf"})
    assert shown.code == 2
    assert "writing to the Hub's cache /sys/hf/hub failed" in shown.err
    assert "choose a place that you may write to" in shown.err
    assert published.sent() == []


def test_a_dropped_connection_is_taken_up_again(published, capsys):
    path = f"{AR4B}/nemo/weights/__0_0.distcp"
    published.cuts[path] = [500_000]
    folder = fetch(WEIGHTS)
    content = published.repositories[AR4B]["nemo/weights/__0_0.distcp"]
    assert (folder / "nemo/weights/__0_0.distcp").read_bytes() == content
    first, second = (r for p, r in published.transfers() if p == path)
    assert first is None
    assert 0 < int(re.fullmatch(r"bytes=(\d+)-", second)[1]) <= 500_000
    assert (
        "the connection dropped in nemo/weights/__0_0.distcp, resuming" in capsys.readouterr().out
    )


def test_what_a_broken_transfer_left_is_gone_on_with(published, tmp_path, monkeypatch):
    monkeypatch.setattr("cosmos_hpc.hub.transfer._TRIES", 1)
    path = f"{AR4B}/nemo/weights/__0_0.distcp"
    published.cuts[path] = [700_000]
    with pytest.raises(WorkError, match="dropped in .*distcp; the same command resumes"):
        ch.download(["ar4b"])
    (half,) = storage(tmp_path, AR4B).glob("blobs/*.incomplete")
    size = half.stat().st_size
    assert size > 600_000
    published.requests.clear()
    shown = cosmos_hpc("download", "ar4b", cwd=tmp_path)
    assert shown.code == 0, shown.err
    assert [(p, r) for p, r in published.transfers() if r] == [(path, f"bytes={size}-")]
    # And nothing that was whole.
    assert published.sent() == [path, f"{AR4B}/nemo/weights/metadata.json"]


def test_ctrl_c_leaves_a_half_file_to_go_on_with(published, tmp_path):
    published.bytes_a_second = 2_000_000
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    # Pieces of ten megabytes would be too large to see anything.
    code = (
        "import huggingface_hub.constants as c, sys; c.DOWNLOAD_CHUNK_SIZE = 65536;"
        "from cosmos_hpc.cli import main; sys.exit(main(['download', 'ar4b']))"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True
    )
    halves = storage(tmp_path, TOKENIZER)
    deadline = time.monotonic() + 20
    while not any(p.stat().st_size for p in halves.glob("blobs/*.incomplete")):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    command.send_signal(signal.SIGINT)
    assert command.wait(5) == 130
    assert command.stderr.read().strip() == "interrupted; the same command resumes from here"
    published.bytes_a_second = None
    ch.download(["ar4b"])
    assert any(asked for _, asked in published.transfers())


def test_a_half_file_of_something_else_does_not_get_in(published, tmp_path):
    fetch(WEIGHTS)
    (link,) = storage(tmp_path, AR4B).glob("snapshots/*/nemo/weights/__0_0.distcp")
    blob = link.resolve()
    half = blob.with_name(f"{blob.name}.incomplete")
    # As long as the file, or shorter: found by the checksum, and gone the next time.
    for size in (1_000_000, 400_000):
        link.unlink()
        blob.unlink()
        half.write_bytes(b"\0" * size)
        with pytest.raises(WorkError, match="came damaged and was deleted; the same command"):
            fetch(WEIGHTS)
        assert not link.exists()
        fetch(WEIGHTS)
    # Longer: nothing to resume.
    link.unlink()
    blob.unlink()
    half.write_bytes(b"\0" * 1_000_001)
    fetch(WEIGHTS)


def test_progress_within_one_large_file(published, capfd):
    published.repositories[AR4B]["nemo/weights/__0_0.distcp"] = os.urandom(25_000_000)
    published.bytes_a_second = 20_000_000
    began = time.monotonic()
    fetch(WEIGHTS)
    took = time.monotonic() - began
    out, err = capfd.readouterr()
    assert err == ""
    lines = [line[9:] for line in out.splitlines()]
    assert lines[0] == f"{AR4B}: 3 files, 0.025 GB to fetch"
    pattern = r"fetched 0.0\d/0.03 GB, \d+\.\d MB/s(, .+ left)?"
    assert 2 <= len(lines[1:-1]) <= took / 0.2
    assert any(line.endswith(" s left") for line in lines)
    assert all(re.fullmatch(pattern, line) for line in lines[1:-1]), lines
    assert re.fullmatch(r"fetched 0.03/0.03 GB, \d+\.\d MB/s", lines[-1])


@pytest.mark.parametrize("how", ["offline", "gone", "ill", "closed", "wrong token"])
def test_a_filled_cache_needs_no_hub(published, tmp_path, monkeypatch, how):
    there = ch.download(["ar4b"])
    published.requests.clear()
    without_the_hub(published, monkeypatch, how)
    assert ch.download(["ar4b"]) == there
    assert published.sent() == []
    shown = cosmos_hpc("download", "ar4b", cwd=tmp_path)
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.splitlines()[-1] == f"{AR4B}  {there[AR4B]}"


def without_the_hub(published, monkeypatch, how):
    import huggingface_hub.constants as constants

    if how == "offline":
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    elif how == "gone":
        # Nobody listens there.
        monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    elif how == "ill":
        published.down = 503
    elif how == "closed":
        published.gated, published.gated_listing = {TOKENIZER, AR4B}, True
    else:
        monkeypatch.setenv("HF_TOKEN", TOKEN)


@pytest.mark.parametrize(("how", "why"), [("offline", "HF_HUB_OFFLINE is set"), ("gone", "Conn")])
def test_what_a_cache_lacks_is_said_where_there_is_no_network(
    published, tmp_path, monkeypatch, how, why
):
    ch.download(["ar4b"])
    without_the_hub(published, monkeypatch, how)
    cannot = rf" below HF_HOME, and the Hub cannot be reached \({why}.*\); run this where there is"
    with pytest.raises(RequestError, match=f"{AR12B} is not in the cache{cannot}"):
        ch.download(["ar4b", "ar12b"])
    half = storage(tmp_path, AR4B) / "blobs" / "x.incomplete"
    half.touch()
    with pytest.raises(RequestError, match=f"{AR4B} is there only in part in the cache{cannot}"):
        ch.download(["ar4b"])
    half.unlink()
    for blob in storage(tmp_path, AR4B).glob("blobs/*"):
        blob.unlink()
    with pytest.raises(RequestError, match=rf"{AR4B} lacks nemo/\* in the cache{cannot}"):
        ch.download(["ar4b"])
    (encoder,) = storage(tmp_path, TOKENIZER).glob("snapshots/*/encoder.jit")
    encoder.unlink()
    with pytest.raises(RequestError, match=f"{TOKENIZER} lacks encoder.jit in the cache{cannot}"):
        ch.download(["ar4b"])


def test_an_interrupted_cache_is_not_taken_for_whole(published, monkeypatch):
    monkeypatch.setattr("cosmos_hpc.hub.transfer._TRIES", 1)
    published.cuts[f"{AR4B}/nemo/weights/__0_0.distcp"] = [0]
    with pytest.raises(WorkError):
        fetch(WEIGHTS)
    without_the_hub(published, monkeypatch, "offline")
    with pytest.raises(RequestError, match="is not in the cache"):
        fetch(WEIGHTS)


def test_the_library_is_left_as_it_was(published):
    import logging

    from huggingface_hub import constants
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled

    def settings():
        # Other libraries, imported by other tests, set them as well.
        bars = are_progress_bars_disabled("huggingface_hub.http_get")
        return constants.HF_HUB_DISABLE_XET, logging.getLogger("huggingface_hub").level, bars

    before = settings()
    fetch(WEIGHTS)
    assert settings() == before
