"""Files and arguments made to break things: each gets one clear exception, costs little, and leaves all else usable."""

from __future__ import annotations

import base64
import io
import json
import os
import shutil
import struct
import zipfile

import clips
import numpy as np
import pytest
import sounds

import beyondvl as bvl
import models
from beyondvl import files, hub, weights
from beyondvl.processing.sentencepiece import MOST_UNITS, check_character_maps

WORDPIECE = {
    "version": "1.0", "truncation": None, "padding": None, "added_tokens": [], "normalizer": None,
    "pre_tokenizer": {"type": "Whitespace"}, "post_processor": None, "decoder": None,
    "model": {"type": "WordPiece", "unk_token": "[UNK]", "continuing_subword_prefix": "##",
              "max_input_chars_per_word": 100, "vocab": {"a": 0, "cat": 1, "[UNK]": 2}},
}  # fmt: skip
PICTURES = {"image_processor_type": "CLIPImageProcessor"}


def default_without(folder, *names):
    """The default model's folder without some of its files."""
    shutil.copytree(hub.shipped_folder("beyond-vl-model"), folder)
    for name in names:
        (folder / name).unlink()
    return folder


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "processor_config.json", "model.safetensors",
                                  "tokenizer_config.json"])  # fmt: skip
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_not_read(tmp_path, name, kind):
    """A pipe would wait for ever, /dev/zero never ends."""
    folder = default_without(tmp_path / "model", name)
    os.mkfifo(folder / name) if kind == "pipe" else (folder / name).symlink_to("/dev/zero")
    with pytest.raises(ValueError, match=rf"{name.replace('.', '[.]')}: cannot be (read|opened): not a regular file"):
        bvl.AutoModel.from_pretrained(folder)
        bvl.AutoProcessor.from_pretrained(folder)


@pytest.mark.parametrize("name,kind", [("vocab.txt", "Bert"), ("spiece.model", "Siglip"), ("merges.txt", "CLIP")])
def test_what_is_no_vocabulary_is_not_read(tmp_path, name, kind):
    os.mkfifo(tmp_path / name)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": f"{kind}Tokenizer"}))
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(bvl.ConfigError, match="not a regular file"):
        bvl.AutoTokenizer.from_pretrained(tmp_path)


def test_pictures_that_are_no_files(tmp_path, monkeypatch):
    model = bvl.AutoModel.from_pretrained("beyond-vl-model")
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    for name in ("pipe.jpg", "zero.jpg"):
        with pytest.raises(bvl.ImageError, match=rf"image 0: .*{name}: cannot be read: not a regular file"):
            model.encode([tmp_path / name, tmp_path / name], batch_size=1)
    with open(tmp_path / "sparse.jpg", "wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(bvl.ImageError, match="1099511627776 bytes, expected at most"):
        model.encode(tmp_path / "sparse.jpg")


@pytest.mark.parametrize("missing,call,message", [
    ("tokenizer.json", lambda m: m.encode("a cat"), "no files for tokenizer, expected tokenizer.json"),
    ("processor_config.json", lambda m: m.encode({"image": np.zeros((8, 8, 3), np.uint8)}),
     "no files for image_processor, expected preprocessor_config.json"),
])  # fmt: skip
def test_a_folder_without_a_processor_file(tmp_path, missing, call, message):
    model = bvl.AutoModel.from_pretrained(default_without(tmp_path / "model", missing))
    with pytest.raises(bvl.ConfigError, match=message):
        call(model)
    if missing == "processor_config.json":
        with pytest.raises(bvl.ConfigError, match="no files for feature_extractor"):
            model.feature_extractor  # noqa: B018
    alone = ("tokenizer.json", "processor_config.json", "tokenizer_config.json")
    other = bvl.AutoModel.from_pretrained(default_without(tmp_path / "other", *alone))
    with pytest.raises(bvl.ConfigError, match=r"no files of a processor, expected tokenizer\.json"):
        other.encode("a cat")
    with pytest.raises(bvl.ConfigError, match=r"no files of a processor, expected tokenizer\.json"):
        bvl.AutoProcessor.from_pretrained(tmp_path / "other")


def write_tokenizer(folder, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(WORDPIECE | changes))
    return folder


def character_map(units, texts=b"a\0"):
    array = np.asarray(units, "<u4").tobytes()
    return struct.pack("<I", len(array)) + array + texts


def sound_map():
    """b -> the text at 0: root 0 with offset 1, so b lies at 1 ^ 98, whose value lies at its own offset."""
    units = np.zeros(256, np.int64)
    units[0] = 1 << 10
    place = 1 ^ ord("b")
    units[place] = ord("b") | 1 << 8 | (place ^ 200) << 10  # a value, at place ^ offset = 200
    units[200] = 1 << 31 | 0
    return units, place


def test_a_character_map_of_ones_own(tmp_path):
    units, _ = sound_map()
    normalizer = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(character_map(units)).decode()}
    folder = write_tokenizer(tmp_path, normalizer={"type": "Sequence", "normalizers": [normalizer]})
    tokenizer = bvl.AutoTokenizer.from_pretrained(folder)
    assert tokenizer("b")["input_ids"] == [0] == tokenizer("a")["input_ids"]


