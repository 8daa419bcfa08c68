"""EmbeddingGemma 2 (Google, 2026): texts, pictures, clips and sounds into one space of 768 numbers, by a transformer
that looks both ways; rows of pictures, of frames and of sounds stand in its texts (gemma4_pictures.py and
gemma4_sounds.py make them).

Traps: two kinds of layer, one that sees `sliding_window` tokens to either side and one that sees all, with their own
heads and frequencies; norms before and after every sub-layer and of q, k and v of each head, scores not scaled; what
the tokens were is mixed in again after each layer, from a projection alone; a layer ends with a factor; the last
one sees all. The embedding is the mean over the tokens of the projected rows, normalised.
"""

from __future__ import annotations

from typing import Any

from ..config import Config
from ..errors import ConfigError
from ..spec import Block, Encoder, GatedInput, Linear, Normalize, Pool, Project, Step, ref
from ..stems import TokenStem
from . import gemma4_pictures, gemma4_sounds
from .bert import sentence_steps
from .blocks import ACTIVATIONS, llama_block, rms_norm, rope_frequencies
from .pictures import GEMMA4
from .registry import Family, Head, Processing, ProcessorKind

KINDS = ("sliding_attention", "full_attention")


def kinds(section: Config, layers: int) -> list[str]:
    """What each layer sees."""
    stated = section.get("layer_types")
    if stated is None:
        pattern = section.integer("sliding_window_pattern", 6, 1, 1024)
        stated = [KINDS[not (i + 1) % pattern] for i in range(layers)]
    if not isinstance(stated, list) or len(stated) != layers or not all(kind in KINDS for kind in stated):
        raise ConfigError(f"text_config: layer_types: found {stated!r}, expected {layers} of {', '.join(KINDS)}")
    return stated


def heads_of(section: Config, index: int, kind: str) -> tuple[int, int]:
    """head_dim and the heads of keys of a layer; the config writes its number with noughts before it ("05" of 24)."""
    layers = section.get("per_layer_config")
    own: dict[str, Any] = {}
    if layers is None and kind == "full_attention":
        own = {"head_dim": section.get("global_head_dim", 512),
               "num_key_value_heads": section.get("num_global_key_value_heads", 1)}  # fmt: skip
    elif layers is not None:
        stated = section.section("per_layer_config")
        name = next((key for key in stated.to_dict() if key.isdecimal() and int(key) == index), str(index))
        own = stated.section(name).to_dict()
    merged = section.updated(Config(own))
    head_dim = merged.integer("head_dim", 256, 2, 1 << 12)
    if head_dim % 2:
        raise ConfigError(f"text_config: head_dim: found {head_dim}, expected an even number")
    return head_dim, merged.integer("num_key_value_heads", 2, 1, 1 << 10)


def block(section: Config, prefix: str, index: int, kind: str, layers: int, hidden: int, eps: float) -> Block:
    name = f"{prefix}layers.{index}"
    ple = f"{name}.ple_block"
    heads, (head_dim, kv_heads) = section.integer("num_attention_heads", 4, 1, 1 << 10), heads_of(section, index, kind)
    if heads % kv_heads:
        raise ConfigError(f"text_config: {heads} heads and {kv_heads} of keys, expected a divisor")
    width = section.integer("hidden_size_per_layer_input", 512, 1, 1 << 16)
    projection = ref(f"{prefix}ple.per_layer_model_projection.weight", width, hidden, packed_rows=layers * width,
                     rows=(index * width, (index + 1) * width), scale=hidden**-0.5)  # fmt: skip
    return llama_block(
        name,
        hidden,
        section.integer("intermediate_size", 2048, 1, 1 << 18),
        (heads, kv_heads, head_dim),
        section.choice("hidden_activation", "gelu_pytorch_tanh", ACTIVATIONS),
        lambda parameter: rms_norm(parameter, hidden, eps),
        bias=section.boolean("attention_bias", False),
        post_norms=True,
        scale=1.0,
        rotary=1 + KINDS.index(kind),
        head_norms=tuple(ref(f"{name}.self_attn.{part}_norm.weight", head_dim) for part in "qk"),
        norms_values=True,
        sliding_window=section.integer("sliding_window", 512, 1, 1 << 20) if kind == "sliding_attention" else 0,
        gated_input=GatedInput(
            gate=ref(f"{ple}.per_layer_input_gate.weight", width, hidden),
            inputs=projection,
            norm=rms_norm(f"{prefix}ple.per_layer_projection_norm", width, eps),
            out=ref(f"{ple}.per_layer_projection.weight", hidden, width),
            post_norm=rms_norm(f"{ple}.post_per_layer_input_norm", hidden, eps),
            scale=ref(f"{name}.layer_scalar", 1),
        ),
    )


