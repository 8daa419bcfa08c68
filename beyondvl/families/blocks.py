"""Specs that several families share: linears, norms and blocks by the names transformers gives their parameters."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..config import Config
from ..errors import ConfigError
from ..spec import (
    AttentionPool,
    BatchNormConv,
    Block,
    Clip,
    FeedForward,
    Linear,
    Norm,
    Project,
    Ref,
    Spec,
    Step,
    ref,
    replace,
)

ACTIVATIONS = ("quick_gelu", "gelu", "gelu_pytorch_tanh", "relu", "silu")


def linear(
    name: str,
    out_features: int,
    in_features: int,
    bias: bool = True,
    optional: bool = False,
    scaled_by: str | None = None,
    clipped: bool = False,
) -> Linear:
    """`name`.weight [out, in] and `name`.bias; what they give is multiplied by the elements of `scaled_by`."""
    more: dict[str, Any] = {"optional": optional, "scaled_by": scaled_by}
    weight = ref(f"{name}.weight", out_features, in_features, **more)
    return Linear(weight, ref(f"{name}.bias", out_features, **more) if bias else None, clip([name], clipped))


def clip(names: list[str], clipped: bool) -> Clip | None:
    """The bounds of linears, `name`.input_min and so on, where they have such."""
    bounds = ("input_min", "input_max", "output_min", "output_max")
    return Clip(*(ref(tuple(f"{n}.{bound}" for n in names), len(names)) for bound in bounds)) if clipped else None


def prediction_head(
    name: str, src: str, dst: str, hidden: int, vocab: int, activation: str, eps: float, words: str | None = None
) -> tuple[Step, ...]:
    """BERT's head over a vocabulary: a linear with its activation, a norm, scores, tied to the table `words` if any."""
    bias = ref(f"{name}.decoder.bias", vocab, tied=f"{name}.bias")
    logits, made = Linear(ref(f"{name}.decoder.weight", vocab, hidden, tied=words), bias), f"{dst}_transform"
    return (
        Step(made, src, Project(linear(f"{name}.transform.dense", hidden, hidden), activation)),
        Step(made, made, norm(f"{name}.transform.LayerNorm", hidden, eps)),
        Step(dst, made, Project(logits, as_blocks=True)),
    )


def stacked(
    names: list[str],
    out_features: int | list[int],
    in_features: int,
    bias: bool | list[bool] = True,
    clipped: bool = False,
) -> Linear:
    """Several linears of the same input as one: rows in the order of the names, `out_features` of each or of all, and
    whether each or all have a bias."""
    counts = [out_features] * len(names) if isinstance(out_features, int) else out_features
    more = {} if len(set(counts)) == 1 else {"row_counts": tuple(counts)}
    weight = ref(tuple(f"{n}.weight" for n in names), sum(counts), in_features, **more)
    biased = [bias] * len(names) if isinstance(bias, bool) else bias
    biases = tuple(f"{name}.bias" if has else "" for name, has in zip(names, biased, strict=True))
    return Linear(weight, ref(biases, sum(counts), **more) if any(biased) else None, clip(names, clipped))


def norm(name: str, size: int, eps: float) -> Norm:
    return Norm(ref(f"{name}.weight", size), ref(f"{name}.bias", size), eps)


def rms_norm(name: str, size: int, eps: float) -> Norm:
    return Norm(ref(f"{name}.weight", size), None, eps)


def rope_frequencies(rope: Config, head_dim: int, theta: float) -> tuple[float, ...]:
    """Of each pair of a head's columns: theta ** (-2 i / head_dim), divided by the factor of a linear scaling."""
    theta, kind = rope.number("rope_theta", theta, 1e-3, 1e12), rope.get("rope_type") or rope.get("type") or "default"
    if kind not in ("default", "linear"):
        raise ConfigError(f"text_config: rope_type: found {kind!r}, expected one of default, linear")
    if kind == "linear" and rope.get("factor") is None:
        raise ConfigError("text_config: rope_parameters: factor is missing, expected it beside rope_type linear")
    factor = rope.number("factor", 1.0, 1e-3, 1e6) if kind == "linear" else 1.0
    powers = np.float32(theta) ** (np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim))
    return tuple(float(f) for f in np.float32(1) / powers / np.float32(factor))


