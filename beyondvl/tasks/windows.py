"""Speech of any length (Radford et al., 2023): window by window, each from where the segments of the one before end; or
in overlapping pieces that are joined where their texts agree."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..outputs import check_count
from ..processing.audio import MOST_SECONDS
from .fallback import Decoded

__all__ = ["Segment", "Windows", "check_transcription", "cut", "joined"]

Segment = tuple[float, float | None, list[int]]  # begin, end, tokens
WHOLE = {"truncation": False, "padding": "longest"}  # features of a sound of any length


@dataclass
class Track:
    """A sound that is decoded window by window."""

    sound: np.ndarray
    said: list[int]  # tokens so far with their times, and the caller's prompt, for the next window to go on from
    steady: bool = True  # whether it may
    features: np.ndarray | None = None  # (1, mels, frames)
    frames: int = 0
    at: int = 0  # where the next window begins
    language: list[int] = field(default_factory=list)  # its token, where there are languages
    segments: list[Segment] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return 0 < self.frames <= self.at


class Windows:
    """How a TranscribingModel decodes a call's sounds, several at a time."""

    def __init__(self, model: Any, task: str | None, settings: dict[str, Any], batch_size: int):
        self.model, self.task, self.settings, self.batch_size = model, task, dict(settings), batch_size
        self.fallback, self.prompt = model.take_options(self.settings)
        self.size = model.tower("audio").program.info()["image"][1]
        extract = model.feature_extractor
        self.second = extract.sampling_rate / extract.hop_length  # frames of one

    def pieces(self, sounds: list[np.ndarray], language: str | None) -> list[list[int]]:
        """Tokens of sounds that fit into one window each."""
        rows: list[list[int]] = []
        for start in range(0, len(sounds), self.batch_size):
            batch = sounds[start : start + self.batch_size]
            contexts = self.model.contexts(self.features(batch))
            languages = self.model.language_tokens(contexts, language)
            rows += [row.tokens for row in self._decode(contexts, languages, False, [self.prompt] * len(batch))]
        return rows

    def segments(self, sounds: list[np.ndarray], language: str | None) -> list[list[Segment]]:
        """Segments of sounds of any length."""
        first = self.fallback.prompt_condition_type == "first-segment"
        begun = [token for token in self.prompt if token != self.model.before_token] if self.prompt and first else []
        tracks = [Track(sound, list(begun)) for sound in sounds]
        while waiting := [track for track in tracks if not track.done][: self.batch_size]:
            contexts = self.model.contexts(np.concatenate([self._window(track) for track in waiting]))
            new = [i for i, track in enumerate(waiting) if track.at == 0]
            tokens = self.model.language_tokens([contexts[i] for i in new], language) if new else []
            for i, token in zip(new, tokens, strict=bool(tokens)):
                waiting[i].language = [token]
            languages = [token for track in waiting for token in track.language]
            rows = self._decode(contexts, languages, True, [self._before(track) for track in waiting])
            for track, row in zip(waiting, rows, strict=True):
                self._take(track, row, min(self.size, track.frames - track.at))
        return [track.segments for track in tracks]

    def features(self, sounds: list[np.ndarray], **how: Any) -> np.ndarray:
        """(B, mels, frames) of sounds."""
        extract = self.model.feature_extractor
        return extract(sounds, sampling_rate=extract.sampling_rate, return_tensors="np", **how).input_features

    def _decode(
        self, contexts: list[Any], languages: list[int], timestamps: bool, before: list[list[int]]
    ) -> list[Decoded]:
        return self.model.decode(contexts, languages, self.task, timestamps, self.settings, self.fallback, before)

    def _before(self, track: Track) -> list[int]:
        """What stands before a window's start: the end of what was said, or the caller's prompt."""
        if not (self.fallback.condition_on_prev_tokens and track.steady and track.said):
            return self.prompt
        whole = self.prompt and self.fallback.prompt_condition_type != "first-segment"
        return [*(self.prompt if whole else [self.model.before_token]), *track.said[-self.model.most_before :]]

    def _window(self, track: Track) -> np.ndarray:
        """The next frames (1, mels, size): those of the whole sound, whose loudest one counts for all."""
        if track.features is None:
            extract = self.model.feature_extractor
            long = len(track.sound) > extract.n_samples
            track.features = self.features([track.sound], **(WHOLE if long else {}))
            track.frames = track.features.shape[2] if long else -(-len(track.sound) // extract.hop_length)
        window = track.features[:, :, track.at : track.at + self.size]
        return np.pad(window, ((0, 0), (0, 0), (0, self.size - window.shape[2])))

    def _take(self, track: Track, row: Decoded, here: int) -> None:
        """Adds what a window of `here` frames became, and moves on to where the next one begins."""
        first, tokens, step = self.model.first_timestamp, row.tokens, here
        times = [token >= first for token in tokens]
        pairs = [i for i in range(1, len(tokens)) if times[i] and times[i - 1]]
        if pairs and not (times[-1] and not times[-2]):  # what follows the last pair is decoded again
            tokens = tokens[: pairs[-1]]
            step = round((tokens[-1] - first) * self.model.speech.precision * self.second)
        last = round((track.at + here) / self.second, 2)
        for start, end, words in self._split(tokens, track.at / self.second):
            track.segments.append((start, last if end is None else end, words))
        track.said, track.steady = track.said + tokens, row.steady
        track.at += step if step > 0 else here
        if track.done:
            track.features = None

    def _split(self, tokens: list[int], offset: float) -> list[Segment]:
        """(start, end, tokens) of what lies between two times; the last one may have no end."""
        first = self.model.first_timestamp
        segments, start, words = [], None, []
        for token in tokens:
            if token < first:
                words.append(token)
                continue
            time = round(offset + (token - first) * self.model.speech.precision, 2)
            if start is not None and words:
                segments.append((start, time, words))
                start, words = None, []
            else:
                start = time
        if words:
            segments.append((offset if start is None else start, None, words))
        return segments


def check_transcription(
    timestamps: Any, length: Any, stride: Any, batch_size: Any, settings: dict[str, Any], most: float
) -> None:
    """ValueError for what `transcribe` cannot do."""
    if timestamps not in (True, False):
        raise ValueError(f"return_timestamps: found {timestamps!r}, expected True or False: of segments, not words")
    check_count("batch_size", batch_size)
    if settings.get("num_return_sequences", 1) not in (1, None):
        raise ValueError(f"num_return_sequences: found {settings['num_return_sequences']}, expected 1 here")
    if length in (None, 0):
        return
    if timestamps and length != most:
        raise ValueError(f"chunk_length_s: found {length!r} and return_timestamps, expected none, or {most:g}: times "
                         "are told of windows of that length")  # fmt: skip
    seconds = (length, *strides(length, stride))
    if not all(
        isinstance(n, int | float) and not isinstance(n, bool) and -MOST_SECONDS <= n <= MOST_SECONDS for n in seconds
    ) or not (0 < length <= most and min(seconds) >= 0 and seconds[1] + seconds[2] < length):
        raise ValueError(f"chunk_length_s, stride_length_s: found {length!r}, {stride!r}, expected at most {most:g} s, "
                         "and both sides together below that")  # fmt: skip


def strides(length: Any, stride: Any) -> tuple[Any, Any]:
    """Seconds that a piece shares with the one before and the one after."""
    if stride is None and isinstance(length, int | float) and abs(length) <= MOST_SECONDS:
        return length / 6, length / 6
    return tuple(stride) if isinstance(stride, list | tuple) and len(stride) == 2 else (stride, stride)


def cut(sound: np.ndarray, length: float, stride: Any, rate: int) -> Iterator[np.ndarray]:
    """Pieces of `length` seconds, each beginning where the one before ends, less what they share."""
    size, before, after = (round(seconds * rate) for seconds in (length, *strides(length, stride)))
    for start in range(0, len(sound), max(1, size - before - after)):
        if start == 0 or len(sound) - start > before:
            yield sound[start : start + size]
        if start + size >= len(sound):
            return


def joined(parts: list[list[int]]) -> list[int]:
    """Tokens of overlapping pieces as one text: neighbours are laid over each other where most tokens agree for the
    length of the overlap, and meet in its middle (transformers' rule)."""
    whole, left = [], parts[0]
    for right in parts[1:]:
        best, meet = 0.0, (len(left), 0)
        for shift in range(1, len(left) + len(right)):
            begin, end = max(0, len(left) - shift), min(len(left), len(left) + len(right) - shift)
            other = max(0, shift - len(left))
            same = sum(a == b for a, b in zip(left[begin:end], right[other:shift], strict=False))
            score = same / shift + shift / 10000
            if same > 1 and score > best:
                best, meet = score, ((begin + end) // 2, (other + min(len(right), shift)) // 2)
        whole += left[: meet[0]]
        left = right[meet[1] :]
    return whole + left
