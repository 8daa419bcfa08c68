"""`encode` and `similarity`, with sentence-transformers' names: from strings, paths and pictures to embeddings."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Generator, Iterable
from functools import cached_property
from typing import Any

import numpy as np

from . import _C
from .config import Config, read_json
from .errors import ConfigError
from .files import open_regular
from .outputs import check_count, from_numpy, is_torch, thread_count, to_numpy
from .processing.audio import is_sound_and_rate
from .sentences import sentence_prompts

__all__ = ["EncodeMixin", "cos_sim", "semantic_search"]

PICTURE_EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")
VIDEO_EXTENSIONS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg")
AUDIO_EXTENSIONS = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".m4a", ".aac")
CLIP_BATCH = 8  # frames of a clip at once: they are large
MODALITIES = ("text", "image", "video", "audio")


def modality_of(item: Any) -> str:
    """One of MODALITIES. A string is a picture, a clip or a sound only when its extension says so; {"text": s},
    {"image": x}, {"video": x} and {"audio": x} say it themselves."""
    if isinstance(item, dict):
        return next((name for name in MODALITIES if name in item), "audio" if "array" in item else "text")
    if is_sound_and_rate(item):
        return "audio"
    if isinstance(item, str | os.PathLike):
        name = os.fspath(item).lower()
        if name.endswith(VIDEO_EXTENSIONS):
            return "video"
        if name.endswith(AUDIO_EXTENSIONS):
            return "audio"
        return "image" if not isinstance(item, str) or name.endswith(PICTURE_EXTENSIONS) else "text"
    return "video" if getattr(item, "ndim", 0) == 4 else "image"


def _content(item: Any, modality: str) -> Any:
    """What an item holds; ValueError where a dictionary is not of that modality, or says more than it."""
    if not isinstance(item, dict) or (modality == "audio" and "array" in item):
        return item
    if modality not in item or len(item) > 1:
        raise ValueError(f"item: found keys {', '.join(map(str, item))}, expected {modality} alone")
    return item[modality]


def clip_of(items: list[Any], i: int) -> tuple[Any, dict[str, Any]]:
    """A clip and how its frames are sampled; ValueError where a dictionary holds none."""
    settings = dict(item) if isinstance(item := items[i], dict) else {"video": item}
    if "video" not in settings:
        raise ValueError(f"item {i}: found keys {', '.join(map(str, settings))}, expected video")
    return settings.pop("video"), settings


def _prompted(words: str, item: Any) -> Any:
    """A text after those words; what is no text stays, and is refused in its turn."""
    text = _content(item, "text")
    return {"text": words + text} if isinstance(text, str) else item


class EncodeMixin:
    """What every model can do with raw inputs."""

    @property
    def processor(self) -> Any:
        """The processor of this checkpoint, loaded at first use."""
        if self._processor is None:
            from .processing.processor import AutoProcessor

            self._processor = AutoProcessor.from_pretrained(self.folder)
        return self._processor

    @property
    def tokenizer(self) -> Any:
        """The processor's, or the processor where that is all it is. ConfigError where the folder lacks its files."""
        return self._part("tokenizer", "tokenizer.json")

    @property
    def image_processor(self) -> Any:
        """As `tokenizer`."""
        return self._part("image_processor", "preprocessor_config.json with an image_processor_type")

    @property
    def feature_extractor(self) -> Any:
        """As `tokenizer`."""
        return self._part("feature_extractor", "preprocessor_config.json with a feature_extractor_type")

    def _part(self, name: str, file: str) -> Any:
        processor = self.processor
        part = getattr(processor, name, processor if processor.part == name else None)
        if part is None:
            raise ConfigError(f"{self.folder}: no files for {name}, expected {file}")
        return part

    def encode(
        self,
        inputs: Any,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        normalize_embeddings: bool = False,
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        modality: str | None = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
    ) -> Any:
        """Embeddings of texts, pictures, clips and sounds, in the order given.

        Args:
            inputs: one item or a list, or an array of strings. A string is text unless it ends in the extension of a
                picture, a clip or a sound; {"text": s} is always text; other paths, bytes, PIL images and arrays are
                pictures; {"audio": x} is a sound (see `load_audio`: a path, bytes or (array, rate)); {"video": x} is a
                clip (see `load_video`), beside which may stand num_frames (8), fps, start, end: its embedding is the
                mean of the unit embeddings of its frames (Luo et al., 2021).
            batch_size: items per call of the model.
            show_progress_bar: None shows one when logging is at INFO or below.
            normalize_embeddings: unit length.
            convert_to_tensor: a torch tensor instead of an array.
            convert_to_numpy: False gives a list of rows instead of an array.
            modality: "text", "image", "video" or "audio" for all items, whatever their names look like; None decides
                item by item.
            prompt_name, prompt: words put before every text: one of a sentence encoder's own `prompts`, which may have
                one that stands before every text unless another is named; or any.

        Returns (n, D) float32, or (D,) for a single item. A text's embedding does not depend on its neighbours:
        texts run without padding, grouped by length (or padded to the model's own length).

        Raises ImageError naming the place of a picture that cannot be read, VideoError or AudioError naming the file; a
        ValueError for an empty list.
        """
        if getattr(getattr(inputs, "dtype", None), "kind", None) in ("U", "O"):
            inputs = inputs.tolist()
        several = isinstance(inputs, list | tuple) and not is_sound_and_rate(inputs)
        single = not several and not (getattr(inputs, "ndim", 0) == 4 and modality != "video")
        items = [inputs] if single else list(inputs)
        if not items:
            raise ValueError("inputs: the list is empty, expected at least one item")
        if modality not in (None, *MODALITIES):
            raise ValueError(f"modality: found {modality!r}, expected one of {', '.join(MODALITIES)}, or None")
        check_count("batch_size", batch_size)
        kinds = [modality or modality_of(item) for item in items]
        if (words := self._prompt(prompt_name, prompt)) and "text" in kinds:
            items = [
                _prompted(words, item) if kind == "text" else item for item, kind in zip(items, kinds, strict=True)
            ]
        places = {name: [i for i, kind in enumerate(kinds) if kind == name] for name in MODALITIES}
        encoders = (self._encode_texts, self._encode_pictures, self._encode_videos, self._encode_sounds)
        out: np.ndarray | None = None
        with _progress(len(items), show_progress_bar) as bar:
            for indices, encode in zip(places.values(), encoders, strict=True):
                for positions, rows in encode(indices, items, batch_size) if indices else ():
                    if out is None:
                        out = np.empty((len(items), rows.shape[1]), np.float32)
                    out[positions] = rows
                    bar.update(len(positions))
        if normalize_embeddings:
            out /= np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)
        out = out[0] if single else out
        if convert_to_tensor:
            return from_numpy(out, "pt")
        return out if convert_to_numpy or single else list(out)

    def encode_query(self, inputs: Any, **options: Any) -> Any:
        """`encode` with the prompt named "query", where the sentence encoder has one."""
        return self.encode(inputs, **{"prompt_name": self._known_prompt("query")} | options)

    def encode_document(self, inputs: Any, **options: Any) -> Any:
        """`encode` with the prompt named "document", "passage" or "corpus", where the sentence encoder has one."""
        return self.encode(inputs, **{"prompt_name": self._known_prompt("document", "passage", "corpus")} | options)

    def _known_prompt(self, *names: str) -> str | None:
        return next((name for name in names if name in self.prompts), None)

    @property
    def prompts(self) -> dict[str, str]:
        """A sentence encoder's prompts by name."""
        return self._prompts[0]

    @cached_property
    def _prompts(self) -> tuple[dict[str, str], str | None]:
        return sentence_prompts(self.folder)

    def _prompt(self, name: str | None, prompt: str | None) -> str:
        """What stands before every text."""
        if prompt is not None:
            if not isinstance(prompt, str):
                raise ValueError(f"prompt: found {type(prompt).__name__}, expected str")
            return prompt
        prompts, default = self._prompts
        if name is not None and name not in prompts:
            raise ValueError(f"prompt_name: found {name!r}, expected one of {', '.join(prompts) or 'none'}")
        return prompts.get(name if name is not None else default, "")

    def _encode_texts(self, indices: list[int], items: list[Any], batch_size: int) -> Iterable[tuple]:
        length = self._text_length
        tokenizer = self.tokenizer
        texts = [_content(items[i], "text") for i in indices]
        padding = "max_length" if tokenizer.exact_length else False
        rows = tokenizer(texts, padding=padding, truncation=True, max_length=min(length, tokenizer.model_max_length))
        by_length: dict[int, list[int]] = {}
        for at, ids in enumerate(rows["input_ids"]):
            by_length.setdefault(len(ids), []).append(at)
        for places in by_length.values():
            for start in range(0, len(places), batch_size):
                batch = places[start : start + batch_size]
                inputs = {name: np.array([values[at] for at in batch]) for name, values in rows.items()}
                yield [indices[at] for at in batch], self._embed("text", inputs)

    @cached_property
    def _text_length(self) -> int:
        """Tokens the model takes: the position table, or less where a sentence encoder's own setting says so."""
        positions = self.tower("text").max_positions
        path = self.folder / "sentence_bert_config.json"
        if not path.exists():
            return positions
        return min(positions, Config(read_json(path), path.name).integer("max_seq_length", positions, 1, 1 << 30))

    def _encode_pictures(self, indices: list[int], items: list[Any], batch_size: int) -> Iterable[tuple]:
        self.tower("vision")
        image_processor = self.image_processor
        batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
        for batch, following in zip(batches, [*batches[1:], []], strict=True):
            _read_ahead(_content(items[i], "image") for i in following)
            pixels = image_processor([_content(items[i], "image") for i in batch], positions=batch)["pixel_values"]
            yield batch, self._embed("vision", {"pixel_values": pixels})

    def _encode_videos(self, indices: list[int], items: list[Any], batch_size: int) -> Iterable[tuple]:
        from .processing.video import Sampling, video_frames

        self.tower("vision")
        for i in indices:
            video, sampling = clip_of(items, i)
            most, rows, others = min(batch_size, CLIP_BATCH), [], max(1, self.num_threads - 1)
            # the decoder leaves a processor to the model, and the model one to the decoder while there is work for it
            with _Ahead(video_frames(video, Sampling.of(sampling), others), CLIP_BATCH) as frames:
                while batch := frames.take(most):
                    pixels = self.image_processor(batch)["pixel_values"]
                    threads = self.num_threads if frames.idle else others
                    rows.append(_unit(self._embed("vision", {"pixel_values": pixels}, threads)))
            yield [i], np.concatenate(rows).mean(0, keepdims=True)

    def _encode_sounds(self, indices: list[int], items: list[Any], batch_size: int) -> Iterable[tuple]:
        self.tower("audio")
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            inputs = self.feature_extractor([_content(items[i], "audio") for i in batch], return_tensors="np")
            yield batch, self._embed("audio", {name: inputs[name] for name in inputs})

    def _embed(self, modality: str, inputs: dict[str, np.ndarray], num_threads: int | None = None) -> np.ndarray:
        outputs = self.tower(modality).outputs
        name = next((n for n in ("sentence_embedding", "embeds", "pooler_output") if n in outputs), None)
        if name is None:
            raise ValueError(f"{type(self).__name__} makes no embeddings, expected a model that does")
        return self.run_tower(modality, inputs, [name], num_threads)[name]

    def similarity(self, a: Any, b: Any) -> Any:
        """Cosine similarities (n, m) of two sets of embeddings (n, D) and (m, D)."""
        return cos_sim(a, b, self.num_threads)

    def similarity_pairwise(self, a: Any, b: Any) -> Any:
        """Cosine similarity (n,) of row i of a with row i of b."""
        rows, others = _units(a, b)
        if len(rows) != len(others):
            raise ValueError(f"embeddings: found {len(rows)} and {len(others)} rows, expected pairs")
        rows = np.einsum("nd,nd->n", rows, others)
        return from_numpy(rows, "pt") if is_torch(a) or is_torch(b) else rows


