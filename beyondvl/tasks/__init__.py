"""Models that read text together with pictures: matching, captions, answers, one stream of both; and that hear speech.

A family's `Head` names a task; its class is imported when a model of it is.
"""

from __future__ import annotations

import importlib

from ..models.model import PreTrainedModel

__all__ = ["TASKS", "task_model"]

# task -> (module, class)
TASKS = {
    "joint": ("joint", "JointModel"),
    "pretraining": ("joint", "PretrainingModel"),
    "fused": ("joint", "FusedModel"),
    "matching": ("matching", "MatchingModel"),
    "query_matching": ("matching", "QueryMatchingModel"),
    "queries": ("matching", "QueriesModel"),
    "image_queries": ("matching", "ImageQueriesModel"),
    "text_tokens": ("matching", "TextTokensModel"),
    "captioning": ("writing", "CaptioningModel"),
    "prefix_captioning": ("prefix", "PrefixCaptioningModel"),
    "instructed_captioning": ("prefix", "InstructedCaptioningModel"),
    "instructed_video": ("prefix", "InstructedVideoModel"),
    "image_text_to_text": ("image_text", "ImageTextToTextModel"),
    "multi_vector": ("multi_vector", "MultiVectorModel"),
    "answering": ("writing", "AnsweringModel"),
    "transcribing": ("transcribing", "TranscribingModel"),
    "classifying": ("classifying", "ClassifyingModel"),
    "interleaved": ("interleaved", "InterleavedModel"),
    "any_modality": ("any_modality", "AnyModalityModel"),
    "clip_prompting": ("prompting", "ClipPromptingModel"),
}


def task_model(task: str) -> type[PreTrainedModel]:
    """The class of models that do a task."""
    module, name = TASKS[task]
    return getattr(importlib.import_module(f".{module}", __package__), name)
