"""CLIP: a causal text transformer and a vision transformer with a class token (Radford et al., 2021).

Traps: `eos_token_id` 2 in a config means "the largest token id" (the first checkpoints were saved so), any other
value the first position that holds it; vision's last_hidden_state is not normalised, only its class token is;
OpenAI's weights use quick_gelu, LAION's gelu: the config decides.
"""

from __future__ import annotations

from ..config import Config
from ..spec import Encoder, Normalize, Pool, Project, Step, ref
from ..stems import PatchStem, TokenStem
from .blocks import ACTIVATIONS, linear, norm, pre_norm_block, square_picture
from .pictures import CLIP
from .registry import Family, Processing

LEGACY_EOS = 2


def sizes(config: Config, hidden: int, intermediate: int, heads: int) -> tuple[int, int, int, int, str, float]:
    """hidden_size, intermediate_size, num_hidden_layers, heads, activation, eps of one tower."""
    hidden_size = config.integer("hidden_size", hidden, 1, 1 << 16)
    return (
        hidden_size,
        config.integer("intermediate_size", intermediate, 1, 1 << 18),
        config.integer("num_hidden_layers", 12, 1, 1024),
        config.heads(hidden_size, hidden, heads),
        config.choice("hidden_act", "quick_gelu", ACTIVATIONS),
        config.number("layer_norm_eps", 1e-5, 0.0, 1.0),
    )


def tower_config(config: Config, name: str) -> Config:
    """The section of one tower; a config of that tower alone (model_type clip_text_model) is itself the section."""
    if str(config.get("model_type", "")).endswith(f"{name}_model"):
        return config
    return config.section(f"{name}_config")


def projection_size(config: Config, section: Config) -> int:
    return (section if "projection_dim" not in config else config).integer("projection_dim", 512, 1, 1 << 16)


def text(config: Config) -> Encoder:
    section = tower_config(config, "text")
    hidden, intermediate, layers, heads, activation, eps = sizes(section, 512, 2048, 8)
    vocab = section.integer("vocab_size", 49408, 1, 1 << 22)
    positions = section.integer("max_position_embeddings", 77, 1, 1 << 16)
    eos = section.integer("eos_token_id", 49407, 0, vocab - 1)
    embeddings = "text_model.embeddings"
    return Encoder(
        hidden_size=hidden,
        stem=TokenStem(
            word=ref(f"{embeddings}.token_embedding.weight", vocab, hidden),
            position=ref(f"{embeddings}.position_embedding.weight", positions, hidden),
        ),
        layers=tuple(
            pre_norm_block(f"text_model.encoder.layers.{i}", hidden, intermediate, heads, activation, eps, causal=True)
            for i in range(layers)
        ),
        steps=(
            Step("last_hidden_state", "hidden", norm("text_model.final_layer_norm", hidden, eps)),
            Step("pooler_output", "last_hidden_state", Pool("argmax") if eos == LEGACY_EOS else Pool("token", eos)),
            Step(
                "embeds",
                "pooler_output",
                Project(linear("text_projection", projection_size(config, section), hidden, bias=False)),
            ),
            Step("unit_embeds", "embeds", Normalize()),
        ),
    )


def patch_stem(section: Config, hidden: int, prefix: str, bias: bool, class_token: bool) -> PatchStem:
    """A square picture cut into square patches; the sizes are checked against each other."""
    image, patch = square_picture(section, 224, 32)
    channels = section.integer("num_channels", 3, 1, 4)
    tokens = (image // patch) ** 2 + class_token
    return PatchStem(
        weight=ref(f"{prefix}.patch_embedding.weight", hidden, channels, patch, patch),
        bias=ref(f"{prefix}.patch_embedding.bias", hidden) if bias else None,
        class_token=ref(f"{prefix}.class_embedding", hidden) if class_token else None,
        position=ref(f"{prefix}.position_embedding.weight", tokens, hidden),
        size=(image, image),
        stride=patch,
        channels=channels,
    )


def vision(config: Config) -> Encoder:
    section = tower_config(config, "vision")
    hidden, intermediate, layers, heads, activation, eps = sizes(section, 768, 3072, 12)
    return Encoder(
        hidden_size=hidden,
        stem=patch_stem(section, hidden, "vision_model.embeddings", bias=False, class_token=True),
        stem_norm=norm("vision_model.pre_layrnorm", hidden, eps),
        layers=tuple(
            pre_norm_block(f"vision_model.encoder.layers.{i}", hidden, intermediate, heads, activation, eps)
            for i in range(layers)
        ),
        steps=(
            Step("class_token", "hidden", Pool("first")),
            Step("pooler_output", "class_token", norm("vision_model.post_layernorm", hidden, eps)),
            Step(
                "embeds",
                "pooler_output",
                Project(linear("visual_projection", projection_size(config, section), hidden, bias=False)),
            ),
            Step("unit_embeds", "embeds", Normalize()),
        ),
    )


PROCESSING = Processing(
    processor="CLIPProcessor",
    tokenizer="CLIPTokenizer",
    image_processor="CLIPImageProcessor",
    image_processors={"CLIPImageProcessor": CLIP},
)
FAMILY = Family(
    model_type="clip",
    processing=PROCESSING,
    aliases=("clip_text_model", "clip_vision_model"),
    towers={"text": text, "vision": vision},
    classes={
        "CLIPModel": ("text", "vision"),
        "CLIPTextModelWithProjection": ("text",),
        "CLIPVisionModelWithProjection": ("vision",),
        "CLIPTextModel": ("text",),
        "CLIPVisionModel": ("vision",),
    },
    bare=frozenset({"CLIPTextModel", "CLIPVisionModel"}),
    prefixes={"text": ("text_model.", "text_projection."), "vision": ("vision_model.", "visual_projection.")},
    older_sections=True,
    scale="logit_scale",
    projected_pooler=True,
)
