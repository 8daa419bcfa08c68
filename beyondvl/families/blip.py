"""BLIP: a vision transformer and a BERT that attends to it in every layer (Li et al., 2022).

One text stack serves as encoder of a text alone (contrastive), of a text grounded in a picture (matching, questions),
and, causal, as decoder (captions, answers). Traps: vision's `post_layernorm` is applied to all tokens, and once more to
the class token for `pooler_output`; the library's default of 8 heads is wrong for every published checkpoint; captions
drop the prompt's last token and end with [SEP]; answers attend to a question's padding too.
"""

from __future__ import annotations

import numpy as np

from ..config import Config
from ..errors import ConfigError
from ..spec import Block, CFormer, Context, Encoder, Linear, Normalize, Pool, Project, Step, ref, replace
from ..stems import PatchStem, TokenStem
from .bert import cross_part, feed_forward, post_norm_block
from .blocks import ACTIVATIONS, linear, norm, pre_norm_block, prediction_head, square_picture, stacked
from .clip import tower_config
from .pictures import BLIP
from .registry import Family, Head, Processing, ProcessorKind

BOS, SEP, PAD = 30522, 102, 0


def fusion_layer(section: Config, layers: int) -> int:
    """The first layer that attends to the picture: 0, or further up as ALBEF's configs say (Li et al., 2021)."""
    return section.integer("fusion_layer", 0, 0, layers - 1)


def text_sizes(config: Config) -> tuple[Config, int, int, int]:
    """The text section, hidden_size, num_hidden_layers, heads."""
    section = tower_config(config, "text")
    hidden = section.integer("hidden_size", 768, 1, 1 << 16)
    if not section.boolean("is_decoder", True):
        raise ConfigError("text_config: is_decoder: found false, expected a text stack with cross-attention")
    heads = section.integer("num_attention_heads", None, 1, 1024)
    if hidden % heads:
        raise ConfigError(f"text_config: hidden_size {hidden} is not a multiple of {heads} heads")
    return section, hidden, section.integer("num_hidden_layers", 12, 1, 1024), heads


