"""ColModernVBERT and the ModernVBERT under it (Teiletche et al., 2025): pages and questions as an embedding for each of
their tokens; what a question finds in a page is the sum over its tokens of the nearest of the page's (MaxSim).

A page is tiles within a text, as in Idefics3, read by SigLIP's tower and ModernBERT, which looks both ways. Traps: a
square of tiles' patches stands for `pixel_shuffle_factor` of them a side; the model's config holds the other's; a
question is followed by ten tokens more, and their embeddings count.
"""

from __future__ import annotations

from ..config import Config
from ..spec import Encoder, Normalize, Project, Step, replace
from .blocks import linear
from .idefics3 import tile_tower
from .modernbert import text_encoder
from .pictures import IDEFICS3
from .registry import Family, Head, Processing, ProcessorKind

INNER = "modernvbert"


def inner(config: Config) -> Config:
    """The config of the model that reads: its own, or the one a config of embeddings holds."""
    return config if config.get("model_type") == INNER else config.section("vlm_config")


def text_config(config: Config) -> Config:
    section = inner(config).section("text_config")
    section.choice("model_type", "modernbert", ("modernbert",))
    return section


def image_token(config: Config) -> int:
    most = text_config(config).integer("vocab_size", 50_368, 1, 1 << 22) - 1
    return inner(config).integer("image_token_id", 50_407, 0, most)


def vision(config: Config) -> Encoder:
    words = text_config(config).integer("hidden_size", 768, 1, 1 << 16)
    return tile_tower(
        inner(config),
        (768, 12, 16),
        ("pixel_shuffle_factor", 4),
        lambda columns: linear("connector.modality_projection", words, columns, bias=False),
    )


def text(config: Config) -> Encoder:
    encoder = text_encoder(text_config(config), "text_model.")
    stem = replace(encoder.stem, feature_token=image_token(config), flat_features=True)
    return replace(encoder, stem=stem)


def embedded_text(config: Config) -> Encoder:
    encoder, size = text(config), config.integer("embedding_dim", 128, 1, 1 << 16)
    steps = (
        Step("projected", "last_hidden_state", Project(linear("embedding_proj_layer", size, encoder.hidden_size))),
        Step("embeddings", "projected", Normalize()),
    )
    return replace(encoder, steps=(*encoder.steps, *steps))


def tokens(config: Config) -> dict[str, int]:
    return {"image_token_id": image_token(config)}


def rename(key: str) -> str:
    """Without the prefixes of the whole, of the tower's class, and of what older files call the projection."""
    key = key.removeprefix("vlm.").removeprefix("model.").replace("vision_model.vision_model.", "vision_model.")
    return key.replace("modality_projection.proj.", "modality_projection.")


FAMILY = Family(
    model_type="colmodernvbert",
    processing=Processing(
        processor="ColModernVBertProcessor",
        tokenizer="",  # whichever its files name
        image_processor="Idefics3ImageProcessor",
        image_processors={"Idefics3ImageProcessor": IDEFICS3},
        kind=ProcessorKind(
            image_seq_len=64,
            text_defaults={"padding": "longest"},
            page_prompt="<|begin_of_text|>User:<image>Describe the image.<end_of_utterance>\nAssistant:",
            query_suffix="<end_of_utterance>" * 10,
        ),
    ),
    towers={},
    classes={},
    aliases=(INNER,),
    heads={
        "ColModernVBertForRetrieval": Head("multi_vector", {"vision": vision, "text": embedded_text}, tokens),
        "ModernVBertModel": Head("multi_vector", {"vision": vision, "text": text}, tokens),
    },
    rename=rename,
    ignored=("vision_model.head.", "lm_head.", "projection_head."),
)
