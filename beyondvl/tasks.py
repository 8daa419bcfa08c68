"""Models that read text together with pictures: matching, captions, answers. What their towers are is in families/.

A picture is run once: `encode_image` returns an `EncodedImages`, the keys and values that the text side attends to, and
every method below takes it in place of `pixel_values`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from .encode import is_picture
from .families.registry import Head
from .generation import Decoder, GenerationSettings, Prompt, folder_settings, generate, stream
from .modeling import PreTrainedModel, check_neutral, given_inputs, prepared
from .outputs import ModelOutput, from_numpy, kind_of

__all__ = ["TASK_MODELS", "AnsweringModel", "CaptioningModel", "EncodedImages", "MatchingModel"]


@dataclass(frozen=True)
class EncodedImages(Sequence):
    """Pictures after the vision tower: immutable, and good for any number of questions.

    `contexts` holds the keys and values of each picture; where the text side takes features in place of words instead,
    `features` (n, queries, hidden_size) holds them. `embeds` (n, queries, D) are unit-norm embeddings where the model
    has such: one a picture, or one for each query token. Indexing gives EncodedImages again.
    """

    contexts: tuple[Any, ...] = ()
    embeds: np.ndarray | None = None
    features: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.contexts) if self.features is None else len(self.features)

    def __getitem__(self, index: Any) -> EncodedImages:
        at = np.atleast_1d(np.arange(len(self))[index])
        arrays = (None if array is None else array[at] for array in (self.embeds, self.features))
        return EncodedImages(tuple(self.contexts[i] for i in at) if self.contexts else (), *arrays)

    @property
    def nbytes(self) -> int:
        """Memory of what is kept."""
        arrays = sum(array.nbytes for array in (self.embeds, self.features) if array is not None)
        return arrays + sum(context.nbytes for context in self.contexts)

    def source(self, count: int, what: str) -> dict[str, Any]:
        """What `count` texts are about, as inputs of their program: one picture serves all of them.

        ValueError names `what` does not fit.
        """
        if len(self) not in (1, count):
            raise ValueError(f"{what}: found {count} texts and {len(self)} pictures, expected as many, or one picture")
        chosen = self[[0] * count] if len(self) == 1 else self
        if chosen.features is not None:
            return {"features": np.ascontiguousarray(chosen.features)}
        return {"contexts": list(chosen.contexts)}


class TaskModel(PreTrainedModel):
    """What the models below share."""

    head: ClassVar[Head | None] = None

    def encode_image(self, images: Any = None, *, pixel_values: Any = None, batch_size: int = 8) -> EncodedImages:
        """Runs the vision tower over pictures (as `load_image` takes them; one or a list), or over pixel_values.

        Raises ImageError naming the place of a picture that cannot be read; a ValueError for an empty list.
        """
        if pixel_values is None:
            items = list(images) if isinstance(images, list | tuple) else [images]
            parts = (range(s, min(s + batch_size, len(items))) for s in range(0, len(items), batch_size))
            batches = (
                self.image_processor([items[i] for i in part], positions=list(part))["pixel_values"] for part in parts
            )
        else:
            batches = iter([prepared("pixel_values", pixel_values)])
        found = [self._encode_pixels(batch) for batch in batches]
        if not found:
            raise ValueError("images: the list is empty, expected at least one picture")
        arrays = (
            None if getattr(found[0], name) is None else np.concatenate([getattr(f, name) for f in found])
            for name in ("embeds", "features")
        )
        return EncodedImages(tuple(c for f in found for c in f.contexts), *arrays)

    def _encode_pixels(self, pixels: np.ndarray) -> EncodedImages:
        """One batch of pictures after the vision tower."""
        return EncodedImages(tuple(self._contexts(pixels)))

    def _encoded(self, images: Any, pixel_values: Any) -> EncodedImages:
        if (images is None) == (pixel_values is None):
            raise ValueError("expected either pixel_values or images (what encode_image returned, or pictures)")
        if isinstance(images, EncodedImages):
            return images
        return self.encode_image(images, pixel_values=pixel_values)

    def texts(self, texts: str | list[str], max_length: int | None = None) -> dict[str, np.ndarray]:
        """`input_ids` and `attention_mask` of texts as this model reads them, padded to one length, cut at another."""
        given = [texts] if isinstance(texts, str) else list(texts)
        inputs = self.tokenizer(
            given, padding=True, return_tensors="np", truncation=max_length is not None, max_length=max_length
        )
        return {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}

    def _decoded(self, ids: np.ndarray) -> list[str]:
        kept = [[i for i in row if i not in self.tokens.values()] for row in ids.tolist()]
        return [text.strip() for text in self.tokenizer.batch_decode(kept, skip_special_tokens=True)]

    def _contexts(self, pixels: np.ndarray) -> list[Any]:
        return self.run_tower("vision", {"pixel_values": pixels}, ["context"])["context"]

    def _logits(self, text: dict[str, np.ndarray], source: dict[str, Any]) -> np.ndarray:
        """(B, L, vocabulary) of the token after each of a text."""
        return self.tower("decoder").run(text | source, ["logits"], self.num_threads)["logits"]

    def _generated(
        self, source: dict[str, Any], ids: np.ndarray, mask: np.ndarray | None, settings: dict[str, Any]
    ) -> np.ndarray:
        chosen = self.generation_settings.updated(settings)
        return generate(self.tower("decoder"), source, ids, mask, chosen, self.num_threads)

    @cached_property
    def tokens(self) -> dict[str, int]:
        """Ids that generation begins, ends and pads with."""
        return self.head.tokens(self.config)

    @cached_property
    def generation_settings(self) -> GenerationSettings:
        """The defaults of `generate`: the checkpoint's own, then transformers'."""
        return folder_settings(self.folder, self.tokens)


def text_inputs(input_ids: Any, attention_mask: Any) -> dict[str, np.ndarray]:
    if input_ids is None:
        raise ValueError("input_ids: not given, expected (B, L) integers")
    given = {"input_ids": input_ids, "attention_mask": attention_mask}
    return {name: prepared(name, value) for name, value in given.items() if value is not None}


def require_pairs(pixels: np.ndarray, text: dict[str, np.ndarray]) -> None:
    if len(pixels) != len(text["input_ids"]):
        raise ValueError(
            f"pixel_values, input_ids: found {len(pixels)} pictures and {len(text['input_ids'])} texts, expected "
            "pairs; `match` takes one picture and many texts"
        )


class MatchingModel(TaskModel):
    """Tells whether a text fits a picture: a text encoder that attends to the picture, with a matching head, and
    embeddings of both sides for a first selection (`encode`, `similarity`)."""

    def __call__(
        self,
        input_ids: Any = None,
        pixel_values: Any = None,
        use_itm_head: bool = True,
        attention_mask: Any = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """transformers' BlipForImageTextRetrieval.

        With `use_itm_head` texts and pictures are pairs: `itm_score` (B, 2), logits of "does not match" and "matches".
        Without: `itm_score` (pictures, texts), cosines. Also `last_hidden_state` of the pictures and `question_embeds`
        of the texts. Raises ValueError where pairs are required and the numbers differ.
        """
        check_neutral(kwargs)
        pixels, text = prepared("pixel_values", pixel_values), text_inputs(input_ids, attention_mask)
        if use_itm_head:
            require_pairs(pixels, text)
        wanted = ["last_hidden_state", "context" if use_itm_head else "unit_embeds"]
        vision = self.run_tower("vision", {"pixel_values": pixels}, wanted)
        output = "itm_score" if use_itm_head else "unit_embeds"
        found = self.tower("text").run(
            text | {"contexts": vision.get("context")}, [output, "last_hidden_state"], self.num_threads
        )
        score = found["itm_score"] if use_itm_head else vision["unit_embeds"] @ found["unit_embeds"].T
        kind = kind_of(input_ids, pixel_values)
        fields = {"itm_score": score, "last_hidden_state": vision["last_hidden_state"],
                  "question_embeds": found["last_hidden_state"]}  # fmt: skip
        return ModelOutput({name: from_numpy(np.ascontiguousarray(a), kind) for name, a in fields.items()})

    def _encode_pixels(self, pixels: np.ndarray) -> EncodedImages:
        found = self.run_tower("vision", {"pixel_values": pixels}, ["context", "unit_embeds"])
        return EncodedImages(tuple(found["context"]), found["unit_embeds"][:, None])

    def match(self, images: Any, texts: str | list[str], batch_size: int = 32) -> np.ndarray:
        """Probability (n,) float32 that each text fits its picture; one picture may serve all texts.

        Texts are cut at the model's length, as `encode` does.
        """
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise ValueError("texts: the list is empty, expected at least one text")
        contexts = self._encoded(images, None).source(len(texts), "match")["contexts"]
        scores, most = [], self.tower("text").program.info()["max_positions"]
        for start in range(0, len(texts), batch_size):
            inputs: dict[str, Any] = self.texts(texts[start : start + batch_size], most)
            inputs["contexts"] = contexts[start : start + batch_size]
            logits = self.tower("text").run(inputs, ["itm_score"], self.num_threads)["itm_score"]
            scores.append(1 / (1 + np.exp(logits[:, 0] - logits[:, 1])))
        return np.concatenate(scores)

    def rerank(self, query: Any, candidates: Any, top_k: int = 10, shortlist: int = 32) -> list[dict[str, float]]:
        """The best candidates for a query: a shortlist by embeddings, then matching on it alone.

        Args:
            query: a text, with pictures (EncodedImages, or what encode_image takes) as candidates; or one picture (a
                string is one when its extension says so), with a list of texts.
            candidates: see above.
            top_k: how many to return.
            shortlist: how many of the nearest by cosine are matched.

        Returns {"corpus_id", "score" (probability of a match), "similarity" (cosine)}, best first.
        """
        if isinstance(query, str) and not is_picture(query):
            pictures = self._encoded(candidates, None)
            text = self.encode({"text": query}, normalize_embeddings=True)
            cosines = (pictures.embeds @ text).max(1)
            few = np.argsort(-cosines, kind="stable")[: max(top_k, shortlist)]
            scores = self.match(pictures[few], [query] * len(few))
        else:
            picture = self._encoded(query, None)
            if len(picture) != 1:
                raise ValueError(f"query: found {len(picture)} pictures, expected one, or a text")
            embeds = self.encode([{"text": text} for text in candidates], normalize_embeddings=True)
            cosines = (embeds @ picture.embeds[0].T).max(1)
            few = np.argsort(-cosines, kind="stable")[: max(top_k, shortlist)]
            scores = self.match(picture, [candidates[i] for i in few])
        order = np.argsort(-scores, kind="stable")[:top_k]
        return [{"corpus_id": int(few[i]), "score": float(scores[i]), "similarity": float(cosines[few[i]])}
                for i in order]  # fmt: skip


class QueryMatchingModel(MatchingModel):
    """As MatchingModel, through a Q-Former: query tokens draw from the picture, alone or together with the text.

    A picture has an embedding for each query; its similarity to a text is the largest over them.
    """

    def _text_inputs(self, input_ids: Any, attention_mask: Any) -> dict[str, np.ndarray]:
        """Ids and mask without the placeholders that texts begin with where the config names an image token."""
        text = text_inputs(input_ids, attention_mask)
        if self.config.get("image_token_index") is None:
            return text
        skip = self.config.integer("num_query_tokens", 32)
        return {name: np.ascontiguousarray(array[:, skip:]) for name, array in text.items()}

    def __call__(
        self,
        pixel_values: Any = None,
        input_ids: Any = None,
        attention_mask: Any = None,
        use_image_text_matching_head: bool = False,
        **kwargs: Any,
    ) -> ModelOutput:
        """transformers' Blip2ForImageTextRetrieval.

        `logits_per_image`: (pictures, texts) cosines, the largest over the queries; with `use_image_text_matching_head`
        texts and pictures are pairs, and it is (B, 2), logits of "does not match" and "matches". Also
        `logits_per_text`, `text_embeds` and `image_embeds`: unit-norm embeddings (n, D) and (n, queries, D), or the
        hidden states where the head is used.
        """
        check_neutral(kwargs)
        pixels, text = prepared("pixel_values", pixel_values), self._text_inputs(input_ids, attention_mask)
        kind = kind_of(input_ids, pixel_values)
        if use_image_text_matching_head:
            require_pairs(pixels, text)
            vision = self.run_tower("vision", {"pixel_values": pixels}, ["context", "last_hidden_state"])
            wanted = ["itm_score", "last_hidden_state"]
            found = self.tower("text").run(text | {"contexts": vision["context"]}, wanted, self.num_threads)
            scores, texts, images = found["itm_score"], found["last_hidden_state"], vision["last_hidden_state"]
        else:
            images = self._encode_pixels(pixels).embeds
            texts = self.tower("text").run(text, ["unit_embeds"], self.num_threads)["unit_embeds"]
            scores = (images @ texts.T).max(1)
        fields = {"logits_per_image": scores, "logits_per_text": scores.T, "text_embeds": texts, "image_embeds": images}
        return ModelOutput({name: from_numpy(np.ascontiguousarray(a), kind) for name, a in fields.items()})

    def _embed(self, modality: str, inputs: dict[str, np.ndarray]) -> np.ndarray:
        if modality == "vision":
            raise ValueError("a picture has an embedding for each query here: use encode_image(...).embeds")
        return super()._embed(modality, inputs)

    def get_image_features(self, pixel_values: Any, **kwargs: Any) -> Any:
        """Unit-norm embeddings (B, queries, D) of pictures."""
        check_neutral(kwargs)
        found = self._encode_pixels(prepared("pixel_values", pixel_values)).embeds
        return from_numpy(found, kind_of(pixel_values))

    def _encode_pixels(self, pixels: np.ndarray) -> EncodedImages:
        contexts = self._contexts(pixels)
        found = self.tower("text").run({"contexts": contexts}, ["image_embeds"], self.num_threads)
        return EncodedImages(tuple(contexts), found["image_embeds"])


class ImageQueriesModel(TaskModel):
    """What the query tokens of a Q-Former draw from a picture."""

    def __call__(self, pixel_values: Any = None, **kwargs: Any) -> ModelOutput:
        """transformers' Blip2VisionModelWithProjection: `image_embeds` (B, queries, D) of unit norm,
        `last_hidden_state` of the picture, and `query_output` (B, queries, hidden_size) before the projection."""
        check_neutral(kwargs)
        vision = self.run_tower("vision", {"pixel_values": pixel_values}, ["context", "last_hidden_state"])
        found = self.tower("queries").run(
            {"contexts": vision["context"]}, ["image_embeds", "query_output"], self.num_threads
        )
        kind = kind_of(pixel_values)
        fields = {"image_embeds": found["image_embeds"], "last_hidden_state": vision["last_hidden_state"],
                  "query_output": found["query_output"]}  # fmt: skip
        return ModelOutput({name: from_numpy(array, kind) for name, array in fields.items()})


class TextTokensModel(TaskModel):
    """The text side of a Q-Former alone."""

    def __call__(self, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> ModelOutput:
        """transformers' Blip2TextModelWithProjection: `text_embeds` (B, L, D) of unit norm, `last_hidden_state`."""
        check_neutral(kwargs)
        wanted = ["text_embeds", "last_hidden_state"]
        found = self.tower("text").run(text_inputs(input_ids, attention_mask), wanted, self.num_threads)
        return ModelOutput({name: from_numpy(a, kind_of(input_ids)) for name, a in found.items()})


