"""From what a user hands over to pixels: paths, bytes, PIL images, arrays -> uint8 RGB [H, W, 3].

JPEG goes through simplejpeg (libjpeg-turbo: the same pixels as Pillow), everything else, and any JPEG it finds fault
with, through Pillow with a list of allowed formats. As in transformers, a file (path or bytes) is turned upright by its
EXIF orientation and converted to RGB, which drops alpha; a PIL image the caller opened is not turned, and its
transparency is laid on white.
"""

from __future__ import annotations

import base64
import contextlib
import io
import os
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import _C, files
from ..errors import ImageError
from ..outputs import is_torch, to_numpy

__all__ = ["FORMATS", "MAX_PIXELS", "check_pixels", "data_of", "load_image", "open_image", "open_media", "pil_to_rgb",
           "read_file", "to_bytes"]  # fmt: skip

MAX_PIXELS = 89_478_485  # Pillow's own limit, here an error
MAX_SIDE = 1 << 20  # of a picture before and after it is resized
MAX_PICTURE_BYTES = 8 * MAX_PIXELS  # of a file: 16 bits in each of four channels
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
DECODERS = ("auto", "pillow", "stb")


def load_image(source: Any, decoder: str = "auto", formats: tuple[str, ...] = FORMATS) -> np.ndarray:
    """RGB pixels of one picture, uint8 [H, W, 3] (other dtypes of arrays are kept).

    `source`: a path, encoded bytes or a file that is open, a data: URI, a PIL image, an array [H, W], [H, W, C] or
    [C, H, W] with C 1, 3 or 4, or a torch tensor of such a shape. `decoder`: "auto"; "pillow" for
    every format; "stb" (JPEG and PNG only, other pixels, accepts truncated files).

    Raises ImageError (a ValueError) when it cannot be read, is larger than MAX_PIXELS, or is a URL.
    """
    pixels = load_pixels(source, decoder, formats)
    return pixels if pixels.shape[2] == 3 else np.ascontiguousarray(pixels[:, :, :3])


def load_pixels(
    source: Any,
    decoder: str = "auto",
    formats: tuple[str, ...] = FORMATS,
    scratch: Scratch | None = None,
    channels: str | None = None,
) -> np.ndarray:
    """As `load_image`; PIL images may come as their own memory with a fourth, unused byte a pixel. With `scratch` the
    pixels of a JPEG lie in its buffer until the next call, and may be fewer than the picture's when it says so.
    `channels` ("channels_first", "channels_last"): where those of an array are; None: transformers' guess."""
    if decoder not in DECODERS:
        raise ValueError(f"decoder: found {decoder!r}, expected one of {', '.join(DECODERS)}")
    if is_torch(source):
        source = to_numpy(source)
    if isinstance(source, np.ndarray):
        return array_to_rgb(source, channels)
    source = data_of(source, ImageError)
    if isinstance(source, str | os.PathLike):
        data, name = read_file(source), os.fspath(source)
    elif isinstance(source, bytes | bytearray | memoryview):
        data, name = bytes(source), "image bytes"
    else:
        return pil_to_rgb(source)
    try:
        return _decode(data, decoder, formats, scratch)
    except (ValueError, OSError, SyntaxError, EOFError, OverflowError, RuntimeError) as error:
        raise ImageError(f"{name}: cannot be decoded: {error}") from error


class Scratch:
    """What one thread reuses from picture to picture: the decoder's output, whose pages cost as much as a tenth of
    decoding. `least(height, width)`, when given, names the smallest decoded height and width that will do."""

    def __init__(self, least: Callable[[int, int], tuple[int, int]] | None = None):
        self.least = least
        self.buffer = bytearray()

    def room(self, count: int) -> bytearray:
        if len(self.buffer) < count:
            self.buffer = bytearray(count)
        return self.buffer


def data_of(source: Any, error: type[ValueError]) -> Any:
    """The bytes of a data: URI or of a file that is open; anything else as it is. `error` is raised for what is neither
    read nor decoded."""
    if hasattr(source, "read") and not hasattr(source, "getbands") and not hasattr(source, "__fspath__"):
        data = source.read()
        if not isinstance(data, bytes):
            raise error(f"{type(source).__name__}: reads {type(data).__name__}, expected a file open for bytes")
        return data
    if not isinstance(source, str) or source[:5].lower() != "data:":
        return source
    head, comma, text = source.partition(",")
    try:
        if not comma or not head.lower().endswith(";base64"):
            raise ValueError("expected data:TYPE;base64,...")
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError as cause:
        raise error(f"{source[:40]}...: not a data: URI of base64: {str(cause)[:100]}") from cause


def read_file(path: str | os.PathLike) -> bytes:
    text = os.fspath(path)
    if isinstance(text, str) and text.lower().startswith(("http://", "https://", "data:", "ftp://")):
        raise ImageError(f"{_short(text)}: URLs are not fetched: download the picture and give its path or bytes")
    try:
        return files.read_regular(text, MAX_PICTURE_BYTES)
    except OSError as error:
        raise ImageError(f"{_short(text)}: cannot be read: {error.strerror}") from error
    except ValueError as error:  # a name that no file can have
        raise ImageError(f"{_short(text)!r}: cannot be read: {error}") from error


def _short(text: Any) -> Any:
    """A path as it is shown: one too long for any file is text that somebody took for a path."""
    return text if len(text) <= 300 else f"{text[:60]!r}... ({len(text)} characters)"