class _Ahead:
    """What a generator gives, computed by a thread of its own up to `most` ahead of who takes it."""

    def __init__(self, source: Generator[Any, None, None], most: int):
        from concurrent.futures import ThreadPoolExecutor  # loading a model does not wait for it

        self._source, self._pool = source, ThreadPoolExecutor(1)
        self._coming = deque(self._pool.submit(next, source, None) for _ in range(most))

    def __enter__(self) -> _Ahead:
        return self

    def __exit__(self, *exc: object) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._source.close()

    @property
    def idle(self) -> bool:
        """Whether the thread has computed all it may."""
        return self._coming[-1].done()

    def take(self, most: int) -> list[Any]:
        """What is there, at least one and at most so many; empty at the end."""
        taken: list[Any] = []
        while len(taken) < most and (not taken or self._coming[0].done()):
            item = self._coming.popleft().result()
            self._coming.append(self._pool.submit(next, self._source, None))
            if item is None:
                break
            taken.append(item)
        return taken


def _read_ahead(items: Iterable[Any]) -> None:
    """Asks the system to read the files that come next while this batch is decoded and the model runs. Decoding itself
    is not moved ahead: it would only take the cores the model computes on."""
    for item in items:
        if isinstance(item, str | os.PathLike) and hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):  # what is wrong with the file is said when its turn comes
                fd = open_regular(item)
                try:
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(fd)


