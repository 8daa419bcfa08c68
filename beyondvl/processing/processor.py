"""Processors: text, pictures, clips and sounds in one call, as transformers' ProcessorMixin."""

from __future__ import annotations

import importlib
import os
from typing import Any, ClassVar

import numpy as np

from ..config import Config
from ..errors import ConfigError
from ..families.registry import Processing, families, load_config, processing_of
from ..folder import Folder
from ..hub import open_folder
from ..modalities import IMAGE
from ..outputs import BatchFeature, check_allowed, from_numpy
from .chat import ChatMixin, read_template
from .encoding import as_tensors
from .features import FeatureExtractor, extractor_class, extractor_config
from .fields import JsonFields
from .image import ImageProcessor, image_class, image_config
from .items import as_clips, modality_of
from .text import Tokenizer, tokenizer_class
from .video import load_video
from .vocabularies import TOKENIZER_FILES

__all__ = ["AutoProcessor", "Processor", "processor_class"]

QFORMER_TOKENIZER = "qformer_tokenizer"  # a second tokenizer, in a folder of its own
# options of a call by the part they are for; "common_kwargs" are for all
GROUPS = ("text_kwargs", "images_kwargs", "videos_kwargs", "audio_kwargs", "common_kwargs")
TEXT_OPTIONS = frozenset(
    "add_special_tokens padding truncation max_length stride is_split_into_words pad_to_multiple_of padding_side "
    "return_attention_mask return_token_type_ids return_overflowing_tokens return_special_tokens_mask "
    "return_offsets_mapping return_length verbose text_pair text_target".split()
)
IMAGE_OPTIONS = frozenset(
    "do_resize size resample do_center_crop crop_size do_rescale rescale_factor do_normalize image_mean image_std "
    "do_convert_rgb default_to_square patch_size max_num_patches max_soft_tokens "
    "pooling_kernel_size do_pad pad_size data_format input_data_format device "
    "disable_grouping".split()
)
AUDIO_OPTIONS = frozenset(
    "sampling_rate padding truncation max_length pad_to_multiple_of return_attention_mask do_normalize device "
    "seed".split()
)


# options of transformers' processors, accepted where they are None or False
NEUTRAL = frozenset(
    "text_pair_target return_mm_token_type_ids return_text_replacement_offsets sanitize_control_tokens raw_speech "
    "image_seq_length do_sample_frames video_metadata fps num_frames return_metadata load_audio_backend".split()
)


