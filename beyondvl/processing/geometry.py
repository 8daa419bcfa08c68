"""Sizes of a picture before and after it is resized, cropped and filled up; transformers' rules."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ..errors import ConfigError, ImageError
from .loading import MAX_PIXELS

__all__ = ["crop_start", "edge_field", "fixed_size", "resized", "resized_to_edge", "resized_to_patches",
           "resized_to_squares", "resized_to_tiles", "size_field"]  # fmt: skip

KEYS = ({"shortest_edge"}, {"height", "width"}, {"shortest_edge", "longest_edge"}, {"max_height", "max_width"})


def size_field(value: Any, name: str, square: bool = True, cropped: bool = False) -> dict[str, int]:
    """A `size` as a dictionary: a plain number is a square, or where `square` is not set a shortest edge; two are
    height and width. `cropped`: of a crop, which has both. ConfigError where it is neither."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = {"height": value, "width": value} if square or cropped else {"shortest_edge": value}
    elif isinstance(value, list | tuple) and len(value) == 2:
        value = {"height": value[0], "width": value[1]}
    elif isinstance(value, Mapping) or hasattr(value, "keys"):
        value = {key: value[key] for key in value if value[key] is not None}
    keys = set(value) if isinstance(value, dict) else set()
    known = (KEYS[1],) if cropped else KEYS
    if keys not in known or not all(type(n) is int and 1 <= n <= 1 << 14 for n in value.values()):
        expected = "height and width" if cropped else ("shortest_edge (with longest_edge), height and width, or "
                                                       "max_height and max_width")  # fmt: skip
        raise ConfigError(f"{name}: found {value!r}, expected {expected}, from 1 to 16384")
    if keys != KEYS[2] and math.prod(value.values()) > MAX_PIXELS:
        raise ConfigError(f"{name}: found {value!r}, expected at most {MAX_PIXELS} pixels")
    return value


def edge_field(value: Any, name: str) -> dict[str, int]:
    """A size that says how long the longest edge is: {"longest_edge": n}, or n. ConfigError where it does not."""
    value = {"longest_edge": value} if isinstance(value, int) and not isinstance(value, bool) else value
    edges = {key: value[key] for key in value if value[key] is not None} if hasattr(value, "keys") else {}
    if (
        set(edges) != {"longest_edge"}
        or type(edges["longest_edge"]) is not int
        or not 1 <= edges["longest_edge"] <= 4096
    ):
        raise ConfigError(f"{name}: found {value!r}, expected longest_edge, from 1 to 4096")
    return edges


def fixed_size(size: dict[str, int]) -> tuple[int, int] | None:
    """Height and width that a size says by itself; None where they depend on the picture."""
    return (size["height"], size["width"]) if "height" in size else None


def resized(size: dict[str, int], height: int, width: int) -> tuple[int, int]:
    """Height and width of a picture after it is resized."""
    if "height" in size:
        return size["height"], size["width"]
    if "max_height" in size:
        scale = min(size["max_height"] / height, size["max_width"] / width)
        return int(height * scale), int(width * scale)
    edge = size["shortest_edge"]
    if "longest_edge" in size:
        return _within(edge, size["longest_edge"], height, width)
    short, long = sorted((height, width))
    new_long = int(edge * long / short)
    return (edge, new_long) if height <= width else (new_long, edge)


def resized_to_patches(height: int, width: int, patch_size: int, most: int) -> tuple[int, int]:
    """The largest height and width in whole patches, `most` of them at most, in the proportions of a picture; found by
    halving, to 1e-5 of its sides, as transformers does."""

    def scaled(scale: float) -> tuple[int, int]:
        down, across = (max(1, math.ceil(n * scale / patch_size)) * patch_size for n in (height, width))
        return down, across

    fits, too_large = 1e-6, 100.0
    while too_large - fits >= 1e-5:
        scale = (fits + too_large) / 2
        down, across = scaled(scale)
        if (down // patch_size) * (across // patch_size) <= most:
            fits = scale
        else:
            too_large = scale
    return scaled(fits)


def resized_to_squares(height: int, width: int, side: int, most: int) -> tuple[int, int]:
    """The largest height and width in whole squares of `side` pixels, `most` of them at most, in the proportions of a
    picture, rounded down; a long and thin one is one square wide. ImageError where it would have none."""
    factor = math.sqrt(most * side * side / (height * width))
    down, across = (math.floor(factor * n / side) for n in (height, width))
    if not (down or across):
        raise ImageError(f"{width} x {height} pixels, expected room for a square of {side} x {side} among {most}")
    if not down:
        down, across = 1, min(width // height, most)
    elif not across:
        down, across = min(height // width, most), 1
    return down * side, across * side


def resized_to_edge(height: int, width: int, edge: int) -> tuple[int, int]:
    """The height and width in the proportions of a picture whose longer side is `edge`, the other an even number (as
    transformers has it for Idefics3)."""
    ratio = width / height
    other = int(edge / ratio) if width >= height else int(edge * ratio)
    other = max(other + other % 2, 1)
    return (other, edge) if width >= height else (edge, other)


def resized_to_tiles(height: int, width: int, side: int) -> tuple[int, int]:
    """The height and width in whole tiles of `side` that hold a picture: its longer side rounded up, the other in
    proportion and rounded up, too."""
    ratio = width / height
    if width >= height:
        width = math.ceil(width / side) * side
        return max(1, math.ceil(int(width / ratio) / side)) * side, width
    height = math.ceil(height / side) * side
    return height, max(1, math.ceil(int(height * ratio) / side)) * side


def _within(edge: int, most: int, height: int, width: int) -> tuple[int, int]:
    """The shorter side as long as `edge`, or less where the longer one would be more than `most`."""
    short, long = float(min(height, width)), float(max(height, width))
    exact = most * short / long if long / short * edge > most else edge
    edge = round(exact)
    if short == edge:
        return height, width
    other = int(exact * long / short)
    return (other, edge) if width < height else (edge, other)


def crop_start(size: int, crop: int, rule: str) -> int:
    """First kept row; negative when zeros come first. Where there is no middle: "down", as transformers, which puts the
    odd row of padding first; "even", to the even one, as torchvision."""
    return (size - crop) // 2 if rule == "down" else round((size - crop) / 2)
