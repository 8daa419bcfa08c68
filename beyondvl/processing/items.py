"""What somebody hands over to be encoded: a text, a picture, a clip or a sound, told by what it is and, of a string, by
what it names.

A string that names an existing file, a URL or a data: URI is that, whatever its extension; one that ends in the
extension of a picture, a clip or a sound names such a file, there or not. Anything else is a text; {"text": s},
{"image": x}, {"video": x} and {"audio": x} say it themselves.
"""

from __future__ import annotations

import os
import re
from typing import Any

import numpy as np

from ..modalities import AUDIO, IMAGE, MODALITIES, TEXT, VIDEO

__all__ = ["AUDIO_EXTENSIONS", "PICTURE_EXTENSIONS", "VIDEO_EXTENSIONS", "as_clips", "clip_of", "content_of",
           "extension_of", "is_bare", "is_file", "is_sound_and_rate", "modality_of", "sound_and_rate"]  # fmt: skip

PICTURE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
VIDEO_EXTENSIONS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg")
AUDIO_EXTENSIONS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".m4a", ".aac")
UNREAD = (".tif", ".tiff", ".avif", ".heic", ".heif", ".jxl", ".ico")  # pictures that are not read here
NAMES = tuple(modality.name for modality in MODALITIES)
LONGEST_PATH = 4096
URL = re.compile(r"(?i)(https?|ftp|s3|gs|file)://\S+")
DATA = re.compile(r"(?i)data:(image|video|audio)/[\w.+-]+[;,]")
HEAD = 16  # bytes that tell a file's kind
SOUND_HEADS = (b"fLaC", b"OggS", b"ID3", b"\xff\xfb", b"\xff\xf3", b"\xff\xf2", b".snd", b"FORM", b"RF64", b"#!AMR")
CLIP_HEADS = (b"\x1aE\xdf\xa3", b"FLV\x01", b"\x00\x00\x01\xba", b"\x00\x00\x01\xb3")
PICTURE_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"mif1", b"msf1", b"hevc")


def modality_of(item: Any, readable: tuple[str, ...] = NAMES, place: int | None = None) -> str:
    """One of "text", "image", "video", "audio". A model that reads texts alone takes every string for one, a model that
    reads none takes every string for a file.

    Raises ValueError for what is none of them, naming the item's place and type.
    """
    if isinstance(item, dict):
        return next((name for name in NAMES if name in item), "audio" if "array" in item or "raw" in item else "text")
    if sound_and_rate(item) is not None:
        return AUDIO.name
    if isinstance(item, str | os.PathLike):
        if isinstance(item, str) and set(readable) <= {TEXT.name}:
            return TEXT.name
        modality = _named(os.fspath(item))
        if modality is None:
            modality = TEXT.name if isinstance(item, str) and TEXT.name in readable else _first(readable)
        return modality
    if isinstance(item, bytes | bytearray | memoryview):
        return _head(bytes(item[:HEAD])) or IMAGE.name
    if hasattr(item, "read"):
        return IMAGE.name
    number = isinstance(item, int | float | complex | np.number | bool) or item is None
    if number or not (hasattr(item, "shape") or hasattr(item, "getbands")):
        at = "item" if place is None else f"item {place}"
        raise ValueError(f"{at}: found {item!r:.100} ({type(item).__name__}), expected a text, a picture, a clip or a "
                         "sound: " + EXPECTED)  # fmt: skip
    return VIDEO.name if getattr(item, "ndim", 0) == 4 else IMAGE.name


EXPECTED = 'a string, a path, bytes, a PIL image, an array or tensor, (array, rate), or {"text": ...} and the like'


def _first(readable: tuple[str, ...]) -> str:
    return next(name for name in (IMAGE.name, VIDEO.name, AUDIO.name, TEXT.name) if name in readable)


def _named(text: str) -> str | None:
    """What a string names; None where it names nothing."""
    if match := DATA.match(text[:64]):
        return match[1].lower()
    name = text.strip().lower()
    if URL.fullmatch(name[:LONGEST_PATH]):
        return extension_of(re.split(r"[?#]", name, maxsplit=1)[0]) or IMAGE.name
    there = is_file(text)
    modality = extension_of(name)
    if modality is None and there:
        with open(text, "rb") as file:
            return _head(file.read(HEAD)) or IMAGE.name
    return modality


