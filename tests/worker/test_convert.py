"""Conversions as a person asks for them: bit by bit, and refused in one sentence."""

import io
import pickle
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from cosmos_hpc.cli import main
from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.errors import RequestError, WorkError
from cosmos_hpc.models import from_published
from cosmos_hpc.models.checkpoints.reader import open_weights
from cosmos_hpc.models.shapes import published_shapes
from cosmos_hpc.runs.folder import RunFolder, action_stats_of
from cosmos_hpc.utils import files
from cosmos_hpc.worker.convert import Conversion, convert
from tests.conftest import cosmos_hpc
from tests.models.checkpoints.test_published import inputs
from tests.models.stored import (
    BASES,
    RunsCode,
    any_bits,
    assert_same,
    describe,
    megatron_arrays,
    recipe_file,
    small_model,
    write_torch_dist,
)


def loaded(path):
    """What PyTorch or safetensors reads without this package."""
    if path.suffix == ".pt":
        return torch.load(path, weights_only=True)
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.parametrize("variant", BASES)
def test_there_and_back_every_bit_is_the_same(tmp_path, variant):
    from nemo.lightning.io import load_context

    from cosmos_hpc.worker.training.nemo import CosmosModel

    recipe = recipe_file(tmp_path, variant)
    config = load_recipe(str(recipe)).model_for_clips()
    tensors = any_bits(config)
    torch.save(tensors, tmp_path / "model.pt")
    convert(tmp_path / "model.pt", tmp_path / "nemo", Conversion(recipe=str(recipe)))
    # Back as a file of each kind, and from one kind of file to the other.
    for source, target in [
        ("nemo", "back.pt"),
        ("nemo", "back.safetensors"),
        ("back.safetensors", "again.pt"),
        ("model.pt", "other.safetensors"),
    ]:
        convert(tmp_path / source, tmp_path / target, Conversion())
        assert_same(loaded(tmp_path / target), tensors)
    assert torch.load(tmp_path / "back.pt", mmap=True, weights_only=True).keys() == tensors.keys()

    model = load_context(tmp_path / "nemo" / "context", subpath="model")
    assert isinstance(model, CosmosModel)
    assert model.config.model() == config
    names = {p.name for p in tmp_path.iterdir()}
    assert not {name for name in names if name.startswith(".")}


@pytest.mark.parametrize("target", ["x.pt", "x.safetensors", "x"])
def test_a_dtype_stays_unless_another_is_asked_for(tmp_path, target):
    recipe = recipe_file(tmp_path, "4b")
    config = load_recipe(str(recipe)).model_for_clips()
    tensors = any_bits(config, torch.float32)
    torch.save(tensors, tmp_path / "model.pt")
    # The statistics of a robot's actions go along, from form to form.
    stats = {"shift": [0.5], "scale": [2.0]}
    files.write_json(action_stats_of(tmp_path / "model.pt"), stats)
    convert(tmp_path / "model.pt", tmp_path / target, Conversion(recipe=str(recipe)))
    convert(tmp_path / target, tmp_path / "back.pt", Conversion())
    assert_same(loaded(tmp_path / "back.pt"), tensors)
    assert files.read_json(action_stats_of(tmp_path / "back.pt")) == stats
    convert(
        tmp_path / "model.pt",
        tmp_path / f"half-{target}",
        Conversion(recipe=str(recipe), dtype="bfloat16"),
    )
    convert(tmp_path / f"half-{target}", tmp_path / "half.pt", Conversion())
    half = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    assert_same(loaded(tmp_path / "half.pt"), half)
    wide = Conversion(dtype="float32")
    convert(tmp_path / "half.pt", tmp_path / "wide.pt", wide)
    assert_same(loaded(tmp_path / "wide.pt"), {n: t.float() for n, t in half.items()})


