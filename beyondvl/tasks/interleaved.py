"""One transformer over texts in which pictures, clips and sounds stand, as many rows of each as their tower makes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np

from ..modalities import AUDIO, IMAGE, INPUTS, TEXT
from ..models.model import PreTrainedModel, check_neutral
from ..models.tower import prepared
from ..outcomes import Outcomes
from ..outputs import ModelOutput, from_numpy, kind_of
from ..processing.items import clip_of
from ..spec import PoolPatches
from .base import text_inputs

__all__ = ["InterleavedModel"]

PICTURES_AT_ONCE = 8  # each is thousands of patches
# what a call gives of each modality, by the names that the towers give it
GIVEN = {
    "image": {"pixel_values": "pixel_values", "image_position_ids": "image_position_ids"},
    "video": {"pixel_values_videos": "pixel_values", "video_position_ids": "image_position_ids"},
    "audio": {"input_features": "input_features", "input_features_mask": "input_features_mask"},
}


class InterleavedModel(PreTrainedModel):
    """Texts, pictures, clips, sounds, and texts in which these stand, into one space: rows of each take the place of as
    many placeholders, and the text's transformer reads all of it."""

    @cached_property
    def placeholders(self) -> dict[str, int]:
        """The ids that stand for rows of each modality: "image", "video", "audio"."""
        return self.spec.head.tokens(self.config)

    def __call__(self, *args: Any, **inputs: Any) -> ModelOutput:
        """`last_hidden_state` (B, L, D) of `input_ids`, `attention_mask` (B, L); with `pixel_values` (n, N, numbers of
        a patch) and `image_position_ids` (n, N, 2) also `image_hidden_states` (rows of all pictures, hidden_size), with
        `input_features` (n, frames, mels) and `input_features_mask` `audio_hidden_states`, as transformers'
        EmbeddingGemma2Model has them; `pixel_values_videos`, `video_position_ids` and `num_frames_per_video` are of
        clips. `output_hidden_states=True`: as of every model.

        Raises ValueError where texts have other numbers of placeholders than there are rows.
        """
        inputs = self._in_order(args, inputs)
        asked = inputs.pop("output_hidden_states", None)
        check_neutral({name: value for name, value in inputs.items() if name not in INPUTS})
        given = {name: value for name, value in inputs.items() if value is not None}
        kind, states = kind_of(*given.values()), self._states(TEXT.tower, asked)
        text = text_inputs(given.pop("input_ids", None), given.pop("attention_mask", None))
        frames = given.pop("num_frames_per_video", None)
        if frames is not None and int(np.sum(frames)) != len(given.get("pixel_values_videos", ())):
            raise ValueError(
                f"num_frames_per_video: found {int(np.sum(frames))} in all, expected "
                f"{len(given.get('pixel_values_videos', ()))}, as many as pixel_values_videos"
            )
        rows = {modality: np.concatenate(self._rows_of(modality, given)) for modality, names in GIVEN.items()
                if any(name in given for name in names)}  # fmt: skip
        if unread := [name for name in given if not any(name in names for names in GIVEN.values())]:
            raise ValueError(f"{unread[0]}: given to a model that does not take it, expected none")
        arrays = self._read(text, rows, ["last_hidden_state", *states])
        output = self._states_of(TEXT.tower, arrays, kind, bool(asked))
        for modality in ("image", "audio"):
            if modality in rows:
                output[f"{modality}_hidden_states"] = from_numpy(rows[modality], kind)
        return output

    def _rows_of(self, modality: str, given: dict[str, Any], num_threads: int | None = None) -> list[np.ndarray]:
        """Rows (its own number, hidden_size) of each picture, frame or sound."""
        arrays = {}
        for name, own in GIVEN[modality].items():
            if given.get(name) is None:
                raise ValueError(f"{name}: not given, expected it beside {' and '.join(GIVEN[modality])}")
            arrays[own] = prepared(name, given[name])
        tower = self.tower(AUDIO.tower if modality == "audio" else IMAGE.tower)
        rows = tower.run(arrays, ["features"], num_threads or self.num_threads)["features"]
        if modality == "audio":
            counts = -(-(arrays["input_features_mask"] != 0).sum(1) // self._frames_a_row)
        else:
            counts = (arrays["image_position_ids"][..., 0] >= 0).sum(1) // self._square
        return [row[:count] for row, count in zip(rows, counts, strict=True)]

    @cached_property
    def _square(self) -> int:
        """Patches of one row."""
        return next(s.what.side for s in self.tower(IMAGE.tower).encoder.steps if isinstance(s.what, PoolPatches)) ** 2

    @property
    def _frames_a_row(self) -> int:
        """Frames of a sound that make one row."""
        return self.family.processing.kind.frames_a_row

    def get_image_features(self, pixel_values: Any, image_position_ids: Any = None, **kwargs: Any) -> Any:
        """`pooler_output`: a list of the rows (its squares, hidden_size) of each picture, as they stand in a text."""
        check_neutral(kwargs)
        rows = self._rows_of("image", {"pixel_values": pixel_values, "image_position_ids": image_position_ids})
        return ModelOutput(pooler_output=[from_numpy(row, kind_of(pixel_values)) for row in rows])

    def get_video_features(
        self, pixel_values_videos: Any, video_position_ids: Any = None, num_frames_per_video: Any = None, **kwargs: Any
    ) -> Any:
        """As `get_image_features`: the rows of all frames of each clip."""
        check_neutral(kwargs)
        given = {"pixel_values_videos": pixel_values_videos, "video_position_ids": video_position_ids}
        rows, frames = self._rows_of("video", given), prepared("num_frames_per_video", num_frames_per_video)
        if frames.sum() != len(rows) or (frames < 1).any():
            raise ValueError(f"num_frames_per_video: found {frames.tolist()}, expected {len(rows)} frames in all")
        ends = np.cumsum(frames)
        clips = [np.concatenate(rows[end - n : end]) for n, end in zip(frames, ends, strict=True)]
        return ModelOutput(pooler_output=[from_numpy(clip, kind_of(pixel_values_videos)) for clip in clips])

    def get_audio_features(self, input_features: Any, input_features_mask: Any = None, **kwargs: Any) -> Any:
        """`pooler_output` (B, T, hidden_size), the rows of each sound, zeros after its own, and `attention_mask` (B, T)
        of which those are, True."""
        check_neutral(kwargs)
        rows = self._rows_of("audio", {"input_features": input_features, "input_features_mask": input_features_mask})
        out = np.zeros((len(rows), max(map(len, rows)), rows[0].shape[1]), np.float32)
        for one, own in zip(out, rows, strict=True):
            one[: len(own)] = own
        mask, kind = np.arange(out.shape[1]) < np.array([[len(own)] for own in rows]), kind_of(input_features)
        return ModelOutput(pooler_output=from_numpy(out, kind), attention_mask=from_numpy(mask, kind))

    def _read(
        self, text: dict[str, np.ndarray], rows: dict[str, np.ndarray], wanted: list[str],
        threads: int | None = None,
    ) -> dict[str, np.ndarray]:  # fmt: skip
        """Outputs of the text's transformer. ValueError where placeholders are not as many as rows of their kind."""
        ids, one = text["input_ids"], self.placeholders["image"]
        at = {name: ids == token for name, token in self.placeholders.items()}
        for name, places in at.items():
            count = len(rows.get(name, ()))
            if places.sum() != count:
                raise ValueError(
                    f"input_ids: found {places.sum()} placeholders of {name} (id {self.placeholders[name]}), expected "
                    f"{count}, one for each row of what was given"
                )
        if rows:
            order = np.concatenate([np.flatnonzero(at[name].reshape(-1)) for name in rows])
            features = np.ascontiguousarray(np.concatenate([*rows.values()])[np.argsort(order)])
            text = text | {"input_ids": np.where(np.logical_or.reduce([*at.values()]), one, ids), "features": features}
        return self.tower(TEXT.tower).run(text, wanted, threads or self.num_threads)

    def _embed_alone(self, modality: str, items: list[list[np.ndarray]], num_threads: int | None = None) -> np.ndarray:
        """Embeddings of items that are pictures, frames or sounds alone, one or several, of some rows each."""
        name, block = self._embedding(TEXT.tower), self.processor.block
        texts = self.tokenizer(["".join(block(modality, len(rows)) for rows in item) for item in items])["input_ids"]
        by_length: dict[int, list[int]] = {}
        for i, text in enumerate(texts):
            by_length.setdefault(len(text), []).append(i)
        out: list[Any] = [None] * len(items)
        for places in by_length.values():
            rows = {modality: np.concatenate([rows for i in places for rows in items[i]])}
            text = {"input_ids": np.array([texts[i] for i in places], np.int64)}
            for i, row in zip(places, self._read(text, rows, [name], num_threads)[name], strict=True):
                out[i] = row
        return np.stack(out)

    def _encode_pictures(
        self, indices: list[int], items: list[Any], batch_size: int, outcomes: Outcomes
    ) -> Iterable[tuple]:
        yield from super()._encode_pictures(indices, items, min(batch_size, PICTURES_AT_ONCE), outcomes)

    def _embed(self, tower: str, inputs: dict[str, Any], num_threads: int | None = None) -> np.ndarray:
        if tower == TEXT.tower:  # what stands for nothing is padding, as in transformers
            pad = self.config.section("text_config").integer("pad_token_id", 0, 0, 1 << 22)
            ids = inputs["input_ids"]
            inputs = inputs | {"input_ids": np.where(np.isin(ids, [*self.placeholders.values()]), pad, ids)}
            return super()._embed(tower, inputs, num_threads)
        modality = "audio" if tower == AUDIO.tower else "image"
        rows = self._rows_of(modality, inputs, num_threads)
        return self._embed_alone(modality, [[each] for each in rows], num_threads)

    def _encode_videos(self, indices: list[int], items: list[Any], batch_size: int) -> Iterable[tuple]:
        """Clips in the model's own way: their frames one after the other in one text."""
        self.tower(IMAGE.tower), self.image_processor
        for i in indices:
            video, sampling = clip_of(items, i)
            rows = []
            for made in self.processor.clip_inputs(video, sampling, PICTURES_AT_ONCE):
                rows += self._rows_of("image", {name: made[name] for name in GIVEN["image"]})
            yield [i], self._embed_alone("video", [rows])
