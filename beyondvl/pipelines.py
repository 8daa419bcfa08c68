"""`pipeline(task, model=...)` with transformers' names and result shapes."""

from __future__ import annotations

import html
import os
from typing import Any

import numpy as np

from .hub import DEFAULT_MODEL
from .modeling import AutoModel, PreTrainedModel

__all__ = ["TASKS", "ImageFeatureExtraction", "ZeroShotImageClassification", "pipeline"]


class Scores(list):
    """A list of {"score", "label"} that notebooks show as a table."""

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{html.escape(str(r['label']))}</td><td>{r['score']:.4f}</td></tr>" for r in self)
        return f"<table><tr><th>label</th><th>score</th></tr>{rows}</table>"


class Pipeline:
    """A model and its processor for one task."""

    def __init__(self, model: PreTrainedModel):
        self.model, self.processor = model, model.processor


class ZeroShotImageClassification(Pipeline):
    """Which of the labels a picture shows: `classify(image, candidate_labels=[...])`."""

    def __call__(
        self,
        images: Any,
        candidate_labels: list[str] | None = None,
        *,
        hypothesis_template: str = "This is a photo of {}.",
        batch_size: int = 32,
        **kwargs: Any,
    ) -> Any:
        """Scores of each label, best first: a list of {"score", "label"}; a list of such lists for a list of pictures.

        Scores are a softmax over the labels, or a sigmoid of each for SigLIP, as the model was trained. Each label is
        put into `hypothesis_template`.
        """
        if kwargs:
            raise TypeError(f"unexpected arguments: {', '.join(kwargs)}")
        if not candidate_labels:
            raise ValueError("candidate_labels: found none, expected at least one label")
        labels = candidate_labels.split(",") if isinstance(candidate_labels, str) else candidate_labels
        labels = [label.strip() for label in labels]
        single = not isinstance(images, list | tuple)
        texts = [{"text": hypothesis_template.format(label)} for label in labels]
        text = self.model.encode(texts, batch_size=batch_size, normalize_embeddings=True)
        pictures = [images] if single else list(images)
        image = self.model.encode(pictures, batch_size=batch_size, normalize_embeddings=True, modality="image")
        logits = self.model.similarity(image, text) * self.model.logit_scale + self.model.logit_bias
        results = [self._ranked(row, labels) for row in logits]
        return results[0] if single else results

    def _ranked(self, logits: np.ndarray, labels: list[str]) -> Scores:
        logits = logits.astype(np.float64)
        if self.model.sigmoid:
            scores = 1 / (1 + np.exp(-logits))
        else:
            scores = np.exp(logits - logits.max())
            scores /= scores.sum()
        order = np.argsort(-scores, kind="stable")
        return Scores({"score": float(scores[i]), "label": labels[i]} for i in order)


class ImageFeatureExtraction(Pipeline):
    """Hidden states of pictures, or one vector each with pool=True."""

    def __call__(self, images: Any, *, pool: bool = False, batch_size: int = 32, return_tensors: bool = False) -> Any:
        """Nested lists of last_hidden_state [1, T, D], or with `pool` of pooler_output [1, D].

        `return_tensors=True` gives arrays instead.
        """
        single = not isinstance(images, list | tuple)
        pictures = [images] if single else list(images)
        processor = getattr(self.processor, "image_processor", self.processor)
        name, results = "pooler_output" if pool else "last_hidden_state", []
        for start in range(0, len(pictures), batch_size):
            pixels = processor(pictures[start : start + batch_size])["pixel_values"]
            results += list(self.model.run_tower("vision", {"pixel_values": pixels}, [name])[name][:, None])
        if not return_tensors:
            results = [array.tolist() for array in results]
        return results[0] if single else results


TASKS = {
    "zero-shot-image-classification": ZeroShotImageClassification,
    "image-feature-extraction": ImageFeatureExtraction,
}


def pipeline(task: str, model: str | os.PathLike | PreTrainedModel | None = None, **kwargs: Any) -> Pipeline:
    """A pipeline of one of TASKS; `model` is a name for `AutoModel.from_pretrained`, a model, or None for the default.

    Raises ValueError for an unknown task.
    """
    if task not in TASKS:
        raise ValueError(f"task: found {task!r}, expected one of {', '.join(TASKS)}")
    if not isinstance(model, PreTrainedModel):
        model = AutoModel.from_pretrained(model or DEFAULT_MODEL, **kwargs)
    return TASKS[task](model)