@pytest.mark.parametrize("name", ["ar_tiny", "ar_tiny_v2w", "ar_tiny_action"])
@pytest.mark.parametrize("padded", [False, True])
def test_the_recipe_is_known_by_the_weights_alone(tmp_path, capsys, name, padded):
    """Whatever the file is called; and vocabularies of a NeMo checkpoint may be padded."""
    from nemo.lightning.io import load_context

    config = load_recipe(name).model_for_clips()
    tensors = {
        n: torch.zeros(1, dtype=torch.bfloat16).expand(shape)
        for n, shape in published_shapes(config).items()
    }
    source = tmp_path / "12B.pt"
    if padded:
        source = tmp_path / "ar12b" / "nemo"
        arrays = megatron_arrays(tensors, config, pad_to=64128)
        write_torch_dist(source / "weights", arrays)
    else:
        torch.save(tensors, source)
    convert(source, tmp_path / "13B", Conversion())
    assert f"{source} has the sizes of {name}\n" in capsys.readouterr().out
    model = load_context(tmp_path / "13B" / "context", subpath="model")
    assert model.config.model() == config
    open_weights(tmp_path / "13B").expect(config)
    assert open_weights(tmp_path / "13B").sizes().vocab_size == config.vocab_size


def test_the_command_line(tmp_path):
    source = published(tmp_path)
    done = cosmos_hpc("convert", source, "new/x.safetensors", "dtype=float32", cwd=tmp_path)
    assert done.code == 0, done.err
    assert done.out.endswith("wrote new/x.safetensors\n")
    assert done.err == ""
    # One line before and one at the end: progress is for what takes long.
    assert done.out.count("\n") == 3
    expected = {n: t.float() for n, t in any_bits(small_model()).items()}
    assert_same(loaded(tmp_path / "new" / "x.safetensors"), expected)
    again = cosmos_hpc("convert", source, "new/x.safetensors", cwd=tmp_path)
    assert again.code == 2
    assert again.err == "error: new/x.safetensors exists; remove it or choose another name\n"


# Bad input. Each maker leaves something in a folder and says what to convert, and what is said.


def nemo(folder, **sizes):
    config = small_model(**sizes)
    write_torch_dist(folder / "nemo" / "weights", megatron_arrays(any_bits(config), config))
    return folder / "nemo"


def published(folder, **sizes):
    torch.save(any_bits(small_model(**sizes)), folder / "model.pt")
    return folder / "model.pt"


def safetensors(folder):
    convert(published(folder), folder / "model.safetensors", Conversion())
    (folder / "model.pt").unlink()
    return folder / "model.safetensors"


def cut(path, size=-100):
    path.write_bytes(path.read_bytes()[:size])


def truncated_pt(folder):
    cut(published(folder))
    return folder / "model.pt", r"model.pt is damaged or not a PyTorch file"


def truncated_in_the_values(folder):
    cut(published(folder), 20_000)
    return folder / "model.pt", r"model.pt is damaged or not a PyTorch file"


def truncated_safetensors(folder):
    cut(safetensors(folder))
    return folder / "model.safetensors", r"model.safetensors is damaged or not a safetensors file: "


def safetensors_cut_in_the_header(folder):
    cut(safetensors(folder), 50)
    return folder / "model.safetensors", r"model.safetensors is damaged or not a safetensors file: "


def truncated_distcp(folder):
    path = next(nemo(folder).glob("weights/*.distcp"))
    cut(path)
    return folder / "nemo", r"__0_0.distcp is truncated: \d+ of \d+ bytes$"


def damaged_distcp(folder):
    path = next(nemo(folder).glob("weights/*.distcp"))
    path.write_bytes(bytes(path.stat().st_size))
    return folder / "nemo", r"cannot read embedding.word_embeddings.weight, the checkpoint is damag"


def missing_distcp(folder):
    next(nemo(folder).glob("weights/*.distcp")).unlink()
    return folder / "nemo", r"__0_0.distcp is missing$"


def missing_index(folder):
    (nemo(folder) / "weights" / ".metadata").unlink()
    return folder / "nemo", r"weights has no .metadata: the checkpoint is not complete$"


