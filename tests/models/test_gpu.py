"""The decoder in bf16 on a GPU beside float32 on the CPU. Only where there is a GPU."""

import pytest
import torch

from cosmos_hpc.models import ModelConfig, from_published
from tests.models.checkpoints.test_published import VARIANTS, inputs, sizes, weights

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def on_gpu(config, w, transformer_impl):
    from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

    from cosmos_hpc.models.checkpoints.published import load_weights
    from cosmos_hpc.models.checkpoints.published_files import PublishedWeights
    from cosmos_hpc.models.decoder import CosmosDecoder
    from cosmos_hpc.models.megatron import megatron_config

    model_parallel_cuda_manual_seed(1)
    settings = megatron_config(
        config, False, transformer_impl, bf16=True, params_dtype=torch.bfloat16
    )
    decoder = CosmosDecoder(settings, config, pre_process=True, post_process=True)
    decoder = decoder.cuda().bfloat16()
    load_weights(decoder, config, PublishedWeights(w, "test"))
    return decoder.eval()


@pytest.mark.parametrize("transformer_impl", ["local", "transformer_engine"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_bf16_logits_are_those_of_float32_but_for_rounding(variant, transformer_impl):
    from cosmos_hpc.models.layers import have_transformer_engine

    if transformer_impl == "transformer_engine" and not have_transformer_engine():
        pytest.skip("needs Transformer Engine")
    config = ModelConfig(**sizes(variant))
    w = {name: tensor.bfloat16() for name, tensor in weights(config).items()}
    ids, condition = inputs(config)
    with torch.no_grad():
        expected = from_published(w, config)(ids, **condition)
        condition = {name: tensor.cuda() for name, tensor in condition.items()}
        got = on_gpu(config, w, transformer_impl)(input_ids=ids.cuda(), **condition)
    off = (got.float().cpu() - expected).norm() / expected.norm()
    print(f"{variant}, {transformer_impl}: relative difference {off:.4f}")
    assert off < 0.02
    assert got.dtype == torch.bfloat16
