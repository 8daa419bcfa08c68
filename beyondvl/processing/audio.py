"""From what a user hands over to samples: sound files (soundfile, extra `[audio]`), the sound of M4A, AAC and of clips
(PyAV, extra `[video]`), arrays that state their rate -> float32 in one channel at the rate a model wants (soxr).

Channels are averaged. Integers become -1 to 1, floats are taken as they are. A file that ends before what its header
announced is refused where the format tells: WAV, W64, AIFF, AU, FLAC, Ogg, MP4.
"""

from __future__ import annotations

import io
import itertools
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..errors import AudioError, NoSoundError
from ..outputs import is_torch
from .items import is_sound_and_rate, sound_and_rate
from .loading import data_of, open_media
from .video import FORMATS, SLACK, open_container

__all__ = ["load_audio"]

MOST_SECONDS = 6 * 3600
MOST_CHANNELS = 64
RATES = (1_000, 768_000)
BLOCK = 1 << 18  # samples a channel read at once
STREAMED = (0, 0xFFFFFFFF)  # the sizes a file has whose writer could not go back
UNKNOWN = 1 << 62  # samples of a FLAC that does not say
MOST_CHUNKS = 1000  # of a WAV or AIFF before its samples
TS_PACKET = 188  # bytes of a packet of an MPEG transport stream


def load_audio(source: Any, sampling_rate: int, given_rate: int | None = None) -> np.ndarray:
    """Samples of a sound, float32 [n] in one channel, `sampling_rate` a second.

    `source`: a path, data: URI or bytes of a sound file (WAV, FLAC, Ogg, MP3, M4A, ...) or of a clip; (array, rate), or
    (rate, array) as Gradio has it; {"array" or "raw": array, "sampling_rate": rate}; or an array or torch tensor whose
    rate is `given_rate`. Arrays are [n], or [channels, n] or [n, channels] where one side is longer. Integers count as
    shares of their range, -1 to 1, where transformers' extractors take them as they are.

    Raises AudioError (a ValueError) that names the file when it cannot be read, ends early, announces an absurd length
    or holds no sound; ValueError for an array without a rate; ImportError where soundfile, soxr or PyAV is missing.
    """
    sampling_rate = _rate(sampling_rate)
    source = data_of(source, AudioError)
    if isinstance(source, str | os.PathLike | bytes | bytearray | memoryview):
        return _from_file(source, sampling_rate)
    rate = given_rate
    if isinstance(source, dict):
        samples = source.get("array", source.get("raw"))
        if samples is None or "sampling_rate" not in source:
            raise AudioError(f"found keys {', '.join(map(str, source))}, expected array and sampling_rate")
        source, rate = samples, source["sampling_rate"]
    elif is_sound_and_rate(source):
        source, rate = sound_and_rate(source)
    if rate is None:
        raise ValueError("sampling_rate: not given, expected samples a second beside an array: (array, rate)")
    rate = _rate(rate)
    return _resampled(iter([_one_channel(_floats(source))]), rate, sampling_rate)


def _rate(value: Any) -> int:
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not RATES[0] <= value <= RATES[1] or value != int(value):
        raise ValueError(f"sampling_rate: found {value!r}, expected a whole number from {RATES[0]} to {RATES[1]}")
    return int(value)


def _floats(source: Any) -> np.ndarray:
    if is_torch(source):
        source = source.detach()
        source = (source.float() if source.is_floating_point() else source).numpy()
    array = np.asarray(source)
    if array.size == 0 or array.ndim not in (1, 2):
        raise AudioError(f"array of shape {array.shape}: expected samples [n], [channels, n] or [n, channels]")
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - 128) / 128
    if array.dtype in (np.int16, np.int32):
        return (array / np.float64(-int(np.iinfo(array.dtype).min))).astype(np.float32)
    if array.dtype.kind != "f":
        raise AudioError(f"array of {array.dtype}: expected floats, uint8, int16 or int32")
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
    samples = np.concatenate(parts)
    if not samples.size:
        raise AudioError(f"a sound too short for {wanted} samples a second, expected at least one of them")
    return samples


def _from_file(source: Any, wanted: int) -> np.ndarray:
    path = isinstance(source, str | os.PathLike)
    name = os.fspath(source) if path else "sound bytes"
    try:
        with open_media(source, "sound") if path else io.BytesIO(source) as file:
            clip = _is_container(file.read(TS_PACKET + 1))
            file.seek(0)
            return _from_container(file, wanted) if clip else _from_sound(file, wanted, path)
    except AudioError as error:
        raise type(error)(f"{name}: {error}") from error
    except (ValueError, TypeError, BufferError, OSError, OverflowError, RuntimeError) as error:
        raise AudioError(f"{name}: {getattr(error, 'strerror', None) or error}") from error


def _from_sound(file: Any, wanted: int, path: bool) -> np.ndarray:
    try:
        import soundfile
    except ImportError as error:
        raise ImportError("to read sound files install soundfile: pip install 'beyondvl[audio]'") from error
    _check_complete(file)
    try:
        # a file goes by its number: soundfile would read more into the name it was opened by
        with soundfile.SoundFile(file.fileno() if path else file, closefd=False) as sound:
            rate, samples = sound.samplerate, sound.frames
            _check_header(rate, sound.channels, samples)
            least = samples if samples < UNKNOWN else 0
            return _resampled(_one_channel_each(_blocks(sound), rate, samples, least), rate, wanted)
    except soundfile.LibsndfileError as error:
        raise AudioError(str(error.error_string).rstrip(".")) from error