def missing_index_and_description(folder):
    weights = nemo(folder) / "weights"
    (weights / ".metadata").unlink()
    (weights / "metadata.json").unlink()
    return folder / "nemo", r"weights holds no distributed checkpoint .torch_dist and"


def truncated_index(folder):
    cut(nemo(folder) / "weights" / ".metadata")
    return folder / "nemo", r".metadata is damaged or not the index of a checkpoint: "


def index_of_something_else(folder):
    (nemo(folder) / "weights" / ".metadata").write_bytes(pickle.dumps({"a": [1]}))
    return folder / "nemo", r".metadata is not the index of a checkpoint$"


def index_without_content(folder):
    from torch.distributed.checkpoint.metadata import Metadata

    empty = pickle.dumps(Metadata.__new__(Metadata))
    (nemo(folder) / "weights" / ".metadata").write_bytes(empty)
    return folder / "nemo", r".metadata is damaged$"


def damaged_description(folder):
    (nemo(folder) / "weights" / "metadata.json").write_bytes(b"\xff{")
    return folder / "nemo", r"metadata.json does not say in which format the weights are$"


def unknown_format(folder):
    describe(nemo(folder) / "weights", "fsdp_dtensor")
    return folder / "nemo", r"a checkpoint of format 'fsdp_dtensor'; torch_dist and zarr can be re"


def random_bytes(folder):
    (folder / "x.pt").write_bytes(torch.arange(0, 40_000).sin().numpy().tobytes())
    return folder / "x.pt", r"x.pt is damaged or not a PyTorch file"


def empty_pt(folder):
    (folder / "x.pt").touch()
    return folder / "x.pt", r"x.pt is damaged or not a PyTorch file"


def empty_safetensors(folder):
    (folder / "x.safetensors").touch()
    return folder / "x.safetensors", r"x.safetensors is damaged or not a safetensors file: "


def text(folder):
    (folder / "x.pt").write_text("version https://git-lfs.github.com/spec/v1\n")
    return folder / "x.pt", r"x.pt is damaged or not a PyTorch file"


def page_as_safetensors(folder):
    (folder / "x.safetensors").write_text("<!doctype html><title>Not found</title>")
    return folder / "x.safetensors", r"x.safetensors is damaged or not a safetensors file: "


def no_tensors(folder):
    torch.save({"model.norm.weight": [1, 2], "step": 3}, folder / "x.pt")
    return folder / "x.pt", r"x.pt is not a mapping of names to tensors$"


def no_mapping(folder):
    torch.save(torch.ones(3), folder / "x.pt")
    return folder / "x.pt", r"x.pt is not a mapping of names to tensors$"


def no_names(folder):
    torch.save({3: torch.ones(3)}, folder / "x.pt")
    return folder / "x.pt", r"x.pt is not a mapping of names to tensors$"


def no_values(folder):
    torch.save({"model.norm.weight": torch.ones(3, device="meta")}, folder / "x.pt")
    return folder / "x.pt", r"x.pt is not a mapping of names to tensors$"


def nothing_in_it(folder):
    torch.save({}, folder / "x.pt")
    return folder / "x.pt", r"x.pt is not a checkpoint of a Cosmos model: it has no "


def other_model(folder):
    torch.save({"h.0.attn.weight": torch.ones(3, 3)}, folder / "x.pt")
    return folder / "x.pt", r"x.pt is not a checkpoint of a Cosmos model: it has no "


def whole_numbers(folder):
    tensors = {n: t.view(torch.int16) for n, t in any_bits(small_model()).items()}
    torch.save(tensors, folder / "x.pt")
    return folder / "x.pt", r"x.pt holds weights of torch.int16, which cannot be converted$"


def empty_folder(folder):
    (folder / "x").mkdir()
    return folder / "x", r"x holds no distributed checkpoint .torch_dist and zarr can be read.$"


def nowhere(folder):
    return folder / "x.pt", r"there is no .*x.pt$"


