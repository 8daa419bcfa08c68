"""BLIP-2: query tokens draw from a picture what matching it with a text, or a language model, needs (Li et al., 2023).

The queries attend to each other and to the text, every `cross_attention_frequency`-th layer to the picture; queries
and text have a feed-forward each. Traps: layer norm is applied to queries and text together, outside the encoder;
contrastive scores are the largest over the queries, matching scores their mean; with `image_token_index` in the config
the texts begin with one placeholder per query.
"""

from __future__ import annotations

import numpy as np

from ..config import Config
from ..errors import ConfigError
from ..spec import Block, Context, Encoder, FirstRows, Linear, Normalize, Pool, Project, QFormer, Step, ref, replace
from ..stems import JoinStem, QueryStem, TokenStem
from . import language
from .bert import cross_part, feed_forward, post_norm_block
from .blip import NO_TYPES, PICTURES, stem, vision_layers, vision_steps
from .blocks import ACTIVATIONS, linear, norm, stacked
from .registry import Family, Head, Processing, ProcessorKind

VISION = (1408, 6144, 39, 16)  # the class's hidden_size, intermediate_size, num_hidden_layers, heads
VIDEO, VIDEO_FRAMES = "instructblipvideo", 4  # a clip is that many pictures
GIVEN_LATER = {"opt": 50265, "t5": 32100, "llama": 32000}  # ids of placeholders that published configs got in 2024
ALONE = "blip_2_qformer"  # the model_type of a Q-Former by itself
INNER = "attention.attention"  # where a layer keeps its query, key and value


def qformer_sizes(config: Config) -> tuple[Config, int, int, int, int]:
    """The section, hidden_size, num_hidden_layers, heads, cross_attention_frequency."""
    section = config if config.get("model_type") == ALONE else config.section("qformer_config")
    hidden = section.integer("hidden_size", 768, 1, 1 << 16)
    return (
        section,
        hidden,
        section.integer("num_hidden_layers", 12, 1, 1024),
        section.heads(hidden, 768, 12),
        section.integer("cross_attention_frequency", 2, 1, 1024),
    )


def queries(config: Config) -> int:
    return config.integer("num_query_tokens", 32, 1, 1 << 12)


def embed_size(config: Config) -> int:
    return config.integer("image_text_hidden_size", 256, 1, 1 << 16)


def cross_layers(config: Config, features: int) -> tuple[Linear, ...]:
    """Keys and values of the layers that attend to a picture of `features` columns."""
    section, hidden, layers, _, frequency = qformer_sizes(config)
    stated = section.integer("encoder_hidden_size", 1408, 1, 1 << 16)
    if stated != features:
        raise ConfigError(f"qformer_config: encoder_hidden_size: found {stated}, expected vision's {features}")
    attention = [f"qformer.encoder.layer.{i}.crossattention.attention" for i in range(0, layers, frequency)]
    return tuple(stacked([f"{name}.key", f"{name}.value"], hidden, features) for name in attention)


def vision(config: Config) -> Encoder:
    section = config.section("vision_config")
    hidden = section.integer("hidden_size", VISION[0], 1, 1 << 16)
    eps = section.number("layer_norm_eps", 1e-6, 0.0, 1.0)
    return Encoder(
        hidden_size=hidden,
        stem=stem(section, hidden, patch=14, image=224),
        layers=vision_layers(section, hidden, VISION, eps),
        steps=vision_steps(hidden, eps),
        context=Context("last_hidden_state", cross_layers(config, hidden), qformer_sizes(config)[3]),
    )


