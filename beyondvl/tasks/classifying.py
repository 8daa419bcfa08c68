"""Sounds to one of the labels a checkpoint was trained on."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..models.model import check_neutral
from ..outputs import ModelOutput, from_numpy, kind_of
from .base import TaskModel

__all__ = ["ClassifyingModel"]


class ClassifyingModel(TaskModel):
    """Tells which of its own labels a sound is of."""

    @property
    def labels(self) -> list[str]:
        """The labels in the order of the logits: the config's id2label, or LABEL_0, LABEL_1, ..."""
        known = self.config.section("id2label").to_dict()
        count = self.tower("audio").sizes["logits"]
        return [str(known.get(str(i), f"LABEL_{i}")) for i in range(count)]

    def __call__(self, input_values: Any = None, **kwargs: Any) -> ModelOutput:
        """`logits` (B, labels) of input_values (B, frames, mels) float32."""
        check_neutral(kwargs)
        logits = self.run_tower("audio", {"input_values": input_values}, ["logits"])["logits"]
        return ModelOutput(logits=from_numpy(logits, kind_of(input_values)))

    def classify(self, audio: Any, sampling_rate: int | None = None) -> np.ndarray:
        """Probabilities (B, labels) float32 of sounds (see `load_audio`; one or a list): softmax over the labels."""
        inputs = self.feature_extractor(audio, sampling_rate=sampling_rate, return_tensors="np")
        logits = self(**inputs).logits
        shares = np.exp(logits - logits.max(1, keepdims=True))
        return shares / shares.sum(1, keepdims=True)
