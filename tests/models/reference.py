"""The architecture in plain PyTorch, from its description alone: slow, small and easy to check.

Weights are a dictionary with the published names. Nothing here knows Megatron or the package.
"""

from __future__ import annotations

import math

import torch


def rms_norm(x, weight):
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + 1e-5) * weight


def rotate(x, angles):
    """Rotary positions by the "rotate half" convention; x [b, heads, s, d], angles [s, d]."""
    first, second = x.chunk(2, -1)
    return x * angles.cos() + torch.cat([-second, first], -1) * angles.sin()


def attend(q, k, v, causal):
    """Softmax attention; q [b, heads, s, d], k and v [b, groups, t, d]."""
    repeat = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
    scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
    if causal:
        s = q.shape[2]
        scores = scores.masked_fill(torch.ones(s, s, dtype=torch.bool).triu(1), -math.inf)
    return scores.softmax(-1) @ v


def attention(w, name, x, source, c, angles=None):
    def heads(y):
        return y.unflatten(-1, (-1, c["kv_channels"])).transpose(1, 2)

    q = rms_norm(heads(x @ w[f"{name}.wq.weight"].T), w[f"{name}.q_norm.weight"])
    k = rms_norm(heads(source @ w[f"{name}.wk.weight"].T), w[f"{name}.k_norm.weight"])
    v = heads(source @ w[f"{name}.wv.weight"].T)
    if angles is not None:
        q, k = rotate(q, angles), rotate(k, angles)
    out = attend(q, k, v, causal=angles is not None)
    return out.transpose(1, 2).flatten(2) @ w[f"{name}.wo.weight"].T


def positions(c):
    """(t, h, w) of every input, None for begin-of-video and padding."""
    t, h, w = c["latent_shape"]
    video = [(i, j, k) for i in range(t) for j in range(h) for k in range(w)]
    first = [] if c.get("context_width") is None else [None]
    padding = -(len(first) + len(video)) % (c.get("pad_to_multiple_of") or 1)
    return [*first, *video, *[None] * padding]


def shares(channels):
    space = channels // 6 * 2
    return channels - 2 * space, space, space


def rotary_frequencies(channels, original, c):
    out = []
    for i in range(0, channels, 2):
        f = c["rotary_base"] ** -(i / channels)
        if c.get("yarn_scale") is not None:
            high = 2 * math.pi * c["yarn_beta_fast"] / original
            low = 2 * math.pi * c["yarn_beta_slow"] / original
            m = min(max((f - low) / (high - low), 0), 1)
            f = f * ((1 - m) / c["yarn_scale"] + m)
        out.append(f)
    return out


def rotary_table(c):
    original = c.get("yarn_original_latent_shape") or (1, 1, 1)
    # The rows' original length serves both spatial axes.
    lengths = (original[0], original[1], original[1])
    axes = [
        rotary_frequencies(share, length, c)
        for share, length in zip(shares(c["kv_channels"]), lengths, strict=True)
    ]
    rows = []
    for position in positions(c):
        half = [(position[axis] if position else 0) * f for axis in range(3) for f in axes[axis]]
        rows.append(half + half)
    return torch.tensor(rows, dtype=torch.float64).float()


def absolute_row(c, position):
    row = []
    for axis, width in enumerate(shares(c["hidden_size"])):
        if position is None:
            row += [0.0] * width
            continue
        angles = [position[axis] * 10000 ** -(i / (width / 2)) for i in range(width // 2)]
        row += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    return row


def absolute_table(c):
    rows = [absolute_row(c, position) for position in positions(c)]
    return torch.tensor(rows, dtype=torch.float64).float()


def action_context(w, action):
    """Linear, ReLU, Linear, repeated along the sequence once for each number of the action."""
    inner = torch.relu(action @ w["action_mlp.0.weight"].T + w["action_mlp.0.bias"])
    row = inner @ w["action_mlp.2.weight"].T + w["action_mlp.2.bias"]
    return torch.stack([row] * action.shape[1], 1)


def logits(w, c, ids, context=None, action=None):
    """Logits [b, s, output vocabulary] of ids [b, s]; c holds the sizes in Megatron's names."""
    if action is not None:
        context = action_context(w, action)
    x = w["model.tok_embeddings.weight"][ids]
    angles = rotary_table(c)[: ids.shape[1]]
    absolute = absolute_table(c)[: ids.shape[1]] if context is not None else None
    for n in range(c["num_layers"]):
        name = f"model.layers.{n}"
        if absolute is not None:
            x = x + absolute
        y = rms_norm(x, w[f"{name}.attention_norm.weight"])
        x = x + attention(w, f"{name}.attention", y, y, c, angles)
        if context is not None:
            y = rms_norm(x, w[f"{name}.cross_attention_norm.weight"])
            x = x + attention(w, f"{name}.cross_attention", y, context, c)
        y = rms_norm(x, w[f"{name}.ffn_norm.weight"])
        gate = torch.nn.functional.silu(y @ w[f"{name}.feed_forward.w1.weight"].T)
        up = y @ w[f"{name}.feed_forward.w3.weight"].T
        x = x + (gate * up) @ w[f"{name}.feed_forward.w2.weight"].T
    return rms_norm(x, w["model.norm.weight"]) @ w["model.output.weight"].T
