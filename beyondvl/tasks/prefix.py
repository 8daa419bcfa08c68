"""Language models that read what query tokens drew from a picture in place of words."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ..generation import Prompt
from ..models.model import check_neutral
from ..models.tower import prepared
from ..outputs import ModelOutput, from_numpy, kind_of
from ..processing.items import as_clips
from .base import STATES, EncodedImages, TaskModel, text_inputs, with_pooled
from .writing import AnswersMixin, CaptioningModel, Prompted

__all__ = ["InstructedCaptioningModel", "InstructedVideoModel", "PrefixCaptioningModel"]


class PrefixCaptioningModel(AnswersMixin, CaptioningModel):
    """Says what a picture shows, or answers a question about it: a language model that reads what query tokens drew
    from the picture in place of words."""

    def _encode_pixels(self, pixels: np.ndarray) -> EncodedImages:
        return EncodedImages(features=self._drawn(self._contexts(pixels), ["features"])["features"])

    def _seen(self, pixels: Any) -> dict[str, Any]:
        return self.run_tower("vision", {"pixel_values": pixels}, [*STATES, "context"])

    def _drawn(self, contexts: list[Any], wanted: list[str], **text: np.ndarray) -> dict[str, np.ndarray]:
        """What the query tokens drew from pictures."""
        self._require_pairs(contexts, text)
        return self.tower("queries").run({"contexts": contexts, **text}, wanted, self.num_threads)

    def get_qformer_features(self, pixel_values: Any = None, **kwargs: Any) -> Any:
        """What the query tokens drew (B, queries, hidden_size), before the projection to the language model: as
        transformers' Blip2Model."""
        check_neutral(kwargs)
        contexts = self._contexts(prepared("pixel_values", pixel_values))
        return from_numpy(self._drawn(contexts, ["query_output"])["query_output"], kind_of(pixel_values))

    def _require_pairs(self, contexts: list[Any], text: dict[str, np.ndarray]) -> None:
        if text and len(contexts) != len(text["input_ids"]):
            raise ValueError(
                f"pixel_values, qformer_input_ids: found {len(contexts)} and {len(text['input_ids'])}, expected as "
                "many instructions as pictures or clips"
            )

    def texts(self, texts: str | list[str], max_length: int | None = None) -> dict[str, np.ndarray]:
        """Ids and mask of texts, each after the placeholders of a picture; `max_length` is the text's."""
        return self.head.prefixed(self.config, super().texts(texts, max_length))

    def _answers(self, encoded: EncodedImages, questions: list[str], settings: dict[str, Any]) -> list[str]:
        return self._continued(encoded, [self.head.question.format(q) for q in questions], settings, only_new=True)

    def _repeated(self, length: int) -> int:
        return 0 if "encoder" in self.towers else length

    def _read(self, ids: np.ndarray, mask: np.ndarray | None, source: dict[str, Any]) -> dict[str, Any]:
        """ "context", what the decoder attends to after the encoder has read the text and the features in it, and its
        "last_hidden_state"."""
        inputs = {"input_ids": np.ascontiguousarray(ids), "attention_mask": mask, **source}
        return self.tower("encoder").run(inputs, ["context", "last_hidden_state"], self.num_threads)

    def _prompted(self, *inputs: Any, **instruction: Any) -> Prompted:
        source, ids, mask = super()._prompted(*inputs, **instruction)
        if "encoder" not in self.towers:
            return source, ids, mask
        start = np.full((len(ids), 1), self.tokens["decoder_start_token_id"], np.int64)
        return {"contexts": self._read(ids, mask, source)["context"]}, start, None

    def __call__(
        self,
        pixel_values: Any = None,
        input_ids: Any = None,
        attention_mask: Any = None,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """transformers' Blip2ForConditionalGeneration: `logits` (B, L, vocabulary); `vision_outputs`, `qformer_outputs`
        with `last_hidden_state` and `pooler_output`; `language_model_outputs` with `logits` and, where there is an
        encoder, `encoder_last_hidden_state`. Texts begin with a placeholder for each query.

        Where the language model has an encoder (Flan-T5), it reads them, and `logits` are of `decoder_input_ids`.
        """
        check_neutral(kwargs)
        text, kind = text_inputs(input_ids, attention_mask), kind_of(input_ids, pixel_values)
        return self._forward(pixel_values, text, {}, decoder_input_ids, decoder_attention_mask, kind)

    def _forward(
        self, pixels: Any, text: dict, instruction: dict, decoder_input_ids: Any, decoder_attention_mask: Any, kind: str
    ) -> ModelOutput:
        vision = self._seen(pixels)
        queries = self._drawn(vision["context"], ["features", "last_hidden_state"], **instruction)
        source, texts = {"features": queries["features"]}, {}
        if "encoder" in self.towers:
            if decoder_input_ids is None:
                raise ValueError("decoder_input_ids: not given, expected (B, L) integers; `generate` needs none")
            read = self._read(text["input_ids"], text.get("attention_mask"), source)
            source, texts = {"contexts": read["context"]}, {"encoder_last_hidden_state": read["last_hidden_state"]}
            text = text_inputs(decoder_input_ids, decoder_attention_mask)
        prompt = Prompt(text["input_ids"], text.get("attention_mask"))
        if prompt.positions is not None and self.tower("decoder").encoder.stem.position:  # Llama's count the columns
            text["position_ids"] = prompt.positions
        texts = {"logits": self._logits(text, source)} | texts
        language = ModelOutput({name: from_numpy(array, kind) for name, array in texts.items()})
        return ModelOutput(
            logits=language.logits,
            vision_outputs=with_pooled(vision, kind),
            qformer_outputs=with_pooled(queries, kind),
            language_model_outputs=language,
        )


class InstructedCaptioningModel(PrefixCaptioningModel):
    """Follows an instruction about a picture: query tokens that read the instruction too draw from the picture what it
    asks for, and a language model reads that in place of words, then the instruction.

    What the vision tower found serves any number of instructions; the query tokens run for each.
    """

    _encode_pixels = TaskModel._encode_pixels  # what the queries draw waits for the instruction

    def texts(self, texts: str | list[str], max_length: int | None = None) -> dict[str, np.ndarray]:
        """`input_ids` and `attention_mask` of instructions, each after the placeholders of a picture, and the same
        instructions for the query tokens: `qformer_input_ids`, `qformer_attention_mask`."""
        listed = [texts] if isinstance(texts, str) else list(texts)
        instructions = self._part("qformer_tokenizer", "qformer_tokenizer/tokenizer.json")(
            listed, padding=True, return_tensors="np"
        )
        names = ("input_ids", "attention_mask")
        return super().texts(listed, max_length) | {
            f"qformer_{name}": instructions[name] for name in names if name in instructions
        }

    def get_qformer_features(
        self, pixel_values: Any = None, qformer_input_ids: Any = None, qformer_attention_mask: Any = None, **kwargs: Any
    ) -> Any:
        """What the query tokens drew for each instruction (B, queries, hidden_size), before the projection."""
        check_neutral(kwargs)
        contexts = self._contexts(prepared("pixel_values", pixel_values))
        instruction = self._instruction(qformer_input_ids, qformer_attention_mask)
        return from_numpy(self._drawn(contexts, ["query_output"], **instruction)["query_output"], kind_of(pixel_values))

    def _source(
        self, encoded: EncodedImages, count: int, qformer_input_ids: Any, qformer_attention_mask: Any
    ) -> dict[str, Any]:
        instruction = self._instruction(qformer_input_ids, qformer_attention_mask)
        if len(instruction["input_ids"]) != count:
            instructions = len(instruction["input_ids"])
            raise ValueError(
                f"qformer_input_ids: found {instructions} instructions, expected {count}, one for each prompt"
            )
        contexts = self._grouped(encoded.source(count, "qformer_input_ids")["contexts"], encoded)
        return {"features": self._drawn(contexts, ["features"], **instruction)["features"]}

    def _grouped(self, contexts: list[Any], encoded: EncodedImages) -> list[Any]:
        return contexts

    def _instruction(self, ids: Any, mask: Any) -> dict[str, np.ndarray]:
        if ids is None:
            raise ValueError("qformer_input_ids: not given, expected (B, L) integers: the query tokens read it too")
        inputs = text_inputs(ids, mask)
        most = self.tower("queries").program.info()["max_positions"]
        if inputs["input_ids"].shape[1] > most:
            raise ValueError(f"qformer_input_ids: found {inputs['input_ids'].shape[1]} tokens, expected at most {most}")
        return inputs

    def __call__(
        self,
        pixel_values: Any = None,
        qformer_input_ids: Any = None,
        qformer_attention_mask: Any = None,
        input_ids: Any = None,
        attention_mask: Any = None,
        decoder_input_ids: Any = None,
        decoder_attention_mask: Any = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """transformers' InstructBlipForConditionalGeneration: as PrefixCaptioningModel, with the instruction in the
        Q-Former's own vocabulary; `qformer_outputs.last_hidden_state` (B, queries + L, hidden_size) holds both."""
        check_neutral(kwargs)
        text, kind = text_inputs(input_ids, attention_mask), kind_of(qformer_input_ids, pixel_values)
        instruction = self._instruction(qformer_input_ids, qformer_attention_mask)
        return self._forward(pixel_values, text, instruction, decoder_input_ids, decoder_attention_mask, kind)

    def generate(
        self,
        pixel_values: Any = None,
        qformer_input_ids: Any = None,
        qformer_attention_mask: Any = None,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        images: Any = None,
        **settings: Any,
    ) -> Any:
        """Token ids (B, length) int64, as CaptioningModel.generate; `qformer_input_ids` (B, L) are the instructions in
        the Q-Former's vocabulary."""
        instruction = {"qformer_input_ids": qformer_input_ids, "qformer_attention_mask": qformer_attention_mask}
        prompted = self._prompted(pixel_values, input_ids, attention_mask, images, **instruction)
        return from_numpy(self._generated(*prompted, settings), kind_of(qformer_input_ids, pixel_values))

    def stream(
        self,
        pixel_values: Any = None,
        qformer_input_ids: Any = None,
        qformer_attention_mask: Any = None,
        input_ids: Any = None,
        attention_mask: Any = None,
        *,
        images: Any = None,
        **settings: Any,
    ) -> Iterator[np.ndarray]:
        """As `generate`, giving the tokens (B,) of each step as they come; greedy or sampled, no beams."""
        instruction = {"qformer_input_ids": qformer_input_ids, "qformer_attention_mask": qformer_attention_mask}
        return self._streamed(*self._prompted(pixel_values, input_ids, attention_mask, images, **instruction), settings)

    def caption(self, images: Any, prompt: str | list[str] | None = None, **settings: Any) -> str | list[str]:
        """What the model writes on an instruction about pictures, which it needs: ValueError without one."""
        if prompt is None:
            raise ValueError("prompt: not given, expected an instruction: the query tokens read it too")
        return super().caption(images, prompt, **settings)


class InstructedVideoModel(InstructedCaptioningModel):
    """Follows an instruction about a clip: as InstructedCaptioningModel, over the frames of the clip one after another.

    Wherever a picture is expected a clip is (see `load_video`), and `pixel_values` are (B, frames, 3, H, W).
    """

    def _items(self, images: Any) -> list[Any]:
        return as_clips(images)

    def _pixels(self, items: list[Any], positions: list[int]) -> np.ndarray:
        return self._part("clips", "tokenizer.json and preprocessor_config.json")(items)

    def _by_clip(self, pixels: Any, run: Callable[[np.ndarray], Any]) -> tuple[Any, int]:
        """What `run` finds in the frames (B * frames, 3, H, W) of clips, and how many frames a clip has."""
        array = prepared("pixel_values", pixels)
        if array.ndim != 5:
            raise ValueError(f"pixel_values: found shape {array.shape}, expected (B, frames, 3, H, W)")
        return run(array.reshape(-1, *array.shape[2:])), array.shape[1]

    def _seen(self, pixels: Any) -> dict[str, Any]:
        outputs, frames = self._by_clip(pixels, super()._seen)
        return outputs | {"context": in_groups(outputs["context"], frames)}

    def _contexts(self, pixels: np.ndarray) -> list[Any]:
        return in_groups(*self._by_clip(pixels, super()._contexts))

    def _encode_pixels(self, pixels: np.ndarray) -> EncodedImages:
        return EncodedImages(tuple(c for clip in self._contexts(pixels) for c in clip), frames=pixels.shape[1])

    def _grouped(self, contexts: list[Any], encoded: EncodedImages) -> list[Any]:
        return in_groups(contexts, encoded.frames)

    def _drawn(self, contexts: list[Any], wanted: list[str], **text: np.ndarray) -> dict[str, np.ndarray]:
        self._require_pairs(contexts, text)
        frames, clips = len(contexts[0]), len(contexts)
        text = {name: np.repeat(array, frames, 0) for name, array in text.items()}
        outputs = super()._drawn([c for clip in contexts for c in clip], wanted, **text)
        if "features" in outputs:
            outputs["features"] = outputs["features"].reshape(clips, -1, outputs["features"].shape[2])
        return outputs


def in_groups(items: list[Any], size: int) -> list[list[Any]]:
    return [items[at : at + size] for at in range(0, len(items), size)]
