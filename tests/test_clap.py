"""CLAP against transformers: hidden states, embeddings and logits, both fusion kinds, every level and precision."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import sounds
from parity import close, worst_cosine

import beyondvl as bvl
from beyondvl import _C
from beyondvl.errors import ConfigError
from beyondvl.families import clap

torch = pytest.importorskip("torch", reason="parity needs torch and transformers: pip install 'beyondvl[test]'")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install 'beyondvl[test]'")

CASES = [(shape, fused) for shape in ("small", "odd") for fused in (False, True)]
_made: dict = {}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, reference model) of a shape."""

    def make(shape, fused):
        if (shape, fused) not in _made:
            model = sounds.build(shape, fused)
            folder = tmp_path_factory.mktemp("clap")
            model.save_pretrained(folder)
            _made[shape, fused] = folder, model
        return _made[shape, fused]

    return make


def expected(model, given):
    with torch.no_grad():
        return model(**{name: torch.from_numpy(array) for name, array in given.items()})


@pytest.mark.parametrize("shape,fused", CASES)
def test_outputs(isa, made, shape, fused):
    check_outputs(made, shape, fused)


@pytest.mark.parametrize("fused", [False, True])
def test_outputs_at_real_widths(made, fused):
    check_outputs(made, "real", fused)


def check_outputs(made, shape, fused):
    folder, reference = made(shape, fused)
    model = bvl.AutoModel.from_pretrained(folder, strict=True)
    given = sounds.inputs(shape, fused)
    out, wanted = model(**given), expected(reference, given)
    assert list(out)[:4] == ["logits_per_audio", "logits_per_text", "text_embeds", "audio_embeds"]
    for name in list(out)[:4]:
        close(out[name], wanted[name].numpy())
    for tower in ("text_model_output", "audio_model_output"):
        keep = given["attention_mask"].astype(bool) if tower.startswith("text") else None
        close(out[tower].last_hidden_state, wanted[tower].last_hidden_state.numpy(), keep)
        close(out[tower].pooler_output, wanted[tower].pooler_output.numpy())
    # the sounds are told apart, and the two scales are two
    cosines = out.audio_embeds @ out.audio_embeds.T
    assert cosines[np.triu_indices(3, 1)].max() < 0.98
    assert np.abs(out.logits_per_audio - out.logits_per_text.T).max() > 1e-2


