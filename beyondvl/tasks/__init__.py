"""Models that read text together with pictures: matching, captions, answers, one stream of both; and that hear
speech."""

from .base import EncodedImages, TaskModel
from .classifying import ClassifyingModel
from .joint import FusedModel, JointModel, PretrainingModel
from .matching import ImageQueriesModel, MatchingModel, QueriesModel, QueryMatchingModel, TextTokensModel
from .prefix import InstructedCaptioningModel, InstructedVideoModel, PrefixCaptioningModel
from .prompting import ClipPromptingModel
from .transcribing import TranscribingModel
from .writing import AnsweringModel, CaptioningModel

__all__ = ["TASK_MODELS", "AnsweringModel", "CaptioningModel", "ClassifyingModel", "ClipPromptingModel",
           "EncodedImages", "MatchingModel", "TaskModel", "TranscribingModel"]  # fmt: skip

TASK_MODELS = {
    "joint": JointModel,
    "pretraining": PretrainingModel,
    "fused": FusedModel,
    "matching": MatchingModel,
    "query_matching": QueryMatchingModel,
    "queries": QueriesModel,
    "image_queries": ImageQueriesModel,
    "text_tokens": TextTokensModel,
    "captioning": CaptioningModel,
    "prefix_captioning": PrefixCaptioningModel,
    "instructed_captioning": InstructedCaptioningModel,
    "instructed_video": InstructedVideoModel,
    "answering": AnsweringModel,
    "transcribing": TranscribingModel,
    "classifying": ClassifyingModel,
    "clip_prompting": ClipPromptingModel,
}
