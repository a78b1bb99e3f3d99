"""The decoder on Megatron-Core, on a CPU: attention and causality."""

import pytest
import torch
from msgspec.structs import replace

from cosmos_hpc.models import ModelConfig

MODEL = ModelConfig(
    num_layers=2,
    hidden_size=32,
    ffn_hidden_size=64,
    num_attention_heads=4,
    num_query_groups=2,
    kv_channels=12,
    vocab_size=50,
    output_vocab_size=50,
    latent_shape=(2, 3, 4),
)


@pytest.fixture(scope="module")
def decoder():
    from cosmos_hpc.models.checkpoints.published import one_rank
    from cosmos_hpc.models.decoder import CosmosDecoder
    from cosmos_hpc.worker.training.nemo import nemo_config

    one_rank()
    return CosmosDecoder(nemo_config(MODEL, cpu=True), MODEL).eval()


def logits(decoder, ids):
    return decoder(input_ids=ids, position_ids=None, attention_mask=None)


def test_logits_depend_on_earlier_ids_only(decoder):
    ids = torch.randint(0, 50, (2, 24))
    changed = ids.clone()
    changed[:, 15:] = (changed[:, 15:] + 1) % 50
    with torch.no_grad():
        before, after = logits(decoder, ids), logits(decoder, changed)
    assert before.shape == (2, 24, 50)
    torch.testing.assert_close(before[:, :15], after[:, :15])
    assert not torch.allclose(before[:, 15:], after[:, 15:])


def test_positions_count_frames_rows_and_columns(decoder):
    """The same id everywhere: attention sees only rotary angles, which differ by position."""
    with torch.no_grad():
        same = decoder.rotary_pos_emb(24)
    assert same.shape == (24, 1, 1, 12)
    assert len({tuple(row.tolist()) for row in same[:, 0, 0]}) == 24


def test_parameters_are_counted_from_the_shapes(decoder):
    assert sum(p.numel() for p in decoder.parameters()) == MODEL.num_parameters


def test_core_attention_is_causal_softmax_over_grouped_keys(decoder):
    attention = decoder.decoder.layers[0].self_attention.core_attention
    q = torch.randn(7, 2, 4, 12)
    k, v = torch.randn(2, 7, 2, 2, 12)
    out = attention(q, k, v, None)
    mask = torch.full((7, 7), float("-inf")).triu(1)
    for head in range(4):
        group = head // 2
        scores = torch.einsum("sbd,tbd->bst", q[:, :, head], k[:, :, group]) / 12**0.5 + mask
        expected = torch.einsum("bst,tbd->sbd", scores.softmax(-1), v[:, :, group])
        torch.testing.assert_close(out[:, :, head * 12 : head * 12 + 12], expected)
    with pytest.raises(ValueError, match="takes no dense mask"):
        attention(q, k, v, mask)


def test_another_text_gives_other_logits(tmp_path):
    from cosmos_hpc.models.checkpoints.published import one_rank
    from cosmos_hpc.models.decoder import CosmosDecoder
    from cosmos_hpc.worker.tokenizers.texts import TextEncoder, write_small_text_encoder
    from cosmos_hpc.worker.training.nemo import nemo_config

    model = replace(MODEL, context_width=64, pad_to_multiple_of=8)
    one_rank()
    reads = CosmosDecoder(nemo_config(model, cpu=True), model).eval()
    write_small_text_encoder(tmp_path, 64)
    encoder = TextEncoder(tmp_path)
    same, again, other = (encoder.encode(p)[0][None] for p in ("a car", "a car", "a pot"))
    ids = torch.randint(0, 50, (1, model.sequence_length))
    with torch.no_grad():
        first, second, third = (reads(ids, context=c) for c in (same, again, other))
    assert torch.equal(first, second)
    assert (first - third).abs().max() > 1e-3
