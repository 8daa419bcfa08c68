"""Gemma 4's picture tower (Google, 2026), which its relatives read pictures by.

Traps: pixels from 0 to 1 come as patches with the column and the row of each, and are spread to -1 to 1 by the model;
positions are looked up by column and by row, and turn queries and keys besides: of each head the first half by the
column, the second by the row, each half's columns paired within it. Scores are not scaled, for queries and keys are
normed, and so are values. Every linear may be clipped. Each square of patches becomes one row, of their mean.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from ..config import Config
from ..errors import ConfigError
from ..spec import Block, Encoder, Linear, Norm, PoolPatches, Project, Ref, Step, ref, replace
from ..stems import PatchRowsStem
from .blocks import ACTIVATIONS, llama_block, rms_norm

POSITIONS = "image_position_ids"


def constant(value: float, size: int) -> Ref:
    """So many times a number that no checkpoint holds."""
    return Ref(("",), (size,), plus=value)


def axial_order(head_dim: int) -> list[int]:
    """The columns of a head so that turning one half of it against the other turns each axis by itself: both parts of
    the first axis and of the second change from 1 1 2 2 to 1 2 1 2."""
    quarter = np.arange(head_dim).reshape(4, -1)
    return quarter[[0, 2, 1, 3]].reshape(-1).tolist()


def frequencies(section: Config, head_dim: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """By which rows and columns turn each pair: theta ** (-2 i / half a head)."""
    rope = section.section("rope_parameters")
    kind = rope.get("rope_type", "axial")
    if kind != "axial" or head_dim % 4:
        raise ConfigError(
            f"vision_config: rope_type, head_dim: found {kind!r}, {head_dim}, expected 'axial', a multiple of 4"
        )
    theta, half = rope.number("rope_theta", 100.0, 1e-3, 1e12), head_dim // 2
    powers = np.float32(theta) ** (np.arange(0, half, 2, dtype=np.float32) / np.float32(half))
    turning, still = tuple(float(f) for f in np.float32(1) / powers), (0.0,) * (half // 2)
    return still + turning, turning + still


def block(section: Config, name: str, hidden: int, eps: float) -> Block:
    heads, size = section.integer("num_attention_heads", 12, 1, 1 << 10), section.integer("head_dim", 64, 4, 1 << 12)
    kv_heads = section.integer("num_key_value_heads", 12, 1, 1 << 10)
    if heads % kv_heads:
        raise ConfigError(f"vision_config: {heads} heads and {kv_heads} of keys, expected a divisor")
    made = llama_block(
        name,
        hidden,
        section.integer("intermediate_size", 3072, 1, 1 << 18),
        (heads, kv_heads, size),
        section.choice("hidden_activation", "gelu_pytorch_tanh", ACTIVATIONS),
        lambda parameter: rms_norm(parameter, hidden, eps),
        bias=False,
        post_norms=True,
        clipped=section.boolean("use_clipped_linears", False),
        scale=1.0,
        rotary=1,
        norms_values=True,
        head_norms=tuple(
            ref(f"{name}.self_attn.{part}_norm.weight", size, order=tuple(axial_order(size))) for part in "qk"
        ),
    )
    turned = np.arange((heads + kv_heads) * size).reshape(-1, size)[:, axial_order(size)].reshape(-1)
    order = (*turned.tolist(), *range(len(turned), len(turned) + kv_heads * size))
    return replace(made, qkv=replace(made.qkv, weight=replace(made.qkv.weight, order=order)))


def spread(side: int, inputs: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """Pixels from -1 to 1, and how many patches each picture has down and across; `image_position_ids` (B, N, 2) say
    the column and the row of each, and -1 after the last. Of `side` patches each way a row is made."""
    pixels, places = (inputs.get(name) for name in ("pixel_values", POSITIONS))
    if places is None:
        raise ValueError(f"{POSITIONS}: not given, expected (B, N, 2) integers")
    if places.shape != (*pixels.shape[:2], 2) or not places.size:
        raise ValueError(f"{POSITIONS}: found shape {places.shape}, expected {(*pixels.shape[:2], 2)}, as pixel_values")
    cols, rows = (places.max(1) + 1).T
    index = np.arange(places.shape[1])
    across = np.maximum(cols, 1)[:, None]
    wanted = np.where((index < (cols * rows)[:, None])[..., None], np.stack([index % across, index // across], -1), -1)
    if (wrong := (places != wanted).any((1, 2)) | (rows < 1)).any():
        raise ValueError(
            f"{POSITIONS}[{wrong.argmax()}]: expected the column and the row of each patch, row by row, then -1, -1"
        )
    if (uneven := (rows % side != 0) | (cols % side != 0)).any():
        i = int(uneven.argmax())
        raise ValueError(f"{POSITIONS}[{i}]: found {rows[i]} x {cols[i]} patches, expected multiples of {side}")
    pixels = 2 * (pixels - np.float32(0.5))
    return {"pixel_values": pixels, "spatial_shapes": np.ascontiguousarray(np.stack([rows, cols], 1))}


def vision(config: Config, text_size: int) -> Encoder:
    """A picture's rows among those of a text (soft tokens)."""
    section, tower = config.section("vision_config"), "vision_tower"
    hidden, eps = section.integer("hidden_size", 768, 1, 1 << 16), section.number("rms_norm_eps", 1e-6, 0.0, 1.0)
    patch, places = (
        section.integer("patch_size", 16, 1, 256),
        section.integer("position_embedding_size", 10240, 1, 1 << 16),
    )
    side, embedder, factor = section.integer("pooling_kernel_size", 3, 1, 64), f"{tower}.patch_embedder", hidden**0.5
    gain, offset = constant(factor, hidden), None
    if section.boolean("standardize", False):
        gain = ref(f"{tower}.std_scale", hidden, scale=factor)
        offset = ref(f"{tower}.std_bias", hidden, scale=-1.0, scaled_by=f"{tower}.std_scale")
    projection = ref("embed_vision.embedding_projection.weight", text_size, hidden)
    return Encoder(
        hidden_size=hidden,
        stem=PatchRowsStem(
            weight=ref(f"{embedder}.input_proj.weight", hidden, 3 * patch * patch),
            bias=None,
            position=ref(f"{embedder}.position_embedding_table", 2, places, hidden),
            grid=(places, places),
            per_axis=True,
            frequencies=frequencies(section, section.integer("head_dim", 64, 4, 1 << 12)),
        ),
        layers=tuple(
            block(section, f"{tower}.encoder.layers.{i}", hidden, eps)
            for i in range(section.integer("num_hidden_layers", 16, 1, 1024))
        ),
        steps=(
            Step("squares", "hidden", PoolPatches(side, gain, offset)),
            Step("normed_squares", "squares", Norm(constant(1.0, hidden), None, eps)),
            Step("features", "normed_squares", Project(Linear(projection))),
        ),
        prepare=functools.partial(spread, side),
    )
