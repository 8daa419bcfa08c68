"""Squares of patches and features of several lengths, as programs: against NumPy, at every instruction set."""

from __future__ import annotations

import numpy as np
import pytest

from beyondvl import _C
from reference import ACTIVATIONS, layer_norm

CLOSE = {"float32": 2e-6, "bfloat16": 2e-2, "int8": 2e-2}
D, K, SIDE, LONGEST = 40, 27, 3, 12
SHAPES = [(3, 6), (9, 3), (6, 6), (3, 12), (12, 3), (3, 3)]
PARAMS = {"grid_height": LONGEST, "grid_width": LONGEST, "filter": _C.FILTERS.index("bilinear"), "channels": 0,
          "patch_height": 0, "patch_width": 0, "centred": 0, "offset": 0, "per_axis": 1}  # fmt: skip


def pooled_pictures(precision: str = "float32", gain: bool = True):
    """A program of a stem with a table of columns and one of rows, and of squares of its patches: (program, its
    weights)."""
    rng = np.random.default_rng(0)
    shapes = {"weight": (D, K), "position": (2 * LONGEST, D), "gain": D, "offset": D}
    w = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    program = _C.Program(precision=precision)
    kinds = [_C.ROW_KINDS.index(kind) for kind in ("patches", "pooled")]
    slot, pooled = program.slot("x", 0, D, kinds[0]), program.slot("y", SIDE, D, kinds[1])
    program.add("embed_patches", slot, slot, PARAMS, {name: w[name] for name in ("weight", "position")}, 1)
    program.add("pool_patches", slot, pooled, {}, {name: w[name] for name in ("gain", "offset")} if gain else {}, 1)
    return program, w


