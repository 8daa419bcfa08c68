"""Layers of convnets as programs: against NumPy, at every instruction set, in every precision."""

from __future__ import annotations

import numpy as np
import pytest

from beyondvl import _C
from reference import ACTIVATIONS, depthwise, sigmoid

CHANNELS = 11
FIXED = _C.ROW_KINDS.index("fixed")
# height, width, kernel, stride, channels that one makes
SHAPES = [(9, 7, 3, 1, 1), (8, 12, 7, 2, 2), (5, 6, 7, 1, 1), (12, 10, 3, 2, 3), (3, 2, 7, 1, 2), (20, 20, 1, 1, 1)]


def picture_program(height: int, width: int, precision: str = "float32"):
    """A program whose first slot holds a picture of so many channels, and that slot."""
    program = _C.Program(precision=precision)
    x = program.slot("x", height * width, CHANNELS, FIXED)
    stem = {"channels": CHANNELS, "height": height, "width": width, "stride_down": 1, "stride_right": 1, "pad_top": 0,
            "pad_left": 0, "out_height": height, "out_width": width, "activation": 0, "pictures": 1, "spare": 0,
            "channels_last": 0}  # fmt: skip
    program.add("patch_embed", x, x, stem, {"weight": np.eye(CHANNELS, dtype=np.float32)[:, :, None, None]}, 1)
    return program, x


