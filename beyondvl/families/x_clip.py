"""X-CLIP: CLIP over the frames of a clip, which send each other messages, and prompts that look at the clip (Ni et al.,
2022).

In every layer the class token of a frame makes a message; messages attend to those of the other frames and are one more
token of their frame in self-attention, then dropped. A transformer over the frames' embeddings (MIT) gives the clip's;
a text's embedding is shifted by what its prompt draws from the mean of the frames' patches. Traps: text embeddings
depend on the clip, (B, K, D); the number of frames is the config's; the projection of patches is stored as [in, out].

Three of the blocks lack a half, whose weights are then zeros: messages have no feed-forward, prompts no self-attention.
"""

from __future__ import annotations

from ..config import Config
from ..errors import ConfigError
from ..spec import (
    Block,
    Context,
    Cross,
    Encoder,
    FeedForward,
    Linear,
    Message,
    Norm,
    Pool,
    Project,
    Step,
    TakeRows,
    Windows,
    ref,
    replace,
)
from ..stems import JoinStem, PatchStem
from . import clip
from .blocks import ACTIVATIONS, linear, norm, pre_norm_block, square_picture, stacked
from .clip import sizes
from .pictures import CLIP, VIDEO_MAE
from .registry import Family, Head, Processing, ProcessorKind


def frames_of(config: Config) -> int:
    return config.section("vision_config").integer("num_frames", 8, 1, 256)


def width(config: Config) -> int:
    return config.integer("projection_dim", 512, 1, 1 << 16)


def nothing(out_features: int, in_features: int) -> Linear:
    """A linear of zeros."""
    return Linear(ref("", out_features, in_features), ref("", out_features))


def message_layer(prefix: str, hidden: int, heads: int, eps: float, frames: int, rows: int) -> Message:
    """Messages of all frames; `rows` tokens a frame, the last one the message."""
    attention = f"{prefix}.message_attn"
    return Message(
        fc=linear(f"{prefix}.message_fc", hidden, hidden),
        block=Block(
            qkv=stacked([f"{attention}.{part}_proj" for part in "qkv"], hidden, hidden),
            out=linear(f"{attention}.out_proj", hidden, hidden),
            norm1=norm(f"{prefix}.message_ln", hidden, eps),
            ffn=FeedForward(nothing(1, hidden), nothing(hidden, 1), Norm(ref("", hidden), ref("", hidden), eps)),
            num_attention_heads=heads,
            activation="none",
        ),
        rows=tuple(range(0, frames * rows, rows)),
        spare=tuple(range(rows - 1, frames * rows, rows)),
    )


def vision(config: Config) -> Encoder:
    section = config.section("vision_config")
    hidden, intermediate, layers, heads, activation, eps = sizes(section, 768, 3072, 12)
    image, patch = square_picture(section, 224, 32)
    frames, side = frames_of(config), image // patch
    tokens = side * side + 1
    rows, size = tokens + 1, width(config)
    prefix = "vision_model.embeddings"
    kept = [frame * rows + t for frame in range(frames) for t in range(tokens)]
    patches = [frame * rows + t for t in range(1, tokens) for frame in range(frames)]
    windows = Windows(rows, tuple(range(frames * rows)))
    blocks: list[Block | Message] = []
    for i in range(layers):
        layer = f"vision_model.encoder.layers.{i}"
        blocks.append(message_layer(layer, hidden, heads, eps, frames, rows))
        frame = pre_norm_block(layer, hidden, intermediate, heads, activation, eps)
        blocks.append(replace(frame, windows=windows))
    projection = Linear(ref("prompts_visual_projection", size, hidden, transpose=True))
    return Encoder(
        hidden_size=hidden,
        stem=PatchStem(
            weight=ref(f"{prefix}.patch_embedding.weight", hidden, 3, patch, patch),
            bias=None,
            class_token=ref(f"{prefix}.class_embedding", hidden),
            position=ref(f"{prefix}.position_embedding.weight", tokens, hidden),
            size=(image, image),
            stride=patch,
            pictures=frames,
            spare=1,
        ),
        stem_norm=norm("vision_model.pre_layernorm", hidden, eps),
        layers=tuple(blocks),
        steps=(
            Step("last_hidden_state", "hidden", TakeRows(tuple(kept))),
            Step("class_tokens", "hidden", TakeRows(tuple(range(0, frames * rows, rows)))),
            Step("pooler_output", "class_tokens", norm("vision_model.post_layernorm", hidden, eps)),
            Step("frame_embeds", "pooler_output", Project(linear("visual_projection", size, hidden, bias=False))),
            Step("normed", "hidden", norm("prompts_visual_layernorm", hidden, eps)),
            Step("mean_patches", "normed", TakeRows(tuple(patches), frames)),
            Step("patch_embeds", "mean_patches", Project(projection)),
            Step("seen", "patch_embeds", norm("prompts_generator.layernorm", size, eps)),
        ),
        context=Context(
            "seen",
            tuple(
                stacked(
                    [f"prompts_generator.decoder.{i}.cross_attn.{part}_proj" for part in "kv"], size, size, bias=False
                )
                for i in range(config.integer("prompt_layers", 2, 1, 64))
            ),
            prompt_heads(config),
        ),
    )


