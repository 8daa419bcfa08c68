"""Picture towers of OpenCLIP's format that are timm's, by the names of timm 1.0: what a name stands for is said here,
for a file holds the name alone.

SigLIP's (Zhai et al., 2023) have no class token; after a norm a learned query attends to all rows and is the embedding.
PE-Core's (Bolya et al., 2025) turn queries and keys by the place of their patch, counted from 1, whose columns are
paired side by side (here: a head's first half with its second, to which the rows of q and k are brought); a learned
query of 8 heads draws from all rows, the class token's too, and a linear follows. MobileCLIP's are in
open_clip_mobile.py, but for its two largest, which are vision transformers: L-14 is OpenAI's, B has three convolutions
in place of one, each over windows that do not overlap.
"""

from __future__ import annotations

import re

from ..config import Config
from ..errors import ConfigError
from ..spec import AttentionPool, BatchNormConv, Block, Encoder, Linear, Normalize, Pool, Project, Step, ref, replace
from ..stems import PatchRowsStem, PatchStem
from .blocks import linear, named_block, norm, probe_pool
from .open_clip_mobile import SIZES as MOBILE
from .open_clip_mobile import head_size, mobile_trunk

EPS = 1e-6
# width, layers, heads, inner columns to one
SIZES = {
    "base": (768, 12, 12, 4.0),
    "large": (1024, 24, 16, 4.0),
    "so400m": (1152, 27, 16, 3.7362),
    "giantopt": (1536, 40, 16, 4.0),
}
# of PE-Core: width, layers, heads, inner columns, whether it has a class token
PE_SIZES = {
    "tiny": (192, 12, 3, 768, True),
    "small": (384, 12, 6, 1536, True),
    "base": (768, 12, 12, 3072, True),
    "large": (1024, 24, 16, 4096, True),
    "gigantic": (1536, 50, 16, 8960, False),
}
PE = re.compile(r"vit_pe_core_(tiny|small|base|large|gigantic)_patch(14|16)_(\d+)")
PLAIN = re.compile(r"vit_(large)_patch(14)_clip_(224)")
CONVOLVED = "vit_base_mci_224"
NAME = re.compile(r"vit_(base|large|so400m|giantopt)_patch(14|16|32)_siglip_(\d+)")
# of the others it is erf's GELU
TANH = ("vit_base_patch32", "vit_large_patch16_siglip_512", "vit_so400m_patch16", "vit_giantopt")


def trunk(config: Config, section: Config) -> Encoder | None:
    """The tower of a timm name; None for a name that is none of these. ConfigError where it goes on otherwise."""
    name = str(section.get("timm_model_name"))
    if name in MOBILE:
        return mobile_trunk(config, section, name)
    if parts := PE.fullmatch(name):
        return perception(config, section, name, PE_SIZES[parts[1]], int(parts[2]), int(parts[3]))
    if parts := PLAIN.fullmatch(name):
        return plain(config, section, name, int(parts[2]), int(parts[3]))
    if name == CONVOLVED:
        return convolved(config, section)
    parts = NAME.fullmatch(name)
    if not parts:
        return None
    size, patch = SIZES[parts[1]], int(parts[2])
    image = section.integer("image_size", int(parts[3]), patch, 1 << 13)
    section.choice("timm_pool", "avg", ("map",))
    section.choice("timm_proj", "linear", ("none",))
    width, layers, heads, ratio = size
    embed, inner = config.section("model_cfg").integer("embed_dim", None, 1, 1 << 16), int(width * ratio)
    if embed != width:
        raise ConfigError(f"open_clip_config.json: embed_dim: found {embed}, expected the {width} of {name}")
    activation, rows = "gelu_pytorch_tanh" if name.startswith(TANH) else "gelu", (image // patch) ** 2
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
        layers=tuple(block(f"visual.trunk.blocks.{i}", width, inner, heads, activation, EPS) for i in range(layers)),
        steps=(
            Step("last_hidden_state", "hidden", norm("visual.trunk.norm", width, EPS)),
            Step("pooler_output", "last_hidden_state", pooled(width, inner, heads, activation, EPS)),
            Step("unit_embeds", "pooler_output", Normalize()),
        ),
    )


def perception(
    config: Config, section: Config, name: str, size: tuple[int, int, int, int, bool], patch: int, image: int
) -> Encoder:
    """PE-Core's tower."""
    (width, layers, heads, inner, lead), eps = size, 1e-5
    fixed_size(section, name, image)
    embed = head_size(config, section, "map")
    side, quarter = image // patch, width // heads // 4
    bands, still = tuple(1e4 ** (-i / quarter) for i in range(quarter)), (0.0,) * quarter
    return Encoder(
        hidden_size=width,
        stem=PatchRowsStem(
            weight=ref("visual.trunk.patch_embed.proj.weight", width, 3, patch, patch),
            bias=None,
            class_token=ref("visual.trunk.cls_token", 1, width) if lead else None,
            position=ref("visual.trunk.pos_embed", side * side + lead, width),
            grid=(side, side),
            class_position=lead,
            frequencies=(still + bands, bands + still),
            offset=float(lead),
        ),
        stem_norm=norm("visual.trunk.norm_pre", width, eps),
        layers=tuple(
            block(f"visual.trunk.blocks.{i}", width, inner, heads, "gelu", eps, turned=True) for i in range(layers)
        ),
        steps=(
            Step("last_hidden_state", "hidden", norm("visual.trunk.norm", width, eps)),
            Step("pooler_output", "last_hidden_state", pooled(width, 4 * width, 8, "gelu", eps)),
            Step("embeds", "pooler_output", Project(linear("visual.trunk.head", embed, width))),
            Step("unit_embeds", "embeds", Normalize()),
        ),
    )


