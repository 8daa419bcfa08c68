"""`encode` and `similarity`, with sentence-transformers' names: from strings, paths and pictures to embeddings."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from .ahead import Ahead, progress, read_ahead
from .bulk.mixin import BulkMixin
from .embedding_options import EmbeddingOptions
from .errors import ConfigError
from .modalities import AUDIO, IMAGE, MODALITIES, TEXT, VIDEO
from .outcomes import ITEM_ERRORS, Outcomes, policy
from .outputs import check_count, check_device, each_from_numpy
from .processing.items import clip_of, content_of, is_bare, is_sound_and_rate, modality_of
from .similarity import PRECISIONS, quantize_embeddings, unit_rows

__all__ = ["EncodeMixin"]

CLIP_BATCH = 8  # frames of a clip at once: they are large
NAMES = tuple(modality.name for modality in MODALITIES)
EMBEDDINGS = ("sentence_embedding", "embeds", "pooler_output")  # outputs of a tower, the first that it has
ONE = (str, bytes, bytearray, memoryview, list, tuple)  # sequences that are one item, or a list as they are
VALUES = ("sentence_embedding", "token_embeddings", None)


class EncodeMixin(BulkMixin, EmbeddingOptions):
    """What every model can do with raw inputs."""

    @property
    def processor(self) -> Any:
        """The processor of this checkpoint, made at first use of the files that were read when it was loaded."""
        if self._processor is None:
            from .processing.processor import AutoProcessor  # loading a model does not wait for it

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
        precision: str | None = "float32",
        convert_to_numpy: bool = True,
        convert_to_tensor: bool = False,
        device: Any = None,
        normalize_embeddings: bool = False,
        truncate_dim: int | None = None,
        pool: dict[str, Any] | None = None,
        chunk_size: int | None = None,
        *,
        modality: str | None = None,
        sentences: Any = None,
        on_error: str = "raise",
    ) -> Any:
        """Embeddings of texts, pictures, clips and sounds, in the order given.

        Args:
            inputs: one item, a list, an iterator, or a column of a table; `sentences` is its older name. A string that
                names a file, a URL or a data: URI is that, any other one a text (see processing/items.py), but of a
                model that reads texts alone: every string; {"text": s} is always text; other paths, bytes, PIL images,
                arrays are pictures; {"audio": x} is a sound (`load_audio`: a path, bytes or (array, rate)); {"video":
                x} is a clip (`load_video`), beside which may stand num_frames (8), fps, start, end: its embedding is
                the mean of its frames' (Luo et al., 2021) where the model has no way of its own with clips.
            prompt_name, prompt: words put before every text: one of a sentence encoder's own `prompts`, which may have
                one that stands before every text unless another is named; or any.
            batch_size: items per call of the model.
            show_progress_bar: None shows one when logging is at INFO or below.
            output_value: "sentence_embedding", or of texts "token_embeddings": a list of (tokens, hidden_size), or
                None: a list of dictionaries with both, the tokens' ids and masks.
            precision: see `quantize_embeddings`; None is "float32".
            convert_to_tensor, convert_to_numpy: a torch tensor instead of an array; False: a list of torch tensors.
            device, pool, chunk_size: "cpu" or None; others change nothing (see `start_multi_process_pool`).
            normalize_embeddings: unit length, of what `truncate_dim` leaves.
            truncate_dim: the first so many numbers alone; None: the model's own `truncate_dim`.
            modality: "text", "image", "video" or "audio" for all items; None tells them apart by what they look like.
            on_error: of an item that cannot be read. "raise": its error, with its `index` and `source`, and `results`:
                the rows that were finished (as a KeyboardInterrupt has). "skip": it has no row; "null": a row of NaN.
                Of both the array or tensor has `failures`: (index, source, error), and `indices` of its rows' items.

        Returns (n, D) float32, or (D,) for a single item; (0, D) for none. A text's embedding does not depend on its
        neighbours: texts run without padding, grouped by length (or padded to the model's own length).

        Raises ImageError, VideoError, AudioError where one cannot be read; ValueError naming the place of an item that
        is none of them, and for options that make no sense.
        """
        items, single = listed(sentences if inputs is None else inputs, modality)
        self._check(modality, batch_size, output_value, precision, device, truncate_dim)
        rows = output_value == "sentence_embedding"
        outcomes = Outcomes(
            items, policy(on_error, rows and (convert_to_tensor or convert_to_numpy), precision, single)
        )
        readable, prompt = self.readable, self._prompt(prompt_name, prompt)
        kinds = [modality or outcomes.attempt(at, modality_of, item, readable, at) for at, item in enumerate(items)]
        items = self._after_prompt(items, kinds, prompt, outcomes)
        width, kind = truncate_dim or self.truncate_dim, "np" if convert_to_numpy and not convert_to_tensor else "pt"
        if not rows:
            values = self._text_values(items, kinds, batch_size, output_value, prompt, width, kind)
            return values[0] if single else values
        outcomes.shape = partial(_shaped, width=width, normalize=normalize_embeddings, precision=precision or "float32")
        with outcomes.kept():
            self._fill(outcomes, items, kinds, batch_size, show_progress_bar)
        out = outcomes.returned(self.get_embedding_dimension() or 0, kind)
        return out[0] if single else out if convert_to_tensor or convert_to_numpy else list(out)

    def _check(
        self, modality: Any, batch_size: Any, output_value: Any, precision: Any, device: Any, truncate_dim: Any
    ) -> None:
        """ValueError for an option of `encode` that makes no sense."""
        if modality not in (None, *NAMES):
            raise ValueError(f"modality: found {modality!r}, expected one of {', '.join(NAMES)}, or None")
        check_count("batch_size", batch_size)
        for one in device if isinstance(device, list | tuple) else [device]:
            check_device("cpu" if one is None else one)
        if output_value not in VALUES:
            raise ValueError(f"output_value: found {output_value!r}, expected one of {', '.join(map(str, VALUES))}")
        if precision not in (None, *PRECISIONS):
            raise ValueError(f"precision: found {precision!r}, expected one of {', '.join(PRECISIONS)}")
        if truncate_dim is not None:
            check_count("truncate_dim", truncate_dim)

    @property
    def readable(self) -> tuple[str, ...]:
        """The modalities it encodes by name; clips too where it sees pictures."""
        names = self.modalities
        return (*names, VIDEO.name) if IMAGE.name in names and VIDEO.name not in names else tuple(names)

    def _fill(
        self, outcomes: Outcomes, items: list[Any], kinds: list[str | None], batch_size: int, show: bool | None
    ) -> None:
        """Gives every item of those modalities its row, or its failure."""
        with progress(len(items), show) as bar:
            bar.update(len(outcomes.failures))
            for name, encode in ENCODERS.items():
                indices = outcomes.left([i for i, kind in enumerate(kinds) if kind == name])
                for positions, rows in encode(self, indices, items, batch_size, outcomes) if indices else ():
                    outcomes.add(positions, rows)
                    bar.update(len(positions))

    def get_embedding_dimension(self) -> int | None:
        """How many numbers an embedding has, at most `truncate_dim`; None where the model makes none."""
        towers = [self.towers[modality.tower] for modality in MODALITIES if modality.tower in self.towers]
        size = next((tower.sizes[name] for tower in towers for name in EMBEDDINGS if name in tower.outputs), None)
        return min(size, self.truncate_dim or size) if size else None

    get_sentence_embedding_dimension = get_embedding_dimension

    def _after_prompt(self, items: list[Any], kinds: list[str | None], words: str, outcomes: Outcomes) -> list[Any]:
        """Items, texts after those words; what is no text stays, and is refused in its turn."""
        if not words or TEXT.name not in kinds:
            return items
        texts = [
            outcomes.attempt(at, content_of, item, TEXT.name) if kind == TEXT.name else None
            for at, (item, kind) in enumerate(zip(items, kinds, strict=True))
        ]
        return [
            {"text": words + text} if isinstance(text, str) else item for item, text in zip(items, texts, strict=True)
        ]

    def _text_batches(self, indices: list[int], items: list[Any], batch_size: int) -> Iterable[tuple]:
        """(places, inputs) of texts of one length at a time."""
        self.tower(TEXT.tower)
        tokenizer = self.tokenizer
        texts = [content_of(items[i], TEXT.name) for i in indices]
        if self.sentences and self.sentences.options.lowercase:
            texts = [text.lower() if isinstance(text, str) else text for text in texts]
        padding = "max_length" if tokenizer.exact_length else False
        rows = tokenizer(texts, padding=padding, truncation=True, max_length=self.max_seq_length)
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

    def _text_values(
        self, items: list[Any], kinds: list[str], batch_size: int, output_value: str | None, prompt: str, width: Any,
        kind: str,
    ) -> list[Any]:  # fmt: skip
        """Of each text its hidden states (tokens, hidden_size), or a dictionary of them, its inputs and its embedding;
        arrays or torch tensors ("pt"). ValueError for what is no text."""
        if other := [other for other in kinds if other != TEXT.name]:
            raise ValueError(f"output_value: found {output_value!r} and {other[0]}, expected texts alone")
        said: dict[str, Any] = {"modality": TEXT.name}
        if prompt and output_value is None:
            ids = self.tokenizer(prompt)["input_ids"]
            said["prompt_length"] = len(ids) - (ids[-1] in self.tokenizer.all_special_ids)
        names = ["last_hidden_state"] + ([self._embedding(TEXT.tower)] if output_value is None else [])
        values: list[Any] = [None] * len(items)
        for places, inputs in self._text_batches(list(range(len(items))), items, batch_size):
            outputs = self.run_tower(TEXT.tower, inputs, names)
            for at, place in enumerate(places):
                tokens, *embedding = (outputs[name][at].copy() for name in names)
                values[place] = tokens
                if output_value is None:
                    whole = {"token_embeddings": tokens, "sentence_embedding": embedding[0][:width]}
                    values[place] = {name: rows[at] for name, rows in inputs.items()} | whole | said
        return [each_from_numpy(value, kind) for value in values]

    def _encode_pictures(
        self, indices: list[int], items: list[Any], batch_size: int, outcomes: Outcomes
    ) -> Iterable[tuple]:
        self.tower(IMAGE.tower)
        batches = [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]
        for batch, following in zip(batches, [*batches[1:], []], strict=True):
            read_ahead(map(_picture_of, [items[i] for i in following]))
            pictures = {i: outcomes.attempt(i, content_of, items[i], IMAGE.name) for i in batch}
            batch = outcomes.left(batch)
            inputs = self.image_processor.inputs([pictures[i] for i in batch], batch, outcomes.fail) if batch else {}
            if batch := outcomes.left(batch):
                yield batch, self._embed(IMAGE.tower, inputs)

    def _attempt(
        self, encode: Callable[..., Iterable[tuple]], size: int, indices: list[int], items: list[Any], batch_size: int,
        outcomes: Outcomes,
    ) -> Iterable[tuple]:  # fmt: skip
        """Items `size` at a time, and where some fail one by one."""
        for start in range(0, len(indices), size):
            batch = indices[start : start + size]
            try:
                yield from list(encode(batch, items, batch_size))
            except ITEM_ERRORS as error:
                if len(batch) == 1:
                    outcomes.fail(batch[0], error)
                else:
                    yield from self._attempt(encode, 1, batch, items, batch_size, outcomes)

    def _attempt_texts(
        self, indices: list[int], items: list[Any], batch_size: int, outcomes: Outcomes
    ) -> Iterable[tuple]:
        """What is no string one by one, since it fails; then all strings, by their length."""
        self._embedding(TEXT.tower)
        parts: dict[bool, list[int]] = {True: [], False: []}
        for i in indices:
            parts[_is_text(items[i])].append(i)
        yield from self._attempt(self._encode_texts, 1, parts[False], items, batch_size, outcomes)
        if parts[True]:
            yield from self._encode_texts(parts[True], items, batch_size)

    def _encode_videos(self, indices: list[int], items: list[Any], batch_size: int) -> Iterable[tuple]:
        if VIDEO.tower in self.towers:
            yield from self._encode_clips(indices, items)
            return
        from .processing.video import Sampling, video_frames  # as above

        self.tower(IMAGE.tower)
        for i in indices:
            video, sampling = clip_of(items, i)
            most, rows, others = min(batch_size, CLIP_BATCH), [], max(1, self.num_threads - 1)
            # the decoder leaves a processor to the model, and the model one to the decoder while there is work for it
            with Ahead(video_frames(video, Sampling.of(sampling), others), CLIP_BATCH) as frames:
                while batch := frames.take(most):
                    inputs = self.image_processor.inputs(batch, range(len(batch)))
                    threads = self.num_threads if frames.idle else others
                    rows.append(unit_rows(self._embed(IMAGE.tower, inputs, threads)))
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
            yield batch, self._embed_sounds(sounds)

    def _embed_sounds(self, sounds: list[Any]) -> np.ndarray:
        inputs = self.feature_extractor(sounds, return_tensors="np")
        return self._embed(AUDIO.tower, {name: inputs[name] for name in inputs})

    def _embed(self, tower: str, inputs: dict[str, np.ndarray], num_threads: int | None = None) -> np.ndarray:
        name = self._embedding(tower)
        return self.run_tower(tower, inputs, [name], num_threads)[name]

    def _embedding(self, tower: str) -> str:
        """The output of a tower that is its embedding. ValueError where there is none."""
        name = next((name for name in EMBEDDINGS if name in self.tower(tower).outputs), None)
        if name is None:
            raise ValueError(f"{type(self).__name__} makes no embeddings, expected a model that does")
        return name


# how items of each modality are encoded, in this order
ENCODERS: dict[str, Callable[[Any, list[int], list[Any], int, Outcomes], Iterable[tuple]]] = {
    TEXT.name: lambda model, *items: model._attempt_texts(*items),
    IMAGE.name: lambda model, *items: model._encode_pictures(*items),
    VIDEO.name: lambda model, *items: model._attempt(model._encode_videos, 1, *items),
    AUDIO.name: lambda model, *items: model._attempt(model._encode_sounds, items[2], *items),
}


def _shaped(rows: np.ndarray, width: int | None, normalize: bool, precision: str) -> np.ndarray:
    """Embeddings (n, D) as they are asked for."""
    rows = rows[:, :width]
    if normalize:
        rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)
    return np.ascontiguousarray(quantize_embeddings(rows, precision) if len(rows) else rows)


def _is_text(item: Any) -> bool:
    return isinstance(item.get(TEXT.name) if isinstance(item, dict) and len(item) == 1 else item, str)


def listed(inputs: Any, modality: str | None) -> tuple[list[Any], bool]:
    """Items of what `encode` takes, and whether it is a single one; columns of tables and iterators are lists."""
    if getattr(getattr(inputs, "dtype", None), "kind", None) in ("U", "O"):
        inputs = inputs.tolist()
    elif as_list := getattr(inputs, "to_pylist", getattr(inputs, "to_list", None)):  # of Arrow, of Polars and pandas
        inputs = as_list()
    elif isinstance(inputs, Iterator | Sequence) and not isinstance(inputs, ONE) and not hasattr(inputs, "read"):
        inputs = list(inputs)
    several = isinstance(inputs, list | tuple) and not is_sound_and_rate(inputs)
    single = not several and not (getattr(inputs, "ndim", 0) == 4 and modality != VIDEO.name)
    return ([inputs] if single else list(inputs)), single


def _picture_of(item: Any) -> Any:
    return item.get(IMAGE.name) if isinstance(item, dict) else item