def dangling_link(folder):
    (folder / "x.pt").symlink_to("blob")
    return folder / "x.pt", r"there is no .*x.pt$"


def another_kind(folder):
    (folder / "x.ckpt").write_text("x")
    return folder / "x.ckpt", r"x.ckpt is neither a .pt nor a .safetensors file, nor a folder$"


BAD = [
    truncated_pt,
    truncated_in_the_values,
    truncated_safetensors,
    safetensors_cut_in_the_header,
    truncated_distcp,
    damaged_distcp,
    missing_distcp,
    missing_index,
    missing_index_and_description,
    truncated_index,
    index_of_something_else,
    index_without_content,
    damaged_description,
    unknown_format,
    random_bytes,
    empty_pt,
    empty_safetensors,
    text,
    page_as_safetensors,
    no_tensors,
    no_mapping,
    no_names,
    no_values,
    nothing_in_it,
    other_model,
    whole_numbers,
    empty_folder,
    nowhere,
    dangling_link,
    another_kind,
]


def assert_refused(capsys, arguments, says, code=2):
    """One line that says so, and nothing else in the folder of the target."""
    folder = arguments[1].parent
    before = sorted(folder.iterdir()) if folder.exists() else None
    assert main(["convert", *map(str, arguments)]) == code
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.count("\n") == 1, error
    assert re.search(says, error.rstrip()), error
    assert before == (sorted(folder.iterdir()) if folder.exists() else None)


@pytest.mark.parametrize("make", BAD, ids=lambda f: f.__name__)
@pytest.mark.parametrize("target", ["out/x.pt", "out/x.safetensors"])
def test_a_bad_source_is_refused(tmp_path, capsys, make, target):
    (tmp_path / "out").mkdir()
    source, says = make(tmp_path)
    assert_refused(capsys, [source, tmp_path / target], says)


def test_a_damaged_source_of_a_nemo_checkpoint_is_refused(tmp_path, capsys):
    """Found out in the middle of PyTorch's own writer."""
    recipe = recipe_file(tmp_path, "4b")
    config = load_recipe(str(recipe)).model_for_clips()
    write_torch_dist(tmp_path / "nemo" / "weights", megatron_arrays(any_bits(config), config))
    path = next(tmp_path.glob("nemo/weights/*.distcp"))
    path.write_bytes(bytes(path.stat().st_size))
    (tmp_path / "out").mkdir()
    arguments = [tmp_path / "nemo", tmp_path / "out" / "x", f"recipe={recipe}"]
    assert_refused(capsys, arguments, r"nemo: cannot read embedding.word_emb.*checkpoint is damag")


def pickled(folder, value):
    (folder / "x.pt").write_bytes(pickle.dumps(value))
    return folder / "x.pt", pickle.loads


def pickled_in_a_zip_file(folder, value):
    torch.save({"model.norm.weight": value}, folder / "x.pt")
    return folder / "x.pt", unsafely_loaded


def pickled_in_an_index(folder, value):
    index = nemo(folder) / "weights" / ".metadata"
    index.write_bytes(pickle.dumps(value))
    return index, pickle.loads


def pickled_in_the_values(folder, value):
    """In place of the first tensor that is read."""
    weights = nemo(folder) / "weights"
    index = pickle.loads((weights / ".metadata").read_bytes())
    path = weights / "__0_0.distcp"
    content = io.BytesIO()
    torch.save(value, content)
    place = next(k for k in index.storage_data if k.fqn.endswith("word_embeddings.weight"))
    index.storage_data[place].offset = path.stat().st_size
    index.storage_data[place].length = len(content.getvalue())
    with open(path, "ab") as f:
        f.write(content.getvalue())
    (weights / ".metadata").write_bytes(pickle.dumps(index))
    return path, lambda whole: unsafely_loaded(whole[-len(content.getvalue()) :])


def unsafely_loaded(content):
    return torch.load(io.BytesIO(content), weights_only=False)