def prompt_heads(config: Config) -> int:
    heads = config.integer("prompt_num_attention_heads", 8, 1, 1024)
    if width(config) % heads:
        raise ConfigError(f"config.json: projection_dim {width(config)} is not a multiple of {heads} heads")
    return heads


def prompts(config: Config) -> Encoder:
    """What each text's embedding draws from a clip."""
    size, heads = width(config), prompt_heads(config)
    eps = config.section("text_config").number("layer_norm_eps", 1e-5, 0.0, 1.0)
    activation = config.choice("prompt_hidden_act", "quick_gelu", ACTIVATIONS)

    def block(prefix: str) -> Block:
        attention = f"{prefix}.cross_attn"
        return Block(
            qkv=nothing(3 * size, size),
            out=nothing(size, size),
            norm1=Norm(ref("", size), ref("", size), eps),
            cross=Cross(
                query=linear(f"{attention}.q_proj", size, size, bias=False),
                out=linear(f"{attention}.proj", size, size),
                norm=norm(f"{prefix}.norm1", size, eps),
            ),
            ffn=FeedForward(
                linear(f"{prefix}.mlp.0", 4 * size, size),
                linear(f"{prefix}.mlp.3", size, 4 * size),
                norm(f"{prefix}.norm3", size, eps),
            ),
            num_attention_heads=heads,
            activation=activation,
        )

    return Encoder(
        hidden_size=size,
        stem=JoinStem(),
        layers=tuple(block(f"prompts_generator.decoder.{i}") for i in range(config.integer("prompt_layers", 2, 1, 64))),
        steps=(
            Step("drawn", "hidden", Project(Linear(ref("prompts_generator.alpha", size, size, stored_as="diagonal")))),
        ),
    )


def mit(config: Config) -> Encoder:
    """The frames' embeddings attend to each other; each place has its own type."""
    section, frames = config.section("vision_config"), frames_of(config)
    hidden = section.integer("mit_hidden_size", 512, 1, 1 << 16)
    heads = section.integer("mit_num_attention_heads", 8, 1, 1024)
    if hidden != width(config) or hidden % heads:
        raise ConfigError(f"vision_config: mit_hidden_size: found {hidden}, expected projection_dim, {width(config)}, "
                          f"and a multiple of {heads} heads")  # fmt: skip
    intermediate = section.integer("mit_intermediate_size", 2048, 1, 1 << 18)
    eps = section.number("layer_norm_eps", 1e-5, 0.0, 1.0)
    activation = section.choice("hidden_act", "quick_gelu", ACTIVATIONS)
    return Encoder(
        hidden_size=hidden,
        stem=JoinStem(type=ref("mit.position_embedding", frames, hidden)),
        layers=tuple(
            pre_norm_block(f"mit.encoder.layers.{i}", hidden, intermediate, heads, activation, eps)
            for i in range(section.integer("mit_num_hidden_layers", 1, 1, 64))
        ),
        steps=(Step("mean_embeds", "hidden", Pool("mean")),),
    )


def text(config: Config) -> Encoder:
    """CLIP's, pooled at the largest id whatever the config says."""
    section = config.section("text_config").updated(Config({"eos_token_id": clip.LEGACY_EOS}))
    return clip.text(config.updated(Config({"text_config": section.to_dict()})))


FAMILY = Family(
    model_type="xclip",
    processing=Processing(
        processor="XCLIPProcessor",
        tokenizer="CLIPTokenizer",
        image_processor="CLIPImageProcessor",
        image_processors={"CLIPImageProcessor": CLIP, "VideoMAEImageProcessor": VIDEO_MAE},
        kind=ProcessorKind(num_frames=frames_of),
    ),
    towers={},
    classes={},
    older_sections=True,
    heads={
        "XCLIPModel": Head(
            "clip_prompting", {"text": text, "vision": vision, "mit": mit, "prompts": prompts}, scaled=True
        )
    },
    scale="logit_scale",
)
