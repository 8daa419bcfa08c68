"""BERT and the sentence encoders built on it (Devlin et al., 2018; Reimers and Gurevych, 2019).

`sentence_embedding` is what sentence-transformers computes: the mean over the tokens that attention_mask keeps, or the
first token where the folder's pooling says so, normalised when its modules say so.
"""

from __future__ import annotations

from typing import Any

from ..config import Config
from ..errors import ConfigError
from ..spec import Block, Cross, Encoder, FeedForward, Normalize, Pool, Project, Step, ref, replace
from ..stems import TokenStem
from .blocks import ACTIVATIONS, linear, norm, stacked
from .registry import Family, Processing, strip_prefixes


def feed_forward(prefix: str, hidden: int, intermediate: int, eps: float, suffix: str = "") -> FeedForward:
    """`prefix`.intermediate and `prefix`.output; with a suffix, those of another input of the layer."""
    return FeedForward(
        linear(f"{prefix}.intermediate{suffix}.dense", intermediate, hidden),
        linear(f"{prefix}.output{suffix}.dense", hidden, intermediate),
        norm(f"{prefix}.output{suffix}.LayerNorm", hidden, eps),
    )


def post_norm_block(
    prefix: str,
    hidden: int,
    heads: int,
    activation: str,
    eps: float,
    ffn: FeedForward | None,
    part: str = "attention.self",
    **more,
) -> Block:
    """A layer of BERT; `part` holds its query, key and value, `more` are further fields of the block."""
    return Block(
        qkv=stacked([f"{prefix}.{part}.{name}" for name in ("query", "key", "value")], hidden, hidden),
        out=linear(f"{prefix}.attention.output.dense", hidden, hidden),
        norm1=norm(f"{prefix}.attention.output.LayerNorm", hidden, eps),
        ffn=ffn,
        num_attention_heads=heads,
        activation=activation,
        pre_norm=False,
        **more,
    )


def cross_part(prefix: str, hidden: int, eps: float, part: str = "self") -> Cross:
    """What `prefix`, a layer's crossattention, asks a context with."""
    return Cross(
        query=linear(f"{prefix}.{part}.query", hidden, hidden),
        out=linear(f"{prefix}.output.dense", hidden, hidden),
        norm=norm(f"{prefix}.output.LayerNorm", hidden, eps),
    )


def bert_encoder(section: Config, prefix: str, steps: tuple[Step, ...], **more: Any) -> Encoder:
    """A BERT under the key prefix, with the given steps after its last layer; `more`: further fields of the encoder."""
    if section.get("position_embedding_type", "absolute") != "absolute" or section.boolean("is_decoder", False):
        raise ConfigError("config.json: expected absolute positions and no decoder")
    hidden = section.integer("hidden_size", 768, 1, 1 << 16)
    intermediate = section.integer("intermediate_size", 3072, 1, 1 << 18)
    heads = section.heads(hidden, 768, 12)
    activation = section.choice("hidden_act", "gelu", ACTIVATIONS)
    eps = section.number("layer_norm_eps", 1e-12, 0.0, 1.0)
    embeddings = f"{prefix}embeddings"
    vocab = section.integer("vocab_size", 30522, 1, 1 << 22)
    positions = section.integer("max_position_embeddings", 512, 1, 1 << 16)
    types = section.integer("type_vocab_size", 2, 1, 1 << 10)
    return Encoder(
        hidden_size=hidden,
        stem=TokenStem(
            word=ref(f"{embeddings}.word_embeddings.weight", vocab, hidden),
            position=ref(f"{embeddings}.position_embeddings.weight", positions, hidden),
            type=ref(f"{embeddings}.token_type_embeddings.weight", types, hidden),
        ),
        stem_norm=norm(f"{embeddings}.LayerNorm", hidden, eps),
        layers=tuple(
            post_norm_block(layer, hidden, heads, activation, eps, feed_forward(layer, hidden, intermediate, eps))
            for layer in (
                f"{prefix}encoder.layer.{i}" for i in range(section.integer("num_hidden_layers", 12, 1, 1024))
            )
        ),
        steps=steps,
        **more,
    )


def sentence_steps(config: Config, src: str = "hidden") -> tuple[Step, ...]:
    """Pooling of `src`, further linears and normalisation as the folder of a sentence encoder states them (see
    sentences.py)."""
    settings = config.section("sentence_transformers")
    steps = [Step("pooled", src, Pool(settings.choice("pooling", "mean", ("mean", "first"))))]
    for layer in settings.get("dense", []):
        place = linear(f"{layer['place']}.linear", layer["out_features"], layer["in_features"], layer["bias"])
        steps.append(Step(f"dense_{len(steps)}", steps[-1].dst, Project(place, layer["activation"])))
    if settings.get("normalize"):
        steps.append(Step("normalized", steps[-1].dst, Normalize()))
    return (*steps[:-1], replace(steps[-1], dst="sentence_embedding"))


def text(config: Config) -> Encoder:
    hidden = config.integer("hidden_size", 768, 1, 1 << 16)
    steps = (
        Step("first_token", "hidden", Pool("first")),
        Step("pooler_output", "first_token", Project(linear("pooler.dense", hidden, hidden, optional=True), "tanh")),
        *sentence_steps(config),
    )
    return bert_encoder(config, "", steps)


def rename(key: str) -> str:
    """Undoes the prefixes of heads and wrappers, and the names layer norms had before version 3."""
    key = strip_prefixes("bert.", "model.", "0.auto_model.")(key)
    return key.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias")


FAMILY = Family(
    model_type="bert",
    processing=Processing(tokenizer="BertTokenizer"),
    towers={"text": text},
    classes={"BertModel": ("text",)},
    rename=rename,
    ignored=("cls.",),
)
