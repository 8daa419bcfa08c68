"""Image processors: resize, crop, rescale, normalise, bit-equal to transformers' PIL processors.

The core resizes bytes by Pillow's own arithmetic and looks the result up in a table per channel; the table is filled
here with transformers' formulas (rescale in float64 rounded to float32, then (x - mean) / std in float32), so that
pixel_values agree to the last bit. Only what the crop keeps is computed.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np

from .. import _C
from ..config import Config, read_json
from ..errors import ConfigError, ImageError
from ..hub import hub_options, resolve
from ..outputs import BatchFeature, from_numpy, thread_count
from .loading import MAX_PIXELS, MAX_SIDE, Scratch, load_pixels

__all__ = ["AutoImageProcessor", "ImageProcessor"]

OPENAI_MEAN, OPENAI_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
HALF = [0.5, 0.5, 0.5]
NEAREST, LANCZOS, BILINEAR, BICUBIC = 0, 1, 2, 3

# class defaults by image_processor_type without its suffixes; a file's own fields come first
DEFAULTS: dict[str, dict[str, Any]] = {
    "CLIP": {
        "size": {"shortest_edge": 224},
        "crop_size": {"height": 224, "width": 224},
        "do_center_crop": True,
        "resample": BICUBIC,
        "image_mean": OPENAI_MEAN,
        "image_std": OPENAI_STD,
    },
    "Siglip": {
        "size": {"height": 224, "width": 224},
        "do_center_crop": False,
        "resample": BICUBIC,
        "image_mean": HALF,
        "image_std": HALF,
    },
}
DEFAULTS["ChineseCLIP"] = DEFAULTS["CLIP"]
DEFAULTS["Flava"] = DEFAULTS["CLIP"] | {"size": {"height": 224, "width": 224}}
DEFAULTS["Blip"] = {"size": {"height": 384, "width": 384}, "image_mean": OPENAI_MEAN, "image_std": OPENAI_STD}
DEFAULTS["InstructBlipVideo"] = DEFAULTS["Blip"]
DEFAULTS["VideoMAE"] = DEFAULTS["CLIP"] | {"resample": BILINEAR, "image_mean": HALF, "image_std": HALF}
DEFAULTS["Siglip2"] = DEFAULTS["Siglip"] | {"resample": BILINEAR}
SUFFIXES = ("Pil", "Fast", "ImageProcessor", "FeatureExtractor", "VideoProcessor")
KINDS = ("image_processor_type", "video_processor_type", "feature_extractor_type")
# of a processor, in the order they are set in: a crop needs its size
FIELDS = (
    "do_resize",
    "size",
    "resample",
    "crop_size",
    "do_center_crop",
    "do_rescale",
    "rescale_factor",
    "do_normalize",
    "image_mean",
    "image_std",
)


class ImageProcessor:
    """`processor(images) -> {"pixel_values": (B, 3, H, W) float32}`; thread-safe.

    Fields as in preprocessor_config.json: do_resize, size ({"shortest_edge"} or {"height", "width"}), resample
    (Pillow's numbers), do_center_crop, crop_size, do_rescale, rescale_factor, do_normalize, image_mean, image_std. They
    may be set later, or given to a call, for that call alone; ConfigError where a value is none of theirs.
    `decoder`: see `load_image`. `fast=True` lets the JPEG decoder shrink large pictures by 2, 4 or 8 while their sides
    stay at least twice what the resize makes of them: pixel_values are then no longer bit-equal (cosine to the exact
    ones of photographs above 0.999), everything else stays as it is.
    """

    part: ClassVar[str] = "image_processor"  # what it is of a processor

    def __init__(
        self,
        *,
        size: Any,
        crop_size: Any = None,
        do_resize: bool = True,
        do_center_crop: bool = False,
        resample: int = BICUBIC,
        do_rescale: bool = True,
        rescale_factor: float = 1 / 255,
        do_normalize: bool = True,
        image_mean: Any = None,
        image_std: Any = None,
        decoder: str = "auto",
        fast: bool = False,
        num_threads: int | None = None,
        kind: str = "CLIP",
    ):
        self.kind = kind
        self.do_resize, self.size, self.resample = do_resize, size, resample
        self.crop_size = crop_size if do_center_crop else None
        self.do_center_crop = do_center_crop
        self.do_rescale, self.rescale_factor = do_rescale, rescale_factor
        self.do_normalize, self.image_mean, self.image_std = do_normalize, image_mean, image_std
        self.decoder, self.fast = decoder, fast
        self.num_threads = thread_count(num_threads)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in CHECKS:
            value = CHECKS[name](value)
            fields = self.__dict__ | {name: value}
            if fields.get("do_center_crop") and fields.get("crop_size") is None:
                raise ConfigError("crop_size: found None, expected a size where do_center_crop is set")
        super().__setattr__(name, value)
        self.__dict__.pop("table", None)  # made anew of the fields

    @functools.cached_property
    def table(self) -> np.ndarray:
        """(3, 256) float32, what each byte of each channel becomes."""
        return self._table(np.arange(256, dtype=np.uint8))

    @classmethod
    def from_config(cls, config: Config, **overrides: Any) -> ImageProcessor:
        """From the fields of preprocessor_config.json; unknown ones are ignored, as transformers does."""
        kind = str(next((config.get(name) for name in KINDS if config.get(name)), "CLIP"))
        for suffix in SUFFIXES:
            kind = kind.removesuffix(suffix)
        if kind not in DEFAULTS:
            raise ConfigError(f"image_processor_type: found {kind!r}, expected one of {', '.join(DEFAULTS)}")
        fields = dict(DEFAULTS[kind])
        if kind == "Siglip2":  # at its own square grid
            side = config.integer("patch_size", 16) * math.isqrt(config.integer("max_num_patches", 256))
            return cls(**(fields | {"kind": kind, "size": {"height": side, "width": side}} | overrides))
        names = (cls.__init__.__kwdefaults__.keys() | {"size"}) - {"decoder", "fast", "num_threads", "kind"}
        fields |= {name: config.get(name) for name in names if config.get(name) is not None}
        fields["rescale_factor"] = config.number("rescale_factor", 1 / 255, 0.0, 1e6)
        return cls(**(fields | {"kind": kind} | overrides))

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, **kwargs: Any) -> ImageProcessor:
        """Of a folder, a hub id or "beyond-vl-model"; keyword arguments override the file's fields.

        Raises ConfigError when preprocessor_config.json is missing or malformed.
        """
        hub = hub_options(kwargs)
        folder = resolve(name, weights=False, **hub)
        return cls.from_config(_read_config(folder), **kwargs)

    def __call__(
        self, images: Any, return_tensors: str | None = "np", positions: list[int] | None = None, **settings: Any
    ) -> BatchFeature:
        """`images`: one picture or a list; see `load_image` for what a picture may be.

        `positions` are the numbers errors give the pictures, default 0, 1, ...; `settings` are fields of this call
        alone. Raises ImageError that names the picture's number; a ValueError for an empty list.
        """
        if settings:
            return self._changed(settings)(images, return_tensors, positions)
        batch = list(images) if isinstance(images, list | tuple) else _as_batch(images)
        if not batch:
            raise ValueError("images: the list is empty, expected at least one picture")
        pixels = self._pipeline(batch, positions or range(len(batch)))
        tensors = from_numpy(pixels, return_tensors) if return_tensors else list(pixels)
        return BatchFeature(pixel_values=tensors)

    preprocess = __call__

    def _changed(self, settings: dict[str, Any]) -> ImageProcessor:
        """This processor with some fields set."""
        if unknown := sorted(set(settings) - set(FIELDS)):
            raise TypeError(f"unexpected arguments: {', '.join(unknown)}; an image processor has {', '.join(FIELDS)}")
        changed = copy.copy(self)
        for name in (name for name in FIELDS if settings.get(name) is not None):
            setattr(changed, name, settings[name])
        return changed

    def _pipeline(self, batch: list[Any], positions: Any) -> np.ndarray:
        """Each picture from source to pixel_values on one thread, so that its pixels are resized while in the cache."""
        workers = min(self.num_threads, len(batch))
        with ThreadPoolExecutor(workers) if workers > 1 else contextlib.nullcontext() as pool:
            run = pool.map if pool else map
            shape = self._output_shape()
            if shape is None:  # it depends on the pictures, which must agree
                images = list(run(self._load, batch, positions))
                shape = self._common_shape(images, positions)
                out = np.empty((len(batch), 3, *shape), np.float32)
                list(run(self._fill, out, images, positions))
                return out
            out = np.empty((len(batch), 3, *shape), np.float32)
            local = threading.local()

            def work(index: int) -> None:
                if not hasattr(local, "scratch"):
                    local.scratch = Scratch(self._least if self.fast else None)
                pixels = self._load(batch[index], positions[index], local.scratch)
                self._fill(out[index], pixels, positions[index])

            list(run(work, range(len(batch))))
            return out

    def _fill(self, out: np.ndarray, image: np.ndarray, position: int) -> None:
        """pixel_values (3, H, W) of loaded pixels."""
        with _placed(position):
            if image.dtype != np.uint8 or self.resample == NEAREST:
                out[...] = self._process_floats(image[:, :, :3])
                return
            target = self._target(image)
            _C.preprocess(out, (np.ascontiguousarray(image), *target[:2], self.resample, *target[4:]), self.table)

    def _common_shape(self, images: list[np.ndarray], positions: Any) -> tuple[int, int]:
        shapes = set()
        for image, position in zip(images, positions, strict=True):
            with _placed(position):
                shapes.add(self._target(image)[2:4])
        if len(shapes) > 1:
            raise ValueError(
                f"images: results of different sizes {sorted(shapes)}: expected a size that crops or squashes"
            )
        return shapes.pop()

    def _load(self, source: Any, position: int, scratch: Scratch | None = None) -> np.ndarray:
        with _placed(position):
            return load_pixels(source, self.decoder, scratch=scratch)

    def _output_shape(self) -> tuple[int, int] | None:
        """Height and width of every result, None where they depend on the picture."""
        size = self.crop_size if self.do_center_crop else self.size if self.do_resize else {}
        return (size["height"], size["width"]) if "height" in size else None

    def _least(self, height: int, width: int) -> tuple[int, int]:
        """Smallest decoded size that `fast` accepts."""
        new_height, new_width = self._resized(height, width)
        return 2 * new_height, 2 * new_width

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        if not self.do_resize:
            return height, width
        if "shortest_edge" not in self.size:
            return self.size["height"], self.size["width"]
        edge = self.size["shortest_edge"]
        short, long = sorted((height, width))
        new_long = int(edge * long / short)
        return (edge, new_long) if height <= width else (new_long, edge)

    def _geometry(self, height: int, width: int) -> tuple[int, int, int, int, int, int]:
        """(resized height, width, output height, width, top, left) for a picture of that size."""
        new_height, new_width = self._resized(height, width)
        if not self.do_center_crop:
            return new_height, new_width, new_height, new_width, 0, 0
        out = self.crop_size["height"], self.crop_size["width"]
        top, left = _crop_start(new_height, out[0]), _crop_start(new_width, out[1])
        return new_height, new_width, *out, top, left

    def _target(self, image: np.ndarray) -> tuple[int, int, int, int, int, int]:
        """`_geometry` of a picture; ImageError where a long and thin one would become absurdly large."""
        found = self._geometry(*image.shape[:2])
        if max(*image.shape[:2], *found[:2]) > MAX_SIDE or found[2] * found[3] > MAX_PIXELS:
            raise _too_large(image, *found[:2])
        return found

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
        if new_height * new_width > MAX_PIXELS:  # all of which are made, whatever the crop keeps
            raise _too_large(image, new_height, new_width)
        if not self.do_resize:
            values = image
        else:
            scaled, pixels = _to_bytes(image)
            values = _resize(pixels, new_height, new_width, self.resample)
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
        return {name: getattr(self, name) for name in FIELDS}

    def __repr__(self) -> str:
        return f"ImageProcessor({self.to_dict()})"


class AutoImageProcessor:
    """`AutoImageProcessor.from_pretrained(name)` gives an ImageProcessor."""

    from_pretrained = ImageProcessor.from_pretrained


def _read_config(folder: Any) -> Config:
    if (folder / "processor_config.json").exists():  # the newer file comes first, as in transformers
        nested = Config(read_json(folder / "processor_config.json"), "processor_config.json")
        for name in ("image_processor", "video_processor"):
            if name in nested:
                return nested.section(name)
    path = folder / "preprocessor_config.json"
    if not path.exists() and (folder / "video_preprocessor_config.json").exists():
        path = folder / "video_preprocessor_config.json"
    if not path.exists() and (folder / "open_clip_config.json").exists():
        return _open_clip_config(Config(read_json(folder / "open_clip_config.json"), "open_clip_config.json"))
    return Config(read_json(path), path.name)


def _open_clip_config(config: Config) -> Config:
    """OpenCLIP's preprocess_cfg in transformers' fields."""
    fields = config.section("preprocess_cfg")
    size = config.section("model_cfg").section("vision_cfg").integer("image_size", 224, 1, 1 << 13)
    square = {"height": size, "width": size}
    squash = fields.choice("resize_mode", "shortest", ("shortest", "squash")) == "squash"
    resample = {"bicubic": BICUBIC, "bilinear": BILINEAR}[
        fields.choice("interpolation", "bicubic", ("bicubic", "bilinear"))
    ]
    return Config(
        {
            "size": square if squash else {"shortest_edge": size},
            "do_center_crop": not squash,
            "crop_size": square,
            "resample": resample,
            "image_mean": fields.get("mean", OPENAI_MEAN),
            "image_std": fields.get("std", OPENAI_STD),
        },
        "open_clip_config.json",
    )


def _as_batch(images: Any) -> list[Any]:
    """A 4-dimensional array is a batch; anything else is one picture."""
    return list(images) if getattr(images, "ndim", 0) == 4 else [images]


def _size(value: Any, name: str, square: bool = False) -> dict[str, int]:
    """{"shortest_edge": n} or {"height": h, "width": w}; a plain number means the first, or a square."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = {"height": value, "width": value} if square else {"shortest_edge": value}
    keys = set(value) if isinstance(value, dict) else set()
    known = ({"height", "width"},) if square else ({"shortest_edge"}, {"height", "width"})
    if keys not in known or not all(type(n) is int and 1 <= n <= 1 << 14 for n in value.values()):
        expected = "height and width" if square else "shortest_edge, or height and width"
        raise ConfigError(f"{name}: found {value!r}, expected {expected}, from 1 to 16384")
    if math.prod(value.values()) > MAX_PIXELS:
        raise ConfigError(f"{name}: found {value!r}, expected at most {MAX_PIXELS} pixels")
    return dict(value)


def _three(value: Any, name: str, default: float, least: float) -> list[float]:
    numbers = [default] * 3 if value is None else list(value) if isinstance(value, list | tuple) else [value] * 3
    if len(numbers) != 3 or not all(_is_number(n) and least <= n < 1e6 for n in numbers):
        raise ConfigError(f"{name}: found {value!r}, expected 3 numbers{' above 0' if least > 0 else ''}")
    return numbers


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _resample(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value not in range(6):
        raise ConfigError(f"resample: found {value!r}, expected Pillow's 0 to 5")
    return int(value)


def _factor(value: Any) -> float:
    if not _is_number(value) or not 0 <= value <= 1e6:
        raise ConfigError(f"rescale_factor: found {value!r}, expected a number from 0 to 1e6")
    return value


def _flag(value: Any, name: str) -> bool:
    if type(value) is not bool:
        raise ConfigError(f"{name}: found {value!r}, expected true or false")
    return value


CHECKS = {
    **{name: functools.partial(_flag, name=name) for name in FIELDS if name.startswith("do_")},
    "size": functools.partial(_size, name="size"),
    "crop_size": lambda value: value if value is None else _size(value, "crop_size", square=True),
    "resample": _resample,
    "rescale_factor": _factor,
    "image_mean": functools.partial(_three, name="image_mean", default=0.0, least=-1e6),
    "image_std": functools.partial(_three, name="image_std", default=1.0, least=1e-12),
}


@contextlib.contextmanager
def _placed(position: int) -> Iterator[None]:
    """An ImageError within says which picture it is about."""
    try:
        yield
    except ImageError as error:
        raise ImageError(f"image {position}: {error}", position) from error


def _crop_start(size: int, crop: int) -> int:
    """First kept row; negative when zeros come first. transformers puts the odd row of padding first."""
    return (size - crop) // 2


def _too_large(image: np.ndarray, height: int, width: int) -> ImageError:
    return ImageError(
        f"{image.shape[1]} x {image.shape[0]} pixels would become {width} x {height}, expected sides up to {MAX_SIDE} "
        f"and at most {MAX_PIXELS} pixels"
    )


def _to_bytes(image: np.ndarray) -> tuple[bool, np.ndarray]:
    """uint8 pixels of an array, and whether its floats from 0 to 1 were scaled to get them."""
    if image.dtype == np.uint8:
        return False, image
    low, high = image.min(), image.max()
    if not np.isfinite([low, high]).all():
        raise ImageError(f"array from {low} to {high}: expected finite values")
    if np.allclose(image, image.astype(int)):
        if low < 0 or high > 255:
            raise ImageError(f"array from {low} to {high}: expected whole values from 0 to 255")
        return False, image.astype(np.uint8)
    if low < 0 or high > 1:
        raise ImageError(f"array from {low} to {high}: expected values from 0 to 1")
    return True, (image.astype(np.float64) * 255).astype(np.float32).astype(np.uint8)


def _resize(pixels: np.ndarray, height: int, width: int, resample: int) -> np.ndarray:
    if resample != NEAREST:
        return _C.resize(np.ascontiguousarray(pixels), height, width, resample, 0, 0)
    from PIL import Image

    return np.asarray(Image.fromarray(pixels).resize((width, height), NEAREST))
