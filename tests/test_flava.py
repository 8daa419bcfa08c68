"""FLAVA against transformers, and the C-Former in one stream: any subset of inputs, each with its mask."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from parity import close, unit_gain
from safetensors.torch import load_file, save_file

import beyondvl as bvl

torch = pytest.importorskip("torch", reason="parity needs torch and transformers: pip install 'beyondvl[test]'")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install 'beyondvl[test]'")

ODD = {"hidden_size": 36, "num_attention_heads": 3, "intermediate_size": 50, "num_hidden_layers": 2}
# name -> image, text and multimodal sections
ROWS = {
    "published widths": ({"num_hidden_layers": 2, "image_size": 64}, {"num_hidden_layers": 2, "vocab_size": 300},
                         {"num_hidden_layers": 2}),
    "odd": (ODD | {"image_size": 45, "patch_size": 14}, ODD | {"hidden_size": 40, "num_attention_heads": 5, "vocab_size": 300},
            ODD | {"hidden_size": 24, "num_attention_heads": 2, "use_cls_token": False}),
}  # fmt: skip
ROWS["one width"] = (ODD | {"image_size": 45, "patch_size": 14}, ODD | {"vocab_size": 300}, ODD)
_made: dict = {}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(reference, folder, pixel_values, input_ids, attention_mask) of a class and a row."""

    def make(cls, name):
        if (cls, name) not in _made:
            image, text, fusion = ROWS[name]
            torch.manual_seed(0)
            config = transformers.FlavaConfig(image_config=image, text_config=text, multimodal_config=fusion,
                                              projection_dim=image.get("hidden_size", 768),
                                              hidden_size=fusion.get("hidden_size", 768))  # fmt: skip
            model = getattr(transformers, cls)(config).eval()
            unit_gain(model, gain=1.5, tables=0.5, bias=0.05, table_names=("embedding", "cls_token"))
            folder = tmp_path_factory.mktemp("flava")
            model.save_pretrained(folder)
            size = config.image_config.image_size
            ids = torch.randint(1, 290, (3, 7))
            mask = torch.ones_like(ids)
            mask[1, 4:] = 0
            _made[cls, name] = model, folder, torch.randn(3, 3, size, size), ids, mask
        return _made[cls, name]

    return make


@pytest.mark.parametrize("name", ROWS)
def test_model(isa, made, name):
    model, folder, pixels, ids, mask = made("FlavaModel", name)
    ours = bvl.AutoModel.from_pretrained(folder, strict=True)
    types = (ids % 2).long()
    with torch.no_grad():
        expected = model(ids, pixels, mask, types)
    found = ours(ids, pixels, mask, types)
    keep = mask.numpy().astype(bool)
    images = found.image_embeddings.shape[1] + (name != "odd")
    both = np.concatenate([np.ones((3, images), bool), keep], 1)
    for part, kept in (("image", None), ("text", keep), ("multimodal", both)):
        close(found[f"{part}_embeddings"], expected[f"{part}_embeddings"], kept)
        close(found[f"{part}_output"].pooler_output, expected[f"{part}_output"].pooler_output)
        assert np.ptp(found[f"{part}_output"].pooler_output.numpy(), axis=0).max() > 1e-2, "all look alike"
    with torch.no_grad():
        features = (
            model.get_image_features(pixels).pooler_output,
            model.get_text_features(ids, mask).pooler_output,
        )
    close(ours.get_image_features(pixels), features[0])
    close(ours.get_text_features(ids, mask), features[1], keep)
    with torch.no_grad():
        first = model.get_image_features(pixels).pooler_output[:, 0].numpy()
    close(ours.run_tower("vision", {"pixel_values": pixels}, ["embeds"])["embeds"], first)


PARTS = {"pairs": ("input_ids", "pixel_values"), "texts": ("input_ids",), "pictures": ("pixel_values",)}


@pytest.mark.parametrize("skip", [None, False])
@pytest.mark.parametrize("part", PARTS)
def test_pretraining(isa, made, part, skip):
    """FlavaForPreTraining keeps the model under a prefix, and a codebook that is never read."""
    model, folder, pixels, ids, mask = made("FlavaForPreTraining", "one width")
    ours = bvl.AutoModel.from_pretrained(folder)
    masked = ids.clone()
    masked[:, 2] = 103
    given = {"input_ids": ids, "pixel_values": pixels}
    given = {name: given[name] for name in PARTS[part]} | {"attention_mask": mask}
    if "input_ids" in given:
        given |= {"input_ids_masked": masked}
    with torch.no_grad():
        expected = model(**given, return_loss=False, skip_unmasked_multimodal_encoder=skip)
    found = ours(**given, return_loss=False, skip_unmasked_multimodal_encoder=skip)
    keep = mask.numpy().astype(bool)
    images = found.image_embeddings.shape[1] + 1 if "image_embeddings" in found else 0
    kept = {"text": keep, "multimodal": np.concatenate([np.ones((3, images), bool), keep], 1)}
    seen = set()
    for name, value in expected.items():
        if value is None or name == "loss_info":
            continue
        seen.add(name)
        rows = kept.get(name.split("_")[0]) if name.endswith("embeddings") else None
        rows = keep if name in ("mlm_logits", "mmm_text_logits") else rows
        if name.endswith("output"):
            close(found[name].pooler_output, value.pooler_output)
        else:
            close(found[name], value, rows)
    assert seen == set(found)
    logits = {"pairs": 5, "texts": 1, "pictures": 1}[part]
    assert sum(name.endswith("logits") or "logits_per" in name for name in seen) == logits


def test_pretraining_by_place_and_what_it_lacks(made):
    _, folder, pixels, ids, mask = made("FlavaForPreTraining", "one width")
    ours = bvl.FlavaForPreTraining.from_pretrained(folder)
    named = ours(input_ids=ids, pixel_values=pixels, attention_mask=mask)
    placed = ours(ids, None, pixels, None, mask)
    assert all(torch.equal(placed[n], named[n]) for n in named if n.endswith("logits"))
    for name in ("bool_masked_pos", "mlm_labels", "codebook_pixel_values"):
        with pytest.raises(ValueError, match=f"{name}: found .*, which is not available here"):
            ours(input_ids=ids, **{name: ids})
    with pytest.raises(ValueError, match="input_ids_masked: given without input_ids"):
        ours(input_ids_masked=ids, pixel_values=pixels)


@pytest.mark.parametrize("whole", [True, False])
def test_towers_alone(isa, made, tmp_path, whole):
    """Out of a whole checkpoint, and as each class saves itself."""
    model, folder, pixels, ids, mask = made("FlavaModel", "odd")
    parts = {"FlavaImageModel": (model.image_model, {"pixel_values": pixels}),
             "FlavaTextModel": (model.text_model, {"input_ids": ids, "attention_mask": mask}),
             "FlavaMultimodalModel": (model.multimodal_model, {"hidden_states": torch.randn(3, 11, 24)})}  # fmt: skip
    keep = mask.numpy().astype(bool)
    for name, (part, inputs) in parts.items():
        place = folder if whole else tmp_path / name
        if not whole:
            part.save_pretrained(place)
            assert type(bvl.AutoModel.from_pretrained(place)).__name__ == name
        ours = getattr(bvl, name).from_pretrained(place, strict=True)
        with torch.no_grad():
            expected = part(**inputs)
        found = ours(**inputs)
        close(found.last_hidden_state, expected.last_hidden_state, keep if "input_ids" in inputs else None)
        close(found.pooler_output, expected.pooler_output)