@pytest.mark.parametrize(
    "make, says",
    [
        (pickled, "x.pt is damaged or not a PyTorch file"),
        (pickled_in_a_zip_file, "x.pt holds more than tensors, .* it could run code"),
        (pickled_in_an_index, ".metadata is damaged or .*mkdir does not belong into an index"),
        (pickled_in_the_values, "cannot read embedding.word_embeddings.weight, .* is damaged"),
    ],
)
def test_a_pickle_that_would_run_code_does_not(tmp_path, capsys, make, says):
    marker = tmp_path / "ran"
    path, careless = make(tmp_path, RunsCode(marker))
    (tmp_path / "out").mkdir()
    source = path if path.suffix == ".pt" else path.parent
    assert_refused(capsys, [source, tmp_path / "out" / "x.pt"], says)
    assert not marker.exists()
    careless(path.read_bytes())
    assert marker.exists()


def test_weights_of_another_model_than_the_recipe(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "x"
    recipe = f"recipe={recipe_file(tmp_path, '5b')}"
    source = published(tmp_path, vocab_size=90)
    missing = r"holds the weights of another model: 14 missing \(model.layers.0.cross_attention_no"
    misshapen = r"; 2 misshapen \(model.tok_embeddings.weight is \[90, 16\], not \[64064, 16\], "
    assert_refused(capsys, [source, target, recipe], missing + ".*" + misshapen)
    source = nemo(tmp_path, context_width=64, num_layers=3)
    recipe = f"recipe={recipe_file(tmp_path, '4b')}"
    unexpected = r"another model: 26 unexpected \(decoder.layers.2.self_attention.linear_qkv.layer_"
    assert_refused(capsys, [source, target, recipe], unexpected)
    action = f"recipe={recipe_file(tmp_path, '5b action')}"
    config = load_recipe(action.partition("=")[2]).model_for_clips()
    tensors = any_bits(config)
    torch.save({n: t for n, t in tensors.items() if "action" not in n}, tmp_path / "base.pt")
    says = r"base.pt holds the weights of another model: 4 missing \(action_mlp.0.weight, action_ml"
    assert_refused(capsys, [tmp_path / "base.pt", target, action], says)


def test_a_nemo_checkpoint_needs_a_recipe_of_its_sizes(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    says = r"no recipe has a model of the sizes of .*model.pt, and .* name a recipe .* recipe=NAME$"
    assert_refused(capsys, [published(tmp_path), tmp_path / "out" / "x"], says)


@pytest.mark.parametrize(
    "setting, says",
    [
        ("dtype=float64", r"request: dtype='float64': expected `bfloat16` or `float32`"),
        ("dtype=bf16", r"dtype='bf16': .*; did you mean bfloat16\?$"),
        ("recipe=ar4", r"unknown recipe 'ar4'; did you mean ar4b\?$"),
        ("recipe=nowhere.yaml", r"cannot read nowhere.yaml: "),
        ("recpie=ar4b", r"unknown setting 'recpie'; did you mean recipe\?$"),
    ],
)
def test_unknown_settings_are_refused(tmp_path, capsys, setting, says):
    (tmp_path / "out").mkdir()
    assert_refused(capsys, [published(tmp_path), tmp_path / "out" / "x.pt", setting], says)


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_a_target_that_exists_is_kept(tmp_path, capsys, kind):
    target = tmp_path / "out" / "x.pt"
    target.parent.mkdir()
    if kind == "file":
        target.write_text("precious")
    elif kind == "folder":
        target.mkdir()
        (target / "y").write_text("precious")
    else:
        target.symlink_to("elsewhere")
    assert_refused(capsys, [published(tmp_path), target], r"x.pt exists; remove it or choose anoth")
    kept = {"file": target, "folder": target / "y"}.get(kind)
    assert kept.read_text() == "precious" if kept else target.is_symlink()


# Disks, other processes, and the end of this one.


@pytest.mark.parametrize("target", ["x.pt", "x.safetensors", "x"])
def test_a_disk_without_room_is_refused_before(tmp_path, small_disk, capsys, target):
    recipe = recipe_file(tmp_path, "4b")
    torch.save(any_bits(load_recipe(str(recipe)).model_for_clips()), tmp_path / "model.pt")
    (small_disk / "other").write_bytes(b"x" * 1_000_000)
    arguments = [tmp_path / "model.pt", small_disk / target, f"recipe={recipe}"]
    says = r"x[.a-z]* takes 0.0041 GB, and .*small-disk has 0.0032 GB free$"
    assert_refused(capsys, arguments, says)


@pytest.mark.parametrize("target", ["x.pt", "x.safetensors"])
def test_a_target_on_a_read_only_disk(tmp_path, small_disk, capsys, target):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    says = r"convert failed .*: the file system is read-only; choose a place that you may write to$"
    assert_refused(capsys, [published(tmp_path), small_disk / target], says, code=1)


@pytest.mark.parametrize("target", ["x.pt", "x.safetensors", "x"])
def test_a_disk_that_fills_up_in_the_middle(tmp_path, target):
    """The system refuses to write more, after the room that there is has been looked at."""
    recipe = recipe_file(tmp_path, "4b")
    torch.save(any_bits(load_recipe(str(recipe)).model_for_clips()), tmp_path / "model.pt")
    (tmp_path / "out").mkdir()
    was = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, was[1]))
    try:
        with pytest.raises((OSError, WorkError), match="File too large|is the disk full"):
            convert(
                tmp_path / "model.pt", tmp_path / "out" / target, Conversion(recipe=str(recipe))
            )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, was)
    assert list((tmp_path / "out").iterdir()) == []


def start(source, target, *settings):
    """A conversion in a process of its own, stopped while it writes."""
    command = [sys.executable, "-m", "cosmos_hpc", "convert", str(source), str(target), *settings]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    temporary = target.with_name(f".{target.name}.tmp")
    deadline = time.monotonic() + 280
    while not temporary.exists():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)
    process.send_signal(signal.SIGSTOP)
    assert not target.exists()
    return process


@pytest.fixture
def large(tmp_path):
    """A model that takes a second to write."""
    config = small_model(hidden_size=2048, vocab_size=40_000, output_vocab_size=40_000)
    shapes = published_shapes(config)
    source = tmp_path / "model.pt"
    tensors = {n: torch.zeros(1, dtype=torch.bfloat16).expand(s) for n, s in shapes.items()}
    torch.save(tensors, source)
    return source


@pytest.mark.parametrize("target", ["x.pt", "x.safetensors"])
def test_two_at_the_same_time_and_one_that_is_killed(tmp_path, capsys, large, target):
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / target
    first = start(large, target)
    try:
        says = f"{target} is being written by process {first.pid} on "
        assert_refused(capsys, [large, target], says)
        assert first.poll() is None
    finally:
        first.kill()
        first.wait()
    assert not target.exists()
    convert(large, target, Conversion())
    assert list(target.parent.iterdir()) == [target]
    assert loaded(target).keys() == torch.load(large, weights_only=True).keys()


@pytest.mark.slow
def test_a_killed_conversion_to_a_nemo_checkpoint(tmp_path):
    recipe = recipe_file(tmp_path, "4b", hidden_size=512)
    tensors = any_bits(load_recipe(str(recipe)).model_for_clips())
    torch.save(tensors, tmp_path / "model.pt")
    (tmp_path / "out").mkdir()
    target = tmp_path / "out" / "x"
    first = start(tmp_path / "model.pt", target, f"recipe={recipe}")
    first.kill()
    first.wait()
    assert not target.exists()
    convert(tmp_path / "model.pt", target, Conversion(recipe=str(recipe)))
    assert list(target.parent.iterdir()) == [target]
    convert(target, tmp_path / "back.pt", Conversion())
    assert_same(loaded(tmp_path / "back.pt"), tensors)


