"""Kinds of fault that public reports of this field show, each with one small input beside the right value: the peer's
where it has one."""

from __future__ import annotations

import base64
import io
import json
import pickle
import shutil

import numpy as np
import pytest
from PIL import Image
from test_callers import sentence_encoder

import beyondvl as bvl
import pictures
import published

torch = pytest.importorskip("torch", reason="parity needs torch and transformers: pip install 'beyondvl[test]'")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install 'beyondvl[test]'")

SMALL = {"hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


@pytest.fixture(scope="module")
def default():
    return bvl.AutoModel.from_pretrained("beyond-vl-model")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A small CLIP of transformers with a published tokenizer and processor."""
    if published.archive() is None:
        pytest.skip("no published files: BEYONDVL_PUBLISHED names their folder")
    folder = tmp_path_factory.mktemp("clip") / "model"
    shutil.copytree(published.folder() / "openai--clip-vit-large-patch14", folder)
    torch.manual_seed(0)
    config = transformers.CLIPConfig(
        text_config=SMALL | {"eos_token_id": 49407, "bos_token_id": 49406},
        vision_config=SMALL | {"patch_size": 32}, projection_dim=32,
    )  # fmt: skip
    model = transformers.CLIPModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 1.5 / parameter[0].numel() ** 0.5)
    model.save_pretrained(folder)
    return folder


def turned() -> bytes:
    """A JPEG whose EXIF says that it lies on its side."""
    picture, data = pictures.photo(200, 120, seed=3), io.BytesIO()
    picture = picture if isinstance(picture, Image.Image) else Image.fromarray(np.asarray(picture))
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(data, "JPEG", exif=exif)
    return data.getvalue()


# ---- a model that goes on reading its folder


def test_a_folder_that_moves_or_vanishes_changes_nothing(tmp_path, monkeypatch):
    files = {"config_sentence_transformers": {"prompts": {"query": "what is "}, "default_prompt_name": "query"}}
    sentence_encoder(tmp_path / "model", {"pooling_mode": "mean"}, **files)
    monkeypatch.chdir(tmp_path)
    model, fresh = bvl.AutoModel.from_pretrained("model"), bvl.AutoModel.from_pretrained("model")
    expected = model.encode("a cat")
    monkeypatch.chdir("/")
    again = pickle.loads(pickle.dumps(model))  # from the same folder, wherever Python is
    np.testing.assert_array_equal(again.encode("a cat"), expected)
    shutil.rmtree(tmp_path / "model")
    np.testing.assert_array_equal(fresh.encode("a cat"), expected)
    assert fresh.name_or_path == str(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match="model"):
        pickle.loads(pickle.dumps(model))


# ---- a guess at what something is


def test_strings_that_name_something_are_never_texts(default, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = turned()
    picture = default.encode({"image": data})
    uri = "data:image/jpeg;base64," + base64.b64encode(data).decode()
    np.testing.assert_array_equal(default.encode(uri), picture)
    (tmp_path / "no extension").write_bytes(data)
    np.testing.assert_array_equal(default.encode("no extension"), picture)
    Image.open(io.BytesIO(data)).save(tmp_path / "rgba.png")
    (tmp_path / "x.tif").write_bytes(b"II*\0" + bytes(100))
    for refused in (
        "x.tif",
        "rgba.png ",
        "missing.avif",
        "https://a.b/cat.png?w=200",
        "https://a.b/cat",
        "data:image/png;base64,@@",
    ):
        with pytest.raises(bvl.ImageError):
            default.encode([refused])
    texts = ["a .png of a cat", "see https://a.b/cat.png there", "24/7", "data: a cat"]
    np.testing.assert_array_equal(default.encode(texts), default.encode([{"text": text} for text in texts]))


@pytest.fixture(scope="module")
def deaf():
    """Of texts and pictures alone."""
    return bvl.BeyondVLModel.from_pretrained("beyond-vl-model")


@pytest.mark.parametrize("item", [None, float("nan"), 3, b"RIFF\x24\0\0\0WAVEfmt ", (16000, np.zeros(160, np.float32)),
                                  (np.zeros(160, np.float32), 16000), io.BytesIO(b"fLaC"), object()],
                         ids=lambda item: type(item).__name__)  # fmt: skip
def test_items_that_a_model_cannot_read(deaf, item):
    """The error names the place, what it is, and what the model takes; nothing is lost."""
    with pytest.raises(ValueError, match=r"item 1|image 1|audio|sound") as caught:
        deaf.encode(["a cat", item])
    assert len(str(caught.value)) < 500
    assert deaf.encode("a cat").shape == (384,)


def test_gradio_gives_the_rate_first():
    from beyondvl.processing.items import modality_of

    assert modality_of((16000, np.zeros(100, np.int16))) == "audio" == modality_of((np.zeros(100, np.float32), 16000))
    sound = np.random.default_rng(0).normal(size=16000).astype(np.float32)
    np.testing.assert_array_equal(bvl.load_audio((16000, sound), 8000), bvl.load_audio((sound, 16000), 8000))


def test_messages_are_bounded(default):
    for bad in ("data:image/png;base64," + "A" * 4_000_000, b"\0" * 4_000_000, "no such folder/" + "x" * 3000 + ".png"):
        with pytest.raises(ValueError) as caught:
            default.encode([bad])
        assert len(str(caught.value)) < 5000 and str(caught.value).isprintable()
    with pytest.raises(FileNotFoundError, match="no such folder") as caught:
        bvl.AutoModel.from_pretrained("mistyped-folder", local_files_only=True)
    assert len(str(caught.value)) < 600 and "mistyped-folder" in str(caught.value)


# ---- a pipeline is not its processor


@pytest.mark.parametrize("form", ["pil", "path", "bytes", "base64", "data"])
def test_pipelines_turn_photographs(clip, tmp_path, form):
    """A photograph on its side is turned by transformers' pipeline, not by its processor; so here."""
    data = turned()
    (tmp_path / "turned.jpg").write_bytes(data)
    text = base64.b64encode(data).decode()
    ours = {"pil": Image.open(io.BytesIO(data)), "path": str(tmp_path / "turned.jpg"), "bytes": data, "base64": text,
            "data": "data:image/jpeg;base64," + text}[form]  # fmt: skip
    theirs = Image.open(io.BytesIO(data)) if form == "bytes" else ours
    labels = ["a cat", "a dog", "a house on a hill", "nothing"]
    found = bvl.pipeline("zero-shot-image-classification", str(clip))(ours, candidate_labels=labels)
    reference = transformers.pipeline(
        "zero-shot-image-classification",
        str(clip),
        image_processor=transformers.CLIPImageProcessorPil.from_pretrained(clip),
    )
    expected = reference(theirs, candidate_labels=labels)
    assert [row["label"] for row in found] == [row["label"] for row in expected]
    np.testing.assert_allclose([r["score"] for r in found], [r["score"] for r in expected], atol=1e-4)
    other = reference(Image.open(io.BytesIO(data)).transpose(Image.Transpose.ROTATE_90), candidate_labels=labels)
    assert abs(other[0]["score"] - expected[0]["score"]) > 1e-3, "a turn makes no difference"


# ---- other layouts of files


def test_older_layouts_of_sentence_transformers(clip, tmp_path):
    """0_Transformer/ and 0_CLIPModel/ below modules.json, and a CLIP at the root as its version 6 saves it."""
    plain = bvl.AutoModel.from_pretrained(sentence_encoder(tmp_path / "new", {"pooling_mode": "mean"}))
    old = tmp_path / "old"
    shutil.copytree(tmp_path / "new", old)
    (old / "0_Transformer").mkdir()
    for path in list(old.iterdir()):
        if path.is_file() and path.name != "modules.json" and not path.name.startswith("config_sentence"):
            shutil.move(path, old / "0_Transformer" / path.name)
    modules = json.loads((old / "modules.json").read_text())
    modules[0] |= {"path": "0_Transformer", "type": "sentence_transformers.models.Transformer"}
    (old / "modules.json").write_text(json.dumps(modules))
    np.testing.assert_array_equal(bvl.AutoModel.from_pretrained(old).encode("a cat"), plain.encode("a cat"))
    expected = bvl.AutoModel.from_pretrained(clip).encode(["a cat", pictures.photo(50, 40)])
    for name in ("0_CLIPModel", ""):
        folder = tmp_path / f"clip{name}"
        shutil.copytree(clip, folder / name)
        kind = {"idx": 0, "name": "0", "path": name, "type": "sentence_transformers.models.CLIPModel"}
        (folder / "modules.json").write_text(json.dumps([kind]))
        found = bvl.AutoModel.from_pretrained(folder).encode(["a cat", pictures.photo(50, 40)])
        np.testing.assert_array_equal(found, expected)


def test_a_folder_within_a_folder(clip):
    model = bvl.AutoModel.from_pretrained(clip.parent, subfolder="model")
    np.testing.assert_array_equal(model.encode("a cat"), bvl.AutoModel.from_pretrained(clip).encode("a cat"))
    for part in (bvl.AutoTokenizer, bvl.AutoImageProcessor, bvl.AutoProcessor, bvl.CLIPTokenizer, bvl.AutoConfig):
        within = part.from_pretrained(pretrained_model_name_or_path=clip.parent, subfolder="model")
        assert str(within) == str(part.from_pretrained(clip))
    for bad in ("../model", "/model"):
        with pytest.raises(ValueError, match="subfolder: found"):
            bvl.AutoModel.from_pretrained(clip, subfolder=bad)


def test_weights_of_before_the_zip_format(clip, tmp_path):
    shutil.copytree(clip, tmp_path / "old")
    (tmp_path / "old" / "model.safetensors").unlink()
    tensors = {"logit_scale": torch.ones(())}
    torch.save(tensors, tmp_path / "old" / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    with pytest.raises(bvl.CheckpointError, match=r"torch\.save"):
        bvl.AutoModel.from_pretrained(tmp_path / "old")


def test_scores_beside_sentence_transformers():
    """Every function of scores of the same name, of arrays and tensors; values beyond the ranges are at their ends."""
    util = pytest.importorskip("sentence_transformers.util", reason="parity needs sentence-transformers")
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 6, 9)).astype(np.float32)
    for name in ("cos_sim", "dot_score", "euclidean_sim", "manhattan_sim"):
        for function in (name, f"pairwise_{name}"):
            expected = getattr(util, function)(a, b).numpy()
            np.testing.assert_allclose(getattr(bvl, function)(a, b), expected, atol=1e-5, err_msg=function)
            found = getattr(bvl, function)(torch.from_numpy(a), torch.from_numpy(b).to_sparse())
            assert torch.is_tensor(found)
            np.testing.assert_allclose(found.numpy(), expected, atol=1e-5)
        empty = getattr(bvl, name)(a[:0], b)
        assert empty.shape == (0, len(b)) and empty.dtype == np.float32
    np.testing.assert_allclose(bvl.normalize_embeddings(a), util.normalize_embeddings(torch.from_numpy(a)), atol=1e-6)
    for precision in ("int8", "uint8", "binary", "ubinary"):
        expected = util.quantize_embeddings(3 * a, precision, calibration_embeddings=b)
        np.testing.assert_array_equal(bvl.quantize_embeddings(3 * a, precision, calibration_embeddings=b), expected)


