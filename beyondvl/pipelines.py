"""`pipeline(task, model=...)` with transformers' names and result shapes."""

from __future__ import annotations

import base64
import contextlib
import functools
import html
import inspect
import os
from typing import Any

import numpy as np

from .hub import DEFAULT_MODEL, resolve
from .models.auto import AutoModel
from .models.classes import check_options
from .models.model import PreTrainedModel
from .outputs import check_count, check_device
from .processing.items import as_clips, is_file, is_sound_and_rate
from .processing.text import Tokenizer
from .tasks.any_modality import AnyModalityModel
from .tasks.base import EncodedImages
from .tasks.classifying import ClassifyingModel
from .tasks.confidence import Said
from .tasks.matching import MatchingModel
from .tasks.prompting import ClipPromptingModel
from .tasks.transcribing import TranscribingModel
from .tasks.writing import AnsweringModel, CaptioningModel, one_item

__all__ = [
    "TASKS",
    "AudioClassification",
    "AutomaticSpeechRecognition",
    "ImageFeatureExtraction",
    "ImageTextMatching",
    "ImageTextToText",
    "ImageToText",
    "VisualQuestionAnswering",
    "ZeroShotAudioClassification",
    "ZeroShotImageClassification",
    "ZeroShotVideoClassification",
    "pipeline",
]


LEAST_BASE64 = 100  # letters of the smallest picture


class Scores(list):
    """A list of {"score", "label"} that notebooks show as a table."""

    @classmethod
    def ranked(cls, scores: np.ndarray, labels: list[str]) -> Scores:
        """Best first."""
        order = np.argsort(-scores, kind="stable")
        return cls({"score": float(scores[i]), "label": labels[i]} for i in order)

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{html.escape(str(r['label']))}</td><td>{r['score']:.4f}</td></tr>" for r in self)
        return f"<table><tr><th>label</th><th>score</th></tr>{rows}</table>"


def _labels(labels: Any) -> list[str]:
    """Labels of a list, an array or a string with commas. ValueError where there are none."""
    names = [] if labels is None else list(labels.split(",") if isinstance(labels, str) else labels)
    if not names:
        raise ValueError("candidate_labels: found none, expected at least one label")
    if wrong := [label for label in names if not isinstance(label, str)]:
        raise ValueError(f"candidate_labels: found {wrong[0]!r}, expected texts")
    return [label.strip() for label in names]


def _picture(image: Any) -> Any:
    """A picture as transformers' pipelines take it: a PIL image is turned as its EXIF says, and a string that names no
    file may be base64."""
    if hasattr(image, "getexif"):
        from PIL import ImageOps

        return ImageOps.exif_transpose(image)
    if isinstance(image, str) and len(image) > LEAST_BASE64 and not image.startswith(("http", "data:")):
        with contextlib.suppress(ValueError):
            return base64.b64decode(image, validate=True) if not is_file(image) else image
    return image


def _pictures(images: Any) -> Any:
    """The same of one or a list."""
    return _picture(images) if one_item(images) else [_picture(image) for image in images]


class Pipeline:
    """A model and its processor for one task; `batch_size`: items per call of the model where a call names none;
    `defaults`: options of a call, where it does not name them."""

    items_at_once = 32

    def __init__(self, model: PreTrainedModel, batch_size: int | None = None, **defaults: Any):
        self.model, self.processor, self.batch_size = model, model.processor, self.items_at_once
        self.batch_size, self.defaults = self._batch_size(batch_size), defaults

    def __init_subclass__(cls) -> None:
        call = cls.__dict__.get("__call__")
        if call is None:
            return

        @functools.wraps(call)
        def with_defaults(self: Pipeline, *args: Any, **kwargs: Any) -> Any:
            return call(self, *args, **(self.defaults | kwargs))

        cls.__call__ = with_defaults

    @classmethod
    def options(cls) -> set[str]:
        """What a call may be told beside its inputs."""
        parameters = inspect.signature(cls.__call__).parameters.values()
        return {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}

    def _batch_size(self, size: int | None) -> int:
        if size is None:
            return self.batch_size
        check_count("batch_size", size)
        return size


