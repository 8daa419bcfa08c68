"""CLAP: a RoBERTa and HTS-AT, a Swin transformer over spectrograms (Wu et al., 2023; Chen et al., 2022; Liu et al.,
2021).

A log-mel spectrogram, normed by mel and stretched to 1024 frames, is cut in four that lie one above the other: a
picture of 256 x 256. Its patches attend within windows of 8 x 8, which every second block shifts by half; four patches
become one between stages. Traps: logits_per_audio and logits_per_text have a scale each; get_*_features are normalised
where `*_embeds` of the one-tower classes are not; a stage no larger than a window does not shift; four neighbours are
merged column by column.
"""

from __future__ import annotations

from functools import cache

from ..config import Config
from ..errors import ConfigError
from ..spec import (
    BatchNormConv,
    Block,
    CropFusion,
    Encoder,
    Linear,
    MergeRows,
    Normalize,
    PatchStem,
    Pool,
    Project,
    RelativeBias,
    SpectrogramStem,
    Step,
    Windows,
    ref,
    replace,
)
from .bert import bert_encoder
from .blocks import ACTIVATIONS, linear, norm, vit_block
from .clip import tower_config
from .registry import Family

EPS = 1e-5  # of norms that the config does not speak of
TEXT_DEFAULTS = {"vocab_size": 50265, "max_position_embeddings": 514, "type_vocab_size": 1}


def projection(name: str, hidden: int, config: Config, section: Config) -> tuple[Step, ...]:
    """Two linears with an activation in between, then the unit vector."""
    source = config if "projection_dim" in config else section
    size = source.integer("projection_dim", 512, 1, 1 << 16)
    source = config if "projection_hidden_act" in config else section
    activation = source.choice("projection_hidden_act", "relu", ACTIVATIONS)
    return (
        Step("embeds_inner", "pooler_output", Project(linear(f"{name}.linear1", size, hidden), activation)),
        Step("embeds", "embeds_inner", Project(linear(f"{name}.linear2", size, size))),
        Step("unit_embeds", "embeds", Normalize()),
    )


def text(config: Config) -> Encoder:
    section = Config(TEXT_DEFAULTS, "config.json: text_config").updated(tower_config(config, "text"))
    hidden = section.integer("hidden_size", 768, 1, 1 << 16)
    steps = (
        Step("first_token", "hidden", Pool("first")),
        Step("pooler_output", "first_token", Project(linear("text_model.pooler.dense", hidden, hidden), "tanh")),
        *projection("text_projection", hidden, config, section),
    )
    return bert_encoder(section, "text_model.", steps, padding=section.integer("pad_token_id", 1, 0, 1 << 20))


def pair(section: Config, name: str, default: int) -> tuple[int, int]:
    """A size given as one number or two."""
    value = section.get(name, default)
    sizes = list(value) if isinstance(value, list) else [value, value]
    if len(sizes) != 2 or not all(type(n) is int and 1 <= n <= 1 << 10 for n in sizes):
        raise ConfigError(f"audio_config: {name}: found {value!r}, expected one or two whole numbers from 1 to 1024")
    return tuple(sizes)


def numbers(section: Config, name: str, default: list[int]) -> list[int]:
    value = section.get(name, default)
    if not isinstance(value, list) or not value or not all(type(n) is int and 1 <= n <= 1024 for n in value):
        raise ConfigError(f"audio_config: {name}: found {value!r}, expected whole numbers from 1 to 1024")
    return value


@cache
def windows(height: int, width: int, size: int, shift: int) -> Windows:
    """The rows of a grid window by window after a turn by `shift` lines and columns; what comes together from both ends
    of the grid is of different regions."""
    rows, regions = [], []
    for top in range(0, height, size):
        for left in range(0, width, size):
            for y in range(top, top + size):
                for x in range(left, left + size):
                    rows.append((y + shift) % height * width + (x + shift) % width)
                    ends = [(at >= n - size) + (at >= n - shift) for at, n in ((y, height), (x, width))]
                    regions.append(3 * ends[0] + ends[1] if shift else 0)
    return Windows(size * size, tuple(rows), tuple(regions))


