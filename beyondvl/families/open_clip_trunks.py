"""Picture towers of OpenCLIP's format that are timm's: SigLIP's (Zhai et al., 2023), by the names of timm 1.0.

No class token; a norm, then a learned query attends to all rows and is the embedding. What a name stands for is said
here, for a file holds the name alone.
"""

from __future__ import annotations

import re

from ..config import Config
from ..errors import ConfigError
from ..spec import AttentionPool, Block, Encoder, FeedForward, Normalize, Step, ref
from ..stems import PatchStem
from .blocks import linear, norm

EPS = 1e-6
# width, layers, heads, inner columns to one
SIZES = {
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "so400m": (1152, 27, 16, 3.7362),
    "giantopt": (1536, 40, 16, 4.0),
}
NAME = re.compile(r"vit_(base|large|so400m|giantopt)_patch(14|16|32)_siglip_(\d+)")
# of the others it is erf's GELU
TANH = ("vit_base_patch32", "vit_large_patch16_siglip_512", "vit_so400m_patch16", "vit_giantopt")


def trunk(config: Config, section: Config) -> Encoder | None:
    """The tower of a timm name; None for a name that is none of these. ConfigError where it goes on otherwise."""
    name = str(section.get("timm_model_name"))
    parts = NAME.fullmatch(name)
    if not parts:
        return None
    size, patch = SIZES[parts[1]], int(parts[2])
    image = section.integer("image_size", int(parts[3]), patch, 1 << 13)
    section.choice("timm_pool", "map", ("map",))
    section.choice("timm_proj", "none", ("none",))
    width, layers, heads, ratio = size
    embed, inner = config.section("model_cfg").integer("embed_dim", None, 1, 1 << 16), int(width * ratio)
    if embed != width:
        raise ConfigError(f"open_clip_config.json: embed_dim: found {embed}, expected the {width} of {name}")
    activation, rows = "gelu_pytorch_tanh" if name.startswith(TANH) else "gelu", (image // patch) ** 2
    pool = "visual.trunk.attn_pool"
    return Encoder(
        hidden_size=width,
        stem=PatchStem(
            weight=ref("visual.trunk.patch_embed.proj.weight", width, 3, patch, patch),
            bias=ref("visual.trunk.patch_embed.proj.bias", width),
            class_token=None,
            position=ref("visual.trunk.pos_embed", rows, width),
            size=(image, image),
            stride=patch,
        ),
        layers=tuple(block(f"visual.trunk.blocks.{i}", width, inner, heads, activation) for i in range(layers)),
        steps=(
            Step("last_hidden_state", "hidden", norm("visual.trunk.norm", width, EPS)),
            Step("pooler_output", "last_hidden_state", AttentionPool(
                probe=ref(f"{pool}.latent", 1, 1, width),
                query=linear(f"{pool}.q", width, width),
                kv=linear(f"{pool}.kv", 2 * width, width),
                out=linear(f"{pool}.proj", width, width),
                norm=norm(f"{pool}.norm", width, EPS),
                fc1=linear(f"{pool}.mlp.fc1", inner, width),
                fc2=linear(f"{pool}.mlp.fc2", width, inner),
                num_attention_heads=heads,
                activation=activation,
            )),
            Step("unit_embeds", "pooler_output", Normalize()),
        ),
    )  # fmt: skip


def block(prefix: str, width: int, inner: int, heads: int, activation: str) -> Block:
    """A layer of timm's vision transformer."""
    return Block(
        qkv=linear(f"{prefix}.attn.qkv", 3 * width, width),
        out=linear(f"{prefix}.attn.proj", width, width),
        norm1=norm(f"{prefix}.norm1", width, EPS),
        ffn=FeedForward(
            linear(f"{prefix}.mlp.fc1", inner, width),
            linear(f"{prefix}.mlp.fc2", width, inner),
            norm(f"{prefix}.norm2", width, EPS),
        ),
        num_attention_heads=heads,
        activation=activation,
    )
