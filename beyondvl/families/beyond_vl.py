"""Beyond VL, the project's own model; this first one is a dual encoder of two pretrained towers and trained heads.

Vision: EfficientNet-Lite features f (mean of the last map) and its class probabilities p;
    m = fc2(gelu(fc1(norm(f)))), embeds = m / |m| + C p,  C one learned vector per ImageNet class.
Text: a BERT sentence encoder, mean over tokens, normalised, then one projection.
The recipe is in training/.
"""

from __future__ import annotations

from ..config import Config
from ..spec import Encoder, Linear, Normalize, Pool, Project, Softmax, Step, ref
from .bert import bert_encoder
from .blocks import linear, norm
from .efficientnet_lite import HEAD_CHANNELS, lite_encoder
from .pictures import CLIP
from .registry import Family, Processing


def text(config: Config) -> Encoder:
    section = config.section("text_config")
    hidden, size = section.integer("hidden_size", 384, 1, 1 << 16), config.integer("projection_dim", 384, 1, 1 << 16)
    steps = (
        Step("mean_token", "hidden", Pool("mean")),
        Step("pooler_output", "mean_token", Normalize()),
        Step("embeds", "pooler_output", Project(linear("text_projection", size, hidden))),
        Step("unit_embeds", "embeds", Normalize()),
    )
    return bert_encoder(section, "text_model.", steps)


def vision(config: Config) -> Encoder:
    section = config.section("vision_config")
    size = config.integer("projection_dim", 384, 1, 1 << 16)
    inner = config.integer("head_size", 768, 1, 1 << 16)
    labels = section.integer("num_labels", 1000, 1, 1 << 20)
    classes = Linear(ref("vision_head.class_embeddings", size, labels))
    return lite_encoder(
        section,
        "vision_model.",
        (
            Step("probabilities", "logits", Softmax()),
            Step("normed_features", "pooler_output", norm("vision_head.norm", HEAD_CHANNELS, 1e-5)),
            Step("head_hidden", "normed_features", Project(linear("vision_head.fc1", inner, HEAD_CHANNELS), "gelu")),
            Step("head_out", "head_hidden", Project(linear("vision_head.fc2", size, inner))),
            Step("embeds", "head_out", Normalize()),
            Step("embeds", "probabilities", Project(classes, accumulate=True)),
            Step("unit_embeds", "embeds", Normalize()),
        ),
    )


FAMILY = Family(
    model_type="beyond_vl",
    processing=Processing(
        tokenizer="BertTokenizer", image_processor="CLIPImageProcessor", image_processors={"CLIPImageProcessor": CLIP}
    ),
    towers={"text": text, "vision": vision},
    classes={"BeyondVLModel": ("text", "vision")},
    prefixes={"text": ("text_model.", "text_projection."), "vision": ("vision_model.", "vision_head.")},
    scale="logit_scale",
)