def window_bias(name: str, size: int, heads: int) -> RelativeBias:
    """One bias for each of the (2 size - 1)^2 ways two places of a window lie to each other."""
    span = 2 * size - 1
    return RelativeBias(ref(name, span * span, heads), pairs(size))


@cache
def pairs(size: int) -> tuple[int, ...]:
    """Which of those ways each pair of places, row by row, lies to each other."""
    span, places = 2 * size - 1, [(y, x) for y in range(size) for x in range(size)]
    return tuple((y - v + size - 1) * span + x - u + size - 1 for y, x in places for v, u in places)


def block(prefix: str, hidden: int, heads: int, grid: tuple[int, int], size: int, shift: int, section: Config) -> Block:
    wide = int(section.number("mlp_ratio", 4.0, 0.1, 64.0) * hidden)
    activation = section.choice("hidden_act", "gelu", ACTIVATIONS)
    eps, bias = section.number("layer_norm_eps", EPS, 0.0, 1.0), section.boolean("qkv_bias", True)
    return replace(
        vit_block(prefix, hidden, wide, heads, activation, eps, part="self", bias=bias),
        relative=window_bias(f"{prefix}.attention.self.relative_position_bias_table", size, heads),
        windows=windows(*grid, size, shift),
    )


def merge(prefix: str, hidden: int, grid: tuple[int, int]) -> MergeRows:
    """Two by two neighbours, column by column, to one of twice the width."""
    height, width = grid
    rows = [
        (y + down) * width + x + right
        for y in range(0, height, 2) for x in range(0, width, 2) for right in (0, 1) for down in (0, 1)
    ]  # fmt: skip
    return MergeRows(norm(f"{prefix}.norm", 4 * hidden, EPS), ref(f"{prefix}.reduction.weight", 2 * hidden, 4 * hidden),
                     tuple(rows))  # fmt: skip


