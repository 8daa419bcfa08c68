"""OpenCLIP's own format: open_clip_config.json + open_clip_model.safetensors, plain ViT and text transformer.

q, k, v are packed in one parameter, projections are stored as [in, out]; the activation is erf GELU unless the config
says quick_gelu; text pools at the largest token id. Other towers (timm, Hugging Face text, CoCa) are refused by name.
"""

from __future__ import annotations

from ..config import Config
from ..errors import ConfigError
from ..spec import Block, Encoder, FeedForward, Linear, Normalize, PatchStem, Pool, Project, Step, TokenStem, ref
from .blocks import linear, norm, square_picture
from .registry import Family, strip_prefixes

EPS = 1e-5
PLAIN = {
    "timm_model_name",
    "hf_model_name",
    "attentional_pool",
    "patch_dropout",
    "pos_embed_type",
    "no_ln_pre",
    "final_ln_after_pool",
    "ls_init_value",
    "norm_kwargs",
    "act_kwargs",
    "embed_cls",
    "no_causal_mask",
    "global_average_pool",
}


def section_of(config: Config, name: str) -> Config:
    section = config.section("model_cfg").section(name)
    for field in sorted(PLAIN):
        if section.get(field):
            raise ConfigError(f"open_clip_config.json: {name}: {field} {section.get(field)!r} is not supported")
    return section


def activation(config: Config) -> str:
    return "quick_gelu" if config.section("model_cfg").boolean("quick_gelu", False) else "gelu"


def block(prefix: str, width: int, mlp: int, heads: int, activation: str, causal: bool) -> Block:
    attention = f"{prefix}.attn"
    return Block(
        qkv=Linear(ref(f"{attention}.in_proj_weight", 3 * width, width), ref(f"{attention}.in_proj_bias", 3 * width)),
        out=linear(f"{attention}.out_proj", width, width),
        norm1=norm(f"{prefix}.ln_1", width, EPS),
        ffn=FeedForward(
            linear(f"{prefix}.mlp.c_fc", mlp, width),
            linear(f"{prefix}.mlp.c_proj", width, mlp),
            norm(f"{prefix}.ln_2", width, EPS),
        ),
        num_attention_heads=heads,
        activation=activation,
        causal=causal,
    )


def tower(config: Config, section: Config, prefix: str, width: int, heads: int, causal: bool) -> tuple[Block, ...]:
    if width % heads:
        raise ConfigError(f"open_clip_config.json: width {width} is not a multiple of {heads} heads")
    mlp = int(width * section.number("mlp_ratio", 4.0, 0.1, 64.0))
    return tuple(
        block(f"{prefix}transformer.resblocks.{i}", width, mlp, heads, activation(config), causal)
        for i in range(section.integer("layers", 12, 1, 1024))
    )


def projection(config: Config, name: str, width: int) -> Project:
    embed = config.section("model_cfg").integer("embed_dim", None, 1, 1 << 16)
    return Project(Linear(ref(name, embed, width, transpose=True)))


def text(config: Config) -> Encoder:
    section = section_of(config, "text_cfg")
    width, heads = section.integer("width", 512, 1, 1 << 16), section.integer("heads", 8, 1, 1024)
    pool = section.choice("pool_type", "argmax", ("argmax", "first", "last"))
    return Encoder(
        hidden_size=width,
        stem=TokenStem(
            word=ref("token_embedding.weight", section.integer("vocab_size", 49408, 1, 1 << 22), width),
            position=ref("positional_embedding", section.integer("context_length", 77, 1, 1 << 16), width),
        ),
        layers=tower(config, section, "", width, heads, causal=True),
        steps=(
            Step("last_hidden_state", "hidden", norm("ln_final", width, EPS)),
            Step("pooler_output", "last_hidden_state", Pool(pool)),
            Step("embeds", "pooler_output", projection(config, "text_projection", width)),
            Step("unit_embeds", "embeds", Normalize()),
        ),
    )


def vision(config: Config) -> Encoder:
    section = section_of(config, "vision_cfg")
    width = section.integer("width", 768, 1, 1 << 16)
    image, patch = square_picture(section, 224, 16, "open_clip_config.json")
    section.choice("pool_type", "tok", ("tok",))
    heads = width // section.integer("head_width", 64, 1, width)
    return Encoder(
        hidden_size=width,
        stem=PatchStem(
            weight=ref("visual.conv1.weight", width, 3, patch, patch),
            bias=None,
            class_token=ref("visual.class_embedding", width),
            position=ref("visual.positional_embedding", (image // patch) ** 2 + 1, width),
            size=(image, image),
            stride=patch,
        ),
        stem_norm=norm("visual.ln_pre", width, EPS),
        layers=tower(config, section, "visual.", width, heads, causal=False),
        steps=(
            Step("class_token", "hidden", Pool("first")),
            Step("pooler_output", "class_token", norm("visual.ln_post", width, EPS)),
            Step("embeds", "pooler_output", projection(config, "visual.proj", width)),
            Step("unit_embeds", "embeds", Normalize()),
        ),
    )


FAMILY = Family(
    model_type="open_clip",
    towers={"text": text, "vision": vision},
    classes={"OpenCLIPModel": ("text", "vision")},
    rename=strip_prefixes("module.", "text."),
    ignored=("attn_mask",),
    scale="logit_scale",
    weight_files=("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
)
