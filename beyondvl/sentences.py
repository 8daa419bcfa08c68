"""What a sentence-transformers folder says beside its model: modules.json, and the files it names.

Modules are Transformer (or CLIPModel), Pooling, then any number of Dense, and Normalize; the first one's folder holds
the model itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from .config import Config
from .errors import ConfigError
from .folder import Folder
from .similarity import SIMILARITIES
from .spec import Spec
from .weights import Checkpoint, open_checkpoint

__all__ = ["PROMPTS", "Options", "Sentences", "read_sentences"]

# pooling modes by their names in older files and since version 6
MODES = {"mean_tokens": "mean", "cls_token": "first", "mean": "mean", "cls": "first"}
MODELS = ("Transformer", "CLIPModel")
KNOWN = (*MODELS, "Pooling", "Dense", "Normalize")
ACTIVATIONS = {"Identity": "none", "Tanh": "tanh", "ReLU": "relu", "GELU": "gelu", "SiLU": "silu"}
FILE, BERT_FILE = "config_sentence_transformers.json", "sentence_bert_config.json"
PROMPTS = ("query", "document")  # that every model has, empty where its folder says nothing
PLACE = re.compile(r"[\w\-]*")


class Options(Spec):
    """`prompts` are by name, `default_prompt` is the one before every text; `max_length` in tokens, None: the model's;
    `similarity` is how embeddings are compared; `truncate_dim` how many numbers of them are kept, None: all."""

    prompts: Mapping[str, str] = MappingProxyType({})
    default_prompt: str | None = None
    max_length: int | None = None
    lowercase: bool = False
    similarity: str = "cosine"
    truncate_dim: int | None = None


class Sentences(Spec):
    """`model` is the folder of the model itself. `dense` are the linears after pooling: place, sizes, activation."""

    folder: Folder
    model: Folder
    options: Options
    pooling: str | None = None
    normalize: bool = False
    dense: tuple[dict[str, Any], ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """What the model's own config does not say: how its rows become a sentence's."""
        return {"pooling": self.pooling or "mean", "normalize": self.normalize, "dense": list(self.dense)}

    def joined(self, checkpoint: Checkpoint) -> Checkpoint:
        """A model's weights with those of the linears, under their place."""
        for layer in self.dense:
            other = open_checkpoint(Path(self.folder.path, layer["place"]))
            checkpoint = checkpoint.joined(other.renamed(lambda name, place=layer["place"]: f"{place}.{name}"))
        return checkpoint


def read_sentences(folder: Folder) -> Sentences | None:
    """What a folder's modules.json and its relatives say; None where there are none. ConfigError for one of another
    kind."""
    if "modules.json" not in folder:
        options = _options(folder, folder)
        return None if vars(options) == vars(Options()) else Sentences(folder, folder, options)
    modules = _modules(folder)
    model = folder.within(next((place for kind, place in modules if kind in MODELS), ""))
    pooled = [_pooling(folder, place) for kind, place in modules if kind == "Pooling"]
    return Sentences(
        folder, model, _options(folder, model), pooled[0] if pooled else None,
        any(kind == "Normalize" for kind, _ in modules),
        tuple(_dense(folder, place) for kind, place in modules if kind == "Dense"),
    )  # fmt: skip


def _modules(folder: Folder) -> list[tuple[str, str]]:
    """(kind, place) in their order."""
    try:
        modules = [
            (str(m["type"]).rsplit(".", 1)[-1], str(m.get("path", ""))) for m in folder.json_list("modules.json")
        ]
    except (TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"modules.json: expected objects with type and path: {error}") from error
    if unknown := sorted({kind for kind, _ in modules} - set(KNOWN)):
        raise ConfigError(f"modules.json: found {', '.join(unknown)}, expected {', '.join(KNOWN)}")
    if wrong := [
        (kind, place)
        for kind, place in modules
        if not PLACE.fullmatch(place) or not (place or kind in MODELS or kind == "Normalize")
    ]:
        raise ConfigError(f"modules.json: {wrong[0][0]}: path {wrong[0][1]!r}, expected a plain folder name")
    order = [("Transformer" if kind in MODELS else kind) for kind, _ in modules]
    if order != sorted(order, key=["Transformer", "Pooling", "Dense", "Normalize"].index):
        raise ConfigError(
            f"modules.json: found the order {', '.join(order)}, expected Normalize last and Pooling first"
        )
    return modules


def _pooling(folder: Folder, place: str) -> str:
    file = f"{place}/config.json"
    fields = folder.json(file)
    modes = [name.removeprefix("pooling_mode_") for name, on in fields.items() if on is True and "_mode_" in name]
    newer = fields.get("pooling_mode")
    modes += newer if isinstance(newer, list) else [newer] if newer is not None else []
    if len(modes) != 1 or str(modes[0]) not in MODES:
        raise ConfigError(f"{file}: pooling {modes}, expected the mean or the cls token")
    if fields.get("include_prompt", True) is not True:
        raise ConfigError(f"{file}: include_prompt: found false, expected true")
    return MODES[modes[0]]


def _dense(folder: Folder, place: str) -> dict[str, Any]:
    fields = Config(folder.json(f"{place}/config.json"), f"{place}/config.json")
    name = str(fields.get("activation_function", "Tanh")).rsplit(".", 1)[-1]
    if name not in ACTIVATIONS:
        raise ConfigError(
            f"{place}/config.json: activation_function: found {name!r}, expected one of {', '.join(ACTIVATIONS)}"
        )
    sizes = {key: fields.integer(key, None, 1, 1 << 16) for key in ("in_features", "out_features")}
    return {"place": place, **sizes, "bias": fields.boolean("bias", True), "activation": ACTIVATIONS[name]}


def _options(folder: Folder, model: Folder) -> Options:
    """Of config_sentence_transformers.json, and of sentence_bert_config.json beside the model."""
    fields = folder.config(FILE)
    prompts, default = fields.get("prompts") or {}, fields.get("default_prompt_name")
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise ConfigError(f"{FILE}: prompts: found {prompts!r:.200}, expected texts by name")
    if default is not None and (not isinstance(default, str) or default not in (*prompts, *PROMPTS)):
        raise ConfigError(f"{FILE}: default_prompt_name: found {default!r}, expected one of {list(prompts)}")
    similarity = fields.get("similarity_fn_name")
    if similarity not in (None, *SIMILARITIES):
        raise ConfigError(f"{FILE}: similarity_fn_name: found {similarity!r}, expected one of {list(SIMILARITIES)}")
    width = fields.integer("truncate_dim", 1, 1, 1 << 30) if fields.get("truncate_dim") is not None else None
    limits = (model if BERT_FILE in model else folder).config(BERT_FILE)
    length = limits.integer("max_seq_length", 1, 1, 1 << 30) if limits.get("max_seq_length") is not None else None
    return Options(prompts, default, length, limits.boolean("do_lower_case", False), similarity or "cosine", width)
