"""Compile the kernels of self-attention's inputs for an H100, which needs no GPU."""

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cosmos_hpc.models.attention_inputs import _sizes, _write_gradients, _write_queries_keys

H100 = GPUTarget("cuda", 90, 32)
#: Those of the 4B model on one GPU, and of the 13B on two that share its heads.
GROUPS_AND_SLOTS = [(8, 6), (4, 6)]
TYPES = {"eps": "fp32", "batch": "i32", "tokens": "i32"}
FLOATS = {"cosine", "sine", "parts"}


def compiled(kernel, groups, slots):
    """Its PTX, for arrays that begin at multiples of 16 bytes, as PyTorch's do."""
    sizes = _sizes(torch.empty(1, 1, groups, slots, 128, device="meta"))
    options = {"num_warps": sizes.pop("num_warps")}
    signature = {
        name: "constexpr" if name in sizes else TYPES.get(name) or pointer(name)
        for name in kernel.arg_names
    }
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, type_ in enumerate(signature.values())
        if type_.startswith("*")
    }
    source = ASTSource(kernel, signature, sizes, aligned)
    return triton.compile(source, target=H100, options=options).asm["ptx"]


def pointer(name):
    return "*fp32" if name in FLOATS else "*bf16"


if __name__ == "__main__":
    for kernel in (_write_queries_keys, _write_gradients):
        for groups, slots in GROUPS_AND_SLOTS:
            ptx = compiled(kernel, groups, slots)
            loads = [line for line in ptx.splitlines() if "ld.global" in line]
            assert loads
            # 16 bytes at a time: by fewer, the kernel would wait for memory several times as long.
            assert all("v4.b32" in line for line in loads), loads
            assert ".local" not in ptx, "registers do not suffice"
