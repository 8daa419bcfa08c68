"""FLAVA against transformers, and the C-Former in one stream: any subset of inputs, each with its mask."""

from __future__ import annotations

import numpy as np
import pytest
from parity import close, unit_gain

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


def test_matching_head(isa, made):
    """FlavaForPreTraining keeps the model under a prefix, and a codebook that is never read."""
    model, folder, pixels, ids, mask = made("FlavaForPreTraining", "one width")
    ours = bvl.AutoModel.from_pretrained(folder)
    with torch.no_grad():
        expected = model(input_ids=ids, input_ids_masked=ids, pixel_values=pixels, attention_mask=mask,
                         return_loss=False, skip_unmasked_multimodal_encoder=True)  # fmt: skip
    close(ours(ids, pixels, mask).itm_logits, expected.itm_logits)


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
