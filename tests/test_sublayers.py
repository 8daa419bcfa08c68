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


def clipped(x: np.ndarray, w: dict, name: str) -> np.ndarray:
    """x between the bounds of that name, where there are any."""
    return np.clip(x, *w[name]) if name in w else x


def product(x: np.ndarray, w: dict, name: str) -> np.ndarray:
    """A linear of a sub-layer, what it reads and gives clipped, or what each of its parts reads."""
    weight, reads, bias = w[f"{name}_weight"], w.get(f"{name}_reads"), w.get(f"{name}_bias", 0)
    if reads is None or len(reads) == 2:
        return clipped(clipped(x, w, f"{name}_reads") @ weight.T + bias, w, f"{name}_gives")
    ends = [HEADS * HD, (HEADS + KV) * HD] if name == "qkv" else 2
    parts = zip(np.split(weight, ends), reads.reshape(-1, 2, x.shape[-1]), strict=True)
    return clipped(
        np.concatenate([np.clip(x, *bounds) @ part.T for part, bounds in parts], -1) + bias, w, f"{name}_gives"
    )


def turned(x: np.ndarray, turns: np.ndarray) -> np.ndarray:
    """x [B, T, heads, hd], whose halves of the first columns are turned by turns [T, cosines and sines]."""
    cos, sin = (part[:, None] for part in np.split(turns, 2, 1))
    half = cos.shape[-1]
    a, b, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return np.concatenate([a * cos - b * sin, b * cos + a * sin, rest], -1)


def added(x: np.ndarray, w: dict, params: dict, f) -> np.ndarray:
    """x + f(norm(x)), or norm(x + f(x)), or x + post_norm(f(norm(x)))."""

    def norm(x: np.ndarray) -> np.ndarray:
        return normed(x, w["norm_weight"], w.get("norm_bias"), params["layer_norm_eps"])

    if "post_norm_weight" in w:
        return x + normed(f(norm(x)), w["post_norm_weight"], w.get("post_norm_bias"), params["layer_norm_eps"])
    return x + f(norm(x)) if params["pre_norm"] else norm(x + f(x))