def _is_container(head: bytes) -> bool:
    """Whether a file is one that libsndfile does not read: MP4, Matroska, AAC, ASF, FLV, AVI, AMR, MPEG."""
    known = (b"\x1aE\xdf\xa3", b"0&\xb2u\x8ef\xcf\x11", b"FLV\x01", b"#!AMR", b"\x00\x00\x01\xba")
    stream = head[:1] == b"G" and head[TS_PACKET:] == b"G"
    adts = len(head) > 1 and head[0] == 0xFF and head[1] & 0xF6 == 0xF0
    return head[4:8] == b"ftyp" or head.startswith(known) or stream or adts or head[:4] + head[8:12] == b"RIFFAVI "


def _from_container(file: Any, wanted: int) -> np.ndarray:
    """The first sound of a file that FFmpeg reads."""
    with open_container(file, FORMATS + ",aac,amr") as container:
        if not container.streams.audio:
            raise NoSoundError("holds no sound, only " + ", ".join(sorted({s.type for s in container.streams})))
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise AudioError("a sound of a codec that is not known here")
        rate = stream.rate
        samples = 0 if stream.duration is None else round(float(stream.duration * stream.time_base) * rate)
        _check_header(rate, stream.channels, samples)
        exact = "mov" in container.format.name  # elsewhere the length is guessed from the size
        least = samples - round(SLACK * rate) if exact else 0
        return _resampled(_one_channel_each(_decoded(container, stream), rate, samples, least), rate, wanted)


def _decoded(container: Any, stream: Any) -> Iterator[np.ndarray]:
    """Blocks [channels, n] float32 of a stream."""
    from av import AudioResampler

    planes = AudioResampler(format="fltp", rate=stream.rate)
    for frame in itertools.chain(container.decode(stream), [None]):  # None: what the resampler holds
        yield from (block.to_ndarray() for block in planes.resample(frame))


def _check_complete(file: Any) -> None:
    """Whether a file holds the samples it announces: libsndfile takes fewer without a word."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    head = file.read(12)
    if not head:
        raise AudioError("the file is empty")
    if head[:4] in (b"RIFF", b"RIFX", b"RF64", b"FORM") and head[8:] in (b"WAVE", b"AIFF", b"AIFC"):
        end = _end_of_samples(file, size, "little" if head[:4] in (b"RIFF", b"RF64") else "big")
    elif head[:4] == b".snd":
        begin, length = int.from_bytes(head[4:8], "big"), int.from_bytes(head[8:], "big")
        end = 0 if length in STREAMED else begin + length
    elif head[:8] == b"riff.\x91\xcf\x11":  # W64
        file.seek(16)
        end = int.from_bytes(file.read(8), "little")
    else:
        end = 0
    if end > size:
        raise AudioError(f"ends after {size} bytes, expected {end} from its header: truncated")
    if head[:4] == b"OggS":
        file.seek(max(0, size - (1 << 16) - 512))  # more than a page
        page = file.read()
        page = page[max(0, page.rfind(b"OggS")) :]
        parts = page[27 : 27 + page[26]] if len(page) > 26 else b""
        if not parts or not page[5] & 4 or len(page) < 27 + len(parts) + sum(parts):
            raise AudioError("ends before its last page does: truncated")
    file.seek(0)


def _end_of_samples(file: Any, size: int, order: str) -> int:
    """Where the chunk of samples of a WAV or AIFF ends by its header; 0 where that does not say."""
    at, long = 12, 0
    for _ in range(MOST_CHUNKS):
        file.seek(at)
        head = file.read(8)
        if len(head) < 8 or at >= size:
            break
        length = int.from_bytes(head[4:], order)
        if head[:4] == b"ds64":  # the sizes of an RF64
            long = int.from_bytes(file.read(16)[8:], "little")
        if head[:4] in (b"data", b"SSND"):
            length = long if long and length == STREAMED[1] else length
            return 0 if length in STREAMED else at + 8 + length
        at += 8 + length + length % 2
    return 0


def _check_header(rate: int, channels: int, samples: int) -> None:
    if not RATES[0] <= rate <= RATES[1] or not 1 <= channels <= MOST_CHANNELS:
        raise AudioError(f"{channels} channels of {rate} samples a second, expected 1 to {MOST_CHANNELS} of {RATES[0]} "
                         f"to {RATES[1]}")  # fmt: skip
    if MOST_SECONDS * rate < samples < UNKNOWN:
        raise AudioError(f"a length of {samples / rate:.0f} s, expected at most {MOST_SECONDS}")


def _blocks(sound: Any) -> Iterator[np.ndarray]:
    """Blocks [channels, n] float32 of a sound file."""
    while len(block := sound.read(BLOCK, dtype="float32", always_2d=True)):
        yield block.T


def _one_channel_each(blocks: Iterator[np.ndarray], rate: int, samples: int, least: int) -> Iterator[np.ndarray]:
    """Blocks [channels, n] as [n]; AudioError where they are more than any sound may be, none, or fewer than `least` of
    the `samples` that the header announced."""
    total = 0
    for block in blocks:
        total += block.shape[1]
        if total > MOST_SECONDS * rate:
            raise AudioError(f"longer than {MOST_SECONDS} s")
        if not np.isfinite(block).all():
            raise AudioError("samples that are not finite")
        yield block.mean(0, dtype=np.float32)
    if not total:
        raise AudioError("holds no samples")
    if total < least:
        raise AudioError(
            f"ends after {total / rate:.2f} s ({total} samples), expected {samples / rate:.2f} s ({samples} samples) "
            "from its header: truncated"
        )
