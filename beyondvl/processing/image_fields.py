"""The fields of image processors as preprocessor_config.json holds them: their defaults, and what each may be."""

from __future__ import annotations

import functools
from typing import Any

from ..errors import ConfigError
from .geometry import edge_field, size_field

__all__ = ["CHECKS", "FIELDS", "KINDS", "NEAREST", "NEUTRAL", "PATCH_FIELDS", "SWITCHES"]

NEAREST, LANCZOS, BILINEAR, BICUBIC = 0, 1, 2, 3
# fields of a processor, in the order they are set in: a crop needs its size
FIELDS: dict[str, Any] = {
    "default_to_square": False,
    "do_convert_rgb": None,
    "do_resize": True,
    "size": None,
    "resample": BICUBIC,
    "crop_size": None,
    "do_center_crop": False,
    "crop_rounding": "down",
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": None,
    "image_std": None,
}
# those of a processor whose pictures become as large as some number of patches allows
PATCH_FIELDS: dict[str, Any] = {
    name: FIELDS[name]
    for name in ("do_convert_rgb", "do_resize", "resample", "do_rescale", "rescale_factor", "do_normalize",
                 "image_mean", "image_std")
}  # fmt: skip
KINDS = ("image_processor_type", "video_processor_type", "feature_extractor_type")
# of a call or a file, accepted for the sake of callers of transformers at the values that change nothing
NEUTRAL = {
    "data_format": (None, "channels_first"),
    "disable_grouping": (None, True, False),
    "device": (None, "cpu"),
    "do_pad": (None, False),
    "pad_size": (None,),
    "image_seq_length": (None,),
    "image_like_kwargs": (None,),
}
SWITCHES = ("do_resize", "do_rescale", "do_normalize", "do_center_crop")  # None of a call turns them off, too


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
    if not _is_number(value) or not -1e6 <= value <= 1e6:
        raise ConfigError(f"rescale_factor: found {value!r}, expected a number from -1e6 to 1e6")
    return value


def _count(value: Any, name: str, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
        raise ConfigError(f"{name}: found {value!r}, expected a whole number from 1 to {most}")
    return value


def _choice(value: Any, name: str, known: tuple[Any, ...]) -> Any:
    if value not in known:
        raise ConfigError(f"{name}: found {value!r}, expected one of {', '.join(map(str, known))}")
    return value


def _flag(value: Any, name: str) -> bool:
    if type(value) is not bool:
        raise ConfigError(f"{name}: found {value!r}, expected true or false")
    return value


CHECKS = {
    **{
        name: functools.partial(_flag, name=name)
        for name in FIELDS
        if name.startswith("do_") and name != "do_convert_rgb"
    },
    "crop_size": lambda value: value if value is None else size_field(value, "crop_size", cropped=True),
    "resample": _resample,
    "crop_rounding": lambda value: _choice(value, "crop_rounding", ("down", "even")),
    "rescale_factor": _factor,
    "image_mean": functools.partial(_three, name="image_mean", default=0.0, least=-1e6),
    "image_std": functools.partial(_three, name="image_std", default=1.0, least=1e-12),
    "patch_size": functools.partial(_count, name="patch_size", most=256),
    "max_image_size": lambda value: edge_field(value, "max_image_size"),
    "max_soft_tokens": lambda value: _choice(value, "max_soft_tokens", (70, 140, 280, 560, 1120)),
    "pooling_kernel_size": functools.partial(_count, name="pooling_kernel_size", most=64),
    "max_num_patches": functools.partial(_count, name="max_num_patches", most=1 << 14),
}
