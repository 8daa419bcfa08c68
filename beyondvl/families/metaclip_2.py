"""MetaCLIP 2 (Chuang et al., 2025): CLIP over the world's languages, its words XLM-RoBERTa's.

A text is pooled at the first `eos_token_id`, whatever it is: released weights have 2, which in CLIP means the largest.
"""

from __future__ import annotations

from ..config import Config
from ..spec import Encoder, Pool, replace
from .clip import FAMILY as CLIP
from .clip import text as clip_text
from .clip import tower_config
from .clip import vision as clip_vision


def text(config: Config) -> Encoder:
    encoder = clip_text(config)
    eos = tower_config(config, "text").integer("eos_token_id", 49407, 0, 1 << 22)
    pooled = (replace(s, what=Pool("token", eos)) if isinstance(s.what, Pool) else s for s in encoder.steps)
    return replace(encoder, steps=tuple(pooled))


FAMILY = replace(
    CLIP,
    model_type="metaclip_2",
    processing=replace(CLIP.processing, tokenizer="XLMRobertaTokenizer"),
    aliases=("metaclip_2_text_model", "metaclip_2_vision_model"),
    towers={"text": text, "vision": clip_vision},
    classes={name.replace("CLIP", "MetaClip2"): towers for name, towers in CLIP.classes.items()},
    bare=frozenset(name.replace("CLIP", "MetaClip2") for name in CLIP.bare),
)