@pytest.mark.parametrize("gain", [True, False])
@pytest.mark.parametrize("precision", CLOSE)
def test_squares_of_patches(isa, precision, gain):
    program, w = pooled_pictures(precision, gain)
    patches = np.random.default_rng(1).standard_normal((len(SHAPES), 37, K)).astype(np.float32)
    inputs = {"pixel_values": patches, "spatial_shapes": np.array(SHAPES)}
    for threads in (1, 2, 3):
        found = program.run(inputs, ["x", "y"], threads)
        assert found["y"].shape == (len(SHAPES), 37 // SIDE**2, D)
        for i, (rows, cols) in enumerate(SHAPES):
            y, x = np.divmod(np.arange(rows * cols), cols)
            wanted = patches[i, : rows * cols].astype(np.float64) @ w["weight"].T
            wanted += w["position"][x] + w["position"][LONGEST + y]
            error = np.abs(found["x"][i, : rows * cols] - wanted).max() / np.abs(wanted).max()
            assert error <= CLOSE[precision]
            squares = wanted.reshape(rows // SIDE, SIDE, cols // SIDE, SIDE, D).mean((1, 3)).reshape(-1, D)
            if gain:
                squares = squares * w["gain"] + w["offset"]
            error = np.abs(found["y"][i, : len(squares)] - squares).max() / np.abs(squares).max()
            assert error <= CLOSE[precision]
            assert not found["y"][i, len(squares) :].any()
    alone = program.run({name: value[2:3] for name, value in inputs.items()}, ["y"], 2)["y"]
    np.testing.assert_array_equal(alone[0], found["y"][2])


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("precision", CLOSE)
def test_squares_side_by_side(isa, precision, norm):
    """Patches of each square side by side, normed or not, projected, activated: pictures of several sizes in one call."""
    rng, out = np.random.default_rng(0), 23
    wide = SIDE * SIDE * D
    shapes = {"weight": (out, wide), "bias": (out,)} | ({"norm_weight": (wide,), "norm_bias": (wide,)} if norm else {})
    w = {name: (rng.standard_normal(shape) / (wide**0.5 if name == "weight" else 1)).astype(np.float32)
         for name, shape in shapes.items()}  # fmt: skip
    program, stem = _C.Program(precision=precision), rng.standard_normal((D, K)).astype(np.float32)
    x = program.slot("x", 0, D, _C.ROW_KINDS.index("patches"))
    y = program.slot("y", SIDE, out, _C.ROW_KINDS.index("pooled"))
    position = np.zeros((2 * LONGEST, D), np.float32)
    program.add("embed_patches", x, x, PARAMS, {"weight": stem, "position": position}, 1)
    program.add("merge_rows", x, y, {"layer_norm_eps": 1e-5, "activation": _C.ACTIVATIONS.index("gelu")}, w, 1)
    patches = rng.standard_normal((len(SHAPES), 37, K)).astype(np.float32)
    inputs = {"pixel_values": patches, "spatial_shapes": np.array(SHAPES)}
    for threads in (1, 2, 3):
        found = program.run(inputs, ["x", "y"], threads)
        for i, (rows, cols) in enumerate(SHAPES):
            grid = found["x"][i, : rows * cols].astype(np.float64).reshape(rows // SIDE, SIDE, cols // SIDE, SIDE, D)
            side = grid.transpose(0, 2, 1, 3, 4).reshape(-1, wide)
            if norm:
                side = layer_norm(side, w["norm_weight"], w["norm_bias"], 1e-5)
            wanted = ACTIVATIONS["gelu"](side @ w["weight"].T + w["bias"])
            assert np.abs(found["y"][i, : len(wanted)] - wanted).max() <= CLOSE[precision] * np.abs(wanted).max()
            assert not found["y"][i, len(wanted) :].any()
    alone = program.run({name: value[2:3] for name, value in inputs.items()}, ["y"], 2)["y"]
    np.testing.assert_array_equal(alone[0], found["y"][2])


def test_squares_are_checked():
    program, _ = pooled_pictures()
    for shape, match in (
        ([2, 3], r"spatial_shapes\[0\]: found 2 x 3 patches, expected multiples of 3"),
        ([4, 3], r"spatial_shapes\[0\]: found 4 x 3 patches, expected multiples of 3"),
        ([3, 15], r"spatial_shapes\[0\]: found 3 x 15 patches, expected at most 12 a side \(its positions\)"),
        ([6, 12], r"spatial_shapes\[0\]: found 6 x 12 patches, expected 1 to 60 in all"),
    ):
        inputs = {"pixel_values": np.ones((1, 60, K), np.float32), "spatial_shapes": np.array([shape])}
        with pytest.raises(ValueError, match=match):
            program.run(inputs, ["y"], 1)
    with pytest.raises(ValueError, match="slot 'none': 0 x 8: expected rows from 1 to 1024"):
        _C.Program().slot("none", 0, 8, _C.ROW_KINDS.index("pooled"))
    program = _C.Program()
    slot, text = program.slot("x", 1, D, _C.ROW_KINDS.index("patches")), program.slot("y", 0, D, 1)
    with pytest.raises(ValueError, match="pool_patches: slots x and y: expected one of patches alone and one of sq"):
        program.add("pool_patches", slot, text, {}, {}, 1)
    weights = {"weight": np.ones((D, K), np.float32), "position": np.ones((2 * LONGEST, D), np.float32)}
    program = _C.Program()
    slot = program.slot("x", 0, D, _C.ROW_KINDS.index("patches"))
    with pytest.raises(ValueError, match="per_axis: expected a position, and patches that are given"):
        program.add(
            "embed_patches", slot, slot, PARAMS | {"channels": 3, "patch_height": 3, "patch_width": 3}, weights, 1
        )


def features_in_texts(flat: bool):
    program = _C.Program()
    slot = program.slot("x", 0, D, 1)
    word = np.random.default_rng(0).standard_normal((9, D)).astype(np.float32)
    params = {"feature_token": 7, "max_positions": 100, "flat_features": flat}
    program.add("embed_tokens", slot, slot, params, {"word": word}, 1)
    return program, word


IDS = np.array([[1, 7, 7, 2, 7], [3, 4, 5, 6, 8], [7, 7, 7, 7, 7], [7, 1, 1, 1, 1]])


def test_features_of_several_lengths(isa):
    """Placeholders of all items take the features in their order, whatever workers or a team run them."""
    program, word = features_in_texts(True)
    features = np.random.default_rng(1).standard_normal((9, D)).astype(np.float32)
    for threads in (1, 2, 3, 4):
        found = program.run({"input_ids": IDS, "features": features}, ["x"], threads)["x"]
        np.testing.assert_array_equal(found[IDS == 7], features)
        np.testing.assert_array_equal(found[IDS != 7], word[IDS[IDS != 7]])
    np.testing.assert_array_equal(program.run({"input_ids": IDS[1:2]}, ["x"], 1)["x"][0], word[IDS[1]])


def test_features_are_counted():
    program, _ = features_in_texts(True)
    for count in (8, 10):
        with pytest.raises(
            ValueError, match=rf"found 9 placeholders \(id 7\), expected {count}, one for each row of fea"
        ):
            program.run({"input_ids": IDS, "features": np.ones((count, D), np.float32)}, ["x"], 1)
    with pytest.raises(ValueError, match="features: found 3 dimensions, expected 2"):
        program.run({"input_ids": IDS, "features": np.ones((4, 3, D), np.float32)}, ["x"], 1)
    program, _ = features_in_texts(False)
    with pytest.raises(ValueError, match="row 1 has 0 placeholders"):
        program.run({"input_ids": IDS, "features": np.ones((4, 3, D), np.float32)}, ["x"], 1)