@pytest.mark.parametrize("damage,message", [
    (lambda u, p: character_map(u)[:3], "character map of 3 bytes"),
    (lambda u, p: b"\xff\xff\xff\xff" + character_map(u)[4:], "found an array of 4294967295"),
    (lambda u, p: b"\xfc\xff\xff\xff" + character_map(u)[4:], "found an array of 4294967292"),
    (lambda u, p: character_map(u[:100]), "found a step to"),
    (lambda u, p: character_map(np.append(u, np.zeros(MOST_UNITS))), "found an array of"),
    (lambda u, p: character_map([*u[:p], u[p] | 1 << 30, *u[p + 1:]]), "points to no text|found a step"),
    (lambda u, p: character_map([*u[:200], 1 << 31 | 99, *u[201:]]), "points to no text"),
    (lambda u, p: character_map(u, "\xe9".encode()[1:] + b"\0"), "points to no text"),
])  # fmt: skip
@pytest.mark.parametrize("file", ["tokenizer.json", "spiece.model"])
def test_a_character_map_that_leads_out_of_its_bounds(tmp_path, damage, message, file):
    """The library follows it unchecked, and ends the process."""
    data = damage(*sound_map())
    if file == "tokenizer.json":
        normalizer = {"type": "Precompiled", "precompiled_charsmap": base64.b64encode(data).decode()}
        text = json.dumps(WORDPIECE | {"normalizer": {"type": "Sequence", "normalizers": [normalizer]}})
        (tmp_path / file).write_text(text.replace('"Precompiled"', '"\\u0050recompiled"'))  # however it is spelled
    else:
        piece = b"\x0a\x04</s>"
        spec = b"\x12" + varint(len(data)) + data
        (tmp_path / file).write_bytes(b"\x0a" + bytes([len(piece)]) + piece + b"\x1a" + varint(len(spec)) + spec)
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "SiglipTokenizer"}')
    with pytest.raises(bvl.ConfigError, match=message):
        bvl.AutoTokenizer.from_pretrained(tmp_path)


def varint(value):
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def test_damaged_character_maps_never_end_the_process(tmp_path):
    """What passes the check is safe to follow."""
    rng = np.random.default_rng(0)
    units, place = sound_map()
    taken = 0
    for _ in range(300):
        damaged = units.copy()
        for at in rng.choice([0, place, 200, *rng.integers(256, size=3)], 2):
            damaged[at] ^= 1 << int(rng.integers(32))
        text = base64.b64encode(character_map(damaged)).decode()
        normalizer = {"type": "Precompiled", "precompiled_charsmap": text}
        try:
            check_character_maps({"normalizer": normalizer})
        except bvl.ConfigError:
            continue
        taken += 1
        tokenizer = bvl.AutoTokenizer.from_pretrained(write_tokenizer(tmp_path, normalizer=normalizer))
        for text in ("b", "abc", "".join(map(chr, range(1, 400)))):
            tokenizer(text)
    assert 10 < taken < 290


