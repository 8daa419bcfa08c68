"""Processors of models that read pictures, clips and sounds within a text: each becomes as many placeholders as the
model makes rows of it, between two tokens that tell where it begins and ends (Gemma 4; Google, 2026)."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..outputs import BatchFeature, from_numpy
from .features import as_sounds
from .items import as_clips, grouped, is_sound_and_rate
from .processor import Processor
from .video import Sampling, video_frames

__all__ = ["InterleavedProcessor"]

MOST_OF_A_CLIP = 32  # frames, where nobody says how many
AROUND = {"image": ("boi_token", "eoi_token"), "video": ("boi_token", "eoi_token"), "audio": ("boa_token", "eoa_token")}
CLIP_OPTIONS = ("num_frames", "fps", "start", "end", "max_frames")


OF_TEXT = ("padding", "truncation", "max_length")  # flat options that say how texts are padded, not sounds
OF_OTHERS = ("do_normalize", "seed")  # of other extractors


class InterleavedProcessor(Processor):
    """`processor(images=..., text=..., videos=..., audio=...)` -> inputs of a model. Where a text says `image_token`,
    `video_token` or `audio_token` a picture, a clip or a sound goes; without a text each stands by itself."""

    def token(self, name: str) -> str:
        """The tokenizer's special token of that name, for example "image_token". ValueError where it has none."""
        token = self.video_token if name == "video_token" else self.tokenizer.special_tokens.get(name)
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

    def block(self, modality: str, count: int) -> str:
        """What stands in a text for a picture, a frame or a sound of so many rows."""
        begin, end = AROUND[modality]
        return f"{self.token(begin)}{self.token(f'{modality}_token') * int(count)}{self.token(end)}"

    def __call__(
        self,
        images: Any = None,
        text: Any = None,
        videos: Any = None,
        audio: Any = None,
        return_tensors: str | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Inputs for a model: `input_ids`, `attention_mask`; with pictures `pixel_values` (n, N, numbers of a patch),
        `image_position_ids` (n, N, 2); with clips `pixel_values_videos` (frames of all, N, ...), `video_position_ids`
        and `num_frames_per_video` (clips,); with sounds `input_features` (n, frames, mels), `input_features_mask`.

        Args:
            images: a picture, a list of them for one text, or a list of such lists, one for each text (`load_image`).
            text: a text or a list, with a token for each picture, clip and sound; None: of what is given alone, each
                list of pictures, each clip and each sound by itself.
            videos: a clip or a list (see `load_video`); arrays and lists of pictures are taken whole, of files a frame
                a second, of both at most 32 evenly; `videos_kwargs` may say num_frames, fps, start, end, max_frames.
            audio: a sound or a list (see `load_audio`); arrays need their `sampling_rate`.
            return_tensors: "np", "pt" or None for lists.
            text_kwargs, images_kwargs, videos_kwargs, audio_kwargs, common_kwargs: options of one part, or of all.

        Raises ValueError where texts have places for other numbers of pictures, clips or sounds than there are.
        """
        own = {name: dict(kwargs.pop(f"{name}_kwargs", None) or {}) for name in ("images", "videos", "audio")}
        for group in own.values():
            return_tensors = group.pop("return_tensors", return_tensors)
        options, tensors = self._options(kwargs, return_tensors)
        flat = {**options["images_kwargs"], **options["audio_kwargs"]}
        if twice := [name for group in own.values() for name in group if name in flat and name not in OF_TEXT]:
            raise ValueError(f"{twice[0]}: given twice, by itself and in images_kwargs, videos_kwargs or audio_kwargs")
        self._check_given(images, text, videos, audio)
        made: dict[str, Any] = {}
        blocks: dict[str, Iterator[str]] = {}
        counts: dict[str, list[int]] = {}  # of each text that is made of what is given alone
        if images is not None:
            groups = grouped(images)
            counts["image"] = [len(group) for group in groups]
            arrays, blocks["image"] = self._pictures(groups, text, options["images_kwargs"] | own["images"])
            made |= arrays
        if videos is not None:
            clips = as_clips(videos)
            counts["video"] = [1] * len(clips)
            arrays, blocks["video"] = self._clips(clips, options["images_kwargs"] | own["videos"])
            made |= arrays
        if audio is not None:
            groups = grouped_sounds(audio)
            counts["audio"] = [len(group) for group in groups]
            flat = {n: v for n, v in options["audio_kwargs"].items() if n not in (*OF_TEXT, *OF_OTHERS)}
            arrays, blocks["audio"] = self._sounds([one for group in groups for one in group], flat | own["audio"])
            made |= arrays
        texts = self._alone(counts) if text is None else [text] if isinstance(text, str) else list(text)
        inputs = BatchFeature()
        if texts is not None:
            filled = self._filled_in(texts, counts, blocks)
            inputs.update(self._used(self.tokenizer(filled, return_tensors=tensors, **options["text_kwargs"])))
        inputs.update({name: from_numpy(array, tensors) if tensors else list(array) for name, array in made.items()})
        return inputs

    def _check_given(self, images: Any, text: Any, videos: Any, audio: Any) -> None:
        """ValueError for inputs this processor makes nothing of."""
        if all(value is None for value in (images, text, videos, audio)):
            raise ValueError("found neither text nor images nor videos nor audio, expected at least one of them")
        for what, value, part in (
            ("images, videos", images if videos is None else videos, self.image_processor),
            ("audio", audio, self.feature_extractor),
            ("text", "", self.tokenizer),
        ):
            if value is not None and part is None:
                raise ValueError(f"{what}: given to a processor without files for that, expected none")
        if any(isinstance(value, list | tuple) and not value for value in (images, videos, audio)):
            raise ValueError("images, videos, audio: a list is empty, expected something in it, or None")

    def _alone(self, counts: dict[str, list[int]]) -> list[str] | None:
        """Texts of placeholders alone. ValueError where there are not as many of each modality."""
        if len({len(each) for each in counts.values()}) > 1:
            found = ", ".join(f"{len(each)} of {modality}" for modality, each in counts.items())
            raise ValueError(f"text: not given, and found {found}, expected as many of each")
        tokens = [self.token(f"{modality}_token") for modality in counts]
        rows = zip(*counts.values(), strict=True)
        return [" ".join(token for token, n in zip(tokens, row, strict=True) for _ in range(n)) for row in rows]

    def _pictures(
        self, groups: list[list[Any]], text: Any, settings: dict[str, Any]
    ) -> tuple[dict[str, Any], Iterator[str]]:
        """The model's inputs of the pictures of each text, and what stands for each in it."""
        pictures = [one for group in groups for one in group]
        if not pictures:
            return {}, iter(())
        arrays = dict(self.image_processor(pictures, return_tensors="np", **settings))
        counts = arrays.pop("num_soft_tokens_per_image")
        return arrays, (self.block("image", count) for count in counts)

    def clip_inputs(self, clip: Any, settings: dict[str, Any], at_once: int | None = None) -> Iterator[dict[str, Any]]:
        """The frames of a clip as pictures, so many at once, or all; `settings` may say which frames (CLIP_OPTIONS),
        the rest are fields of the image processor."""
        sampling = {n: v for n, v in settings.items() if n in CLIP_OPTIONS and v is not None}
        fields = {n: v for n, v in settings.items() if n not in CLIP_OPTIONS}
        frames = frames_of(clip, **sampling)
        for start in range(0, len(frames), at_once or len(frames)):
            part = frames[start : start + (at_once or len(frames))]
            most = {"max_soft_tokens": self.kind.clip_soft_tokens}
            yield self.image_processor(part, return_tensors="np", **most | fields)

    def _clips(self, clips: list[Any], settings: dict[str, Any]) -> tuple[dict[str, Any], Iterator[str]]:
        """As `_pictures`: the frames of each clip one after the other."""
        made = [next(self.clip_inputs(clip, settings)) for clip in clips]
        names = {"pixel_values": "pixel_values_videos", "image_position_ids": "video_position_ids"}
        arrays = {new: np.concatenate([one[old] for one in made]) for old, new in names.items()}
        counts = [one["num_soft_tokens_per_image"] for one in made]
        blocks = ("".join(self.block("video", frame) for frame in frames) for frames in counts)
        return arrays | {"num_frames_per_video": np.array([len(frames) for frames in counts])}, blocks

    def _sounds(self, sounds: list[Any], settings: dict[str, Any]) -> tuple[dict[str, Any], Iterator[str]]:
        """As `_pictures`."""
        arrays = dict(self.feature_extractor(sounds, return_tensors="np", **settings))
        counts = arrays["input_features_mask"].sum(1)
        return arrays, (self.block("audio", -(-count // self.kind.frames_a_row)) for count in counts)

    def _filled_in(self, texts: list[Any], counts: dict[str, list[int]], blocks: dict[str, Iterator[str]]) -> list[Any]:
        """Texts with what stands for each picture, clip and sound in its place. ValueError where these are more or
        fewer."""
        named = {self.token(f"{modality}_token"): modality for modality in counts}
        for token, modality in named.items():
            places = [text.count(token) if isinstance(text, str) else 0 for text in texts]
            given = counts[modality]
            nested = modality == "image" and len(given) == len(places) > 1
            if sum(places) != sum(given) or (nested and places != given):
                raise ValueError(
                    f"{'images' if modality == 'image' else 'videos' if modality == 'video' else modality}: found "
                    f"{given if nested else sum(given)}, and texts with places ({token}) for {places}: expected as many"
                )
        if not named:
            return texts
        pattern = re.compile("|".join(map(re.escape, named)))
        return [pattern.sub(lambda found: next(blocks[named[found[0]]]), one) if isinstance(one, str) else one
                for one in texts]  # fmt: skip

    @property
    def model_input_names(self) -> list[str]:
        """What it makes."""
        clips = ["pixel_values_videos", "video_position_ids", "num_frames_per_video"] if self.image_processor else []
        return [name for name in (*super().model_input_names, *clips) if name != "num_soft_tokens_per_image"]


def grouped_sounds(audio: Any) -> list[list[Any]]:
    """As `grouped`, but that a flat list holds a sound for each text."""
    nested = isinstance(audio, list | tuple) and all(
        isinstance(one, list | tuple) and not is_sound_and_rate(one) and not (one and isinstance(one[0], int | float))
        for one in audio
    )
    return [list(group) for group in audio] if nested else [[one] for one in as_sounds(audio)]


def frames_of(clip: Any, **sampling: Any) -> list[np.ndarray]:
    """Frames of a clip: as `sampling` says (see `load_video`; max_frames: at most so many, evenly); where it says
    nothing all of an array or a list, of a file one a second, and of both at most 32."""
    most = sampling.pop("max_frames", MOST_OF_A_CLIP)
    Sampling(most=most)  # or says what is wrong with it
    if "num_frames" not in sampling:
        if (isinstance(clip, list | tuple) or hasattr(clip, "shape")) and not sampling:
            at = range(len(clip)) if len(clip) <= most else np.linspace(0, len(clip) - 1, most, dtype=int)
            clip = clip[list(at)] if hasattr(clip, "shape") else [clip[i] for i in at]
            sampling = {"num_frames": max(1, len(clip))}
        else:
            sampling = {"fps": 1.0, "most": most} | sampling
    return list(video_frames(clip, Sampling.of(sampling)))
