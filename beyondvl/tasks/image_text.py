"""Language models that read any number of pictures within a text, each as many rows as its tiles make."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from ..generation import GenerationSettings
from ..models.model import check_neutral
from ..outputs import ModelOutput, check_count, from_numpy, kind_of
from ..processing.chat import begins_itself
from .base import EncodedImages, text_inputs
from .tiles import TilesMixin
from .writing import AnswersMixin, CaptioningModel, Prompted

__all__ = ["ImageTextToTextModel", "PicturesInText"]

ASKED = "Can you describe this image?"  # what a caption answers


@dataclass(frozen=True)
class PicturesInText(EncodedImages):
    """Pictures as a text reads them: `rows_of` each (n, hidden_size), and `blocks`, what stands for it in the text."""

    rows_of: tuple[np.ndarray, ...] = ()
    blocks: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.rows_of)

    def __getitem__(self, index: Any) -> PicturesInText:
        at = np.atleast_1d(np.arange(len(self))[index]).tolist()
        chosen = {name: tuple(getattr(self, name)[i] for i in at) for name in ("rows_of", "blocks")}
        return PicturesInText(owner=self.owner, **chosen)

    @property
    def nbytes(self) -> int:
        return sum(rows.nbytes for rows in self.rows_of)

    def source(self, count: int, what: str) -> dict[str, Any]:
        self.check_texts(count, what)
        return {"features": [*self.rows_of] * (count if len(self) == 1 else 1)}


class ImageTextToTextModel(TilesMixin, AnswersMixin, CaptioningModel):
    """Goes on with a text that holds pictures: a language model that reads rows of each in place of words, and answers
    what it is asked in the form of its chat template."""

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        pixel_values: Any = None,
        pixel_attention_mask: Any = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """transformers' Idefics3ForConditionalGeneration: `logits` (B, L, vocabulary) of the token after each, and
        with `pixel_values` (B, n, 3, S, S), tiles of the pictures of each text, zeros after them,
        `image_hidden_states` (rows of all, hidden_size).

        Raises ValueError where texts have other numbers of placeholders than there are rows.
        """
        check_neutral(kwargs)
        text, kind = text_inputs(input_ids, attention_mask), kind_of(input_ids, pixel_values)
        if pixel_values is None:
            return ModelOutput(logits=from_numpy(self._logits(text, {}), kind))
        each = self._rows_of(pixel_values, pixel_attention_mask)
        self._check_places(text["input_ids"], each)
        rows = np.concatenate(each)
        logits = self._logits(text, {"features": rows} if len(rows) else {})
        return ModelOutput(logits=from_numpy(logits, kind), image_hidden_states=from_numpy(rows, kind))

    def encode_image(self, images: Any = None, *, pixel_values: Any = None, batch_size: int = 8) -> PicturesInText:
        """Runs the vision tower over pictures (as `load_image` takes them; one or a list), once for any number of
        questions. Raises ImageError naming the place of a picture that cannot be read; ValueError for an empty list,
        and for pixel_values, which do not say how tiles lie."""
        check_count("batch_size", batch_size)
        if pixel_values is not None:
            raise ValueError("pixel_values: found without the text they stand in, expected images")
        items = self._items(images)
        if not items:
            raise ValueError("images: the list is empty, expected at least one picture")
        rows: list[np.ndarray] = []
        blocks: list[str] = []
        for at, item in enumerate(items):  # each is a batch of tiles
            made = self.image_processor([item], positions=[at], return_row_col_info=True)
            rows.append(self._rows_of(made["pixel_values"])[0])
            blocks.append(self.processor.tiles(made["rows"][0][0], made["cols"][0][0]))
        return PicturesInText(owner=self.identity, rows_of=tuple(rows), blocks=tuple(blocks))

    @cached_property
    def generation_settings(self) -> GenerationSettings:
        """The defaults of `generate`: transformers', and what generation_config.json says."""
        ids = {name: self.tokens[name] for name in ("eos_token_id", "pad_token_id")}
        return GenerationSettings(**ids).updated({"generation_config": self.files.json("generation_config.json")
                                                  if "generation_config.json" in self.files else {}})  # fmt: skip

    def _prompted(self, pixel_values: Any, input_ids: Any, attention_mask: Any, images: Any, **mask: Any) -> Prompted:
        """What to write about, and the ids and mask of texts in which placeholders stand already."""
        text = text_inputs(input_ids, attention_mask)
        ids, kept = text["input_ids"], text.get("attention_mask")
        if images is None and pixel_values is None:
            return {}, ids, kept
        if images is not None:
            rows = self._source(self._encoded(images, pixel_values), len(ids))["features"]
        else:
            rows = self._rows_of(pixel_values, mask.get("pixel_attention_mask"))
        self._check_places(ids, rows)
        return ({"features": rows} if any(map(len, rows)) else {}), ids, kept

    def generate(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        pixel_values: Any = None,
        pixel_attention_mask: Any = None,
        *,
        images: Any = None,
        **settings: Any,
    ) -> Any:
        """Token ids (B, length) int64: the texts and their continuation.

        Args:
            input_ids, attention_mask: texts (B, L) with a placeholder for each row, padded on the left.
            pixel_values, pixel_attention_mask: tiles of each text's pictures, as a processor makes them; or `images`,
                one picture a text, or what encode_image returned.
            settings: see GenerationSettings: max_new_tokens, num_beams, do_sample, temperature, top_k, top_p, ...
        """
        prompted = self._prompted(
            pixel_values, input_ids, attention_mask, images, pixel_attention_mask=pixel_attention_mask
        )
        return from_numpy(self._generated(*prompted, settings), kind_of(input_ids, pixel_values))

    def stream(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        pixel_values: Any = None,
        pixel_attention_mask: Any = None,
        *,
        images: Any = None,
        **settings: Any,
    ) -> Iterator[np.ndarray]:
        """As `generate`, giving the tokens (B,) of each step as they come; greedy or sampled, no beams."""
        mask = {"pixel_attention_mask": pixel_attention_mask}
        return self._streamed(*self._prompted(pixel_values, input_ids, attention_mask, images, **mask), settings)

    def caption(self, images: Any, prompt: str | list[str] | None = None, **settings: Any) -> str | list[str]:
        """What the model says of pictures, a string for one picture: asked to describe them, or what `prompt` says."""
        return self.answer(images, ASKED if prompt is None else prompt, **settings)

    def _answers(self, encoded: PicturesInText, questions: list[str], settings: dict[str, Any]) -> list[str]:
        """Answers to questions, each put in the form of the chat template; those of one length run together."""
        if len(encoded) not in (1, len(questions)):
            raise ValueError(f"prompt: found {len(questions)} prompts and {len(encoded)} pictures, expected as many")
        part = {"type": "image"}
        asked = [[{"role": "user", "content": [part, {"type": "text", "text": question}]}] for question in questions]
        texts = self.processor.apply_chat_template(asked, add_generation_prompt=True)
        blocks = encoded.blocks * (len(texts) if len(encoded) == 1 else 1)
        token = self.processor.image_token
        filled = [text.replace(token, block, 1) for text, block in zip(texts, blocks, strict=True)]
        special = not begins_itself(self.tokenizer, filled[0])
        prompts = [self.tokenizer(text, add_special_tokens=special)["input_ids"] for text in filled]
        answers = [""] * len(prompts)
        for length in dict.fromkeys(map(len, prompts)):
            at = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
            chosen = encoded if len(encoded) == 1 else encoded[at]
            ids = self.generate(np.array([prompts[i] for i in at], np.int64), images=chosen, **settings)
            for i, text in zip(at, self._decoded(ids[:, length:]), strict=True):
                answers[i] = text
        return answers
