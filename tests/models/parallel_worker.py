"""One rank of the comparison in parallel, run with a case and variants.

Two ranks share the tensors, or with case ``context`` the sequence; four ranks share both, and with
``sequence`` the parts of the sequence again. With ``kernel``, Triton's interpreter computes what
goes into self-attention.

Exits 0 when logits and every gradient agree with the plain statement of the architecture.
"""

import sys

import torch
import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.pipeline_parallel.schedules import custom_backward
from megatron.core.tensor_parallel import (
    gather_from_tensor_model_parallel_region,
    model_parallel_cuda_manual_seed,
)

from cosmos_hpc.models import ModelConfig
from cosmos_hpc.models.context_parallel import own_part
from cosmos_hpc.models.decoder import CosmosDecoder
from cosmos_hpc.models.fusions import fuse
from cosmos_hpc.models.loss import token_losses
from cosmos_hpc.models.megatron import megatron_config
from cosmos_hpc.worker.training import cpu
from tests.models import reference
from tests.models.checkpoints.test_published import inputs, sizes, to_megatron, weights

#: Dimension that tensor parallelism splits; other weights are whole on every rank.
SPLIT = {
    "word_embeddings": 0,
    "output_layer": 0,
    "linear_qkv": 0,
    "linear_q": 0,
    "linear_kv": 0,
    "linear_fc1": 0,
    "linear_proj": 1,
    "linear_fc2": 1,
}


def part(name, tensor, rank, ranks):
    """This rank's part of a weight or gradient; gate and up are each split."""
    kind = name.split(".")[-2]
    if kind not in SPLIT:
        return tensor
    pieces = tensor.chunk(2) if kind == "linear_fc1" else [tensor]
    return torch.cat([piece.chunk(ranks, SPLIT[kind])[rank] for piece in pieces])


def main(case, variants):
    cpu.adapt()
    dist.init_process_group("gloo")
    words = case.split("+")
    context = 2 if "context" in words else 1
    parallel_state.initialize_model_parallel(
        tensor_model_parallel_size=dist.get_world_size() // context, context_parallel_size=context
    )
    model_parallel_cuda_manual_seed(1)
    recompute = next((word for word in words if word in ("full", "selective")), "none")
    if "kernel" in words:
        fuse(None, ["attention_inputs"])
    for variant in variants:
        compare(variant, "sequence" in words, recompute)
        print(f"{variant} agrees", flush=True)
    dist.destroy_process_group()


def compare(variant, sequence_parallel, recompute):
    tensor = parallel_state.get_tensor_model_parallel_group()
    context = parallel_state.get_context_parallel_group()
    rank, ranks = tensor.rank(), tensor.size()
    # Four ranks share as many groups.
    more = {"num_query_groups": 4} if dist.get_world_size() == 4 else {}
    config = ModelConfig(**{**sizes(variant), **more})
    w = {name: tensor.requires_grad_() for name, tensor in weights(config).items()}
    ids, condition = inputs(config)
    probe = torch.randn(
        2,
        config.sequence_length,
        config.output_vocab_size,
        generator=torch.Generator().manual_seed(2),
    )
    expected = reference.logits(w, {**sizes(variant), **more}, ids, **condition)
    (expected * probe).sum().backward()
    ids, probe, expected = (own_part(x, context, 1) for x in (ids, probe, expected.detach()))

    settings = megatron_config(
        config,
        cpu=True,
        tensor_model_parallel_size=ranks,
        context_parallel=context.size(),
        sequence_parallel=sequence_parallel,
        recompute=recompute,
    )
    decoder = CosmosDecoder(settings, config, pre_process=True, post_process=True)
    decoder.load_state_dict(
        {
            name: part(name, tensor.detach(), rank, ranks)
            for name, tensor in to_megatron(w, config).items()
        }
    )
    got = decoder(input_ids=ids, **condition)
    whole = gather_from_tensor_model_parallel_region(got)
    torch.testing.assert_close(whole, expected, rtol=1e-4, atol=1e-4)
    # Megatron's schedule calls the engine like this; torch's own functions would suspend the CPU
    # adaptation during the backward pass.
    custom_backward((got * probe.chunk(ranks, -1)[rank]).sum(), None)

    labels = whole.detach().argmax(-1)
    labels[:, 3] = (labels[:, 3] + 1) % config.output_vocab_size
    with torch.no_grad():
        losses = decoder(input_ids=ids, labels=labels, **condition)
    assert (~decoder.likeliest).nonzero()[:, 1].tolist() == [3, 3]
    compare_fused_losses(got.detach().transpose(0, 1), labels.t(), losses.t(), whole)

    wanted = to_megatron({name: tensor.grad for name, tensor in w.items()}, config)
    for name, parameter in decoder.named_parameters():
        gradient = parameter.grad.clone()
        # Megatron sums these after the backward pass (finalize_model_grads).
        per_head = "q_layernorm" in name or "k_layernorm" in name
        if per_head or (sequence_parallel and getattr(parameter, "sequence_parallel", False)):
            dist.all_reduce(gradient, group=tensor)
        # As its data parallelism does, without the mean.
        dist.all_reduce(gradient, group=context)
        torch.testing.assert_close(
            gradient, part(name, wanted[name], rank, ranks), rtol=1e-4, atol=1e-4, msg=name
        )


def compare_fused_losses(logits, labels, expected, whole):
    """The fused kernel's losses and gradients, of this rank's part, beside PyTorch's."""
    ranks = parallel_state.get_tensor_model_parallel_group()
    logits = logits.clone().requires_grad_()
    with torch.compiler.set_stance("force_eager"):
        got = token_losses(logits, labels, ranks)
        torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
        custom_backward((got * got.detach()).sum(), None)
    whole = whole.detach().requires_grad_()
    losses = torch.nn.functional.cross_entropy(
        whole.flatten(0, 1), labels.t().flatten(), reduction="none"
    )
    custom_backward((losses * losses.detach()).sum(), None)
    wanted = whole.grad.chunk(ranks.size(), -1)[ranks.rank()].transpose(0, 1)
    torch.testing.assert_close(logits.grad, wanted, rtol=1e-4, atol=1e-4)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