@pytest.mark.parametrize("shape", ["small", "odd"])
@pytest.mark.parametrize("less", [0, 1, 100])
def test_frames(isa, made, shape, less):
    """As many as the picture holds, and fewer, which are stretched."""
    folder, reference = made(shape, False)
    most = sounds.SHAPES[shape]["spec_size"] ** 2 // sounds.SHAPES[shape]["num_mel_bins"]
    given = sounds.inputs(shape, False, frames=most - less)
    model = bvl.AutoModel.from_pretrained(folder)
    with torch.no_grad():
        wanted = reference.get_audio_features(torch.from_numpy(given["input_features"]))
    found = model.get_audio_features(given["input_features"])
    close(found, wanted.pooler_output.numpy())
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-5)
    text = {name: given[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        wanted = reference.get_text_features(**{n: torch.from_numpy(a) for n, a in text.items()})
    close(model.get_text_features(**text), wanted.pooler_output.numpy())
    with pytest.raises(
        ValueError, match=rf"input_features: found \({3}, 1, {most + 1}, .*expected \(B, 1, 1 to {most}"
    ):
        model(input_features=np.zeros((3, 1, most + 1, given["input_features"].shape[3]), np.float32))


CLASSES = ("ClapAudioModel", "ClapTextModel", "ClapAudioModelWithProjection", "ClapTextModelWithProjection")


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.filterwarnings("ignore:.*weights are not used.*projection")
def test_one_tower(made, tmp_path, cls):
    """Out of the whole checkpoint, and out of what transformers saves of the class alone."""
    folder, whole = made("small", True)
    if cls.endswith("Projection"):
        reference = getattr(transformers, cls).from_pretrained(folder).eval()
    else:  # which transformers does not find in the whole checkpoint
        reference = whole.audio_model if "Audio" in cls else whole.text_model
    reference.save_pretrained(tmp_path)
    given = sounds.inputs("small", True)
    names = ("input_ids", "attention_mask") if "Text" in cls else ("input_features", "is_longer")
    given = {name: given[name] for name in names}
    wanted = expected(reference, given)
    for source in (folder, tmp_path):
        model = getattr(bvl, cls).from_pretrained(source)
        out = model(**given)
        for name in ("audio_embeds", "text_embeds", "pooler_output", "last_hidden_state"):
            if name in wanted and wanted[name] is not None:
                keep = given["attention_mask"].astype(bool) if "Text" in cls and name.endswith("state") else None
                close(out[name], wanted[name].numpy(), keep)
    assert type(bvl.AutoModel.from_pretrained(tmp_path)).__name__ == cls


@pytest.mark.parametrize(
    "part",
    ["relative_position_bias_table", "mel_conv2d.weight", "global_att.4.bias", "local_att.0.weight", "reduction"],
)
def test_a_zeroed_part_is_noticed(made, tmp_path, part):
    _, reference = made("small", True)
    given = sounds.inputs("small", True)
    state = {name: torch.zeros_like(p) if part in name else p for name, p in reference.state_dict().items()}
    assert sum(part in name for name in state)
    other = sounds.build("small", True)
    other.load_state_dict(state)
    other.save_pretrained(tmp_path)
    found = bvl.AutoModel.from_pretrained(tmp_path)(**given).audio_embeds
    wanted = expected(reference, given).audio_embeds.numpy()
    assert np.abs(found - wanted)[given["is_longer"][:, 0]].max() > 1e-3


@pytest.mark.parametrize("broken", ["regions", "shift"])
def test_windows_are_noticed(made, monkeypatch, broken):
    """Without their regions, or without their shift, the same weights give other numbers."""
    folder, reference = made("small", False)
    given = sounds.inputs("small", False)
    whole = clap.windows

    def windows(height, width, size, shift):
        found = whole(height, width, size, 0 if broken == "shift" else shift)
        return found if broken == "shift" else clap.Windows(found.size, found.rows)

    monkeypatch.setattr(clap, "windows", windows)
    found = bvl.AutoModel.from_pretrained(folder)(input_features=given["input_features"]).audio_embeds
    assert np.abs(found - expected(reference, given).audio_embeds.numpy()).max() > 1e-3


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "bfloat16x3"])
@pytest.mark.parametrize("shape,fused", [("small", True), ("odd", False)])
def test_precisions(isa, made, shape, fused, precision):
    check_precision(isa, made, shape, fused, precision)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_precisions_at_real_widths(made, precision):
    check_precision(_C.config()["isa"], made, "real", False, precision)


def check_precision(isa, made, shape, fused, precision):
    """Close to float32 with the mean taken off; a row of a batch is bitwise the row alone, on any number of threads."""
    if precision == "bfloat16x3" and isa != "amx":
        pytest.skip(f"{isa} has no {precision}")
    folder, _ = made(shape, fused)
    # sounds of towers that few columns, or many layers, make alike differ more
    given = sounds.inputs(shape, fused, batch=3 if shape == "real" else 5, tilt=9 if shape == "small" else 30)
    features, longer = given["input_features"], given["is_longer"]
    exact = bvl.AutoModel.from_pretrained(folder).get_audio_features(features, longer)
    model = bvl.AutoModel.from_pretrained(folder, dtype=precision, num_threads=2)
    found = model.get_audio_features(features, longer)
    least = {"float32": 0.9999999, "bfloat16": 0.9995, "int8": 0.995, "bfloat16x3": 0.999999}
    assert worst_cosine(found, exact) >= least[precision]
    alone = [model.get_audio_features(features[i : i + 1], longer[i : i + 1])[0] for i in range(len(features))]
    np.testing.assert_array_equal(np.stack(alone), found)
    single = bvl.AutoModel.from_pretrained(folder, dtype=precision, num_threads=1)
    np.testing.assert_array_equal(single.get_audio_features(features, longer), found)