def written(logits: np.ndarray, states: np.ndarray, kind: str) -> ModelOutput:
    """The output of BLIP's decoders: logits, and the picture's hidden states under both names."""
    states = from_numpy(states, kind)
    return ModelOutput(logits=from_numpy(logits, kind), image_embeds=states, last_hidden_state=states)


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

    def _prompted(
        self, pixel_values: Any, input_ids: Any, attention_mask: Any, images: Any
    ) -> tuple[dict[str, Any], np.ndarray, np.ndarray | None]:
        """What to write about, ids and mask to go on from: the family's rule for a prompt."""
        encoded = self._encoded(images, pixel_values)
        text = {} if input_ids is None else text_inputs(input_ids, attention_mask)
        count = len(text["input_ids"]) if text else len(encoded)
        ids, mask = self.head.prompt(self.config, text.get("input_ids"), text.get("attention_mask"), count)
        return encoded.source(count, "input_ids"), ids, mask

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
        source, ids, mask = self._prompted(pixel_values, input_ids, attention_mask, images)
        return from_numpy(self._generated(source, ids, mask, settings), kind_of(input_ids, pixel_values))

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
        chosen = self.generation_settings.updated(settings)
        if chosen.num_beams > 1:
            raise ValueError("stream: found num_beams above 1, expected greedy search or sampling")
        source, ids, mask = self._prompted(pixel_values, input_ids, attention_mask, images)
        tower = self.tower("decoder")
        positions = tower.program.info()["max_positions"]
        most = chosen.lengths(ids.shape[1], positions)[1]
        decoder = Decoder(tower, source, len(ids), most, self.num_threads)
        return stream(decoder, Prompt(ids, mask), chosen, positions)

    def caption(self, images: Any, prompt: str | list[str] | None = None, **settings: Any) -> str | list[str]:
        """Captions of pictures, a string for one picture; a prompt is continued, and is part of the caption."""
        single = not isinstance(images, list | tuple | EncodedImages) and not isinstance(prompt, list)
        encoded = self._encoded(images, None)
        if prompt is None:
            texts = self._decoded(self.generate(images=encoded, **settings))
        else:
            texts = self._continued(encoded, [prompt] * len(encoded) if isinstance(prompt, str) else prompt, settings)
        return texts[0] if single else texts

    def _continued(self, encoded: EncodedImages, prompts: list[str], settings: dict[str, Any]) -> list[str]:
        """Captions that begin with prompts; those of one length run together: none depends on its neighbours."""
        if len(encoded) not in (1, len(prompts)):
            raise ValueError(f"prompt: found {len(prompts)} prompts and {len(encoded)} pictures, expected as many")
        inputs = [self.texts(prompt) for prompt in prompts]
        texts: list[str] = [""] * len(prompts)
        for length in dict.fromkeys(text["input_ids"].shape[1] for text in inputs):
            at = [i for i, text in enumerate(inputs) if text["input_ids"].shape[1] == length]
            batch = {name: np.concatenate([inputs[i][name] for i in at]) for name in inputs[0]}
            pictures = encoded if len(encoded) == 1 else encoded[at]
            for i, text in zip(at, self._decoded(self.generate(images=pictures, **batch, **settings)), strict=True):
                texts[i] = text
        return texts