def stages(section: Config, prefix: str, hidden: int, grid: tuple[int, int]) -> tuple[Block | MergeRows, ...]:
    """Blocks of each stage, and what merges rows between them."""
    depths, heads = numbers(section, "depths", [2, 2, 6, 2]), numbers(section, "num_attention_heads", [4, 8, 16, 32])
    size = section.integer("window_size", 8, 1, 16)
    if len(heads) != len(depths) or sum(depths) > 256:
        raise ConfigError(
            f"audio_config: found {len(depths)} depths and {len(heads)} numbers of heads, expected as many, "
            "and at most 256 blocks"
        )
    layers: list[Block | MergeRows] = []
    for stage, depth in enumerate(depths):
        name = f"{prefix}layers.{stage}"
        if grid[0] % size or grid[1] % size or hidden % heads[stage]:
            raise ConfigError(f"audio_config: stage {stage}: {grid[0]} x {grid[1]} patches, {hidden} columns, expected "
                              f"multiples of the window of {size} and of {heads[stage]} heads")  # fmt: skip
        for i in range(depth):
            shift = size // 2 if i % 2 and min(grid) > size else 0
            layers.append(block(f"{name}.blocks.{i}", hidden, heads[stage], grid, size, shift, section))
        if stage < len(depths) - 1:
            layers.append(merge(f"{name}.downsample", hidden, grid))
            grid, hidden = (grid[0] // 2, grid[1] // 2), 2 * hidden
    return tuple(layers)


def fusion(prefix: str, hidden: int, patch: tuple[int, int], stride: tuple[int, int], section: Config) -> CropFusion:
    """Crops are cut three times as wide, so that the three of them are as wide as the whole."""
    narrow = hidden // section.integer("aff_block_r", 4, 1, hidden)

    def squeeze(name: str, first: int) -> tuple[BatchNormConv, BatchNormConv]:
        def conv(at: int, out: int, inner: int) -> BatchNormConv:
            layers = f"{prefix}.fusion_model.{name}"
            weight, bias = ref(f"{layers}.{at}.weight", out, inner, 1, 1), ref(f"{layers}.{at}.bias", out)
            return BatchNormConv(weight, f"{layers}.{at + 1}", EPS, bias)

        return conv(first, narrow, hidden), conv(first + 3, hidden, narrow)

    return CropFusion(
        crop=Linear(ref(f"{prefix}.mel_conv2d.weight", hidden, 1, patch[0], 3 * patch[1]),
                    ref(f"{prefix}.mel_conv2d.bias", hidden)),
        stride=(stride[0], 3 * stride[1]),
        local=squeeze("local_att", 0),
        whole=squeeze("global_att", 1),
    )  # fmt: skip


def audio(config: Config) -> Encoder:
    section = tower_config(config, "audio")
    prefix = "audio_model.audio_encoder."
    fused = section.boolean("enable_fusion", False)
    if section.get("fusion_type") == "channel_map":
        raise ConfigError("audio_config: fusion_type: found 'channel_map', expected another one")
    side = section.integer("spec_size", 256, 1, 1 << 12)
    mels = section.integer("num_mel_bins", 64, 1, 1 << 10)
    patch, stride = pair(section, "patch_size", 4), pair(section, "patch_stride", 4)
    hidden = section.integer("patch_embeds_hidden_size", 96, 1, 1 << 14)
    count = len(numbers(section, "depths", [2, 2, 6, 2])) - 1
    last, fold = hidden << count, 2**count
    if side % mels or any(side % (n * fold) for n in stride) or section.integer("hidden_size", 768) != last:
        raise ConfigError(f"audio_config: spec_size {side}, {mels} mels, strides {stride}, expected a multiple of all, "
                          f"and hidden_size {last}")  # fmt: skip
    parts, grid = side // mels, tuple(side // n for n in stride)
    end = tuple(n // fold for n in grid)
    bins = end[0] // parts
    if bins < 1 or end[0] % bins:
        raise ConfigError(f"audio_config: {end[0]} lines of patches at the end, expected a multiple of {parts} parts")
    embed = f"{prefix}patch_embed"
    return Encoder(
        hidden_size=last,
        stem=PatchStem(
            weight=ref(f"{embed}.proj.weight", hidden, 1, *patch),
            bias=ref(f"{embed}.proj.bias", hidden),
            class_token=None,
            position=None,
            size=(side, side),
            stride=stride,
            channels=section.integer("patch_embed_input_channels", 1, 1, 1),
            padding=tuple((k - n) // 2 for k, n in zip(patch, stride, strict=True)),
            source=SpectrogramStem(f"{prefix}batch_norm", EPS, mels, parts, (side, side), 4 if fused else 1),
            fusion=fusion(embed, hidden, patch, stride, section) if fused else None,
        ),
        stem_norm=norm(f"{embed}.norm", hidden, EPS) if section.boolean("enable_patch_layer_norm", True) else None,
        layers=stages(section, prefix, hidden, grid),
        steps=(
            Step("last_hidden_state", "hidden", norm(f"{prefix}norm", last, EPS)),
            Step("pooler_output", "last_hidden_state", Pool("mean")),
            *projection("audio_projection", last, config, section),
        ),
        grid=(end[0] // bins, bins, end[1]),
    )


FAMILY = Family(
    model_type="clap",
    aliases=("clap_text_model", "clap_audio_model"),
    towers={"text": text, "audio": audio},
    classes={
        "ClapModel": ("text", "audio"),
        "ClapTextModelWithProjection": ("text",),
        "ClapAudioModelWithProjection": ("audio",),
        "ClapTextModel": ("text",),
        "ClapAudioModel": ("audio",),
    },
    bare=frozenset({"ClapTextModel", "ClapAudioModel"}),
    prefixes={"text": ("text_model.", "text_projection."), "audio": ("audio_model.", "audio_projection.")},
    scale="logit_scale_a",
    text_scale="logit_scale_t",
    unit_features=True,
)