class Processor(ChatMixin, JsonFields):
    """`processor(text=..., images=..., return_tensors="np", padding=True)` -> inputs of a model; `audio=...` where it
    has a `feature_extractor`, which stands beside its `image_processor` or in place of it."""

    part: ClassVar[str | None] = None  # it has parts
    file_name: ClassVar[str] = "processor_config.json"
    way: ClassVar[Processing] = Processing()  # of the class

    def __init__(
        self,
        image_processor: ImageProcessor | FeatureExtractor | None = None,
        tokenizer: Tokenizer | None = None,
        qformer_tokenizer: Tokenizer | None = None,
        num_query_tokens: int | None = None,
        *,
        feature_extractor: FeatureExtractor | None = None,
        num_frames: int | None = None,
        way: Processing | None = None,
    ):
        if isinstance(image_processor, FeatureExtractor):
            image_processor, feature_extractor = None, image_processor
        self.image_processor, self.feature_extractor = image_processor, feature_extractor
        self.tokenizer, self.qformer_tokenizer = tokenizer, qformer_tokenizer
        self.num_query_tokens, self.num_frames = num_query_tokens, num_frames
        self.kind = (way or self.way).kind
        self.chat_template: str | dict[str, str] | None = None
        if self.kind.num_frames and num_frames is None:
            self.num_frames = self.kind.num_frames(Config({}))
        self.image_token = self._placeholder()

    def _placeholder(self) -> str:
        """The token that stands for what a query drew; the tokenizer is given it where it lacks one."""
        name = self.kind.placeholder
        if name is None or self.tokenizer is None:
            return "<image>"
        token = self.tokenizer.special_tokens.get(name)
        if token is None:
            token = f"<{name.removesuffix('_token')}>"
            self.tokenizer.add_tokens([token], special_tokens=True)
        return token

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> Processor:
        """Of a folder, a hub id or "beyond-vl-model"; keyword arguments override fields of the files, each of the part
        that has such a field. TypeError where none has."""
        folder = open_folder(pretrained_model_name_or_path, kwargs)
        return cls.of_folder(folder, **kwargs)

    @classmethod
    def of_folder(cls, folder: Folder, **options: Any) -> Processor:
        """From the files of a folder."""
        stated = folder.config("processor_config.json")
        named = stated.get("processor_class") or folder.config("preprocessor_config.json").get("processor_class")
        way = processing_of(folder, named or folder.config("tokenizer_config.json").get("processor_class"))
        way = cls.way if cls.way.processor else way
        for_text = {n: options.pop(n) for n in list(options) if n in TOKENIZER_FIELDS}
        tokenizers = [Tokenizer.of_folder(folder, **for_text)] if has_tokenizer(folder) else [None]
        if QFORMER_TOKENIZER + "/tokenizer_config.json" in folder:
            tokenizers.append(Tokenizer.of_folder(folder.within(QFORMER_TOKENIZER)))
        chosen = processor_class(way.processor) if cls is Processor and way.processor else cls
        pictures, sounds = has_pictures(folder), extractor_config(folder) is not None
        for_pictures = {n: options.pop(n) for n in list(options) if pictures and (not sounds or n not in AUDIO_OPTIONS)}
        queries = stated.integer("num_query_tokens", None, 1, 1 << 12) if stated.get("num_query_tokens") else None
        frames = way.kind.num_frames(load_config(folder)) if way.kind.num_frames else None
        parts = {"num_query_tokens": queries, "num_frames": frames, "way": way}
        if sounds:
            parts["feature_extractor"] = FeatureExtractor.of_folder(folder, **options)
        made = chosen(ImageProcessor.of_folder(folder, **for_pictures) if pictures else None, *tokenizers, **parts)
        made.read_files(folder, stated)
        return made

    def read_files(self, folder: Folder, stated: Config) -> None:
        """Takes from its folder what is no part's: of `stated`, which is processor_config.json, and of other files."""
        self.chat_template = read_template(folder, stated)

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
            args: pictures (clips, sounds) and texts, in either order; a string is a text unless it names a picture, a
                clip or a sound.
            text: a text or a list of texts; see Tokenizer for padding, truncation, max_length.
            images: a picture or a list; see `load_image` for what a picture may be, and ImageProcessor for the fields
                that may be given for this call alone.
            videos: for a model of clips, a clip or a list; `load_video` says what a clip may be; they may be given as
                `images` too.
            audio: for a model of sounds, a sound or a list; see `load_audio` for what a sound may be. Arrays need their
                `sampling_rate`, here or as (array, rate); other rates than the model's are resampled.
            return_tensors: "np", "pt" or None for lists.
            text_kwargs, images_kwargs, audio_kwargs, common_kwargs: options of one part, or of all.

        Where a language model reads what query tokens drew from a picture (BLIP-2, InstructBLIP), texts that come with
        pictures begin with a placeholder for each query, which `max_length` counts. InstructBLIP's Q-Former reads the
        text too: `qformer_input_ids`, `qformer_attention_mask`.

        Raises ValueError when neither is given; TypeError for an option that no part has.
        """
        if self.image_processor:
            images, text = _placed(args, text, images=images)
        else:
            audio, text = _placed(args, text, audio=audio)
        if sampling_rate is not None:
            kwargs["sampling_rate"] = sampling_rate
        options, return_tensors = self._options(kwargs, return_tensors)
        self._check(images, text, videos, audio)
        if self.num_frames and self.kind.clips == IMAGE.main[0]:
            images, videos = None, videos if videos is not None else images
        inputs = BatchFeature()
        if text is not None:
            seen = images is not None or videos is not None
            made = self._texts(text, seen, return_tensors, options["text_kwargs"])
            inputs.update({"labels": made["input_ids"]} if self.kind.labels and audio is not None else made)
        if images is not None:
            inputs.update(self.image_processor(images, return_tensors=return_tensors, **options["images_kwargs"]))
        if videos is not None:
            pixels = self.clips(videos, **options["images_kwargs"])
            inputs[self.kind.clips] = from_numpy(pixels, return_tensors) if return_tensors else list(pixels)
        if audio is not None:
            settings = options["audio_kwargs"]
            if (
                text is not None and not self.kind.labels
            ):  # padding, truncation and max_length beside a text are the text's
                settings = {n: v for n, v in settings.items() if n not in ("padding", "truncation", "max_length")}
            inputs.update(self.feature_extractor(audio, return_tensors=return_tensors, **settings))
        return inputs

    def _options(self, kwargs: dict[str, Any], tensors: str | None) -> tuple[dict[str, dict[str, Any]], str | None]:
        """Options by part: what tokenizer_config.json and the class say, then a call's for all, then its for one.
        TypeError names one that no part has."""
        groups = {name: dict(kwargs.pop(name, None) or {}) for name in GROUPS}
        common = groups.pop("common_kwargs")
        tensors = next((g.pop("return_tensors") for g in (common, *groups.values()) if "return_tensors" in g), tensors)
        stated = self.tokenizer.call_options if self.tokenizer and not self.kind.labels else {}
        text = dict(self.kind.text_defaults) | stated
        options: dict[str, dict[str, Any]] = {"text_kwargs": text, "images_kwargs": {}, "audio_kwargs": {}}
        known = {"text_kwargs": TEXT_OPTIONS, "images_kwargs": IMAGE_OPTIONS, "audio_kwargs": AUDIO_OPTIONS}
        for name, value in (common | kwargs).items():
            if name in NEUTRAL:
                check_allowed(name, value, (None, False))
                continue
            takers = [group for group, names in known.items() if name in names]
            if not takers:
                raise TypeError(
                    f"unexpected arguments: {name}; known: {', '.join(sorted(frozenset().union(*known.values())))}"
                )
            for group in takers:
                if value is not None or group != "audio_kwargs":
                    options[group][name] = value
        for group, values in groups.items():
            group = "images_kwargs" if group == "videos_kwargs" else group
            if twice := [name for name in values if name in kwargs and name in known[group]]:
                raise ValueError(f"{twice[0]}: given twice, by itself and in {group}")
            options[group] |= values
        return options, tensors

    def _check(self, images: Any, text: Any, videos: Any, audio: Any) -> None:
        """ValueError for inputs this processor makes nothing of."""
        if not self.image_processor and (images is not None or videos is not None):
            raise ValueError("images, videos: given to a processor of sounds, expected audio")
        if not self.feature_extractor and audio is not None:
            raise ValueError("audio: given to a processor of pictures, expected images")
        if videos is not None and not self.num_frames:
            raise ValueError("videos: given to a processor of pictures; `encode` takes clips for every picture model")
        if all(value is None for value in (images, text, videos, audio)):
            other = "images" if self.image_processor else "audio"
            raise ValueError(f"found neither text nor {other}, expected at least one of them")
        if text is not None and self.tokenizer is None:
            raise ValueError("text: given to a processor without a tokenizer, expected none")

    def clips(self, videos: Any, **settings: Any) -> np.ndarray:
        """pixel_values (B, num_frames, 3, H, W) float32 of a clip or a list; `settings`: see ImageProcessor."""
        clips = as_clips(videos)
        if not clips:
            raise ValueError("videos: the list is empty, expected at least one clip")
        return np.stack(
            [
                self.image_processor(list(load_video(clip, num_frames=self.num_frames)), **settings)["pixel_values"]
                for clip in clips
            ]
        )

    def _texts(self, text: Any, placeholders: bool, tensors: str | None, options: dict[str, Any]) -> dict[str, Any]:
        inputs: dict[str, Any] = {}
        queries = self.num_query_tokens if self.kind.placeholder else None
        if (queries or self.kind.placeholder) and isinstance(text, str):
            text = [text]
        if self.qformer_tokenizer:
            instruction = self._used(self.qformer_tokenizer(text, return_tensors=tensors, **options))
            inputs |= {f"qformer_{name}": values for name, values in instruction.items()}
        if not queries:
            return inputs | self._used(self.tokenizer(text, return_tensors=tensors, **options))
        if options.get("max_length") is not None:
            room = options["max_length"] - queries
            if room < 1:
                raise ValueError(
                    f"max_length: found {options['max_length']}, expected more than {queries} placeholders"
                )
            options = options | {"max_length": room}
        lists = self._used(self.tokenizer(text, **options))
        if placeholders:
            known, count = self.tokenizer.get_vocab(), queries * (self.num_frames or 1)
            fill = {
                "input_ids": known.get(self.image_token, len(self.tokenizer)),
                "attention_mask": 1,
                "token_type_ids": 0,
            }
            lists = {name: [[fill[name]] * count + row for row in rows] for name, rows in lists.items()}
        return inputs | (as_tensors(lists, tensors) if tensors else lists)

    def _used(self, fields: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in fields.items() if name not in self.kind.unused_inputs}

    def decode(self, *args: Any, **kwargs: Any) -> Any:
        """The tokenizer's."""
        return self.tokenizer.decode(*args, **kwargs)

    def batch_decode(self, *args: Any, **kwargs: Any) -> list[str]:
        """The tokenizer's."""
        return self.tokenizer.batch_decode(*args, **kwargs)

    def post_process_image_text_to_text(
        self, generated_outputs: Any, skip_special_tokens: bool = True, **kwargs: Any
    ) -> list[str]:
        """Texts of generated ids."""
        return self.batch_decode(generated_outputs, skip_special_tokens, **kwargs)

    def get_decoder_prompt_ids(self, **kwargs: Any) -> list[tuple[int, int]]:
        """The tokenizer's, of a model that writes down speech."""
        return self.tokenizer.get_decoder_prompt_ids(**kwargs)

    def get_prompt_ids(self, text: str, return_tensors: str | None = "np") -> Any:
        """As `get_decoder_prompt_ids`."""
        return self.tokenizer.get_prompt_ids(text, return_tensors)

    @property
    def model_input_names(self) -> list[str]:
        """What it makes."""
        text = [
            n for n in (self.tokenizer.model_input_names if self.tokenizer else ()) if n not in self.kind.unused_inputs
        ]
        qformer = ["qformer_input_ids", "qformer_attention_mask"] if self.qformer_tokenizer else []
        pictures = self.image_processor.model_input_names if self.image_processor else []
        sounds = self.feature_extractor.model_input_names if self.feature_extractor else []
        return [*pictures, *sounds, *text, *qformer]

    def to_dict(self) -> dict[str, Any]:
        """What processor_config.json holds: the fields of every part but tokenizers."""
        fields: dict[str, Any] = {"processor_class": type(self).__name__}
        for name in ("image_processor", "feature_extractor"):
            if (part := getattr(self, name)) is not None:
                fields[name] = part.to_dict()
        return fields | ({"num_query_tokens": self.num_query_tokens} if self.num_query_tokens else {})

    def get_attributes(self) -> list[str]:
        """Names of its parts."""
        names = ("feature_extractor", "image_processor", "tokenizer", "qformer_tokenizer")
        return [name for name in names if getattr(self, name) is not None]

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> list[str]:
        """Writes processor_config.json and the tokenizers' files, as transformers reads them; their paths."""
        path = super().save_pretrained(save_directory, **kwargs)
        folder = Folder(save_directory).path
        files = list(self.tokenizer.save_pretrained(folder)) if self.tokenizer else []
        if self.qformer_tokenizer:
            files += self.qformer_tokenizer.save_pretrained(folder / QFORMER_TOKENIZER)
        if isinstance(self.chat_template, str):
            (folder / "chat_template.jinja").write_text(self.chat_template, "utf-8")
            files.append(str(folder / "chat_template.jinja"))
        return [*files, *path]

    def __repr__(self) -> str:
        parts = ("image_processor", "feature_extractor", "tokenizer", "qformer_tokenizer")
        said = ", ".join(f"{name}={getattr(self, name)!r}" for name in parts if getattr(self, name) is not None)
        return f"{type(self).__name__}({said})"


