"""Gemma 3's text model (Gemma team, 2025), and EmbeddingGemma (2025) over it: looks both ways where the config says so.

Traps: gains of norms are stored less 1; words are multiplied by the root of the width; a norm before and one after
every sub-layer, and of each head of q and k; most layers see `sliding_window` tokens alone, with frequencies of their
own. Where it looks both ways that field counts both sides, and a half of it is seen to either: a config that an older
transformers wrote after it had halved it is halved again, as in transformers.
"""

from __future__ import annotations

from ..config import Config
from ..errors import ConfigError
from ..spec import Block, Encoder, Norm, Step, ref
from ..stems import TokenStem
from .bert import sentence_steps
from .blocks import ACTIVATIONS, llama_block, rope_frequencies
from .embedding_gemma2 import KINDS, kinds
from .registry import Family, Processing, strip_prefixes


def gain(name: str, size: int, eps: float) -> Norm:
    return Norm(ref(f"{name}.weight", size, plus=1.0), None, eps)


def block(config: Config, index: int, kind: str, hidden: int, eps: float) -> Block:
    heads, head_dim = config.integer("num_attention_heads", 8, 1, 1 << 10), config.integer("head_dim", 256, 2, 1 << 12)
    kv_heads = config.integer("num_key_value_heads", 4, 1, heads)
    if heads % kv_heads or head_dim % 2:
        raise ConfigError(f"config.json: {heads} heads of {head_dim} and {kv_heads} of keys, expected even heads and a "
                          "divisor")  # fmt: skip
    window, both = (
        config.integer("sliding_window", 4096, 2, 1 << 20),
        config.boolean("use_bidirectional_attention", False),
    )
    return llama_block(
        f"layers.{index}",
        hidden,
        config.integer("intermediate_size", 9216, 1, 1 << 18),
        (heads, kv_heads, head_dim),
        config.choice("hidden_activation", "gelu_pytorch_tanh", ACTIVATIONS),
        lambda name: gain(name, hidden, eps),
        bias=config.boolean("attention_bias", False),
        post_norms=True,
        causal=not both,
        scale=config.number("query_pre_attn_scalar", 256, 1e-6, 1e9) ** -0.5,
        rotary=1 + KINDS.index(kind),
        head_norms=tuple(gain(f"layers.{index}.self_attn.{name}_norm", head_dim, eps).weight for name in "qk"),
        sliding_window=0 if kind == KINDS[1] else window // 2 if both else window - 1,
    )


def text(config: Config) -> Encoder:
    for name in ("attn_logit_softcapping", "final_logit_softcapping"):
        if config.get(name) is not None:
            raise ConfigError(
                f"config.json: {name}: found {config.get(name)!r}, expected null: scores are not capped here"
            )
    hidden, eps = config.integer("hidden_size", 2304, 1, 1 << 16), config.number("rms_norm_eps", 1e-6, 0.0, 1.0)
    vocab = config.integer("vocab_size", 262_208, 1, 1 << 22)
    pattern = config.get("sliding_window_pattern", config.get("_sliding_window_pattern", 6))
    sees = kinds(config.updated(Config({"sliding_window_pattern": pattern})),
                 config.integer("num_hidden_layers", 26, 1, 1024))  # fmt: skip
    stated, head_dim = config.section("rope_parameters"), config.integer("head_dim", 256, 2, 1 << 12)
    near, far = (stated.section(kind) for kind in KINDS)
    if config.get("rope_scaling"):
        far = far.updated(config.section("rope_scaling"))
    return Encoder(
        hidden_size=hidden,
        stem=TokenStem(
            word=ref("embed_tokens.weight", vocab, hidden, scale=hidden**0.5),
            position=None,
            max_positions=config.integer("max_position_embeddings", 131_072, 1, 1 << 24),
            rotary=rope_frequencies(near, head_dim, config.number("rope_local_base_freq", 1e4, 1e-3, 1e12)),
            rotary_2=rope_frequencies(far, head_dim, config.number("rope_theta", 1e6, 1e-3, 1e12)),
        ),
        layers=tuple(block(config, i, kind, hidden, eps) for i, kind in enumerate(sees)),
        states_end_in_output=True,
        steps=(
            Step("last_hidden_state", "hidden", gain("norm", hidden, eps)),
            *sentence_steps(config, "last_hidden_state"),
        ),
    )


FAMILY = Family(
    model_type="gemma3_text",
    processing=Processing(tokenizer="GemmaTokenizer"),
    towers={"text": text},
    classes={"Gemma3TextModel": ("text",)},
    rename=strip_prefixes("model."),
    ignored=("lm_head.",),
)
