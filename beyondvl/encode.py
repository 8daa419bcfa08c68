"""`encode` and `similarity`, with sentence-transformers' names: from strings, paths and pictures to embeddings."""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any

import numpy as np

from .errors import ConfigError
from .files import open_regular
from .modalities import AUDIO, IMAGE, MODALITIES, TEXT, VIDEO
from .outputs import check_count, check_device, from_numpy
from .processing.items import clip_of, content_of, is_bare, is_sound_and_rate, modality_of
from .processing.processor import AutoProcessor
from .processing.video import Sampling, video_frames
from .similarity import PRECISIONS, cos_sim, pairwise_cos_sim, quantize_embeddings, unit_rows

__all__ = ["EncodeMixin"]

CLIP_BATCH = 8  # frames of a clip at once: they are large
NAMES = tuple(modality.name for modality in MODALITIES)
EMBEDDINGS = ("sentence_embedding", "embeds", "pooler_output")  # outputs of a tower, the first that it has
VALUES = ("sentence_embedding", "token_embeddings")


class EncodeMixin:
    """What every model can do with raw inputs."""

    @property
    def processor(self) -> Any:
        """The processor of this checkpoint, made at first use of the files that were read when it was loaded."""
        if self._processor is None:
            self._processor = AutoProcessor.of_folder(self.sentences.model if self.sentences else self.files)
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
        inputs: Any = None,
        prompt_name: str | None = None,
        prompt: str | None = None,
        batch_size: int = 32,
        show_progress_bar: bool | None = None,
        output_value: str | None = "sentence_embedding",
        precision: str = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        *,
        modality: str | None = None,
        sentences: Any = None,
    ) -> Any:
        """Embeddings of texts, pictures, clips and sounds, in the order given.

        Args:
            inputs: one item or a list, or an array of strings; `sentences` is its older name. A string that names a
                file, a URL or a data: URI is that, any other one a text (see processing/items.py), but of a model that
                reads texts alone: every string; {"text": s} is always text; other paths, bytes, PIL images and arrays
                are pictures; {"audio": x} is a sound (`load_audio`: a path, bytes or (array, rate)); {"video": x} is
                a clip (`load_video`), beside which may stand num_frames (8), fps, start, end: where the model has no
                tower for clips, its embedding is the mean of the unit embeddings of its frames (Luo et al., 2021).
            prompt_name, prompt: words put before every text: one of a sentence encoder's own `prompts`, which may have
                one that stands before every text unless another is named; or any.
            batch_size: items per call of the model.
            show_progress_bar: None shows one when logging is at INFO or below.
            output_value: "sentence_embedding", or "token_embeddings" of texts: a list of (tokens, hidden_size).
            precision: see `quantize_embeddings`.
            convert_to_tensor: a torch tensor instead of an array.
            convert_to_numpy: False gives a list of rows instead of an array.
            device: "cpu" or None.
            normalize_embeddings: unit length, of what `truncate_dim` leaves.
            truncate_dim: the first so many numbers alone.
            modality: "text", "image", "video" or "audio" for all items, whatever their names look like; None decides
                item by item.

        Returns (n, D) float32, or (D,) for a single item; (0, D) for none. A text's embedding does not depend on its
        neighbours: texts run without padding, grouped by length (or padded to the model's own length).

        Raises ImageError naming the place of a picture that cannot be read, VideoError or AudioError naming the file;
        ValueError naming the place of an item that is none of them, and for options that make no sense.
        """
        inputs = sentences if inputs is None else inputs
        items, single = listed(inputs, modality)
        self._check(modality, batch_size, output_value, precision, device, truncate_dim)
        readable = self.readable
        kinds = [modality or modality_of(item, readable, at) for at, item in enumerate(items)]
        items = self._prompted(items, kinds, self._prompt(prompt_name, prompt))
        if output_value == "token_embeddings":
            found = self._token_embeddings(items, kinds, batch_size)
            found = [from_numpy(rows, "pt") for rows in found] if convert_to_tensor else found
            return found[0] if single else found
        out = self._rows(items, kinds, batch_size, show_progress_bar)[:, :truncate_dim]
        if normalize_embeddings:
            out = out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-12)
        if precision != "float32" and len(out):
            out = quantize_embeddings(out, precision)
        out = np.ascontiguousarray(out[0] if single else out)
        if convert_to_tensor:
            return from_numpy(out, "pt")
        return out if convert_to_numpy or single else list(out)

    def _check(
        self, modality: Any, batch_size: Any, output_value: Any, precision: Any, device: Any, truncate_dim: Any
    ) -> None:
        """ValueError for an option of `encode` that makes no sense."""
        if modality not in (None, *NAMES):
            raise ValueError(f"modality: found {modality!r}, expected one of {', '.join(NAMES)}, or None")
        check_count("batch_size", batch_size)
        check_device("cpu" if device is None else device)
        if output_value not in VALUES:
            raise ValueError(f"output_value: found {output_value!r}, expected one of {', '.join(VALUES)}")
        if precision not in PRECISIONS:
            raise ValueError(f"precision: found {precision!r}, expected one of {', '.join(PRECISIONS)}")
        if truncate_dim is not None:
            check_count("truncate_dim", truncate_dim)

    @property
    def readable(self) -> tuple[str, ...]:
        """The modalities it encodes by name; clips too where it sees pictures."""
        names = [modality.name for modality in self.modalities]
        return (*names, VIDEO.name) if IMAGE.name in names and VIDEO.name not in names else tuple(names)

    def _rows(self, items: list[Any], kinds: list[str], batch_size: int, show: bool | None) -> np.ndarray:
        """Embeddings (n, D) of items of those modalities."""
        out: np.ndarray | None = None
        with _progress(len(items), show) as bar:
            for name, encode in ENCODERS.items():
                indices = [i for i, kind in enumerate(kinds) if kind == name]
                for positions, rows in encode(self, indices, items, batch_size) if indices else ():
                    if out is None:
                        out = np.empty((len(items), rows.shape[1]), np.float32)
                    out[positions] = rows
                    bar.update(len(positions))
        return np.empty((0, self.get_embedding_dimension() or 0), np.float32) if out is None else out

    def get_embedding_dimension(self) -> int | None:
        """How many numbers an embedding has; None where the model makes none."""
        for modality in self.modalities:
            tower = self.tower(modality.tower)
            for name in EMBEDDINGS:
                if name in tower.outputs:
                    return tower.sizes[name]
        return None

    get_sentence_embedding_dimension = get_embedding_dimension

    def encode_query(self, inputs: Any, **options: Any) -> Any:
        """`encode` with the prompt named "query", where the sentence encoder has one."""
        return self.encode(inputs, **self._with_prompt(options, "query"))

    def encode_document(self, inputs: Any, **options: Any) -> Any:
        """`encode` with the prompt named "document", "passage" or "corpus", where the sentence encoder has one."""
        return self.encode(inputs, **self._with_prompt(options, "document", "passage", "corpus"))

    def _with_prompt(self, options: dict[str, Any], *names: str) -> dict[str, Any]:
        """Options with a prompt of those names; without one no text gets the default."""
        if options.get("prompt") is not None or options.get("prompt_name") is not None:
            return options
        name = next((name for name in names if name in self.prompts), None)
        return options | ({"prompt": ""} if name is None else {"prompt_name": name})

    @property
    def prompts(self) -> dict[str, str]:
        """A sentence encoder's prompts by name."""
        return self.sentences.prompts if self.sentences else {}

    def _prompt(self, name: str | None, prompt: str | None) -> str:
        """What stands before every text."""
        if prompt is not None:
            if not isinstance(prompt, str):
                raise ValueError(f"prompt: found {type(prompt).__name__}, expected str")
            return prompt
        default = self.sentences.default_prompt if self.sentences else None
        if name is not None and name not in self.prompts:
            raise ValueError(f"prompt_name: found {name!r}, expected one of {', '.join(self.prompts) or 'none'}")
        return self.prompts.get(name if name is not None else default, "")

    def _prompted(self, items: list[Any], kinds: list[str], words: str) -> list[Any]:
        """Items, texts after those words; what is no text stays, and is refused in its turn."""
        if not words or TEXT.name not in kinds:
            return items
        texts = [
            content_of(item, TEXT.name) if kind == TEXT.name else None for item, kind in zip(items, kinds, strict=True)
        ]
        return [
            {"text": words + text} if isinstance(text, str) else item for item, text in zip(items, texts, strict=True)
        ]

    def _text_batches(self, indices: list[int], items: list[Any], batch_size: int) -> Iterable[tuple]:
        """(places, inputs) of texts of one length at a time."""
        tower, tokenizer = self.tower(TEXT.tower), self.tokenizer
        texts = [content_of(items[i], TEXT.name) for i in indices]
        limit, lowercase = (self.sentences.max_length, self.sentences.lowercase) if self.sentences else (None, False)
        if lowercase:
            texts = [text.lower() if isinstance(text, str) else text for text in texts]
        length = min(tower.max_positions, limit or tower.max_positions, tokenizer.model_max_length)
        padding = "max_length" if tokenizer.exact_length else False
        rows = tokenizer(texts, padding=padding, truncation=True, max_length=length)
        by_length: dict[int, list[int]] = {}
        for at, ids in enumerate(rows["input_ids"]):
            by_length.setdefault(len(ids), []).append(at)
        for places in by_length.values():
            for start in range(0, len(places), batch_size):
                batch = places[start : start + batch_size]
                yield (
                    [indices[at] for at in batch],
                    {n: np.array([values[at] for at in batch]) for n, values in rows.items()},
                )

    def _encode_texts(self, indices: list[int], items: list[Any], batch_size: int) -> Iterable[tuple]:
        for places, inputs in self._text_batches(indices, items, batch_size):
            yield places, self._embed(TEXT.tower, inputs)

    def _token_embeddings(self, items: list[Any], kinds: list[str], batch_size: int) -> list[np.ndarray]:
        """Hidden states (tokens, hidden_size) of each text. ValueError for what is no text."""
        if other := [kind for kind in kinds if kind != TEXT.name]:
            raise ValueError(f"output_value: found 'token_embeddings' and {other[0]}, expected texts alone")
        found: list[Any] = [None] * len(items)
        for places, inputs in self._text_batches(list(range(len(items))), items, batch_size):
            rows = self.run_tower(TEXT.tower, inputs, ["last_hidden_state"])["last_hidden_state"]
            for place, row in zip(places, rows, strict=True):
                found[place] = row.copy()
        return found

    def _encode_pictures(self, indices: list[int], items: list[Any], batch_size: int) -> Iterable[tuple]:
        self.tower(IMAGE.tower)
        batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
        for batch, following in zip(batches, [*batches[1:], []], strict=True):
            _read_ahead(items[i] for i in following)
            pictures = [content_of(items[i], IMAGE.name) for i in batch]
            pixels = self.image_processor(pictures, positions=batch)["pixel_values"]
            yield batch, self._embed(IMAGE.tower, {"pixel_values": pixels})

    def _encode_videos(self, indices: list[int], items: list[Any], batch_size: int) -> Iterable[tuple]:
        if VIDEO.tower in self.towers:
            yield from self._encode_clips(indices, items)
            return
        self.tower(IMAGE.tower)
        for i in indices:
            video, sampling = clip_of(items, i)
            most, rows, others = min(batch_size, CLIP_BATCH), [], max(1, self.num_threads - 1)
            # the decoder leaves a processor to the model, and the model one to the decoder while there is work for it
            with _Ahead(video_frames(video, Sampling.of(sampling), others), CLIP_BATCH) as frames:
                while batch := frames.take(most):
                    pixels = self.image_processor(batch)["pixel_values"]
                    threads = self.num_threads if frames.idle else others
                    rows.append(unit_rows(self._embed(IMAGE.tower, {"pixel_values": pixels}, threads)))
            yield [i], np.concatenate(rows).mean(0, keepdims=True)

    def _encode_clips(self, indices: list[int], items: list[Any]) -> Iterable[tuple]:
        """Clips by a tower of their own, each alone: its processor takes as many frames as the tower does."""
        for i in indices:
            video, sampling = clip_of(items, i)
            if sampling:
                raise ValueError(
                    f"item {i}: found {', '.join(sampling)}, expected video alone: the model says which frames"
                )
            pixels = self.processor.clips([video])
            yield [i], self._embed(VIDEO.tower, {"pixel_values_videos": pixels})

    def _encode_sounds(self, indices: list[int], items: list[Any], batch_size: int) -> Iterable[tuple]:
        self.tower(AUDIO.tower)
        for start in range(0, len(indices), batch_size):
            batch = indices[start : start + batch_size]
            sounds = [content_of(items[i], AUDIO.name) for i in batch]
            if bare := [i for i, sound in zip(batch, sounds, strict=True) if is_bare(sound)]:
                raise ValueError(f"item {bare[0]}: sampling_rate: not given, expected (array, rate)")
            inputs = self.feature_extractor(sounds, return_tensors="np")
            yield batch, self._embed(AUDIO.tower, {name: inputs[name] for name in inputs})

    def _embed(self, tower: str, inputs: dict[str, np.ndarray], num_threads: int | None = None) -> np.ndarray:
        outputs = self.tower(tower).outputs
        name = next((n for n in EMBEDDINGS if n in outputs), None)
        if name is None:
            raise ValueError(f"{type(self).__name__} makes no embeddings, expected a model that does")
        return self.run_tower(tower, inputs, [name], num_threads)[name]

    def similarity(self, a: Any, b: Any) -> Any:
        """Cosine similarities (n, m) of two sets of embeddings (n, D) and (m, D)."""
        return cos_sim(a, b, self.num_threads)

    def similarity_pairwise(self, a: Any, b: Any) -> Any:
        """Cosine similarity (n,) of row i of a with row i of b."""
        return pairwise_cos_sim(a, b)


