"""Texts whose tokens have positions along several axes, and rows added at placeholders after some layers, as programs:
against NumPy, at every instruction set, in every precision."""

from __future__ import annotations

import numpy as np
import pytest
from test_sublayers import CLOSE, HD, D, feed_forward, layers, self_attention

from beyondvl import _C

VOCAB, TOKEN, MOST = 30, 7, 400
HALF = HD // 2
# of each frequency the axis whose position it is multiplied by: in sections (Qwen2-VL), in turn (Qwen3-VL), or
# all by one: an ordinary text
SECTIONS = {"sections": [0, 0, 1, 1, 1, 2, 2, 2], "in turn": [0, 1, 2, 0, 1, 2, 0, 1], "one": [0] * HALF}


def frequencies(kind: str) -> np.ndarray:
    """[3, half], zero but along one axis."""
    plain = 100.0 ** (-np.arange(HALF) / HALF)
    return np.where(np.arange(3)[:, None] == np.array(SECTIONS[kind]), plain, 0).astype(np.float32)


def text_program(kind: str, precision: str = "float32", added: int = 0, flat: bool = True):
    """A program of two blocks, with rows added after the first ones: (program, table of words, records)."""
    rng = np.random.default_rng(0)
    words = rng.standard_normal((VOCAB, D)).astype(np.float32)
    program = _C.Program(precision=precision)
    x = program.slot("x", 0, D, _C.ROW_KINDS.index("text"))
    params = {"feature_token": TOKEN if added else -1, "max_positions": MOST, "flat_features": flat}
    program.add("embed_tokens", x, x, params, {"word": words, "rotary": frequencies(kind)}, 1)
    records = list(layers(rng, 2, True, True, True, True, True))
    for i, (op, given, arrays) in enumerate(records):
        program.add(op, x, x, given | ({"rotary": 1} if op == "self_attention" else {}), arrays, 1)
        if i % 2 and i // 2 < added:
            program.add("add_features", x, x, {}, {}, 1)
    return program, words, records


def expected(records, x, positions, kind, features=None, at=None) -> np.ndarray:
    """x [T, D] of one text; features [n, D * (1 + added)] at the places `at`."""
    angles = positions.astype(np.float64) @ frequencies(kind).astype(np.float64)
    turns = np.concatenate([np.cos(angles), np.sin(angles)], 1)
    mask, level = np.ones((1, len(x)), bool), 1
    x = x[None].astype(np.float64)
    for op, params, arrays in records:
        if op == "self_attention":
            x = self_attention(x, arrays | {"turns": turns}, params, mask)
        else:
            x = feed_forward(x, arrays, params)
            if features is not None and level * D < features.shape[1]:
                x[0, at] += features[:, level * D : (level + 1) * D]
                level += 1
    return x[0]


@pytest.mark.parametrize("kind", SECTIONS)
@pytest.mark.parametrize("precision", CLOSE)
def test_positions_along_axes(isa, precision, kind):
    """Angles by sections, in turn, and of one axis; each axis tells; without positions all axes count tokens."""
    program, words, records = text_program(kind, precision)
    rng = np.random.default_rng(1)
    ids, positions = rng.integers(0, VOCAB, (3, 11)), rng.integers(0, 40, (3, 11, 3))
    for threads in (1, 2, 3):
        found = program.run({"input_ids": ids, "position_ids": positions}, ["x"], threads)["x"]
        for i in range(3):
            wanted = expected(records, words[ids[i]], positions[i], kind)
            assert np.abs(found[i] - wanted).max() <= CLOSE[precision] * np.abs(wanted).max()
    for axis in range(3):
        moved = positions.copy()
        moved[:, 5:, axis] += 7
        other = program.run({"input_ids": ids, "position_ids": moved}, ["x"], 2)["x"]
        told = np.abs(other - found).max() > 1e-2
        assert told == (axis in SECTIONS[kind])
    counted = np.repeat(np.arange(11)[None, :, None], 3, 2).repeat(3, 0)
    same = [program.run({"input_ids": ids, "position_ids": p}, ["x"], 2)["x"] for p in (None, counted)]
    np.testing.assert_array_equal(*same)


