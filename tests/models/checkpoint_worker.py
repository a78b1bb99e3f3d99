"""One rank of checkpoints over tensor-parallel ranks, run with a folder.

For each variant of the folder's ``variants``, reads ``<variant>/model.pt`` and ``<variant>/nemo``
into decoders and leaves the logits of each, and what Megatron's own save wrote.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.tensor_parallel import (
    gather_from_tensor_model_parallel_region,
    model_parallel_cuda_manual_seed,
)

from cosmos_hpc.models import ModelConfig
from cosmos_hpc.models.checkpoints.published import load_weights
from cosmos_hpc.models.checkpoints.reader import open_weights
from cosmos_hpc.models.decoder import CosmosDecoder
from cosmos_hpc.models.megatron import megatron_config
from cosmos_hpc.worker.training import cpu
from tests.models.checkpoints.test_published import inputs, sizes


def fresh(config):
    """A decoder whose weights are none of the checkpoint's."""
    torch.manual_seed(5)
    settings = megatron_config(
        config, cpu=True, tensor_model_parallel_size=dist.get_world_size(), transformer_impl="local"
    )
    return CosmosDecoder(settings, config, pre_process=True, post_process=True)


def whole_logits(decoder, config):
    ids, condition = inputs(config)
    with torch.no_grad():
        return gather_from_tensor_model_parallel_region(decoder(input_ids=ids, **condition))


def load_with_megatron(decoder, folder):
    """What NeMo does: its own names begin with ``module.``."""
    state = decoder.sharded_state_dict(prefix="module.")
    loaded = dist_checkpointing.load(state, str(folder))
    loaded = {name.removeprefix("module."): value for name, value in loaded.items()}
    decoder.load_state_dict({n: v for n, v in loaded.items() if not n.endswith("_extra_state")})


def save_with_megatron(decoder, folder):
    if dist.get_rank() == 0:
        folder.mkdir(parents=True)
    dist.barrier()
    dist_checkpointing.save(decoder.sharded_state_dict(prefix="module."), str(folder))


def main(folder):
    cpu.adapt()
    dist.init_process_group("gloo")
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=dist.get_world_size())
    model_parallel_cuda_manual_seed(1)
    for variant in (folder / "variants").read_text().splitlines():
        config, place = ModelConfig(**sizes(variant)), folder / variant
        found = {}
        for source in ("model.pt", "nemo"):
            decoder = fresh(config)
            assert load_weights(decoder, config, open_weights(place / source)) == []
            found[source] = whole_logits(decoder, config)
        save_with_megatron(decoder, place / "saved" / "weights")
        decoder = fresh(config)
        load_with_megatron(decoder, place / "nemo" / "weights")
        found["by megatron"] = whole_logits(decoder, config)
        if (place / "base.pt").exists():
            decoder = fresh(config)
            found["new"] = load_weights(decoder, config, open_weights(place / "base.pt"))
            head = torch.cat([p.detach().flatten() for p in decoder.action_mlp.parameters()])
            heads = [torch.empty_like(head) for _ in range(dist.get_world_size())]
            dist.all_gather(heads, head)
            found["heads"] = heads
        if dist.get_rank() == 0:
            torch.save(found, place / "found.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