TOKENIZER_FIELDS = frozenset(
    "padding_side truncation_side model_max_length bos_token eos_token unk_token sep_token pad_token cls_token "
    "mask_token clean_up_tokenization_spaces language task predict_timestamps padding truncation max_length "
    "do_lower_case".split()
)


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


class AutoProcessor:
    """`AutoProcessor.from_pretrained(name)`: a Processor, or the one half the folder has files for."""

    @staticmethod
    def from_pretrained(
        pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any
    ) -> Processor | Tokenizer | ImageProcessor | FeatureExtractor:
        """Of a folder, a hub id or "beyond-vl-model"; see Processor.from_pretrained."""
        folder = open_folder(pretrained_model_name_or_path, kwargs)
        return AutoProcessor.of_folder(folder, **kwargs)

    @staticmethod
    def of_folder(folder: Folder, **options: Any) -> Processor | Tokenizer | ImageProcessor | FeatureExtractor:
        """From the files of a folder."""
        texts, sounds, pictures = has_tokenizer(folder), extractor_config(folder), has_pictures(folder)
        if not (texts or sounds or pictures):
            raise ConfigError(f"{folder}: no files of a processor, expected tokenizer.json, preprocessor_config.json")
        if bool(texts) + bool(sounds) + bool(pictures) > 1:
            return Processor.of_folder(folder, **options)
        kind = Tokenizer if texts else FeatureExtractor if sounds else ImageProcessor
        return kind.of_folder(folder, **options)


