"""Image processors: resize, crop, rescale, normalise, bit-equal to transformers' PIL processors.

The core resizes bytes by Pillow's own arithmetic and looks the result up in a table per channel; the table is filled
here with transformers' formulas (rescale in float64 rounded to float32, then (x - mean) / std in float32), so that
pixel_values agree to the last bit. Only what the crop keeps is computed.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np

from .. import _C
from ..config import Config
from ..errors import ConfigError, ImageError
from ..families.registry import Processing, families, load_config, processing_of
from ..folder import Folder
from ..hub import open_folder
from ..outputs import BatchFeature, check_allowed, from_numpy, thread_count
from .fields import JsonFields
from .geometry import crop_start, fixed_size, resized, size_field
from .image_fields import CHECKS, FIELDS, KINDS, NEAREST, NEUTRAL, SWITCHES
from .loading import MAX_PIXELS, MAX_SIDE, Scratch, load_pixels, to_bytes

__all__ = ["AutoImageProcessor", "ImageProcessor", "channels_of", "check_resized", "image_class", "image_config",
           "placed", "resize_bytes"]  # fmt: skip

SUFFIXES = ("Pil", "Fast")


class ImageProcessor(JsonFields):
    """`processor(images) -> {"pixel_values": (B, 3, H, W) float32}`; thread-safe.

    Fields as in preprocessor_config.json: do_resize, size ({"shortest_edge"} or {"height", "width"}), resample
    (Pillow's numbers), do_center_crop, crop_size, do_rescale, rescale_factor, do_normalize, image_mean, image_std. They
    may be set later, or given to a call, for that call alone; ConfigError where a value is none of theirs.
    `decoder`: see `load_image`. `fast=True` lets the JPEG decoder shrink large pictures by 2, 4 or 8 while their sides
    stay at least twice what the resize makes of them: pixel_values are then no longer bit-equal (cosine to the exact
    ones of photographs above 0.999), everything else stays as it is.
    """

    part: ClassVar[str] = "image_processor"  # what it is of a processor
    fields: ClassVar[Mapping[str, Any]] = FIELDS  # of the class, in the order they are set in
    class_name: ClassVar[str] = "ImageProcessor"
    defaults: ClassVar[Mapping[str, Any]] = {}  # of the class, where neither a file nor a caller says so
    model_input_names: ClassVar[tuple[str, ...]] = ("pixel_values",)
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = NEUTRAL
    backend: ClassVar[str] = "pil"  # whose pixels they are; "torchvision": resized as floats, to within 2e-5
    # what transformers' processors have besides, at the values that change nothing
    data_format = input_data_format = device = disable_grouping = return_tensors = None
    do_pad = pad_size = image_seq_length = None

    def __init__(self, *, decoder: str = "auto", fast: bool = False, num_threads: int | None = None, **fields: Any):
        self._take_neutral(fields)
        self._check_known(fields)
        values = self.fields | dict(self.defaults) | {n: value for n, value in fields.items() if value is not None}
        if "size" in values and values["size"] is None:
            raise ConfigError("size: not given, expected the size that pictures become")
        for name in self.fields:
            setattr(self, name, values[name])
        self.decoder, self.fast, self.others = decoder, fast, {}
        self.num_threads = thread_count(num_threads)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "size":
            value = self._size(value)
        elif name in CHECKS:
            value = CHECKS[name](value)
            fields = self.__dict__ | {name: value}
            if fields.get("do_center_crop") and fields.get("crop_size") is None:
                raise ConfigError("crop_size: found None, expected a size where do_center_crop is set")
        super().__setattr__(name, value)
        self.__dict__.pop("table", None)  # made anew of the fields

    def _size(self, value: Any) -> dict[str, int]:
        """The field `size`, checked."""
        return size_field(value, "size", self.default_to_square)

    @functools.cached_property
    def table(self) -> np.ndarray:
        """(3, 256) float32, what each byte of each channel becomes."""
        return self._table(np.arange(256, dtype=np.uint8))

    @classmethod
    def from_dict(cls, image_processor_dict: Mapping[str, Any], **overrides: Any) -> ImageProcessor:
        """From the fields of preprocessor_config.json; unknown ones change nothing and are kept."""
        config = Config(dict(image_processor_dict), "preprocessor_config.json")
        fields = {name: config.get(name) for name in cls.fields if config.get(name) is not None}
        if "rescale_factor" in fields:
            fields["rescale_factor"] = config.number("rescale_factor", 1 / 255, -1e6, 1e6)
        made = cls(**(fields | overrides))
        apart = (*cls.fields, *KINDS, "decoder", "fast", "num_threads", "processor_class")
        made.others = {n: v for n, v in image_processor_dict.items() if n not in apart and not n.startswith("_")}
        return made

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, **kwargs: Any) -> ImageProcessor:
        """Of a folder, a hub id or "beyond-vl-model"; keyword arguments override the file's fields.

        Raises ConfigError when preprocessor_config.json is missing or malformed.
        """
        folder = open_folder(pretrained_model_name_or_path, kwargs)
        return cls.of_folder(folder, **kwargs)

    @classmethod
    def of_folder(cls, folder: Folder, **overrides: Any) -> ImageProcessor:
        """From the files of a folder: its class is the one they name, else the one its model goes with."""
        config = image_config(folder)
        if config is None:
            raise ConfigError(f"preprocessor_config.json is missing from {folder}")
        chosen = image_class(picture_kind(folder, config), processing_of(folder)) if cls is ImageProcessor else cls
        return chosen.from_dict(config.to_dict(), **overrides)

    def __call__(
        self,
        images: Any,
        return_tensors: str | None = "np",
        positions: list[int] | None = None,
        input_data_format: Any = None,
        **settings: Any,
    ) -> BatchFeature:
        """`images`: one picture or a list; see `load_image` for what a picture may be.

        `positions` are the numbers errors give the pictures, default 0, 1, ...; `input_data_format` tells where the
        channels of arrays are ("channels_first", "channels_last"; None: transformers' guess); `settings` are fields of
        this call alone. Raises ImageError that names the picture's number; a ValueError for an empty list.
        """
        if settings:
            return self._changed(settings)(images, return_tensors, positions, input_data_format)
        several = isinstance(images, list | tuple) or getattr(images, "ndim", 0) == 4
        batch = list(images) if several else [images]
        if not batch:
            raise ValueError("images: the list is empty, expected at least one picture")
        arrays = self.inputs(batch, positions or range(len(batch)), channels=channels_of(input_data_format))
        return BatchFeature(
            {name: from_numpy(a, return_tensors) if return_tensors else list(a) for name, a in arrays.items()}
        )

    preprocess = __call__

    def _take_neutral(self, fields: dict[str, Any]) -> None:
        """Takes out what changes nothing. ValueError where it would."""
        for name in [name for name in fields if name in self.neutral]:
            check_allowed(name, getattr(value := fields.pop(name), "value", value), self.neutral[name])

    def _check_known(self, fields: dict[str, Any]) -> None:
        """TypeError for fields it does not have."""
        if unknown := sorted(set(fields) - set(self.fields)):
            known = ", ".join(self.fields)
            raise TypeError(f"unexpected arguments: {', '.join(unknown)}; an image processor has {known}")

    @property
    def image_processor_type(self) -> str:
        """The class that files name."""
        return self.class_name

    def _changed(self, settings: dict[str, Any]) -> ImageProcessor:
        """This processor with some fields set."""
        self._take_neutral(settings)
        self._check_known(settings)
        changed = copy.copy(self)
        settings |= {name: False for name in SWITCHES if name in settings and settings[name] is None}
        for name in (name for name in self.fields if settings.get(name) is not None):
            setattr(changed, name, settings[name])
        return changed

    def inputs(
        self, batch: list[Any], positions: Any, failed: Callable[[int, ImageError], None] | None = None,
        channels: str | None = None,
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """A model's inputs of pictures, without those that cannot be read: `failed` is told of each (its position and
        the error); where that is None the first one's ImageError is raised. Each picture goes from source to result on
        one thread, so that its pixels are resized while in the cache."""
        unread: dict[int, ImageError] = {}
        workers = min(self.num_threads, len(batch))
        with ThreadPoolExecutor(workers) if workers > 1 else contextlib.nullcontext() as pool:

            def each(work: Callable[[int], Any]) -> list[Any]:
                def attempt(index: int) -> Any:
                    try:
                        return work(index)
                    except ImageError as error:
                        unread[index] = error

                left = [index for index in range(len(batch)) if index not in unread]
                return list((pool.map if pool else map)(attempt, left))

            arrays = self._arrays(each, batch, positions, channels)
        for index in sorted(unread):
            if failed is None:
                raise unread[index]
            failed(positions[index], unread[index])
        return {name: np.delete(array, list(unread), 0) if unread else array for name, array in arrays.items()}

    def _arrays(
        self, each: Callable[[Callable[[int], Any]], list[Any]], batch: list[Any], positions: Any, channels: str | None
    ) -> dict[str, np.ndarray]:
        """The inputs, undefined where a picture cannot be read; `each` runs a function over all that can."""
        shape = self._output_shape()
        if shape is None:  # it depends on the pictures, which must agree
            return {"pixel_values": self._agreeing(each, batch, positions, channels)}
        out = np.empty((len(batch), 3, *shape), np.float32)
        load = self._loader(batch, positions, channels)
        each(lambda index: self._fill(out[index], load(index), positions[index]))
        return {"pixel_values": out}

    def _loader(self, batch: list[Any], positions: Any, channels: str | None) -> Callable[[int], np.ndarray]:
        """Loads the pixels of one picture, into memory that the next one on its thread takes over."""
        local = threading.local()

        def load(index: int) -> np.ndarray:
            if not hasattr(local, "scratch"):
                local.scratch = Scratch(self._least if self.fast else None)
            return self._load(batch[index], positions[index], local.scratch, channels)

        return load

    def _agreeing(
        self, each: Callable[[Callable[[int], Any]], list[Any]], batch: list[Any], positions: Any, channels: str | None
    ) -> np.ndarray:
        """pixel_values (n, 3, H, W) of pictures whose results have one size, undefined of those that cannot be read.
        ValueError where they have several."""
        images: dict[int, np.ndarray] = {}
        sizes: dict[int, tuple[int, int]] = {}

        def load(index: int) -> None:
            images[index] = self._load(batch[index], positions[index], channels=channels)
            with placed(positions[index]):
                sizes[index] = self._target(images[index])[2:4]

        each(load)
        several = sorted(set(sizes.values())) or [(0, 0)]
        if len(several) > 1:
            raise ValueError(f"images: results of different sizes {several}: expected a size that crops or squashes")
        out = np.empty((len(batch), 3, *several[0]), np.float32)
        each(lambda index: self._fill(out[index], images[index], positions[index]))
        return out

    def _fill(self, out: np.ndarray, image: np.ndarray, position: int) -> None:
        """pixel_values (3, H, W) of loaded pixels."""
        with placed(position):
            if image.dtype != np.uint8 or self.resample == NEAREST or self.backend == "torchvision":
                out[...] = self._process_floats(image[:, :, :3])
                return
            target = self._target(image)
            _C.preprocess(out, (np.ascontiguousarray(image), *target[:2], self.resample, *target[4:]), self.table)

    def _load(
        self, source: Any, position: int, scratch: Scratch | None = None, channels: str | None = None
    ) -> np.ndarray:
        with placed(position):
            mode = getattr(source, "mode", "RGB")
            if self.do_convert_rgb is False and mode != "RGB":
                raise ImageError(f"mode {mode}: expected RGB where do_convert_rgb is False")
            return load_pixels(source, self.decoder, scratch=scratch, channels=channels)

    def _output_shape(self) -> tuple[int, int] | None:
        """Height and width of every result, None where they depend on the picture."""
        size = self.crop_size if self.do_center_crop else self.size if self.do_resize else {}
        return fixed_size(size)

    def _least(self, height: int, width: int) -> tuple[int, int]:
        """Smallest decoded size that `fast` accepts."""
        new_height, new_width = self._resized(height, width)
        return 2 * new_height, 2 * new_width

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        return resized(self.size, height, width) if self.do_resize else (height, width)

    def _geometry(self, height: int, width: int) -> tuple[int, int, int, int, int, int]:
        """(resized height, width, output height, width, top, left) for a picture of that size."""
        new_height, new_width = self._resized(height, width)
        if not self.do_center_crop:
            return new_height, new_width, new_height, new_width, 0, 0
        out = self.crop_size["height"], self.crop_size["width"]
        top, left = (
            crop_start(n, kept, self.crop_rounding) for n, kept in zip((new_height, new_width), out, strict=True)
        )
        return new_height, new_width, *out, top, left

    def _target(self, image: np.ndarray) -> tuple[int, int, int, int, int, int]:
        """`_geometry` of a picture; ImageError where a long and thin one would become absurdly large."""
        target = self._geometry(*image.shape[:2])
        check_resized(image, target[:2], target[2] * target[3])
        return target

    def _table(self, values: np.ndarray) -> np.ndarray:
        """(3, n) results of rescale and normalise for each value, by transformers' formulas."""
        x = values
        if self.do_rescale:
            x = (x.astype(np.float64) * self.rescale_factor).astype(np.float32)
        x = np.broadcast_to(x.astype(np.float32), (3, x.size))
        if self.do_normalize:
            mean, std = (np.array(v, dtype=np.float32)[:, None] for v in (self.image_mean, self.image_std))
            x = (x - mean) / std
        return np.ascontiguousarray(x, dtype=np.float32)

    def _process_floats(self, image: np.ndarray) -> np.ndarray:
        """Arrays that are not bytes, and nearest neighbour: step by step, as transformers does."""
        new_height, new_width, height, width, top, left = self._target(image)
        check_resized(image, (new_height, new_width), new_height * new_width)  # all are made, whatever the crop keeps
        if not self.do_resize:
            values = image
        elif self.backend == "torchvision" and self.resample != NEAREST:
            floats = np.ascontiguousarray(image, np.float32)
            values = _C.resize_floats(floats, new_height, new_width, self.resample)
        else:
            scaled, pixels = to_bytes(image)
            values = resize_bytes(pixels, new_height, new_width, self.resample)
            if scaled:
                values = (values.astype(np.float64) * (1 / 255)).astype(np.float32)
        window = np.zeros((height, width, 3), values.dtype)
        rows = slice(max(0, top), min(new_height, top + height))
        cols = slice(max(0, left), min(new_width, left + width))
        part = values[rows, cols]
        y, x = max(0, -top), max(0, -left)
        window[y : y + part.shape[0], x : x + part.shape[1]] = part
        flat = np.moveaxis(window, -1, 0).reshape(3, -1)
        table = np.stack([self._table(channel)[c] for c, channel in enumerate(flat)])
        return table.reshape(3, height, width)

    def to_dict(self) -> dict[str, Any]:
        """The fields, as preprocessor_config.json holds them."""
        kept = {name: getattr(self, name) for name in self.fields}
        if kept.get("crop_rounding") == FIELDS["crop_rounding"]:
            del kept["crop_rounding"]
        fields = self.others | {name: value for name, value in kept.items() if value is not None}
        return fields | {"image_processor_type": self.class_name}

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.to_dict()})"


