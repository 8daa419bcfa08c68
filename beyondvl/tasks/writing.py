"""Words about pictures: captions, and answers to questions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from ..generation import Decoder, Prompt, stream
from ..models.model import check_neutral
from ..outputs import ModelOutput, from_numpy, kind_of
from ..processing.items import is_sound_and_rate
from .base import EncodedImages, TaskModel, text_inputs

__all__ = ["AnsweringModel", "CaptioningModel"]

Prompted = tuple[dict[str, Any], np.ndarray, np.ndarray | None]  # source, ids, mask


def written(logits: np.ndarray, states: np.ndarray, kind: str) -> ModelOutput:
    """The output of BLIP's decoders: logits, and the picture's hidden states under both names."""
    states = from_numpy(states, kind)
    return ModelOutput(logits=from_numpy(logits, kind), image_embeds=states, last_hidden_state=states)


def one_each(settings: dict[str, Any]) -> None:
    """ValueError where one string an item is returned and several are asked for."""
    if settings.get("num_return_sequences", 1) not in (1, None):
        count = settings["num_return_sequences"]
        raise ValueError(f"num_return_sequences: found {count}, expected 1 here; `generate` returns several")


def one_item(images: Any) -> bool:
    """Whether it is a picture, clip or sound by itself: then one string is returned, and no list."""
    return not isinstance(images, list | tuple | EncodedImages) or is_sound_and_rate(images)


class CaptioningModel(TaskModel):
    """Says what a picture shows: a decoder that attends to the picture, from a prompt or from nothing."""

    def __call__(
        self, pixel_values: Any = None, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any
    ) -> ModelOutput:
        """transformers' BlipForConditionalGeneration: `logits` (B, L, vocabulary) of the token after each, and
        `image_embeds`, `last_hidden_state` of the pictures."""
        check_neutral(kwargs)
        vision = self.run_tower("vision", {"pixel_values": pixel_values}, ["last_hidden_state", "context"])
        logits = self._logits(text_inputs(input_ids, attention_mask), {"contexts": vision["context"]})
        return written(logits, vision["last_hidden_state"], kind_of(input_ids, pixel_values))

    def _source(self, encoded: EncodedImages, count: int) -> dict[str, Any]:
        """What `count` texts are written about."""
        return encoded.source(count, "input_ids")

    def _prompted(
        self, pixel_values: Any, input_ids: Any, attention_mask: Any, images: Any, **instruction: Any
    ) -> Prompted:
        """What to write about, ids and mask to go on from: the family's rule for a prompt."""
        encoded = self._encoded(images, pixel_values)
        text = {} if input_ids is None else text_inputs(input_ids, attention_mask)
        count = len(text["input_ids"]) if text else len(encoded)
        ids, mask = self.head.prompt(self.config, text.get("input_ids"), text.get("attention_mask"), count)
        return self._source(encoded, count, **instruction), ids, mask

    def generate(
        self,
        pixel_values: Any = None,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        images: Any = None,
        **settings: Any,
    ) -> Any:
        """Token ids (B, length) int64: the prompt and its continuation.

        Args:
            pixel_values: (B, 3, H, W); or `images`: pictures, or what encode_image returned.
            input_ids, attention_mask: prompts (B, L); one picture may serve all of them.
            settings: see GenerationSettings: max_new_tokens, num_beams, do_sample, temperature, top_k, top_p, ...
        """
        generated = self._generated(*self._prompted(pixel_values, input_ids, attention_mask, images), settings)
        return from_numpy(generated, kind_of(input_ids, pixel_values))

    def stream(
        self,
        pixel_values: Any = None,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        images: Any = None,
        **settings: Any,
    ) -> Iterator[np.ndarray]:
        """As `generate`, giving the tokens (B,) of each step as they come; greedy or sampled, no beams."""
        return self._streamed(*self._prompted(pixel_values, input_ids, attention_mask, images), settings)

    def _streamed(
        self, source: dict[str, Any], ids: np.ndarray, mask: np.ndarray | None, settings: dict[str, Any]
    ) -> Iterator[np.ndarray]:
        chosen = self.generation_settings.updated(settings)
        if chosen.num_beams > 1 or chosen.num_return_sequences > 1:
            raise ValueError("stream: found num_beams or num_return_sequences above 1, expected one sequence an item")
        tower = self.tower("decoder")
        positions, vocab = (tower.program.info()[name] for name in ("max_positions", "vocab_size"))
        chosen.check_ids(vocab)
        most = chosen.lengths(ids.shape[1], positions)[1]
        decoder = Decoder(tower, source, len(ids), most, self.num_threads)
        return stream(decoder, Prompt(ids, mask), chosen, positions)

    def caption(self, images: Any, prompt: str | list[str] | None = None, **settings: Any) -> str | list[str]:
        """Captions of pictures, a string for one picture. A prompt is continued, and is part of the caption; a language
        model with an encoder (Flan-T5) reads it and answers."""
        single = one_item(images) and not isinstance(prompt, list | tuple)
        one_each(settings)
        encoded = self._encoded(images, None)
        if prompt is None:
            texts = self._captions(encoded, settings)
        else:
            texts = self._continued(
                encoded, [prompt] * len(encoded) if isinstance(prompt, str) else list(prompt), settings
            )
        return texts[0] if single else texts

    def _captions(self, encoded: EncodedImages, settings: dict[str, Any]) -> list[str]:
        return self._decoded(self.generate(images=encoded, **settings))

    def _continued(
        self, encoded: EncodedImages, prompts: list[str], settings: dict[str, Any], only_new: bool = False
    ) -> list[str]:
        """What prompts become; those of one length run together: none depends on its neighbours. With `only_new` the
        prompt itself is left out."""
        if len(encoded) not in (1, len(prompts)):
            raise ValueError(f"prompt: found {len(prompts)} prompts and {len(encoded)} pictures, expected as many")
        inputs = [self.texts(prompt) for prompt in prompts]
        shapes = [tuple(array.shape[1] for array in text.values()) for text in inputs]
        texts: list[str] = [""] * len(prompts)
        for shape in dict.fromkeys(shapes):
            at = [i for i, other in enumerate(shapes) if other == shape]
            batch = {name: np.concatenate([inputs[i][name] for i in at]) for name in inputs[0]}
            pictures = encoded if len(encoded) == 1 else encoded[at]
            ids = self.generate(images=pictures, **batch, **settings)
            if only_new:
                ids = ids[:, self._repeated(batch["input_ids"].shape[1]) :]
            for i, text in zip(at, self._decoded(ids), strict=True):
                texts[i] = text
        return texts

    def _repeated(self, length: int) -> int:
        """How many of a prompt's tokens come first in what `generate` returns."""
        return length


