"""InstructBLIP: BLIP-2 whose query tokens read the instruction too, so that they draw from the picture what it asks for
(Dai et al., 2023).

The instruction is tokenised twice: for the Q-Former (BERT's vocabulary, in qformer_tokenizer/) and for the language
model. Trap: the first layer norm and the embeddings lie inside the Q-Former, where BLIP-2 has them outside.
InstructBlipVideo is the same over the four frames of a clip, one after the other.
"""

from __future__ import annotations

from ..config import Config
from ..spec import Encoder
from .blip import NO_TYPES, PICTURES
from .blip_2 import (
    VIDEO,
    VIDEO_FRAMES,
    language_steps,
    language_tokens,
    prefixed,
    prompt,
    qformer,
    reader,
    vision,
    writer,
)
from .pictures import BLIP
from .registry import Family, Head, Processing, ProcessorKind


def instructed_queries(config: Config) -> Encoder:
    """Queries and the instruction, of which the queries alone go on to the language model."""
    embeddings = "qformer.embeddings."
    return qformer(config, language_steps(config), True, embeddings, f"{embeddings}layernorm")


TOWERS = {"vision": vision, "queries": instructed_queries, "encoder": reader, "decoder": writer}
CLIPS = {"InstructBlipVideoVideoProcessor": BLIP, "InstructBlipVideoImageProcessor": BLIP}
FAMILY = Family(
    model_type="instructblip",
    processing=Processing(
        processor="InstructBlipProcessor",
        tokenizer="GPT2Tokenizer",
        image_processor="BlipImageProcessor",
        image_processors=PICTURES,
        kind=ProcessorKind(unused_inputs=NO_TYPES, placeholder="image_token"),
    ),
    variants={
        VIDEO: Processing(
            processor="InstructBlipVideoProcessor",
            tokenizer="GPT2Tokenizer",
            image_processor="InstructBlipVideoVideoProcessor",
            image_processors=CLIPS,
            kind=ProcessorKind(
                unused_inputs=NO_TYPES, placeholder="video_token", num_frames=lambda config: VIDEO_FRAMES
            ),
        )
    },
    aliases=(VIDEO,),
    towers={},
    classes={},
    heads={
        "InstructBlipForConditionalGeneration": Head(
            "instructed_captioning", TOWERS, language_tokens, prompt, prefixed
        ),
        "InstructBlipVideoForConditionalGeneration": Head(
            "instructed_video", TOWERS, language_tokens, prompt, prefixed
        ),
    },
)
