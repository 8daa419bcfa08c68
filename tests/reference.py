"""Plain NumPy float64 truth for every kernel."""

from __future__ import annotations

import math

import numpy as np

erf = np.vectorize(math.erf, otypes=[np.float64])


def sigmoid(x):
    with np.errstate(over="ignore"):
        return 1 / (1 + np.exp(-x))


ACTIVATIONS = {
    "none": lambda x: x,
    "quick_gelu": lambda x: x * sigmoid(1.702 * x),
    "gelu": lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
    "gelu_pytorch_tanh": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "tanh": np.tanh,
    "silu": lambda x: x * sigmoid(x),
}


def gemm(a, w, bias=None, residual=None, activation="none"):
    y = a.astype(np.float64) @ w.astype(np.float64).T
    if bias is not None:
        y = y + bias
    y = ACTIVATIONS[activation](y)
    return y if residual is None else y + residual


def to_bfloat16(x):
    """Rounded to bfloat16, to the nearest and ties to even; float32."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)).view(np.float32)


def int8_weights(w):
    """Each row rounded to 127 steps of its largest element."""
    most = np.maximum(np.abs(w).max(1, keepdims=True), np.float32(1e-30))
    return np.round(w * (np.float32(127) / most)) * (most / np.float32(127))


def int8_rows(a, most=6):
    """Each row the same, but for up to `most` elements kept as they are: while at most that many exceed half of the
    largest one left, they are taken out."""
    out = np.array(a, np.float32)
    for row in out:
        size = np.abs(row)
        top, limit = size.max(initial=0), np.inf
        while (rest := size[size <= top / 2].max(initial=0)) > 0 and (size > top / 2).sum() <= most:
            limit, top = top / 2, rest
        kept = size <= limit
        row[kept] = int8_weights(row[kept][None])[0]
    return out


def bfloat16_sum(x):
    """The sum of two bfloat16: 16 bits of every element."""
    lead = to_bfloat16(x)
    return lead + to_bfloat16(x - lead)


# precision -> what the kernel sees of a and w; bfloat16 rounds a only where it is native
OPERANDS = {
    1: lambda a, w, native: (to_bfloat16(a) if native else a, to_bfloat16(w)),
    2: lambda a, w, native: (int8_rows(a), int8_weights(w)),
    3: lambda a, w, native: (bfloat16_sum(a), bfloat16_sum(w)),  # but for the product of the rests, below 2^-16
}


def layer_norm(x, gamma, beta, eps):
    x = x.astype(np.float64)
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / np.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + eps) * gamma + beta


def rms_norm(x, gamma, eps):
    x = x.astype(np.float64)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * gamma


def softmax(x, scale=1.0, bias=None):
    x = x.astype(np.float64) * scale
    if bias is not None:
        x = x + bias
    top = x.max(-1, keepdims=True)
    if np.isneginf(top).all():
        return np.zeros_like(x)
    e = np.exp(x - top)
    return e / e.sum(-1, keepdims=True)


def l2_normalize(x):
    x = x.astype(np.float64)
    return x / max(np.sqrt((x**2).sum()), 1e-12)


def attention(q, k, v, scale, causal=False, bias=None, relative=None, first=0):
    """relative [2 * reach + 1]: by the place of a key less that of its query, the first of which is `first`."""
    scores = q.astype(np.float64) @ k.astype(np.float64).T * scale
    if relative is not None:
        rows, cols = np.indices(scores.shape)
        reach = len(relative) // 2
        scores = scores + relative[np.clip(cols - rows - first, -reach, reach) + reach]
    if bias is not None:
        scores = scores + bias
    if causal:
        rows, cols = np.indices(scores.shape)
        scores = np.where(cols > rows + first, -np.inf, scores)
    return np.stack([softmax(row) for row in scores]) @ v.astype(np.float64)


def depthwise(x, w, bias, kernel, stride, pad, out_height, out_width, activation):
    """x [H, W, C], w [kernel * kernel, C]."""
    height, width, channels = x.shape
    y = np.zeros((out_height, out_width, channels))
    for r in range(out_height):
        for c in range(out_width):
            acc = bias.astype(np.float64).copy()
            for i in range(kernel):
                for j in range(kernel):
                    row, col = r * stride - pad + i, c * stride - pad + j
                    if 0 <= row < height and 0 <= col < width:
                        acc += x[row, col].astype(np.float64) * w[i * kernel + j]
            y[r, c] = ACTIVATIONS[activation](acc)
    return y


def log_mel(sound, window, filters, length, hop, center, remove_mean, emphasis, floor, scale, amplitudes=False):
    """(frames, mels): scale * log of mel energies, ends mirrored where frames are centred; or of amplitudes, to which
    the floor is added."""
    x = np.asarray(sound, np.float64)
    if center:
        x = np.pad(x, len(window) // 2, mode="reflect")
    rows = []
    for start in range(0, len(x) - len(window) + 1, hop):
        frame = x[start : start + len(window)].copy()
        if remove_mean:
            frame -= frame.mean()
        if emphasis:
            frame = np.concatenate([frame[:1] * (1 - emphasis), frame[1:] - emphasis * frame[:-1]])
        rows.append(np.abs(np.fft.rfft(frame * window, length)) ** (1 if amplitudes else 2) @ filters)
    return scale * np.log(np.array(rows) + floor if amplitudes else np.maximum(rows, floor))
