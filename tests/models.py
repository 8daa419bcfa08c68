"""Small checkpoints written without torch, for tests that need a model and not its numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from beyondvl.config import Config
from beyondvl.families.registry import find_family
from beyondvl.reader import BATCH_NORM_PARTS
from beyondvl.spec import BatchNormConv, Block, Ref, refs
from beyondvl.weights import save_safetensors

TINY_CLIP = {
    "model_type": "clip",
    "architectures": ["CLIPModel"],
    "projection_dim": 32,
    "text_config": {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 3,
                    "vocab_size": 600, "max_position_embeddings": 20, "eos_token_id": 599},
    "vision_config": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
                      "image_size": 48, "patch_size": 8},
}  # fmt: skip


def in_order(spec) -> list[Ref | BatchNormConv]:
    """The parameters of an encoder, each block's in the order the seeds of the tests were chosen for."""
    found = []
    for field in (spec.stem, *spec.layers, spec.steps, spec.stem_norm, spec.context):
        if isinstance(field, Block) and field.ffn:
            block, ffn = field, field.ffn
            field = (field.qkv, field.out, ffn.fc1, ffn.fc2, field.norm1, ffn.norm, field.cross, field.query_ffn)
            field += (block.head_norms, block.post_norm, ffn.post_norm)
        found += refs(field)
    return found


def tensors(config: dict, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights for every parameter of a config."""
    rng = np.random.default_rng(seed)
    family = find_family(Config(config))
    out: dict[str, np.ndarray] = {}

    def add(name, shape, scale):
        out.setdefault(name, (rng.normal(size=shape) * scale).astype(np.float32))

    head = family.heads.get(config.get("architectures", [""])[0])
    for build in (head or family).towers.values():
        for r in in_order(build(Config(config))):
            if isinstance(r, BatchNormConv):
                add(r.weight.names[0], r.weight.shape, (2.0 / np.prod(r.weight.shape[1:])) ** 0.5)
                for part in BATCH_NORM_PARTS:
                    out[f"{r.norm}.{part}"] = np.float32(rng.uniform(0.5, 1.5, r.weight.shape[0]))
                continue
            if r.scaled_by:
                out[r.scaled_by] = np.full(r.shape[0], 1.5, np.float32)
            for name, rows in zip(r.names, r.stored_rows, strict=True):
                if not name:  # stands for zeros
                    continue
                shape = (rows, *r.shape[1:])
                if r.stored_as == "time":
                    shape = (rows, r.shape[3], r.shape[2])
                scale = 1.0 / max(1, np.prod(shape[1:])) ** 0.5 if len(shape) > 1 and "embedding" not in name else 0.5
                add(name, shape[::-1] if r.transpose else shape, scale)
    for name in (family.scale, family.bias_of(Config(config))):
        if name and (len(family.towers) == 2 or head):
            out[name] = np.array(1.0, np.float32)
    return out


def write(folder: Path, config: dict = TINY_CLIP, **files) -> Path:
    """A model folder; `files` are further JSON files by stem."""
    folder.mkdir(parents=True, exist_ok=True)
    save_safetensors(folder / "model.safetensors", tensors(config))
    for name, content in {"config": config, **files}.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def inputs(config: dict = TINY_CLIP, batch: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    text, vision = config["text_config"], config["vision_config"]
    ids = rng.integers(1, text["vocab_size"] - 1, (batch, 9))
    ids[:, -1] = text["vocab_size"] - 1
    size = vision["image_size"]
    pixels = rng.normal(size=(batch, 3, size, size)).astype(np.float32)
    return {"input_ids": ids, "attention_mask": np.ones_like(ids), "pixel_values": pixels}
