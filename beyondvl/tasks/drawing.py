"""What queries draw from pictures, clips and sounds: the inputs of a Q-Former, and what it makes of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from ..errors import NoSoundError
from ..modalities import AUDIO, IMAGE, TEXT, VIDEO
from ..models.tower import prepared
from ..outputs import check_count
from ..processing.audio import load_audio
from ..processing.items import as_clips, clip_of, modality_of
from ..processing.motion import motion, moving
from ..similarity import unit_rows
from .base import EncodedImages, joined
from .clips import ClipsModel

__all__ = ["SEEN", "DrawingModel", "Read", "Texts"]

SEEN = (IMAGE.name, VIDEO.name, AUDIO.name)  # what queries draw from, in the order of their tokens
WINDOWS = 16  # of sounds that are worked on at once
Texts = dict[str, np.ndarray]


class Read(NamedTuple):
    """Texts after their tower, as formers read them."""

    rows: np.ndarray  # (B, L, hidden_size)
    mask: np.ndarray  # (B, L)
    embeds: np.ndarray  # (B, hidden_size) of unit norm

    def repeated(self, times: int) -> Read:
        """Each text so many times."""
        return Read(*(np.repeat(array, times, 0) for array in self))


def batches(items: Any, size: int) -> Iterator[Any]:
    """Slices of a list or an array, of so many each."""
    return (items[start : start + size] for start in range(0, len(items), size))


class DrawingModel(ClipsModel):
    """A Q-Former over pictures, clips and sounds, which may read an instruction."""

    @property
    def num_frames(self) -> int:
        """Frames of a clip."""
        return self.family.processing.kind.num_frames(self.config)

    @cached_property
    def _queries(self) -> int:
        return (self.tower("qformer").encoder.stem.type.shape[0] - 1) // len(SEEN)

    def _map_rows(self, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray, int]:
        """Of pictures the rows (B, n, hidden_size) that queries draw from, unit embeddings (B, D), and how many of the
        rows are of the map: one of classes may follow them."""
        names = [name for name in ("rows", "class_row") if name in self.tower(IMAGE.tower).outputs]
        seen = self.run_tower(IMAGE.tower, {"pixel_values": pixels}, ["unit_embeds", *names])
        rows = [seen[name].reshape(len(pixels), -1, self._width) for name in names]
        return np.concatenate(rows, 1), seen["unit_embeds"], rows[0].shape[1]

    def _encode_pixels(self, pixels: np.ndarray) -> EncodedImages:
        rows, embeds, _ = self._map_rows(pixels)
        contexts = self._rows_of(IMAGE.name, {"features": rows}, ["context"])["context"]
        return EncodedImages(tuple(contexts), embeds[:, None])

    @property
    def _width(self) -> int:
        return self.tower("cformer").encoder.hidden_size

    def _rows_of(self, modality: str, inputs: dict[str, np.ndarray], wanted: list[str]) -> dict[str, Any]:
        """What the queries of a modality draw from, made of its tower's rows."""
        tower = self.tower(f"{modality}_rows")
        if tower.encoder.stem.type:
            inputs["token_type_ids"] = np.tile(np.arange(inputs["features"].shape[1]), (len(inputs["features"]), 1))
        inputs["features"] = np.ascontiguousarray(inputs["features"])
        return tower.run(inputs, wanted, self.num_threads)

    def _encode_frames(self, pixels: np.ndarray) -> EncodedImages:
        """Clips of frames (B, frames, 3, H, W)."""
        array = prepared("pixel_values_videos", pixels)
        if array.ndim != 5 or array.shape[1] != self.num_frames:
            raise ValueError(
                f"pixel_values_videos: found shape {array.shape}, expected (B, {self.num_frames}, 3, height, width)"
            )
        flat = array.reshape(-1, *array.shape[2:])
        seen = self.run_tower(IMAGE.tower, {"pixel_values": flat}, ["unit_embeds", "grid"])
        cells = seen["grid"].reshape(len(array), self.num_frames, -1, self._width)
        embeds = unit_rows(seen["unit_embeds"].reshape(len(array), self.num_frames, -1).mean(1))
        contexts = self._rows_of(VIDEO.name, {"features": moving(cells)}, ["context"])["context"]
        ways = self.tower("motion").run({"features": motion(cells)[:, None]}, ["rows"], self.num_threads)["rows"]
        return EncodedImages(tuple(contexts), embeds[:, None], owner=self.identity, modality=VIDEO.name, rows=ways)

    def _encode_features(self, features: Any, mask: Any) -> EncodedImages:
        """Sounds of log-mel features (B, mels, frames), of which `mask` (B, frames) says what is sound."""
        array, pooling = prepared("input_features", features), self.config.integer("audio_pooling", 4, 1, 64)
        tower = self.tower(AUDIO.tower)
        _, window, mels = tower.program.info()["image"]
        if array.ndim != 3 or array.shape[1] != mels or not array.shape[2] or array.shape[2] % window:
            raise ValueError(
                f"input_features: found shape {array.shape}, expected (B, {mels}, a multiple of {window} frames)"
            )
        batch, count = len(array), array.shape[2] // window
        there = np.ones((batch, count * window), bool)
        if mask is not None:
            there = prepared("feature_attention_mask", mask) != 0
        if there.shape != (batch, count * window):
            raise ValueError(f"feature_attention_mask: found shape {there.shape}, expected {(batch, count * window)}")
        windows = array.reshape(batch, mels, count, window).transpose(0, 2, 1, 3).reshape(-1, mels, window)
        kept = there.reshape(-1, window).any(1)
        kept[::count] = True  # the first window of each sound, be it empty
        rows = np.concatenate([self._heard(windows[at], pooling) for at in batches(np.flatnonzero(kept), WINDOWS)])
        all_rows = np.zeros((batch * count, *rows.shape[1:]), np.float32)
        all_rows[kept] = rows
        places = all_rows.shape[1] * count
        row_mask = there.reshape(batch, places, -1).any(2)
        row_mask[:, 0] = True
        inputs = {"features": all_rows.reshape(batch, places, -1), "attention_mask": row_mask.astype(np.int64)}
        made = self._rows_of(AUDIO.name, inputs, ["context", "embeds"])
        sounds = EncodedImages(tuple(made["context"]), owner=self.identity, modality=AUDIO.name)
        embeds = unit_rows(made["embeds"] + self._drawn(sounds, batch, None, ["embeds"])["embeds"])
        return EncodedImages(sounds.contexts, embeds[:, None], None, 1, self.identity, AUDIO.name)

    def _heard(self, windows: np.ndarray, pooling: int) -> np.ndarray:
        """Rows (n, rows, columns) of windows (n, mels, frames): the states of all layers side by side, pooled."""
        tower = self.tower(AUDIO.tower)
        states = tower.run({"input_features": np.ascontiguousarray(windows)}, list(tower.states), self.num_threads)
        rows = np.concatenate(list(states.values()), 2)
        return rows.reshape(len(rows), -1, pooling, rows.shape[2]).mean(2)

    def encode_video(
        self, videos: Any = None, *, pixel_values_videos: Any = None, batch_size: int = 8
    ) -> EncodedImages:
        """Clips (see `load_video`; one or a list) after the picture tower, `num_frames` frames of each. A clip may be
        {"video": x, "start": seconds, "end": seconds}. Raises VideoError naming the file."""
        check_count("batch_size", batch_size)
        if pixel_values_videos is not None:
            return self._encode_frames(pixel_values_videos)
        clips = as_clips(videos)
        if not clips:
            raise ValueError("videos: the list is empty, expected at least one clip")
        sampled = [clip_of(clips, i) for i in range(len(clips))]
        return joined([
            self._encode_frames(np.concatenate([self.clip_pixels(video, **sampling) for video, sampling in part]))
            for part in batches(sampled, batch_size)
        ])  # fmt: skip

    def encode_audio(
        self, audio: Any = None, *, input_features: Any = None, feature_attention_mask: Any = None
    ) -> EncodedImages:
        """Sounds (see `load_audio`; one or a list) after the sound tower, window by window; those of one length
        together, so that a long one costs the others nothing. Raises AudioError."""
        if input_features is not None:
            return self._encode_features(input_features, feature_attention_mask)
        extractor = self.feature_extractor
        rate = extractor.sampling_rate
        made = [extractor([(sound, rate)], return_tensors="np") for sound in extractor.sounds(audio, None)]
        lengths = np.array([each["input_features"].shape[2] for each in made])
        order, parts = np.argsort(lengths, kind="stable"), []
        _, window, _ = self.tower(AUDIO.tower).program.info()["image"]
        for length in np.unique(lengths):
            for at in batches(order[lengths[order] == length], max(1, WINDOWS * window // int(length))):
                pair = (
                    np.concatenate([made[i][name] for i in at]) for name in ("input_features", "feature_attention_mask")
                )
                parts.append(self._encode_features(*pair))
        return joined(parts)[np.argsort(order)]

    def _encode_videos(self, indices: list[int], items: list[Any], batch_size: int) -> Iterator[tuple]:
        """Where `fps` or `num_frames` is asked for, the mean of so many frames; of `num_frames` it is the same."""
        for i in indices:
            other = set(clip_of(items, i)[1]) - {"start", "end"}
            for at, rows in super(ClipsModel if other else DrawingModel, self)._encode_videos([i], items, batch_size):
                yield at, unit_rows(rows)

    def _embed_sounds(self, sounds: list[Any]) -> np.ndarray:
        return self.encode_audio(sounds).embeds[:, 0]

    def encode_clip(self, video: Any) -> EncodedImages:
        """A clip with its pictures and its sound, where it has one: a file, or what `encode_video` takes, to which
        {"video": x, "audio": (samples, rate)} adds a sound. Raises VideoError, AudioError naming the file."""
        clip = dict(video) if isinstance(video, dict) else {"video": video}
        sound = clip.pop("audio", None)
        pictures = self.encode_video([clip])
        if sound is None and self.supports(AUDIO.name):
            sound = self._sound_of(clip["video"], clip.get("start"), clip.get("end"))
        return pictures if sound is None else replace(pictures, beside=(self.encode_audio([sound]),))

    def _sound_of(self, source: Any, start: float | None, end: float | None) -> tuple[np.ndarray, int] | None:
        """The sound of a file of a clip between two times, and its rate; None where it has none there."""
        if not isinstance(source, str | os.PathLike | bytes | bytearray | memoryview):
            return None
        if modality_of(source, SEEN) != VIDEO.name:  # an animated picture
            return None
        rate = self.feature_extractor.sampling_rate
        try:
            samples = load_audio(source, rate)
        except NoSoundError:
            return None
        first, last = (None if time is None else round(time * rate) for time in (start, end))
        samples = samples[first:last]
        return (samples, rate) if len(samples) else None

    def attend(self, images: Any, texts: str | list[str] | None = None) -> np.ndarray:
        """Where each query looked: (n, queries, height, width) float32 over the map of the picture tower, sum 1 each:
        how far what the query drew moves when that place is hidden from it (occlusion; Zeiler and Fergus, 2014).

        Args:
            images: pictures (as `load_image` takes them; one or a list).
            texts: what is asked of each, or of all; None: what is drawn for a caption.
        """
        items = self._items(images)
        listed = [texts] * len(items) if texts is None or isinstance(texts, str) else list(texts)
        if len(listed) != len(items):
            raise ValueError(
                f"texts: found {len(listed)} texts and {len(items)} pictures, expected as many, or one text"
            )
        pixels = self._pixels(items, list(range(len(items))))
        maps = [self._looked(pixels[i : i + 1], text) for i, text in enumerate(listed)]
        return np.stack(maps)

    def _looked(self, pixels: np.ndarray, text: str | None) -> np.ndarray:
        """(queries, height, width) of one picture."""
        rows, _, places = self._map_rows(pixels)
        hidden = np.ones((places + 1, rows.shape[1]), np.int64)
        hidden[np.arange(places), np.arange(places)] = 0  # the last sees everything
        inputs = {"features": np.repeat(rows, places + 1, 0), "attention_mask": hidden}
        seen = EncodedImages(tuple(self._rows_of(IMAGE.name, inputs, ["context"])["context"]))
        instruction = None
        if text is not None:
            read = self._read(self.texts(text, self.tower(TEXT.tower).max_positions))
            instruction = read.repeated(places + 1)
        drawn = self._drawn(seen, places + 1, instruction, ["last_hidden_state"])["last_hidden_state"]
        moved = np.linalg.norm(drawn[:-1, : self._queries] - drawn[-1:, : self._queries], axis=2).T
        side = int(places**0.5)  # a class token, where the tower has one, lies before the map
        moved = moved[:, places - side * side :]
        return (moved / np.maximum(moved.sum(1, keepdims=True), 1e-12)).reshape(-1, side, side).astype(np.float32)

    def _read(self, text: Texts) -> Read:
        outputs = self.tower(TEXT.tower).run(dict(text), ["rows", "unit_embeds"], self.num_threads)
        rows = outputs["rows"]
        return Read(rows, text.get("attention_mask", np.ones(rows.shape[:2], np.int64)), outputs["unit_embeds"])

    def _drawn(
        self, seen: EncodedImages, count: int, instruction: Read | None, wanted: list[str]
    ) -> dict[str, np.ndarray]:
        """What the Q-Former makes of `count` instructions about items, or of items alone: rows are the queries, then
        the instruction."""
        first, queries = SEEN.index(seen.modality) * self._queries, self._queries
        rows, mask = np.zeros((count, 0, self._width), np.float32), np.ones((count, 0), np.int64)
        if instruction is not None:
            rows, mask = instruction.rows, instruction.mask
        length = rows.shape[1]
        types = np.r_[first : first + queries, np.full(length, len(SEEN) * queries)]
        inputs: dict[str, Any] = {
            "features": np.concatenate([np.zeros((count, queries, self._width), np.float32), rows], 1),
            "token_type_ids": np.tile(types, (count, 1)),
            "attention_mask": np.concatenate([np.ones((count, queries), np.int64), mask], 1),
        }
        inputs |= seen.source(count, "input_ids")
        return self.tower("qformer").run(inputs, wanted, self.num_threads)