class PrefixCaptioningModel(CaptioningModel):
    """Says what a picture shows: a language model that reads what query tokens drew from it in place of words."""

    def _encode_pixels(self, pixels: np.ndarray) -> EncodedImages:
        contexts = self._contexts(pixels)
        found = self.tower("queries").run({"contexts": contexts}, ["features"], self.num_threads)
        return EncodedImages(features=found["features"])

    def texts(self, texts: str | list[str]) -> dict[str, np.ndarray]:
        return self.head.prefixed(self.config, super().texts(texts))

    def __call__(
        self, pixel_values: Any = None, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any
    ) -> ModelOutput:
        """transformers' Blip2ForConditionalGeneration: `logits` (B, L, vocabulary), `vision_outputs` and
        `qformer_outputs` with their `last_hidden_state`. Texts begin with a placeholder for each query."""
        check_neutral(kwargs)
        vision = self.run_tower("vision", {"pixel_values": pixel_values}, ["last_hidden_state", "context"])
        wanted = ["features", "query_output"]
        queries = self.tower("queries").run({"contexts": vision["context"]}, wanted, self.num_threads)
        text = text_inputs(input_ids, attention_mask)
        if (prompt := Prompt(text["input_ids"], text.get("attention_mask"))).positions is not None:
            text["position_ids"] = prompt.positions
        logits = self._logits(text, {"features": queries["features"]})
        kind = kind_of(input_ids, pixel_values)
        return ModelOutput(
            logits=from_numpy(logits, kind),
            vision_outputs=ModelOutput(last_hidden_state=from_numpy(vision["last_hidden_state"], kind)),
            qformer_outputs=ModelOutput(last_hidden_state=from_numpy(queries["query_output"], kind)),
        )