def test_a_vocabulary_without_its_unknown_token(tmp_path):
    model = WORDPIECE["model"] | {"vocab": {"a": 0, "cat": 1}}
    tokenizer = bvl.AutoTokenizer.from_pretrained(write_tokenizer(tmp_path, model=model))
    for call in (tokenizer, tokenizer.tokenize, tokenizer.encode):
        with pytest.raises(ValueError, match=r"text: the tokenizer cannot encode it: .*UNK"):
            call("dog")
    assert tokenizer("a cat")["input_ids"] == [0, 1]


@pytest.mark.parametrize("changes", [
    {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}],
                        "pair": [], "special_tokens": {}}},
    {"model": {"type": "BPE", "vocab": {"a": 0}, "merges": [["a", "b"]]}},
    {"pre_tokenizer": {"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False}},
])  # fmt: skip
def test_tokenizer_files_the_library_fails_on(tmp_path, changes):
    with pytest.raises(bvl.ConfigError, match="tokenizer"):
        bvl.AutoTokenizer.from_pretrained(write_tokenizer(tmp_path, **changes))


def test_tokenizer_arguments(tmp_path):
    tokenizer = bvl.AutoTokenizer.from_pretrained(write_tokenizer(tmp_path))
    for wrong in (-1, [-1], [1 << 40]):
        with pytest.raises(ValueError, match="ids: found"):
            tokenizer.convert_ids_to_tokens(wrong)
    with pytest.raises(ValueError, match="no padding token: set one"):
        tokenizer("a cat", padding="max_length", max_length=4)
    tokenizer.pad_token = "[UNK]"
    with pytest.raises(ValueError, match="padding to 536870912 tokens: expected at most"):
        tokenizer("a cat", padding="max_length", max_length=2**29)
    assert tokenizer("a cat", truncation=True, max_length=2**31)["input_ids"] == [0, 1]
    (tmp_path / "tokenizer_config.json").write_text('{"model_max_length": NaN}')
    with pytest.raises(bvl.ConfigError, match="model_max_length: found nan"):
        bvl.AutoTokenizer.from_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text('{"strip_accents": 1, "tokenizer_class": "BertTokenizer"}')
    with pytest.raises(bvl.ConfigError, match="strip_accents: found 1, expected true or false"):
        bvl.AutoTokenizer.from_pretrained(tmp_path)


def torch_file(path, program, compressed=False, name="x/data.pkl"):
    kind = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path / "pytorch_model.bin", "w", kind) as archive:
        archive.writestr(name, program)
        archive.writestr("x/data/0", bytes(16))


def test_torch_files_that_would_take_for_ever(tmp_path):
    doubled = b"K\x01" + b"".join(b"q%ch%c\x86" % (i, i) for i in range(60))  # a tuple of tuples of tuples
    storage = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpuK\x04tQ"
    for shape, stride in ((doubled, b"K\x01\x85"), (b"K\x02\x85", doubled), (b"(" + b"K\x01" * 99 + b"t", b")")):
        tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + b"K\x00" + shape + stride + b"tR"
        torch_file(tmp_path, b"\x80\x02}X\x01\x00\x00\x00a" + tensor + b"s.")
        with pytest.raises(bvl.CheckpointError, match=r"unexpected call of torch\._utils\._rebuild_tensor_v2"):
            weights.open_checkpoint(tmp_path)
    torch_file(tmp_path, b"]" * (1 << 20) + b".", compressed=True)
    with pytest.raises(bvl.CheckpointError, match=r"data\.pkl: 1048577 bytes, expected at most .*, not compressed"):
        weights.open_checkpoint(tmp_path)


def test_a_torch_file_with_damaged_names(tmp_path):
    torch_file(tmp_path, b"\x80\x02}.", name="x\u00e9/data.pkl")
    path = tmp_path / "pytorch_model.bin"
    path.write_bytes(path.read_bytes().replace("x\u00e9".encode(), b"x\xff\xfe"))
    with pytest.raises(bvl.CheckpointError, match="not a torch zip file"):
        weights.open_checkpoint(tmp_path)


def png(height, width):
    from PIL import Image

    out = io.BytesIO()
    Image.new("L", (width, height)).save(out, "PNG")
    return out.getvalue()