def self_attention(x: np.ndarray, w: dict, params: dict, mask: np.ndarray) -> np.ndarray:
    """x [B, T, D]; mask [B, T] of the keys."""
    count, kv = params["num_attention_heads"], params["num_key_value_heads"]
    hd = w["out_weight"].shape[1] // count

    def attend(x: np.ndarray) -> np.ndarray:
        rows = product(x, w, "qkv")
        q, k, v = (part.reshape(*x.shape[:2], -1, hd) for part in np.split(rows, [count * hd, (count + kv) * hd], 2))
        if "q_norm_weight" in w:
            q, k = (
                normed(part, w[f"{n}_norm_weight"], None, params["layer_norm_eps"]) for n, part in (("q", q), ("k", k))
            )
        if "v_norm_weight" in w:
            v = normed(v, w["v_norm_weight"], None, params["layer_norm_eps"])
        if "turns" in w:
            q, k = (turned(part, w["turns"]) for part in (q, k))
        k, v = (np.repeat(part, count // kv, 2) for part in (k, v))
        scores = np.einsum("bqhd,bkhd->bhqk", q, k) * (params["attention_scale"] or 1 / np.sqrt(hd))
        seen = np.broadcast_to(mask[:, None, None], scores.shape)
        if params["causal"]:
            seen = seen & np.tril(np.ones(scores.shape[2:], bool))
        if params["sliding_window"]:
            places = np.arange(x.shape[1])
            seen = seen & (np.abs(places[:, None] - places) <= params["sliding_window"])
        scores = np.where(seen, scores, -np.inf)
        shares = np.exp(scores - scores.max(-1, keepdims=True))
        out = np.einsum("bhqk,bkhd->bqhd", shares / shares.sum(-1, keepdims=True), v)
        return product(out.reshape(*x.shape[:2], -1), w, "out")

    return added(x, w, params, attend)


def feed_forward(x: np.ndarray, w: dict, params: dict) -> np.ndarray:
    def forward(x: np.ndarray) -> np.ndarray:
        rows = product(x, w, "fc1")
        if params["gated"]:
            gate, rows = np.split(rows, 2, -1)
            rows = gate / (1 + np.exp(-gate)) * rows
        else:
            rows = rows * (1 + erf(rows / np.sqrt(2))) / 2
        return product(rows, w, "fc2")

    return added(x, w, params, forward)


def gated_input(x: np.ndarray, e: np.ndarray, w: dict, params: dict) -> np.ndarray:
    gates = x @ w["gate_weight"].T
    gates = gates / (1 + np.exp(-gates)) * normed(e @ w["in_weight"].T, w["in_norm_weight"], None, 1e-5)
    return (x + normed(gates @ w["out_weight"].T, w["post_norm_weight"], None, 1e-5)) * w.get("scale", 1)


def layers(rng: np.random.Generator, count: int, pre_norm: bool, rms: bool, causal: bool, gated: bool, qk: bool):
    """(operation, parameters, weights) of so many blocks."""
    common = {"layer_norm_eps": 1e-5, "rms_norm": rms, "pre_norm": pre_norm}
    norm = {"norm_weight": (D,)} | ({} if rms else {"norm_bias": (D,)})
    for _ in range(count):
        shapes = {"qkv_weight": ((HEADS + 2 * KV) * HD, D), "qkv_bias": ((HEADS + 2 * KV) * HD,),
                  "out_weight": (D, HEADS * HD), "out_bias": (D,), **norm}  # fmt: skip
        shapes |= {"q_norm_weight": (HD,), "k_norm_weight": (HD,)} if qk else {}
        params = {"num_attention_heads": HEADS, "num_key_value_heads": KV, "attention_scale": 0.3 if qk else 0,
                  "causal": causal, "rotary": 0, "window": 0, "sliding_window": 0}  # fmt: skip
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


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("sliding", [0, 2, 40])
@pytest.mark.parametrize("rms", [False, True])
@pytest.mark.parametrize("precision", CLOSE)
def test_norms_before_and_after_and_inputs_mixed_in(isa, precision, rms, sliding, causal):
    """Gemma's layers: what a sub-layer adds is normed, values too, rows see near ones alone, and after each layer what
    it all began with comes in again; by workers alone and by a team, in strips and without."""
    rng = np.random.default_rng(0)
    program = _C.Program(precision=precision)
    slot, inputs = program.slot("x", 0, D, 1), program.slot("inputs", 0, D, 1)
    program.add("join_features", slot, slot, {}, {}, 1)
    program.add("copy", slot, inputs, {}, {}, 1)
    post = {"post_norm_weight": (D,)} | ({} if rms else {"post_norm_bias": (D,)})
    silu = _C.ACTIVATIONS.index("silu")
    made = []
    for op, params, arrays in layers(rng, 2, True, rms, causal, True, True):
        arrays |= weights(rng, **post)
        if op == "self_attention":
            params["sliding_window"], arrays["v_norm_weight"] = sliding, np.ones(HD, np.float32)
        made.append((op, params, arrays))
        if op == "feed_forward":
            arrays = weights(rng, gate_weight=(24, D), in_weight=(24, D), in_norm_weight=(24,), out_weight=(D, 24),
                             post_norm_weight=(D,))  # fmt: skip
            arrays["scale"] = np.array([0.8], np.float32)
            made.append(("gated_input", {"layer_norm_eps": 1e-5, "activation": silu, "inputs": inputs}, arrays))
    for op, params, arrays in made:
        program.add(op, slot, slot, params, arrays, 1)
    for items, length in ((1, 1), (3, 7), (2, 150), (1, 400)):
        x = rng.standard_normal((items, length, D)).astype(np.float32)
        mask = rng.random((items, length)) < 0.8
        mask[:, ::2] = True
        wanted = x.astype(np.float64)
        for op, params, arrays in made:
            exact = {name: array.astype(np.float64) for name, array in arrays.items()}
            if op == "self_attention":
                wanted = self_attention(wanted, exact, params, mask)
            else:
                wanted = (
                    feed_forward(wanted, exact, params)
                    if op == "feed_forward"
                    else gated_input(wanted, x, exact, params)
                )
        given = {"features": x, "attention_mask": mask.astype(np.int64)}
        found = program.run(given, ["x"], 1)["x"]
        assert np.abs(found - wanted).max() / np.abs(wanted).max() < 2 * CLOSE[precision]
        assert np.array_equal(program.run(given, ["x"], 3)["x"], found)


def bounds_of(rng: np.random.Generator, columns: int, most: float) -> np.ndarray:
    """[2, columns] within which some numbers lie."""
    return (np.array([[-1], [1]]) * rng.uniform(most / 2, most, (2, columns))).astype(np.float32)


@pytest.mark.parametrize("gated, post", [(True, True), (False, False)])  # of pictures; a norm less than of sounds
@pytest.mark.parametrize("apart", [False, True])
@pytest.mark.parametrize("precision", CLOSE)
def test_clipped_products(isa, precision, apart, gated, post):
    """What each product of Gemma 4's layers reads and gives is clipped, and each bound tells; by workers alone, a team,
    in strips; `apart`: what q, k, v, gates and what they gate read each to bounds of its own."""
    rng = np.random.default_rng(0)
    made = []
    for op, params, arrays in layers(rng, 1, True, True, False, gated, True):
        arrays |= weights(rng, post_norm_weight=(D,)) if post else {}
        for name in ("qkv", "out") if op == "self_attention" else ("fc1", "fc2"):
            rows, columns = arrays[f"{name}_weight"].shape
            most, parts = (
                {"qkv": 0.9, "out": 0.1, "fc1": 0.9, "fc2": 0.05}[name],
                {"qkv": 3, "fc1": 1 + gated}.get(name, 1),
            )
            bounds = [bounds_of(rng, columns, most) for _ in range(parts if apart else 1)]
            arrays[f"{name}_reads"], arrays[f"{name}_gives"] = np.concatenate(bounds), bounds_of(rng, rows, most / 2)
        made.append((op, params, arrays))

    def run(left_out: str, x: np.ndarray, threads: int) -> np.ndarray:
        program = _C.Program(precision=precision)
        slot = program.slot("x", 0, D, 1)
        program.add("join_features", slot, slot, {}, {}, 1)
        for op, params, arrays in made:
            open_ended = np.array([[-np.inf], [np.inf]], np.float32)
            endless = {n: np.tile(open_ended, (len(a) // 2, a.shape[1])) for n, a in arrays.items() if n == left_out}
            program.add(op, slot, slot, params, arrays | endless, 1)
        return program.run({"features": x}, ["x"], threads)["x"]

    for items, length in ((1, 1), (3, 7), (2, 150), (1, 400)):
        x = rng.standard_normal((items, length, D)).astype(np.float32)
        wanted = x.astype(np.float64)
        for op, params, arrays in made:
            exact = {name: array.astype(np.float64) for name, array in arrays.items()}
            if op == "self_attention":
                wanted = self_attention(wanted, exact, params, np.ones(x.shape[:2], bool))
            else:
                wanted = feed_forward(wanted, exact, params)
        found = run("", x, 1)
        assert np.abs(found - wanted).max() / np.abs(wanted).max() < 2 * CLOSE[precision]
        assert np.array_equal(run("", x, 3), found)
    for name in (n for _, _, arrays in made for n in arrays if n.endswith(("_reads", "_gives"))):
        assert np.abs(run(name, x, 1) - found).max() > 1e-3, name


def test_bounds_are_checked():
    rng = np.random.default_rng(0)
    for pre, more, match in (
        (True, {"qkv_reads": np.ones((2, D + 1), np.float32)}, r"qkv_reads: found \(2, 49\), expected shape \(2, 48\)"),
        (True, {"qkv_gives": None}, "qkv_gives: found nothing"),
        (False, {}, "qkv_reads: found where the norm comes last, expected it first"),
    ):
        op, params, arrays = next(layers(rng, 1, pre, pre, False, True, True))
        rows, columns = arrays["qkv_weight"].shape
        bounds = {"qkv_reads": np.ones((2, columns), np.float32), "qkv_gives": np.ones((2, rows), np.float32)}
        program = _C.Program()
        slot = program.slot("x", 0, D, 1)
        given = {n: a for n, a in (arrays | bounds | more).items() if a is not None}
        with pytest.raises(ValueError, match=match):
            program.add(op, slot, slot, params, given, 1)


def test_norms_and_inputs_are_checked():
    rng = np.random.default_rng(0)
    ((op, params, arrays), *_) = layers(rng, 1, False, False, False, True, False)
    program = _C.Program()
    slot = program.slot("x", 0, D, 1)
    with pytest.raises(ValueError, match="post_norm_weight: given, expected none where the norm comes last"):
        program.add(op, slot, slot, params, arrays | {"post_norm_weight": arrays["norm_weight"]}, 1)
    for name, rows, kind, match in (
        ("inputs", 3, 0, "slot inputs does not have the rows of x"),
        ("x", 0, 1, "slot x does not"),
    ):
        program = _C.Program()
        slots = {"x": program.slot("x", 0, D, 1)}
        slots.setdefault(name, program.slot(name, rows, D, kind) if name != "x" else 0)
        for record in layers(rng, 1, True, True, False, True, False):
            program.add(record[0], slots["x"], slots["x"], record[1], record[2], 1)
        gated = {"layer_norm_eps": 1e-5, "activation": 0, "inputs": slots[name]}
        with pytest.raises(ValueError, match=match):
            program.add("gated_input", slots["x"], slots["x"], gated, {"gate_weight": np.ones((4, D), np.float32)}, 1)
    picture = Picture(rng)
    wide = picture.program.slot("e", 8, 4096)
    made = list(layers(rng, 1, True, True, False, True, False))
    made[0][1]["window"], made[0][2]["window_rows"] = 4, np.arange(8, dtype=np.float32)[::-1].copy()
    for record in made:
        picture.add(*record)
    with pytest.raises(ValueError, match="gated_input: found beside attention within windows"):
        picture.add("gated_input", gated | {"inputs": wide}, {"gate_weight": np.ones((4, D), np.float32)})


def test_two_stems_do_not_turn_rows_of_each_other():
    rng = np.random.default_rng(0)
    program = _C.Program()
    seen, read = program.slot("seen", 2, D, _C.ROW_KINDS.index("patches")), program.slot("read", 0, D, 1)
    pictures_of(rng, program, seen, True, 3, False)
    text = {"word": np.ones((9, D), np.float32), "rotary": np.ones(2, np.float32)}
    with pytest.raises(ValueError, match="embed_tokens: rotary: given, and another stem of the program has one"):
        program.add("embed_tokens", read, read, {"feature_token": -1, "max_positions": 9, "flat_features": 0}, text, 1)
    program = _C.Program()
    seen, read = program.slot("seen", 2, D, _C.ROW_KINDS.index("patches")), program.slot("read", 0, D, 1)
    pictures_of(rng, program, seen, True, 3, False)
    program.add(
        "embed_tokens",
        read,
        read,
        {"feature_token": -1, "max_positions": 9, "flat_features": 0},
        {"word": text["word"]},
        1,
    )
    ((op, settings, arrays), *_) = layers(rng, 1, True, False, False, False, False)
    with pytest.raises(ValueError, match="rotary: found 3 frequencies, expected 1 to 8, and the rows of a text alone"):
        program.add(op, read, read, settings | {"rotary": 1}, arrays, 1)


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
                   "out_height": 8, "out_width": 1, "activation": 0, "pictures": 1, "spare": 0, "channels_last": 0}  # fmt: skip
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


def pictures_of(rng: np.random.Generator, program, slot: int, given: bool, half: int, centred: bool):
    """A stem of two class tokens and pictures, `given` as patches of several sizes or as they are: (inputs, grids, rows
    [T, D] of each, turns of each)."""
    channels, side, grids = 2, 3, [(2, 5), (4, 1), (3, 3)] if given else [(3, 4)] * 3
    w = weights(rng, weight=(D, channels * side * side), bias=(D,), class_token=(2, D), position=(12, D))
    w["rotary"] = rng.uniform(-2, 2, (2, half)).astype(np.float32)
    sizes = {"channels": channels, "patch_height": side, "patch_width": side}
    params = {
        "grid_height": 3,
        "grid_width": 4,
        "filter": _C.FILTERS.index("bilinear"),
        "centred": centred,
        "per_axis": 0,
        "offset": 2,
    }
    if given:
        sizes, w["position"] = dict.fromkeys(sizes, 0), None
    program.add("embed_patches", slot, slot, params | sizes, {n: a for n, a in w.items() if a is not None}, 1)
    pixels = rng.standard_normal((3, channels, 3 * side + 1, 4 * side + 2)).astype(np.float32)  # with some to spare
    patches = pixels[:, :, : 3 * side, : 4 * side].reshape(3, channels, 3, side, 4, side).transpose(0, 2, 4, 1, 3, 5)
    patches = patches.reshape(3, 12, -1)
    inputs = {"pixel_values": pixels}
    if given:
        inputs = {"pixel_values": patches.copy(), "spatial_shapes": np.array(grids)}
    rows, turns = [], []
    for i, (height, width) in enumerate(grids):
        own = patches[i, : height * width].astype(np.float64) @ w["weight"].T + w["bias"]
        rows.append(np.concatenate([w["class_token"], own if given else own + w["position"]]))
        y, x = np.divmod(np.arange(height * width), width)
        y, x = (y + 2, x + 2) if not centred else (y, x)
        if centred:
            y, x = (2 * (at + 0.5) / n - 1 for at, n in ((y, height), (x, width)))
        angles = y[:, None] * w["rotary"][0] + x[:, None] * w["rotary"][1]
        angles = np.concatenate([np.zeros((2, half)), angles])  # class tokens have no place
        turns.append(np.concatenate([np.cos(angles), np.sin(angles)], 1))
    return inputs, grids, rows, turns


@pytest.mark.parametrize(
    "given, centred, half", [(True, False, 3), (True, True, 8), (False, True, 8), (False, False, 5)]
)
@pytest.mark.parametrize("precision", CLOSE)
def test_rows_of_pictures_are_turned(isa, precision, given, centred, half):
    """By two axes; pictures of several sizes in one call, or one size that the call says."""
    rng = np.random.default_rng(half)
    program = _C.Program(precision=precision)
    slot = program.slot("x", 2, D, _C.ROW_KINDS.index("patches"))
    inputs, grids, rows, turns = pictures_of(rng, program, slot, given, half, centred)
    made = list(layers(rng, 2, True, False, False, False, half == 3))
    for op, params, arrays in made:
        params |= {"rotary": 1} if op == "self_attention" else {}
        program.add(op, slot, slot, params, arrays, 1)
    for threads in (1, 3):
        found = program.run(inputs, ["x"], threads)["x"]
        for i, (height, width) in enumerate(grids):
            wanted = rows[i][None]
            for op, params, arrays in made:
                exact = {name: array.astype(np.float64) for name, array in arrays.items()}
                if op == "self_attention":
                    seen = np.ones((1, 2 + height * width), bool)
                    wanted = self_attention(wanted, exact | {"turns": turns[i]}, params, seen)
                else:
                    wanted = feed_forward(wanted, exact, params)
            own = found[i, : 2 + height * width]
            assert np.abs(own - wanted[0]).max() / np.abs(wanted).max() < CLOSE[precision]
            assert not found[i, 2 + height * width :].any()


def test_a_stem_of_pictures_is_checked():
    rng = np.random.default_rng(0)
    weight = np.ones((D, 18), np.float32)
    params = {"grid_height": 3, "grid_width": 4, "filter": 2, "channels": 2, "patch_height": 3, "patch_width": 3,
              "centred": 0, "offset": 0, "per_axis": 0}  # fmt: skip
    for change, more, match in (
        ({}, {"weight": weight[:, 1:]}, r"weight: found \(48, 17\), expected shape \(48, 18\)"),
        ({}, {"position": weight[:11].repeat(3, 1)[:, :D]}, r"position: found \(11, 48\), expected shape \(12, 48\)"),
        ({}, {"rotary": np.ones((3, 2), np.float32)}, r"rotary: found \(3, 2\), expected shape \(2, \*\)"),
        ({"filter": 0}, {}, "filter: found 0, expected a whole number from 1 to 6"),
        ({"grid_width": 0}, {}, "grid_width: found 0, expected a whole number from 1 to 65536"),
    ):
        program = _C.Program()
        slot = program.slot("x", 0, D, _C.ROW_KINDS.index("patches"))
        arrays = {n: np.ascontiguousarray(a) for n, a in ({"weight": weight} | more).items()}
        with pytest.raises(ValueError, match=match):
            program.add("embed_patches", slot, slot, params | change, arrays, 1)
    program = _C.Program()
    slot = program.slot("x", 2, D, _C.ROW_KINDS.index("patches"))
    pictures_of(rng, program, slot, False, 9, False)
    ((op, settings, arrays), *_) = layers(rng, 1, True, False, False, False, False)
    with pytest.raises(ValueError, match="rotary: found 9 frequencies, expected 1 to 8"):
        program.add(op, slot, slot, settings | {"rotary": 1}, arrays, 1)
    for shape, match in (((1, 2, 2, 9), r"found \(1, 2, 2, 9\) float32, expected \(B, 2, H, W\) float32"),
                         ((1, 3, 9, 9), r"found \(1, 3, 9, 9\) float32")):  # fmt: skip
        program = _C.Program()
        slot = program.slot("x", 0, D, _C.ROW_KINDS.index("patches"))
        program.add("embed_patches", slot, slot, params, {"weight": weight}, 1)
        with pytest.raises(ValueError, match=match):
            program.run({"pixel_values": np.ones(shape, np.float32)}, ["x"], 1)
