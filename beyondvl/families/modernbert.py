"""ModernBERT (Warner et al., 2024): sentence encoders that read 8,192 tokens.

Traps: the norms have no offset; the words are normed, so the first layer's attention has no norm before it; every
third layer sees all tokens, the others `local_attention` // 2 to either side, with frequencies of their own; the first
half of what the feed-forward widens to is activated, the second multiplied.
"""

from __future__ import annotations

from ..config import Config
from ..errors import ConfigError
from ..spec import Block, Encoder, FeedForward, Norm, Step, ref, replace
from ..stems import TokenStem
from .bert import sentence_steps
from .blocks import ACTIVATIONS, linear, rope_frequencies
from .embedding_gemma2 import KINDS, kinds
from .registry import Family, Processing, strip_prefixes


def sees(config: Config) -> list[str]:
    """What each layer sees."""
    layers = config.integer("num_hidden_layers", 22, 1, 1024)
    every = config.integer("global_attn_every_n_layers", 3, 1, 1024)
    if config.get("layer_types") is None:
        config = config.updated(Config({"layer_types": [KINDS[not i % every] for i in range(layers)]}))
    return kinds(config, layers)


def text_encoder(config: Config, prefix: str = "") -> Encoder:
    """The transformer under a key prefix, up to its last norm."""
    hidden, eps = config.integer("hidden_size", 768, 1, 1 << 16), config.number("norm_eps", 1e-5, 0.0, 1.0)
    heads, inner = config.heads(hidden, 768, 12), config.integer("intermediate_size", 1152, 1, 1 << 18)
    if hidden // heads % 2:
        raise ConfigError(
            f"config.json: num_attention_heads: found {heads} heads of {hidden // heads}, expected even ones"
        )
    activation = config.choice("hidden_activation", "gelu", ACTIVATIONS)
    biased, wide_biased, offset = (config.boolean(f"{part}_bias", False) for part in ("attention", "mlp", "norm"))
    window, vocab = (
        config.integer("local_attention", 128, 2, 1 << 20),
        config.integer("vocab_size", 50_368, 1, 1 << 22),
    )

    def norm(name: str) -> Norm:
        return Norm(ref(f"{name}.weight", hidden), ref(f"{name}.bias" if offset else "", hidden), eps)

    def block(index: int, kind: str) -> Block:
        name = f"{prefix}layers.{index}"
        return Block(
            qkv=linear(f"{name}.attn.Wqkv", 3 * hidden, hidden, bias=biased),
            out=linear(f"{name}.attn.Wo", hidden, hidden, bias=biased),
            norm1=norm(f"{name}.attn_norm") if index else None,
            ffn=FeedForward(
                linear(f"{name}.mlp.Wi", 2 * inner, hidden, bias=wide_biased),
                linear(f"{name}.mlp.Wo", hidden, inner, bias=wide_biased),
                norm(f"{name}.mlp_norm"),
                gated=True,
            ),
            num_attention_heads=heads,
            activation=activation,
            rotary=1 + KINDS.index(kind),
            sliding_window=0 if kind == KINDS[1] else window // 2,
        )

    stated, head_dim = config.section("rope_parameters"), hidden // heads
    near, far = (
        rope_frequencies(stated.section(kind), head_dim, config.number(f"{name}_rope_theta", theta, 1e-3, 1e12))
        for kind, name, theta in zip(KINDS, ("local", "global"), (1e4, 1.6e5), strict=True)
    )
    return Encoder(
        hidden_size=hidden,
        stem=TokenStem(
            word=ref(f"{prefix}embeddings.tok_embeddings.weight", vocab, hidden),
            position=None,
            max_positions=config.integer("max_position_embeddings", 8192, 1, 1 << 24),
            rotary=near,
            rotary_2=far,
        ),
        stem_norm=norm(f"{prefix}embeddings.norm"),
        layers=tuple(block(i, kind) for i, kind in enumerate(sees(config))),
        states_end_in_output=True,
        steps=(Step("last_hidden_state", "hidden", norm(f"{prefix}final_norm")),),
    )


def text(config: Config) -> Encoder:
    encoder = text_encoder(config)
    return replace(encoder, steps=(*encoder.steps, *sentence_steps(config, "last_hidden_state")))


FAMILY = Family(
    model_type="modernbert",
    processing=Processing(tokenizer=""),  # whichever its files name
    towers={"text": text},
    classes={"ModernBertModel": ("text",)},
    rename=strip_prefixes("model.", "0.auto_model."),
    ignored=("head.", "decoder.", "classifier."),
)