# ---- empty work, neutral arguments


def test_empty_work(default, clip):
    assert default.encode([]).shape == (0, 384) and default.encode([]).dtype == np.float32
    assert bvl.AutoModel.from_pretrained(clip).encode([], normalize_embeddings=True).shape == (0, 32)


def test_arguments_that_change_nothing(clip):
    model = bvl.AutoModel.from_pretrained(
        clip, device_map="auto", attn_implementation="sdpa", torch_dtype=torch.float16, low_cpu_mem_usage=True
    )
    assert model.dtype == "float32"
    np.testing.assert_array_equal(
        model.encode("a cat", device="cpu"), bvl.AutoModel.from_pretrained(clip).encode("a cat")
    )
    pixels = model.image_processor(pictures.photo(50, 40), do_convert_rgb=True, input_data_format=None)["pixel_values"]
    features = model.get_image_features(pixels, interpolate_pos_encoding=False)
    np.testing.assert_array_equal(features, model.get_image_features(pixels))
    with pytest.raises(ValueError, match="interpolate_pos_encoding: found True"):
        model.get_image_features(pixels, interpolate_pos_encoding=True)
    with pytest.raises(ValueError, match="device"):
        bvl.AutoModel.from_pretrained(clip, device_map="cuda")
    text = bvl.pipeline("zero-shot-image-classification", model, tokenizer=model.tokenizer, image_processor=str(clip))
    assert text(pictures.photo(50, 40), candidate_labels=["a"])[0]["label"] == "a"
    with pytest.raises(ValueError, match="tokenizer: found"):
        bvl.pipeline(
            "zero-shot-image-classification", model, tokenizer=bvl.AutoTokenizer.from_pretrained("beyond-vl-model")
        )
