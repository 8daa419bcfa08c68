"""Whether a text fits a picture: matching heads, with or without a Q-Former, and the two halves of the latter."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..models.model import check_neutral
from ..models.tower import prepared
from ..outputs import ModelOutput, check_count, from_numpy, kind_of, to_numpy
from ..processing.items import modality_of
from .base import STATES, EncodedImages, TaskModel, require_pairs, text_inputs, with_pooled

__all__ = ["ImageQueriesModel", "MatchingModel", "QueriesModel", "QueryMatchingModel", "TextTokensModel"]


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
        outputs = self.tower("text").run(
            text | {"contexts": vision.get("context")}, [output, "last_hidden_state"], self.num_threads
        )
        score = outputs["itm_score"] if use_itm_head else vision["unit_embeds"] @ outputs["unit_embeds"].T
        kind = kind_of(input_ids, pixel_values)
        fields = {"itm_score": score, "last_hidden_state": vision["last_hidden_state"],
                  "question_embeds": outputs["last_hidden_state"]}  # fmt: skip
        return ModelOutput({name: from_numpy(np.ascontiguousarray(a), kind) for name, a in fields.items()})

    def _encode_pixels(self, pixels: np.ndarray) -> EncodedImages:
        outputs = self.run_tower("vision", {"pixel_values": pixels}, ["context", "unit_embeds"])
        return EncodedImages(tuple(outputs["context"]), outputs["unit_embeds"][:, None])

    def match(self, images: Any, texts: str | list[str], batch_size: int = 32) -> np.ndarray:
        """Probability (n,) float32 that each text fits its picture; one picture may serve all texts.

        Texts are cut at the model's length, as `encode` does.
        """
        check_count("batch_size", batch_size)
        texts = [texts] if isinstance(texts, str) else list(texts)
        if not texts:
            raise ValueError("texts: the list is empty, expected at least one text")
        seen = self._encoded(images, None)
        seen.check_texts(len(texts), "match")
        scores, most = [], self.tower("text").max_positions
        for start in range(0, len(texts), batch_size):
            part = seen if len(seen) == 1 else seen[start : start + batch_size]
            logits = self._match_logits(part, self.texts(texts[start : start + batch_size], most))
            scores.append(1 / (1 + np.exp(logits[:, 0] - logits[:, 1])))
        return np.concatenate(scores)

    def _unit_texts(self, texts: list[str], batch_size: int = 32) -> np.ndarray:
        """Unit embeddings (n, D) of texts, whatever options `encode` has."""
        tower = self.tower("text")
        rows = [np.empty((0, tower.sizes["unit_embeds"]), np.float32)]
        for start in range(0, len(texts), batch_size):
            inputs = self.texts(texts[start : start + batch_size], tower.max_positions)
            rows.append(tower.run(inputs, ["unit_embeds"], self.num_threads)["unit_embeds"])
        return np.concatenate(rows)

    def _match_logits(self, seen: EncodedImages, text: dict[str, np.ndarray]) -> np.ndarray:
        """(n, 2) of texts and their pictures, or one picture: "does not match" and "matches"."""
        inputs = text | seen.source(len(text["input_ids"]), "match")
        return self.tower("text").run(inputs, ["itm_score"], self.num_threads)["itm_score"]

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
        check_count("top_k", top_k)
        check_count("shortlist", shortlist)
        if isinstance(query, str) and modality_of(query) == "text":
            pictures = self._encoded(candidates, None)
            cosines = (pictures.embeds @ self._unit_texts([query])[0]).max(1)
            few = np.argsort(-cosines, kind="stable")[: max(top_k, shortlist)]
            scores = self.match(pictures[few], [query] * len(few))
        else:
            picture = self._encoded(query, None)
            if len(picture) != 1:
                raise ValueError(f"query: found {len(picture)} pictures, expected one, or a text")
            cosines = (self._unit_texts(list(candidates)) @ picture.embeds[0].T).max(1)
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
        hidden states where the head is used; `text_model_output` (of the Q-Former over the text, and the queries where
        the head is used) and `vision_model_output` with their `last_hidden_state` and `pooler_output`.
        """
        check_neutral(kwargs)
        pixels, text = prepared("pixel_values", pixel_values), self._text_inputs(input_ids, attention_mask)
        kind = kind_of(input_ids, pixel_values)
        if use_image_text_matching_head:
            require_pairs(pixels, text)
        vision = self.run_tower("vision", {"pixel_values": pixels}, ["context", *STATES])
        run, seen = self.tower("text").run, {"contexts": vision["context"]}
        if use_image_text_matching_head:
            outputs = run(text | seen, ["itm_score", "last_hidden_state"], self.num_threads)
            scores, texts, images = outputs["itm_score"], outputs["last_hidden_state"], vision["last_hidden_state"]
        else:
            images = run(seen, ["image_embeds"], self.num_threads)["image_embeds"]
            outputs = run(text, ["unit_embeds", "last_hidden_state"], self.num_threads)
            texts = outputs["unit_embeds"]
            scores = (images @ texts.T).max(1)
        fields = {"logits_per_image": scores, "logits_per_text": scores.T, "text_embeds": texts, "image_embeds": images}
        output = ModelOutput({name: from_numpy(np.ascontiguousarray(a), kind) for name, a in fields.items()})
        output["text_model_output"], output["vision_model_output"] = (
            with_pooled(outputs, kind),
            with_pooled(vision, kind),
        )
        return output

    def _embed(self, tower: str, inputs: dict[str, np.ndarray], num_threads: int | None = None) -> np.ndarray:
        if tower == "vision":
            raise ValueError("a picture has an embedding for each query here: use encode_image(...).embeds")
        return super()._embed(tower, inputs, num_threads)

    def get_image_features(self, pixel_values: Any, **kwargs: Any) -> Any:
        """Unit-norm embeddings (B, queries, D) of pictures."""
        check_neutral(kwargs)
        embeds = self._encode_pixels(prepared("pixel_values", pixel_values)).embeds
        return from_numpy(embeds, kind_of(pixel_values))

    def _encode_pixels(self, pixels: np.ndarray) -> EncodedImages:
        contexts = self._contexts(pixels)
        outputs = self.tower("text").run({"contexts": contexts}, ["image_embeds"], self.num_threads)
        return EncodedImages(tuple(contexts), outputs["image_embeds"])