def qformer_layers(config: Config, text: bool) -> tuple[Block, ...]:
    section, hidden, layers, heads, frequency = qformer_sizes(config)
    intermediate = section.integer("intermediate_size", 3072, 1, 1 << 18)
    activation = section.choice("hidden_act", "gelu", ACTIVATIONS)
    eps = section.number("layer_norm_eps", 1e-12, 0.0, 1.0)

    def layer(i: int) -> Block:
        prefix = f"qformer.encoder.layer.{i}"
        return post_norm_block(
            prefix,
            hidden,
            heads,
            activation,
            eps,
            feed_forward(prefix, hidden, intermediate, eps) if text else None,
            part=INNER,
            query_ffn=feed_forward(prefix, hidden, intermediate, eps, suffix="_query"),
            cross=None if i % frequency else cross_part(f"{prefix}.crossattention", hidden, eps, part="attention"),
        )

    return tuple(layer(i) for i in range(layers))


def tokens(section: Config, hidden: int, prefix: str) -> TokenStem:
    positions = section.integer("max_position_embeddings", 512, 1, 1 << 16)
    vocab = section.integer("vocab_size", 30522, 1, 1 << 22)
    return TokenStem(
        word=ref(f"{prefix}word_embeddings.weight", vocab, hidden),
        position=ref(f"{prefix}position_embeddings.weight", positions, hidden),
    )


def qformer(
    config: Config,
    steps: tuple[Step, ...],
    text: bool,
    embeddings: str = "embeddings.",
    first_norm: str = "qformer.layernorm",
) -> QFormer:
    """The Q-Former over query tokens, and over a text when `text`; where its embeddings and its first norm lie."""
    section, hidden, *_ = qformer_sizes(config)
    words = tokens(section, hidden, embeddings) if text else None
    return QFormer(
        hidden_size=hidden,
        stem=QueryStem(ref("query_tokens", queries(config), hidden), words),
        stem_norm=norm(first_norm, hidden, section.number("layer_norm_eps", 1e-12, 0.0, 1.0)),
        layers=qformer_layers(config, text),
        steps=steps,
    )


def image_steps(config: Config) -> tuple[Step, ...]:
    hidden = qformer_sizes(config)[1]
    return (
        Step("query_output", "hidden", FirstRows(queries(config))),
        Step("query_embeds", "query_output", Project(linear("vision_projection", embed_size(config), hidden))),
        Step("image_embeds", "query_embeds", Normalize()),
    )


def matching(config: Config) -> Encoder:
    _, hidden, *_ = qformer_sizes(config)
    return qformer(
        config,
        (
            *image_steps(config),
            Step("itm", "query_output", Project(linear("itm_head", 2, hidden))),
            Step("itm_score", "itm", Pool("mean")),
            Step("class_token", "hidden", Pool("first")),
            Step("embeds", "class_token", Project(linear("text_projection", embed_size(config), hidden))),
            Step("unit_embeds", "embeds", Normalize()),
        ),
        text=True,
    )


def image_queries(config: Config) -> Encoder:
    return qformer(config, image_steps(config), text=False)


def text_tokens(config: Config) -> Encoder:
    """A text alone, every token of it projected."""
    _, hidden, *_ = qformer_sizes(config)
    steps = (
        Step("token_embeds", "hidden", Project(linear("text_projection", embed_size(config), hidden))),
        Step("text_embeds", "token_embeds", Normalize()),
    )
    return qformer(config, steps, text=True)


def drawn_from(config: Config) -> Encoder:
    """What the queries of a Q-Former by itself attend to: rows that the caller has."""
    section, _, _, heads, _ = qformer_sizes(config)
    features = section.integer("encoder_hidden_size", 1408, 1, 1 << 16)
    return Encoder(
        hidden_size=features,
        stem=JoinStem(),
        layers=(),
        steps=(),
        context=Context("hidden", cross_layers(config, features), heads),
    )


def drawing(config: Config) -> Encoder:
    """A Q-Former by itself, over queries that the caller has: they stand where a text's rows would."""
    section, hidden, *_ = qformer_sizes(config)
    eps = section.number("layer_norm_eps", 1e-12, 0.0, 1.0)
    return QFormer(
        hidden_size=hidden,
        stem=JoinStem(),
        stem_norm=norm("qformer.layernorm", hidden, eps),
        layers=tuple(replace(layer, ffn=layer.query_ffn, query_ffn=None) for layer in qformer_layers(config, False)),
        steps=(Step("pooler_output", "hidden", Pool("first")),),
    )