def _unit(rows: Any) -> np.ndarray:
    array = np.atleast_2d(np.asarray(to_numpy(rows, "embeddings"), np.float32))
    if array.ndim != 2:
        raise ValueError(f"embeddings: found shape {array.shape}, expected (n, D)")
    norms = np.linalg.norm(array, axis=1, keepdims=True)
    if not np.isfinite(norms).all():
        row = int(np.argmin(np.isfinite(norms)))
        raise ValueError(f"embeddings: row {row} has length {norms[row, 0]}, expected a finite one")
    return np.ascontiguousarray(array / np.maximum(norms, 1e-12))


def _units(a: Any, b: Any) -> tuple[np.ndarray, np.ndarray]:
    """Unit rows of both. ValueError where they are not of one width."""
    rows, others = _unit(a), _unit(b)
    if rows.shape[1] != others.shape[1]:
        raise ValueError(f"embeddings: found shapes {rows.shape} and {others.shape}, expected rows of one width")
    return rows, others


def cos_sim(a: Any, b: Any, num_threads: int | None = None) -> Any:
    """Cosine similarities (n, m) float32 of (n, D) and (m, D), computed by OpenBLAS."""
    scores = _C.matmul_nt(*_units(a, b), thread_count(num_threads))
    return from_numpy(scores, "pt") if is_torch(a) or is_torch(b) else scores


