"""What hears (a stem of spectrograms of several lengths, attention to the rows before, a convolution that looks back)
against NumPy, at every instruction set, in every precision; sounds of several lengths in one call."""

from __future__ import annotations

import numpy as np
import pytest
from test_sublayers import feed_forward, normed

from beyondvl import _C

CLOSE = {"float32": 4e-6, "bfloat16": 3e-2, "int8": 5e-2}
D, HEADS, HD, SPAN, INNER, MELS, C1, C2 = 48, 3, 16, 5, 80, 13, 6, 10
LENGTHS = [37, 1, 60, 9, 4, 5]
SILU, COMMON = _C.ACTIVATIONS.index("silu"), {"layer_norm_eps": 1e-5, "rms_norm": 1, "pre_norm": 1}


def weights(rng: np.random.Generator, **shapes) -> dict[str, np.ndarray]:
    """Matrices that keep sizes, gains about 1."""
    made = {name: rng.standard_normal(shape) for name, shape in shapes.items()}
    return {
        name: (array / np.sqrt(array.shape[-1]) if array.ndim > 1 else 1 + 0.2 * array).astype(np.float32)
        for name, array in made.items()
    }


def convolved(x: np.ndarray, w: np.ndarray) -> np.ndarray:
    """x [T, F, C] by windows of 3 x 3, two apart, in zeros; w [N, 3, 3, C]."""
    rows, cols = (x.shape[0] + 1) // 2, (x.shape[1] + 1) // 2
    padded = np.pad(x, ((1, 2), (1, 2), (0, 0)))
    windows = [padded[2 * t : 2 * t + 3, 2 * f : 2 * f + 3] for t in range(rows) for f in range(cols)]
    return np.einsum("nyxc,ryxc->rn", w, np.stack(windows)).reshape(rows, cols, -1)


def centred(x: np.ndarray, gain: np.ndarray, offset: np.ndarray) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * gain + offset


def stem_rows(x: np.ndarray, w: dict) -> np.ndarray:
    """Rows [T / 4, D] of one sound's frames [T, mels]."""
    first = convolved(x[..., None], w["first_weight"].reshape(C1, 3, 3, 1))
    between = np.maximum(0, centred(first, w["norm1_weight"], w["norm1_bias"]))
    second = convolved(between, w["second_weight"].reshape(C2, 3, 3, C1))
    after = np.maximum(0, centred(second, w["norm2_weight"], w["norm2_bias"]))
    return after.reshape(len(after), -1) @ w["weight"].T


def local_attention(x: np.ndarray, w: dict, cap: float) -> np.ndarray:
    q, k, v = ((normed(x, w["norm_weight"], None, 1e-5) @ w["qkv_weight"].T).reshape(len(x), 3, HEADS, HD)).transpose(
        1, 0, 2, 3
    )
    out = np.zeros((len(x), HEADS, HD))
    for t in range(len(x)):
        for h in range(HEADS):
            n = min(SPAN, t + 1)
            scores = [(q[t, h] * w["gain"]) @ (k[t - d, h] + w["relative"][h, d]) for d in range(n)]
            shares = np.exp(cap * np.tanh(np.array(scores) / cap))
            out[t, h] = shares @ v[t - np.arange(n), h] / shares.sum()
    return x + normed(out.reshape(len(x), -1) @ w["out_weight"].T, w["post_norm_weight"], None, 1e-5)


def light_conv(x: np.ndarray, w: dict) -> np.ndarray:
    a, b = np.split(normed(x, w["norm_weight"], None, 1e-5) @ w["start_weight"].T, 2, -1)
    kernel = len(w["conv_weight"])
    gated = np.pad(a + a * np.tanh(b), ((kernel - 1, 0), (0, 0)))
    rows = sum(w["conv_weight"][j] * gated[j : j + len(x)] for j in range(kernel))
    rows = normed(rows, w["conv_norm_weight"], None, 1e-5)
    return x + rows / (1 + np.exp(-rows)) @ w["end_weight"].T


def ears(precision: str, cap: float = 2.0):
    """A program of a stem and two layers; [(operation, parameters, weights)]."""
    rng = np.random.default_rng(0)
    program = _C.Program(precision=precision)
    slot = program.slot("x", 0, D, _C.ROW_KINDS.index("patches"))
    stem = weights(rng, first_weight=(C1, 9), second_weight=(C2, 9 * C1), norm1_weight=C1, norm1_bias=C1, norm2_weight=C2,
                   norm2_bias=C2, weight=(D, 4 * C2))  # fmt: skip
    made = [("embed_frames", {"mels": MELS, "layer_norm_eps": 1e-5}, stem)]
    for _ in range(2):
        half = weights(rng, fc1_weight=(INNER, D), fc2_weight=(D, INNER), norm_weight=D, post_norm_weight=D)
        made.append(
            ("feed_forward", COMMON | {"rows": 0, "activation": _C.ACTIVATIONS.index("gelu"), "gated": 0}, half)
        )
        attention = weights(rng, qkv_weight=(3 * D, D), out_weight=(D, D), norm_weight=D, post_norm_weight=D, gain=HD)
        attention["relative"] = rng.standard_normal((HEADS, SPAN, HD)).astype(np.float32)
        made.append(("local_attention", COMMON | {"num_attention_heads": HEADS, "cap": cap}, attention))
        conv = weights(rng, start_weight=(2 * D, D), end_weight=(D, D), norm_weight=D, conv_norm_weight=D)
        conv["conv_weight"] = rng.standard_normal((4, D)).astype(np.float32)
        made.append(("light_conv", COMMON | {"activation": SILU}, conv))
        made.append(("norm", {"layer_norm_eps": 1e-5, "rms_norm": 1}, {"weight": weights(rng, g=D)["g"]}))
    for op, params, arrays in made:
        program.add(op, slot, slot, params, arrays, 1)
    return program, made


