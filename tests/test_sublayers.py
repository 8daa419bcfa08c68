"""The sub-layers of a transformer against NumPy, at every instruction set, in every precision, alone and in chains."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.special import erf

from beyondvl import _C

D, HEADS, KV, HD, INNER = 48, 4, 2, 16, 112
# how far from float64, in units of the largest number
CLOSE = {"float32": 2e-6, "bfloat16": 2e-2, "int8": 4e-2}


def weights(rng: np.random.Generator, **shapes) -> dict[str, np.ndarray]:
    """Matrices that keep sizes, gains about 1, small biases."""
    made = {}
    for name, shape in shapes.items():
        array = rng.standard_normal(shape)
        if len(np.shape(array)) == 2:
            array /= np.sqrt(shape[1])
        made[name] = (1 + 0.2 * array if "norm_weight" in name else array * (0.3 if "bias" in name else 1)).astype(
            np.float32
        )
    return made


def normed(x: np.ndarray, gain: np.ndarray, offset: np.ndarray | None, eps: float) -> np.ndarray:
    if offset is None:
        return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * gain
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + eps) * gain + offset


def turned(x: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """x [B, T, heads, hd], whose halves of the first columns are turned by turns [T, cosines and sines]."""
    cos, sin = (part[:, None] for part in np.split(turns, 2, 1))
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], -1)


def added(x: np.ndarray, w: dict, params: dict, f) -> np.ndarray:
    """x + f(norm(x)), or norm(x + f(x))."""

    def norm(x: np.ndarray) -> np.ndarray:
        return normed(x, w["norm_weight"], w.get("norm_bias"), params["layer_norm_eps"])

    return x + f(norm(x)) if params["pre_norm"] else norm(x + f(x))


def self_attention(x: np.ndarray, w: dict, params: dict, mask: np.ndarray) -> np.ndarray:
    """x [B, T, D]; mask [B, T] of the keys."""
    count, kv = params["num_attention_heads"], params["num_key_value_heads"]
    hd = w["out_weight"].shape[1] // count

    def attend(x: np.ndarray) -> np.ndarray:
        rows = x @ w["qkv_weight"].T + w.get("qkv_bias", 0)
        q, k, v = (part.reshape(*x.shape[:2], -1, hd) for part in np.split(rows, [count * hd, (count + kv) * hd], 2))
        if "q_norm_weight" in w:
            q, k = (
                normed(part, w[f"{n}_norm_weight"], None, params["layer_norm_eps"]) for n, part in (("q", q), ("k", k))
            )
        if "turns" in w:
            q, k = (turned(part, w["turns"]) for part in (q, k))
        k, v = (np.repeat(part, count // kv, 2) for part in (k, v))
        scores = np.einsum("bqhd,bkhd->bhqk", q, k) * (params["attention_scale"] or 1 / np.sqrt(hd))
        seen = np.broadcast_to(mask[:, None, None], scores.shape)
        if params["causal"]:
            seen = seen & np.tril(np.ones(scores.shape[2:], bool))
        scores = np.where(seen, scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        out = np.einsum("bhqk,bkhd->bqhd", shares / shares.sum(-1, keepdims=True), v)
        return out.reshape(*x.shape[:2], -1) @ w["out_weight"].T + w.get("out_bias", 0)

    return added(x, w, params, attend)


def feed_forward(x: np.ndarray, w: dict, params: dict) -> np.ndarray:
    def forward(x: np.ndarray) -> np.ndarray:
        rows = x @ w["fc1_weight"].T + w.get("fc1_bias", 0)
        if params["gated"]:
            gate, rows = np.split(rows, 2, -1)
            rows = gate / (1 + np.exp(-gate)) * rows
        else:
            rows = rows * (1 + erf(rows / np.sqrt(2))) / 2
        return rows @ w["fc2_weight"].T + w.get("fc2_bias", 0)

    return added(x, w, params, forward)


def layers(rng: np.random.Generator, count: int, pre_norm: bool, rms: bool, causal: bool, gated: bool, qk: bool):
    """(operation, parameters, weights) of so many blocks."""
    common = {"layer_norm_eps": 1e-5, "rms_norm": rms, "pre_norm": pre_norm}
    norm = {"norm_weight": (D,)} | ({} if rms else {"norm_bias": (D,)})
    for _ in range(count):
        shapes = {"qkv_weight": ((HEADS + 2 * KV) * HD, D), "qkv_bias": ((HEADS + 2 * KV) * HD,),
                  "out_weight": (D, HEADS * HD), "out_bias": (D,), **norm}  # fmt: skip
        shapes |= {"q_norm_weight": (HD,), "k_norm_weight": (HD,)} if qk else {}
        params = {"num_attention_heads": HEADS, "num_key_value_heads": KV, "attention_scale": 0.3 if qk else 0,
                  "causal": causal, "rotary": False, "window": 0}  # fmt: skip
        yield "self_attention", common | params, weights(rng, **shapes)
        rows = 2 * INNER if gated else INNER
        shapes = {"fc1_weight": (rows, D), "fc1_bias": (rows,), "fc2_weight": (D, INNER), "fc2_bias": (D,), **norm}
        activation = _C.ACTIVATIONS.index("silu" if gated else "gelu")
        yield "feed_forward", common | {"rows": 0, "activation": activation, "gated": gated}, weights(rng, **shapes)


FORMS = [
    (pre, rms, causal, gated, qk)
    for pre, rms, causal, gated, qk in itertools.product((True, False), repeat=5)
    if (pre or not rms) and gated == rms
]


@pytest.mark.parametrize(
    "form", FORMS, ids=lambda form: "".join("nrcgq"[i] if on else "-" for i, on in enumerate(form))
)
@pytest.mark.parametrize("precision", CLOSE)
def test_sublayers_are_what_numpy_computes(isa, precision, form):
    rng = np.random.default_rng(0)
    program = _C.Program(precision=precision)
    slot = program.slot("x", 0, D, True)
    program.add("join_features", slot, slot, {}, {}, 1)
    made = list(layers(rng, 2, *form))
    for op, params, arrays in made:
        program.add(op, slot, slot, params, arrays, 2)
    for items, length in ((1, 1), (3, 7), (2, 150)):
        x = rng.standard_normal((items, length, D)).astype(np.float32)
        mask = rng.random((items, length)) < 0.8
        mask[:, 0] = True
        inputs = {"features": x, "attention_mask": mask.astype(np.int64)}
        wanted = x.astype(np.float64)
        for at, (op, params, arrays) in enumerate(made, 1):
            exact = {name: array.astype(np.float64) for name, array in arrays.items()}
            wanted = (
                self_attention(wanted, exact, params, mask)
                if op == "self_attention"
                else feed_forward(wanted, exact, params)
            )
            states = program.run(inputs, [f"@{at}"], 2)[f"@{at}"]  # a chain that is cut after this sub-layer
            error = np.abs(states - wanted)[mask].max() / np.abs(wanted).max()
            assert error < CLOSE[precision], (op, at, error)
        whole = program.run(inputs, ["x"], 1)["x"]
        np.testing.assert_array_equal(whole, states)  # nor does it matter that a state was asked for, or threads
        np.testing.assert_array_equal(program.run({"features": x[:1], "attention_mask": inputs["attention_mask"][:1]}, ["x"], 2)["x"], whole[:1])  # fmt: skip


def test_a_norm_of_queries_needs_one_of_keys():
    program = _C.Program()
    slot = program.slot("x", 0, D, True)
    ((op, params, arrays), *_) = layers(np.random.default_rng(0), 1, True, True, False, True, True)
    for name, value, match in (
        ("k_norm_weight", None, "k_norm_weight: found nothing, expected shape"),
        ("q_norm_weight", np.ones(HD + 1, np.float32), r"q_norm_weight: found \(17\), expected shape \(16\)"),
    ):
        program = _C.Program()
        slot = program.slot("x", 0, D, True)
        given = {n: a for n, a in (arrays | {name: value}).items() if a is not None}
        with pytest.raises(ValueError, match=match):
            program.add(op, slot, slot, params, given, 1)


class Picture:
    """A program over the 8 rows of a small picture."""

    def __init__(self, rng: np.random.Generator, precision: str = "float32"):
        self.program = _C.Program(precision=precision)
        self.slot = self.program.slot("x", 8, D)
        patches = {"channels": 1, "height": 8, "width": 6, "stride_down": 1, "stride_right": 6, "pad_top": 0, "pad_left": 0,
                   "out_height": 8, "out_width": 1, "activation": 0, "pictures": 1, "spare": 0}  # fmt: skip
        project = weights(rng, weight=(D, 6))["weight"]
        self.program.add("patch_embed", self.slot, self.slot, patches, {"weight": project.reshape(D, 1, 1, 6)}, 1)
        self.pixels = rng.standard_normal((5, 1, 8, 6)).astype(np.float32)
        self.rows = self.pixels[:, 0].astype(np.float64) @ project.T.astype(np.float64)

    def add(self, op: str, params: dict, arrays: dict) -> None:
        self.program.add(op, self.slot, self.slot, params, arrays, 1)

    def run(self, names: list[str], num_threads: int = 2) -> dict:
        return self.program.run({"pixel_values": self.pixels}, names, num_threads)


def test_a_chain_over_windows_may_be_cut(isa):
    """What a sub-layer leaves can be asked for, also within windows, and is what NumPy computes."""
    rng = np.random.default_rng(0)
    picture, made = Picture(rng), list(layers(rng, 1, True, False, False, False, False))
    order = np.array([3, 0, 7, 4, 1, 2, 6, 5])
    made[0][1]["window"] = 4
    made[0][2]["window_rows"] = order.astype(np.float32)
    for record in made:
        picture.add(*record)
    wanted = picture.rows
    windows = wanted[:, order].reshape(-1, 4, D)
    windows = self_attention(windows, made[0][2], made[0][1], np.ones(windows.shape[:2], bool))
    wanted[:, order] = windows.reshape(5, 8, D)
    states = picture.run(["@1", "@2"])
    np.testing.assert_allclose(states["@1"], wanted, atol=1e-5)
    np.testing.assert_allclose(states["@2"], feed_forward(wanted, made[1][2], made[1][1]), atol=1e-5)
    np.testing.assert_array_equal(picture.run(["x"], 1)["x"], states["@2"])


@pytest.mark.parametrize("half", [3, 8])
@pytest.mark.parametrize("precision", CLOSE)
def test_rows_of_a_picture_are_turned_by_a_table(isa, precision, half):
    """Any number of axes, and rows that have no place, are a table of cosines and sines."""
    rng = np.random.default_rng(half)
    picture, made = Picture(rng, precision), list(layers(rng, 2, True, False, False, False, half == 3))
    angles = rng.uniform(-3, 3, (8, half))
    angles[0] = 0
    for op, _, arrays in made:
        if op == "self_attention":
            arrays["turns"] = np.concatenate([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    wanted = picture.rows
    for op, params, arrays in made:
        picture.add(op, params, arrays)
        exact = {name: array.astype(np.float64) for name, array in arrays.items()}
        if op == "self_attention":
            wanted = self_attention(wanted, exact, params, np.ones((5, 8), bool))
        else:
            wanted = feed_forward(wanted, exact, params)
    found = picture.run(["x"])["x"]
    assert np.abs(found - wanted).max() / np.abs(wanted).max() < CLOSE[precision]


def test_a_table_of_turns_is_checked():
    rng = np.random.default_rng(0)
    ((op, params, arrays), *_) = layers(rng, 1, True, False, False, False, False)
    for shape, change, match in (
        ((7, 8), {}, r"turns: found \(7, 8\), expected shape \(8, \*\)"),
        ((8, 7), {}, "turns: found 7 columns, expected an even number up to 16"),
        ((8, 18), {}, "turns: found 18 columns"),
        ((8, 8), {"window": 8}, "turns: found a window"),
    ):
        more = {"turns": np.ones(shape, np.float32)}
        more |= {"window_rows": np.arange(8, dtype=np.float32)} if change else {}
        with pytest.raises(ValueError, match=match):
            Picture(rng).add(op, params | change, arrays | more)