def channels_of(input_data_format: Any) -> str | None:
    """Where the channels of arrays are, as a caller says it. ValueError for what is no such place."""
    channels = getattr(input_data_format, "value", input_data_format)
    if channels not in (None, "channels_first", "channels_last"):
        raise ValueError(f"input_data_format: found {channels!r}, expected 'channels_first' or 'channels_last'")
    return channels


class AutoImageProcessor:
    """`AutoImageProcessor.from_pretrained(name)` gives an ImageProcessor."""

    from_pretrained = ImageProcessor.from_pretrained


def image_config(folder: Folder) -> Config | None:
    """The fields of a folder's image processor, or None where it has none; the newer file comes first, as in
    transformers."""
    nested = folder.config("processor_config.json")
    for name in ("image_processor", "video_processor"):
        if name in nested:
            return nested.section(name)
    for file in ("preprocessor_config.json", "video_preprocessor_config.json"):
        if file in folder:
            return folder.config(file)
    way = processing_of(folder)
    return way.image_config(load_config(folder)) if way.image_config else None


def picture_kind(folder: Folder, config: Config) -> str | None:
    """The class that a file of fields names, in its older forms too, or that the folder's model goes with."""
    kind = next((str(config.get(name)) for name in KINDS if config.get(name)), "")
    return (
        kind.replace("FeatureExtractor", "ImageProcessor")
        or processing_of(folder, config.get("processor_class")).image_processor
    )