def is_file(text: str) -> bool:
    """Whether a string names a file that is there."""
    try:
        return os.path.isfile(text)
    except ValueError:  # a name that no file can have
        return False


def extension_of(name: str) -> str | None:
    """The modality of a file by its name, which is in lower case; None where that tells nothing."""
    for modality, extensions in (
        (VIDEO, VIDEO_EXTENSIONS),
        (AUDIO, AUDIO_EXTENSIONS),
        (IMAGE, PICTURE_EXTENSIONS + UNREAD),
    ):
        if name.endswith(extensions):
            return modality.name
    return None


def _head(data: bytes) -> str | None:
    """What a file is by its first bytes; None where these tell nothing."""
    if data[:4] in (b"RIFF", b"RIFX"):
        return {b"WAVE": AUDIO.name, b"AVI ": VIDEO.name}.get(data[8:12], IMAGE.name)
    if data[4:8] == b"ftyp":
        brand = data[8:12]
        return IMAGE.name if brand in PICTURE_BRANDS else AUDIO.name if brand in (b"M4A ", b"M4B ") else VIDEO.name
    if data.startswith(SOUND_HEADS):
        return AUDIO.name
    return VIDEO.name if data.startswith(CLIP_HEADS) else None


def content_of(item: Any, modality: str) -> Any:
    """What an item holds; ValueError where a dictionary is not of that modality, or says more than it."""
    if not isinstance(item, dict) or (modality == AUDIO.name and ("array" in item or "raw" in item)):
        return item.read() if hasattr(item, "read") and not hasattr(item, "getbands") else item
    if modality not in item or len(item) > 1:
        raise ValueError(f"item: found keys {', '.join(map(str, item))}, expected {modality} alone")
    return content_of(item[modality], modality) if hasattr(item[modality], "read") else item[modality]


def clip_of(items: list[Any], i: int) -> tuple[Any, dict[str, Any]]:
    """A clip and how its frames are sampled; ValueError where a dictionary holds none."""
    settings = dict(item) if isinstance(item := items[i], dict) else {"video": item}
    if "video" not in settings:
        raise ValueError(f"item {i}: found keys {', '.join(map(str, settings))}, expected video")
    return settings.pop("video"), settings


def as_clips(videos: Any) -> list[Any]:
    """A list of clips, of a clip or several: a list of pictures is one clip, an array (B, T, H, W, 3) is several."""
    if isinstance(videos, list | tuple):
        first = videos[0] if videos else b""
        clip = isinstance(first, str | os.PathLike | bytes | bytearray | memoryview | list | tuple | dict)
        return list(videos) if clip or getattr(first, "ndim", 0) == 4 else [videos]
    return list(videos) if getattr(videos, "ndim", 0) == 5 else [videos]


def grouped(images: Any) -> list[list[Any]]:
    """Lists of pictures, one for each text: of a picture, or of a list of them, one list; an array of four axes is such
    a list."""
    if isinstance(images, list | tuple):
        nested = all(isinstance(one, list | tuple) for one in images)
        return [list(group) for group in images] if nested and images else [list(images)]
    return [list(images)] if getattr(images, "ndim", 0) == 4 else [[images]]


def sound_and_rate(item: Any) -> tuple[Any, Any] | None:
    """(array, rate) of such a pair, in that order or the other one; None of anything else."""
    if not isinstance(item, tuple) or len(item) != 2:
        return None
    samples, rate = item
    if _is_number(samples) and not _is_number(rate):
        samples, rate = rate, samples
    fits = _is_number(rate) and not _is_number(samples) and not isinstance(samples, str | bytes | os.PathLike | dict)
    return (samples, rate) if fits else None


def is_bare(sound: Any) -> bool:
    """Whether it is samples alone: no file, and without a rate."""
    return not is_sound_and_rate(sound) and (isinstance(sound, list) or hasattr(sound, "shape"))


def is_sound_and_rate(item: Any) -> bool:
    """Whether it is (array, rate), or (rate, array)."""
    return sound_and_rate(item) is not None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.number) and not isinstance(value, bool)
