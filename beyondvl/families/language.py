"""Language models that read a picture's features in place of words, by their `model_type`.

OPT (Zhang et al., 2022): learned positions whose first two rows are never used, ReLU, layer norm before each part, and
output weights tied to the embeddings.
T5 (Raffel et al., 2020; Flan-T5): an encoder that reads, a decoder that attends to it. Scores are not scaled; a bias by
distance, one table for all layers, takes the place of positions; norms have no mean. Flan's feed-forward is gated, and
where its config names `dense_act_fn`, that counts.
Llama (Touvron et al., 2023; Vicuna): rotary positions, gated SiLU, several heads to one of keys where the config says
so.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..config import Config
from ..errors import ConfigError
from ..spec import (
    Block,
    Context,
    Cross,
    Encoder,
    FeedForward,
    Linear,
    Norm,
    Pool,
    Project,
    Ref,
    RelativeBias,
    Step,
    ref,
    replace,
)
from ..stems import TokenStem
from .blocks import ACTIVATIONS, bart_block, linear, llama_block, norm, rms_norm, rope_frequencies, stacked

OPT_OFFSET = 2
OPT_EPS = 1e-5
ALIASES = {"gelu_new": "gelu_pytorch_tanh"}  # further names of activations
UNBOUNDED = 1 << 20  # positions of a model that has no table of them


def require(section: Config, **expected: object) -> None:
    """ConfigError where a field that is there has another value than the one this file knows."""
    for name, value in expected.items():
        if section.get(name) not in (value, None):
            raise ConfigError(f"text_config: {name}: found {section.get(name)!r}, expected {value}")


def language_head(
    prefix: str, words: str | None, vocab: int, hidden: int, final: Norm | None, scale: float = 1.0
) -> tuple[Step, ...]:
    """The last norm, the logits of every token, those of the last one; `words`: the table the weights are tied to."""
    logits = Linear(ref(f"{prefix}lm_head.weight", vocab, hidden, tied=words, scale=scale))
    return (
        *((Step("normed", "hidden", final),) if final else ()),
        Step("logits", "normed" if final else "hidden", Project(logits, as_blocks=True)),
        Step("next_logits", "logits", Pool("last")),
    )


# ---- OPT


def opt_block(section: Config, prefix: str, hidden: int, intermediate: int, heads: int) -> Block:
    qkv = stacked([f"{prefix}.self_attn.{part}_proj" for part in "qkv"], hidden, hidden)
    activation = section.choice("activation_function", "relu", ACTIVATIONS)
    layer = bart_block(prefix, qkv, hidden, intermediate, heads, activation, OPT_EPS, True)
    return replace(layer, pre_norm=section.boolean("do_layer_norm_before", True))


def opt(section: Config, prefix: str, feature_token: int) -> Encoder:
    hidden = section.integer("hidden_size", 768, 1, 1 << 16)
    vocab = section.integer("vocab_size", 50272, 1, 1 << 20)
    heads, intermediate = section.heads(hidden, 768, 12), section.integer("ffn_dim", 3072, 1, 1 << 18)
    positions = section.integer("max_position_embeddings", 2048, 1, 1 << 16)
    require(section, word_embed_proj_dim=hidden, enable_bias=True, layer_norm_elementwise_affine=True)
    decoder, words = f"{prefix}model.decoder", f"{prefix}model.decoder.embed_tokens.weight"
    final = section.boolean("do_layer_norm_before", True) and not section.boolean("_remove_final_layer_norm", False)
    return Encoder(
        hidden_size=hidden,
        stem=TokenStem(
            word=ref(words, vocab, hidden),
            position=ref(
                f"{decoder}.embed_positions.weight",
                positions,
                hidden,
                rows=(OPT_OFFSET, OPT_OFFSET + positions),
                packed_rows=OPT_OFFSET + positions,
            ),
            feature_token=feature_token,
        ),
        layers=tuple(
            opt_block(section, f"{decoder}.layers.{i}", hidden, intermediate, heads)
            for i in range(section.integer("num_hidden_layers", 12, 1, 1024))
        ),
        steps=language_head(
            prefix, words, vocab, hidden, norm(f"{decoder}.final_layer_norm", hidden, OPT_EPS) if final else None
        ),
    )


# ---- T5


@dataclass(frozen=True)
class T5Sizes:
    """Sizes of a T5 by its config; `inner` columns of q, k and v need not be `hidden`."""

    hidden: int
    inner: int
    heads: int
    intermediate: int
    vocab: int
    eps: float

    @classmethod
    def of(cls, section: Config) -> T5Sizes:
        if "num_heads" not in section and section.get("d_model", 512) != 512:
            raise ConfigError("text_config: num_heads is missing, expected it beside d_model")
        heads = section.integer("num_heads", 8, 1, 1024)
        return cls(
            hidden=section.integer("d_model", 512, 1, 1 << 16),
            inner=heads * section.integer("d_kv", 64, 1, 1 << 12),
            heads=heads,
            intermediate=section.integer("d_ff", 2048, 1, 1 << 18),
            vocab=section.integer("vocab_size", 32128, 1, 1 << 20),
            eps=section.number("layer_norm_epsilon", 1e-6, 0.0, 1.0),
        )


def t5_activation(section: Config) -> tuple[str, bool]:
    """The activation, and whether the feed-forward is gated by it."""
    known = (*ACTIVATIONS, *ALIASES)
    kind = section.choice("feed_forward_proj", "relu", tuple(f"{gate}{a}" for gate in ("", "gated-") for a in known))
    gated, name = kind.startswith("gated-"), kind.removeprefix("gated-")
    name = section.choice("dense_act_fn", "gelu_new" if kind == "gated-gelu" else name, known)
    return ALIASES.get(name, name), gated


def t5_buckets(count: int, reach: int, causal: bool) -> tuple[int, ...]:
    """The bucket of each distance key - query from -reach to reach: one each for the near half, then wider and wider
    ones. A causal table knows the past alone. In float32, as the models were trained."""
    if not causal:
        count //= 2
    exact, far = count // 2, np.float32(math.log(reach / (count // 2)))

    def bucket(distance: int) -> int:
        if distance < exact:
            return distance
        share = np.log(np.float32(distance) / np.float32(exact)) / far * np.float32(count - exact)
        return min(exact + int(share), count - 1)

    if causal:
        return tuple(bucket(max(-d, 0)) for d in range(-reach, reach + 1))
    return tuple(bucket(abs(d)) + (count if d > 0 else 0) for d in range(-reach, reach + 1))


def t5_block(section: Config, sizes: T5Sizes, stack: str, i: int, causal: bool) -> Block:
    prefix = f"{stack}.block.{i}.layer"
    attention, last = f"{prefix}.0.SelfAttention", f"{prefix}.{2 if causal else 1}"
    buckets = section.integer("relative_attention_num_buckets", 32, 4, 1 << 12)
    exact = buckets // (2 if causal else 4)
    reach = section.integer("relative_attention_max_distance", 128, exact + 1, 1 << 16)
    activation, gated = t5_activation(section)
    names = [f"{last}.DenseReluDense.{name}" for name in (("wi_0", "wi_1") if gated else ("wi",))]
    cross = Cross(
        query=linear(f"{prefix}.1.EncDecAttention.q", sizes.inner, sizes.hidden, bias=False),
        out=linear(f"{prefix}.1.EncDecAttention.o", sizes.hidden, sizes.inner, bias=False),
        norm=rms_norm(f"{prefix}.1.layer_norm", sizes.hidden, sizes.eps),
    )
    return Block(
        qkv=stacked([f"{attention}.{part}" for part in "qkv"], sizes.inner, sizes.hidden, bias=False),
        out=linear(f"{attention}.o", sizes.hidden, sizes.inner, bias=False),
        norm1=rms_norm(f"{prefix}.0.layer_norm", sizes.hidden, sizes.eps),
        ffn=FeedForward(
            stacked(names, sizes.intermediate, sizes.hidden, bias=False),
            linear(f"{last}.DenseReluDense.wo", sizes.hidden, sizes.intermediate, bias=False),
            rms_norm(f"{last}.layer_norm", sizes.hidden, sizes.eps),
            gated,
        ),
        num_attention_heads=sizes.heads,
        activation=activation,
        causal=causal,
        cross=cross if causal else None,
        scale=1.0,
        relative=RelativeBias(
            ref(f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight", buckets, sizes.heads),
            t5_buckets(buckets, reach, causal),
        ),
    )


def t5_words(prefix: str, half: str, sizes: T5Sizes) -> Ref:
    """One table for both halves, which some checkpoints store again in each."""
    tied = f"{prefix}{half}.embed_tokens.weight"
    return ref(f"{prefix}shared.weight", sizes.vocab, sizes.hidden, tied=tied)


def t5_layers(section: Config) -> tuple[int, int]:
    """Layers of the encoder and of the decoder."""
    layers = section.integer("num_layers", 6, 1, 1024)
    return layers, section.integer("num_decoder_layers", layers, 1, 1024)


def t5_encoder(section: Config, prefix: str, feature_token: int) -> Encoder:
    """What reads; its context is for the decoder."""
    sizes, (layers, decoder_layers) = T5Sizes.of(section), t5_layers(section)
    attention = [f"{prefix}decoder.block.{i}.layer.1.EncDecAttention" for i in range(decoder_layers)]
    cross = tuple(stacked([f"{name}.k", f"{name}.v"], sizes.inner, sizes.hidden, bias=False) for name in attention)
    return Encoder(
        hidden_size=sizes.hidden,
        stem=TokenStem(
            word=t5_words(prefix, "encoder", sizes),
            position=None,
            feature_token=feature_token,
            max_positions=UNBOUNDED,
        ),
        layers=tuple(t5_block(section, sizes, f"{prefix}encoder", i, False) for i in range(layers)),
        steps=(
            Step("last_hidden_state", "hidden", rms_norm(f"{prefix}encoder.final_layer_norm", sizes.hidden, sizes.eps)),
        ),
        context=Context("last_hidden_state", cross, sizes.heads),
    )


def t5_decoder(section: Config, prefix: str, feature_token: int) -> Encoder:
    sizes, (_, layers) = T5Sizes.of(section), t5_layers(section)
    scaled = section.boolean("scale_decoder_outputs", section.boolean("tie_word_embeddings", True))
    return Encoder(
        hidden_size=sizes.hidden,
        stem=TokenStem(word=t5_words(prefix, "decoder", sizes), position=None, max_positions=UNBOUNDED),
        layers=tuple(t5_block(section, sizes, f"{prefix}decoder", i, True) for i in range(layers)),
        steps=language_head(
            prefix,
            f"{prefix}shared.weight",
            sizes.vocab,
            sizes.hidden,
            rms_norm(f"{prefix}decoder.final_layer_norm", sizes.hidden, sizes.eps),
            sizes.hidden**-0.5 if scaled else 1.0,
        ),
    )


# ---- Llama


def llama_frequencies(section: Config, head_dim: int) -> tuple[float, ...]:
    """Newer configs and older ones say it in places of their own."""
    rope = section.section("rope_scaling" if section.get("rope_scaling") else "rope_parameters")
    return rope_frequencies(rope, head_dim, section.number("rope_theta", 10000.0, 1.0, 1e12))


def llama(section: Config, prefix: str, feature_token: int) -> Encoder:
    hidden = section.integer("hidden_size", 4096, 1, 1 << 16)
    vocab = section.integer("vocab_size", 32000, 1, 1 << 20)
    intermediate = section.integer("intermediate_size", 11008, 1, 1 << 18)
    heads = section.heads(hidden, 4096, 32)
    kv_heads = section.integer("num_key_value_heads", heads, 1, heads)
    head_dim = section.integer("head_dim", hidden // heads, 2, 1 << 12)
    if heads % kv_heads or head_dim % 2:
        raise ConfigError(
            f"text_config: {heads} heads of {head_dim} and {kv_heads} of keys, expected even heads and a divisor"
        )
    eps = section.number("rms_norm_eps", 1e-6, 0.0, 1.0)
    activation = section.choice("hidden_act", "silu", (*ACTIVATIONS, *ALIASES))
    biased, mlp_biased = section.boolean("attention_bias", False), section.boolean("mlp_bias", False)
    words = f"{prefix}model.embed_tokens.weight"
    tied = words if section.boolean("tie_word_embeddings", False) else None

    def block(i: int) -> Block:
        return llama_block(
            f"{prefix}model.layers.{i}",
            hidden,
            intermediate,
            (heads, kv_heads, head_dim),
            ALIASES.get(activation, activation),
            lambda name: rms_norm(name, hidden, eps),
            bias=biased,
            mlp_bias=mlp_biased,
            causal=True,
            rotary=True,
        )

    return Encoder(
        hidden_size=hidden,
        stem=TokenStem(
            word=ref(words, vocab, hidden),
            position=None,
            feature_token=feature_token,
            max_positions=section.integer("max_position_embeddings", 2048, 1, UNBOUNDED),
            rotary=llama_frequencies(section, head_dim),
        ),
        layers=tuple(block(i) for i in range(section.integer("num_hidden_layers", 32, 1, 1024))),
        steps=language_head(prefix, tied, vocab, hidden, rms_norm(f"{prefix}model.norm", hidden, eps)),
    )


# ---- all of them

Build = Callable[[Config, str, int], Encoder]


@dataclass(frozen=True)
class LanguageModel:
    """One kind: the decoder, the encoder of those that have one, and the class's own values: ids that generation needs
    (None: as transformers, the end of text), the size of the vocabulary, the width and the name of its field."""

    decoder: Build
    tokens: dict[str, int | None]
    vocab: int
    width: tuple[str, int]
    encoder: Build | None = None


KINDS = {
    "opt": LanguageModel(opt, {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}, 50272, ("hidden_size", 768)),
    "t5": LanguageModel(
        t5_decoder,
        {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0},
        32128,
        ("d_model", 512),
        t5_encoder,
    ),
    "llama": LanguageModel(
        llama, {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}, 32000, ("hidden_size", 4096)
    ),
}


def kind(config: Config) -> tuple[LanguageModel, Config]:
    """The kind of `text_config`, and that section. ConfigError lists the known kinds."""
    section = config.section("text_config")
    return KINDS[section.choice("model_type", "opt", tuple(KINDS))], section


def decoder(config: Config, prefix: str, feature_token: int) -> Encoder:
    """What writes: the whole language model, or its decoder."""
    model, section = kind(config)
    return model.decoder(section, prefix, feature_token)


def encoder(config: Config, prefix: str, feature_token: int) -> Encoder | None:
    """What reads in a language model of two halves; None where there is one."""
    model, section = kind(config)
    return model.encoder(section, prefix, feature_token) if model.encoder else None


def hidden_size(config: Config) -> int:
    model, section = kind(config)
    return section.integer(*model.width, 1, 1 << 16)


def tokens(config: Config) -> dict[str, int | tuple[int, ...]]:
    """Ids that generation begins, ends (one or several) and pads with."""
    model, section = kind(config)
    vocab = section.integer("vocab_size", model.vocab, 1, 1 << 20)
    stated = section.get("eos_token_id")
    each = [Config({"eos_token_id": end}) for end in (stated if isinstance(stated, list) and stated else [stated])]
    end = model.tokens["eos_token_id"]
    ends = tuple(section.updated(one).integer("eos_token_id", end, 0, vocab - 1) for one in each)
    ids = {"eos_token_id": ends if len(ends) > 1 else ends[0]}
    padding = model.tokens["pad_token_id"] if "pad_token_id" not in section else section.get("pad_token_id")
    if padding is None or padding == -1:  # none of its own: transformers fills up with the end of text
        section = section.updated(Config({"pad_token_id": ends[0]}))
    for name in ("bos_token_id", "pad_token_id"):
        ids[name] = section.integer(name, model.tokens[name], 0, vocab - 1)
    if model.encoder:  # as transformers, the decoder begins with [bos] where the config names nothing else
        start = section.get("decoder_start_token_id")
        ids["decoder_start_token_id"] = section.integer(
            "bos_token_id" if start is None else "decoder_start_token_id", None, 0, vocab - 1
        )
    return ids