class AnswersMixin:
    """`answer`, for models that say in `_answers` how."""

    def answer(self, images: Any, questions: str | list[str], **settings: Any) -> str | list[str]:
        """The answer to a question about a picture, or a list for a list; padding never counts. A language model is
        asked in the family's form of a question ("Question: ... Answer:" in BLIP-2), and gives what it writes after
        it."""
        one_each(settings)
        encoded = self._encoded(images, None)
        listed = list(questions) if isinstance(questions, list | tuple) else [questions] * len(encoded)
        single = isinstance(questions, str) and one_item(images)
        texts = self._answers(encoded, listed, settings)
        return texts[0] if single else texts


class AnsweringModel(AnswersMixin, TaskModel):
    """Answers questions about pictures: an encoder of the question that attends to the picture, and a decoder that
    attends to the question."""

    def _question_contexts(self, text: dict, contexts: list[Any], ignore_padding: bool) -> list[Any]:
        wanted = "context" if ignore_padding else "padded_context"
        return self.tower("text").run(text | {"contexts": contexts}, [wanted], self.num_threads)[wanted]

    def __call__(
        self,
        input_ids: Any = None,
        pixel_values: Any = None,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        attention_mask: Any = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """`logits` (B, L, vocabulary) of the answer's next tokens, `image_embeds`, `last_hidden_state`.

        As transformers' BlipForQuestionAnswering, whose output lacks the logits. Padding of questions is left out here
        (there: by the mask); `generate` is another matter.
        """
        check_neutral(kwargs)
        question = text_inputs(input_ids, attention_mask)
        if decoder_input_ids is None:
            raise ValueError("decoder_input_ids: not given, expected (B, L) integers; `generate` needs none")
        vision = self.run_tower("vision", {"pixel_values": pixel_values}, ["last_hidden_state", "context"])
        contexts = self._question_contexts(question, vision["context"], True)
        logits = self._logits(text_inputs(decoder_input_ids, decoder_attention_mask), {"contexts": contexts})
        return written(logits, vision["last_hidden_state"], kind_of(input_ids, pixel_values))

    def generate(
        self,
        input_ids: Any = None,
        pixel_values: Any = None,
        attention_mask: Any = None,
        *,
        images: Any = None,
        ignore_padding: bool = False,
        **settings: Any,
    ) -> Any:
        """Token ids (B, length) int64 of the answers.

        Args:
            input_ids, attention_mask: questions (B, L); one picture may serve all of them.
            pixel_values: (B, 3, H, W); or `images`: pictures, or what encode_image returned.
            ignore_padding: transformers lets the decoder attend to a question's padding, so that answers depend on the
                batch; True leaves the padding out.
            settings: see GenerationSettings.
        """
        text = text_inputs(input_ids, attention_mask)
        source = self._encoded(images, pixel_values).source(len(text["input_ids"]), "input_ids")
        contexts = self._question_contexts(text, source["contexts"], ignore_padding)
        ids = np.full((len(contexts), 1), self.tokens["bos_token_id"], np.int64)
        generated = self._generated({"contexts": contexts}, ids, None, settings)
        return from_numpy(generated, kind_of(input_ids, pixel_values))

    def _answers(self, encoded: EncodedImages, questions: list[str], settings: dict[str, Any]) -> list[str]:
        return self._decoded(self.generate(images=encoded, ignore_padding=True, **self.texts(questions), **settings))
