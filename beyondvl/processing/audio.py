"""From what a user hands over to samples: sound files (soundfile, extra `[audio]`), arrays that state their rate ->
float32 in one channel at the rate a model wants (soxr).

Channels are averaged. Integers become -1 to 1, floats are taken as they are. A file that ends before what its header
announced is refused where the format tells (WAV, FLAC, Ogg).
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import AudioError
from ..outputs import is_torch

__all__ = ["is_sound_and_rate", "load_audio"]

MOST_SECONDS = 6 * 3600
MOST_CHANNELS = 64
RATES = (1_000, 768_000)
BLOCK = 1 << 18  # samples a channel read at once
STREAMED = (0, 0xFFFFFFFF)  # the sizes a WAV has whose writer could not go back


def load_audio(source: Any, sampling_rate: int, given_rate: int | None = None) -> np.ndarray:
    """Samples of a sound, float32 [n] in one channel, `sampling_rate` a second.

    `source`: a path or bytes of a sound file (WAV, FLAC, Ogg, MP3, AIFF, ...); (array, rate); {"array": array,
    "sampling_rate": rate}; or an array or torch tensor whose rate is `given_rate`. Arrays are [n], or [channels, n] or
    [n, channels] where one side is longer.

    Raises AudioError (a ValueError) that names the file when it cannot be read, ends early, announces an absurd length
    or holds no sound; ValueError for an array without a rate; ImportError where soundfile or soxr is missing.
    """
    if isinstance(source, str | os.PathLike | bytes | bytearray | memoryview):
        return _from_file(source, sampling_rate)
    rate = given_rate
    if isinstance(source, dict):
        if not {"array", "sampling_rate"} <= set(source):
            raise AudioError(f"found keys {', '.join(map(str, source))}, expected array and sampling_rate")
        source, rate = source["array"], source["sampling_rate"]
    elif is_sound_and_rate(source):
        source, rate = source
    if rate is None:
        raise ValueError("sampling_rate: not given, expected samples a second beside an array: (array, rate)")
    if isinstance(rate, bool) or rate != int(rate) or not RATES[0] <= rate <= RATES[1]:
        raise ValueError(f"sampling_rate: found {rate!r}, expected a whole number from {RATES[0]} to {RATES[1]}")
    samples = _one_channel(_floats(source))
    return _resampled(iter([samples]), int(rate), sampling_rate)


def is_sound_and_rate(source: Any) -> bool:
    """Whether it is (array, rate)."""
    return (
        isinstance(source, tuple)
        and len(source) == 2
        and isinstance(source[1], int | float | np.number)
        and not isinstance(source[0], int | float | np.number)
    )


def _floats(source: Any) -> np.ndarray:
    array = source.detach().numpy() if is_torch(source) else np.asarray(source)
    if array.size == 0 or array.ndim not in (1, 2):
        raise AudioError(f"array of shape {array.shape}: expected samples [n], [channels, n] or [n, channels]")
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - 128) / 128
    if array.dtype.kind == "i":
        return (array / np.float64(-int(np.iinfo(array.dtype).min))).astype(np.float32)
    if array.dtype.kind != "f":
        raise AudioError(f"array of {array.dtype}: expected floats, uint8 or signed integers")
    array = np.ascontiguousarray(array, np.float32)
    if not np.isfinite(array).all():
        raise AudioError("array: found samples that are not finite, expected numbers")
    return array


def _one_channel(array: np.ndarray) -> np.ndarray:
    if array.ndim == 1:
        return array
    axis = 0 if array.shape[0] < array.shape[1] else 1
    if array.shape[axis] > MOST_CHANNELS:
        raise AudioError(f"array of shape {array.shape}: found {array.shape[axis]} channels, at most {MOST_CHANNELS}")
    return array.mean(axis, dtype=np.float32)


def _resampled(blocks: Iterator[np.ndarray], rate: int, wanted: int) -> np.ndarray:
    """All samples of blocks in one channel, at the wanted rate."""
    if rate == wanted:
        return np.ascontiguousarray(np.concatenate(list(blocks)))
    try:
        import soxr
    except ImportError as error:
        raise ImportError("to change a sampling rate install soxr: pip install 'beyondvl[audio]'") from error
    stream = soxr.ResampleStream(rate, wanted, 1, dtype="float32")
    parts = [stream.resample_chunk(block) for block in blocks]
    parts.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
    found = np.concatenate(parts)
    if not found.size:
        raise AudioError(f"a sound too short for {wanted} samples a second, expected at least one of them")
    return found


def _from_file(source: Any, wanted: int) -> np.ndarray:
    try:
        import soundfile
    except ImportError as error:
        raise ImportError("to read sound files install soundfile: pip install 'beyondvl[audio]'") from error
    path = isinstance(source, str | os.PathLike)
    name = os.fspath(source) if path else "sound bytes"
    try:
        with _opened(source) if path else io.BytesIO(source) as file:
            _check_complete(file)
            with soundfile.SoundFile(file) as sound:
                _check_header(sound)
                return _resampled(_blocks(sound), sound.samplerate, wanted)
    except AudioError as error:
        raise AudioError(f"{name}: {error}") from error
    except soundfile.LibsndfileError as error:
        raise AudioError(f"{name}: {str(error.error_string).rstrip('.')}") from error
    except (ValueError, OSError, OverflowError, RuntimeError) as error:
        raise AudioError(f"{name}: {getattr(error, 'strerror', None) or error}") from error


def _opened(path: str | os.PathLike) -> Any:
    text = os.fspath(path)
    if isinstance(text, str) and "://" in text[:16]:
        raise AudioError("URLs are not fetched: download the sound and give its path or bytes")
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise AudioError("not a file")
    return open(path, "rb")


def _check_complete(file: Any) -> None:
    """Whether a WAV or Ogg file holds what it announces: libsndfile takes less without a word."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if not head:
        raise AudioError("the file is empty")
    if head[:4] == b"RIFF" and head[8:] == b"WAVE":
        at = 12
        while at + 8 <= size:
            file.seek(at)
            chunk, length = file.read(4), int.from_bytes(file.read(4), "little")
            if chunk == b"data" and length not in STREAMED and at + 8 + length > size:
                raise AudioError(f"ends after {size} bytes, expected {at + 8 + length} from its header: truncated")
            at += 8 + length + length % 2
    if head[:4] == b"OggS":
        file.seek(max(0, size - (1 << 16) - 512))  # more than a page
        page = file.read()
        page = page[max(0, page.rfind(b"OggS")) :]
        parts = page[27 : 27 + page[26]] if len(page) > 26 else b""
        if not parts or not page[5] & 4 or len(page) < 27 + len(parts) + sum(parts):
            raise AudioError("ends before its last page does: truncated")
    file.seek(0)


