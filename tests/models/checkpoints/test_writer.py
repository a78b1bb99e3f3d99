"""What is written is what PyTorch, safetensors, zip tools and Megatron read."""

import zipfile

import pytest
import torch

from cosmos_hpc.models import ModelConfig, from_published
from cosmos_hpc.models.checkpoints.published_files import PublishedWeights
from cosmos_hpc.models.checkpoints.writer import (
    WriteJob,
    write_nemo_weights,
    write_safetensors,
    write_torch_file,
)
from cosmos_hpc.worker.convert import Conversion, convert
from tests.models import reference
from tests.models.checkpoints.test_published import VARIANTS, inputs, sizes, weights
from tests.models.stored import any_bits, assert_same, megatron_arrays, small_model
from tests.ranks import run_ranks


def job(tensors, config, wrote=lambda size: None):
    dtype = next(iter(tensors.values())).dtype
    return WriteJob(PublishedWeights(tensors, "the test's"), config, dtype, wrote)


@pytest.fixture
def model():
    config = small_model("13b")
    return config, any_bits(config)


def test_a_pt_file_is_one_of_pytorch(tmp_path, model):
    config, tensors = model
    write_torch_file(job(tensors, config), tmp_path / "model.pt")
    assert_same(torch.load(tmp_path / "model.pt", weights_only=True), tensors)
    assert_same(torch.load(tmp_path / "model.pt", weights_only=True, mmap=True), tensors)


def test_a_pt_file_is_a_sound_zip_file(tmp_path, model):
    config, tensors = model
    write_torch_file(job(tensors, config), tmp_path / "model.pt")
    with zipfile.ZipFile(tmp_path / "model.pt") as archive:
        assert archive.testzip() is None
        values = archive.read("model/data/0")
    assert values == tensors["model.tok_embeddings.weight"].view(torch.uint8).numpy().tobytes()


def test_a_pt_file_is_that_of_torch_save(tmp_path, model):
    """But for the number that PyTorch gives each file."""
    config, tensors = model
    for folder in ("ours", "theirs"):
        (tmp_path / folder).mkdir()
    write_torch_file(job(tensors, config), tmp_path / "ours" / "model.pt")
    torch.save(tensors, tmp_path / "theirs" / "model.pt")
    ours, theirs = (
        {entry.filename: (entry.file_size, entry.CRC) for entry in archive.infolist()}
        for archive in map(zipfile.ZipFile, sorted(tmp_path.glob("*/model.pt")))
    )
    assert ours.keys() == theirs.keys()
    assert {n for n in ours if ours[n] != theirs[n]} <= {
        "model/data.pkl",
        "model/.data/serialization_id",
    }


@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str
)
def test_a_safetensors_file_is_one_of_safetensors(tmp_path, dtype):
    from safetensors import safe_open
    from safetensors.torch import load_file

    config = small_model("5b action")
    tensors = any_bits(config, dtype)
    path = tmp_path / "model.safetensors"
    write_safetensors(job(tensors, config), path)
    found = load_file(path)
    assert_same({name: found[name] for name in tensors}, tensors)
    assert found.keys() == tensors.keys()
    with safe_open(path, framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}


@pytest.mark.parametrize("write", [write_torch_file, write_safetensors, write_nemo_weights])
def test_what_was_written_is_counted(tmp_path, model, write):
    config, tensors = model
    sizes_written = []
    task = job(tensors, config, sizes_written.append)
    write(task, tmp_path / "x")
    assert sum(sizes_written) == task.num_bytes == 2 * config.num_parameters


def test_a_nemo_checkpoint_is_one_of_pytorch(tmp_path, model):
    """PyTorch's own reader finds every array whole, with the names of Transformer Engine."""
    import torch.distributed.checkpoint as dcp

    config, tensors = model
    write_nemo_weights(job(tensors, config), tmp_path / "weights")
    expected = megatron_arrays(tensors, config)
    found = {name: torch.zeros_like(array) for name, array in expected.items()}
    dcp.load(found, checkpoint_id=tmp_path / "weights", no_dist=True)
    assert_same(found, expected)
    index = dcp.FileSystemReader(tmp_path / "weights").read_metadata()
    others = index.state_dict_metadata.keys() - expected.keys()
    assert all("._extra_state/shard_" in name for name in others)


