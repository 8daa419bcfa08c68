"""What the models that read text together with pictures share. What their towers are is in families/.

A picture is run once: `encode_image` returns an `EncodedImages`, the keys and values that the text side attends to, and
every method of these models takes it in place of `pixel_values`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from ..families.registry import Head
from ..generation import GenerationSettings, generate
from ..models.model import PreTrainedModel
from ..models.tower import prepared
from ..outputs import ModelOutput, check_count, from_numpy

__all__ = ["STATES", "EncodedImages", "TaskModel", "joined", "require_pairs", "text_inputs", "with_pooled"]


STATES = ["last_hidden_state", "pooler_output"]


@dataclass(frozen=True)
class EncodedImages(Sequence):
    """Pictures after the vision tower: immutable, and good for any number of questions. Indexing gives EncodedImages.

    `contexts` holds the keys and values of each picture, `frames` of them where an item is a clip of a picture model;
    where the text side takes features in place of words instead, `features` (n, queries, hidden_size) holds them.
    `embeds` (n, queries, D) are unit-norm embeddings where the model has such: one a picture, or one for each query
    token. `owner` is the `identity` of the model that encoded them: no other model reads them. Made of features that
    were kept, they have none. A model of more than pictures encodes clips and sounds so too: `modality` says which,
    `rows` (n, k, hidden_size) are what a fusion reads beside what queries draw, `beside` holds what else belongs to
    each item (the sound of a clip).
    """

    contexts: tuple[Any, ...] = ()
    embeds: np.ndarray | None = None
    features: np.ndarray | None = None
    frames: int = 1
    owner: tuple[str, ...] | None = field(default=None, repr=False, compare=False)
    modality: str = "image"
    beside: tuple[EncodedImages, ...] = ()
    rows: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.contexts) // self.frames if self.features is None else len(self.features)

    def __getitem__(self, index: Any) -> EncodedImages:
        at = np.atleast_1d(np.arange(len(self))[index])
        embeds, features, rows = (None if a is None else a[at] for a in (self.embeds, self.features, self.rows))
        places = (at[:, None] * self.frames + np.arange(self.frames)).reshape(-1)
        contexts = tuple(self.contexts[i] for i in places) if self.contexts else ()
        beside = tuple(other[at] for other in self.beside)
        return EncodedImages(contexts, embeds, features, self.frames, self.owner, self.modality, beside, rows)

    @property
    def nbytes(self) -> int:
        """Memory of what is kept."""
        arrays = sum(array.nbytes for array in (self.embeds, self.features, self.rows) if array is not None)
        return arrays + sum(context.nbytes for context in self.contexts) + sum(other.nbytes for other in self.beside)

    def check_texts(self, count: int, what: str) -> None:
        """ValueError, which names `what` does not fit, unless there is an item for each of `count` texts, or one."""
        if len(self) not in (1, count):
            raise ValueError(f"{what}: found {count} texts and {len(self)} pictures, expected as many, or one picture")

    def source(self, count: int, what: str) -> dict[str, Any]:
        """What `count` texts are about, as inputs of their program: one picture serves all of them. ValueError as
        `check_texts`."""
        self.check_texts(count, what)
        chosen = self[[0] * count] if len(self) == 1 else self
        if chosen.features is not None:
            return {"features": np.ascontiguousarray(chosen.features)}
        return {"contexts": list(chosen.contexts)}


def joined(parts: list[EncodedImages]) -> EncodedImages:
    """Items of several encodings of one kind, in their order."""
    arrays = {
        name: None if getattr(parts[0], name) is None else np.concatenate([getattr(part, name) for part in parts])
        for name in ("embeds", "features", "rows")
    }
    return replace(parts[0], contexts=tuple(c for part in parts for c in part.contexts), **arrays)


class TaskModel(PreTrainedModel):
    """What the models below share."""

    @property
    def head(self) -> Head:
        """What the family says of this class."""
        return self.spec.head

    def encode_image(self, images: Any = None, *, pixel_values: Any = None, batch_size: int = 8) -> EncodedImages:
        """Runs the vision tower over pictures (as `load_image` takes them; one or a list), or over pixel_values.

        Raises ImageError naming the place of a picture that cannot be read; a ValueError for an empty list.
        """
        check_count("batch_size", batch_size)
        if pixel_values is None:
            items = self._items(images)
            parts = (range(s, min(s + batch_size, len(items))) for s in range(0, len(items), batch_size))
            batches = (self._pixels([items[i] for i in part], list(part)) for part in parts)
        else:
            batches = iter([prepared("pixel_values", pixel_values)])
        encoded = [self._encode_pixels(batch) for batch in batches]
        if not encoded:
            raise ValueError("images: the list is empty, expected at least one picture")
        return replace(joined(encoded), owner=self.identity)

    def _items(self, images: Any) -> list[Any]:
        return list(images) if isinstance(images, list | tuple) else [images]

    def _pixels(self, items: list[Any], positions: list[int]) -> np.ndarray:
        return self.image_processor(items, positions=positions)["pixel_values"]

    def _encode_pixels(self, pixels: np.ndarray) -> EncodedImages:
        """One batch of pictures after the vision tower."""
        return EncodedImages(tuple(self._contexts(pixels)))

    def _encoded(self, images: Any, pixel_values: Any) -> EncodedImages:
        if (images is None) == (pixel_values is None):
            raise ValueError("expected either pixel_values or images (what encode_image returned, or pictures)")
        if isinstance(images, EncodedImages):
            if images.owner not in (None, self.identity):
                owner, expected = (" ".join(identity) for identity in (images.owner, self.identity))
                raise ValueError(f"images: encoded by another model ({owner}), expected one of {expected}")
            return images
        return self.encode_image(images, pixel_values=pixel_values)

    def texts(self, texts: str | list[str], max_length: int | None = None) -> dict[str, np.ndarray]:
        """`input_ids` and `attention_mask` of texts as this model reads them, padded to one length, cut at another."""
        listed = [texts] if isinstance(texts, str) else list(texts)
        inputs = self.tokenizer(
            listed, padding=True, return_tensors="np", truncation=max_length is not None, max_length=max_length
        )
        return {name: inputs[name] for name in ("input_ids", "attention_mask") if name in inputs}

    def _decoded(self, ids: np.ndarray) -> list[str]:
        special = {i for ids in self.tokens.values() for i in (ids if isinstance(ids, tuple) else (ids,))}
        kept = [[i for i in row if i not in special] for row in ids.tolist()]
        return [text.strip() for text in self.tokenizer.batch_decode(kept, skip_special_tokens=True)]

    def _contexts(self, pixels: np.ndarray) -> list[Any]:
        return self.run_tower("vision", {"pixel_values": pixels}, ["context"])["context"]

    def _logits(self, text: dict[str, np.ndarray], source: dict[str, Any]) -> np.ndarray:
        """(B, L, vocabulary) of the token after each of a text."""
        return self.tower("decoder").run(text | source, ["logits"], self.num_threads)["logits"]

    def _generated(
        self, source: dict[str, Any], ids: np.ndarray, mask: np.ndarray | None, settings: dict[str, Any]
    ) -> np.ndarray:
        chosen = self.generation_settings.updated(settings)
        return generate(self.tower("decoder"), source, ids, mask, chosen, self.num_threads)

    @cached_property
    def tokens(self) -> dict[str, int | tuple[int, ...]]:
        """Ids that generation begins, ends (one or several) and pads with."""
        return self.head.tokens(self.config)

    @cached_property
    def generation_settings(self) -> GenerationSettings:
        """The defaults of `generate`: transformers', and the ids of the checkpoint. A generation_config.json is about
        the model around the decoder, and transformers leaves it aside here."""
        return GenerationSettings(**{name: self.tokens[name] for name in ("eos_token_id", "pad_token_id")})


def text_inputs(input_ids: Any, attention_mask: Any, token_type_ids: Any = None) -> dict[str, np.ndarray]:
    """Ids (B, L), a mask and types of their shape, where there are such. ValueError where they do not fit."""
    if input_ids is None:
        raise ValueError("input_ids: not given, expected (B, L) integers")
    inputs = {"input_ids": input_ids, "attention_mask": attention_mask, "token_type_ids": token_type_ids}
    arrays = {name: prepared(name, value) for name, value in inputs.items() if value is not None}
    for name, array in arrays.items():
        if array.shape != arrays["input_ids"].shape:
            raise ValueError(f"{name}: found shape {array.shape}, expected {arrays['input_ids'].shape}")
    return arrays


def with_pooled(arrays: dict[str, np.ndarray], kind: str) -> ModelOutput:
    """`last_hidden_state` and `pooler_output`, which of a Q-Former is its first row."""
    hidden = arrays["last_hidden_state"]
    pooled = arrays["pooler_output"] if "pooler_output" in arrays else hidden[:, 0].copy()
    return ModelOutput(last_hidden_state=from_numpy(hidden, kind), pooler_output=from_numpy(pooled, kind))


def require_pairs(pixels: np.ndarray, text: dict[str, np.ndarray]) -> None:
    if len(pixels) != len(text["input_ids"]):
        raise ValueError(
            f"pixel_values, input_ids: found {len(pixels)} pictures and {len(text['input_ids'])} texts, expected "
            "pairs; `match` takes one picture and many texts"
        )