def _check_header(sound: Any) -> None:
    if not RATES[0] <= sound.samplerate <= RATES[1] or not 1 <= sound.channels <= MOST_CHANNELS:
        raise AudioError(f"{sound.channels} channels of {sound.samplerate} samples a second, expected 1 to "
                         f"{MOST_CHANNELS} of {RATES[0]} to {RATES[1]}")  # fmt: skip
    if sound.frames > MOST_SECONDS * sound.samplerate:
        raise AudioError(f"a length of {sound.frames / sound.samplerate:.0f} s, expected at most {MOST_SECONDS}")


def _blocks(sound: Any) -> Iterator[np.ndarray]:
    total = 0
    while len(block := sound.read(BLOCK, dtype="float32", always_2d=True)):
        total += len(block)
        if total > MOST_SECONDS * sound.samplerate:
            raise AudioError(f"longer than {MOST_SECONDS} s")
        if not np.isfinite(block).all():
            raise AudioError("samples that are not finite")
        yield block[:, 0].copy() if block.shape[1] == 1 else block.mean(1, dtype=np.float32)
    if not total:
        raise AudioError("holds no samples")
    if 0 < sound.frames < 1 << 62 and total < sound.frames:
        raise AudioError(f"ends after {total} samples, expected {sound.frames} from its header: truncated")
