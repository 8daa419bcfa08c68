"""A family of four modalities with its own classes is one file: made_up_family.py, which no other file of the package
knows of."""

from __future__ import annotations

import json
import sys

import made_up_family
import numpy as np
import pytest

import beyondvl as bvl
import pictures
from beyondvl.config import Config
from beyondvl.families import registry
from beyondvl.models.classes import class_named
from beyondvl.weights import save_safetensors

SECTION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
CONFIG = {
    "model_type": "made-up", "architectures": ["MadeUpModel"], "projection_dim": 24,
    "text_config": SECTION | {"vocab_size": 280, "max_position_embeddings": 20, "eos_token_id": 2},
    "vision_config": SECTION | {"image_size": made_up_family.SIZE, "patch_size": 8},
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Its file among the families', and a checkpoint of random weights."""
    monkeypatch.setitem(sys.modules, "beyondvl.families.made_up", made_up_family)
    monkeypatch.setattr(registry, "MODULES", [*registry.MODULES, "made_up"])
    registry.families.cache_clear()
    rng = np.random.default_rng(0)
    tensors = {"logit_scale": np.float32(2.0).reshape(())}
    for ref in class_named("MadeUpModel", made_up_family.FAMILY).parameters(Config(CONFIG)):
        rows, gain = ref.shape[:1], 1.5 / np.prod(ref.shape[1:]) ** 0.5 if len(ref.shape) > 1 else 0.5
        for name in ref.names:  # q, k and v lie one on top of the other
            shape = tuple(n // len(ref.names) for n in rows) + ref.shape[1:]
            tensors.setdefault(name, rng.normal(0, gain, shape).astype(np.float32))
    save_safetensors(tmp_path / "model.safetensors", tensors)
    letters = [chr(c) for c in range(97, 123)]
    vocab = {
        token: i
        for i, token in enumerate([*letters, *(f"{c}</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"])
    }
    files = {
        "config": CONFIG, "vocab": vocab, "tokenizer_config": {"tokenizer_class": "MadeUpTokenizer"},
        "processor_config": {"processor_class": "MadeUpProcessor",
                             "image_processor": {"image_processor_type": "MadeUpImageProcessor"},
                             "feature_extractor": {"feature_extractor_type": "HumFeatureExtractor"}},
    }  # fmt: skip
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    yield tmp_path
    registry.families.cache_clear()


def test_a_model_of_four_modalities(folder):
    model, processor = bvl.AutoModel.from_pretrained(folder), bvl.AutoProcessor.from_pretrained(folder)
    assert type(model).__name__ == "MadeUpModel" and type(processor).__name__ == "MadeUpProcessor"
    assert model.modalities == ["text", "image", "video", "audio"]
    rng = np.random.default_rng(1)
    pictures_in = [pictures.photo(60, 40, seed=i) for i in range(2)]
    clips = [rng.integers(0, 256, (4, 30, 40, 3), dtype=np.uint8) for _ in range(3)]
    sounds = [(rng.normal(size=500).astype(np.float32), 8_000) for _ in range(2)]
    inputs = processor(text=["a cat", "dogs"], images=pictures_in, videos=clips, audio=sounds, padding=True,
                       return_tensors="np")  # fmt: skip
    assert set(inputs) == {"input_ids", "attention_mask", "pixel_values", "pixel_values_videos", "input_features"}
    assert inputs["pixel_values_videos"].shape == (3, 2, 3, 16, 16)
    outputs = model(**inputs)
    assert outputs.logits_per_image.shape == (2, 2) and outputs.logits_per_video.shape == (3, 2)
    assert outputs.logits_per_audio.shape == (2, 2) and outputs.audio_embeds.shape == (2, 24)
    names = {"text": "input_ids attention_mask", "image": "pixel_values", "video": "pixel_values_videos",
             "audio": "input_features"}  # fmt: skip
    for kinds in (["text", "audio"], ["image", "video"], ["video"], ["audio", "text", "image"]):
        some = model(**{name: inputs[name] for kind in kinds for name in names[kind].split()})
        for kind in names:
            assert (f"{kind}_embeds" in some) == (kind in kinds)
            if kind in kinds:
                np.testing.assert_array_equal(some[f"{kind}_embeds"], outputs[f"{kind}_embeds"])
    items = ["a cat", pictures_in[0], {"video": clips[0]}, {"audio": sounds[0]}, "dogs"]
    rows = model.encode(items)
    assert rows.shape == (5, 24)
    for row, name, at in zip(rows, ("text", "image", "video", "audio", "text"), (0, 0, 0, 0, 1), strict=True):
        unit = row / np.linalg.norm(row)
        np.testing.assert_allclose(unit, outputs[f"{name}_embeds"][at], atol=2e-5)
    assert np.abs(rows[0] - rows[4]).max() > 0.01 and np.abs(rows[2] - rows[1]).max() > 0.01