def test_long_and_thin_pictures():
    """A short edge of 224 makes 14 million pixels of the other one."""
    for fields in ({}, {"resample": 0}, {"do_center_crop": False}):
        processor = bvl.CLIPImageProcessor(size=224, crop_size=224, **({"do_center_crop": True} | fields))
        for picture in (png(1, 65535), png(65535, 1), png(1 << 21, 1)):
            with pytest.raises(bvl.ImageError, match=r"image 1: .* pixels.*, expected sides up to 1048576"):
                processor([np.zeros((8, 8, 3), np.uint8), picture])
        assert processor(np.zeros((8, 8, 3), np.uint8))["pixel_values"].shape == (1, 3, 224, 224)
    processor = bvl.CLIPImageProcessor(size={"height": 48, "width": 48}, do_center_crop=False)
    assert processor(png(65535, 1))["pixel_values"].shape == (1, 3, 48, 48)  # a long one that fits
    floats = bvl.CLIPImageProcessor(size=224, crop_size=224, do_center_crop=True)
    with pytest.raises(bvl.ImageError, match="image 0: 40000 x 20 pixels would become 448000 x 224"):
        floats(np.zeros((20, 40000, 3), np.float32))


def test_absurd_sizes_of_processors():
    with pytest.raises(bvl.ConfigError, match=r"size: found .*, expected at most 89478485 pixels"):
        bvl.CLIPImageProcessor(size={"height": 16384, "width": 16384})
    for cls in (bvl.CLIPImageProcessor, bvl.ClapFeatureExtractor, bvl.WhisperFeatureExtractor):
        with pytest.raises(ValueError, match="num_threads: found 2147483648, expected 1 to 1024"):
            cls(**({"size": 224} if cls is bvl.CLIPImageProcessor else {}), num_threads=2**31)
    for cls, fields, message in (
        (bvl.ClapFeatureExtractor, {"max_length_s": 3600, "sampling_rate": 768_000}, "max_length_s: found"),
        (bvl.ClapFeatureExtractor, {"hop_length": 1, "max_length_s": 600}, "max_length_s: found"),
        (bvl.ClapFeatureExtractor, {"fft_window_size": 65536}, "fft_window_size: found 65536"),
        (bvl.WhisperFeatureExtractor, {"chunk_length": 3600, "hop_length": 1}, "chunk_length: found"),
        (bvl.WhisperFeatureExtractor, {"feature_size": 4096}, "feature_size: found 4096"),
        (bvl.ASTFeatureExtractor, {"max_length": 1 << 20, "num_mel_bins": 1024}, "max_length: found 1048576"),
        (bvl.ASTFeatureExtractor, {"std": 1e-320}, "std: found"),
    ):
        with pytest.raises(bvl.ConfigError, match=message):
            cls(**fields)
    for extractor in (bvl.ClapFeatureExtractor(), bvl.WhisperFeatureExtractor()):
        with pytest.raises(ValueError, match="max_length: found 2147483648 samples"):
            extractor(np.zeros(100, np.float32), sampling_rate=extractor.sampling_rate, max_length=2**31)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e4])
def test_scales_that_are_no_numbers(tmp_path, value):
    folder = models.write(tmp_path / "model")
    tensors = models.tensors(models.TINY_CLIP) | {"logit_scale": np.array(value, np.float32)}
    weights.save_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(bvl.CheckpointError, match="logit_scale: found"):
        bvl.AutoModel.from_pretrained(folder)


@pytest.mark.parametrize("config,name", [
    ({"model_type": "clap", "audio_config": {"enable_fusion": "yes"}}, "enable_fusion"),
    ({"model_type": "clap", "audio_config": {"qkv_bias": 1}}, "qkv_bias"),
    ({"model_type": "flava", "architectures": ["FlavaModel"], "multimodal_config": {"use_cls_token": "no"}}, "use_cls_token"),
    ({"model_type": "siglip", "vision_config": {"vision_use_head": 0}}, "vision_use_head"),
])  # fmt: skip
def test_booleans_that_are_none(tmp_path, config, name):
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(bvl.ConfigError, match=f"{name}: found .*, expected true or false"):
        bvl.AutoModel.from_pretrained(tmp_path)