class ZeroShotClassification(Pipeline):
    """Which of the labels something is; the base of those that name what."""

    def _classified(
        self,
        items: list[Any],
        modality: str,
        labels: Any,
        template: str,
        batch_size: int | None,
        kwargs: dict[str, Any],
    ) -> list[Scores]:
        """Scores of each item. They are a softmax over the labels, or a sigmoid of each for SigLIP, as the model was
        trained. Each label is put into the template."""
        if kwargs:
            raise TypeError(f"unexpected arguments: {', '.join(kwargs)}")
        labels, batch_size = _labels(labels), self._batch_size(batch_size)
        if not isinstance(template, str):
            raise ValueError(f"hypothesis_template: found {template!r}, expected a text with {{}} for the label")
        texts = [{"text": template.format(label)} for label in labels]
        text = self.model.encode(texts, batch_size=batch_size, normalize_embeddings=True)
        seen = self.model.encode(items, batch_size=batch_size, normalize_embeddings=True, modality=modality)
        logits = self.model.similarity(seen, text) * self.model.logit_scale + self.model.logit_bias
        return [self._ranked(row, labels) for row in logits]

    def _ranked(self, logits: np.ndarray, labels: list[str]) -> Scores:
        logits = logits.astype(np.float64)
        if self.model.sigmoid:
            scores = 1 / (1 + np.exp(-logits))
        else:
            scores = np.exp(logits - logits.max())
            scores /= scores.sum()
        return Scores.ranked(scores, labels)


