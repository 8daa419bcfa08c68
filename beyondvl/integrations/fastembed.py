"""Models of beyondvl in fastembed: importing this module puts the shipped one into its lists, `add_model` any other.

    import beyondvl.integrations.fastembed
    from fastembed import ImageEmbedding, TextEmbedding

    rows = ImageEmbedding("beyondvl/beyond-vl-model").embed(["cat.jpg"])
    rows = TextEmbedding("beyondvl/beyond-vl-model").embed(["a cat"])

fastembed is as it was: it finds the classes in its own registries. A call uses all processors by threads that share the
weights, so `parallel` changes nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import numpy as np
from fastembed import ImageEmbedding, TextEmbedding
from fastembed.common.model_description import DenseModelDescription, ModelSource
from fastembed.image.image_embedding_base import ImageEmbeddingBase
from fastembed.text.text_embedding_base import TextEmbeddingBase

from ..hub import SHIPPED
from ..modalities import IMAGE, TEXT
from .embedder import Embedder

__all__ = ["BeyondImageEmbedding", "BeyondTextEmbedding", "add_model"]

# name -> (model as from_pretrained takes it, what fastembed lists)
MODELS: dict[str, tuple[str, DenseModelDescription]] = {}


def add_model(name: str, model: str | os.PathLike, dim: int, description: str = "", license: str = "") -> None:
    """Lists a model under a name: a folder or a hub id, whose embeddings have `dim` numbers."""
    source = os.fspath(model)
    about = DenseModelDescription(
        model=name,
        sources=ModelSource(hf=source),
        model_file="model.safetensors",
        description=description or f"{source} by beyondvl",
        license=license,
        size_in_GB=0.0,
        dim=dim,
    )
    MODELS[name.lower()] = source, about


class _Embedding:
    """What both classes do."""

    modality: str
    model_name: str
    threads: int | None

    def __init__(self, model_name: str, *args: Any, lazy_load: bool = False, **kwargs: Any):
        super().__init__(model_name, *args, **kwargs)
        source = MODELS[model_name.lower()][0]
        self.embedder = Embedder(source, num_threads=self.threads, modality=self.modality)
        if not lazy_load:
            _ = self.embedder.model

    @classmethod
    def _list_supported_models(cls) -> list[DenseModelDescription]:
        return [about for _, about in MODELS.values()]

    @classmethod
    def get_embedding_size(cls, model_name: str) -> int:
        """Numbers of a vector."""
        return MODELS[model_name.lower()][1].dim or 0

    @property
    def embedding_size(self) -> int:
        """Numbers of a vector."""
        return self.get_embedding_size(self.model_name)

    def _rows(self, items: Iterable[Any], batch_size: int) -> Iterator[np.ndarray]:
        """A vector of each item, in order. What `encode` raises for one that cannot be read."""
        source = iter(items)
        while batch := list(islice(source, batch_size)):
            yield from self.embedder.model.encode(batch, batch_size=batch_size, **self.embedder.options)


class BeyondImageEmbedding(_Embedding, ImageEmbeddingBase):
    """Pictures: paths, bytes and PIL images."""

    modality = IMAGE.name

    def embed(
        self, images: Any, batch_size: int = 16, parallel: int | None = None, **kwargs: Any
    ) -> Iterable[np.ndarray]:
        """Unit vectors (dim,) of pictures, or of one."""
        several = isinstance(images, Iterable) and not isinstance(images, str | bytes | os.PathLike)
        return self._rows(images if several else [images], batch_size)


class BeyondTextEmbedding(_Embedding, TextEmbeddingBase):
    """Texts."""

    modality = TEXT.name

    def embed(
        self, documents: str | Iterable[str], batch_size: int = 256, parallel: int | None = None, **kwargs: Any
    ) -> Iterable[np.ndarray]:
        """Unit vectors (dim,) of texts, or of one."""
        return self._rows([documents] if isinstance(documents, str) else documents, batch_size)

    def token_count(self, texts: str | Iterable[str], **kwargs: Any) -> int:
        """Tokens of texts, special ones among them."""
        listed = [texts] if isinstance(texts, str) else list(texts)
        return sum(map(len, self.embedder.model.tokenizer(listed)["input_ids"]))


for _name in SHIPPED:
    add_model(f"beyondvl/{_name}", _name, 384, "a model that beyondvl ships", "see its card")
for _public, _ours in ((ImageEmbedding, BeyondImageEmbedding), (TextEmbedding, BeyondTextEmbedding)):
    if _ours not in _public.EMBEDDINGS_REGISTRY:
        _public.EMBEDDINGS_REGISTRY.append(_ours)
