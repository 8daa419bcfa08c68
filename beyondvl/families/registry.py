"""What a family is, and which one a config belongs to.

Adding a family: a file here with a `Family`, its module's name in MODULES, a row in tests/families.py, a line in
docs/MODELS.md.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from functools import cache
from types import MappingProxyType
from typing import Any

from ..config import Config
from ..errors import ConfigError
from ..folder import Folder
from ..spec import Encoder, Spec
from .tokens import TOKENIZERS, TokenizerKind

__all__ = [
    "Family",
    "Head",
    "Processing",
    "ProcessorKind",
    "Speech",
    "class_of_part",
    "families",
    "family_of",
    "find_family",
    "load_config",
    "processing_of",
    "strip_prefixes",
    "tokenizer_kind",
]

MODULES = [
    "beyond_vl",
    "clip",
    "siglip",
    "chinese_clip",
    "bert",
    "efficientnet_lite",
    "open_clip",
    "blip",
    "blip_2",
    "instructblip",
    "flava",
    "clap",
    "whisper",
    "audio_spectrogram",
    "x_clip",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
    "metaclip_2",
    "embedding_gemma2",
    "gemma3_text",
    "roberta",
    "idefics3",
    "modernbert",
    "colmodernvbert",
]

# buffers that older versions of the libraries stored: recomputed, never read
IGNORED_SUFFIXES = ("position_ids", "inv_freq", "num_batches_tracked", "token_type_ids", "relative_position_index")
NONE: Mapping[str, Any] = MappingProxyType({})  # a default that nobody can fill


def keep(key: str) -> str:
    """The rename of a family whose stored keys need none."""
    return key


def strip_prefixes(*prefixes: str) -> Callable[[str], str]:
    """A rename that drops the first of the prefixes a key begins with."""

    def rename(key: str) -> str:
        for prefix in prefixes:
            if key.startswith(prefix):
                return key[len(prefix) :]
        return key

    return rename


class ProcessorKind(Spec):
    """What a family's processor does beside calling its parts.

    `text_defaults` are options of its tokenizer where a call says nothing else, `unused_inputs` what it leaves out.
    `placeholder` names the token that stands for a query in front of a text, where processor_config.json has a
    num_query_tokens. `num_frames` (of the folder's config) tells that it takes clips, and how many frames of each, by
    the name `clips`: where that is the name of pictures, these are frames of clips. `labels`: a text that comes with a
    sound is what is said in it, and what its tokenizer's file says of calls is of no account, as in transformers.
    `clip_soft_tokens` tells that pictures, clips and sounds go into texts as rows: so many of each frame of a clip at
    most, one of `frames_a_row` frames of a sound; `image_seq_len` that they go into texts as tiles, so many rows each
    where processor_config.json says nothing else; `page_prompt` is the text in which a picture that is searched for
    stands, `query_suffix` what follows a question.
    """

    text_defaults: Mapping[str, Any] = NONE
    unused_inputs: tuple[str, ...] = ()
    placeholder: str | None = None
    num_frames: Callable[[Config], int] | None = None
    clips: str = "pixel_values"
    labels: bool = False
    clip_soft_tokens: int = 0
    frames_a_row: int = 4
    image_seq_len: int = 0
    page_prompt: str = ""
    query_suffix: str = ""


class Processing(Spec):
    """How a family's inputs are made: the classes of its processor's parts where the files name none, and what classes
    of its own there are, by the names that files and callers give them.

    `image_processors` hold the defaults of each class, `feature_extractors` and `tokenizer_classes` the class itself.
    """

    processor: str | None = None
    tokenizer: str | None = None
    image_processor: str | None = None
    feature_extractor: str | None = None
    kind: ProcessorKind = ProcessorKind()
    tokenizers: Mapping[str, TokenizerKind] = NONE
    tokenizer_classes: Mapping[str, type] = NONE
    image_processors: Mapping[str, Mapping[str, Any]] = NONE
    feature_extractors: Mapping[str, type] = NONE
    # of a config that holds what others keep in files of their own
    image_config: Callable[[Config], Config] | None = None
    tokenizer_config: Callable[[Config], Config] | None = None


class Speech(Spec):
    """The words of a model that writes down speech: languages by code, tasks, the code of a language as callers name
    it, and how many seconds a time token counts."""

    languages: Mapping[str, str]
    tasks: tuple[str, ...]
    code: Callable[[str], str]
    precision: float


class Head(Spec):
    """A class of a family whose towers are its own.

    `task` names what it does (a key of TASKS in tasks/), `towers` its programs in the
    order they are built (None: a config has no use for one), `tokens` the ids that generation begins, ends and pads
    with, `prompt` what it continues: (config, ids or None, mask or None, batch) -> (ids, mask or None); `prefixed` puts
    the placeholders of a picture before the ids and mask of a text; `question` is the form a question is put in;
    `scaled` tells that it reads the family's scale; `speech` are the words of a model that writes down speech;
    `vocabulary` gives the tokenizer's id of each of the decoder's, where these are a part of them.
    """

    task: str
    towers: Mapping[str, Callable[[Config], Encoder | None]]
    tokens: Callable[[Config], dict[str, int]] | None = None
    prompt: Callable[..., tuple[Any, Any]] | None = None
    prefixed: Callable[[Config, dict[str, Any]], dict[str, Any]] | None = None
    question: str = "{}"
    scaled: bool = False
    speech: Speech | None = None
    vocabulary: Callable[[Config], tuple[int, ...]] | None = None


class Family(Spec):
    """One kind of checkpoint.

    `towers` gives the encoders of a config by tower ("text", "vision", "video", "audio"), in the order they are built.
    `rename` maps a stored key to the name the encoders use, undoing the prefixes of library versions. `classes` maps a
    public class name to the towers that class loads; `heads` holds the classes that have towers of their own.
    `scale` and `bias` name the parameters of logits = cos * exp(scale) + bias (`text_scale` that of logits_per_text
    where it is another one), and `sigmoid` tells how scores become probabilities; where only some of a family's
    configs have that bias and sigmoid, `biased` tells which. `unit_features`: get_*_features are
    normalised. `projected_pooler`: a whole model's towers give their projection as pooler_output. `processing` says how
    its inputs are made, `variants` the same of model types that begin so.
    """

    model_type: str
    towers: Mapping[str, Callable[[Config], Encoder]]
    classes: Mapping[str, tuple[str, ...]]
    processing: Processing = Processing()
    variants: Mapping[str, Processing] = NONE
    rename: Callable[[str], str] = keep
    ignored: tuple[str, ...] = ()
    heads: Mapping[str, Head] = NONE
    scale: str | None = None
    bias: str | None = None
    text_scale: str | None = None
    sigmoid: bool = False
    biased: Callable[[Config], bool] | None = None
    unit_features: bool = False
    projected_pooler: bool = False
    weight_files: tuple[str, ...] = ()  # names looked for before the usual ones
    aliases: tuple[str, ...] = ()  # further model_type values, for example of one tower's config
    base: str | None = None  # the class of a whole config that names none
    older_sections: bool = False  # whole configs may hold a "text_config_dict"
    bare: frozenset[str] = frozenset()  # classes that stop before the projection
    prefixes: Mapping[str, tuple[str, ...]] = NONE  # keys of each tower, for one-tower classes

    def bias_of(self, config: Config) -> str | None:
        """The bias that a config's model has."""
        return self.bias if self.biased is None or self.biased(config) else None

    def is_ignored(self, key: str) -> bool:
        return key.endswith(IGNORED_SUFFIXES) or key.startswith(self.ignored)

    def belongs_elsewhere(self, key: str, towers: tuple[str, ...]) -> bool:
        """Whether a key is of a tower that a one-tower class leaves out."""
        others = [p for name, prefixes in self.prefixes.items() if name not in towers for p in prefixes]
        return key in (self.scale, self.bias, self.text_scale) or key.startswith(tuple(others))

    def processing_of(self, model_type: Any) -> Processing:
        """How inputs are made for a config of that type."""
        names = (name for name in self.variants if str(model_type).startswith(name))
        return self.variants.get(max(names, key=len, default=""), self.processing)

    @property
    def ways(self) -> tuple[Processing, ...]:
        """Every way of making its inputs."""
        return (self.processing, *self.variants.values())


@cache
def families() -> dict[str, Family]:
    """All families by model_type, aliases included."""
    table: dict[str, Family] = {}
    for module in MODULES:
        family = importlib.import_module(f".{module}", __package__).FAMILY
        for model_type in (family.model_type, *family.aliases):
            table[model_type] = family
    return table


def find_family(config: Config) -> Family:
    """The family of a config. ConfigError lists the known ones when its model_type is none of them."""
    model_type = config.get("model_type")
    name = model_type.replace("-", "_") if isinstance(model_type, str) else ""
    if name in MODULES:  # spares the import of all others
        family = importlib.import_module(f".{name}", __package__).FAMILY
        if model_type in (family.model_type, *family.aliases):
            return family
    family = families().get(model_type) if name else None
    if family is None:
        known = ", ".join(sorted(families()))
        raise ConfigError(f"config.json: model_type: found {model_type!r}, expected one of {known}")
    return family


def load_config(folder: Folder) -> Config:
    """config.json of a folder, or OpenCLIP's own file when that is what it holds."""
    config = folder.config("config.json")
    if "model_type" not in config and "open_clip_config.json" in folder:  # alone, or beside a config of timm's
        return Config({**folder.json("open_clip_config.json"), "model_type": "open_clip"}, "open_clip_config.json")
    return config


def family_of(folder: Folder) -> Family | None:
    """The family of a folder's config; None where it has none, or one of no family here."""
    config = load_config(folder)
    try:
        return find_family(config) if config.get("model_type") is not None else None
    except ConfigError:
        return None


def processing_of(folder: Folder, processor: Any = None) -> Processing:
    """How the inputs of a folder's model are made: by its config, else by the class of processor its files name."""
    family = family_of(folder)
    if family is not None:
        return family.processing_of(load_config(folder).get("model_type"))
    return class_of_part("processor", processor) or Processing()


def class_of_part(part: str, name: Any) -> Processing | None:
    """The way of making inputs that goes with a class of processor, tokenizer, image processor or extractor."""
    if not isinstance(name, str):
        return None
    ways = [way for family in families().values() for way in family.ways]
    return next((way for way in ways if getattr(way, part) == name), None)


def tokenizer_kind(name: str, family: Family | None = None) -> TokenizerKind | None:
    """A class of tokenizers by its name, of one family or of any; None where it is none of those known here."""
    if name in TOKENIZERS:
        return TOKENIZERS[name]
    known = (family,) if family else families().values()
    kinds = (way.tokenizers.get(name) for each in known for way in each.ways)
    return next((kind for kind in kinds if kind), None)
