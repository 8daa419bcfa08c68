"""Language models that read a picture's features in place of words: decoders by their `model_type`.

OPT (Zhang et al., 2022): learned positions whose first two rows are never used, ReLU, layer norm before each part, and
output weights tied to the embeddings.
"""

from __future__ import annotations

from ..config import Config
from ..errors import ConfigError
from ..spec import Block, Encoder, FeedForward, Linear, Pool, Project, Step, TokenStem, ref
from .blocks import ACTIVATIONS, linear, norm, stacked

OPT_OFFSET = 2
OPT_EPS = 1e-5


def opt_block(section: Config, prefix: str, hidden: int, intermediate: int, heads: int) -> Block:
    attention = f"{prefix}.self_attn"
    return Block(
        qkv=stacked([f"{attention}.{part}_proj" for part in "qkv"], hidden, hidden),
        out=linear(f"{attention}.out_proj", hidden, hidden),
        norm1=norm(f"{prefix}.self_attn_layer_norm", hidden, OPT_EPS),
        ffn=FeedForward(
            linear(f"{prefix}.fc1", intermediate, hidden),
            linear(f"{prefix}.fc2", hidden, intermediate),
            norm(f"{prefix}.final_layer_norm", hidden, OPT_EPS),
        ),
        num_attention_heads=heads,
        activation=section.choice("activation_function", "relu", ACTIVATIONS),
        causal=True,
        pre_norm=section.get("do_layer_norm_before", True) is True,
    )


def opt(section: Config, prefix: str, feature_token: int) -> Encoder:
    hidden = section.integer("hidden_size", 768, 1, 1 << 16)
    vocab = section.integer("vocab_size", 50272, 1, 1 << 20)
    heads, intermediate = section.heads(hidden, 768, 12), section.integer("ffn_dim", 3072, 1, 1 << 18)
    positions = section.integer("max_position_embeddings", 2048, 1, 1 << 16)
    for name, expected in (
        ("word_embed_proj_dim", hidden),
        ("enable_bias", True),
        ("layer_norm_elementwise_affine", True),
    ):
        if section.get(name, expected) not in (expected, None):
            raise ConfigError(f"text_config: {name}: found {section.get(name)!r}, expected {expected}")
    decoder, words = f"{prefix}model.decoder", f"{prefix}model.decoder.embed_tokens.weight"
    logits = Project(Linear(ref(f"{prefix}lm_head.weight", vocab, hidden, tied=words)), as_blocks=True)
    final = section.get("do_layer_norm_before", True) is True and not section.get("_remove_final_layer_norm")
    steps = (Step("normed", "hidden", norm(f"{decoder}.final_layer_norm", hidden, OPT_EPS)),) if final else ()
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
        steps=(
            *steps,
            Step("logits", "normed" if final else "hidden", logits),
            Step("next_logits", "logits", Pool("last")),
        ),
    )


DECODERS = {"opt": opt}
TOKENS = {"opt": {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1}}


def decoder(config: Config, prefix: str, feature_token: int) -> Encoder:
    """The language model of `text_config`. ConfigError lists the known kinds."""
    section = config.section("text_config")
    return DECODERS[section.choice("model_type", "opt", tuple(DECODERS))](section, prefix, feature_token)


def tokens(config: Config) -> dict[str, int]:
    """Ids that generation begins, ends and pads with."""
    section = config.section("text_config")
    vocab = section.integer("vocab_size", 50272, 1, 1 << 20)
    defaults = TOKENS[section.choice("model_type", "opt", tuple(TOKENS))]
    return {name: section.integer(name, default, 0, vocab - 1) for name, default in defaults.items()}
