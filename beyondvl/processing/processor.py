"""Processors: text, pictures, clips and sounds in one call, as transformers' ProcessorMixin."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..config import Config, read_json
from ..encode import modality_of
from ..errors import ConfigError
from ..families.blip_2 import VIDEO_FRAMES
from ..hub import hub_options, resolve
from ..outputs import BatchFeature, from_numpy
from .features import FeatureExtractor, extractor_config
from .image import DEFAULTS, FIELDS, ImageProcessor
from .text import Tokenizer, as_tensors
from .vocabularies import SIGLIP_LENGTH

__all__ = ["AutoProcessor", "Processor", "processor_class"]

TEXT_OPTIONS = ("padding", "truncation", "max_length", "add_special_tokens")  # change nothing where there is no text
QFORMER_TOKENIZER = "qformer_tokenizer"  # InstructBLIP's second tokenizer, in a folder of its own


class Processor:
    """`processor(text=..., images=..., return_tensors="np", padding=True)` -> inputs of a model; `audio=...` in place
    of `images` where the model hears, which then has a `feature_extractor` and no `image_processor`."""

    part: ClassVar[str | None] = None  # it has parts

    def __init__(
        self,
        image_processor: ImageProcessor | None,
        tokenizer: Tokenizer,
        qformer_tokenizer: Tokenizer | None = None,
        num_query_tokens: int | None = None,
        image_token: str = "<image>",
        num_frames: int | None = None,
        feature_extractor: FeatureExtractor | None = None,
    ):
        self.image_processor, self.tokenizer, self.qformer_tokenizer = image_processor, tokenizer, qformer_tokenizer
        self.feature_extractor = feature_extractor
        self.num_query_tokens, self.image_token, self.num_frames = num_query_tokens, image_token, num_frames
        self.text_defaults: dict[str, Any] = {}

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, **kwargs: Any) -> Processor:
        """Of a folder, a hub id or "beyond-vl-model"; keyword arguments override fields of the files, each of the part
        that has such a field. TypeError where none has."""
        folder = resolve(name, weights=False, **hub_options(kwargs))
        tokenizers = {"tokenizer": Tokenizer.from_pretrained(folder, **_taken(kwargs, Tokenizer))}
        if (folder / QFORMER_TOKENIZER).is_dir():
            tokenizers["qformer_tokenizer"] = Tokenizer.from_pretrained(folder / QFORMER_TOKENIZER)
        if sounds := extractor_config(folder):
            return cls(None, **tokenizers, feature_extractor=FeatureExtractor.from_config(sounds, **kwargs))
        pictures = ImageProcessor.from_pretrained(folder, **kwargs)
        frames = {"InstructBlipVideo": VIDEO_FRAMES, "VideoMAE": _num_frames(folder)}.get(pictures.kind)
        placeholders = _placeholders(folder, "video" if frames else "image")
        processor = cls(pictures, **tokenizers, **placeholders, num_frames=frames)
        if pictures.kind == "Siglip2":  # whose processor pads and cuts where a call does not say otherwise
            processor.text_defaults = {"padding": "max_length", "truncation": True, "max_length": SIGLIP_LENGTH}
        if pictures.kind in ("Blip", "InstructBlipVideo"):  # their models know no token types, though a tokenizer does
            for tokenizer in tokenizers.values():
                names = tokenizer.model_input_names
                tokenizer.model_input_names = tuple(n for n in names if n != "token_type_ids")
        return processor

    def __call__(
        self,
        *args: Any,
        images: Any = None,
        text: Any = None,
        videos: Any = None,
        audio: Any = None,
        sampling_rate: int | None = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Inputs for a model.

        Args:
            args: pictures (clips, sounds) and texts, in either order; a string is a text unless it ends in the
                extension of a picture, a clip or a sound.
            text: a text or a list of texts; see Tokenizer for padding, truncation, max_length.
            images: a picture or a list; see `load_image` for what a picture may be, and ImageProcessor for the fields
                that may be given for this call alone.
            videos: for a model of clips, a clip or a list; see `load_video` for what a clip may be. InstructBlipVideo
                takes four frames of each, X-CLIP as many as its config says; both take clips as `images` too.
            audio: for a model of sounds, a sound or a list; see `load_audio` for what a sound may be. Arrays need their
                `sampling_rate`, here or as (array, rate); other rates than the model's are resampled.
            return_tensors: "np", "pt" or None for lists.

        Where a language model reads what query tokens drew from a picture (BLIP-2, InstructBLIP), texts that come with
        pictures begin with a placeholder for each query, which `max_length` counts. InstructBLIP's Q-Former reads the
        text too: `qformer_input_ids`, `qformer_attention_mask`.

        Raises ValueError when neither is given.
        """
        if self.feature_extractor:
            audio, text = _placed(args, text, audio=audio)
            return self._heard(text, audio, sampling_rate, return_tensors, kwargs, (images, videos))
        images, text = _placed(args, text, images=images)
        if audio is not None:
            raise ValueError("audio: given to a processor of pictures, expected images")
        if self.num_frames:
            images, videos = None, videos if videos is not None else images
        elif videos is not None:
            raise ValueError("videos: given to a processor of pictures; `encode` takes clips for every picture model")
        if text is None and images is None and videos is None:
            raise ValueError("found neither text nor images, expected at least one of them")
        settings = {name: kwargs.pop(name) for name in FIELDS if name in kwargs}
        unknown = [] if text is not None else sorted(set(kwargs) - set(TEXT_OPTIONS))
        if unknown:
            raise TypeError(f"unexpected arguments: {', '.join(unknown)}")
        inputs = BatchFeature()
        if text is not None:
            options = self.text_defaults | kwargs
            inputs.update(self._texts(text, images is not None or videos is not None, return_tensors, options))
        if images is not None:
            inputs.update(self.image_processor(images, return_tensors=return_tensors, **settings))
        if videos is not None:
            pixels = self.clips(videos, **settings)
            inputs["pixel_values"] = from_numpy(pixels, return_tensors) if return_tensors else list(pixels)
        return inputs

    def _heard(
        self, text: Any, audio: Any, rate: int | None, tensors: str | None, kwargs: dict[str, Any], seen: tuple
    ) -> BatchFeature:
        """Inputs for a model of texts and sounds."""
        if any(value is not None for value in seen):
            raise ValueError("images, videos: given to a processor of sounds, expected audio")
        if text is None and audio is None:
            raise ValueError("found neither text nor audio, expected at least one of them")
        inputs, seed = BatchFeature(), {"seed": kwargs.pop("seed")} if "seed" in kwargs else {}
        if text is not None and audio is not None and self.feature_extractor.kind == "Whisper":
            inputs["labels"] = self.tokenizer(text, return_tensors=tensors, **kwargs)["input_ids"]
        elif text is not None:
            inputs.update(self.tokenizer(text, return_tensors=tensors, **kwargs))
        if audio is not None:  # padding, truncation and max_length beside a text are the text's
            options = seed if text is not None else kwargs | seed
            inputs.update(self.feature_extractor(audio, sampling_rate=rate, return_tensors=tensors, **options))
        return inputs

    def clips(self, videos: Any, **settings: Any) -> np.ndarray:
        """pixel_values (B, num_frames, 3, H, W) float32 of a clip or a list; `settings`: see ImageProcessor."""
        from .video import load_video

        clips = as_clips(videos)
        if not clips:
            raise ValueError("videos: the list is empty, expected at least one clip")
        return np.stack(
            [
                self.image_processor(list(load_video(clip, num_frames=self.num_frames)), **settings)["pixel_values"]
                for clip in clips
            ]
        )

    def _texts(
        self, text: Any, placeholders: bool, return_tensors: str | None, kwargs: dict[str, Any]
    ) -> dict[str, Any]:
        found = {}
        if self.num_query_tokens and isinstance(text, str):
            text = [text]
        if self.qformer_tokenizer:
            asked = self.qformer_tokenizer(text, return_tensors=return_tensors, **kwargs)
            found |= {f"qformer_{name}": values for name, values in asked.items()}
        if not self.num_query_tokens:
            return found | self.tokenizer(text, return_tensors=return_tensors, **kwargs)
        if kwargs.get("max_length") is not None:
            room = kwargs["max_length"] - self.num_query_tokens
            if room < 1:
                raise ValueError(
                    f"max_length: found {kwargs['max_length']}, expected more than {self.num_query_tokens} placeholders"
                )
            kwargs = kwargs | {"max_length": room}
        lists = self.tokenizer(text, **kwargs)
        if placeholders:
            known, count = self.tokenizer.get_vocab(), self.num_query_tokens * (self.num_frames or 1)
            fill = {
                "input_ids": known.get(self.image_token, len(self.tokenizer)),
                "attention_mask": 1,
                "token_type_ids": 0,
            }
            lists = {name: [[fill[name]] * count + row for row in rows] for name, rows in lists.items()}
        return found | (as_tensors(lists, return_tensors) if return_tensors else lists)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        return self.tokenizer.batch_decode(*args, **kwargs)

    @property
    def model_input_names(self) -> list[str]:
        if self.feature_extractor:
            return [*self.tokenizer.model_input_names, self.feature_extractor.input_name]
        qformer = ["qformer_input_ids", "qformer_attention_mask"] if self.qformer_tokenizer else []
        return [*self.tokenizer.model_input_names, "pixel_values", *qformer]


