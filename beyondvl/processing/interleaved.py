"""Processors of models that read pictures and clips within a text: each becomes as many placeholders as the model makes
rows of it, between two tokens that tell where it begins and ends (Gemma 4; Google, 2026)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..outputs import BatchFeature, from_numpy
from .items import as_clips
from .processor import Processor
from .video import Sampling, video_frames

__all__ = ["InterleavedProcessor"]

MOST_FRAMES = 32  # of a clip, where nobody says how many


class InterleavedProcessor(Processor):
    """`processor(images=..., text=..., videos=...)` -> inputs of a model. Where a text says `image_token` or
    `video_token` a picture or a clip goes; without a text each stands by itself."""

    def token(self, name: str) -> str:
        """The tokenizer's special token of that name, for example "image_token". ValueError where it has none."""
        token = self.tokenizer.special_tokens.get(name) if self.tokenizer else None
        if token is None:
            raise ValueError(f"{name}: found none, expected one among the tokenizer's special tokens")
        return token

    def _placeholder(self) -> str:
        """What stands for a picture in a text; published tokenizers lack what stands for a clip, and are given it."""
        named = self.tokenizer.special_tokens if self.tokenizer else {}
        self.video_token = named.get("video_token") or "<|video|>"
        if self.tokenizer and self.video_token not in self.tokenizer.all_special_tokens:
            self.tokenizer.add_tokens([self.video_token], special_tokens=True)
        return named.get("image_token") or "<image>"

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        videos: Any = None,
        audio: Any = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Inputs for a model: `input_ids`, `attention_mask`; with pictures `pixel_values` (n, N, numbers of a patch)
        and `image_position_ids` (n, N, 2); with clips `pixel_values_videos` (frames of all, N, ...),
        `video_position_ids` and `num_frames_per_video` (clips,).

        Args:
            images: a picture, a list of them for one text, or a list of such lists, one for each text (`load_image`).
            text: a text or a list, with `image_token` for each picture and `video_token` for each clip; None: of what
                is given alone, each list of pictures and each clip by itself.
            videos: a clip or a list (see `load_video`); arrays and lists of pictures are taken whole, of files a frame
                a second, at most 32 of them evenly.
            return_tensors: "np", "pt" or None for lists.
            text_kwargs, images_kwargs, videos_kwargs, common_kwargs: options of one part, or of all.

        Raises ValueError where texts have places for other numbers of pictures or clips than there are.
        """
        clip_settings = dict(kwargs.pop("videos_kwargs", None) or {})
        options, tensors = self._options(kwargs, return_tensors)
        if audio is not None:
            raise ValueError("audio: given to a processor of texts, pictures and clips, expected none")
        if images is None and text is None and videos is None:
            raise ValueError("found neither text nor images nor videos, expected at least one of them")
        groups = None if images is None else grouped(images)
        clips = None if videos is None else as_clips(videos)
        made, blocks = {}, {"image_token": iter(()), "video_token": iter(())}
        if groups is not None:
            made, blocks["image_token"] = self._pictures(
                [one for group in groups for one in group], options["images_kwargs"]
            )
        if clips is not None:
            arrays, blocks["video_token"] = self._clips(clips, options["images_kwargs"] | clip_settings)
            made |= arrays
        texts = self._alone(groups, clips) if text is None else [text] if isinstance(text, str) else list(text)
        self._count(texts, groups, clips)
        named = {self.token("image_token"): "image_token", self.video_token: "video_token"}
        pattern = re.compile("|".join(map(re.escape, named)))
        filled = [pattern.sub(lambda found: next(blocks[named[found[0]]], found[0]), one) for one in texts]
        inputs = BatchFeature(self._used(self.tokenizer(filled, return_tensors=tensors, **options["text_kwargs"])))
        inputs.update({name: from_numpy(array, tensors) if tensors else list(array) for name, array in made.items()})
        return inputs

    def _block(self, token: str, count: int) -> str:
        return f"{self.token('boi_token')}{token * int(count)}{self.token('eoi_token')}"

    def _pictures(self, pictures: list[Any], settings: dict[str, Any]) -> tuple[dict[str, Any], Iterator[str]]:
        """The model's inputs of pictures, and what stands for each in a text."""
        if not pictures:
            return {}, iter(())
        arrays = dict(self.image_processor(pictures, return_tensors="np", **settings))
        counts = arrays.pop("num_soft_tokens_per_image")
        return arrays, (self._block(self.token("image_token"), count) for count in counts)

    def _clips(self, clips: list[Any], settings: dict[str, Any]) -> tuple[dict[str, Any], Iterator[str]]:
        """As `_pictures`: the frames of each clip one after the other."""
        settings = {"max_soft_tokens": self.kind.clip_soft_tokens} | settings
        made = [self.image_processor(self.frames_of(clip), return_tensors="np", **settings) for clip in clips]
        names = {"pixel_values": "pixel_values_videos", "image_position_ids": "video_position_ids"}
        arrays = {new: np.concatenate([one[old] for one in made]) for old, new in names.items()}
        counts = [one["num_soft_tokens_per_image"] for one in made]
        blocks = ("".join(self._block(self.video_token, frame) for frame in frames) for frames in counts)
        return arrays | {"num_frames_per_video": np.array([len(frames) for frames in counts])}, blocks

    @staticmethod
    def frames_of(clip: Any, **sampling: Any) -> list[np.ndarray]:
        """Frames of a clip: those that `sampling` says (see `load_video`); where it says nothing all of an array or a
        list, of a file one a second, and of more than 32 as many evenly."""
        whole = isinstance(clip, list | tuple) or hasattr(clip, "shape")
        every = {"num_frames": len(clip)} if whole else {"fps": 1.0}
        frames = list(video_frames(clip, Sampling.of(sampling or every)))
        if sampling or len(frames) <= MOST_FRAMES:
            return frames
        return [frames[at] for at in np.linspace(0, len(frames) - 1, MOST_FRAMES, dtype=int)]

    def _alone(self, groups: list[list[Any]] | None, clips: list[Any] | None) -> list[str]:
        """Texts of placeholders alone."""
        counts = {}
        if groups is not None:
            counts[self.token("image_token")] = [len(group) for group in groups]
        if clips is not None:
            counts[self.video_token] = [1] * len(clips)
        if len({len(each) for each in counts.values()}) > 1:
            raise ValueError(
                f"images, videos: found {len(groups)} and {len(clips)} without a text, expected as many lists of "
                "pictures as clips"
            )
        rows = zip(*counts.values(), strict=True)
        return [" ".join(t for t, n in zip(counts, row, strict=True) for _ in range(n)) for row in rows]

    def _count(self, texts: list[str], groups: list[list[Any]] | None, clips: list[Any] | None) -> None:
        """ValueError where texts have places for more or fewer pictures or clips."""
        places = [text.count(self.token("image_token")) for text in texts]
        counts = None if groups is None else [len(group) for group in groups]
        if counts is not None and places != counts and not (len(groups) == 1 and sum(places) == counts[0]):
            raise ValueError(
                f"images: found {counts}, and texts with places ({self.token('image_token')}) for {places}: expected "
                "as many"
            )
        places = sum(text.count(self.video_token) for text in texts)
        if clips is not None and places != len(clips):
            raise ValueError(
                f"videos: found {len(clips)}, and texts with places ({self.video_token}) for {places}: expected as many"
            )


def grouped(images: Any) -> list[list[Any]]:
    """Lists of pictures, one for each text: of a picture, or of a list of them, one list; an array of four axes is such
    a list."""
    if isinstance(images, list | tuple):
        nested = all(isinstance(one, list | tuple) for one in images)
        return [list(group) for group in images] if nested and images else [list(images)]
    return [list(images)] if getattr(images, "ndim", 0) == 4 else [[images]]
