"""Texts, pictures, clips and sounds together: what queries draw from each, one stream of it all, words about that."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import numpy as np

from ..modalities import AUDIO, IMAGE, TEXT, VIDEO
from ..models.model import check_neutral
from ..outputs import ModelOutput, features_of, from_numpy, kind_of
from ..processing.items import content_of, is_sound_and_rate, modality_of
from .base import STATES, EncodedImages, text_inputs
from .confidence import ConfidentMixin, Said
from .drawing import SEEN, DrawingModel, Read, Texts
from .matching import MatchingModel
from .writing import AnswersMixin, CaptioningModel

__all__ = ["AnyModalityModel"]


def counts(seen: tuple[EncodedImages, ...], text: Texts | None) -> set[int]:
    """How many there are of each input. ValueError where there is none."""
    sizes = {len(each) for each in seen} | ({len(text["input_ids"])} if text else set())
    if not sizes:
        raise ValueError("found no input, expected some of input_ids, pixel_values, pixel_values_videos, "
                         "input_features, images")  # fmt: skip
    return sizes


class Renamed:
    """A streamer that is told the ids of a text's tokenizer for those of the decoder."""

    def __init__(self, streamer: Any, token_ids: np.ndarray):
        self.streamer, self.token_ids = streamer, token_ids

    def put(self, ids: np.ndarray) -> None:
        self.streamer.put(self.token_ids[ids])

    def end(self) -> None:
        self.streamer.end()