def as_clips(videos: Any) -> list[Any]:
    """A list of clips, of a clip or several: a list of pictures is one clip, an array (B, T, H, W, 3) is several."""
    if isinstance(videos, list | tuple):
        first = videos[0] if videos else b""
        clip = isinstance(first, str | os.PathLike | bytes | bytearray | memoryview | list | tuple)
        return list(videos) if clip or getattr(first, "ndim", 0) == 4 else [videos]
    return list(videos) if getattr(videos, "ndim", 0) == 5 else [videos]


def _placeholders(folder: Path, what: str) -> dict[str, Any]:
    """How many placeholders a picture takes, and which token they are, where processor_config.json says so."""
    path = folder / "processor_config.json"
    fields = Config(read_json(path) if path.exists() else {}, path.name)
    if fields.get("num_query_tokens") is None:
        return {}
    token = fields.get(f"{what}_token", f"<{what}>")
    token = token.get("content") if isinstance(token, dict) else token
    if not isinstance(token, str):
        raise ConfigError(f"{path.name}: {what}_token: found {token!r}, expected a token")
    return {"num_query_tokens": fields.integer("num_query_tokens", None, 1, 1 << 12), "image_token": token}


def _num_frames(folder: Path) -> int:
    """Frames of a clip that the folder's model takes."""
    path = folder / "config.json"
    fields = Config(read_json(path) if path.exists() else {}, path.name)
    return fields.section("vision_config").integer("num_frames", 8, 1, 256)


