"""Beyond VL, the project's own model: texts, pictures, clips and sounds together, and words about them.

Towers of other families, their keys under "text_model.", "vision_model.", "audio_model.", give rows of what they see;
    image   v = m / |m| + C p,  m = fc2(gelu(fc1(norm(mean of the rows)))), p the class probabilities where it has some
    text    the mean of its rows, projected
A Q-Former (Li et al., 2023; Dai et al., 2023): learned queries of each modality, and the rows of an instruction,
attend to each other and draw from the rows of an input. A C-Former (one stream, as Singh et al., 2022): a class token,
of each input its embedding, what was drawn, how it agrees with the text, and of a clip how things move; of the text its
embedding and its rows. A decoder attends to that stream and writes. All blocks of these are pre-norm; their parameters
are named as in transformers' BART. Recipe: training/.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ..config import Config
from ..errors import ConfigError
from ..maps import InvertedResidual
from ..outputs import BatchFeature, check_allowed
from ..processing.motion import GRID
from ..processing.motion import columns as motion_columns
from ..spec import (
    Block,
    CFormer,
    Context,
    Cross,
    Encoder,
    Linear,
    Norm,
    Normalize,
    Pool,
    Project,
    QFormer,
    Softmax,
    Step,
    TakeRows,
    ref,
    replace,
)
from ..stems import JoinStem, PatchRowsStem, PatchStem, TokenStem
from .blocks import bart_block, linear, norm, stacked, under
from .pictures import CLIP
from .registry import Family, Head, Processing, ProcessorKind, find_family
from .whisper import WhisperFeatureExtractor

EPS = 1e-5
DRAWN = ("image", "video", "audio")  # what queries draw from, in the order of their tokens and types
TOWERS = {"text": "bert", "vision": "efficientnet_lite", "audio": "whisper"}  # of a section that names no model_type


def sizes(config: Config) -> tuple[int, int]:
    """hidden_size, of embeddings too, and queries of each modality."""
    return config.integer("hidden_size", 384, 1, 1 << 16), config.integer("num_query_tokens", 16, 1, 1 << 12)


def head_size(config: Config) -> int:
    """Hidden size of the MLP on a picture's mean row."""
    return config.integer("head_size", 1536, 1, 1 << 16)


def num_frames(config: Config) -> int:
    """Frames of a clip."""
    return config.integer("num_frames", 8, 1, 256)


def decoder_positions(config: Config) -> int:
    """Tokens the decoder writes at most."""
    return config.section("decoder_config").integer("max_position_embeddings", 64, 1, 1 << 16)


def tower(config: Config, name: str) -> Encoder:
    """A tower of the family that its section names, up to the states of its rows."""
    section = config.section(f"{name}_config")
    section = section if section.get("model_type") else section.updated(Config({"model_type": TOWERS[name]}))
    family = find_family(section)
    build = family.towers.get(name) or next((h.towers[name] for h in family.heads.values() if name in h.towers), None)
    if build is None or family is FAMILY:
        raise ConfigError(f"{name}_config: model_type: found {section.get('model_type')!r}, which has no {name} tower")
    encoder = build(section)
    kept = ("last_hidden_state", *(("pooler_output", "logits") if classes(encoder) else ()))
    needed, steps = set(kept), []
    for step in reversed(encoder.steps):
        if step.dst in needed:
            needed.add(step.src)
            steps.insert(0, step)
    return under(replace(encoder, steps=tuple(steps), context=None), f"{name}_model.")


def classes(encoder: Encoder) -> int:
    """How many classes a tower tells apart; 0 where it gives no scores of any."""
    scores = [step.what for step in encoder.steps if step.dst == "logits" and isinstance(step.what, Project)]
    return scores[0].linear.out_features if scores else 0


def width(encoder: Encoder) -> int:
    """Columns of the states of a tower's rows."""
    projected = [s.what for s in encoder.steps if s.dst == "last_hidden_state" and isinstance(s.what, Project)]
    return projected[-1].linear.out_features if projected else encoder.hidden_size


def states(encoder: Encoder) -> str:
    """The slot of the states of a tower's rows."""
    return "last_hidden_state" if any(step.dst == "last_hidden_state" for step in encoder.steps) else "hidden"


def places(encoder: Encoder) -> int:
    """Rows that a tower makes of a picture, or of a window of a sound."""
    last = encoder.layers[-1] if encoder.layers else None
    if isinstance(last, InvertedResidual):
        return last.out_size[0] * last.out_size[1]
    if isinstance(encoder.stem, PatchRowsStem):
        raise ConfigError("config.json: found a tower of pictures of any size, expected one of a single size")
    if not isinstance(encoder.stem, PatchStem):
        raise ConfigError("config.json: found a tower of texts, expected one of pictures or sounds")
    return encoder.stem.rows