def test_packed(made, tmp_path):
    folder, _ = made("odd", True)
    model = bvl.AutoModel.from_pretrained(folder, dtype="int8")
    model.save_packed(tmp_path)
    given = sounds.inputs("odd", True)
    out, again = model(**given), bvl.AutoModel.from_pretrained(tmp_path)(**given)
    for name in ("logits_per_audio", "logits_per_text", "audio_embeds"):
        np.testing.assert_array_equal(out[name], again[name])


def test_openblas(made, monkeypatch):
    monkeypatch.setenv("BEYONDVL_GEMM", "openblas")
    folder, reference = made("small", True)
    given = sounds.inputs("small", True)
    close(bvl.AutoModel.from_pretrained(folder)(**given).audio_embeds, expected(reference, given).audio_embeds.numpy())


def test_inputs_that_do_not_fit(made):
    folder, _ = made("small", True)
    model, given = bvl.AutoModel.from_pretrained(folder), sounds.inputs("small", True)
    features, longer = given["input_features"], given["is_longer"]
    for inputs, message in (
        ({"input_features": features}, r"is_longer: not given, expected \(B, 1\)"),
        ({"input_features": features, "is_longer": longer[:2]}, r"is_longer: found shape \(2, 1\), expected \(3, 1\)"),
        ({"input_features": features, "is_longer": longer.astype(float)}, "is_longer: found dtype float64"),
        ({"input_features": features.astype(np.int16), "is_longer": longer}, "input_features: found dtype int16"),
        ({"input_features": features[:, :1], "is_longer": longer}, r"input_features: found \(3, 1, .*expected \(B, 4"),
        ({"input_features": features[:, :, :, 1:], "is_longer": longer}, "input_features: found"),
        ({"input_features": features[0], "is_longer": longer}, "input_features: found"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**inputs)
    with pytest.raises(ValueError, match="ClapModel has no vision tower; it has text, audio"):
        model.encode([np.zeros((8, 8, 3), np.uint8)])
    assert np.isfinite(model(**given).audio_embeds).all()


@pytest.mark.parametrize(
    "change,message",
    [
        ({"window_size": 7}, "stage 0: 16 x 16 patches, 16 columns, expected multiples of the window of 7"),
        ({"num_attention_heads": [2, 4]}, "found 3 depths and 2 numbers of heads"),
        ({"depths": "two"}, "depths: found 'two', expected whole numbers"),
        ({"hidden_size": 65}, "hidden_size 64"),
        ({"num_mel_bins": 15}, "spec_size 64, 15 mels"),
        ({"patch_size": [4, 4, 4]}, "patch_size: found"),
        ({"fusion_type": "channel_map"}, "fusion_type: found 'channel_map'"),
        ({"hidden_act": "mish"}, "hidden_act: found 'mish'"),
    ],
)
def test_configs_that_do_not_fit(made, tmp_path, change, message):
    folder, _ = made("small", False)
    config = json.loads((folder / "config.json").read_text())
    config["audio_config"] |= change
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=re.escape(message)):
        bvl.AutoModel.from_pretrained(tmp_path)


