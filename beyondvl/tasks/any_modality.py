"""Texts, pictures, clips and sounds together: what queries draw from each, one stream of it all, words about that."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import numpy as np

from ..modalities import AUDIO, IMAGE, TEXT, VIDEO
from ..models.model import check_neutral
from ..models.tower import prepared
from ..outputs import ModelOutput, check_count, from_numpy, kind_of
from ..processing.items import as_clips, clip_of, content_of, is_sound_and_rate, modality_of
from ..processing.video import load_video
from ..similarity import unit_rows
from .base import EncodedImages, text_inputs
from .matching import MatchingModel
from .writing import AnswersMixin, CaptioningModel, one_each

__all__ = ["AnyModalityModel"]

SEEN = (IMAGE.name, VIDEO.name, AUDIO.name)  # what queries draw from, in the order of their tokens
Texts = dict[str, np.ndarray]
Rows = tuple[np.ndarray, np.ndarray]  # (B, L, hidden_size), mask (B, L)


class AnyModalityModel(AnswersMixin, MatchingModel, CaptioningModel):
    """Takes any subset of a text, a picture, a clip and a sound. A Q-Former draws from each of them what the text asks
    for, a C-Former fuses what it drew and the text in one stream, a decoder writes about that stream.

    Wherever pictures are expected, clips and sounds may stand: files by their extension, or what `encode_video`,
    `encode_audio` returned.
    """

    @property
    def modalities(self) -> list[str]:
        """What it takes: "text", "image", "video", and "audio" where it has a tower for sounds."""
        return [TEXT.name, IMAGE.name, VIDEO.name, *([AUDIO.name] if AUDIO.tower in self.towers else [])]

    @property
    def num_frames(self) -> int:
        """Frames of a clip."""
        return self.config.integer("num_frames", 8, 1, 256)

    @cached_property
    def _queries(self) -> int:
        return self.config.integer("num_query_tokens", 16, 1, 1 << 12)

    @cached_property
    def _token_ids(self) -> np.ndarray:
        """The tokenizer's id of each of the decoder's."""
        return np.array(self.head.vocabulary(self.config), np.int64)

    # from inputs to what queries draw from

    def _encode_pixels(self, pixels: np.ndarray) -> EncodedImages:
        names = [name for name in ("rows", "class_row") if name in self.tower(IMAGE.tower).outputs]
        seen = self.run_tower(IMAGE.tower, {"pixel_values": pixels}, ["unit_embeds", *names])
        rows = np.concatenate([seen[name].reshape(len(pixels), -1, self._width) for name in names], 1)
        contexts = self._rows_of(IMAGE.name, {"features": rows}, ["context"])["context"]
        return EncodedImages(tuple(contexts), seen["unit_embeds"][:, None])

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
        rows = {"features": seen["grid"].reshape(len(array), -1, self._width)}
        embeds = unit_rows(seen["unit_embeds"].reshape(len(array), self.num_frames, -1).mean(1))
        contexts = self._rows_of(VIDEO.name, rows, ["context"])["context"]
        return EncodedImages(tuple(contexts), embeds[:, None], owner=self.identity, modality=VIDEO.name)

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
        there = np.ones((batch, count * window), bool) if mask is None else prepared("attention_mask", mask) != 0
        if there.shape != (batch, count * window):
            raise ValueError(f"feature_attention_mask: found shape {there.shape}, expected {(batch, count * window)}")
        windows = array.reshape(batch, mels, count, window).transpose(0, 2, 1, 3).reshape(-1, mels, window)
        kept = there.reshape(-1, window).any(1)
        kept[::count] = True  # the first window of each sound, be it empty
        states = tower.run(
            {"input_features": np.ascontiguousarray(windows[kept])}, list(tower.states), self.num_threads
        )
        rows = np.concatenate(list(states.values()), 2)
        rows = rows.reshape(len(rows), -1, pooling, rows.shape[2]).mean(2)
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

    def encode_video(self, videos: Any = None, *, pixel_values_videos: Any = None) -> EncodedImages:
        """Clips (see `load_video`; one or a list) after the picture tower, `num_frames` frames of each. A clip may be
        {"video": x, "start": seconds, "end": seconds}. Raises VideoError naming the file."""
        if pixel_values_videos is None:
            clips = as_clips(videos)
            if not clips:
                raise ValueError("videos: the list is empty, expected at least one clip")
            pixel_values_videos = np.concatenate([self.clip_pixels(*clip_of(clips, i)) for i in range(len(clips))])
        return self._encode_frames(pixel_values_videos)

    def clip_pixels(self, video: Any, sampling: dict[str, Any] | None = None) -> np.ndarray:
        """pixel_values_videos (1, num_frames, 3, H, W) of a clip, its frames sampled evenly between `start` and
        `end`."""
        if unknown := set(sampling or {}) - {"start", "end"}:
            raise ValueError(f"found {', '.join(unknown)}, expected start and end alone: this model takes "
                             f"{self.num_frames} frames of a clip")  # fmt: skip
        frames = load_video(video, num_frames=self.num_frames, **sampling or {})
        return self.image_processor(list(frames))["pixel_values"][None]

    def encode_audio(
        self, audio: Any = None, *, input_features: Any = None, feature_attention_mask: Any = None
    ) -> EncodedImages:
        """Sounds (see `load_audio`; one or a list) after the sound tower, window by window. Raises AudioError."""
        if input_features is None:
            made = self.feature_extractor(audio, return_tensors="np")
            input_features, feature_attention_mask = made["input_features"], made["feature_attention_mask"]
        return self._encode_features(input_features, feature_attention_mask)

    # the formers

    def _read(self, text: Texts | None) -> Rows | None:
        """A text's rows and mask."""
        if text is None:
            return None
        rows = self.tower(TEXT.tower).run(dict(text), ["rows"], self.num_threads)["rows"]
        return rows, text.get("attention_mask", np.ones(rows.shape[:2], np.int64))

    def _drawn(
        self, seen: EncodedImages, count: int, instruction: Rows | None, wanted: list[str]
    ) -> dict[str, np.ndarray]:
        """What the Q-Former makes of `count` instructions about items, or of items alone: rows are the queries, then
        the instruction."""
        first, queries = SEEN.index(seen.modality) * self._queries, self._queries
        rows, mask = instruction or (np.zeros((count, 0, self._width), np.float32), np.ones((count, 0), np.int64))
        length = rows.shape[1]
        types = np.r_[first : first + queries, np.full(length, len(SEEN) * queries)]
        inputs: dict[str, Any] = {
            "features": np.concatenate([np.zeros((count, queries, self._width), np.float32), rows], 1),
            "token_type_ids": np.tile(types, (count, 1)),
            "attention_mask": np.concatenate([np.ones((count, queries), np.int64), mask], 1),
        }
        inputs |= seen.source(count, "input_ids")
        return self.tower("qformer").run(inputs, wanted, self.num_threads)

    def fuse(
        self, seen: tuple[EncodedImages, ...], text: Texts | None, count: int, wanted: list[str]
    ) -> dict[str, Any]:
        """Runs the Q-Former over each input and the C-Former over what it drew and the text: `count` texts, or items
        without one. Each input's part of the stream is its embedding, then its queries."""
        instruction = self._read(text)
        stem = self.tower("cformer").encoder.stem
        parts, masks, types = [], [np.ones((count, 1), np.int64)], [0]
        embeds = {}
        for each in sorted(seen, key=lambda each: SEEN.index(each.modality)):
            drawn = self._drawn(each, count, instruction, ["last_hidden_state", "query_embeds"])
            embeds[each.modality] = drawn["query_embeds"][:, : self._queries]
            lead = each.embeds if len(each) == count else np.repeat(each.embeds, count, 0)
            parts += [lead, drawn["last_hidden_state"][:, : self._queries]]
            types += [stem.inputs.index(each.modality)] * (self._queries + 1)
            masks.append(np.ones((count, self._queries + 1), np.int64))
        if instruction:
            rows, mask = instruction
            parts.append(rows)
            masks.append(mask)
            types += [stem.inputs.index(TEXT.name)] * rows.shape[1]
        inputs = {
            "features": np.concatenate(parts, 1),
            "attention_mask": np.concatenate(masks, 1),
            "token_type_ids": np.tile(types, (count, 1)),
        }
        outputs = self.tower("cformer").run(inputs, wanted, self.num_threads)
        return outputs | {f"{name}_query_embeds": array for name, array in embeds.items()}

    # the calls

    def __call__(
        self,
        input_ids: Any = None,
        pixel_values: Any = None,
        pixel_values_videos: Any = None,
        input_features: Any = None,
        attention_mask: Any = None,
        feature_attention_mask: Any = None,
        token_type_ids: Any = None,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """Any subset of a text, pictures, clips and sounds.

        Returns `text_embeds`, `image_embeds`, `video_embeds`, `audio_embeds` (n, D) of unit norm, and with a text
        `logits_per_image` (pictures, texts), `logits_per_video`, `logits_per_audio`, and of one of these alone
        `logits_per_text`. Where the numbers of items fit (as many of each, or one): `image_query_embeds` (B, queries,
        D) and the like of unit norm, `fused_embeds` (B, D) of unit norm, `fused_hidden_state` (B, 1 + n, hidden_size):
        a class token, then of each input its embedding and its queries, then the text; `match_logits` (B, 2), "does
        not match" and "matches". With decoder_input_ids (B, L; ids of the decoder) also `logits` (B, L, vocabulary).

        Raises ValueError naming the input, what was found and what was expected.
        """
        check_neutral(kwargs)
        kind = kind_of(input_ids, pixel_values, pixel_values_videos, input_features)
        seen = self._seen(pixel_values, pixel_values_videos, input_features, feature_attention_mask)
        text = None
        if input_ids is not None:
            text = text_inputs(input_ids, attention_mask)
        if not seen and text is None:
            raise ValueError("found no input, expected some of input_ids, pixel_values, pixel_values_videos, "
                             "input_features")  # fmt: skip
        arrays = self._compared(seen, text)
        sizes = {len(each) for each in seen} | ({len(text["input_ids"])} if text else set())
        count = max(sizes)
        if sizes <= {1, count}:
            wanted = ["last_hidden_state", "unit_embeds", "match_logits", "context"]
            if text is not None and len(text["input_ids"]) < count:
                text = {name: np.repeat(array, count, 0) for name, array in text.items()}
            fused = self.fuse(seen, text, count, wanted)
            contexts = fused.pop("context")
            names = {"last_hidden_state": "fused_hidden_state", "unit_embeds": "fused_embeds"}
            arrays |= {names.get(name, name): array for name, array in fused.items()}
            if decoder_input_ids is not None:
                written = text_inputs(decoder_input_ids, decoder_attention_mask)
                arrays["logits"] = self._logits(written, {"contexts": contexts})
        elif decoder_input_ids is not None:
            raise ValueError(
                f"decoder_input_ids: given beside inputs of {sorted(sizes)} items, expected as many of each"
            )
        return ModelOutput({name: from_numpy(np.ascontiguousarray(array), kind) for name, array in arrays.items()})

    def _seen(self, pixels: Any, clips: Any, features: Any, mask: Any) -> tuple[EncodedImages, ...]:
        """What there is beside the text, each after its tower."""
        seen = []
        if pixels is not None:
            seen.append(self.encode_image(pixel_values=pixels))
        if clips is not None:
            seen.append(self._encode_frames(clips))
        if features is not None:
            seen.append(self._encode_features(features, mask))
        return tuple(seen)

    def _compared(self, seen: tuple[EncodedImages, ...], text: Texts | None) -> dict[str, np.ndarray]:
        """Embeddings, and the cosines of each input with the text."""
        arrays: dict[str, np.ndarray] = {}
        if text is not None:
            embeds = self.tower(TEXT.tower).run(dict(text), ["unit_embeds"], self.num_threads)["unit_embeds"]
            for each in seen:
                logits, transposed = self._logits_of(each.embeds[:, 0], embeds)
                arrays[f"logits_per_{each.modality}"] = logits
                if len(seen) == 1:
                    arrays["logits_per_text"] = transposed
            arrays["text_embeds"] = embeds
        return arrays | {f"{each.modality}_embeds": each.embeds[:, 0] for each in seen}

    def get_video_features(self, pixel_values_videos: Any, **kwargs: Any) -> Any:
        """Unit embeddings (B, D) of clips (B, num_frames, 3, H, W)."""
        check_neutral(kwargs)
        return from_numpy(self._encode_frames(pixel_values_videos).embeds[:, 0], kind_of(pixel_values_videos))

    def get_audio_features(self, input_features: Any, feature_attention_mask: Any = None, **kwargs: Any) -> Any:
        """Unit embeddings (B, D) of sounds."""
        check_neutral(kwargs)
        embeds = self._encode_features(input_features, feature_attention_mask).embeds[:, 0]
        return from_numpy(embeds, kind_of(input_features))

    # words

    def _encoded(self, images: Any, pixel_values: Any) -> EncodedImages:
        """As every task model, where clips and sounds may stand too: of one kind at a time."""
        if images is None or isinstance(images, EncodedImages):
            return super()._encoded(images, pixel_values)
        several = isinstance(images, list | tuple) and not is_sound_and_rate(images)
        items = list(images) if several else [images]
        kinds = [modality_of(item, SEEN, at) for at, item in enumerate(items)]
        if len(set(kinds)) > 1:
            raise ValueError(
                f"images: found {' and '.join(sorted(set(kinds)))} in one list, expected items of one kind"
            )
        if kinds and kinds[0] == VIDEO.name:
            return self.encode_video(items)
        if kinds and kinds[0] == AUDIO.name:
            return self.encode_audio([content_of(item, AUDIO.name) for item in items])
        return super()._encoded([content_of(item, IMAGE.name) for item in items], pixel_values)

    def match(self, images: Any, texts: str | list[str], batch_size: int = 32) -> np.ndarray:
        """Probability (n,) float32 that each text fits its picture, clip or sound; one may serve all texts.

        Texts are cut at the model's length, as `encode` does.
        """
        check_count("batch_size", batch_size)
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise ValueError("texts: the list is empty, expected at least one text")
        seen, scores = self._encoded(images, None), []
        most = self.tower(TEXT.tower).max_positions
        for start in range(0, len(texts), batch_size):
            text = self.texts(texts[start : start + batch_size], most)
            count = len(text["input_ids"])
            part = seen if len(seen) == 1 else seen[start : start + batch_size]
            logits = self.fuse((part, *part.beside), text, count, ["match_logits"])["match_logits"]
            scores.append(1 / (1 + np.exp(logits[:, 0] - logits[:, 1])))
        return np.concatenate(scores)

    def _prompted(
        self, pixel_values: Any, input_ids: Any, attention_mask: Any, images: Any, **others: Any
    ) -> tuple[dict[str, Any], np.ndarray, np.ndarray | None]:
        """What to write about, and what the decoder goes on from: its first token, or the tokens of a prompt."""
        extra = self._seen(None, others.get("clips"), others.get("features"), others.get("mask"))
        seen: tuple[EncodedImages, ...] = extra
        if images is not None or pixel_values is not None:
            encoded = self._encoded(images, pixel_values)
            seen = (encoded, *encoded.beside, *extra)
        text = None if input_ids is None else text_inputs(input_ids, attention_mask)
        if not seen and text is None:
            raise ValueError("found no input, expected some of input_ids, pixel_values, images and the like")
        count = len(text["input_ids"]) if text else len(seen[0])
        contexts = self.fuse(seen, text, count, ["context"])["context"]
        prompt = others.get("prompt")
        if prompt is None:
            prompt = np.full((count, 1), self.tokens["bos_token_id"], np.int64)
        return {"contexts": contexts}, prompt, None

    def generate(
        self,
        input_ids: Any = None,
        pixel_values: Any = None,
        attention_mask: Any = None,
        *,
        pixel_values_videos: Any = None,
        input_features: Any = None,
        feature_attention_mask: Any = None,
        images: Any = None,
        **settings: Any,
    ) -> Any:
        """Token ids (B, length) int64 of the text's tokenizer: the first token, then what the decoder wrote.

        Args:
            input_ids, attention_mask: what is asked (B, L), or nothing: a caption; one picture may serve all questions.
            pixel_values: (B, 3, H, W); or `images`: pictures, or what encode_image and the like returned.
            pixel_values_videos, input_features, feature_attention_mask: clips and sounds, as a processor makes them.
            settings: see GenerationSettings; ids in them, and what a logits_processor sees, are the decoder's own.
        """
        others = {"clips": pixel_values_videos, "features": input_features, "mask": feature_attention_mask}
        prompted = self._prompted(pixel_values, input_ids, attention_mask, images, **others)
        return from_numpy(self._token_ids[self._generated(*prompted, settings)], kind_of(input_ids, pixel_values))

    def stream(
        self, input_ids: Any = None, pixel_values: Any = None, attention_mask: Any = None, *, images: Any = None,
        **settings: Any,
    ) -> Iterator[np.ndarray]:  # fmt: skip
        """As `generate`, giving the tokens (B,) of each step as they come; greedy or sampled, no beams."""
        prompted = self._prompted(pixel_values, input_ids, attention_mask, images)
        return (self._token_ids[ids] for ids in self._streamed(*prompted, settings))

    def caption(self, images: Any, prompt: str | list[str] | None = None, **settings: Any) -> str | list[str]:
        """Captions of pictures, clips or sounds, a string for one. A prompt is continued, and part of the caption."""
        single = not isinstance(images, list | tuple | EncodedImages) or is_sound_and_rate(images)
        single = single and not isinstance(prompt, list | tuple)
        one_each(settings)
        encoded = self._encoded(images, None)
        prompts = [prompt] * len(encoded) if prompt is None or isinstance(prompt, str) else list(prompt)
        if len(encoded) not in (1, len(prompts)):
            raise ValueError(f"prompt: found {len(prompts)} prompts and {len(encoded)} pictures, expected as many")
        begun = [self._begun(words) for words in prompts]
        texts = [""] * len(prompts)
        for length in dict.fromkeys(map(len, begun)):  # those of one length together: none depends on its neighbours
            at = [i for i, ids in enumerate(begun) if len(ids) == length]
            part = encoded[[0] * len(at)] if len(encoded) == 1 else encoded[at]
            ids = np.array([begun[i] for i in at], np.int64)
            prompted = self._prompted(None, None, None, part, prompt=ids)
            for i, text in zip(at, self._decoded(self._token_ids[self._generated(*prompted, settings)]), strict=True):
                texts[i] = text
        return texts[0] if single else texts

    def _begun(self, prompt: str | None) -> list[int]:
        """The decoder's ids of a prompt after its first token. ValueError for a word it cannot write."""
        ids = [] if prompt is None else self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        order = {int(token): at for at, token in enumerate(self._token_ids)}
        if unknown := [token for token in ids if token not in order]:
            raise ValueError(f"prompt: found {self.tokenizer.decode(unknown[:1])!r}, which the decoder does not write")
        return [self.tokens["bos_token_id"], *(order[token] for token in ids)]

    def _answers(self, encoded: EncodedImages, questions: list[str], settings: dict[str, Any]) -> list[str]:
        text = self.texts(questions, self.tower(TEXT.tower).max_positions)
        prompted = self._prompted(None, text["input_ids"], text["attention_mask"], encoded)
        return self._decoded(self._token_ids[self._generated(*prompted, settings)])

    # embeddings

    def _encode_videos(self, indices: list[int], items: list[Any], batch_size: int) -> Iterable[tuple]:
        for i in indices:
            yield [i], self._encode_frames(self.clip_pixels(*clip_of(items, i))).embeds[:, 0]

    def _embed(self, tower: str, inputs: dict[str, np.ndarray], num_threads: int | None = None) -> np.ndarray:
        if tower == AUDIO.tower:
            return self._encode_features(inputs["input_features"], inputs.get("feature_attention_mask")).embeds[:, 0]
        return super()._embed(tower, inputs, num_threads)
