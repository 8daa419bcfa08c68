"""OpenCLIP's own format: open_clip_config.json + open_clip_model.safetensors, plain ViT and text transformer.

q, k, v are packed in one parameter, projections are stored as [in, out]; the activation is erf GELU unless the config
says quick_gelu; text pools at the largest token id. CLIPA's text is not causal, has no mask and ends in its last row,
its picture's rows are averaged (Li et al., 2023). A layer scale (Touvron et al., 2021) is folded into what it scales.
A text may be read by RoBERTa or XLM-RoBERTa, whose sizes follow from its name, averaged and projected, a picture by
timm's SigLIP or PE-Core (open_clip_trunks.py). Other towers are refused by name. Texts are cleaned before they are cut
into tokens: ftfy's repairs, HTML entities twice, single spaces, lower case; what fills them up is id 0, but RoBERTa's
own padding.
"""

from __future__ import annotations

import html
import string
from typing import Any

import numpy as np

from ..config import Config
from ..errors import ConfigError
from ..processing.text import Tokenizer
from ..spec import Block, Encoder, Linear, Norm, Normalize, Pool, Project, Step, TakeRows, ref, replace
from ..stems import PatchStem, TokenStem
from .bert import bert_encoder
from .blocks import counted_positions, linear, named_block, norm, square_picture
from .open_clip_trunks import trunk
from .pictures import BICUBIC, BILINEAR, CLIP, OPENAI
from .registry import Family, Processing, strip_prefixes
from .tokens import TOKENIZERS

EPS = 1e-5
OWN, FOREIGN, PICTURES = "OpenClipTokenizer", "OpenClipBertTokenizer", "OpenClipImageProcessor"
ROBERTA, XLM = "OpenClipRobertaTokenizer", "OpenClipXlmTokenizer"
T5, GEMMA = "OpenClipSiglipTokenizer", "OpenClipSiglip2Tokenizer"
FOREIGN_TOKENIZERS = {
    FOREIGN: "BertTokenizer",
    ROBERTA: "RobertaTokenizer",
    XLM: "XLMRobertaTokenizer",
    T5: "SiglipTokenizer",
    GEMMA: "Siglip2Tokenizer",
}
BASE = {"layer_norm_eps": 1e-5, "pad_token_id": 1, "max_position_embeddings": 514, "type_vocab_size": 1}
LARGE = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
# texts of Hugging Face that are read, by their names there: sizes and tokenizer
FOREIGN_TEXTS = {
    "roberta-base": (BASE | {"vocab_size": 50265}, ROBERTA),
    "xlm-roberta-base": (BASE | {"vocab_size": 250002}, XLM),
    "xlm-roberta-large": (BASE | LARGE | {"vocab_size": 250002}, XLM),
}
PLAIN = {
    "timm_model_name",
    "hf_model_name",
    "attentional_pool",
    "patch_dropout",
    "pos_embed_type",
    "embed_cls",
    "global_average_pool",
    "block_type",
    "qk_norm",
    "scaled_cosine_attn",
    "scale_heads",
    "scale_attn_inner",
    "scale_attn",
    "scale_fc",
    "tokenizer_mode",
}


def section_of(config: Config, name: str) -> Config:
    section = config.section("model_cfg").section(name)
    for field in sorted(PLAIN):
        if section.get(field):
            raise ConfigError(f"open_clip_config.json: {name}: {field} {section.get(field)!r} is not supported")
    return section


def activation(config: Config, section: Config) -> str:
    options = section.section("act_kwargs").to_dict() if section.get("act_kwargs") else {}
    if options not in ({}, {"approximate": "tanh"}):
        raise ConfigError(f"open_clip_config.json: act_kwargs {options!r} is not supported")
    if options:
        return "gelu_pytorch_tanh"
    return "quick_gelu" if config.section("model_cfg").boolean("quick_gelu", False) else "gelu"


def eps_of(section: Config) -> float:
    """Of a tower's norms."""
    options = section.section("norm_kwargs") if section.get("norm_kwargs") else Config({})
    if set(options.to_dict()) - {"eps"}:
        raise ConfigError(f"open_clip_config.json: norm_kwargs {options.to_dict()!r} is not supported")
    return options.number("eps", EPS, 0.0, 1.0)


