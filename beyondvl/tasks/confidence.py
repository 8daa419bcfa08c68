"""How sure a model is of what it said, and what it says of a picture where it is not.

    confidence = 1 / (1 + exp(-(w . x + b)))
    x of a caption: mean and least log p of its tokens, its cosine with what it is about, and that of the best name
    x of an answer: mean and least log p of its tokens
    x of a name:    log of its share among all names, by scaled cosines with the picture

p is a token's probability, by one pass of the decoder over all that it wrote. config.json has "confidence": the weights
and the bias of "caption", "answer" and "name" (Platt, 1999; chosen on inputs of no training), the `least` confidence
of a caption that is said, and `names`, of which the likeliest stands in for one below it: "probably a coin". Without
that section a confidence is the geometric mean of the p, and every caption is said.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..generation import log_softmax
from ..modalities import IMAGE
from .base import EncodedImages
from .matching import MatchingModel

__all__ = ["ConfidentMixin", "Said"]

BATCH = 32  # texts whose logits (B, L, vocabulary) are there at once


class Said(str):
    """A caption or an answer: a string that carries how sure the model is that it is right, from 0 to 1."""

    confidence: float

    def __new__(cls, text: str, confidence: float) -> Said:
        said = super().__new__(cls, text)
        said.confidence = confidence
        return said

    def __getnewargs__(self) -> tuple[str, float]:
        return str(self), self.confidence


def logistic(features: np.ndarray, weights: Any) -> np.ndarray:
    """Chances (B,) of features (B, n) by n weights and a bias."""
    *weights, bias = weights
    return 1 / (1 + np.exp(-(features @ np.array(weights) + bias)))


class ConfidentMixin(MatchingModel):
    """Of a model whose texts have embeddings beside those of what they are about."""

    @cached_property
    def _sureness(self) -> dict[str, Any] | None:
        """The section "confidence", checked."""
        if self.config.get("confidence") is None:
            return None
        section = self.config.section("confidence")
        lengths = {"caption": 5, "answer": 3, "name": 2}
        for name, count in lengths.items():
            values = section.get(name)
            numbers = isinstance(values, list) and all(type(value) in (int, float) for value in values)
            if not numbers or len(values) != count or not np.isfinite(values).all():
                raise ConfigError(f"confidence: {name}: found {values!r:.100}, expected {count} numbers")
        names = section.get("names", [])
        if not isinstance(names, list) or not all(isinstance(name, str) and name for name in names):
            raise ConfigError("confidence: names: expected a list of words")
        return section.to_dict() | {"names": names, "least": section.number("least", 0.0, 0.0, 1.0)}

    def _chances(self, ids: np.ndarray, start: int, contexts: list[Any], settings: dict[str, Any]) -> np.ndarray:
        """Mean and least log p (B, 2) of the tokens that the decoder wrote with these settings after the first `start`
        of ids (B, L), the end of the text among them."""
        chosen = self.generation_settings.updated(settings)
        rows = np.zeros((len(ids), 2), np.float32)
        for first in range(0, len(ids), BATCH):
            part = ids[first : first + BATCH]
            text = {"input_ids": np.ascontiguousarray(part[:, :-1])}
            logits = self._logits(text, {"contexts": contexts[first : first + BATCH]})[:, start - 1 :]
            chances = log_softmax(logits.reshape(-1, logits.shape[2])).reshape(logits.shape)
            target = part[:, start:]
            chances = np.take_along_axis(chances, target[:, :, None], 2)[:, :, 0]
            ended = np.isin(target, chosen.ends)
            # up to the end of the text, and that itself; what stopped otherwise is filled up
            there = (ended.cumsum(1) - ended == 0) & (ended | (target != chosen.pad_token_id))
            there[:, 0] = True
            rows[first : first + BATCH, 0] = (chances * there).sum(1) / there.sum(1)
            rows[first : first + BATCH, 1] = np.where(there, chances, 0).min(1)
        return rows

    def _sure(self, kind: str, features: np.ndarray) -> np.ndarray:
        """Confidences (B,) of features (B, n) of a kind."""
        if self._sureness is None:
            return np.exp(features[:, 0])
        return logistic(features, self._sureness[kind])

    def _answers_said(self, texts: list[str], chances: np.ndarray) -> list[Said]:
        return [Said(text, float(sure)) for text, sure in zip(texts, self._sure("answer", chances), strict=True)]

    def _with_cosines(
        self, texts: list[str], chances: np.ndarray, about: EncodedImages, names: np.ndarray
    ) -> np.ndarray:
        """`chances` (B, 2) of captions, the cosine of each with what it is about, and the largest of names' (m, D) with
        that (B, 4): where a mere name fits better, the caption is of another picture."""
        rows, embeds = self._unit_texts([text or "nothing" for text in texts]), about.embeds[:, 0]
        named = (embeds @ names.T).max(1, initial=-1.0)
        return np.concatenate([chances, np.stack([(rows * embeds).sum(1), named], 1)], 1)

    def _captions_said(self, texts: list[str], chances: np.ndarray, about: EncodedImages, replace: bool) -> list[Said]:
        """Captions with their confidences; with `replace` those of pictures that are not sure enough give way to a
        name, where that is surer."""
        features = chances
        if self._sureness is not None:
            features = self._with_cosines(texts, chances, about, self._name_embeds)
        sure = self._sure("caption", features)
        said = [Said(text, float(one)) for text, one in zip(texts, sure, strict=True)]
        if self._sureness is None:
            return said
        unsure = np.flatnonzero(sure < self._sureness["least"])
        if replace and about.modality == IMAGE.name and self._sureness["names"] and len(unsure):
            for i, name in zip(unsure, self._named(about.embeds[unsure, 0]), strict=True):
                said[i] = max(said[i], name, key=lambda one: one.confidence)
        return said

    @cached_property
    def _name_embeds(self) -> np.ndarray:
        return self._embed_names(self._sureness["names"])

    def _embed_names(self, names: list[str]) -> np.ndarray:
        return self._unit_texts([f"a photo of {name}" for name in names])

    def _likeliest(self, embeds: np.ndarray, names: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Of pictures' embeddings (n, D) the likeliest of names' (m, D), and the log of its share (n, 1)."""
        chances = log_softmax(np.float32(self.logit_scale) * (embeds @ names.T))
        best = chances.argmax(1)
        return best, np.take_along_axis(chances, best[:, None], 1)

    def _named(self, embeds: np.ndarray) -> list[Said]:
        """The likeliest name of each of some pictures' embeddings (n, D)."""
        best, shares = self._likeliest(embeds, self._name_embeds)
        sure, names = self._sure("name", shares), self._sureness["names"]
        return [Said(f"probably {names[i]}", float(s)) for i, s in zip(best, sure, strict=True)]
