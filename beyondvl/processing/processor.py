"""Processors: text and pictures in one call, as transformers' ProcessorMixin."""

from __future__ import annotations

import os
from typing import Any

from ..hub import hub_options, resolve
from ..outputs import BatchFeature
from .image import ImageProcessor
from .text import Tokenizer

__all__ = ["AutoProcessor", "Processor", "processor_class"]


class Processor:
    """`processor(text=..., images=..., return_tensors="np", padding=True)` -> inputs of a model."""

    def __init__(self, image_processor: ImageProcessor, tokenizer: Tokenizer):
        self.image_processor, self.tokenizer = image_processor, tokenizer

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, **kwargs: Any) -> Processor:
        """Of a folder, a hub id or "beyond-vl-model"."""
        processor = cls(ImageProcessor.from_pretrained(name, **kwargs), Tokenizer.from_pretrained(name, **kwargs))
        if processor.image_processor.kind == "Blip":  # its models know no token types, though its tokenizer does
            names = processor.tokenizer.model_input_names
            processor.tokenizer.model_input_names = tuple(n for n in names if n != "token_type_ids")
        return processor

    def __call__(
        self, images: Any = None, text: Any = None, *, return_tensors: str | None = None, **kwargs: Any
    ) -> BatchFeature:
        """Inputs for a model.

        Args:
            text: a text or a list of texts; see Tokenizer for padding, truncation, max_length.
            images: a picture or a list; see `load_image` for what a picture may be.
            return_tensors: "np", "pt" or None for lists.

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
            inputs.update(self.tokenizer(text, return_tensors=return_tensors, **kwargs))
        if images is not None:
            inputs.update(self.image_processor(images, return_tensors=return_tensors))
        return inputs

    def decode(self, *args: Any, **kwargs: Any) -> str:
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        return self.tokenizer.batch_decode(*args, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        return [*self.tokenizer.model_input_names, "pixel_values"]


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
