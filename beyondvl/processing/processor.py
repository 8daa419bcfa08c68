"""Processors: text and pictures in one call, as transformers' ProcessorMixin."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..config import Config, read_json
from ..errors import ConfigError
from ..hub import hub_options, resolve
from ..outputs import BatchFeature
from .image import ImageProcessor
from .text import Tokenizer, as_tensors

__all__ = ["AutoProcessor", "Processor", "processor_class"]

QFORMER_TOKENIZER = "qformer_tokenizer"  # InstructBLIP's second tokenizer, in a folder of its own


class Processor:
    """`processor(text=..., images=..., return_tensors="np", padding=True)` -> inputs of a model."""

    def __init__(
        self,
        image_processor: ImageProcessor,
        tokenizer: Tokenizer,
        qformer_tokenizer: Tokenizer | None = None,
        num_query_tokens: int | None = None,
        image_token: str = "<image>",
    ):
        self.image_processor, self.tokenizer, self.qformer_tokenizer = image_processor, tokenizer, qformer_tokenizer
        self.num_query_tokens, self.image_token = num_query_tokens, image_token

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, **kwargs: Any) -> Processor:
        """Of a folder, a hub id or "beyond-vl-model"."""
        folder = resolve(name, weights=False, **hub_options(kwargs))
        tokenizers = {"tokenizer": Tokenizer.from_pretrained(folder, **kwargs)}
        if (folder / QFORMER_TOKENIZER).is_dir():
            tokenizers["qformer_tokenizer"] = Tokenizer.from_pretrained(folder / QFORMER_TOKENIZER)
        processor = cls(ImageProcessor.from_pretrained(folder, **kwargs), **tokenizers, **_placeholders(folder))
        if processor.image_processor.kind == "Blip":  # its models know no token types, though its tokenizer does
            for tokenizer in tokenizers.values():
                names = tokenizer.model_input_names
                tokenizer.model_input_names = tuple(n for n in names if n != "token_type_ids")
        return processor

    def __call__(
        self, images: Any = None, text: Any = None, *, return_tensors: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Inputs for a model.

        Args:
            text: a text or a list of texts; see Tokenizer for padding, truncation, max_length.
            images: a picture or a list; see `load_image` for what a picture may be.
            return_tensors: "np", "pt" or None for lists.

        Where a language model reads what query tokens drew from a picture (BLIP-2, InstructBLIP), texts that come with
        pictures begin with a placeholder for each query, which `max_length` counts. InstructBLIP's Q-Former reads the
        text too: `qformer_input_ids`, `qformer_attention_mask`.

        Raises ValueError when neither is given.
        """
        if text is None and images is None:
            raise ValueError("found neither text nor images, expected at least one of them")
        if not _looks_like_picture(images) and (images is None or _is_text(images)) and not _is_text(text):
            text, images = images, text  # positional arguments in the order of older versions: text, then images
        unknown = [] if text is not None else sorted(set(kwargs) - {"padding", "truncation", "max_length"})
        if unknown:
            raise TypeError(f"unexpected arguments: {', '.join(unknown)}; an image processor's settings are set on it")
        inputs = BatchFeature()
        if text is not None:
            inputs.update(self._texts(text, images is not None, return_tensors, kwargs))
        if images is not None:
            inputs.update(self.image_processor(images, return_tensors=return_tensors))
        return inputs

    def _texts(
        self, text: Any, placeholders: bool, return_tensors: str | None, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        found = {}
        if self.qformer_tokenizer:
            asked = self.qformer_tokenizer(text, return_tensors=return_tensors, **kwargs)
            found |= {f"qformer_{name}": values for name, values in asked.items()}
        count = self.num_query_tokens
        if not count:
            return found | self.tokenizer(text, return_tensors=return_tensors, **kwargs)
        if kwargs.get("max_length") is not None:
            kwargs = kwargs | {"max_length": kwargs["max_length"] - count}
        lists = self.tokenizer([text] if isinstance(text, str) else text, **kwargs)
        if placeholders:
            known = self.tokenizer.get_vocab()
            fill = {"input_ids": known.get(self.image_token, len(self.tokenizer)), "attention_mask": 1}
            lists = {name: [[fill[name]] * count + row for row in rows] for name, rows in lists.items()}
        return found | (as_tensors(lists, return_tensors) if return_tensors else lists)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        return self.tokenizer.batch_decode(*args, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        qformer = ["qformer_input_ids", "qformer_attention_mask"] if self.qformer_tokenizer else []
        return [*self.tokenizer.model_input_names, "pixel_values", *qformer]


def _placeholders(folder: Path) -> dict[str, Any]:
    """How many placeholders a picture takes, and which token they are, where processor_config.json says so."""
    path = folder / "processor_config.json"
    fields = Config(read_json(path) if path.exists() else {}, path.name)
    if fields.get("num_query_tokens") is None:
        return {}
    token = fields.get("image_token", "<image>")
    token = token.get("content") if isinstance(token, dict) else token
    if not isinstance(token, str):
        raise ConfigError(f"{path.name}: image_token: found {token!r}, expected a token")
    return {"num_query_tokens": fields.integer("num_query_tokens", None, 1, 1 << 12), "image_token": token}


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list | tuple) and value else value


def _is_text(value: Any) -> bool:
    return isinstance(_first(value), str)


def _looks_like_picture(value: Any) -> bool:
    return hasattr(_first(value), "shape") or hasattr(_first(value), "getbands")


class AutoProcessor:
    """`AutoProcessor.from_pretrained(name)`: a Processor, or the one half the folder has files for."""

    @staticmethod
    def from_pretrained(name: str | os.PathLike, **kwargs: Any) -> Processor | Tokenizer | ImageProcessor:
        hub = hub_options(kwargs)
        folder = resolve(name, weights=False, **hub)
        pictures = any(
            (folder / file).exists()
            for file in ("preprocessor_config.json", "processor_config.json", "open_clip_config.json")
        )
        texts = any((folder / f).exists() for f in ("tokenizer.json", "merges.txt", "vocab.txt", "spiece.model"))
        kind = (
            Processor if (pictures and texts) or not (pictures or texts) else ImageProcessor if pictures else Tokenizer
        )
        return kind.from_pretrained(folder, **kwargs)


_NAMES = (
    "CLIPProcessor",
    "SiglipProcessor",
    "Siglip2Processor",
    "ChineseCLIPProcessor",
    "BlipProcessor",
    "Blip2Processor",
    "InstructBlipProcessor",
)


def processor_class(name: str) -> type:
    """CLIPProcessor and its like are one class: what differs lies in the files. KeyError for other names."""
    classes = {
        "CLIPTokenizer": Tokenizer,
        "CLIPTokenizerFast": Tokenizer,
        "SiglipTokenizer": Tokenizer,
        "BertTokenizer": Tokenizer,
        "BertTokenizerFast": Tokenizer,
        "CLIPImageProcessor": ImageProcessor,
        "SiglipImageProcessor": ImageProcessor,
        "BlipImageProcessor": ImageProcessor,
        **dict.fromkeys(_NAMES, Processor),
    }
    return classes[name]
