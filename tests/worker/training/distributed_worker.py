"""One rank of trainings with Megatron's distributed optimizer, started by torchrun with a folder.

``train FOLDER`` trains with PyTorch's AdamW and with the fused one, each from the beginning, and
with the fused one from the checkpoint of PyTorch's as well; ``resume FOLDER`` with PyTorch's from
that of the fused one. All see the same samples. They leave their losses, norms of gradients and
weights in FOLDER, and checkpoints after half of the steps.
"""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed
from megatron.core.transformer.module import Float16Module

from cosmos_hpc.config.recipes import load_recipe
from cosmos_hpc.models.decoder import CosmosDecoder
from cosmos_hpc.models.megatron import megatron_config
from cosmos_hpc.worker.training import adam, cpu, patches

STEPS = 4
FORMAT = {"distrib_optim_sharding_type": "fully_reshardable"}


class Training:
    """The smallest model, in bf16."""

    def __init__(self, gradients=torch.float32, overlap=False):
        torch.manual_seed(7)
        model_parallel_cuda_manual_seed(7)
        self.model = load_recipe("ar_tiny").model_for_clips()
        settings = megatron_config(
            self.model, True, "local", bf16=True, params_dtype=torch.bfloat16
        )
        decoder = CosmosDecoder(settings, self.model, pre_process=True, post_process=True)
        # Communication that overlaps is in buckets.
        ddp = DistributedDataParallelConfig(
            grad_reduce_in_fp32=gradients == torch.float32,
            use_distributed_optimizer=True,
            overlap_grad_reduce=overlap,
            bucket_size=100_000,
        )
        self.network = DistributedDataParallel(
            settings, ddp, Float16Module(settings, decoder.bfloat16())
        )
        config = OptimizerConfig(
            optimizer="adam",
            lr=1e-3,
            weight_decay=0.1,
            clip_grad=1.0,
            adam_beta2=0.95,
            bf16=True,
            params_dtype=torch.bfloat16,
            use_distributed_optimizer=True,
        )
        self.optimizer = get_megatron_optimizer(config, [self.network])

    def steps(self, first, last):
        """Losses and norms of gradients."""
        return [self._step(number) for number in range(first, last)]

    def _step(self, number):
        generator = torch.Generator().manual_seed(100 * number + dist.get_rank())
        shape = (1, self.model.sequence_length)
        ids = torch.randint(0, self.model.output_vocab_size, shape, generator=generator)
        self.network.zero_grad_buffer()
        self.optimizer.zero_grad()
        loss = self.network(input_ids=ids, labels=ids.roll(-1, 1)).mean()
        loss.backward()
        self.network.finish_grad_sync()
        _, norm, _ = self.optimizer.step()
        return float(loss.detach()), float(norm)

    def _state(self, loading):
        model = self.network.sharded_state_dict(prefix="module.")
        optimizer = self.optimizer.sharded_state_dict(model, is_loading=loading, metadata=FORMAT)
        return {"model": model, "optimizer": optimizer}

    def save(self, folder):
        if dist.get_rank() == 0:
            folder.mkdir()
        dist.barrier()
        dist_checkpointing.save(self._state(False), str(folder))

    def load(self, folder):
        state = dist_checkpointing.load(self._state(True), str(folder))
        weights = {name.removeprefix("module."): x for name, x in state["model"].items()}
        self.network.module.load_state_dict(weights, strict=False)
        self.optimizer.load_state_dict(state["optimizer"])

    def exact_weights(self):
        """Of this rank, in float32."""
        (inner,) = self.optimizer.chained_optimizers
        return torch.cat(
            [
                inner._get_main_param_and_optimizer_states(parameter)["param"].detach().flatten()
                for ranges in inner.gbuf_ranges
                for buckets in ranges.values()
                for bucket in buckets
                for parameter in bucket["param_map"]
            ]
        )

    def report(self, path, rows):
        dist.barrier()
        weights = [p.detach().flatten() for p in self.network.parameters()]
        state = {"rows": rows, "weights": torch.cat(weights), "exact": self.exact_weights()}
        torch.save(state, f"{path}-{dist.get_rank()}.pt")


def from_the_beginning(folder, name, **kwargs):
    training = Training(**kwargs)
    rows = training.steps(0, STEPS // 2)
    training.save(folder / f"{name}-checkpoint")
    training.report(folder / name, rows + training.steps(STEPS // 2, STEPS))


def resumed(folder, name, checkpoint):
    training = Training()
    training.load(folder / checkpoint)
    training.report(folder / name, training.steps(STEPS // 2, STEPS))


def main(what, folder):
    cpu.adapt()
    dist.init_process_group("gloo")
    parallel_state.initialize_model_parallel()
    patches.multiply_shapes()
    patches.load_steps_of_adam()
    with torch.compiler.set_stance("force_eager"):
        if what == "resume":
            resumed(folder, "pytorch-resumed", "fused-checkpoint")
            return
        from_the_beginning(folder, "pytorch")
        patches.gather_state_in_pieces()
        patches._PIECE = 5000
        adam.use_fused_adam()
        from_the_beginning(folder, "fused")
        from_the_beginning(folder, "bf16-gradients", gradients=torch.bfloat16, overlap=True)
        resumed(folder, "fused-resumed", "pytorch-checkpoint")
        adam.FusedAdam.moments = torch.bfloat16
        from_the_beginning(folder, "bf16-moments")
        resumed(folder, "bf16-moments-resumed", "bf16-moments-checkpoint")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