def params(height, width, kernel, stride, activation="none") -> dict[str, int]:
    out = [(n - 1) // stride + 1 for n in (height, width)]
    return {"height": height, "width": width, "kernel": kernel, "stride": stride, "pad": kernel // 2,
            "out_height": out[0], "out_width": out[1], "activation": _C.ACTIVATIONS.index(activation)}  # fmt: skip


@pytest.mark.parametrize("activation", ["none", "gelu", "relu6"])
@pytest.mark.parametrize("shape", SHAPES)
def test_depthwise(isa, shape, activation):
    height, width, kernel, stride, each = shape
    rng, given = np.random.default_rng(0), params(height, width, kernel, stride, activation)
    weight = rng.standard_normal((each, kernel * kernel, CHANNELS)).astype(np.float32) / kernel
    bias = rng.standard_normal((each, CHANNELS)).astype(np.float32)
    program, x = picture_program(height, width)
    rows = given["out_height"] * given["out_width"]
    y = program.slot("y", rows, each * CHANNELS, FIXED)
    program.add("depthwise", x, y, given, {"weight": weight, "bias": bias}, 1)
    pixels = rng.standard_normal((3, CHANNELS, height, width)).astype(np.float32)
    for threads in (1, 2, 3):
        found = program.run({"pixel_values": pixels}, ["x", "y"], threads)
        for i in range(3):
            picture = found["x"][i].reshape(height, width, CHANNELS)
            wanted = np.stack([depthwise(picture, weight[j], bias[j], kernel, stride, kernel // 2, given["out_height"],
                                         given["out_width"], activation) for j in range(each)], -1)  # fmt: skip
            np.testing.assert_allclose(found["y"][i], wanted.reshape(rows, -1), atol=2e-5)
    alone = program.run({"pixel_values": pixels[1:2]}, ["y"], 2)["y"]
    np.testing.assert_array_equal(alone[0], found["y"][1])


# height, width, kernel, stride, zeros around
WINDOWS = [((8, 6), (2, 2), (2, 2), (0, 0)), ((9, 7), (3, 3), (2, 1), (1, 1)), ((5, 8), (3, 2), (1, 3), (2, 0))]


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("size,kernel,stride,zeros", WINDOWS)
def test_convolution_over_pixels(isa, size, kernel, stride, zeros, precision):
    """Of all channels, in one product; class tokens and positions as a patch embedding has them."""
    rng, wide = np.random.default_rng(3), 13
    out = [(n + 2 * pad - k) // step + 1 for n, k, step, pad in zip(size, kernel, stride, zeros, strict=True)]
    rows = out[0] * out[1]
    shapes = {
        "weight": (wide, *kernel, CHANNELS),
        "bias": (wide,),
        "class_token": (2, wide),
        "position": (rows + 2, wide),
    }
    w = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    program, x = picture_program(*size, precision)
    y = program.slot("y", rows + 2, wide, FIXED)
    stem = {"channels": CHANNELS, "height": size[0], "width": size[1], "stride_down": stride[0], "stride_right": stride[1],
            "pad_top": zeros[0], "pad_left": zeros[1], "out_height": out[0], "out_width": out[1],
            "activation": _C.ACTIVATIONS.index("gelu"), "pictures": 1, "spare": 0, "channels_last": 1}  # fmt: skip
    program.add("patch_embed", x, y, stem, w, 1)
    pixels = rng.standard_normal((4, CHANNELS, *size)).astype(np.float32)
    for threads in (1, 2, 3):
        found = program.run({"pixel_values": pixels}, ["x", "y"], threads)
        for i in range(4):
            picture = np.pad(found["x"][i].reshape(*size, CHANNELS), [(pad, pad) for pad in zeros] + [(0, 0)])
            wanted = np.empty((rows, wide))
            for r in range(rows):
                top, left = r // out[1] * stride[0], r % out[1] * stride[1]
                window = picture[top : top + kernel[0], left : left + kernel[1]].astype(np.float64)
                wanted[r] = np.einsum("ijc,oijc->o", window, w["weight"]) + w["bias"]
            wanted = np.concatenate([w["class_token"], ACTIVATIONS["gelu"](wanted)]) + w["position"]
            close = {"float32": 2e-6, "bfloat16": 1e-2, "int8": 3e-2}[precision]
            assert np.abs(found["y"][i] - wanted).max() <= close * np.abs(wanted).max()


@pytest.mark.parametrize(
    "change,message",
    [
        ({"width": 8}, "slot x of 63 x 11 does not hold the picture"),
        ({"channels": 7}, r"weight: found \(5, 2, 2, 11\), expected shape \(5, \*, \*, 7\)"),
        ({"channels_last": 0}, r"weight: found \(5, 2, 2, 11\), expected shape \(5, 11, \*, \*\)"),
        ({"channels_last": 2}, "channels_last: found 2, expected a whole number from 0 to 1"),
    ],
)
def test_pixels_that_do_not_fit_are_named(change, message):
    program, x = picture_program(9, 7)
    stem = {"channels": CHANNELS, "height": 9, "width": 7, "stride_down": 2, "stride_right": 2, "pad_top": 0, "pad_left": 0,
            "out_height": 4, "out_width": 3, "activation": 0, "pictures": 1, "spare": 0, "channels_last": 1}  # fmt: skip
    weight = np.ones((5, 2, 2, CHANNELS), np.float32)
    with pytest.raises(ValueError, match=message):
        program.add("patch_embed", x, program.slot("y", 12, 5, FIXED), stem | change, {"weight": weight}, 1)


def test_pixel_values_have_their_channels_first():
    program = _C.Program()
    x = program.slot("x", 12, 5, FIXED)
    stem = {"channels": 3, "height": 9, "width": 7, "stride_down": 2, "stride_right": 2, "pad_top": 0, "pad_left": 0,
            "out_height": 4, "out_width": 3, "activation": 0, "pictures": 1, "spare": 0, "channels_last": 1}  # fmt: skip
    with pytest.raises(ValueError, match="channels_last: found 1, expected a whole number from 0 to 0"):
        program.add("patch_embed", x, x, stem, {"weight": np.ones((5, 2, 2, 3), np.float32)}, 1)


@pytest.mark.parametrize("activation", ["none", "gelu"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_squeeze_excite(isa, precision, activation):
    rng, inner = np.random.default_rng(1), 5
    w = {
        "fc1_weight": (inner, CHANNELS),
        "fc1_bias": (inner,),
        "fc2_weight": (CHANNELS, inner),
        "fc2_bias": (CHANNELS,),
    }
    w = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in w.items()}
    program, x = picture_program(6, 9, precision)
    y = program.slot("y", 54, CHANNELS, FIXED)
    program.add("copy", x, y, {}, {}, 1)
    program.add("squeeze_excite", y, y, {"activation": _C.ACTIVATIONS.index(activation)}, w, 1)
    pixels = rng.standard_normal((4, CHANNELS, 6, 9)).astype(np.float32)
    for threads in (1, 2, 3):
        found = program.run({"pixel_values": pixels}, ["x", "y"], threads)
        rows = found["x"].astype(np.float64)
        between = np.maximum(rows.mean(1) @ w["fc1_weight"].T + w["fc1_bias"], 0)
        wanted = rows * sigmoid(between @ w["fc2_weight"].T + w["fc2_bias"])[:, None]
        np.testing.assert_allclose(found["y"], ACTIVATIONS[activation](wanted), atol=2e-6)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_a_sub_layer_without_a_norm(isa, precision):
    """x + out(attention(qkv(x))): against one whose norm is undone by its product."""
    rng, D = np.random.default_rng(2), 32
    weight, out = (rng.standard_normal(s).astype(np.float32) / D**0.5 for s in ((3 * D, D), (D, D)))
    given = {"num_attention_heads": 2, "num_key_value_heads": 2, "attention_scale": 0, "causal": 0, "rotary": 0, "window": 0,
             "sliding_window": 0, "layer_norm_eps": 0.0, "rms_norm": 0, "pre_norm": 1}  # fmt: skip
    program = _C.Program(precision=precision)
    x, y = (program.slot(name, 30, D, FIXED) for name in "xy")
    stem = {"channels": 1, "height": 30, "width": D, "stride_down": 1, "stride_right": D, "pad_top": 0, "pad_left": 0,
            "out_height": 30, "out_width": 1, "activation": 0, "pictures": 1, "spare": 0,
            "channels_last": 0}  # fmt: skip
    program.add("patch_embed", x, x, stem, {"weight": np.eye(D, dtype=np.float32)[:, None, None]}, 1)
    program.add("copy", x, y, {}, {}, 1)
    program.add("self_attention", y, y, given, {"qkv_weight": weight, "out_weight": out}, 1)
    pixels = rng.standard_normal((3, 1, 30, D)).astype(np.float32)
    for threads in (1, 2, 3):
        found = program.run({"pixel_values": pixels}, ["x", "y"], threads)
        rows = found["x"].astype(np.float64)
        q, k, v = (part.reshape(3, 30, 2, -1) for part in np.split(rows @ weight.T, 3, 2))
        scores = np.einsum("bqhd,bkhd->bhqk", q, k) / (D / 2) ** 0.5
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("bhqk,bkhd->bqhd", shares / shares.sum(-1, keepdims=True), v).reshape(3, 30, D)
        wanted = rows + mixed @ out.T
        close = {"float32": 2e-6, "bfloat16": 2e-2, "int8": 4e-2}[precision]
        assert np.abs(found["y"] - wanted).max() <= close * np.abs(wanted).max()


@pytest.mark.parametrize(
    "change,message",
    [
        ({"height": 4}, "depthwise: 63 x 11 of slot x, 63 x 11 of y: expected height x width"),
        ({"kernel": 5}, r"weight: found \(1, 9, 11\), expected shape \(1, 25, 11\)"),
        ({"pad": 3}, "windows that begin within the picture"),
        ({"stride": 0}, "stride: found 0"),
        ({"activation": 99}, "activation: found 99"),
    ],
)
def test_what_does_not_fit_is_named(change, message):
    program, x = picture_program(9, 7)
    y = program.slot("y", 63, CHANNELS, FIXED)
    arrays = {"weight": np.ones((1, 9, CHANNELS), np.float32), "bias": np.ones((1, CHANNELS), np.float32)}
    with pytest.raises(ValueError, match=message):
        program.add("depthwise", x, y, params(9, 7, 3, 1) | change, arrays, 1)