def stem(section: Config, hidden: int, patch: int, image: int) -> PatchStem:
    image, patch = square_picture(section, image, patch)
    prefix = "vision_model.embeddings"
    return PatchStem(
        weight=ref(f"{prefix}.patch_embedding.weight", hidden, 3, patch, patch),
        bias=ref(f"{prefix}.patch_embedding.bias", hidden),
        class_token=ref(f"{prefix}.class_embedding", hidden),
        position=ref(f"{prefix}.position_embedding", (image // patch) ** 2 + 1, hidden),
        size=(image, image),
        stride=patch,
    )


def vision_layers(section: Config, hidden: int, defaults: tuple[int, int, int, int], eps: float) -> tuple[Block, ...]:
    """The picture tower's blocks; `defaults`: hidden_size, intermediate_size, num_hidden_layers, heads of the class."""
    intermediate = section.integer("intermediate_size", defaults[1], 1, 1 << 18)
    heads = section.heads(hidden, defaults[0], defaults[3])
    activation = section.choice("hidden_act", "gelu", ACTIVATIONS)
    return tuple(
        pre_norm_block(f"vision_model.encoder.layers.{i}", hidden, intermediate, heads, activation, eps, packed=True)
        for i in range(section.integer("num_hidden_layers", defaults[2], 1, 1024))
    )


def vision_steps(hidden: int, eps: float) -> tuple[Step, ...]:
    return (
        Step("last_hidden_state", "hidden", norm("vision_model.post_layernorm", hidden, eps)),
        Step("class_token", "last_hidden_state", Pool("first")),
        Step("pooler_output", "class_token", norm("vision_model.post_layernorm", hidden, eps)),
    )


def cross_layers(config: Config, prefix: str, features: int) -> tuple[Linear, ...]:
    """Keys and values that each layer of the text stack under `prefix` makes of `features` columns."""
    section, hidden, layers, _ = text_sizes(config)
    attending = range(fusion_layer(section, layers), layers)
    attention = [f"{prefix}encoder.layer.{i}.crossattention.self" for i in attending]
    return tuple(stacked([f"{name}.key", f"{name}.value"], hidden, features) for name in attention)


def vision_alone(config: Config, embeds: Step | None = None) -> Encoder:
    """The picture tower, with a step that projects what it sees."""
    section = tower_config(config, "vision")
    hidden = section.integer("hidden_size", 768, 1, 1 << 16)
    eps = section.number("layer_norm_eps", 1e-5, 0.0, 1.0)
    return Encoder(
        hidden_size=hidden,
        stem=stem(section, hidden, patch=16, image=384),
        layers=vision_layers(section, hidden, (768, 3072, 12, 12), eps),
        steps=vision_steps(hidden, eps) + ((embeds, Step("unit_embeds", "embeds", Normalize())) if embeds else ()),
    )


def contrasted_vision(config: Config) -> Encoder:
    hidden = tower_config(config, "vision").integer("hidden_size", 768, 1, 1 << 16)
    projection = linear("visual_projection", projection_size(config), hidden, bias=False)
    return vision_alone(config, Step("embeds", "pooler_output", Project(projection)))


def vision(config: Config, text_prefix: str, projection: bool = False) -> Encoder:
    """The picture tower; its context is for the text stack under `text_prefix`."""
    hidden = config.section("vision_config").integer("hidden_size", 768, 1, 1 << 16)
    size = config.integer("image_text_hidden_size", 256, 1, 1 << 16)
    embeds = Step("embeds", "class_token", Project(linear("vision_proj", size, hidden)))
    context = Context("last_hidden_state", cross_layers(config, text_prefix, hidden), text_sizes(config)[3])
    return replace(vision_alone(config, embeds if projection else None), context=context)


def projection_size(config: Config) -> int:
    return config.integer("projection_dim", 512, 1, 1 << 16)


def contrasted_text(config: Config) -> Encoder:
    """A text alone, its pooled first token projected."""
    hidden = text_sizes(config)[1]
    steps = (
        Step("class_token", "hidden", Pool("first")),
        Step("pooler_output", "class_token", Project(linear("text_model.pooler.dense", hidden, hidden), "tanh")),
        Step("embeds", "pooler_output",
             Project(linear("text_projection", projection_size(config), hidden, bias=False))),
        Step("unit_embeds", "embeds", Normalize()),
    )  # fmt: skip
    return text(config, "text_model.", steps)


def text_block(section: Config, prefix: str, hidden: int, heads: int, causal: bool, cross: bool) -> Block:
    eps = section.number("layer_norm_eps", 1e-12, 0.0, 1.0)
    intermediate = section.integer("intermediate_size", 3072, 1, 1 << 18)
    activation = section.choice("hidden_act", "gelu", ACTIVATIONS)
    return post_norm_block(
        prefix,
        hidden,
        heads,
        activation,
        eps,
        feed_forward(prefix, hidden, intermediate, eps),
        causal=causal,
        cross=cross_part(f"{prefix}.crossattention", hidden, eps) if cross else None,
    )


def text(config: Config, prefix: str, steps: tuple[Step, ...], causal: bool = False, **more) -> CFormer:
    """The text stack under `prefix`, with the given steps after its last layer."""
    section, hidden, layers, heads = text_sizes(config)
    embeddings, first = f"{prefix}embeddings", fusion_layer(section, layers)
    vocab = section.integer("vocab_size", 30524, 1, 1 << 20)
    return CFormer(
        hidden_size=hidden,
        stem=TokenStem(
            word=ref(f"{embeddings}.word_embeddings.weight", vocab, hidden),
            position=ref(
                f"{embeddings}.position_embeddings.weight",
                section.integer("max_position_embeddings", 512, 1, 1 << 16),
                hidden,
            ),
        ),
        stem_norm=norm(f"{embeddings}.LayerNorm", hidden, section.number("layer_norm_eps", 1e-12, 0.0, 1.0)),
        layers=tuple(
            text_block(section, f"{prefix}encoder.layer.{i}", hidden, heads, causal, i >= first) for i in range(layers)
        ),
        steps=steps,
        **more,
    )


def matching_text(config: Config) -> Encoder:
    _, hidden, _, _ = text_sizes(config)
    size = config.integer("image_text_hidden_size", 256, 1, 1 << 16)
    return text(
        config,
        "text_encoder.",
        (
            Step("class_token", "hidden", Pool("first")),
            Step("itm_score", "class_token", Project(linear("itm_head", 2, hidden))),
            Step("embeds", "class_token", Project(linear("text_proj", size, hidden))),
            Step("unit_embeds", "embeds", Normalize()),
        ),
    )


def question(config: Config) -> Encoder:
    """The question grounded in the picture; its context is for the decoder of the answer."""
    _, hidden, _, heads = text_sizes(config)
    layers = cross_layers(config, "text_decoder.bert.", hidden)
    return text(config, "text_encoder.", (), context=Context("hidden", layers, heads))


def decoder(config: Config) -> Encoder:
    section, hidden, _, _ = text_sizes(config)
    head, eps = "text_decoder.cls.predictions", section.number("layer_norm_eps", 1e-12, 0.0, 1.0)
    vocab = section.integer("vocab_size", 30524, 1, 1 << 20)
    words = "text_decoder.bert.embeddings.word_embeddings.weight"
    activation = section.choice("hidden_act", "gelu", ACTIVATIONS)
    return text(
        config,
        "text_decoder.bert.",
        (
            *prediction_head(head, "hidden", "logits", hidden, vocab, activation, eps, words),
            Step("next_logits", "logits", Pool("last")),
        ),
        causal=True,
    )


def tokens(config: Config) -> dict[str, int]:
    """Ids that generation begins, ends and pads with."""
    section = config.section("text_config")
    vocab = section.integer("vocab_size", 30524, 1, 1 << 20)
    values = {"bos_token_id": ("bos_token_id", BOS), "eos_token_id": ("sep_token_id", SEP),
              "pad_token_id": ("pad_token_id", PAD)}  # fmt: skip
    return {name: section.integer(field, default, 0, vocab - 1) for name, (field, default) in values.items()}


def prompt(
    config: Config, ids: np.ndarray | None, mask: np.ndarray | None, batch: int
) -> tuple[np.ndarray, np.ndarray | None]:
    """What a caption continues: a prompt whose first token becomes [DEC] and whose last one, [SEP], is dropped.

    Without a mask, padding is told by its id, as transformers does.
    """
    special = tokens(config)
    if ids is None:
        return np.full((batch, 1), special["bos_token_id"], np.int64), None
    if ids.shape[1] < 2:
        raise ValueError(f"input_ids: found {ids.shape[1]} tokens, expected a prompt between [CLS] and [SEP]")
    ids = ids[:, :-1].copy()
    ids[:, 0] = special["bos_token_id"]
    return ids, (ids != special["pad_token_id"]).astype(np.int64) if mask is None else mask[:, :-1]


PICTURES = {"BlipImageProcessor": BLIP}
NO_TYPES = ("token_type_ids",)  # its models know none, though a tokenizer does
FAMILY = Family(
    model_type="blip",
    processing=Processing(
        processor="BlipProcessor",
        tokenizer="BertTokenizer",
        image_processor="BlipImageProcessor",
        image_processors=PICTURES,
        kind=ProcessorKind(unused_inputs=NO_TYPES),
    ),
    aliases=("blip_text_model", "blip_vision_model"),
    towers={"text": contrasted_text, "vision": contrasted_vision},
    classes={"BlipModel": ("text", "vision"), "BlipTextModel": ("text",), "BlipVisionModel": ("vision",)},
    bare=frozenset({"BlipTextModel", "BlipVisionModel"}),
    prefixes={
        "text": ("text_model.", "text_projection.", "text_decoder.", "text_encoder.", "text_proj.", "itm_head."),
        "vision": ("vision_model.", "visual_projection.", "vision_proj."),
    },
    # of a text alone, and of a picture and a text side by side
    ignored=(
        *(f"text_model.encoder.layer.{i}.crossattention.self.{n}" for i in range(64) for n in ("key", "value")),
        "logit_scale",
    ),
    scale="logit_scale",
    heads={
        "BlipForConditionalGeneration": Head(
            "captioning", {"vision": lambda c: vision(c, "text_decoder.bert."), "decoder": decoder}, tokens, prompt
        ),
        "BlipForImageTextRetrieval": Head(
            "matching", {"vision": lambda c: vision(c, "text_encoder.", projection=True), "text": matching_text}
        ),
        "BlipForQuestionAnswering": Head(
            "answering",
            {"vision": lambda c: vision(c, "text_encoder."), "text": question, "decoder": decoder},
            tokens,
        ),
    },
)
