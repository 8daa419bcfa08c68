"""From what a user hands over to the frames of a clip: files of video (PyAV, extra `[video]`), animated GIF and WebP
(Pillow), lists of pictures, arrays -> uint8 RGB [H, W, 3], one after the other.

Which frames: of the n frames between `start` and `end` those at floor(i n / num_frames), as transformers samples them;
with `fps`, num_frames is what that gives. In a file a frame is found by its time: the decoder jumps to the key frame
before it where that is further than it would have to decode. AVI keeps no times: with B-frames its frames are those of
neighbouring places.
"""

from __future__ import annotations

import errno
import io
import math
import os
import re
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from ..errors import ImageError, VideoError
from ..outputs import is_torch, to_numpy
from .loading import MAX_PIXELS, check_pixels, load_image, open_media, pil_to_rgb, read_file

__all__ = ["Sampling", "load_video", "video_frames"]

MOST_FRAMES = 4096  # of one clip, sampled
MOST_SECONDS = 7 * 24 * 3600
MOST_PIXELS = 1 << 31  # of all pictures of an animation, which must be read to learn their times
TICKS = 100.0  # a second of an animation: GIF's own unit
SEEK_AFTER = 2.0  # seconds ahead that are decoded rather than jumped over
# playlists and scripts name other files and hosts: none is opened
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf"
SLACK = 1.0  # seconds a file may end before what it announced
MOST_PACKETS = 4096  # read before they are decoded
FEW_PACKETS = 4  # that are decoded rather than dropped, which empties the decoder
NEAR_FRAMES = 3  # before the one asked for, all decoded: some packets show nothing


