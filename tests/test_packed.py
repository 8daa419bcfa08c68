"""Packed weights on disk: the same numbers, refused on another level, in another precision, or when damaged."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import beyondvl as bvl
import models
from beyondvl import _C, files
from beyondvl.models import packed as packing
from test_threads import CONFIGS, arrays, given, same


@pytest.fixture
def packed(tmp_path):
    """A saved int8 CLIP, and the model it was saved from."""
    model = bvl.AutoModel.from_pretrained(models.write(tmp_path / "model"), dtype="int8")
    model.save_packed(tmp_path / "packed")
    return tmp_path / "packed", model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_same_numbers(isa, tmp_path, name, dtype):
    model = bvl.AutoModel.from_pretrained(models.write(tmp_path / "model", CONFIGS[name]), dtype=dtype)
    model.save_packed(tmp_path / "packed")
    loaded = bvl.AutoModel.from_pretrained(tmp_path / "packed")
    assert (type(loaded), loaded.dtype, loaded.packed_bytes) == (type(model), dtype, model.packed_bytes)
    inputs = given(name, 5)
    same(arrays(loaded(**inputs)), arrays(model(**inputs)))
    if "logits_per_image" in (out := loaded(**inputs)):
        np.testing.assert_array_equal(out.logits_per_image, model(**inputs).logits_per_image)


def test_the_default_with_its_processor(tmp_path):
    model = bvl.AutoModel.from_pretrained("beyond-vl-model", dtype="int8")
    model.save_packed(tmp_path)
    loaded = bvl.AutoModel.from_pretrained(tmp_path)
    np.testing.assert_array_equal(loaded.encode(["a red car", "a cat"]), model.encode(["a red car", "a cat"]))
    again = tmp_path / "again"
    loaded.save_packed(again)
    assert (again / "packed.bin").read_bytes() == (tmp_path / "packed.bin").read_bytes()


def test_weights_are_not_copied(packed):
    """They lie in the mapping: loading allocates no block for them."""
    folder, _ = packed
    before = _C.alloc_live()
    loaded = bvl.AutoModel.from_pretrained(folder)
    blocks = sum(len(t.program.blocks()) for t in loaded.towers.values())
    assert _C.alloc_live() - before < blocks
    address = loaded.towers["text"].program.blocks()[0].__array_interface__["data"][0]
    maps = [line for line in Path("/proc/self/maps").read_text().splitlines() if "packed.bin" in line]
    ranges = [tuple(int(x, 16) for x in line.split()[0].split("-")) for line in maps]
    assert all("r--s" in line for line in maps) and any(a <= address < b for a, b in ranges)


def test_blocks_outlive_their_program(packed):
    blocks = bvl.AutoModel.from_pretrained(packed[0]).towers["vision"].program.blocks()
    expected = packed[1].towers["vision"].program.blocks()
    for a, b in zip(blocks, expected, strict=True):
        np.testing.assert_array_equal(a, b)
        assert not a.flags.writeable


def test_another_level_is_refused(packed):
    active = _C.config()["isa"]
    try:
        for isa in _C.usable_isas():
            if isa != active:
                _C.set_isa(isa)
                with pytest.raises(bvl.CheckpointError, match=f"for instruction set {active}, this process runs {isa}"):
                    bvl.AutoModel.from_pretrained(packed[0])
    finally:
        _C.set_isa()


def test_another_precision_or_class_is_refused(packed):
    folder, _ = packed
    for dtype in ("int8", "auto", None):
        assert bvl.AutoModel.from_pretrained(folder, dtype=dtype).dtype == "int8"
    with pytest.raises(bvl.CheckpointError, match="packed as int8, found dtype 'float32'"):
        bvl.AutoModel.from_pretrained(folder, dtype="float32")
    with pytest.raises(bvl.ConfigError, match="SiglipModel cannot load a packed CLIPModel"):
        bvl.SiglipModel.from_pretrained(folder)


@pytest.mark.parametrize("at", [0, 1000, -300])
def test_a_changed_byte_is_found(packed, at):
    path = packed[0] / "packed.bin"
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(bvl.CheckpointError, match=r"checksum .* the file is damaged"):
        bvl.AutoModel.from_pretrained(packed[0])


@pytest.mark.parametrize("keep", [0, 64, 0.5, -64])
def test_a_cut_file_is_found(packed, keep):
    path = packed[0] / "packed.bin"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(bvl.CheckpointError, match=r"packed\.bin: .* bytes, expected"):
        bvl.AutoModel.from_pretrained(packed[0])


def broken(record):
    text = record["towers"]["text"]
    yield "format", lambda: record.update(format=1)
    yield "class: found 'Model', which", lambda: record.update({"class": "Model"})
    yield "bytes 64 to", lambda: text.update(begin=64, bytes=1 << 40)
    yield "cannot be built", lambda: text["records"][0].pop()
    yield "cannot be built", lambda: text["records"][1][4].update(qkv_weight=[144, 99])
    yield "elements packed", lambda: text["records"][0][4].update(word=[1 << 24, 48])
    yield "cannot be built", lambda: text["slots"].pop()
    yield "cannot be built", lambda: text["records"][1][3].update(num_attention_heads=0)
    yield "cannot be built", lambda: text["records"][0].__setitem__(0, "no_such_operation")
    yield "cannot be built", lambda: text["slots"][0].__setitem__(1, 10**30)
    yield "cannot be built", lambda: text["records"][0].__setitem__(1, 1 << 40)
    yield "cannot be built", lambda: text["records"][0][4].update(word=[1 << 100, 48])
    yield (
        "elements packed",
        lambda: record["towers"]["vision"]["records"][0][4].update(weight=[64, 3, 1 << 24, 1 << 24]),
    )
    yield "cannot be built", lambda: text.update(bytes=32)
    yield "logit_scale", lambda: record.update(logit_scale="x")
    yield "output unit_embeds: found slot 'nothing'", lambda: text["outputs"].update(unit_embeds="nothing")
    yield "cannot be built", lambda: text["outputs"].update(unit_embeds=[1])
    yield "output embeds: found slot", lambda: text["sizes"].update(embeds=7)


@pytest.mark.parametrize("case", range(18))
def test_a_lying_record_is_refused(packed, case):
    path = packed[0] / "packed.json"
    record = json.loads(path.read_text())
    message, change = list(broken(record))[case]
    change()
    path.write_text(json.dumps(record))
    with pytest.raises((bvl.CheckpointError, bvl.ConfigError), match=message):
        bvl.AutoModel.from_pretrained(packed[0])


@pytest.mark.parametrize("change,message", [
    ({"stride": 0}, "stride: found 0, expected a whole number from 1"), ({"kernel": 2.5}, "kernel: found 2.5"),
    ({"height": -4, "width": -4, "out_height": -4, "out_width": -4}, "height: found -4"),
    ({"activation": 99}, "activation: found 99"), ({"pad_left": -1}, "pad_left: found -1"),
])  # fmt: skip
def test_a_lying_convolution_is_refused(tmp_path, change, message):
    """Which otherwise divides by zero, or reads what nobody wrote."""
    bvl.AutoModel.from_pretrained(models.write(tmp_path / "model", CONFIGS["efficientnet_lite"])).save_packed(
        tmp_path / "packed"
    )
    path = tmp_path / "packed" / "packed.json"
    record = json.loads(path.read_text())
    convolution = next(r for r in record["towers"]["vision"]["records"] if r[0] == "inverted_residual")
    assert set(change) <= set(convolution[3])
    convolution[3].update(change)
    path.write_text(json.dumps(record))
    with pytest.raises(bvl.CheckpointError, match=f"cannot be built: .*{message}"):
        bvl.AutoModel.from_pretrained(tmp_path / "packed")


def test_a_model_on_openblas_is_not_saved(tmp_path, monkeypatch):
    monkeypatch.setenv("BEYONDVL_GEMM", "openblas")
    model = bvl.AutoModel.from_pretrained(models.write(tmp_path / "model"))
    monkeypatch.delenv("BEYONDVL_GEMM")
    with pytest.raises(ValueError, match="BEYONDVL_GEMM=openblas"):
        model.save_packed(tmp_path / "packed")


def test_slots_that_nothing_fills_are_refused():
    """Programs that no family builds: a text's rows without a text, a stem of no rows."""
    program = _C.Program()
    program.slot("text", 0, 8, True), program.slot("hidden", 16, 8), program.slot("out", 1, 8)
    weight = np.ones((8, 3, 2, 2), np.float32)
    params = dict(zip(_C.OPS["patch_embed"][0], (3, 8, 8, 2, 2, 0, 0, 4, 4, 0, 1, 0, 0), strict=True))
    program.add("patch_embed", 1, 1, params, {"weight": weight}, 1)
    program.add("pool", 0, 2, {"kind": 1, "token": 0}, {}, 1)
    with pytest.raises(ValueError, match="takes no text"):
        program.run({"pixel_values": np.ones((1, 3, 8, 8), np.float32)}, ["out"], 1)
    other = _C.Program()
    with pytest.raises(ValueError, match="slot 'hidden': 0 x 8"):
        other.slot("hidden", 0, 8)
    other.slot("text", 0, 8, True)
    with pytest.raises(ValueError, match="patch_embed: out_height: found 0"):
        other.add("patch_embed", 0, 0, params | {"out_height": 0}, {"weight": weight}, 1)


def test_saving_over_the_checkpoint_is_refused(tmp_path):
    model = bvl.AutoModel.from_pretrained(models.write(tmp_path / "model"))
    with pytest.raises(ValueError, match="own folder"):
        model.save_packed(tmp_path / "model")


def test_checksum():
    """The same for any number of threads; every single changed bit changes it."""
    data = np.random.default_rng(0).integers(0, 256, (3 << 20) + 64, dtype=np.uint8)
    expected = _C.checksum(data, 1)
    assert [_C.checksum(data, n) for n in (2, 3, 4)] == [expected] * 3
    for at in range(0, data.size, 65537):
        data[at] ^= 1 << at % 8
        assert _C.checksum(data, 2) != expected
        data[at] ^= 1 << at % 8
    with pytest.raises(ValueError, match="multiple of 64"):
        _C.checksum(data[:-1], 1)


def state(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("fails", ["checksum", "write_companions", "fsync"])
def test_a_save_that_fails_changes_nothing(packed, tmp_path, monkeypatch, fails):
    folder, model = packed
    before = state(folder)
    other = bvl.AutoModel.from_pretrained(models.write(tmp_path / "other", models.TINY_CLIP | {"projection_dim": 16}))

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    owner = {"checksum": packing._C, "write_companions": packing, "fsync": files.os}[fails]
    monkeypatch.setattr(owner, fails, full)
    with pytest.raises(OSError, match="No space left"):
        other.save_packed(folder)
    monkeypatch.undo()
    assert state(folder) == before
    inputs = models.inputs()
    same(arrays(bvl.AutoModel.from_pretrained(folder)(**inputs)), arrays(model(**inputs)))


def test_saving_over_another_packed_model(packed, tmp_path):
    """Nothing of the first one stays: a tokenizer.json would come before the second one's vocabulary."""
    folder, _ = packed
    source = models.write(tmp_path / "first", tokenizer={"version": "1.0"}, notes={})
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text("{}")
    bvl.AutoModel.from_pretrained(source).save_packed(folder)
    assert {"tokenizer.json", "1_Pooling/config.json"} <= set(state(folder)) and "notes.json" not in state(folder)
    (folder / "own.json").write_text("{}")
    other = bvl.AutoModel.from_pretrained(models.write(tmp_path / "other", models.TINY_CLIP | {"projection_dim": 16}))
    other.save_packed(folder)
    assert set(state(folder)) == {"config.json", "packed.bin", "packed.json", "own.json"}
    inputs = models.inputs()
    same(arrays(bvl.AutoModel.from_pretrained(folder)(**inputs)), arrays(other(**inputs)))


def test_another_configuration_is_refused(packed):
    folder, _ = packed
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["eos_token_id"] = 7  # which fits the weights, and reads another token
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(bvl.CheckpointError, match=r"config\.json: another one than these weights were packed with"):
        bvl.AutoModel.from_pretrained(folder)


def test_another_checkpoint_is_not_saved_over(packed, tmp_path):
    other = models.write(tmp_path / "other")
    before = state(other)
    with pytest.raises(ValueError, match=r"found another checkpoint's model\.safetensors, expected a new folder"):
        packed[1].save_packed(other)
    assert state(other) == before
    for name in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin"):
        theirs = tmp_path / name
        theirs.mkdir()
        (theirs / name).write_bytes(b"theirs")
        with pytest.raises(ValueError, match=f"found another checkpoint's {name}"):
            packed[1].save_packed(theirs)


def test_a_damaged_record_is_replaced(packed, tmp_path):
    folder, model = packed
    (folder / "packed.json").write_text("{")
    model.save_packed(folder)
    assert bvl.AutoModel.from_pretrained(folder).dtype == "int8"


def test_other_modules_are_refused(tmp_path):
    """How a sentence encoder pools is no matter of config.json."""
    config = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 48, "intermediate_size": 64,
              "num_hidden_layers": 1, "num_attention_heads": 3, "vocab_size": 90, "max_position_embeddings": 16}  # fmt: skip
    source = models.write(tmp_path / "source", config, modules=[
        {"type": "sentence_transformers.models.Transformer", "path": ""},
        {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}])  # fmt: skip
    (source / "1_Pooling").mkdir()
    (source / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    bvl.AutoModel.from_pretrained(source).save_packed(tmp_path / "packed")
    assert bvl.AutoModel.from_pretrained(tmp_path / "packed").tower("text")
    (tmp_path / "packed" / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    with pytest.raises(bvl.CheckpointError, match="other modules of a sentence encoder"):
        bvl.AutoModel.from_pretrained(tmp_path / "packed")