def semantic_search(
    query_embeddings: Any,
    corpus_embeddings: Any,
    query_chunk_size: int = 100,
    corpus_chunk_size: int = 100_000,
    top_k: int = 10,
) -> list[list[dict[str, float]]]:
    """The top_k rows of `corpus_embeddings` (m, D) for each row of `query_embeddings` (n, D) by cosine, best first.

    Returns for each query a list of {"corpus_id": int, "score": float}; sentence-transformers' function of that name.

    Raises ValueError for a size that is no whole number from 1.
    """
    sizes = {"query_chunk_size": query_chunk_size, "corpus_chunk_size": corpus_chunk_size, "top_k": top_k}
    for name, value in sizes.items():
        check_count(name, value)
    queries, corpus = _units(query_embeddings, corpus_embeddings)
    threads, results = _C.default_threads(), []
    for q in range(0, len(queries), query_chunk_size):
        part = queries[q : q + query_chunk_size]
        best: list[list[tuple[float, int]]] = [[] for _ in part]
        for c in range(0, len(corpus), corpus_chunk_size):
            scores = _C.matmul_nt(part, corpus[c : c + corpus_chunk_size], threads)
            k = min(top_k, scores.shape[1])
            top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            for i, columns in enumerate(top):
                best[i] = sorted(best[i] + [(-float(scores[i, j]), c + int(j)) for j in columns])[:top_k]
        results += [[{"corpus_id": j, "score": -s} for s, j in row] for row in best]
    return results


class _NoBar:
    def update(self, count: int) -> None:
        """Nothing is shown."""

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing to close."""


def _progress(total: int, show: bool | None) -> Any:
    if show is None:
        import logging

        show = logging.getLogger("beyondvl").getEffectiveLevel() <= logging.INFO
    if not show:
        return _NoBar()
    from tqdm.auto import tqdm

    return tqdm(total=total, desc="Batches", unit="item", disable=os.environ.get("TQDM_DISABLE") == "1")