def rename(key: str) -> str:
    """A Q-Former saved by itself lacks its name."""
    return f"qformer.{key}" if key.startswith(("encoder.", "layernorm.")) else key


def image_token(config: Config) -> int:
    """The id of the token that stands for a query in a text; configs of before 2024 lack it and get what those of
    the same language model were given later."""
    name = "video_token_index" if config.get("model_type") == VIDEO else "image_token_index"
    section = config.section("text_config")
    vocab, later = section.get("vocab_size"), GIVEN_LATER.get(str(section.get("model_type")), 1 << 20)
    if config.get(name) is None and not (type(vocab) is int and later < vocab):
        raise ConfigError(
            f"config.json: {name} is missing, expected the id of the token that stands for a picture: configs of "
            "before 2024 lack it, and the published ones were given it"
        )
    return config.integer(name, later, 0, (1 << 20) - 1)


def placeholders(config: Config) -> list[int]:
    """What stands for a picture in a text, or for the frames of a clip."""
    return [image_token(config)] * queries(config) * (VIDEO_FRAMES if config.get("model_type") == VIDEO else 1)


def language_steps(config: Config) -> tuple[Step, ...]:
    """What the queries drew, and the same as the language model reads it."""
    projection = linear("language_projection", language.hidden_size(config), qformer_sizes(config)[1])
    return (
        Step("query_output", "hidden", FirstRows(queries(config))),
        Step("features", "query_output", Project(projection)),
    )


def features(config: Config) -> Encoder:
    """Queries alone, projected to what the language model reads."""
    return qformer(config, language_steps(config), text=False)


def reader(config: Config) -> Encoder | None:
    return language.encoder(config, "language_model.", image_token(config))


def writer(config: Config) -> Encoder:
    return language.decoder(config, "language_model.", image_token(config))


def language_tokens(config: Config) -> dict[str, int]:
    return {**language.tokens(config), "image_token_id": image_token(config)}


def prompt(
    config: Config, ids: np.ndarray | None, mask: np.ndarray | None, batch: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """What the language model continues: placeholders and its first token, or a prompt that has them already."""
    if ids is not None:
        return ids, mask
    row = [*placeholders(config), language.tokens(config)["bos_token_id"]]
    return np.array([row] * batch, np.int64), None


def prefixed(config: Config, text: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    row = np.array(placeholders(config), np.int64)
    fill = {"input_ids": row, "attention_mask": np.ones_like(row)}
    return {name: np.concatenate([np.tile(fill[name], (len(a), 1)), a], 1) for name, a in text.items()}


WRITING = Head(
    "prefix_captioning",
    {"vision": vision, "queries": features, "encoder": reader, "decoder": writer},
    language_tokens,
    prompt,
    prefixed,
    "Question: {} Answer:",
)
FAMILY = Family(
    model_type="blip-2",
    processing=Processing(
        processor="Blip2Processor",
        tokenizer="GPT2Tokenizer",
        image_processor="BlipImageProcessor",
        image_processors=PICTURES,
        kind=ProcessorKind(unused_inputs=NO_TYPES, placeholder="image_token"),
    ),
    aliases=(ALONE,),
    towers={},
    classes={},
    rename=rename,
    heads={
        "Blip2QFormerModel": Head("queries", {"context": drawn_from, "queries": drawing}),
        "Blip2ForConditionalGeneration": WRITING,
        "Blip2Model": WRITING,
        "Blip2ForImageTextRetrieval": Head("query_matching", {"vision": vision, "text": matching}),
        "Blip2VisionModelWithProjection": Head("image_queries", {"vision": vision, "queries": image_queries}),
        "Blip2TextModelWithProjection": Head("text_tokens", {"text": text_tokens}),
    },
)