def test_orders_are_checked():
    """What would read rows that are not there is refused by the core itself."""
    weights = {"norm_weight": np.ones(16, np.float32), "norm_bias": np.zeros(16, np.float32),
               "weight": np.ones((6, 16), np.float32)}  # fmt: skip
    for order, message in (
        ([0, 1, 2, 3, 4, 5, 6, 8], r"merge_rows: order\[7\]: found 8, expected each of 0 to 7 once"),
        ([0, 1, 2, 3, 4, 5, 6, 6], r"order\[7\]: found 6"),
        ([0.5, 1, 2, 3, 4, 5, 6, 7], r"order\[0\]: found 0.5"),
        ([np.nan, 1, 2, 3, 4, 5, 6, 7], r"order\[0\]: found -?nan"),
        ([0, 1, 2], r"order: found \(3\), expected shape \(8\)"),
    ):
        program = _C.Program()
        slots = [program.slot("a", 8, 4), program.slot("b", 2, 6)]
        with pytest.raises(ValueError, match=message):
            given = weights | {"order": np.array(order, np.float32)}
            program.add("merge_rows", *slots, {"layer_norm_eps": 1e-5, "activation": 0}, given, 1)


PATCHES = {"channels": 1, "height": 8, "width": 8, "stride_down": 2, "stride_right": 2, "pad_top": 0, "pad_left": 0,
           "out_height": 4, "out_width": 4, "activation": 0, "pictures": 1, "spare": 0, "channels_last": 0}  # fmt: skip


@pytest.mark.parametrize(
    "change,message",
    [
        ({"out_height": -1000, "out_width": 1000}, "out_height: found -1000, expected a whole number from 1"),
        ({"out_height": 2.5}, "out_height: found 2.5"),
        ({"channels": -1}, "channels: found -1"),
        ({"channels": 0}, "channels: found 0"),
        ({"stride_right": 0}, "stride_right: found 0"),
        ({"pad_top": -1}, "pad_top: found -1"),
        ({"width": 1e9}, "width: found 1e"),
        ({"activation": 99}, "activation: found 99"),
        ({"out_height": 3}, "16 rows, expected 12"),
        ({"pictures": 0}, "pictures: found 0, expected a whole number from 1 to 4096"),
        ({"spare": 0.5}, "spare: found 0.5"),
        ({"pictures": 2}, "16 rows, expected 32"),
    ],
)
def test_patches_are_checked(change, message):
    program = _C.Program()
    slot = program.slot("a", 16, 4)
    with pytest.raises(ValueError, match=message):
        program.add("patch_embed", slot, slot, PATCHES | change, {"weight": np.ones((4, 1, 2, 2), np.float32)}, 1)


def test_an_order_out_of_a_file_is_checked():
    """A packed file may say anything: its checksum tells damage, not malice."""
    params, shapes = (
        {"layer_norm_eps": 1e-5, "activation": 0},
        {"order": [8], "norm_weight": [16], "norm_bias": [16], "weight": [6, 16]},
    )
    program = _C.Program()
    slots = [program.slot("a", 8, 4), program.slot("b", 2, 6)]
    rng = np.random.default_rng(0)
    arrays = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    program.add("merge_rows", *slots, params, arrays | {"order": np.arange(8, dtype=np.float32)}, 1)
    stored = b"".join(bytes(block) + bytes(-len(block) % 64) for block in program.blocks())
    wrong = ((np.full(8, 1_000_000), "found 1e"), (np.full(8, -1), "found -1"), (np.zeros(8), "found 0"))
    for order, message in ((np.arange(8), None), *wrong):
        buffer = np.zeros(len(stored) + 64, np.uint8)
        buffer = buffer[-buffer.ctypes.data % 64 :][: len(stored)]
        buffer[:] = np.frombuffer(stored, np.uint8)
        buffer[:32] = np.frombuffer(order.astype(np.int32).tobytes(), np.uint8)
        again = _C.Program()
        slots = [again.slot("a", 8, 4), again.slot("b", 2, 6)]
        again.map(memoryview(buffer))
        if message is None:
            again.add("merge_rows", *slots, params, shapes, 1)
            continue
        with pytest.raises(ValueError, match=message):
            again.add("merge_rows", *slots, params, shapes, 1)