class AnsweringModel(TaskModel):
    """Answers questions about pictures: an encoder of the question that attends to the picture, and a decoder that
    attends to the question."""

    def _asked(self, text: dict, contexts: list[Any], ignore_padding: bool) -> list[Any]:
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
        asked = self._asked(question, vision["context"], True)
        logits = self._logits(text_inputs(decoder_input_ids, decoder_attention_mask), {"contexts": asked})
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
        asked = self._asked(text, source["contexts"], ignore_padding)
        ids = np.full((len(asked), 1), self.tokens["bos_token_id"], np.int64)
        found = self._generated({"contexts": asked}, ids, None, settings)
        return from_numpy(found, kind_of(input_ids, pixel_values))

    def answer(self, images: Any, questions: str | list[str], **settings: Any) -> str | list[str]:
        """The answer to a question about a picture, or a list for a list; padding never counts here."""
        encoded = self._encoded(images, None)
        asked = questions if isinstance(questions, list) else [questions] * len(encoded)
        single = isinstance(questions, str) and not isinstance(images, list | tuple | EncodedImages)
        texts = self._decoded(self.generate(images=encoded, ignore_padding=True, **self.texts(asked), **settings))
        return texts[0] if single else texts


class JointModel(TaskModel):
    """Fuses pictures and texts in one stream: encoders of both, and a C-Former over the features of both."""

    def _features(self, modality: str, inputs: dict[str, Any]) -> Any:
        """The projection of every row (B, n, D), as transformers' FlavaModel has it; row 0 is what `encode` gives."""
        found = self.run_tower(modality, inputs, ["projected"])["projected"]
        return from_numpy(found, kind_of(*inputs.values()))

    def fuse(self, features: dict[str, Any], wanted: list[str] | None = None) -> dict[str, np.ndarray]:
        """Runs the C-Former over the features of any subset of inputs, in the order given.

        Args:
            features: name -> features (B, n, hidden_size) float32, or (features, mask (B, n)); the names ("image",
                "text", "video", "audio", ...) only order the stream and tell what is wrong.
            wanted: outputs; default last_hidden_state (B, class token + all n, hidden_size) and pooler_output.

        What a mask hides changes nothing. Raises ValueError naming the input, what was found and what was expected.
        """
        if not features:
            raise ValueError("features: found none, expected at least one input")
        encoder = self.tower("fusion").encoder
        arrays, masks = [], []
        for name, value in features.items():
            array, mask = value if isinstance(value, tuple) else (value, None)
            array = np.ascontiguousarray(array, np.float32)
            batch = len(arrays[0] if arrays else array)
            if array.ndim != 3 or array.shape[2] != encoder.hidden_size or len(array) != batch:
                raise ValueError(f"{name}: found shape {array.shape}, expected ({batch}, n, {encoder.hidden_size})")
            mask = np.ones(array.shape[:2], np.int64) if mask is None else prepared("attention_mask", mask)
            if mask.shape != array.shape[:2]:
                raise ValueError(f"{name}: found a mask of shape {mask.shape}, expected {array.shape[:2]}")
            arrays.append(array)
            masks.append(mask)
        lead = 0 if encoder.stem.class_token is None else 1
        masks.insert(0, np.ones((len(arrays[0]), lead), np.int64))
        inputs = {"features": np.concatenate(arrays, 1), "attention_mask": np.concatenate(masks, 1)}
        return self.tower("fusion").run(inputs, wanted or ["last_hidden_state", "pooler_output"], self.num_threads)

    def __call__(
        self,
        input_ids: Any = None,
        pixel_values: Any = None,
        attention_mask: Any = None,
        token_type_ids: Any = None,
        skip_multimodal_encoder: bool | None = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """transformers' FlavaModel.

        Returns those of `image_embeddings`, `image_output`, `text_embeddings`, `text_output`, `multimodal_embeddings`,
        `multimodal_output` that the inputs allow; embeddings are all hidden states (B, n, hidden_size), outputs hold
        them and `pooler_output`. With a matching head also `itm_logits` (B, 2). Both inputs together must be pairs.
        """
        check_neutral(kwargs)
        given = given_inputs((input_ids, attention_mask, token_type_ids), pixel_values)
        kind = kind_of(input_ids, pixel_values)
        wanted = ["last_hidden_state", "pooler_output"]
        output, features = ModelOutput(), {}
        for tower, name in (("vision", "image"), ("text", "text")):  # the order of the fused stream
            if tower in given:
                found = self.run_tower(tower, given[tower], [*wanted, "features"])
                features[name] = (found.pop("features"), given[tower].get("attention_mask"))
                put_states(output, name, found, kind)
        if len(features) < 2 or skip_multimodal_encoder:
            return output
        if len(output.image_embeddings) != len(output.text_embeddings):
            raise ValueError(
                f"pixel_values, input_ids: found {len(output.image_embeddings)} pictures and "
                f"{len(output.text_embeddings)} texts, expected pairs"
            )
        head = ["itm_score"] if "itm_score" in self.tower("fusion").outputs else []
        found = self.fuse(features, wanted + head)
        if head:
            output["itm_logits"] = from_numpy(found.pop("itm_score"), kind)
        put_states(output, "multimodal", found, kind)
        return output


def put_states(output: ModelOutput, name: str, found: dict[str, np.ndarray], kind: str) -> None:
    states = {n: from_numpy(array, kind) for n, array in found.items()}
    output[f"{name}_embeddings"] = states["last_hidden_state"]
    output[f"{name}_output"] = ModelOutput(states)


TASK_MODELS = {
    "joint": JointModel,
    "matching": MatchingModel,
    "query_matching": QueryMatchingModel,
    "image_queries": ImageQueriesModel,
    "text_tokens": TextTokensModel,
    "captioning": CaptioningModel,
    "prefix_captioning": PrefixCaptioningModel,
    "answering": AnsweringModel,
}