def heard(x: np.ndarray, made: list, cap: float = 2.0) -> np.ndarray:
    for op, _, arrays in made:
        w = {name: array.astype(np.float64) for name, array in arrays.items()}
        if op == "embed_frames":
            x = stem_rows(x, w)
        elif op == "feed_forward":
            x = feed_forward(x, w, COMMON | {"gated": 0})
        elif op == "local_attention":
            x = local_attention(x, w, cap)
        elif op == "light_conv":
            x = light_conv(x, w)
        else:
            x = normed(x, w["weight"], None, 1e-5)
    return x


@pytest.mark.parametrize("precision", CLOSE)
def test_what_hears(isa, precision):
    rng = np.random.default_rng(1)
    program, made = ears(precision)
    frames = rng.standard_normal((len(LENGTHS), max(LENGTHS), MELS)).astype(np.float32)
    for i, n in enumerate(LENGTHS):
        frames[i, n:] = np.nan  # nobody reads what comes after
    inputs = {"input_features": frames, "num_frames": np.array(LENGTHS)}
    for threads in (1, 2, 3):
        found = program.run(inputs, ["x"], threads)["x"]
        assert found.shape == (len(LENGTHS), -(-max(LENGTHS) // 4), D)
        for i, n in enumerate(LENGTHS):
            wanted = heard(frames[i, :n].astype(np.float64), made)
            assert np.abs(found[i, : len(wanted)] - wanted).max() <= CLOSE[precision] * np.abs(wanted).max(), (
                i,
                threads,
            )
            assert not found[i, len(wanted) :].any()
    alone = program.run({name: value[2:3] for name, value in inputs.items()}, ["x"], 2)["x"]
    np.testing.assert_array_equal(alone[0], found[2])


def test_a_long_sound_in_strips(isa):
    """More rows than a strip has, by a team."""
    program, made = ears("float32")
    frames = np.random.default_rng(2).standard_normal((1, 2503, MELS)).astype(np.float32)
    inputs = {"input_features": frames, "num_frames": np.array([2503])}
    found = program.run(inputs, ["x"], 3)["x"]
    wanted = heard(frames[0].astype(np.float64), made)
    assert np.abs(found[0] - wanted).max() <= 4e-6 * np.abs(wanted).max()
    np.testing.assert_array_equal(program.run(inputs, ["x"], 1)["x"], found)


def test_sounds_are_checked():
    program, _ = ears("float32")
    frames = np.ones((2, 9, MELS), np.float32)
    for change, match in (
        ({"num_frames": np.array([9, 10])}, r"num_frames\[1\]: found 10, expected 1 to 9"),
        ({"num_frames": np.array([0, 9])}, r"num_frames\[0\]: found 0, expected 1 to 9"),
        ({"num_frames": np.array([9])}, r"num_frames: found shape \(1\), expected \(2\)"),
        (
            {"input_features": frames[..., 1:].copy()},
            r"input_features: found shape \(2, 9, 12\), expected \(B, N, 13\)",
        ),
        ({"input_features": frames[:, :0].copy()}, "input_features: found shape"),
    ):
        with pytest.raises(ValueError, match=match):
            program.run({"input_features": frames, "num_frames": np.array([9, 4])} | change, ["x"], 1)
    with pytest.raises(ValueError, match="num_frames: not given"):
        program.run({"input_features": frames}, ["x"], 1)


def test_parts_are_checked():
    _, made = ears("float32")
    for at, change, more, match in (
        (0, {"mels": 12}, {}, r"weight: found \(48, 40\), expected shape \(48, 30\)"),
        (
            0,
            {},
            {"second_weight": np.ones((C2, 50), np.float32)},
            r"second_weight: found \(10, 50\), expected shape \(\*, 54\)",
        ),
        (2, {"cap": 0}, {}, "cap: found 0, expected a number above 0"),
        (
            2,
            {},
            {"relative": np.ones((2, SPAN, HD), np.float32)},
            r"relative: found \(2, 5, 16\), expected shape \(3, \*, 16\)",
        ),
        (3, {}, {"conv_weight": np.ones((65, D), np.float32)}, "conv_weight: found 65 rows, expected at most 64"),
    ):
        program = _C.Program()
        slot = program.slot("x", 0, D, _C.ROW_KINDS.index("patches"))
        with pytest.raises(ValueError, match=match):
            for i, (op, params, arrays) in enumerate(made[:4]):
                mine = (change, more) if i == at else ({}, {})
                program.add(op, slot, slot, params | mine[0], arrays | mine[1], 1)