class ImageQueriesModel(TaskModel):
    """What the query tokens of a Q-Former draw from a picture."""

    def __call__(self, pixel_values: Any = None, **kwargs: Any) -> ModelOutput:
        """transformers' Blip2VisionModelWithProjection: `image_embeds` (B, queries, D) of unit norm,
        `last_hidden_state` of the picture, and `query_output` (B, queries, hidden_size) before the projection."""
        check_neutral(kwargs)
        vision = self.run_tower("vision", {"pixel_values": pixel_values}, ["context", "last_hidden_state"])
        outputs = self.tower("queries").run(
            {"contexts": vision["context"]}, ["image_embeds", "query_output"], self.num_threads
        )
        kind = kind_of(pixel_values)
        fields = {"image_embeds": outputs["image_embeds"], "last_hidden_state": vision["last_hidden_state"],
                  "query_output": outputs["query_output"]}  # fmt: skip
        return ModelOutput({name: from_numpy(array, kind) for name, array in fields.items()})


class TextTokensModel(TaskModel):
    """The text side of a Q-Former alone."""

    def __call__(self, input_ids: Any = None, attention_mask: Any = None, **kwargs: Any) -> ModelOutput:
        """transformers' Blip2TextModelWithProjection: `text_embeds` (B, L, D) of unit norm, `last_hidden_state`."""
        check_neutral(kwargs)
        wanted = ["text_embeds", "last_hidden_state"]
        outputs = self.tower("text").run(text_inputs(input_ids, attention_mask), wanted, self.num_threads)
        return ModelOutput({name: from_numpy(a, kind_of(input_ids)) for name, a in outputs.items()})


class QueriesModel(TaskModel):
    """A Q-Former by itself, over queries and features that the caller has."""

    def __call__(
        self,
        query_embeds: Any = None,
        query_length: int | None = None,
        attention_mask: Any = None,
        encoder_hidden_states: Any = None,
        encoder_attention_mask: Any = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """transformers' Blip2QFormerModel: `last_hidden_state` (B, n, hidden_size) and `pooler_output`, the first row,
        of query_embeds (B, n, hidden_size) that draw from encoder_hidden_states (B, m, encoder_hidden_size); masks
        (B, n) and (B, m). All rows are queries.

        Raises ValueError naming the input, what was found and what was expected.
        """
        check_neutral(kwargs)
        features = {"query_embeds": query_embeds, "encoder_hidden_states": encoder_hidden_states}
        arrays = {}
        for name, value in features.items():
            if value is None:
                raise ValueError(f"{name}: not given, expected (B, n, hidden_size) floats")
            array = to_numpy(value, name)
            if array.ndim != 3 or array.dtype.kind != "f":
                raise ValueError(f"{name}: found {array.dtype} {array.shape}, expected (B, n, hidden_size) floats")
            arrays[name] = np.ascontiguousarray(array, np.float32)
        queries, states = arrays.values()
        if len(queries) != len(states):
            raise ValueError(f"encoder_hidden_states: found {len(states)} items, expected {len(queries)}")
        if query_length not in (None, queries.shape[1]):
            raise ValueError(
                f"query_length: found {query_length}, expected {queries.shape[1]}: all rows of query_embeds"
            )
        masks = [
            {} if mask is None else {"attention_mask": prepared(name, mask)}
            for name, mask in (("encoder_attention_mask", encoder_attention_mask), ("attention_mask", attention_mask))
        ]
        drawn_from = self.tower("context").run({"features": states} | masks[0], ["context"], self.num_threads)
        inputs = {"features": queries, "contexts": drawn_from["context"]} | masks[1]
        outputs = self.tower("queries").run(inputs, STATES, self.num_threads)
        return ModelOutput({name: from_numpy(outputs[name], kind_of(query_embeds)) for name in STATES})