def _placed(args: tuple[Any, ...], text: Any, **named: Any) -> tuple[Any, Any]:
    """(what is `named`, text) of what came without a name, in either order (older versions of transformers took the
    text first), and with one. TypeError for more of either than one."""
    ((name, other),) = named.items()
    for value in args:
        first = value[0] if isinstance(value, list | tuple) and value else value
        if isinstance(first, str) and modality_of(first) == "text":
            if text is not None:
                raise TypeError("text: found twice, expected once")
            text = value
        elif value is not None and other is not None:
            raise TypeError(f"{name}: found twice, expected once")
        elif value is not None:
            other = value
    return other, text


def _taken(kwargs: dict[str, Any], cls: type) -> dict[str, Any]:
    """Those options that a class has, which are taken out."""
    return {name: kwargs.pop(name) for name in list(kwargs) if name in cls.__init__.__kwdefaults__}


class AutoProcessor:
    """`AutoProcessor.from_pretrained(name)`: a Processor, or the one half the folder has files for."""

    @staticmethod
    def from_pretrained(
        name: str | os.PathLike, **kwargs: Any
    ) -> Processor | Tokenizer | ImageProcessor | FeatureExtractor:
        hub = hub_options(kwargs)
        folder = resolve(name, weights=False, **hub)
        pictures = any(
            (folder / file).exists()
            for file in (
                "preprocessor_config.json",
                "processor_config.json",
                "video_preprocessor_config.json",
                "open_clip_config.json",
            )
        )
        texts = any((folder / f).exists() for f in ("tokenizer.json", "merges.txt", "vocab.txt", "spiece.model"))
        if not texts and (sounds := extractor_config(folder)):
            return FeatureExtractor.from_config(sounds, **kwargs)
        if not (pictures or texts):
            raise ConfigError(f"{folder}: no files of a processor, expected tokenizer.json, preprocessor_config.json")
        kind = Processor if pictures and texts else ImageProcessor if pictures else Tokenizer
        return kind.from_pretrained(folder, **kwargs)


_NAMES = (
    "CLIPProcessor",
    "SiglipProcessor",
    "Siglip2Processor",
    "ChineseCLIPProcessor",
    "FlavaProcessor",
    "BlipProcessor",
    "Blip2Processor",
    "InstructBlipProcessor",
    "InstructBlipVideoProcessor",
    "XCLIPProcessor",
    "ClapProcessor",
    "WhisperProcessor",
)


def processor_class(name: str) -> type:
    """CLIPProcessor and its like are one class: what differs lies in the files. KeyError for other names."""
    from . import features

    classes = {
        **{n: getattr(features, n) for n in features.__all__ if n.endswith("FeatureExtractor")},
        "CLIPTokenizer": Tokenizer,
        "CLIPTokenizerFast": Tokenizer,
        "SiglipTokenizer": Tokenizer,
        "BertTokenizer": Tokenizer,
        "BertTokenizerFast": Tokenizer,
        **{f"{kind}ImageProcessor": ImageProcessor for kind in DEFAULTS},
        **dict.fromkeys(_NAMES, Processor),
    }
    return classes[name]