@pytest.mark.parametrize("precision", CLOSE)
def test_a_cache_goes_on_from_any_position(isa, precision):
    """Token by token, with positions of the caller: bitwise all tokens at once."""
    program, _, _ = text_program("in turn", precision)
    rng = np.random.default_rng(2)
    ids, positions = rng.integers(0, VOCAB, (2, 9)), rng.integers(0, 40, (2, 9, 3))
    whole = program.run({"input_ids": ids, "position_ids": positions}, ["x"], 2)["x"]
    cache, rows = _C.Cache(program, 2, 9), []
    for part in (slice(0, 4), slice(4, 5), slice(5, 9)):
        given = {"input_ids": np.ascontiguousarray(ids[:, part]), "cache": cache,
                 "position_ids": np.ascontiguousarray(positions[:, part])}  # fmt: skip
        rows.append(program.run(given, ["x"], 2)["x"])
    np.testing.assert_array_equal(np.concatenate(rows, 1), whole)


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("added", [1, 2])
@pytest.mark.parametrize("precision", CLOSE)
def test_rows_added_at_placeholders(isa, precision, added, flat):
    """After the first layers, where placeholders stand, of texts of several numbers of them; later tokens of a cache
    have none."""
    program, words, records = text_program("sections", precision, added, flat)
    rng = np.random.default_rng(3)
    ids = rng.integers(8, VOCAB, (3, 10))
    counts = (4, 1, 0) if flat else (2, 2, 2)
    places = [np.sort(rng.choice(10, n, False)) for n in counts]
    for row, at in zip(ids, places, strict=True):
        row[at] = TOKEN
    features = rng.standard_normal((sum(counts), D * (1 + added))).astype(np.float32)
    given = features if flat else features.reshape(3, 2, -1)
    positions = rng.integers(0, 40, (3, 10, 3))
    inputs = {"input_ids": ids, "features": given, "position_ids": positions}
    for threads in (1, 2, 3):
        found = program.run(inputs, ["x"], threads)["x"]
        begin = 0
        for i, at in enumerate(places):
            own = features[begin : begin + len(at)]
            begin += len(at)
            x = words[ids[i]].copy()
            x[at] = own[:, :D]
            wanted = expected(records, x, positions[i], "sections", own, at)
            assert np.abs(found[i] - wanted).max() <= CLOSE[precision] * np.abs(wanted).max()
    other = features.copy()
    other[0, -D:] += 1
    moved = program.run(inputs | {"features": other if flat else other.reshape(3, 2, -1)}, ["x"], 2)["x"]
    assert np.abs(moved[0] - found[0]).max() > 0.1 and np.array_equal(moved[1:], found[1:])
    cache = _C.Cache(program, 3, 12)
    first = program.run(inputs | {"cache": cache}, ["x"], 2)["x"]
    np.testing.assert_array_equal(first, found)
    program.run({"input_ids": np.full((3, 2), 9), "cache": cache}, ["x"], 2)


def test_what_does_not_fit_is_named():
    program, _, _ = text_program("sections", added=2)
    ids = np.full((1, 4), TOKEN)
    good = {
        "input_ids": ids,
        "features": np.ones((4, 3 * D), np.float32),
        "position_ids": np.zeros((1, 4, 3), np.int64),
    }
    for change, message in (
        ({"position_ids": np.zeros((1, 4), np.int64)}, "position_ids: found 2 dimensions, expected 3"),
        (
            {"position_ids": np.zeros((1, 4, 2), np.int64)},
            r"position_ids: found shape \(1, 4, 2\), expected \(1, 4, 3\)",
        ),
        ({"position_ids": np.full((1, 4, 3), MOST)}, r"position_ids\[0, 0\]: 400, expected 0 to 399"),
        ({"features": np.ones((4, D), np.float32)}, rf"features: found shape \(4, {D}\), expected \(n, {3 * D}\)"),
        ({"features": np.ones((3, 3 * D), np.float32)}, "found 4 placeholders .id 7., expected 3"),
    ):
        with pytest.raises(ValueError, match=message):
            program.run(good | change, ["x"], 1)
    assert program.run(good, ["x"], 1)["x"].shape == (1, 4, D)
    rng, words = np.random.default_rng(0), np.ones((VOCAB, D), np.float32)
    params = {"feature_token": -1, "max_positions": 9, "flat_features": 0}
    for weights, message in (
        ({"rotary": rng.standard_normal((5, 4))}, "rotary: found 5 axes, expected 1 to 4"),
        ({"rotary": np.ones((3, 4)), "rotary_2": np.ones(4)}, "rotary_2: found 1 axes, expected 3"),
        ({"rotary": np.ones((1, 3, 4))}, r"rotary: found \(1, 3, 4\), expected shape"),
    ):
        program = _C.Program()
        x = program.slot("x", 0, D, _C.ROW_KINDS.index("text"))
        arrays = {name: array.astype(np.float32) for name, array in weights.items()}
        with pytest.raises(ValueError, match=message):
            program.add("embed_tokens", x, x, params, {"word": words} | arrays, 1)
    program = _C.Program()
    x = program.slot("x", 0, D, _C.ROW_KINDS.index("text"))
    program.add("embed_tokens", x, x, params, {"word": words, "rotary": np.ones(4, np.float32)}, 1)
    with pytest.raises(ValueError, match="add_features: expected the rows of a text alone that reads features"):
        program.add("add_features", x, x, {}, {}, 1)