def packed_rows(name: str, size: int, first: int, parts: int, in_features: int | None = None) -> Ref:
    """`parts` blocks of `size` rows of a packed q, k, v parameter, from block `first` on."""
    shape = (size * parts,) if in_features is None else (size * parts, in_features)
    return ref(name, *shape, rows=(size * first, size * (first + parts)), packed_rows=3 * size)


def square_picture(section: Config, image: int, patch: int, where: str = "vision_config") -> tuple[int, int]:
    """image_size and patch_size of a square picture cut into square patches, checked against each other."""
    image, patch = section.integer("image_size", image, 1, 1 << 13), section.integer("patch_size", patch, 1, 1 << 10)
    if patch > image:
        raise ConfigError(f"{where}: patch_size {patch} is larger than image_size {image}")
    return image, patch


def squares(height: int, width: int, side: int, by_columns: bool = False) -> tuple[int, ...]:
    """The order of a grid's rows by which each square of `side` lies together, line by line; within a square line by
    line too, or column by column."""
    places = np.arange(height * width).reshape(height // side, side, width // side, side)
    within = (3, 1) if by_columns else (1, 3)
    return tuple(places.transpose(0, 2, *within).reshape(-1).tolist())


def pre_norm_block(
    prefix: str,
    hidden: int,
    intermediate: int,
    heads: int,
    activation: str,
    eps: float,
    causal: bool = False,
    packed: bool = False,
) -> Block:
    """A layer of CLIP's and SigLIP's towers; `packed`: of BLIP's and BLIP-2's, with q, k, v in one parameter."""
    attention = f"{prefix}.self_attn"
    separate = [f"{attention}.{part}_proj" for part in "qkv"]
    qkv = linear(f"{attention}.qkv", 3 * hidden, hidden) if packed else stacked(separate, hidden, hidden)
    out = "self_attn.projection" if packed else "self_attn.out_proj"
    names = (out, "layer_norm1", "mlp.fc1", "mlp.fc2", "layer_norm2")
    return named_block(prefix, names, qkv, hidden, intermediate, heads, activation, eps, causal)


def vit_block(
    prefix: str,
    hidden: int,
    intermediate: int,
    heads: int,
    activation: str,
    eps: float,
    part: str = "attention",
    bias: bool = True,
) -> Block:
    """A layer as transformers' ViT names it: FLAVA's, AST's; CLAP's where `part` is "self". `bias`: of q, k, v."""
    separate = [f"{prefix}.attention.{part}.{name}" for name in ("query", "key", "value")]
    qkv = stacked(separate, hidden, hidden, bias=bias)
    names = ("attention.output.dense", "layernorm_before", "intermediate.dense", "output.dense", "layernorm_after")
    return named_block(prefix, names, qkv, hidden, intermediate, heads, activation, eps)


def bart_block(
    prefix: str, qkv: Linear, hidden: int, intermediate: int, heads: int, activation: str, eps: float, causal: bool
) -> Block:
    """A layer as transformers' BART names it, pre-norm: OPT's, Whisper's."""
    names = ("self_attn.out_proj", "self_attn_layer_norm", "fc1", "fc2", "final_layer_norm")
    return named_block(prefix, names, qkv, hidden, intermediate, heads, activation, eps, causal)


def named_block(
    prefix: str,
    names: tuple[str, str, str, str, str],
    qkv: Linear,
    hidden: int,
    intermediate: int,
    heads: int,
    activation: str,
    eps: float,
    causal: bool = False,
    scales: tuple[str, str] | None = None,
) -> Block:
    """A layer whose norms come first, by its names under `prefix`: of the linear after attention and the norm before
    it, of the feed-forward's two linears and the norm before them. `scales` are vectors by which each of both results
    is multiplied."""
    out, norm1, fc1, fc2, norm2 = (f"{prefix}.{name}" for name in names)
    first, second = (f"{prefix}.{name}" for name in scales) if scales else (None, None)
    return Block(
        qkv=qkv,
        out=linear(out, hidden, hidden, scaled_by=first),
        norm1=norm(norm1, hidden, eps),
        ffn=FeedForward(
            linear(fc1, intermediate, hidden),
            linear(fc2, hidden, intermediate, scaled_by=second),
            norm(norm2, hidden, eps),
        ),
        num_attention_heads=heads,
        activation=activation,
        causal=causal,
    )


def llama_block(
    prefix: str,
    hidden: int,
    intermediate: int,
    heads: tuple[int, int, int],
    activation: str,
    norm: Callable[[str], Norm],
    bias: bool,
    mlp_bias: bool = False,
    post_norms: bool = False,
    clipped: bool = False,
    **more: Any,
) -> Block:
    """A layer as transformers' LLaMA names it, its feed-forward gated; `heads`: of queries and of keys, and their size.
    With `post_norms` there are Gemma's four norms; linears may be `clipped`. `more`: further fields of the block."""
    attention, mlp, (count, kv_heads, size) = f"{prefix}.self_attn", f"{prefix}.mlp", heads
    separate = [f"{attention}.{part}_proj" for part in "qkv"]
    after = norm(f"{prefix}.post_attention_layernorm")
    return Block(
        qkv=stacked(separate, [count * size, kv_heads * size, kv_heads * size], hidden, bias, clipped),
        out=linear(f"{attention}.o_proj", hidden, count * size, bias=bias, clipped=clipped),
        norm1=norm(f"{prefix}.input_layernorm"),
        ffn=FeedForward(
            stacked([f"{mlp}.gate_proj", f"{mlp}.up_proj"], intermediate, hidden, mlp_bias, clipped),
            linear(f"{mlp}.down_proj", hidden, intermediate, bias=mlp_bias, clipped=clipped),
            norm(f"{prefix}.pre_feedforward_layernorm") if post_norms else after,
            gated=True,
            post_norm=norm(f"{prefix}.post_feedforward_layernorm") if post_norms else None,
        ),
        num_attention_heads=count,
        activation=activation,
        num_key_value_heads=kv_heads,
        post_norm=after if post_norms else None,
        **more,
    )


def probe_pool(
    prefix: str,
    names: tuple[str, str, str],
    query: Linear,
    kv: Linear,
    hidden: int,
    intermediate: int,
    heads: int,
    activation: str,
    eps: float,
) -> AttentionPool:
    """A learned query's attention, and a feed-forward over what it drew; `names` of the query, of the linear after
    attention and of the norm, under `prefix`."""
    probe, out, normed = (f"{prefix}.{name}" for name in names)
    return AttentionPool(
        probe=ref(probe, 1, 1, hidden),
        query=query,
        kv=kv,
        out=linear(out, hidden, hidden),
        norm=norm(normed, hidden, eps),
        fc1=linear(f"{prefix}.mlp.fc1", intermediate, hidden),
        fc2=linear(f"{prefix}.mlp.fc2", hidden, intermediate),
        num_attention_heads=heads,
        activation=activation,
    )


def under(spec: Any, prefix: str) -> Any:
    """The same, every parameter's name after a prefix: an encoder of one family as a part of another's model."""
    if isinstance(spec, tuple):
        return tuple(under(item, prefix) for item in spec)
    if not isinstance(spec, Spec):
        return spec
    named = {name: under(value, prefix) for name, value in vars(spec).items()}
    if isinstance(spec, Ref):
        named["names"] = tuple(name and prefix + name for name in spec.names)
        named |= {field: prefix + name for field in ("tied", "scaled_by") if (name := getattr(spec, field))}
    if isinstance(spec, BatchNormConv):
        named["norm"] = prefix + spec.norm
    return replace(spec, **named)


def as_picture(name: str) -> Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]:
    """A spectrogram input as the core takes it, a picture of its channels; without channels its axes change places."""

    def prepare(inputs: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
        if name not in inputs:
            return inputs
        channels, height, width = facts["image"]
        array = inputs.pop(name)
        if array.ndim != 4:
            if channels > 1 or array.ndim != 3 or array.shape[1:] != (width, height):
                raise ValueError(f"{name}: found shape {array.shape}, expected (B, {width}, {height})")
            array = np.ascontiguousarray(array.transpose(0, 2, 1))[:, None]
        return inputs | {name if name in facts["inputs"] else "pixel_values": array}

    return prepare


def counted_positions(padding: int) -> Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]]:
    """Positions that count the tokens which are not padding, from its id + 1 on (Liu et al., 2019)."""

    def prepare(inputs: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
        kept = inputs["input_ids"] != padding
        return inputs | {"position_ids": kept.cumsum(1) * kept + padding}

    return prepare