_CLASSES: dict[str, type[ImageProcessor]] = {}
# classes of their own, by a field that each alone has; they extend the one above
KINDS_OF_FIELDS = {
    "max_num_patches": ("patches", "PatchImageProcessor"),
    "max_soft_tokens": ("patches", "SoftTokenImageProcessor"),
    "max_image_size": ("tiles", "TileImageProcessor"),
}


def image_class(name: Any, way: Processing | None = None) -> type[ImageProcessor]:
    """The class of that name, for example CLIPImageProcessor, of one way of making inputs or of any; ConfigError for
    one that is not known here."""
    plain = str(name or "")
    for suffix in SUFFIXES:
        plain = plain.removesuffix(suffix)
    if plain not in _CLASSES:
        ways = [way] if way and plain in way.image_processors else [w for f in families().values() for w in f.ways]
        defaults = next((w.image_processors[plain] for w in ways if plain in w.image_processors), None)
        if defaults is None:
            known = ", ".join(sorted({n for w in ways for n in w.image_processors}))
            raise ConfigError(f"image_processor_type: found {name!r}, expected one of {known}")
        base = ImageProcessor
        if own := next((kind for field, kind in KINDS_OF_FIELDS.items() if field in defaults), None):
            base = getattr(importlib.import_module(f".{own[0]}", __package__), own[1])
        stated = {name: value for name, value in defaults.items() if name in base.fields}
        members = {"class_name": plain, "defaults": stated, "__doc__": base.__doc__, "__module__": "beyondvl"}
        members["backend"] = defaults.get("backend", base.backend)
        _CLASSES[plain] = type(plain, (base,), members)
    return _CLASSES[plain]


@contextlib.contextmanager
def placed(position: int) -> Iterator[None]:
    """An ImageError within says which picture it is about."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"image {position}: {error}", position) from error


def check_resized(image: np.ndarray, size: tuple[int, int], pixels: int) -> None:
    """ImageError where a picture would become too large: of that size, of which so many pixels are kept."""
    if max(*image.shape[:2], *size) > MAX_SIDE or pixels > MAX_PIXELS:
        raise ImageError(
            f"{image.shape[1]} x {image.shape[0]} pixels would become {size[1]} x {size[0]}, expected sides up to "
            f"{MAX_SIDE} and at most {MAX_PIXELS} pixels"
        )


def resize_bytes(pixels: np.ndarray, height: int, width: int, resample: int) -> np.ndarray:
    """Pixels (height, width, 3) of (H, W, 3) uint8, by Pillow's arithmetic."""
    if resample != NEAREST:
        return _C.resize(np.ascontiguousarray(pixels), height, width, resample, 0, 0)
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).resize((width, height), NEAREST))