def block(
    prefix: str, width: int, mlp: int, heads: int, activation: str, eps: float, causal: bool, scaled: bool
) -> Block:
    """A residual block; with `scaled` what attention and feed-forward add is multiplied by a vector each."""
    packed = f"{prefix}.attn.in_proj"
    qkv = Linear(ref(f"{packed}_weight", 3 * width, width), ref(f"{packed}_bias", 3 * width))
    names = ("attn.out_proj", "ln_1", "mlp.c_fc", "mlp.c_proj", "ln_2")
    scales = ("ls_1.gamma", "ls_2.gamma") if scaled else None
    return named_block(prefix, names, qkv, width, mlp, heads, activation, eps, causal, scales)


def tower(config: Config, section: Config, prefix: str, width: int, heads: int, causal: bool) -> tuple[Block, ...]:
    if width % heads:
        raise ConfigError(f"open_clip_config.json: width {width} is not a multiple of {heads} heads")
    act = activation(config, section)
    mlp, scaled = int(width * section.number("mlp_ratio", 4.0, 0.1, 64.0)), section.get("ls_init_value") is not None
    return tuple(
        block(f"{prefix}transformer.resblocks.{i}", width, mlp, heads, act, eps_of(section), causal, scaled)
        for i in range(section.integer("layers", 12, 1, 1024))
    )


def projection(config: Config, name: str, width: int) -> Project:
    embed = config.section("model_cfg").integer("embed_dim", None, 1, 1 << 16)
    return Project(Linear(ref(name, embed, width, transpose=True)))


def foreign_text(section: Config) -> tuple[dict[str, Any], str] | None:
    """Sizes and tokenizer of a Hugging Face text that is read."""
    return FOREIGN_TEXTS.get(str(section.get("hf_model_name")).removeprefix("FacebookAI/"))