# how items of each modality are encoded, in this order
ENCODERS: dict[str, Callable[[Any, list[int], list[Any], int], Iterable[tuple]]] = {
    TEXT.name: lambda model, *items: model._encode_texts(*items),
    IMAGE.name: lambda model, *items: model._encode_pictures(*items),
    VIDEO.name: lambda model, *items: model._encode_videos(*items),
    AUDIO.name: lambda model, *items: model._encode_sounds(*items),
}


def listed(inputs: Any, modality: str | None) -> tuple[list[Any], bool]:
    """Items of what `encode` takes, and whether it is a single one."""
    if getattr(getattr(inputs, "dtype", None), "kind", None) in ("U", "O"):
        inputs = inputs.tolist()
    several = isinstance(inputs, list | tuple) and not is_sound_and_rate(inputs)
    single = not several and not (getattr(inputs, "ndim", 0) == 4 and modality != VIDEO.name)
    return ([inputs] if single else list(inputs)), single


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
        item = item.get(IMAGE.name) if isinstance(item, dict) else item
        if isinstance(item, str | os.PathLike) and hasattr(os, "posix_fadvise"):
            with contextlib.suppress(OSError):  # what is wrong with the file is said when its turn comes
                fd = open_regular(item)
                try:
                    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)
                finally:
                    os.close(fd)


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