@pytest.fixture(scope="module")
def one_rank():
    """Megatron's parallel state of one process, and none afterwards."""
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    from cosmos_hpc.models.checkpoints.published import one_rank as start
    from cosmos_hpc.worker.training import cpu

    found = parallel_state.model_parallel_is_initialized()
    with cpu.adapt():
        start()
        model_parallel_cuda_manual_seed(1)
        yield
        if not found:
            parallel_state.destroy_model_parallel()
            torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore:Please use DTensor instead")
@pytest.mark.parametrize("variant", VARIANTS)
def test_megatron_reads_a_nemo_checkpoint_with_its_own_code(tmp_path, one_rank, variant):
    from tests.models.checkpoint_worker import fresh, load_with_megatron, whole_logits

    config = ModelConfig(**sizes(variant))
    tensors = weights(config)
    write_nemo_weights(job(tensors, config), tmp_path / "weights")
    decoder = fresh(config)
    load_with_megatron(decoder, tmp_path / "weights")
    ids, condition = inputs(config)
    with torch.no_grad():
        expected = from_published(tensors, config)(ids, **condition)
    assert torch.equal(whole_logits(decoder, config), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_megatron_saves_converts(tmp_path, one_rank, variant):
    from tests.models.checkpoint_worker import save_with_megatron

    config = ModelConfig(**sizes(variant))
    tensors = weights(config)
    decoder = from_published(tensors, config).decoder
    save_with_megatron(decoder, tmp_path / "saved" / "weights")
    convert(tmp_path / "saved", tmp_path / "model.pt", Conversion())
    assert_same(torch.load(tmp_path / "model.pt", weights_only=True), tensors)


PARALLEL = ["13b", "13b action"]


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory):
    """What two tensor-parallel ranks read and wrote, see :mod:`tests.models.checkpoint_worker`."""
    folder = tmp_path_factory.mktemp("two-ranks")
    (folder / "variants").write_text("\n".join(PARALLEL))
    for variant in PARALLEL:
        place, config = folder / variant, ModelConfig(**sizes(variant))
        place.mkdir()
        tensors = weights(config)
        torch.save(tensors, place / "model.pt")
        write_nemo_weights(job(tensors, config), place / "nemo" / "weights")
        if config.action_width:
            base = {n: t for n, t in tensors.items() if not n.startswith("action_mlp")}
            torch.save(base, place / "base.pt")
    done = run_ranks(folder, "tests.models.checkpoint_worker", str(folder), ranks=2, timeout=120)
    assert done.succeeded, done.log[-3000:]
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("variant", PARALLEL)
@pytest.mark.parametrize("source", ["model.pt", "nemo", "by megatron"])
def test_two_ranks_each_get_their_part(two_ranks, variant, source):
    config = ModelConfig(**sizes(variant))
    ids, condition = inputs(config)
    expected = reference.logits(weights(config), sizes(variant), ids, **condition)
    found = torch.load(two_ranks / variant / "found.pt")[source]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("variant", PARALLEL)
def test_what_two_ranks_save_converts(two_ranks, tmp_path, variant):
    convert(two_ranks / variant / "saved", tmp_path / "model.pt", Conversion())
    expected = weights(ModelConfig(**sizes(variant)))
    assert_same(torch.load(tmp_path / "model.pt", weights_only=True), expected)


@pytest.mark.slow
def test_the_new_head_is_the_same_on_both_ranks(two_ranks):
    found = torch.load(two_ranks / "13b action" / "found.pt")
    assert found["new"] == [f"action_mlp.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")]
    first, second = found["heads"]
    assert torch.equal(first, second)
    assert first.unique().numel() > 100