def open_media(path: str | os.PathLike, what: str) -> Any:
    """A file to read bytes from, unbuffered; ValueError for a URL and for what is no file, such as a pipe."""
    text = os.fspath(path)
    if isinstance(text, str) and "://" in text[:16]:
        raise ValueError(f"URLs are not fetched: download the {what} and give its path or bytes")
    return open(files.open_regular(path), "rb", buffering=0)


def _decode(data: bytes, decoder: str, formats: tuple[str, ...], scratch: Scratch | None) -> np.ndarray:
    if not data:
        raise ValueError("the file is empty")
    if decoder == "stb":
        return _C.stb_decode(data, MAX_PIXELS)
    if decoder == "auto" and data[:3] == b"\xff\xd8\xff" and "JPEG" in formats:
        # any warning of libjpeg-turbo is an error there; Pillow then has the last word, as in transformers
        with contextlib.suppress(ValueError):
            pixels = _decode_jpeg(data, scratch)
            if pixels is not None:
                return pixels
    # a transparent colour survives the conversion to RGB as a note, which pil_to_rgb then honours
    return pil_to_rgb(open_image(data, formats).convert("RGB"))


def _decode_jpeg(data: bytes, scratch: Scratch | None) -> np.ndarray | None:
    """Pixels of an RGB or gray JPEG without EXIF; None sends the others to Pillow."""
    import simplejpeg

    if b"Exif\x00\x00" in data[:65536] or b"tiff:Orientation" in data[:262144]:
        return None
    height, width, space, _ = simplejpeg.decode_jpeg_header(data)
    if space not in ("YCbCr", "Gray", "RGB"):
        return None
    check_pixels(height, width)
    options: dict[str, Any] = {}
    if scratch and scratch.least:
        options["min_height"], options["min_width"] = scratch.least(height, width)
    if space == "Gray":
        return np.repeat(simplejpeg.decode_jpeg(data, "GRAY", **options), 3, axis=2)
    if scratch:
        options["buffer"] = scratch.room(height * width * 3)
    return simplejpeg.decode_jpeg(data, "RGB", **options)


def check_pixels(height: int, width: int) -> None:
    if height * width > MAX_PIXELS:
        raise ValueError(f"{width} x {height} pixels, expected at most {MAX_PIXELS}")
    if max(height, width) > MAX_SIDE:
        raise ValueError(f"{width} x {height} pixels, expected sides up to {MAX_SIDE}")


def open_image(data: bytes, formats: tuple[str, ...] = FORMATS) -> Any:
    """A loaded PIL image turned upright by its EXIF orientation; only the named formats are tried."""
    from PIL import Image, ImageOps, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except UnidentifiedImageError as error:
        raise ValueError(f"not one of the formats {', '.join(formats)}") from error
    except Image.DecompressionBombError as error:
        raise ValueError(str(error)) from error
    check_pixels(image.height, image.width)
    image.load()
    return ImageOps.exif_transpose(image)


def pil_to_rgb(image: Any) -> np.ndarray:
    """uint8 RGB of a PIL image, transparency on white."""
    from PIL import Image

    if not isinstance(image, Image.Image):
        raise ImageError(
            f"found {type(image).__name__}, expected a path, bytes, a PIL image, an array or a torch tensor"
        )
    try:
        check_pixels(image.height, image.width)
        if "A" in image.getbands() or image.info.get("transparency") is not None:
            white = Image.new("RGBA", image.size, (255, 255, 255, 255))
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return _pixels(image if image.mode == "RGB" else image.convert("RGB"))
    except (ValueError, OSError, SyntaxError) as error:
        raise ImageError(f"PIL image {image.mode} {image.size}: {error}") from error


def _pixels(image: Any) -> np.ndarray:
    """The memory of an RGB image, four bytes a pixel, where Pillow holds it in one piece; else a copy of three."""
    image.load()
    try:
        _, capsule = image.__arrow_c_array__()
    except (AttributeError, ValueError):
        return np.asarray(image)
    return _C.arrow_pixels(capsule, image.height, image.width)


def array_to_rgb(image: np.ndarray, channels: str | None = None) -> np.ndarray:
    """[H, W, 3] of an array with channels first or last; alpha is laid on white as transformers does."""
    if image.dtype.kind not in "uifb":
        raise ImageError(f"array of {image.dtype}: expected numbers")
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3:
        raise ImageError(f"array of shape {image.shape}: expected [H, W], [H, W, C] or [C, H, W]")
    first = image.shape[0] in (1, 3, 4)  # the order of the tests is transformers': first axis first
    if (first and channels != "channels_last") or channels == "channels_first":
        image = np.moveaxis(image, 0, -1)
    if image.shape[2] not in (1, 3, 4) or 0 in image.shape:
        raise ImageError(f"array of shape {image.shape}: expected 1, 3 or 4 channels and no empty axis")
    if image.shape[0] * image.shape[1] > MAX_PIXELS:
        raise ImageError(f"array of shape {image.shape}: expected at most {MAX_PIXELS} pixels")
    if image.shape[2] == 1:
        return np.repeat(image, 3, axis=2)
    return _alpha_on_white(image) if image.shape[2] == 4 else image


def _alpha_on_white(image: np.ndarray) -> np.ndarray:
    floats = np.issubdtype(image.dtype, np.floating)
    if floats and (image.min() < 0 or image.max() > 1):
        raise ImageError(f"RGBA array from {image.min()} to {image.max()}: expected floats from 0 to 1")
    white = 1.0 if floats else 255
    alpha = image[..., 3:] / white
    blended = alpha * image[..., :3] + (1 - alpha) * white
    return (blended if floats else np.round(blended)).astype(image.dtype)


def to_bytes(image: np.ndarray) -> tuple[bool, np.ndarray]:
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