class AnyModalityModel(AnswersMixin, ConfidentMixin, DrawingModel, MatchingModel, CaptioningModel):
    """Takes any subset of a text, a picture, a clip and a sound. A Q-Former draws from each of them what the text asks
    for, a C-Former fuses what it drew and the text in one stream, a decoder writes about that stream. Captions and
    answers carry their `confidence` (see Said).

    Wherever pictures are expected, clips and sounds may stand: files by their extension, or what `encode_video`,
    `encode_audio` and `encode_clip` returned.
    """

    @property
    def modalities(self) -> list[str]:
        """What it takes: "text", "image", "video", and "audio" where it has a tower for sounds."""
        return [TEXT.name, IMAGE.name, VIDEO.name, *([AUDIO.name] if AUDIO.tower in self.towers else [])]

    @cached_property
    def _token_ids(self) -> np.ndarray:
        """The tokenizer's id of each of the decoder's."""
        return np.array(self.head.vocabulary(self.config), np.int64)

    @cached_property
    def _places(self) -> dict[int, int]:
        """The decoder's id of each of the tokenizer's that it writes."""
        return {int(token): at for at, token in enumerate(self._token_ids)}

    # the formers

    def fuse(
        self, seen: tuple[EncodedImages, ...], instruction: Read | None, count: int, wanted: list[str]
    ) -> dict[str, Any]:
        """Runs the Q-Former over each input and the C-Former over what it drew and the text: `count` texts, or
        items without one. Each input's part of the stream is its embedding, its queries, what else it has to be read,
        and how it agrees with the text; the text's its embedding, then its rows. Whether they match begins with their
        scaled cosine, to which the C-Former adds."""
        stem = self.tower("cformer").encoder.stem
        parts, masks, types = [], [np.ones((count, 1), np.int64)], [0]
        embeds, cosines = {}, []
        for each in sorted(seen, key=lambda each: SEEN.index(each.modality)):
            drawn = self._drawn(each, count, instruction, ["last_hidden_state", "query_embeds"])
            embeds[each.modality] = drawn["query_embeds"][:, : self._queries]
            lead, rows = (
                array if array is None or len(each) == count else np.repeat(array, count, 0)
                for array in (each.embeds, each.rows)
            )
            own = [lead, drawn["last_hidden_state"][:, : self._queries], *([] if rows is None else [rows])]
            if instruction is not None:
                product = lead * instruction.embeds[:, None]
                cosines.append(product[:, 0].sum(1))
                features = {"features": product * np.float32(self._width)}
                own.append(self.tower("agreement").run(features, ["rows"], self.num_threads)["rows"])
            length = sum(part.shape[1] for part in own)
            parts += own
            types += [stem.inputs.index(each.modality)] * length
            masks.append(np.ones((count, length), np.int64))
        if instruction is not None:
            parts += [instruction.embeds[:, None], instruction.rows]
            masks += [np.ones((count, 1), np.int64), instruction.mask]
            types += [stem.inputs.index(TEXT.name)] * (1 + instruction.rows.shape[1])
        inputs = {
            "features": np.concatenate(parts, 1),
            "attention_mask": np.concatenate(masks, 1),
            "token_type_ids": np.tile(types, (count, 1)),
        }
        outputs = self.tower("cformer").run(inputs, wanted, self.num_threads)
        if cosines and "match_logits" in outputs:
            outputs["match_logits"][:, 1] += np.float32(self.logit_scale) * np.mean(cosines, 0)
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
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """Any subset of a text, pictures, clips and sounds.

        Returns `text_embeds`, `image_embeds`, `video_embeds`, `audio_embeds` (n, D) of unit norm, and with a text
        `logits_per_image` (pictures, texts), `logits_per_video`, `logits_per_audio`, and of one of these alone
        `logits_per_text`. Where the numbers of items fit (as many of each, or one): `image_query_embeds` (B, queries,
        D) and the like of unit norm, `fused_embeds` (B, D) of unit norm, `fused_hidden_state` (B, 1 + n, hidden_size):
        a class token, then of each input its embedding and its queries (and of a clip a row of how things move), then
        the text's embedding and its rows; `match_logits` (B, 2), "does not match" and "matches". With decoder_input_ids
        (B, L; ids of the decoder) also `logits` (B, L, vocabulary). With `output_hidden_states=True` the text's and the
        pictures' towers run once more for `text_model_output` and `vision_model_output`, which hold their
        `hidden_states` as in PreTrainedModel.

        Raises ValueError naming the input, what was found and what was expected.
        """
        check_neutral(kwargs)
        kind = kind_of(input_ids, pixel_values, pixel_values_videos, input_features)
        seen = self._seen(pixel_values, pixel_values_videos, input_features, feature_attention_mask)
        text = None if input_ids is None else text_inputs(input_ids, attention_mask, token_type_ids)
        sizes = counts(seen, text)
        states = self._tower_outputs(text, pixel_values, kind, output_hidden_states)
        read = None if text is None else self._read(text)
        arrays = self._compared(seen, read)
        count = max(sizes)
        if sizes <= {1, count}:
            wanted = ["last_hidden_state", "unit_embeds", "match_logits"]
            if decoder_input_ids is not None:
                wanted.append("context")
            if read is not None and len(read.rows) < count:
                read = read.repeated(count)
            fused = self.fuse(seen, read, count, wanted)
            contexts = fused.pop("context", None)
            names = {"last_hidden_state": "fused_hidden_state", "unit_embeds": "fused_embeds"}
            arrays |= {names.get(name, name): array for name, array in fused.items()}
            if decoder_input_ids is not None:
                written = text_inputs(decoder_input_ids, decoder_attention_mask)
                arrays["logits"] = self._logits(written, {"contexts": contexts})
        elif decoder_input_ids is not None:
            raise ValueError(
                f"decoder_input_ids: given beside inputs of {sorted(sizes)} items, expected as many of each"
            )
        output = {name: from_numpy(np.ascontiguousarray(array), kind) for name, array in arrays.items()}
        return ModelOutput(output | states)

    def _tower_outputs(self, text: Texts | None, pixels: Any, kind: str, wanted: bool | None) -> dict[str, ModelOutput]:
        """What the towers of a text and of pictures make of them, where hidden states are asked for."""
        inputs = {TEXT.tower: text, IMAGE.tower: None if pixels is None else {"pixel_values": pixels}}
        there = {name: side for name, side in inputs.items() if side is not None}
        names = {name: self._states(name, wanted) for name in there}
        if not wanted:
            return {}
        kept = {name: [slot for slot in STATES if slot in self.tower(name).outputs] for name in there}
        outputs = {name: self.run_tower(name, side, kept[name] + names[name]) for name, side in there.items()}
        return {f"{name}_model_output": self._states_of(name, arrays, kind, True) for name, arrays in outputs.items()}

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

    def _compared(self, seen: tuple[EncodedImages, ...], text: Read | None) -> dict[str, np.ndarray]:
        """Embeddings, and the cosines of each input with the text."""
        arrays: dict[str, np.ndarray] = {}
        if text is not None:
            for each in seen:
                logits, transposed = self._logits_of(each.embeds[:, 0], text.embeds)
                arrays[f"logits_per_{each.modality}"] = logits
                if len(seen) == 1:
                    arrays["logits_per_text"] = transposed
            arrays["text_embeds"] = text.embeds
        return arrays | {f"{each.modality}_embeds": each.embeds[:, 0] for each in seen}

    def get_video_features(self, pixel_values_videos: Any, **kwargs: Any) -> Any:
        """Unit embeddings (B, D) of clips (B, num_frames, 3, H, W)."""
        check_neutral(kwargs)
        return features_of(self._encode_frames(pixel_values_videos).embeds[:, 0], kind_of(pixel_values_videos))

    def get_audio_features(self, input_features: Any, feature_attention_mask: Any = None, **kwargs: Any) -> Any:
        """Unit embeddings (B, D) of sounds."""
        check_neutral(kwargs)
        embeds = self._encode_features(input_features, feature_attention_mask).embeds[:, 0]
        return features_of(embeds, kind_of(input_features))

    # words

    def encode_image(self, images: Any = None, *, pixel_values: Any = None, batch_size: int = 8) -> EncodedImages:
        """Pictures after their tower (as `load_image` takes them; one or a list), or pixel_values. Clips and sounds may
        stand in their place, items of one kind at a time: see `encode_video` and `encode_audio`.

        Raises ImageError, VideoError, AudioError naming the place of an item that cannot be read; ValueError.
        """
        if images is None or pixel_values is not None:
            return super().encode_image(images, pixel_values=pixel_values, batch_size=batch_size)
        several = isinstance(images, list | tuple) and not is_sound_and_rate(images)
        items = list(images) if several else [images]
        kinds = [modality_of(item, SEEN, at) for at, item in enumerate(items)]
        if len(set(kinds)) > 1:
            raise ValueError(
                f"images: found {' and '.join(sorted(set(kinds)))} in one list, expected items of one kind"
            )
        if kinds and kinds[0] == VIDEO.name:
            return self.encode_video(items, batch_size=batch_size)
        if kinds and kinds[0] == AUDIO.name:
            return self.encode_audio([content_of(item, AUDIO.name) for item in items])
        return super().encode_image([content_of(item, IMAGE.name) for item in items], batch_size=batch_size)

    def _match_logits(self, seen: EncodedImages, text: Texts) -> np.ndarray:
        everything = (seen, *seen.beside)
        return self.fuse(everything, self._read(text), len(text["input_ids"]), ["match_logits"])["match_logits"]

    def _prompted(
        self, pixel_values: Any, input_ids: Any, attention_mask: Any, images: Any, **others: Any
    ) -> tuple[dict[str, Any], np.ndarray, np.ndarray | None]:
        """What to write about, and what the decoder goes on from: its first token, or the tokens of a prompt."""
        sides = ("pixel_values_videos", "input_features", "feature_attention_mask")
        extra = self._seen(None, *(others.get(name) for name in sides))
        seen: tuple[EncodedImages, ...] = extra
        if images is not None or pixel_values is not None:
            encoded = self._encoded(images, pixel_values)
            seen = (encoded, *encoded.beside, *extra)
        text = None if input_ids is None else text_inputs(input_ids, attention_mask, others.get("token_type_ids"))
        sizes = counts(seen, text)
        count = max(sizes)
        if not sizes <= {1, count}:
            raise ValueError(f"found inputs of {sorted(sizes)} items, expected as many of each, or one")
        read = None if text is None else self._read(text)
        if read is not None and len(read.rows) < count:
            read = read.repeated(count)
        contexts = self.fuse(seen, read, count, ["context"])["context"]
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
        token_type_ids: Any = None,
        images: Any = None,
        **settings: Any,
    ) -> Any:
        """Token ids (B, length) int64 of the text's tokenizer: the first token, then what the decoder wrote.

        Args:
            input_ids, attention_mask, token_type_ids: what is asked (B, L), or nothing: a caption; one picture may
                serve all questions, and one question all pictures.
            pixel_values: (B, 3, H, W); or `images`: pictures, or what encode_image and the like returned.
            pixel_values_videos, input_features, feature_attention_mask: clips and sounds, as a processor makes them.
            settings: see GenerationSettings; ids in them, and what a logits_processor sees, are the decoder's own.
        """
        prompted = self._prompted(
            pixel_values, input_ids, attention_mask, images, pixel_values_videos=pixel_values_videos,
            input_features=input_features, feature_attention_mask=feature_attention_mask, token_type_ids=token_type_ids,
        )  # fmt: skip
        kind = kind_of(input_ids, pixel_values, pixel_values_videos, input_features)
        return from_numpy(self._generated(*prompted, settings), kind)

    def stream(
        self, input_ids: Any = None, pixel_values: Any = None, attention_mask: Any = None, *, images: Any = None,
        **inputs_and_settings: Any,
    ) -> Iterator[np.ndarray]:  # fmt: skip
        """As `generate`, giving the tokens (B,) of each step as they come; greedy or sampled, no beams."""
        names = ("pixel_values_videos", "input_features", "feature_attention_mask", "token_type_ids")
        others = {name: inputs_and_settings.pop(name, None) for name in names}
        return self._streamed(
            *self._prompted(pixel_values, input_ids, attention_mask, images, **others), inputs_and_settings
        )

    def _decoder_ids(self, source: Any, prompt: np.ndarray, mask: Any, settings: dict[str, Any]) -> np.ndarray:
        """Ids of the decoder; a streamer is told the tokenizer's."""
        if (streamer := settings.get("streamer")) is not None and callable(getattr(streamer, "put", None)):
            settings = settings | {"streamer": Renamed(streamer, self._token_ids)}
        return super()._generated(source, prompt, mask, settings)

    def _generated(self, *prompted: Any) -> np.ndarray:
        return self._token_ids[self._decoder_ids(*prompted)]

    def _streamed(self, *prompted: Any) -> Iterator[np.ndarray]:
        return (self._token_ids[ids] for ids in super()._streamed(*prompted))

    def _continued(
        self, encoded: EncodedImages, prompts: list[str], settings: dict[str, Any], only_new: bool = False
    ) -> list[Said]:
        """What prompts become, which the decoder reads where other models' text side does."""
        if len(encoded) not in (1, len(prompts)):
            raise ValueError(f"prompt: found {len(prompts)} prompts and {len(encoded)} pictures, expected as many")
        begun = [self._begun(words) for words in prompts]
        texts = [Said("", 0.0)] * len(prompts)
        for length in dict.fromkeys(map(len, begun)):  # those of one length together: none depends on its neighbours
            at = [i for i, ids in enumerate(begun) if len(ids) == length]
            part = encoded[[0] * len(at)] if len(encoded) == 1 else encoded[at]
            prompted = self._prompted(None, None, None, part, prompt=np.array([begun[i] for i in at], np.int64))
            for i, text in zip(at, self._captions_said(*self._written(prompted, settings), part, False), strict=True):
                texts[i] = text
        return texts

    def _captions(self, encoded: EncodedImages, settings: dict[str, Any]) -> list[Said]:
        written = self._written(self._prompted(None, None, None, encoded), settings)
        return self._captions_said(*written, encoded, True)

    def _written(self, prompted: Any, settings: dict[str, Any]) -> tuple[list[str], np.ndarray]:
        """What the decoder writes, and how likely (see `_chances`)."""
        source, prompt, mask = prompted
        ids = self._decoder_ids(source, prompt, mask, settings)
        return self._decoded(self._token_ids[ids]), self._chances(ids, prompt.shape[1], source["contexts"], settings)

    def narrate(self, clip: Any, **settings: Any) -> Said:
        """What happens in a clip, by its pictures and its sound (see `encode_clip`)."""
        return self.caption(self.encode_clip(clip), **settings)[0]

    def _begun(self, prompt: str) -> list[int]:
        """The decoder's ids of a prompt after its first token. ValueError for a word it cannot write."""
        ids = self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        order = self._places
        if unknown := [token for token in ids if token not in order]:
            raise ValueError(f"prompt: found {self.tokenizer.decode(unknown[:1])!r}, which the decoder does not write")
        return [self.tokens["bos_token_id"], *(order[token] for token in ids)]

    def _answers(self, encoded: EncodedImages, questions: list[str], settings: dict[str, Any]) -> list[Said]:
        text = self.texts(questions, self.tower(TEXT.tower).max_positions)
        prompted = self._prompted(None, text["input_ids"], text.get("attention_mask"), encoded)
        return self._answers_said(*self._written(prompted, settings))