def text(config: Config) -> Encoder:
    """A text's embedding, and its rows as formers read them."""
    size, _ = sizes(config)
    encoder = tower(config, "text")
    source, columns = states(encoder), width(encoder)
    return replace(
        encoder,
        steps=(
            *encoder.steps,
            Step("mean_token", source, Pool("mean")),
            Step("pooler_output", "mean_token", Normalize()),
            Step("embeds", "pooler_output", Project(linear("text_projection", size, columns))),
            Step("unit_embeds", "embeds", Normalize()),
            Step("normed_states", source, norm("text_rows.norm", columns, EPS)),
            Step("rows", "normed_states", Project(linear("text_rows.projection", size, columns))),
        ),
    )


def vision(config: Config) -> Encoder:
    """A picture's embedding, its rows as formers draw from them, and means of them over a coarse grid."""
    size, _ = sizes(config)
    encoder = tower(config, "vision")
    source, columns, labels = states(encoder), width(encoder), classes(encoder)
    inner = head_size(config)
    head: list[Step] = [
        *encoder.steps,
        Step("mean_row", source, Pool("mean")),
        Step("normed_features", "mean_row", norm("vision_head.norm", columns, EPS)),
        Step("head_hidden", "normed_features", Project(linear("vision_head.fc1", inner, columns), "gelu")),
        Step("head_out", "head_hidden", Project(linear("vision_head.fc2", size, inner))),
        Step("embeds", "head_out", Normalize()),
    ]
    rows = [
        Step("normed_states", source, norm("image_rows.norm", columns, EPS)),
        Step("rows", "normed_states", Project(linear("image_rows.projection", size, columns))),
        Step("grid", "rows", TakeRows(*cells(places(encoder)))),
    ]
    if labels:
        named = Linear(ref("vision_head.class_embeddings", size, labels))
        seen = Linear(ref("image_rows.class_embeddings", size, labels))
        head += [
            Step("probabilities", "logits", Softmax()),
            Step("embeds", "probabilities", Project(named, accumulate=True)),
        ]
        rows.append(Step("class_row", "probabilities", Project(seen)))
    return replace(encoder, steps=(*head, Step("unit_embeds", "embeds", Normalize()), *rows))


def cells(rows: int) -> tuple[tuple[int, ...], int]:
    """The rows of a square map by cells of a grid of GRID x GRID, and how many a cell has; all rows as they are where
    the map is not such a square."""
    side = int(rows**0.5)
    step = side // GRID
    if side * side != rows or not step or side % GRID:
        return tuple(range(rows)), 1
    order = np.arange(rows).reshape(GRID, step, GRID, step).transpose(0, 2, 1, 3).reshape(-1)
    return tuple(order.tolist()), step * step


def audio(config: Config) -> Encoder | None:
    """The states of a sound's rows after its stem and after each block; `audio_rows` mixes them."""
    return tower(config, "audio") if config.get("audio_config") else None


def heads(config: Config) -> int:
    return config.heads(sizes(config)[0], 384, 6)


def former_block(config: Config, name: str, index: int, cross: bool, causal: bool = False) -> Block:
    """A pre-norm block of the Q-Former, the C-Former or the decoder."""
    size = sizes(config)[0]
    inner = config.section(f"{name}_config").integer("intermediate_size", 4 * size, 1, 1 << 18)
    prefix = f"{name}.layers.{index}"
    qkv = stacked([f"{prefix}.self_attn.{part}_proj" for part in "qkv"], size, size)
    block = bart_block(prefix, qkv, size, inner, heads(config), "gelu", EPS, causal)
    attention = Cross(
        query=linear(f"{prefix}.encoder_attn.q_proj", size, size),
        out=linear(f"{prefix}.encoder_attn.out_proj", size, size),
        norm=norm(f"{prefix}.encoder_attn_layer_norm", size, EPS),
    )
    return replace(block, cross=attention) if cross else block


def former_layers(config: Config, name: str) -> int:
    defaults = {"image_rows": 0, "video_rows": 1, "qformer": 2, "cformer": 2, "decoder": 3}
    return config.section(f"{name}_config").integer("num_hidden_layers", defaults[name], min(defaults[name], 1), 1024)


def blocks(config: Config, name: str, cross: bool, causal: bool = False) -> tuple[Block, ...]:
    return tuple(former_block(config, name, i, cross, causal) for i in range(former_layers(config, name)))


def context(config: Config, name: str, src: str) -> Context:
    """Keys and values of each layer of a former, or of the decoder, that attends."""
    size = sizes(config)[0]
    names = [f"{name}.layers.{i}.encoder_attn" for i in range(former_layers(config, name))]
    layers = tuple(stacked([f"{each}.k_proj", f"{each}.v_proj"], size, size) for each in names)
    return Context(src, layers, heads(config))


def final_norm(config: Config, name: str) -> Norm:
    return norm(f"{name}.layer_norm", sizes(config)[0], EPS)


def placed_rows(config: Config, name: str, count: int) -> Encoder:
    """What queries draw from: rows of a picture, or of a clip, each with the embedding of its place; those of a clip
    attend to each other, so that each knows where what it shows was before."""
    size = sizes(config)[0]
    return Encoder(
        hidden_size=size,
        stem=JoinStem(type=ref(f"{name}.position.weight", count, size)),
        layers=blocks(config, name, cross=False),
        steps=(Step("rows", "hidden", final_norm(config, name)),),
        context=context(config, "qformer", "rows"),
    )


def image_rows(config: Config) -> Encoder:
    encoder = tower(config, "vision")
    return placed_rows(config, "image_rows", places(encoder) + (1 if classes(encoder) else 0))


def video_rows(config: Config) -> Encoder:
    order, count = cells(places(tower(config, "vision")))
    return placed_rows(config, "video_rows", (1 + num_frames(config)) * (len(order) // count))


def row_of(name: str, source: str, columns: int, size: int) -> tuple[Step, Step]:
    """A row of the stream, fc2(gelu(fc1(x))) of numbers in a slot."""
    return (
        Step("row_hidden", source, Project(linear(f"{name}.fc1", size, columns), "gelu")),
        Step("rows", "row_hidden", Project(linear(f"{name}.fc2", size, size))),
    )


def motion(config: Config) -> Encoder:
    """A clip's row of how things move in it."""
    order, count = cells(places(tower(config, "vision")))
    size = sizes(config)[0]
    columns = motion_columns(num_frames(config), len(order) // count, size)
    return Encoder(
        hidden_size=columns,
        stem=JoinStem(),
        layers=(),
        steps=(
            Step("normed_features", "hidden", norm("motion.norm", columns, EPS)),
            *row_of("motion", "normed_features", columns, size),
        ),
    )


def agreement(config: Config) -> Encoder:
    """A row of how an input agrees with a text, of the product of their embeddings, number by number."""
    size = sizes(config)[0]
    return Encoder(hidden_size=size, stem=JoinStem(), layers=(), steps=row_of("agreement", "hidden", size, size))


def audio_rows(config: Config) -> Encoder | None:
    """A sound's rows of all its tower's layers side by side, and its embedding."""
    if not config.get("audio_config"):
        return None
    size, _ = sizes(config)
    encoder = tower(config, "audio")
    pooling = config.integer("audio_pooling", 4, 1, 64)
    if places(encoder) % pooling:
        raise ConfigError(
            f"audio_pooling: found {pooling}, expected a divisor of the {places(encoder)} rows of a sound"
        )
    columns = width(encoder) * (len(encoder.layers) + 1)
    return Encoder(
        hidden_size=columns,
        stem=JoinStem(),
        layers=(),
        steps=(
            Step("normed_states", "hidden", norm("audio_rows.norm", columns, EPS)),
            Step("projected", "normed_states", Project(linear("audio_rows.projection", size, columns))),
            Step("rows", "projected", norm("audio_rows.layer_norm", size, EPS)),
            Step("mean_row", "rows", Pool("mean")),
            Step("embeds", "mean_row", Project(linear("audio_head", size, size))),
        ),
        context=context(config, "qformer", "rows"),
    )


def qformer(config: Config) -> QFormer:
    """Rows of zeros whose types are the queries of a modality, then an instruction's rows, whose type is the last."""
    size, queries = sizes(config)
    return QFormer(
        hidden_size=size,
        stem=JoinStem(type=ref("qformer.query_tokens", len(DRAWN) * queries + 1, size)),
        layers=blocks(config, "qformer", cross=True),
        steps=(
            Step("last_hidden_state", "hidden", final_norm(config, "qformer")),
            Step("projected", "last_hidden_state", Project(linear("query_projection", size, size))),
            Step("query_embeds", "projected", Normalize()),
            Step("embeds", "projected", Pool("mean")),
        ),
    )


def cformer(config: Config) -> CFormer:
    size, _ = sizes(config)
    return CFormer(
        hidden_size=size,
        stem=JoinStem(
            class_token=ref("cformer.class_token", size),
            type=ref("cformer.token_type", len(DRAWN) + 1, size),
            inputs=(*DRAWN, "text"),
        ),
        layers=blocks(config, "cformer", cross=False),
        steps=(
            Step("last_hidden_state", "hidden", final_norm(config, "cformer")),
            Step("pooler_output", "last_hidden_state", Pool("first")),
            Step("embeds", "pooler_output", Project(linear("fused_projection", size, size))),
            Step("unit_embeds", "embeds", Normalize()),
            Step("match_logits", "pooler_output", Project(linear("matching_head", 2, size))),
        ),
        context=context(config, "decoder", "last_hidden_state"),
    )


def decoder(config: Config) -> Encoder:
    size = sizes(config)[0]
    words = ref("decoder.embed_tokens.weight", len(vocabulary(config)), size)
    positions = decoder_positions(config)
    return Encoder(
        hidden_size=size,
        stem=TokenStem(words, ref("decoder.embed_positions.weight", positions, size)),
        layers=blocks(config, "decoder", cross=True, causal=True),
        steps=(
            Step("last_hidden_state", "hidden", final_norm(config, "decoder")),
            Step("logits", "last_hidden_state", Project(Linear(words), as_blocks=True)),
            Step("next_logits", "logits", Pool("last")),
        ),
    )


def vocabulary(config: Config) -> tuple[int, ...]:
    """The ids of the text's tokenizer that the decoder writes, in the order of its own."""
    ids = config.section("decoder_config").get("token_ids")
    if not isinstance(ids, list) or not ids or not all(type(i) is int and 0 <= i < 1 << 20 for i in ids):
        raise ConfigError("decoder_config: token_ids: expected a list of the tokenizer's ids")
    return tuple(ids)


def tokens(config: Config) -> dict[str, int]:
    """Ids that generation begins, ends and fills up with, of the decoder's own."""
    section, most = config.section("decoder_config"), len(vocabulary(config)) - 1
    defaults = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    return {name: section.integer(name, default, 0, most) for name, default in defaults.items()}


def seen_alone(config: Config) -> Encoder:
    """The picture tower of the class that only compares."""
    return compared(vision(config), ("normed_states", "rows", "grid", "class_row"))


def read_alone(config: Config) -> Encoder:
    """The text tower of the class that only compares."""
    return compared(text(config), ("normed_states", "rows"))


def compared(encoder: Encoder, left_out: tuple[str, ...]) -> Encoder:
    return replace(encoder, steps=tuple(step for step in encoder.steps if step.dst not in left_out))


# options of a sound's extractor at values that change nothing here
ACCEPTED = {
    "padding": (None, True, "longest"), "truncation": (None, False), "max_length": (None,),
    "do_normalize": (None, False), "pad_to_multiple_of": (None,), "return_attention_mask": (None, True),
}  # fmt: skip


class BeyondVLFeatureExtractor(WhisperFeatureExtractor):
    """`input_features` (B, mels, frames) of sounds of any length at 16 kHz, filled up with silence to whole windows of
    `chunk_length` seconds, and `feature_attention_mask` (B, frames), 0 where it was."""

    defaults: ClassVar[dict[str, Any]] = WhisperFeatureExtractor.defaults | {"chunk_length": 10}
    other_names = ("feature_attention_mask",)

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
        device: str | None = "cpu",
        **options: Any,
    ) -> BatchFeature:
        """`raw_speech`: one sound or a list, never cut: of transformers' options `padding` and the like are accepted
        where they ask for that. Raises AudioError, ValueError, TypeError."""
        for name, value in options.items():
            if name not in ACCEPTED:
                raise TypeError(f"unexpected arguments: {name}; known: {', '.join(sorted(ACCEPTED))}")
            check_allowed(name, value, ACCEPTED[name])
        inputs = super().__call__(
            raw_speech, truncation=False, pad_to_multiple_of=self.n_samples, padding="longest",
            sampling_rate=sampling_rate, return_attention_mask=True, return_tensors=return_tensors, device=device,
        )  # fmt: skip
        inputs["feature_attention_mask"] = inputs.pop("attention_mask")
        return inputs


FAMILY = Family(
    model_type="beyond_vl",
    processing=Processing(
        processor="BeyondVLProcessor",
        tokenizer="BertTokenizer",
        image_processor="CLIPImageProcessor",
        feature_extractor="BeyondVLFeatureExtractor",
        image_processors={"CLIPImageProcessor": CLIP},
        feature_extractors={"BeyondVLFeatureExtractor": BeyondVLFeatureExtractor},
        kind=ProcessorKind(num_frames=num_frames, clips="pixel_values_videos"),
    ),
    towers={"text": read_alone, "vision": seen_alone},
    classes={"BeyondVLModel": ("text", "vision")},
    prefixes={
        "text": ("text_model.", "text_projection."),
        "vision": ("vision_model.", "vision_head."),
    },
    scale="logit_scale",
    heads={
        "BeyondVLForConditionalGeneration": Head(
            "any_modality",
            {
                "text": text,
                "vision": vision,
                "audio": audio,
                "image_rows": image_rows,
                "video_rows": video_rows,
                "motion": motion,
                "agreement": agreement,
                "audio_rows": audio_rows,
                "qformer": qformer,
                "cformer": cformer,
                "decoder": decoder,
            },
            tokens,
            scaled=True,
            vocabulary=vocabulary,
        )
    },
)
