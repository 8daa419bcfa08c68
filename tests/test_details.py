"""Small promises that were once broken: each test names what used to happen."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from test_old_keys import BERT

import beyondvl as bvl
import beyondvl.hub
import models
import pictures
from beyondvl.cli import main
from beyondvl.models.model import open_model

MODULES = [{"type": "sentence_transformers.models.Transformer", "path": ""},
           {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]  # fmt: skip


@pytest.fixture(scope="module")
def default():
    return bvl.AutoModel.from_pretrained("beyond-vl-model")


def test_a_picture_without_an_extension_is_a_picture(default, tmp_path):
    """It was embedded as the text of its name."""
    path = tmp_path / "noext"
    shutil.copy(pictures.EXAMPLES / "cat.jpg", path)
    classify = bvl.pipeline("zero-shot-image-classification", model=default)
    assert classify(str(path), candidate_labels="a cat, a cup of coffee")[0]["label"] == "a cat"
    for bad in ("/no/such/picture", "http://example.com/cat"):
        with pytest.raises(bvl.ImageError):
            classify(bad, candidate_labels=["a cat"])
    with pytest.raises(ValueError, match="modality: found 'sound'"):
        default.encode("a", modality="sound")
    with pytest.raises(ValueError, match="batch_size: found 0"):
        default.encode("a", batch_size=0)


def test_convert_keeps_pooling_and_refuses_a_folder_with_files(tmp_path, capsys):
    """The copy of a CLS-pooling encoder pooled by mean."""
    folder = models.write(tmp_path / "a", BERT, modules=MODULES)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    assert main(["convert", str(folder), str(tmp_path / "b")]) == 0
    assert open_model(tmp_path / "b", "", {})[2].sentence_transformers.pooling == "first"
    assert main(["convert", str(folder), str(folder)]) == 1
    assert "expected a new or empty folder" in capsys.readouterr().err


@pytest.mark.parametrize("path", ["../x", "/etc", "a/b", ""])
def test_pooling_folder_stays_inside(tmp_path, path):
    folder = models.write(tmp_path / "a", BERT, modules=[MODULES[0], {**MODULES[1], "path": path}])
    with pytest.raises(bvl.ConfigError, match="plain folder name"):
        open_model(folder, "", {})


def test_missing_pooling_config_is_an_error(tmp_path):
    folder = models.write(tmp_path / "a", BERT, modules=MODULES)
    (folder / "1_Pooling").mkdir()
    with pytest.raises(bvl.ConfigError, match="is missing"):
        open_model(folder, "", {})


def test_positional_arguments_in_either_order(default):
    """transformers 5 takes images first, older versions took text first."""
    image = pictures.photo()
    for arguments in ((image, ["a cat"]), (["a cat"], image)):
        inputs = default.processor(*arguments, return_tensors="np")
        assert set(inputs) >= {"input_ids", "pixel_values"}
    assert set(default.processor(image, return_tensors="np")) == {"pixel_values"}
    with pytest.raises(TypeError, match="do_nothing"):
        default.processor(images=image, do_nothing=False)


def test_image_processor_files(tmp_path):
    """The newer file comes first; an unknown kind is refused instead of getting CLIP's settings; a file does not
    choose decoders or threads."""
    size = {"size": {"height": 20, "width": 20}, "do_center_crop": False, "decoder": "stb", "num_threads": 5000,
            "image_processor_type": "CLIPImageProcessor"}  # fmt: skip
    (tmp_path / "preprocessor_config.json").write_text('{"size": 50}')
    (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": size}))
    found = bvl.AutoImageProcessor.from_pretrained(tmp_path)
    assert found.size == {"height": 20, "width": 20} and found.decoder == "auto" and found.num_threads < 5000
    for bad, message in (({"image_processor_type": "ViTImageProcessor"}, "image_processor_type: found 'ViTImageProcessor'"),
                         ({"rescale_factor": "x"}, "rescale_factor"), ({"image_mean": [10**400] * 3}, "image_mean"),
                         ({"size": {"longest_edge": 3}}, "size"), ({"resample": 9}, "resample")):  # fmt: skip
        (tmp_path / "processor_config.json").write_text(json.dumps({"image_processor": {**size, **bad}}))
        with pytest.raises(bvl.ConfigError, match=message):
            bvl.AutoImageProcessor.from_pretrained(tmp_path)
    (tmp_path / "processor_config.json").write_text(
        '{"image_processor": {"image_processor_type": "Siglip2ImageProcessor", "max_num_patches": 100}}'
    )
    found = bvl.AutoImageProcessor.from_pretrained(tmp_path)
    assert (found.max_num_patches, found.patch_size) == (100, 16)
    with pytest.raises(bvl.ConfigError, match="max_num_patches: 16384 patches of 256 x 256 pixels, expected 89478485"):
        found(pictures.photo(), max_num_patches=16384, patch_size=256)


def test_open_clip_folders(tmp_path):
    """A folder with only OpenCLIP's files gives a whole processor; a timm config beside them does not confuse it."""
    from test_threads import OPEN_CLIP

    folder = models.write(tmp_path / "m", OPEN_CLIP)
    (folder / "model.safetensors").rename(folder / "open_clip_model.safetensors")
    text = OPEN_CLIP["model_cfg"]["text_cfg"] | {"hf_tokenizer_name": "bert-base-uncased"}
    config = {"model_cfg": OPEN_CLIP["model_cfg"] | {"text_cfg": text}, "preprocess_cfg": {"resize_mode": "squash"}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    (folder / "config.json").write_text('{"architecture": "vit_base"}')
    shutil.copy(bvl.hub.shipped_folder("beyond-vl-model") / "tokenizer.json", folder)
    processor = bvl.AutoProcessor.from_pretrained(folder)
    inputs = processor(images=pictures.photo(), return_tensors="np")
    assert inputs["pixel_values"].shape == (1, 3, 32, 32)
    assert bvl.AutoModel.from_pretrained(folder)(**inputs).image_embeds.shape == (1, 24)


@pytest.mark.filterwarnings("ignore:.*mostly unknown")
def test_tokenizer_settings_beside_a_tokenizer_json(tmp_path):
    """do_lower_case beside a lower-casing tokenizer.json was ignored."""
    shutil.copy(bvl.hub.shipped_folder("beyond-vl-model") / "tokenizer.json", tmp_path)
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    cased = bvl.AutoTokenizer.from_pretrained(tmp_path)
    assert cased.tokenize("The cat") != cased.tokenize("the cat")
    transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install 'beyondvl[test]'")
    reference = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert list(cased("The Cat")["input_ids"]) == list(reference("The Cat")["input_ids"])


def test_sentence_encoders_cut_where_sentence_transformers_cuts(tmp_path, default):
    folder = models.write(tmp_path / "m", {**BERT, "vocab_size": 30522, "max_position_embeddings": 64})
    shutil.copy(bvl.hub.shipped_folder("beyond-vl-model") / "tokenizer.json", folder)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 10}')
    model = bvl.AutoModel.from_pretrained(folder)
    long, cut = "one two three " * 30, "one two three one two three one two"
    np.testing.assert_array_equal(model.encode(long), model.encode(cut))


def test_jpeg_turned_by_xmp_is_left_to_pillow():
    """simplejpeg knows no XMP: such a file came out unturned."""
    plain = pictures.encoded(pictures.photo(60, 40), "JPEG")
    note = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description tiff:Orientation="6"/></rdf:RDF></x:xmpmeta>'
    data = plain[:2] + b"\xff\xe1" + (len(note) + 2).to_bytes(2, "big") + note + plain[2:]
    np.testing.assert_array_equal(bvl.load_image(data), bvl.load_image(data, "pillow"))
