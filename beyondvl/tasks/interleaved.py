"""One transformer over texts in which pictures and clips stand, as many rows of each as their tower makes."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import Any

import numpy as np

from ..modalities import IMAGE, INPUTS, TEXT
from ..models.model import PreTrainedModel, check_neutral
from ..models.tower import prepared
from ..outcomes import Outcomes
from ..outputs import ModelOutput, from_numpy, kind_of
from ..processing.items import clip_of
from ..spec import PoolPatches
from .base import text_inputs

__all__ = ["InterleavedModel"]

PICTURES_AT_ONCE = 8  # each is thousands of patches
PIXELS = {"image": ("pixel_values", "image_position_ids"), "video": ("pixel_values_videos", "video_position_ids")}


class InterleavedModel(PreTrainedModel):
    """Texts, pictures, clips, and texts in which these stand, into one space: rows of pictures and of frames take the
    place of as many placeholders, and the text's transformer reads all of it."""

    @cached_property
    def placeholders(self) -> dict[str, int]:
        """The ids that stand for rows of each modality: "image", "video"."""
        return self.spec.head.tokens(self.config)

    def __call__(self, *args: Any, **inputs: Any) -> ModelOutput:
        """`last_hidden_state` (B, L, D) of `input_ids`, `attention_mask` (B, L); with `pixel_values` (n, N, numbers of
        a patch) and `image_position_ids` (n, N, 2) also `image_hidden_states` (rows of all pictures, hidden_size), as
        transformers' EmbeddingGemma2Model has them; `pixel_values_videos`, `video_position_ids` and
        `num_frames_per_video` are of clips. `output_hidden_states=True`: as of every model.

        Raises ValueError where texts have other numbers of placeholders than pictures and clips have rows.
        """
        inputs = self._in_order(args, inputs)
        asked = inputs.pop("output_hidden_states", None)
        check_neutral({name: value for name, value in inputs.items() if name not in INPUTS})
        given = {name: value for name, value in inputs.items() if value is not None}
        kind, states = kind_of(*given.values()), self._states(TEXT.tower, asked)
        text = text_inputs(given.pop("input_ids", None), given.pop("attention_mask", None))
        rows = {name: self._rows(name, given) for name in PIXELS}
        if given:
            raise ValueError(f"{next(iter(given))}: given to a model of texts, pictures and clips, expected none")
        arrays = self._read(text, rows, ["last_hidden_state", *states])
        output = self._states_of(TEXT.tower, arrays, kind, bool(asked))
        if rows["image"] is not None:
            output["image_hidden_states"] = from_numpy(rows["image"], kind)
        return output

    def _rows(self, modality: str, given: dict[str, Any]) -> np.ndarray | None:
        """(rows of all, hidden_size) of the pictures or frames among the inputs, which are taken out; None of none."""
        pixels, places = (given.pop(name, None) for name in PIXELS[modality])
        frames = given.pop("num_frames_per_video", None) if modality == "video" else None
        if pixels is None and places is None:
            return None
        for name, value in zip(PIXELS[modality], (pixels, places), strict=True):
            if value is None:
                raise ValueError(f"{name}: not given, expected it beside {' and '.join(PIXELS[modality])}")
        if frames is not None and int(np.sum(frames)) != len(pixels):
            raise ValueError(f"num_frames_per_video: found {int(np.sum(frames))} in all, expected {len(pixels)}")
        return np.concatenate(self._rows_of(pixels, places))

    def _rows_of(self, pixels: Any, places: Any, num_threads: int | None = None) -> list[np.ndarray]:
        """Rows (its squares, hidden_size) of each picture."""
        arrays = {
            "pixel_values": prepared("pixel_values", pixels),
            "image_position_ids": prepared("image_position_ids", places),
        }
        rows = self.tower(IMAGE.tower).run(arrays, ["features"], num_threads or self.num_threads)["features"]
        counts = (arrays["image_position_ids"][..., 0] >= 0).sum(1) // self._square
        return [row[:count] for row, count in zip(rows, counts, strict=True)]

    @cached_property
    def _square(self) -> int:
        """Patches of one row."""
        return next(s.what.side for s in self.tower(IMAGE.tower).encoder.steps if isinstance(s.what, PoolPatches)) ** 2

    def get_image_features(self, pixel_values: Any, image_position_ids: Any = None, **kwargs: Any) -> Any:
        """`pooler_output`: a list of the rows (its squares, hidden_size) of each picture, as they stand in a text."""
        check_neutral(kwargs)
        rows = self._rows_of(pixel_values, image_position_ids)
        return ModelOutput(pooler_output=[from_numpy(row, kind_of(pixel_values)) for row in rows])

    def _read(
        self,
        text: dict[str, np.ndarray],
        rows: dict[str, np.ndarray | None],
        wanted: list[str],
        threads: int | None = None,
    ) -> dict[str, np.ndarray]:
        """Outputs of the text's transformer. ValueError where placeholders are not as many as rows of their kind."""
        ids, one = text["input_ids"], self.placeholders["image"]
        at = {name: ids == token for name, token in self.placeholders.items()}
        for name, places in at.items():
            count = 0 if rows.get(name) is None else len(rows[name])
            if places.sum() != count:
                raise ValueError(
                    f"input_ids: found {places.sum()} placeholders of {name} (id {self.placeholders[name]}), expected "
                    f"{count}, one for each row of what was given"
                )
        if any(places.any() for places in at.values()):
            order = np.concatenate([np.flatnonzero(at[name].reshape(-1)) for name in at])
            stacked = np.concatenate([rows[name] for name in at if rows.get(name) is not None])
            features = np.ascontiguousarray(stacked[np.argsort(order)])
            text = text | {"input_ids": np.where(np.logical_or.reduce([*at.values()]), one, ids), "features": features}
        return self.tower(TEXT.tower).run(text, wanted, threads or self.num_threads)

    def _embed_alone(self, items: list[list[np.ndarray]], num_threads: int | None = None) -> np.ndarray:
        """Embeddings of items that are pictures or frames alone, each of some rows between two tokens."""
        word = self.processor.token
        ids = self.tokenizer("".join(word(name) for name in ("boi_token", "image_token", "eoi_token")))["input_ids"]
        at, name = ids.index(self.placeholders["image"]), self._embedding(TEXT.tower)
        begin, token, end = ids[at - 1 : at + 2]
        texts = [
            [*ids[: at - 1], *(i for rows in item for i in (begin, *[token] * len(rows), end)), *ids[at + 2 :]]
            for item in items
        ]
        by_length: dict[int, list[int]] = {}
        for i, text in enumerate(texts):
            by_length.setdefault(len(text), []).append(i)
        out: list[Any] = [None] * len(items)
        for places in by_length.values():
            rows = np.concatenate([rows for i in places for rows in items[i]])
            text = {"input_ids": np.array([texts[i] for i in places], np.int64)}
            for i, row in zip(places, self._read(text, {"image": rows}, [name], num_threads)[name], strict=True):
                out[i] = row
        return np.stack(out)

    def _encode_pictures(
        self, indices: list[int], items: list[Any], batch_size: int, outcomes: Outcomes
    ) -> Iterable[tuple]:
        yield from super()._encode_pictures(indices, items, min(batch_size, PICTURES_AT_ONCE), outcomes)

    def _embed(self, tower: str, inputs: dict[str, Any], num_threads: int | None = None) -> np.ndarray:
        if tower != IMAGE.tower:
            return super()._embed(tower, inputs, num_threads)
        rows = self._rows_of(inputs["pixel_values"], inputs["image_position_ids"], num_threads)
        return self._embed_alone([[each] for each in rows], num_threads)

    def _encode_videos(self, indices: list[int], items: list[Any], batch_size: int) -> Iterable[tuple]:
        """Clips in the model's own way: their frames one after the other in one text."""
        for i in indices:
            video, sampling = clip_of(items, i)
            frames = self.processor.frames_of(video, **sampling)
            rows = []
            for start in range(0, len(frames), PICTURES_AT_ONCE):
                batch = frames[start : start + PICTURES_AT_ONCE]
                made = self.processor.image_processor(batch, max_soft_tokens=self.processor.kind.clip_soft_tokens)
                rows += self._rows_of(made["pixel_values"], made["image_position_ids"])
            yield [i], self._embed_alone([rows])