def mixes(config: Config) -> bool:
    """Whether rows of anything else may stand in its texts."""
    return any(config.get(f"{name}_config") is not None for name in ("vision", "audio"))


def placeholders(config: Config) -> dict[str, int]:
    """The ids that stand for rows of pictures, of clips and of sounds."""
    words = config.section("text_config").integer("vocab_size", 262_144, 1, 1 << 22)
    most = words - 1 if mixes(config) else 1 << 22
    defaults = {"image": 258_880, "video": 258_884, "audio": 258_881}
    return {name: config.integer(f"{name}_token_id", default, 0, most) for name, default in defaults.items()}


def text_size(config: Config) -> int:
    return config.section("text_config").integer("hidden_size", 512, 1, 1 << 16)


def vision(config: Config) -> Encoder | None:
    has = config.get("vision_config") is not None
    return gemma4_pictures.vision(config, text_size(config)) if has else None


def audio(config: Config) -> Encoder | None:
    return gemma4_sounds.audio(config, text_size(config)) if config.get("audio_config") is not None else None


def rename(key: str) -> str:
    """Without the wrapper of linears that may be clipped."""
    return key.replace(".linear.", ".") if key.startswith(("vision_tower.", "audio_tower.")) else key


def text(config: Config) -> Encoder:
    alone = config.get("model_type") == "embedding_gemma2_text"
    section, prefix = (config, "") if alone else (config.section("text_config"), "language_model.")
    hidden = section.integer("hidden_size", 512, 1, 1 << 16)
    layers, eps = section.integer("num_hidden_layers", 24, 1, 1024), section.number("rms_norm_eps", 1e-6, 0.0, 1.0)
    sees, rope = [*kinds(section, layers)[:-1], KINDS[1]], section.section("rope_parameters")
    head_dims = {kind: heads_of(section, sees.index(kind), kind)[0] for kind in KINDS if kind in sees}
    projection = ref(f"{prefix}embedding_projection.weight", section.integer("embedding_dim", 768, 1, 1 << 16), hidden)
    vocab = section.integer("vocab_size", 262_144, 1, 1 << 22)
    pooled, unit = Step("pooled", "last_hidden_state", Pool("mean")), Step("sentence_embedding", "pooled", Normalize())
    embedding = (pooled, unit)
    if config.get("sentence_transformers"):
        embedding = sentence_steps(config, "last_hidden_state")
    return Encoder(
        hidden_size=hidden,
        stem=TokenStem(
            word=ref(f"{prefix}embed_tokens.weight", vocab, hidden, scale=hidden**0.5),
            position=None,
            feature_token=placeholders(config)["image"] if mixes(config) else -1,
            flat_features=True,
            max_positions=section.integer("max_position_embeddings", 262_144, 1, 1 << 24),
            rotary=rope_frequencies(rope.section(KINDS[0]), head_dims.get(KINDS[0], 2), 1e4),
            rotary_2=rope_frequencies(rope.section(KINDS[1]), head_dims[KINDS[1]], 1e6),
        ),
        layers=tuple(block(section, prefix, i, kind, layers, hidden, eps) for i, kind in enumerate(sees)),
        states_end_in_output=True,
        steps=(
            Step("normed", "hidden", rms_norm(f"{prefix}norm", hidden, eps)),
            Step("last_hidden_state", "normed", Project(Linear(projection))),
            *embedding,
        ),
    )


FAMILY = Family(
    model_type="embedding_gemma2",
    processing=Processing(
        processor="EmbeddingGemma2Processor",
        tokenizer="GemmaTokenizer",
        image_processor="Gemma4ImageProcessor",
        image_processors={"Gemma4ImageProcessor": GEMMA4},
        feature_extractor="Gemma4AudioFeatureExtractor",
        feature_extractors={"Gemma4AudioFeatureExtractor": gemma4_sounds.Gemma4AudioFeatureExtractor},
        kind=ProcessorKind({"padding": True}, clip_soft_tokens=70),
    ),
    aliases=("embedding_gemma2_text",),
    towers={"text": text},
    classes={"EmbeddingGemma2TextModel": ("text",)},
    heads={"EmbeddingGemma2Model": Head("interleaved", {"text": text, "vision": vision, "audio": audio}, placeholders)},
    base="EmbeddingGemma2Model",
    rename=rename,
    ignored=("vision_tower.", "embed_vision.", "audio_tower.", "embed_audio."),  # of what a config leaves out
)