def plain(config: Config, section: Config, name: str, patch: int, image: int) -> Encoder:
    """OpenAI's vision transformer as timm has it: a norm before the layers, the class token normed and projected."""
    width, eps = SIZES["large"][0], 1e-5
    fixed_size(section, name, image)
    stem = PatchStem(
        weight=ref("visual.trunk.patch_embed.proj.weight", width, 3, patch, patch),
        bias=None,
        class_token=ref("visual.trunk.cls_token", width),
        position=ref("visual.trunk.pos_embed", (image // patch) ** 2 + 1, width),
        size=(image, image),
        stride=patch,
    )
    encoder = by_class_token(config, section, "large", stem, eps)
    return replace(encoder, stem_norm=norm("visual.trunk.norm_pre", width, eps))


def convolved(config: Config, section: Config) -> Encoder:
    """MobileCLIP-B's tower: 4 x 4 pixels, then squares of 2 x 2, twice; positions of patches alone."""
    (width, *_), image = SIZES["base"], 224
    fixed_size(section, CONVOLVED, image)
    name, quarter = "visual.trunk.patch_embed.backbone", width // 4

    def conv(at: int, channels: int, side: int, source: PatchStem | None) -> PatchStem:
        kernel = 2 if source else 4
        weight = ref(f"{name}.{at}.conv.weight", quarter, channels, kernel, kernel)
        return PatchStem(
            weight=BatchNormConv(weight, f"{name}.{at}.bn", 1e-5),
            bias=None,
            class_token=None,
            position=None,
            size=(side, side),
            stride=kernel,
            channels=channels,
            activation="gelu",
            source=source,
        )

    rows = (image // 16) ** 2
    stem = PatchStem(
        weight=ref(f"{name}.2.conv.weight", width, quarter, 2, 2),
        bias=ref(f"{name}.2.conv.bias", width),
        class_token=ref("visual.trunk.cls_token", width),
        position=ref(("", "visual.trunk.pos_embed"), rows + 1, width, row_counts=(1, rows)),
        size=(image // 8, image // 8),
        stride=2,
        channels=quarter,
        source=conv(1, quarter, image // 4, conv(0, 3, image, None)),
    )
    return by_class_token(config, section, "base", stem, EPS)


def fixed_size(section: Config, name: str, image: int) -> None:
    found = section.integer("image_size", image, 1, 1 << 13)
    if found != image:
        raise ConfigError(f"open_clip_config.json: image_size: found {found}, expected the {image} of {name}")


def by_class_token(config: Config, section: Config, size: str, stem: PatchStem, eps: float) -> Encoder:
    """A transformer whose class token is normed and projected."""
    width, layers, heads, ratio = SIZES[size]
    embed, inner = head_size(config, section, "token"), int(width * ratio)
    return Encoder(
        hidden_size=width,
        stem=stem,
        layers=tuple(block(f"visual.trunk.blocks.{i}", width, inner, heads, "gelu", eps) for i in range(layers)),
        steps=(
            Step("class_token", "hidden", Pool("first")),
            Step("pooler_output", "class_token", norm("visual.trunk.norm", width, eps)),
            Step("embeds", "pooler_output", Project(linear("visual.trunk.head", embed, width))),
            Step("unit_embeds", "embeds", Normalize()),
        ),
    )


def pooled(width: int, inner: int, heads: int, activation: str, eps: float) -> AttentionPool:
    """timm's pool by a learned query."""
    pool = "visual.trunk.attn_pool"
    query, kv = linear(f"{pool}.q", width, width), linear(f"{pool}.kv", 2 * width, width)
    return probe_pool(pool, ("latent", "proj", "norm"), query, kv, width, inner, heads, activation, eps)


def halves_first(width: int, heads: int) -> tuple[int, ...]:
    """The rows of a packed q, k, v, of which each head of q and k has its even ones first, then its odd ones."""
    size = width // heads
    head = [*range(0, size, 2), *range(1, size, 2)]
    turned = [at * size + row for at in range(2 * heads) for row in head]
    return (*turned, *range(2 * width, 3 * width))


def block(prefix: str, width: int, inner: int, heads: int, activation: str, eps: float, turned: bool = False) -> Block:
    """A layer of timm's vision transformer."""
    order = halves_first(width, heads) if turned else ()
    weight = ref(f"{prefix}.attn.qkv.weight", 3 * width, width, order=order)
    qkv = Linear(weight, ref(f"{prefix}.attn.qkv.bias", 3 * width, order=order))
    names = ("attn.proj", "norm1", "mlp.fc1", "mlp.fc2", "norm2")
    layer = named_block(prefix, names, qkv, width, inner, heads, activation, eps)
    return replace(layer, rotary=int(turned))