def roberta_text(config: Config, section: Config, sizes: Config) -> Encoder:
    """The mean of RoBERTa's rows that are not padding, projected by one linear, or by two."""
    hidden, embed = (
        sizes.integer("hidden_size", 768),
        config.section("model_cfg").integer("embed_dim", None, 1, 1 << 16),
    )
    section.choice("hf_pooler_type", "mean_pooler", ("mean_pooler",))
    if section.get("output_tokens"):
        raise ConfigError("open_clip_config.json: text_cfg: output_tokens True is not supported")
    kind = section.choice("hf_proj_type", "mlp", ("mlp", "linear"))
    inner = (hidden + embed) // 2
    projected = (Step("embeds", "pooler_output", Project(linear("proj", embed, hidden, bias=False))),)
    if kind == "mlp":
        projected = (
            Step("embeds_inner", "pooler_output", Project(linear("proj.0", inner, hidden, bias=False), "gelu")),
            Step("embeds", "embeds_inner", Project(linear("proj.2", embed, inner, bias=False))),
        )
    padding = sizes.integer("pad_token_id", 1)
    count = counted_positions(padding)

    def prepare(inputs: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
        """The mask is what is not padding, whatever a caller says, as in OpenCLIP."""
        mask = (inputs["input_ids"] != padding).astype(np.int64)
        return count(inputs, facts) | {"attention_mask": mask}

    steps = (Step("pooler_output", "hidden", Pool("mean")), *projected, Step("unit_embeds", "embeds", Normalize()))
    return bert_encoder(sizes, "transformer.", steps, prepare=prepare, first_position=padding + 1)


def text(config: Config) -> Encoder:
    stated = config.section("model_cfg").section("text_cfg")
    if foreign := foreign_text(stated):
        return roberta_text(config, stated, Config(foreign[0], "open_clip_config.json: text_cfg"))
    section = section_of(config, "text_cfg")
    width, heads = section.integer("width", 512, 1, 1 << 16), section.integer("heads", 8, 1, 1024)
    pool = section.choice("pool_type", "argmax", ("argmax", "first", "last"))
    projected = projection(config, "text_projection", width)
    if section.get("proj_bias") is True:
        projected = Project(linear("text_projection", projected.linear.out_features, width))
    last = (Step("embeds", "pooler_output", projected), Step("unit_embeds", "embeds", Normalize()))
    if section.choice("proj_type", "linear", ("linear", "none")) == "none":
        last = (Step("unit_embeds", "pooler_output", Normalize()),)
    return Encoder(
        hidden_size=width,
        stem=TokenStem(
            word=ref("token_embedding.weight", section.integer("vocab_size", 49408, 1, 1 << 22), width),
            position=ref("positional_embedding", section.integer("context_length", 77, 1, 1 << 16), width),
        ),
        layers=tower(config, section, "", width, heads, causal=section.get("no_causal_mask") is not True),
        steps=(
            Step("last_hidden_state", "hidden", norm("ln_final", width, eps_of(section))),
            Step("pooler_output", "last_hidden_state", Pool(pool)),
            *last,
        ),
    )


def vision(config: Config) -> Encoder:
    stated = config.section("model_cfg").section("vision_cfg")
    if encoder := trunk(config, stated):
        return encoder
    section = section_of(config, "vision_cfg")
    width = section.integer("width", 768, 1, 1 << 16)
    image, patch = square_picture(section, 224, 16, "open_clip_config.json")
    rows = (image // patch) ** 2
    heads = width // section.integer("head_width", 64, 1, width)
    return Encoder(
        hidden_size=width,
        stem=PatchStem(
            weight=ref("visual.conv1.weight", width, 3, patch, patch),
            bias=None,
            class_token=ref("visual.class_embedding", width),
            position=ref("visual.positional_embedding", rows + 1, width),
            size=(image, image),
            stride=patch,
        ),
        stem_norm=None if section.get("no_ln_pre") is True else norm("visual.ln_pre", width, eps_of(section)),
        layers=tower(config, section, "visual.", width, heads, causal=False),
        steps=(
            *pooled(section, rows, norm("visual.ln_post", width, eps_of(section))),
            Step("embeds", "pooler_output", projection(config, "visual.proj", width)),
            Step("unit_embeds", "embeds", Normalize()),
        ),
    )


def pooled(section: Config, rows: int, last: Norm) -> tuple[Step, ...]:
    """The class token, or the mean of the picture's own rows, normed; of the mean each row first unless the config says
    after."""
    if section.choice("pool_type", "tok", ("tok", "avg")) == "tok":
        return Step("class_token", "hidden", Pool("first")), Step("pooler_output", "class_token", last)
    own = tuple(range(1, rows + 1))
    if section.get("final_ln_after_pool") is True:
        return Step("mean", "hidden", TakeRows(own, rows)), Step("pooler_output", "mean", last)
    return Step("normed", "hidden", last), Step("pooler_output", "normed", TakeRows(own, rows))


def image_config(config: Config) -> Config:
    """preprocess_cfg in the fields of CLIP's processor."""
    fields = config.section("preprocess_cfg")
    size = config.section("model_cfg").section("vision_cfg").integer("image_size", 224, 1, 1 << 13)
    square = {"height": size, "width": size}
    squash = fields.choice("resize_mode", "shortest", ("shortest", "squash")) == "squash"
    kernel = fields.choice("interpolation", "bicubic", ("bicubic", "bilinear"))
    values = {
        "size": square if squash else {"shortest_edge": size},
        "do_center_crop": not squash,
        "crop_size": square,
        "resample": {"bicubic": BICUBIC, "bilinear": BILINEAR}[kernel],
        "image_mean": fields.get("mean", OPENAI["image_mean"]),
        "image_std": fields.get("std", OPENAI["image_std"]),
        "image_processor_type": PICTURES,
    }
    return Config(values, "open_clip_config.json")


def tokenizer_config(config: Config) -> Config:
    """text_cfg in the fields of a tokenizer: its length, its class, how texts are cleaned."""
    section = config.section("model_cfg").section("text_cfg")
    options = section.section("tokenizer_kwargs")
    foreign = section.get("hf_tokenizer_name") or section.get("hf_model_name")
    kinds = ("lower", "whitespace", "canonicalize")
    return Config(
        {
            "tokenizer_class": tokenizer_name(section, foreign),
            "model_max_length": section.integer("context_length", 77, 1, 1 << 16),
            "model_input_names": ["input_ids"] if foreign else ["input_ids", "attention_mask"],
            "clean": options.choice("clean", "whitespace" if foreign else "lower", kinds),
            "strip_sep_token": options.boolean("strip_sep_token", False),
        }
    )


def tokenizer_name(section: Config, foreign: Any) -> str:
    """Of OpenCLIP itself, or of Hugging Face: RoBERTa's, SigLIP's by its name, else BERT's."""
    if text := foreign_text(section):
        return text[1]
    if "SigLIP" in str(foreign):
        return GEMMA if "SigLIP2" in str(foreign) else T5
    return FOREIGN if foreign else OWN


class OpenClipTokenizer(Tokenizer):
    """As Tokenizer, over texts cleaned as OpenCLIP does; special tokens in a text are words to its own tokenizer, and
    what fills rows up is id 0, or what RoBERTa's and SigLIP's are filled up with."""

    def __init__(self, vocabulary: Any, settings: Config, **options: Any):
        super().__init__(vocabulary, settings, **options)
        self.backend_tokenizer.encode_special_tokens = settings.get("tokenizer_class") == OWN

    @property
    def pad_token_id(self) -> int:
        """What fills rows up."""
        return 0 if self.settings.get("tokenizer_class") in (OWN, FOREIGN) else super().pad_token_id

    def _encodings(self, items: list[Any], options: Any) -> list[Any]:
        return super()._encodings([cleaned(item, self.settings.get("clean", "lower")) for item in items], options)

    def _fields(self, *args: Any) -> tuple[dict[str, list[Any]], list[Any]]:
        fields, rows = super()._fields(*args)
        if self.settings.get("strip_sep_token") is True:
            fields["input_ids"] = [[0 if i == self.sep_token_id else i for i in row] for row in fields["input_ids"]]
        return fields, rows


def cleaned(item: Any, kind: str) -> Any:
    """A text (or the texts of a pair) repaired, its HTML entities resolved, with single spaces; "lower" in lower case,
    "canonicalize" without punctuation too."""
    if not isinstance(item, str):
        return type(item)(cleaned(part, kind) for part in item)
    text = " ".join(html.unescape(html.unescape(repaired(item))).split())
    if kind == "canonicalize":
        text = text.replace("_", " ").translate(str.maketrans("", "", string.punctuation)).lower()
        return " ".join(text.split())
    return text.lower() if kind == "lower" else text


def repaired(text: str) -> str:
    """Text after ftfy's repairs, which ASCII without control characters has no need of. ImportError where it would need
    them and ftfy is not installed."""
    if text.isascii() and " ".join(text.split()).isprintable():
        return text
    try:
        import ftfy
    except ImportError as error:
        raise ImportError(
            f"text: {text[:40]!r} is not plain ASCII, and OpenCLIP repairs such text by ftfy: pip install "
            "'beyondvl[open_clip]'"
        ) from error
    return ftfy.fix_text(text)


FAMILY = Family(
    model_type="open_clip",
    processing=Processing(
        tokenizer=OWN,
        tokenizers={
            OWN: TOKENIZERS["CLIPTokenizer"],
            **{
                name: replace(TOKENIZERS[kind], exact_length=True, model_input_names=("input_ids",))
                for name, kind in FOREIGN_TOKENIZERS.items()
            },
        },
        tokenizer_classes=dict.fromkeys((OWN, *FOREIGN_TOKENIZERS), OpenClipTokenizer),
        tokenizer_config=tokenizer_config,
        image_processor=PICTURES,
        image_processors={PICTURES: dict(CLIP) | {"crop_rounding": "even"}, "CLIPImageProcessor": CLIP},
        image_config=image_config,
    ),
    towers={"text": text, "vision": vision},
    classes={"OpenCLIPModel": ("text", "vision")},
    rename=strip_prefixes("module.", "text."),
    ignored=("attn_mask",),
    scale="logit_scale",
    bias="logit_bias",
    sigmoid=True,
    biased=lambda config: config.section("model_cfg").get("init_logit_bias") is not None,
    weight_files=("open_clip_model.safetensors", "open_clip_pytorch_model.bin"),
)