def test_who_waited_for_another_does_not_replace_its_target(tmp_path, large):
    target = tmp_path / "x.pt"
    first = start(large, target)
    said = []

    def second():
        try:
            convert(large, target, Conversion(dtype="float32"))
        except RequestError as e:
            said.append(str(e))

    waiting = threading.Thread(target=second)
    waiting.start()
    time.sleep(0.3)
    first.send_signal(signal.SIGCONT)
    assert first.wait(timeout=60) == 0
    waiting.join()
    assert re.search("x.pt (exists; remove it|is being written by)", said[0])
    found = torch.load(target, weights_only=True, mmap=True)
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_what_a_killed_conversion_left_counts_as_free(tmp_path, small_disk):
    config = small_model(hidden_size=256, vocab_size=2000, output_vocab_size=2000)
    torch.save(any_bits(config), tmp_path / "model.pt")
    (small_disk / ".x.pt.tmp").write_bytes(b"x" * 3_000_000)
    convert(tmp_path / "model.pt", small_disk / "x.pt", Conversion())
    assert_same(loaded(small_disk / "x.pt"), any_bits(config))
    assert [p.name for p in small_disk.iterdir()] == ["x.pt"]


@pytest.mark.slow
def test_the_checkpoint_of_a_training(finished, tmp_path):
    """Written by NeMo with the optimizer's state; the weights in it make a model that computes."""
    import torch.distributed.checkpoint as dcp

    assert finished.first.code == 0, finished.first.err
    checkpoints = sorted(
        p for p in (finished.path / "train" / "checkpoints").glob("step=*-last") if p.is_dir()
    )
    source = checkpoints[-1]
    index = dcp.FileSystemReader(source / "weights").read_metadata().state_dict_metadata
    assert any(name.startswith("optimizer.") for name in index)
    assert any("_extra_state" in name for name in index)
    convert(source, tmp_path / "model.pt", Conversion())
    tensors = loaded(tmp_path / "model.pt")

    config = RunFolder(finished.path).recipe().model_for_clips()
    expected = megatron_arrays(tensors, config)
    stored = {name: torch.zeros_like(array) for name, array in expected.items()}
    dcp.load(stored, checkpoint_id=source / "weights", no_dist=True)
    assert_same(stored, expected)

    ids, condition = inputs(config)
    with torch.no_grad():
        logits = from_published(tensors, config)(ids, **condition)
    assert logits.isfinite().all()
    # And back: the weights that training would resume from.
    convert(tmp_path / "model.pt", tmp_path / "nemo", Conversion())
    convert(tmp_path / "nemo", tmp_path / "back.pt", Conversion())
    assert_same(loaded(tmp_path / "back.pt"), tensors)


def test_names_of_targets_and_sources(tmp_path, capsys):
    for words, expected in (
        (("m.pt", str(tmp_path / "x.pth")), "ends in .pth; files end in .pt or .safetensors"),
        (("m.pt", str(tmp_path / "x.PT")), "ends in .PT; files end in"),
        (("", "x.pt"), "one of them is empty"),
        (("~/no-such-model.pt", str(tmp_path / "x.pt")), f"there is no {Path.home()}/no-such"),
    ):
        assert main(["convert", *words]) == 2
        assert expected in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert main(["convert", "m.pt", str(tmp_path / "file" / "x.pt")]) == 2
    assert "file is not a folder" in capsys.readouterr().err


def test_what_transformer_engine_keeps_beside_its_weights_is_passed_over(tmp_path):
    model = small_model()
    weights = {n: torch.zeros(s) for n, s in published_shapes(model).items()}
    extra = {"model.layers.0.attention.wq._extra_state": io.BytesIO(b"fp8"), "a._extra_state": None}
    torch.save({**weights, **extra}, tmp_path / "model.pt")
    open_weights(tmp_path / "model.pt").expect(model)


def test_a_file_of_an_old_pytorch_says_what_to_do(tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "m.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(RequestError, match="format of PyTorch before 1.6"):
        open_weights(tmp_path / "m.pt")