def has_tokenizer(folder: Folder) -> bool:
    """Whether a folder holds a tokenizer's files."""
    return any(name in folder for name in TOKENIZER_FILES)


def has_pictures(folder: Folder) -> bool:
    """Whether a folder holds an image processor's fields; of a file that names an extractor of sounds they are none."""
    config = image_config(folder)
    return config is not None and (extractor_config(folder) is None or bool(config.get("image_processor_type")))


_CLASSES: dict[str, type] = {}
# classes that extend the one above, by what a family says of its processor
KINDS = {
    "clip_soft_tokens": ("interleaved", "InterleavedProcessor"),
    "page_prompt": ("tile_processor", "PageProcessor"),
    "image_seq_len": ("tile_processor", "TileProcessor"),
}


def processor_class(name: str) -> type:
    """CLIPProcessor, CLIPTokenizerFast, CLIPImageProcessor and their like by name. KeyError for other names."""
    if name in _CLASSES:
        return _CLASSES[name]
    if name.endswith(("Tokenizer", "TokenizerFast")):
        return tokenizer_class(name)
    way = next((w for family in families().values() for w in family.ways if w.processor == name), None)
    if way is None:
        try:
            return extractor_class(name) if "FeatureExtractor" in name else image_class(name)
        except ConfigError:
            raise KeyError(name) from None
    base = Processor
    if own := next((kind for field, kind in KINDS.items() if getattr(way.kind, field)), None):
        base = getattr(importlib.import_module(f".{own[0]}", __package__), own[1])
    _CLASSES[name] = type(name, (base,), {"way": way, "__doc__": base.__doc__, "__module__": "beyondvl"})
    return _CLASSES[name]