def test_masks_of_the_stream_alone(made):
    """A mask may count the class token, as transformers' does, which is never hidden."""
    model, folder, *_ = made("FlavaModel", "one width")
    ours = bvl.FlavaMultimodalModel.from_pretrained(folder)
    states, mask = torch.randn(3, 5, 36), torch.ones(3, 6)
    mask[1, 3:] = 0
    with torch.no_grad():
        expected = model.multimodal_model(states, attention_mask=mask).pooler_output
    close(ours(states, mask).pooler_output, expected)
    assert torch.equal(ours(states, mask[:, 1:]).pooler_output, ours(states, mask).pooler_output)
    with pytest.raises(ValueError, match="attention_mask: found 0 for the class token, expected 1"):
        ours(states, 1 - mask)
    with pytest.raises(ValueError, match="hidden_states: not given"):
        ours()
    for wrong, message in ((np.zeros(4), r"hidden_states: found shape \(4,\), expected \(4, n, 36\)"),
                           ([[1, 2], [3]], "hidden_states: found what makes no array"),
                           (5.0, r"hidden_states: found shape \(1,\), expected \(1, n, 36\)")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            ours(wrong, np.ones((2, 5), np.int64))
    with pytest.raises(ValueError, match=r"b: found shape \(2, 3, 36\), expected \(0, n, 36\)"):
        ours.fuse({"a": np.zeros((0, 3, 36), np.float32), "b": np.zeros((2, 3, 36), np.float32)})


def test_a_checkpoint_without_its_scale(made, tmp_path):
    """Only contrast needs it; a class that does names the one that does not."""
    folder = made("FlavaForPreTraining", "one width")[1]
    shutil.copytree(folder, tmp_path / "copy")
    weights = load_file(folder / "model.safetensors")
    del weights["flava.logit_scale"]
    save_file(weights, tmp_path / "copy" / "model.safetensors")
    with pytest.raises(bvl.CheckpointError, match=r"logit_scale is missing.*all that FlavaModel needs: use FlavaModel"):
        bvl.FlavaForPreTraining.from_pretrained(tmp_path / "copy")
    _, _, pixels, ids, mask = made("FlavaForPreTraining", "one width")
    found = bvl.FlavaModel.from_pretrained(tmp_path / "copy")(ids, pixels, mask)
    assert torch.equal(found.multimodal_embeddings, bvl.FlavaModel.from_pretrained(folder)(ids, pixels, mask)[4])
    whole = bvl.FlavaForPreTraining.from_pretrained(folder, strict=True)
    assert whole.logit_scale > 1


def test_a_config_that_names_no_class(made, tmp_path):
    folder = made("FlavaModel", "odd")[1]
    shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((folder / "config.json").read_text())
    del config["architectures"]
    (tmp_path / "copy" / "config.json").write_text(json.dumps(config))
    assert type(bvl.AutoModel.from_pretrained(tmp_path / "copy")).__name__ == "FlavaModel"
    with pytest.raises(bvl.ConfigError, match="mmm_text reads 40 columns, found hidden states of 24; the checkpoint "
                       "has all that FlavaModel needs: use FlavaModel"):  # fmt: skip
        bvl.FlavaForPreTraining.from_pretrained(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", ["odd", "one width"])
def test_any_subset_and_masks(isa, made, name, dtype):
    """What a mask hides changes nothing, bitwise; an item alone is the item in a batch, bitwise."""
    _, folder, _, _, _ = made("FlavaModel", name)
    ours, rng = bvl.AutoModel.from_pretrained(folder, dtype=dtype), np.random.default_rng(0)
    size = ours.tower("fusion").encoder.hidden_size
    lengths = {"text": 5, "image": 9, "video": 12, "audio": 7}
    given = {n: rng.normal(size=(3, k, size)).astype(np.float32) for n, k in lengths.items()}
    masks = {n: np.ones((3, k), np.int64) for n, k in lengths.items()}
    for array in masks.values():
        array[1, 2:4] = 0
    for names in (["audio"], ["text", "video"], ["image", "audio", "text"], list(lengths)):
        found = ours.fuse({n: (given[n], masks[n]) for n in names})
        changed = {n: (np.where(masks[n][..., None] == 0, 9.0, given[n]), masks[n]) for n in names}
        other = ours.fuse(changed)
        assert np.array_equal(found["pooler_output"], other["pooler_output"])
        rows = np.concatenate([np.ones((3, found["last_hidden_state"].shape[1] - sum(lengths[n] for n in names)), bool),
                               *[masks[n] == 1 for n in names]], 1)  # fmt: skip
        assert np.array_equal(found["last_hidden_state"][rows], other["last_hidden_state"][rows])
        seen = ours.fuse({n: given[n] for n in names})
        assert not np.array_equal(found["pooler_output"][1], seen["pooler_output"][1])
        assert np.array_equal(found["pooler_output"][0], seen["pooler_output"][0])
        alone = ours.fuse({n: (given[n][1:2], masks[n][1:2]) for n in names})
        assert np.array_equal(alone["pooler_output"][0], found["pooler_output"][1])


BAD = {
    "none": ({}, "found none"),
    "width": ({"audio": np.ones((2, 3, 5), np.float32)}, r"audio: found shape \(2, 3, 5\), expected \(2, n, 24\)"),
    "batch": ({"text": np.ones((2, 3, 24), np.float32), "video": np.ones((3, 3, 24), np.float32)}, r"video: found shape \(3, 3, 24\)"),
    "mask": ({"text": (np.ones((2, 3, 24), np.float32), np.ones((2, 4), np.int64))}, r"text: found a mask of shape \(2, 4\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_features(made, case):
    _, folder, pixels, ids, _ = made("FlavaModel", "odd")
    ours = bvl.AutoModel.from_pretrained(folder)
    features, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        ours.fuse(features)
    with pytest.raises(ValueError, match="found 3 pictures and 2 texts, expected pairs"):
        ours(ids[:2], pixels)
    with pytest.raises(ValueError, match="features: not given"):
        ours.tower("fusion").program.run({"attention_mask": np.ones((2, 3), np.int64)}, ["pooler_output"], 1)
    assert ours(ids, pixels, skip_multimodal_encoder=True).keys() == {"image_embeddings", "image_output",
                                                                      "text_embeddings", "text_output"}  # fmt: skip