def test_arguments_of_embeddings():
    rows = np.ones((3, 4), np.float32)
    for bad in (np.full((2, 4), np.nan), np.array([[1, 2, 3, 4], [1, np.inf, 0, 0]])):
        for call in (bvl.cos_sim, bvl.semantic_search):
            with pytest.raises(ValueError, match=r"embeddings: row [01] has length (nan|inf)"):
                call(rows, bad)
    for call in (bvl.cos_sim, bvl.semantic_search):
        with pytest.raises(ValueError, match=r"found shapes \(3, 4\) and \(2, 5\), expected rows of one width"):
            call(rows, np.ones((2, 5)))
        with pytest.raises(ValueError, match="embeddings: found what makes no array"):
            call(rows, [[1, 2], [3]])
    model = bvl.AutoModel.from_pretrained("beyond-vl-model")
    with pytest.raises(ValueError, match="found 3 and 2 rows, expected pairs"):
        model.similarity_pairwise(rows, rows[:2])
    with pytest.raises(ValueError, match="input_ids: found what makes no array, expected rows of one length"):
        model.get_text_features([[1, 2], [3]])
    with pytest.raises(ValueError, match="wanted: found 'nothing', expected some of"):
        model.run_tower("text", {"input_ids": [[1, 2]]}, ["nothing"])
    with pytest.raises(FileNotFoundError):
        bvl.pipeline("zero-shot-image-classification", "")


def test_moves_that_are_interrupted(tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("a", "b", "index"):
        (folder / name).write_text("old")

    def write():
        with files.write_aside(folder, ("index",)) as aside:
            for name in ("a", "b", "index"):
                (aside / name).write_text("new")

    moved, fails = [], []

    def replace(source, target):
        moved.append(target.name)
        if len(moved) == fails[-1]:
            raise OSError(28, "No space left on device")
        os.rename(source, target)

    for at in range(1, 7):  # three go aside, three come
        fails.append(at)
        moved.clear()
        monkeypatch.setattr(files.os, "replace", replace)
        with pytest.raises(OSError, match="No space"):
            write()
        monkeypatch.undo()
        assert {p.name: p.read_text() for p in folder.iterdir()} == dict.fromkeys(("a", "b", "index"), "old")
    fails.append(0)
    killed = []  # what is there when the process ends between two moves
    monkeypatch.setattr(files.os, "replace", lambda *pair: os.rename(*pair) or killed.append({
        p.name: p.read_text() for p in folder.iterdir() if p.is_file()}))  # fmt: skip
    write()
    monkeypatch.undo()
    assert len(killed) == 6 and all(len(set(state.values())) == 1 for state in killed if "index" in state)
    (folder / "b").unlink()
    (folder / "b").mkdir()
    (folder / "b" / "mine").write_text("kept")
    with pytest.raises(IsADirectoryError):
        write()
    assert (folder / "b" / "mine").read_text() == "kept" and (folder / "index").exists()
    shutil.rmtree(folder / "b")
    write()
    assert {p.name: p.read_text() for p in folder.iterdir()} == dict.fromkeys(("a", "b", "index"), "new")


@pytest.mark.parametrize("kind", ["clip", "sound"])
def test_media_of_an_unknown_codec(tmp_path, kind):
    pytest.importorskip("av", reason="M4A and clips need PyAV: pip install 'beyondvl[video]'")
    if kind == "clip":
        path, load = clips.write(tmp_path / "clip.mp4", count=8), bvl.load_video
        data = path.read_bytes().replace(b"avc1", b"zzzz")
    else:
        path = sounds.write_compressed(tmp_path / "sound.avi", sounds.tone(16_000, 1.0), 16_000, codec="pcm_s16le")
        data = bytearray(path.read_bytes())
        at = data.index(b"strf", data.index(b"auds")) + 8
        data[at : at + 2], load = b"\xfe\x7a", lambda path: bvl.load_audio(path, 16_000)  # the format's number
    assert data != path.read_bytes()
    path.write_bytes(data)
    with pytest.raises(ValueError, match=f"{path.name}: .*of a codec that is not known here"):
        load(path)