@dataclass(frozen=True)
class Sampling:
    """Which frames of a clip are taken; `fps` takes the place of `num_frames`. Times are in seconds. With `most` frames
    of `fps` lie 1 / fps apart, and where they are more as many of them evenly.

    Raises ValueError naming a value that makes no sense.
    """

    num_frames: int = 8
    fps: float | None = None
    start: float = 0.0
    end: float | None = None
    most: int | None = None

    @classmethod
    def of(cls, settings: dict[str, Any]) -> Sampling:
        """From settings by name; ValueError names one that is unknown."""
        known = [field.name for field in fields(cls)]
        unknown = sorted(set(settings) - set(known))
        if unknown:
            raise ValueError(f"sampling of frames: found {', '.join(unknown)}, expected some of {', '.join(known)}")
        return cls(**settings)

    def __post_init__(self):
        if type(self.num_frames) is not int or not 1 <= self.num_frames <= MOST_FRAMES:
            raise ValueError(f"num_frames: found {self.num_frames!r}, expected a whole number from 1 to {MOST_FRAMES}")
        if self.most is not None and (type(self.most) is not int or not 1 <= self.most <= MOST_FRAMES):
            raise ValueError(f"most: found {self.most!r} frames, expected a whole number from 1 to {MOST_FRAMES}")
        for name, low in (("fps", 0), ("start", 0), ("end", self.start)):
            value = getattr(self, name)
            if value is None and name != "start":
                continue
            number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
            if not number or value < low or (name != "start" and value == low):
                raise ValueError(f"{name}: found {value!r}, expected seconds above {low}" if name != "fps" else
                                 f"fps: found {value!r}, expected frames a second, above 0")  # fmt: skip

    def indices(self, total: int, rate: float | None) -> list[int]:
        """Places of the frames among `total`, `rate` a second (None: the clip has no times)."""
        if rate is None and (self.fps is not None or self.start or self.end is not None):
            raise ValueError("fps, start, end: given for frames without times, expected num_frames alone")
        first, last = 0, total
        if rate is not None:
            first = math.ceil(self.start * rate)
            last = total if self.end is None else min(total, math.ceil(self.end * rate))
        if first >= last:
            raise ValueError(f"start: found {self.start:g} s, expected less than the clip's {total / (rate or 1):g} s")
        count = self.num_frames
        if self.fps is not None:
            count = max(1, math.floor((last - first) / rate * self.fps))
            if self.most is not None:
                at = range(count) if count <= self.most else np.linspace(0, count - 1, self.most, dtype=int)
                return [min(last - 1, first + int(i * rate / self.fps)) for i in at]
            if count > MOST_FRAMES:
                raise ValueError(f"fps: found {self.fps:g}, which takes {count} frames, expected at most {MOST_FRAMES}")
        return [first + i * (last - first) // count for i in range(count)]


def load_video(source: Any, **sampling: Any) -> np.ndarray:
    """Frames of a clip, uint8 RGB [T, H, W, 3].

    `source`: a path or bytes of a video file, an animated GIF or WebP; a list of pictures (see `load_image`), an array
    or a torch tensor [T, H, W, 3] or [T, 3, H, W]. `sampling`: see Sampling: num_frames (default 8), fps, start, end.

    Raises VideoError (a ValueError) that names the file when it cannot be read, ends early, announces an absurd size or
    length, or holds no pictures; ValueError where the sampling does not fit; ImportError where PyAV is missing.
    """
    return np.stack(list(video_frames(source, Sampling.of(sampling))))


def video_frames(source: Any, sampling: Sampling, num_threads: int = 0) -> Iterator[np.ndarray]:
    """As `load_video`, frame by frame, so that a long clip is never in memory at once. `num_threads`: of the decoder;
    0: as many as it likes."""
    if is_torch(source):
        source = to_numpy(source)
    if isinstance(source, np.ndarray):
        if source.ndim != 4 or 0 in source.shape:
            raise VideoError(f"array of shape {source.shape}: expected [T, H, W, 3] or [T, 3, H, W]")
        source = list(source)
    if isinstance(source, list | tuple):
        yield from _from_pictures(source, sampling)
        return
    if not isinstance(source, str | os.PathLike | bytes | bytearray | memoryview):
        raise VideoError(
            f"found {type(source).__name__}, expected a path, bytes, a list of pictures, an array or a torch tensor"
        )
    path = isinstance(source, str | os.PathLike)
    name = os.fspath(source) if path else "video bytes"
    try:
        head = _head(source) if path else bytes(source[:16])
        if not head:
            raise ValueError("the file is empty")
        if head[:4] == b"GIF8" or (head[:4] == b"RIFF" and head[8:12] == b"WEBP"):
            yield from _from_animation(read_file(source) if path else bytes(source), sampling)
        else:
            yield from _from_file(os.fspath(source) if path else io.BytesIO(source), sampling, num_threads)
    except VideoError:
        raise
    except ImageError as error:
        raise VideoError(str(error)) from error
    except (ValueError, OSError, SyntaxError, EOFError, OverflowError) as error:
        raise VideoError(f"{name}: {getattr(error, 'strerror', None) or error}") from error


def _head(path: str | os.PathLike) -> bytes:
    with open_media(path, "clip") as file:
        return file.read(16)


def _from_pictures(pictures: Any, sampling: Sampling) -> Iterator[np.ndarray]:
    if not pictures:
        raise VideoError("the list of frames is empty, expected at least one")
    shape = None
    for index in sampling.indices(len(pictures), None):
        try:
            frame = load_image(pictures[index])
        except ImageError as error:
            raise VideoError(f"frame {index}: {error}") from error
        if shape not in (None, frame.shape):
            raise VideoError(f"frame {index}: found {frame.shape[1]} x {frame.shape[0]} pixels, expected those of the "
                             f"first, {shape[1]} x {shape[0]}")  # fmt: skip
        shape = frame.shape
        yield frame


def _from_animation(data: bytes, sampling: Sampling) -> Iterator[np.ndarray]:
    """Pictures of a GIF or WebP at times that lie evenly, each as long as it stays."""
    from PIL import Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(io.BytesIO(data), formats=("GIF", "WEBP"))
        count = getattr(image, "n_frames", 1)
        if count * image.height * image.width > MOST_PIXELS:
            raise ValueError(
                f"{count} pictures of {image.width} x {image.height} pixels, expected {MOST_PIXELS} in all"
            )
        ends, at = [], 0.0
        for index in range(count):
            image.seek(index)
            image.load()
            at += max(image.info.get("duration") or 0, 10) / 1000
            ends.append(at)
        for tick in sampling.indices(round(at * TICKS), TICKS):
            image.seek(min(int(np.searchsorted(ends, (tick + 0.5) / TICKS)), count - 1))
            yield pil_to_rgb(image.convert("RGBA"))[:, :, :3]
    except (GeneratorExit, ValueError, MemoryError):
        raise
    except Exception as error:  # Pillow raises what its readers meet: IndexError, struct.error, ...
        raise ValueError(f"not an animation that can be read: {error}") from error


@contextmanager
def open_container(source: Any, formats: str = FORMATS) -> Iterator[Any]:
    """A file that FFmpeg reads, of one of these formats; what goes wrong with it is a ValueError."""
    try:
        import av
    except ImportError as error:
        raise ImportError("to read clips, M4A and AAC install PyAV: pip install 'beyondvl[video]'") from error
    allowed = {"format_whitelist": formats, "protocol_whitelist": "file"}
    try:
        container = av.open(source, options=allowed, metadata_errors="replace")
    except av.FFmpegError as error:
        refused = error.errno == errno.EINVAL  # by the lists
        raise ValueError(f"not a format among {formats}" if refused else error.strerror) from error
    try:
        with container:
            yield container
    except av.FFmpegError as error:
        raise ValueError(error.strerror) from error


def _from_file(source: Any, sampling: Sampling, num_threads: int) -> Iterator[np.ndarray]:
    with open_container(source) as container:
        if not container.streams.video:
            raise ValueError("no video stream")
        yield from _Reader(container, num_threads).frames(sampling)


class _Reader:
    """The first video stream of a container, read by time.

    What is shown at a time is the last frame that has begun. Packets are read before they are decoded, so that it is
    known which frame that is: packets before the key frame it stands on are dropped, and of the others those on which
    no frame stands are left out. `plain`: where packets state no times, or the frame they promise does not come, all of
    them are decoded. `ahead` is how far a time must lie ahead to be jumped to: more than the distance between key
    frames, once that is known.
    """

    def __init__(self, container: Any, num_threads: int):
        self.container, self.stream = container, container.streams.video[0]
        context = self.stream.codec_context
        if context is None:
            raise ValueError("a video stream of a codec that is not known here")
        context.thread_type, context.thread_count = "AUTO", num_threads
        check_pixels(context.height, context.width)
        context.options = {"max_pixels": str(MAX_PIXELS)}  # the stream itself may say otherwise
        self.rate = float(self.stream.average_rate or self.stream.guessed_rate or self.stream.base_rate or 0)
        if not 0 < self.rate <= 1000:
            raise ValueError(f"{self.rate:g} frames a second, expected above 0 and at most 1000")
        self.begin = float((self.stream.start_time or 0) * self.stream.time_base)
        self.ahead, self.plain = SEEK_AFTER, False

    def frames(self, sampling: Sampling) -> Iterator[np.ndarray]:
        places = sampling.indices(max(1, round(self._seconds() * self.rate)), self.rate)
        self._restart()
        shown = pixels = None
        for place in places:
            self._go(self.begin + place / self.rate)
            if self.current is not shown:
                shape, shown = None if pixels is None else pixels.shape, self.current
                pixels = _upright(shown)
                if shape not in (None, pixels.shape):
                    raise ValueError(f"{pixels.shape[1]} x {pixels.shape[0]} pixels at {shown.time:.2f} s, expected "
                                     f"{shape[1]} x {shape[0]} as before")  # fmt: skip
            yield pixels

    def _seconds(self) -> float:
        """Length of the stream: by its header, else by the times of its packets."""
        stream = self.stream
        if stream.duration is not None:
            seconds = float(stream.duration * stream.time_base)
        elif clock := re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", "")):
            hours, minutes, rest = (float(part) for part in clock.groups())
            seconds = 3600 * hours + 60 * minutes + rest - self.begin
        else:
            times = [float(p.pts * stream.time_base) for p in self.container.demux(stream) if p.pts is not None]
            seconds = max(times) - min(times) + 1 / self.rate if times else 0.0
            self.container.seek(0)
        if self.container.duration is not None and self.container.duration > 1e6 * MOST_SECONDS:
            seconds = self.container.duration / 1e6
        if not 0 < seconds <= MOST_SECONDS:
            raise ValueError(f"a length of {seconds:g} s, expected above 0 and at most {MOST_SECONDS}")
        return seconds

    def _restart(self) -> None:
        self.demuxed = self.container.demux(self.stream)
        self.packets: deque[Any] = deque()  # read, not decoded
        self.decoded: deque[Any] = deque()  # frames after the current one
        self.places: list[int] = []  # times of packets that may still be shown
        self.read = -math.inf  # what follows is decoded, and shown, no sooner
        self.current = None

    def _go(self, time: float) -> None:
        """Makes `current` the frame shown at `time`, which is not before the last one asked for."""
        slack = min(0.5 / self.rate, 0.002)  # containers round times
        here = self.current.time if self.current else self.begin
        if time - here > self.ahead:
            self._jump(time, slack, here)
        promised = self._promised(time + slack)
        self._show(time + slack, promised)
        if promised is not None and (self.current is None or self.current.pts != promised):
            self.plain = True
            self._jump(here, slack, -math.inf)
            self._show(time + slack, None)
        if self.current is None:
            raise ValueError(f"ends before its first frame, expected one at {time:.2f} s")
        stays = float((getattr(self.current, "duration", None) or 0) * self.stream.time_base)
        more = self.decoded or any(packet.size for packet in self.packets)
        last = not more and all(place <= self.current.pts for place in self.places)
        if last and time > self.current.time + max(stays, 1 / self.rate) + SLACK:
            raise ValueError(f"ends after {self.current.time:.2f} s, expected a frame at {time:.2f} s")

    def _jump(self, time: float, slack: float, here: float) -> None:
        """To the key frame before `time`; further back where a container lands late."""
        back = 0.0
        while True:
            target = max(time - back, self.begin)
            if target > self.begin:
                self.container.seek(int(target / self.stream.time_base), stream=self.stream)
            else:
                self.container.seek(0)
            self._restart()
            while not self.decoded and self._decode(None):
                pass
            first = self.decoded[0].time if self.decoded else math.inf
            if first <= time + slack or target <= self.begin:
                break
            back = max(1.0, 2 * back)
        if first <= here:  # no key frame in between
            self.ahead = max(self.ahead, 2 * (time - first))

    def _read(self) -> Any:
        """The next packet, or None behind the last one, which is empty: it makes the decoder give what it holds."""
        packet = next(self.demuxed, None)
        if packet is not None and packet.size:
            self.plain = self.plain or packet.pts is None or packet.dts is None
            if not self.plain:
                self.read = packet.dts
                self.places.append(packet.pts)
        return packet

    def _promised(self, limit: float) -> int | None:
        """Reads packets until the last frame that begins by `limit` is among them; its time, None where that is not
        known."""
        ticks = math.floor(limit / self.stream.time_base)
        while not self.plain and self.read <= ticks and len(self.packets) < MOST_PACKETS:
            packet = self._read()
            if packet is None:
                break
            self.packets.append(packet)
            stands_alone = packet.size and not self.plain and packet.is_keyframe and packet.pts <= ticks
            if stands_alone and len(self.packets) > FEW_PACKETS:
                self.stream.codec_context.flush_buffers()
                self.packets = deque([packet])
                self.decoded.clear()
        if self.plain or len(self.packets) >= MOST_PACKETS:
            return None
        promised = max((place for place in self.places if place <= ticks), default=None)
        self.places = [place for place in self.places if promised is None or place >= promised]
        return promised

    def _show(self, limit: float, promised: int | None) -> None:
        """Decodes until the current frame is the one promised, or the next one begins after `limit`."""
        while True:
            while self.decoded and (self.current is None or self.decoded[0].time <= limit):
                self.current = self.decoded.popleft()
            there = promised is not None and self.current is not None and self.current.pts >= promised
            if there or self.decoded or not self._decode(promised):
                return

    def _decode(self, promised: int | None) -> bool:
        """Decodes a packet; False where there is none. What lies well before the promised frame need not be shown."""
        packet = self.packets.popleft() if self.packets else self._read()
        if packet is None:
            return False
        before = promised is not None and packet.pts is not None and promised - packet.pts
        idle = before and before * self.stream.time_base * self.rate > NEAR_FRAMES
        self.stream.codec_context.skip_frame = "NONREF" if idle else "DEFAULT"
        self.decoded.extend(frame for frame in packet.decode() if frame.time is not None)
        return True


def _upright(frame: Any) -> np.ndarray:
    pixels = frame.to_ndarray(format="rgb24")
    turns = round((getattr(frame, "rotation", 0) or 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels
