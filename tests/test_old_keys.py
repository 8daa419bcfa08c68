"""Checkpoints as older library versions wrote them: other prefixes, stored buffers, other parameter names.

The lists below are the published differences; each is applied to a full set of weights, which must then load under
strict=True and give the same numbers.
"""

from __future__ import annotations

import numpy as np
import pytest

import beyondvl as bvl
import models
from beyondvl.weights import save_safetensors
from test_threads import CONFIGS as FAMILIES

BERT = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 48, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 3, "vocab_size": 90, "max_position_embeddings": 16}  # fmt: skip
CONFIGS = {**FAMILIES, "bert": BERT}


def positions(n):
    return np.arange(n, dtype=np.int64)[None]


def old_bert(tensors):
    """Version 2 and before: `bert.` prefix, gamma and beta, the pretraining heads."""
    out = {}
    for name, t in tensors.items():
        name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
        out[f"bert.{name}"] = t
    heads = ("cls.predictions.bias", "cls.predictions.transform.dense.weight", "cls.seq_relationship.weight")
    return out | {name: np.ones(3, np.float32) for name in heads}


OLD = {
    # transformers 4.0 to 4.30: position ids were persistent buffers
    "clip 4.0": ("clip", lambda t: {**t, "text_model.embeddings.position_ids": positions(20),
                                    "vision_model.embeddings.position_ids": positions(37)}),
    "siglip 4.37": ("siglip", lambda t: {**t, "text_model.embeddings.position_ids": positions(16),
                                         "vision_model.embeddings.position_ids": positions(49)}),
    "chinese_clip 4.25": ("chinese_clip", lambda t: {**t, "text_model.embeddings.position_ids": positions(20),
                                                     "text_model.embeddings.token_type_ids": positions(20),
                                                     "vision_model.embeddings.position_ids": positions(5),
                                                     "text_model.pooler.dense.weight": np.ones((48, 48), np.float32),
                                                     "text_model.pooler.dense.bias": np.ones(48, np.float32)}),
    "bert 4.0": ("bert", lambda t: {**t, "embeddings.position_ids": positions(16)}),
    "bert 2.0": ("bert", old_bert),
    "bert without pooler": ("bert", lambda t: {n: v for n, v in t.items() if not n.startswith("pooler")}),
    "sentence-transformers 0.4": ("bert", lambda t: {f"0.auto_model.{n}": v for n, v in t.items()}),
    # OpenCLIP trained under DistributedDataParallel; the causal mask stored as a buffer; custom text tower
    "open_clip module.": ("open_clip", lambda t: {f"module.{n}": v for n, v in t.items()}),
    "open_clip attn_mask": ("open_clip", lambda t: {**t, "attn_mask": np.zeros((12, 12), np.float32)}),
    "open_clip text.": ("open_clip", lambda t: {n if n.startswith("visual") or n == "logit_scale" else f"text.{n}": v
                                                for n, v in t.items()}),
    "efficientnet_lite with counters": ("efficientnet_lite", lambda t: {**t, "_bn0.num_batches_tracked": positions(1)[0]}),
}  # fmt: skip


def run(model, config):
    if config["model_type"] == "bert":
        return model(input_ids=np.arange(14).reshape(2, 7) + 3).last_hidden_state
    if config["model_type"] == "efficientnet_lite":
        return model(pixel_values=np.linspace(-1, 1, 3 * 64 * 64, dtype=np.float32).reshape(1, 3, 64, 64)).pooler_output
    if config["model_type"] == "open_clip":
        pixels = np.linspace(-1, 1, 3 * 32 * 32, dtype=np.float32).reshape(1, 3, 32, 32)
        return model(pixel_values=pixels, input_ids=np.arange(9)[None]).logits_per_image
    return model(**models.inputs(config)).logits_per_image


@pytest.mark.parametrize("name", OLD)
def test_old_keys(tmp_path, name):
    family, change = OLD[name]
    config = CONFIGS[family]
    expected = run(bvl.AutoModel.from_pretrained(models.write(tmp_path, config), strict=True), config)
    save_safetensors(tmp_path / "model.safetensors", change(models.tensors(config)))
    found = run(bvl.AutoModel.from_pretrained(tmp_path, strict=True), config)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("family", ["clip", "siglip", "chinese_clip"])
@pytest.mark.parametrize("prefix", [True, False])
def test_vision_tower_with_and_without_its_prefix(tmp_path, family, prefix):
    """transformers 4 saves a vision tower under `vision_model.`, transformers 5 without it."""
    config = CONFIGS[family]
    section = {**config["vision_config"], "model_type": f"{family}_vision_model"}
    whole = bvl.AutoModel.from_pretrained(models.write(tmp_path / "whole", config))
    tensors = {n: t for n, t in models.tensors(config).items() if n.startswith("vision_model.")}
    if not prefix:
        tensors = {n.removeprefix("vision_model."): t for n, t in tensors.items()}
    name = {"clip": "CLIPVisionModel", "siglip": "SiglipVisionModel", "chinese_clip": "ChineseCLIPVisionModel"}[family]
    models.write(tmp_path / "tower", config | {"model_type": family})
    (tmp_path / "tower" / "config.json").write_text(__import__("json").dumps({**section, "architectures": [name]}))
    save_safetensors(tmp_path / "tower" / "model.safetensors", tensors)
    tower = bvl.AutoModel.from_pretrained(tmp_path / "tower", strict=True)
    assert type(tower).__name__ == name
    pixels = models.inputs(config)["pixel_values"]
    expected = whole.vision_model(pixel_values=pixels)
    for name in ("last_hidden_state", "pooler_output"):
        np.testing.assert_array_equal(tower(pixel_values=pixels)[name], expected[name])
