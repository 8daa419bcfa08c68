"""Chinese CLIP: CLIP's vision tower and a BERT whose first token is projected (Yang et al., 2022)."""

from __future__ import annotations

from ..config import Config
from ..spec import Encoder, Normalize, Pool, Project, Step
from .bert import bert_encoder
from .blocks import linear
from .clip import projection_size, tower_config, vision
from .pictures import CLIP
from .registry import Family, Processing


def text(config: Config) -> Encoder:
    section = tower_config(config, "text")
    hidden = section.integer("hidden_size", 768, 1, 1 << 16)
    pooler = linear("text_model.pooler.dense", hidden, hidden, optional=True)
    steps = (
        Step("first_token", "hidden", Pool("first")),
        Step("pooler_output", "first_token", Project(pooler, "tanh")),  # of the text tower alone
        Step(
            "embeds",
            "first_token",
            Project(linear("text_projection", projection_size(config, section), hidden, bias=False)),
        ),
        Step("unit_embeds", "embeds", Normalize()),
    )
    return bert_encoder(section, "text_model.", steps)


FAMILY = Family(
    model_type="chinese_clip",
    processing=Processing(
        processor="ChineseCLIPProcessor",
        tokenizer="BertTokenizer",
        image_processor="ChineseCLIPImageProcessor",
        image_processors={"ChineseCLIPImageProcessor": CLIP, "CLIPImageProcessor": CLIP},
    ),
    aliases=("chinese_clip_text_model", "chinese_clip_vision_model"),
    towers={"text": text, "vision": vision},
    classes={
        "ChineseCLIPModel": ("text", "vision"),
        "ChineseCLIPTextModel": ("text",),
        "ChineseCLIPVisionModel": ("vision",),
    },
    bare=frozenset({"ChineseCLIPTextModel", "ChineseCLIPVisionModel"}),
    prefixes={"text": ("text_model.", "text_projection."), "vision": ("vision_model.", "visual_projection.")},
    older_sections=True,
    scale="logit_scale",
    projected_pooler=True,
)
