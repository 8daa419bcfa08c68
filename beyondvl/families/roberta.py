"""RoBERTa and XLM-RoBERTa as sentence encoders (Liu et al., 2019; Conneau et al., 2020): BERT whose positions count the
tokens that are not padding, from the padding's id + 1 on."""

from __future__ import annotations

from ..config import Config
from ..spec import Encoder, Pool, Project, Step
from .bert import bert_encoder, sentence_steps
from .bert import rename as bert_rename
from .blocks import counted_positions, linear
from .registry import Family, Processing, strip_prefixes


def text(config: Config) -> Encoder:
    hidden, padding = config.integer("hidden_size", 768, 1, 1 << 16), config.integer("pad_token_id", 1, 0, 1 << 22)
    steps = (
        Step("first_token", "hidden", Pool("first")),
        Step("pooler_output", "first_token", Project(linear("pooler.dense", hidden, hidden, optional=True), "tanh")),
        *sentence_steps(config),
    )
    if config.get("vocab_size") is None and config.get("model_type") == "roberta":
        config = config.updated(Config({"vocab_size": 50265}))
    return bert_encoder(config, "", steps, prepare=counted_positions(padding), first_position=padding + 1)


def rename(key: str) -> str:
    return bert_rename(strip_prefixes("roberta.")(key))


FAMILY = Family(
    model_type="roberta",
    processing=Processing(tokenizer="RobertaTokenizer"),
    variants={"xlm-roberta": Processing(tokenizer="XLMRobertaTokenizer")},
    aliases=("xlm-roberta",),
    towers={"text": text},
    classes={"RobertaModel": ("text",), "XLMRobertaModel": ("text",)},
    rename=rename,
    ignored=("lm_head.",),
)