class ZeroShotImageClassification(ZeroShotClassification):
    """Which of the labels a picture shows: `classify(image, candidate_labels=[...])`."""

    def __call__(
        self,
        image: Any = None,
        candidate_labels: list[str] | None = None,
        *,
        images: Any = None,
        hypothesis_template: str = "This is a photo of {}.",
        batch_size: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """Scores of each label, best first: a list of {"score", "label"}; a list of such lists for a list of pictures.

        Scores are a softmax over the labels, or a sigmoid of each for SigLIP, as the model was trained. Each label is
        put into `hypothesis_template`. `images` is an older name of `image`.
        """
        image = images if image is None else image
        single = not isinstance(image, list | tuple)
        items = _pictures([image] if single else image)
        results = self._classified(items, "image", candidate_labels, hypothesis_template, batch_size, kwargs)
        return results[0] if single else results


class ZeroShotVideoClassification(ZeroShotClassification):
    """Which of the labels a clip shows: `classify(video, candidate_labels=[...])`. Our own name; transformers has
    none."""

    def __call__(
        self,
        videos: Any,
        candidate_labels: list[str] | None = None,
        *,
        hypothesis_template: str = "This is a video of {}.",
        batch_size: int | None = None,
        num_frames: int | None = None,
        fps: float | None = None,
        start: float | None = None,
        end: float | None = None,
        **kwargs: Any,
    ) -> Any:
        """As ZeroShotImageClassification, for a clip (see `load_video`) or a list of paths, bytes or arrays. A picture
        model's embedding of a clip is the mean of its frames', sampled by num_frames (default 8), fps, start, end;
        X-CLIP takes the frames it was trained for, from start to end, and its texts look at the clip."""
        clips = as_clips(videos)
        if isinstance(videos, list | tuple) and not videos:
            return []
        several = isinstance(videos, list | tuple) and len(clips) == len(videos) and clips[0] is videos[0]
        several = several or getattr(videos, "ndim", 0) == 5
        sampling = {"num_frames": num_frames, "fps": fps, "start": start, "end": end}
        options = {name: value for name, value in sampling.items() if value is not None}
        if isinstance(self.model, ClipPromptingModel) and not kwargs:
            labels = _labels(candidate_labels)
            most = self.model.tower("text").max_positions
            texts = self.model.texts([hypothesis_template.format(label) for label in labels], max_length=most)
            logits = (self.model(**texts, pixel_values=self.model.clip_pixels(clip, **options)) for clip in clips)
            results = [self._ranked(each.logits_per_video[0], labels) for each in logits]
        else:
            items = [{"video": clip, **options} for clip in clips]
            results = self._classified(items, "video", candidate_labels, hypothesis_template, batch_size, kwargs)
        return results if several else results[0]


class ZeroShotAudioClassification(ZeroShotClassification):
    """Which of the labels a sound is of: `classify(sound, candidate_labels=[...])`."""

    def __call__(
        self,
        audios: Any,
        candidate_labels: list[str] | None = None,
        *,
        hypothesis_template: str = "This is a sound of {}.",
        batch_size: int | None = None,
        sampling_rate: int | None = None,
        **kwargs: Any,
    ) -> Any:
        """As ZeroShotImageClassification, for a sound (see `load_audio`) or a list. Arrays need their sampling_rate,
        here or as (array, rate) or {"array", "sampling_rate"}; transformers takes them to be at the model's."""
        single = is_sound_and_rate(audios) or not isinstance(audios, list | tuple)
        sounds = [audios] if single else list(audios)
        bare = [not isinstance(s, str | bytes | os.PathLike | dict) and not is_sound_and_rate(s) for s in sounds]
        items = [{"audio": (s, sampling_rate) if sampling_rate and b else s} for s, b in zip(sounds, bare, strict=True)]
        results = self._classified(items, "audio", candidate_labels, hypothesis_template, batch_size, kwargs)
        return results[0] if single else results


class ImageFeatureExtraction(Pipeline):
    """Hidden states of pictures, or one vector each with pool=True."""

    def __call__(
        self, images: Any, *, pool: bool = False, batch_size: int | None = None, return_tensors: bool = False
    ) -> Any:
        """Nested lists of last_hidden_state [1, T, D], or with `pool` of pooler_output [1, D].

        `return_tensors=True` gives arrays instead.
        """
        single = not isinstance(images, list | tuple)
        pictures = _pictures([images] if single else images)
        processor = self.model.image_processor
        batch_size = self._batch_size(batch_size)
        name, results = "pooler_output" if pool else "last_hidden_state", []
        for start in range(0, len(pictures), batch_size):
            inputs = dict(processor(pictures[start : start + batch_size]))
            results += list(self.model.run_tower("vision", inputs, [name])[name][:, None])
        if not return_tensors:
            results = [array.tolist() for array in results]
        return results[0] if single else results


class ImageTextToText(Pipeline):
    """What a picture shows, or the answer to a question about it: `read(image, text="how many?")`.

    A captioning model continues the text, which may be left out; an answering model answers it; one that does both
    takes a text that ends in a question mark for a question. Of a model of clips and sounds, these may stand for
    pictures.
    """

    def __call__(
        self,
        images: Any,
        text: str | list[str] | None = None,
        *,
        generate_kwargs: dict[str, Any] | None = None,
        batch_size: int | None = None,
        **settings: Any,
    ) -> Any:
        """One list of {"input_text" (where a text is given), "generated_text", "score" (where the model says how sure
        it is)} for a picture, or a list of such lists for a list of pictures; with a list of texts, one of them for
        each picture, or all of them for a single one.

        `settings`, or `generate_kwargs`, are those of GenerationSettings: max_new_tokens, num_beams, do_sample, ...;
        `batch_size` pictures are run at once.
        """
        if not isinstance(self.model, AnsweringModel | CaptioningModel):
            raise ValueError(f"model: found {type(self.model).__name__}, expected one that writes text")
        single = one_item(images)
        if not single and not images:
            return []
        texts = [text] if text is None or isinstance(text, str) else list(text)
        settings = settings | (generate_kwargs or {})
        encoded = self.model.encode_image(_pictures(images), batch_size=self._batch_size(batch_size))
        texts = texts * len(encoded) if len(texts) == 1 else texts
        if text is None and self._asks():
            raise ValueError(f"text: not given, expected a question: {type(self.model).__name__} answers")
        answers = self._generate(encoded, None if text is None else texts, settings)
        results = [[self._result(q, a) | _score(a)] for q, a in zip(texts, answers, strict=True)]
        return results[0] if single and len(results) == 1 else results

    def _asks(self) -> bool:
        """Whether every text is a question."""
        return isinstance(self.model, AnsweringModel)

    def _generate(self, encoded: EncodedImages, texts: list[str] | None, settings: dict[str, Any]) -> list[str]:
        both = isinstance(self.model, AnyModalityModel) and texts and all(t.rstrip().endswith("?") for t in texts)
        if self._asks() or both:
            return self.model.answer(encoded, texts, **settings)
        return self.model.caption(encoded, texts, **settings)

    def _result(self, question: str | None, answer: str) -> dict[str, str]:
        return {"generated_text": answer} if question is None else {"input_text": question, "generated_text": answer}


def _score(text: str) -> dict[str, float]:
    """Of a text that carries how sure its model is."""
    return {"score": text.confidence} if isinstance(text, Said) else {}


class ImageToText(ImageTextToText):
    """transformers 4's name for captions: results are {"generated_text"} alone, and `prompt` stands for `text`."""

    def __call__(self, images: Any, prompt: str | list[str] | None = None, **settings: Any) -> Any:
        """As ImageTextToText."""
        return super().__call__(images, prompt, **settings)

    def _result(self, question: str | None, answer: str) -> dict[str, str]:
        return {"generated_text": answer}


class VisualQuestionAnswering(ImageTextToText):
    """transformers 4's name for questions: results are {"answer"}."""

    def __call__(self, image: Any, question: str | list[str] | None = None, **settings: Any) -> Any:
        """As ImageTextToText, with one question or a list; a language model is asked in the family's form of a question
        (see `answer`), and gives what it writes after it."""
        return super().__call__(image, question, **settings)

    def _asks(self) -> bool:
        return hasattr(self.model, "answer")

    def _result(self, question: str | None, answer: str) -> dict[str, str]:
        return {"answer": answer}


class ImageTextMatching(Pipeline):
    """How well texts fit a picture: `match(image, ["a cat", "a dog"])`."""

    def __call__(self, images: Any, text: str | list[str]) -> Any:
        """Scores {"score" (probability of a match), "label"} of the texts, best first; a list of such lists for a list
        of pictures."""
        if not isinstance(self.model, MatchingModel):
            raise ValueError(f"model: found {type(self.model).__name__}, expected one with a matching head")
        texts = [text] if isinstance(text, str) else list(text)
        single = one_item(images)
        if not single and not images:
            return []
        encoded = self.model.encode_image(_pictures(images))
        results = [Scores.ranked(self.model.match(encoded[i], texts), texts) for i in range(len(encoded))]
        return results[0] if single else results


class AudioClassification(Pipeline):
    """Which of the model's own labels a sound is of: `classify(sound)`."""

    def __call__(self, inputs: Any, *, top_k: int | None = 5, sampling_rate: int | None = None) -> Any:
        """The `top_k` likeliest {"score", "label"} (None: all), best first, of a sound (see `load_audio`); a list of
        such lists for a list."""
        if not isinstance(self.model, ClassifyingModel):
            raise ValueError(f"model: found {type(self.model).__name__}, expected one that classifies sounds")
        several = isinstance(inputs, list)
        if several and not inputs:
            return []
        shares = self.model.classify(inputs if several else [inputs], sampling_rate)
        results = [Scores(Scores.ranked(row, self.model.labels)[:top_k]) for row in shares]
        return results if several else results[0]


class AutomaticSpeechRecognition(Pipeline):
    """What is said in a sound: `transcribe(sound)`."""

    items_at_once = 8

    def __call__(
        self,
        inputs: Any,
        *,
        return_timestamps: bool | None = None,
        chunk_length_s: float | None = None,
        stride_length_s: float | tuple[float, float] | None = None,
        sampling_rate: int | None = None,
        batch_size: int | None = None,
        max_new_tokens: int | None = None,
        generate_kwargs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """{"text"}, with `return_timestamps` also "chunks", of a sound (see `load_audio`; transformers' {"raw" or
        "array", "sampling_rate"} too); a list for a list. `generate_kwargs`: of the model's `generate`;
        five beams of at most 256 new tokens unless they say otherwise, as in transformers' pipeline.

        Sounds longer than the model hears at once: see `transcribe`.
        """
        if kwargs:
            raise TypeError(f"unexpected arguments: {', '.join(kwargs)}")
        if not isinstance(self.model, TranscribingModel):
            raise ValueError(f"model: found {type(self.model).__name__}, expected one that transcribes")
        several = isinstance(inputs, list)
        if several and not inputs:
            return []
        sounds = [
            {"array": s["raw"], "sampling_rate": s.get("sampling_rate", sampling_rate)}
            if isinstance(s, dict) and "raw" in s
            else s
            for s in (inputs if several else [inputs])
        ]
        settings = {"num_beams": 5, "max_new_tokens": max_new_tokens or 256} | (generate_kwargs or {})
        if return_timestamps is not None:
            settings["return_timestamps"] = return_timestamps
        results = self.model.transcribe(
            sounds,
            sampling_rate=sampling_rate,
            chunk_length_s=chunk_length_s,
            stride_length_s=stride_length_s,
            batch_size=self._batch_size(batch_size),
            **settings,
        )
        return results if several else results[0]


TASKS = {
    "zero-shot-image-classification": ZeroShotImageClassification,
    "zero-shot-audio-classification": ZeroShotAudioClassification,
    "zero-shot-video-classification": ZeroShotVideoClassification,
    "audio-classification": AudioClassification,
    "automatic-speech-recognition": AutomaticSpeechRecognition,
    "image-feature-extraction": ImageFeatureExtraction,
    "image-text-to-text": ImageTextToText,
    "image-text-matching": ImageTextMatching,
    "image-to-text": ImageToText,
    "visual-question-answering": VisualQuestionAnswering,
}


def pipeline(
    task: str,
    model: str | os.PathLike | PreTrainedModel | None = None,
    *,
    device: Any = None,
    batch_size: int | None = None,
    tokenizer: Any = None,
    feature_extractor: Any = None,
    image_processor: Any = None,
    processor: Any = None,
    **kwargs: Any,
) -> Pipeline:
    """A pipeline of one of TASKS; `model` is a name for `AutoModel.from_pretrained`, a model, or None for the default.
    `device` is the CPU: "cpu", -1 or None. A `tokenizer`, `feature_extractor`, `image_processor` or `processor` may be
    named as in transformers where it is the model's own. `kwargs` are options of a call (see the pipeline), then for
    each one, and options of `from_pretrained`.

    Raises ValueError for an unknown task, another device, or a part of another model; TypeError for options of neither.
    """
    if task not in TASKS:
        raise ValueError(f"task: found {task!r}, expected one of {', '.join(TASKS)}")
    check_device("cpu" if device is None or (type(device) is int and device == -1) else device)
    cls = TASKS[task]
    defaults = {name: kwargs.pop(name) for name in list(kwargs) if name in cls.options()}
    if not isinstance(model, PreTrainedModel):
        model = AutoModel.from_pretrained(DEFAULT_MODEL if model is None else model, **kwargs)
    else:
        dtype = check_options(kwargs.pop("dtype", None), kwargs)
        model.to(dtype=None if dtype in ("auto", "default") else dtype)
    parts = {"tokenizer": tokenizer, "feature_extractor": feature_extractor, "image_processor": image_processor,
             "processor": processor}  # fmt: skip
    for name, part in parts.items():
        if part is not None and not _is_own(model, name, part):
            raise ValueError(f"{name}: found {part!r:.200}, expected the model's own, which needs no naming")
    return cls(model, batch_size, **defaults)


def _is_own(model: PreTrainedModel, name: str, part: Any) -> bool:
    """Whether a part is what the model has: its name, or the same settings."""
    if isinstance(part, str | os.PathLike):
        return os.path.abspath(resolve(part, weights=False)) == str(model.folder)
    own = getattr(model, name)
    if part is own or type(part) is not type(own):
        return part is own
    if isinstance(own, Tokenizer):
        return part.backend_tokenizer.to_str() == own.backend_tokenizer.to_str()
    alike = part.to_dict() == own.to_dict()
    return alike and (name != "processor" or own.part or _is_own(model, "tokenizer", part.tokenizer))
