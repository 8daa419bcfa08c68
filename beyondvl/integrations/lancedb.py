"""An embedding function of LanceDB, under the name "beyondvl" in its registry once this module is imported:

    import beyondvl.integrations.lancedb
    from lancedb.embeddings import get_registry
    from lancedb.pydantic import LanceModel, Vector

    embed = get_registry().get("beyondvl").create(name="beyond-vl-model")

    class Photo(LanceModel):
        path: str = embed.SourceField()
        vector: Vector(embed.ndims()) = embed.VectorField()

Sources are texts, paths, bytes, PIL images; one that cannot be read has no vector (None), which a table takes by
`add(..., on_bad_vectors="null")`. Queries are the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from lancedb.embeddings import EmbeddingFunction, get_registry
from pydantic import PrivateAttr

from .embedder import Embedder

__all__ = ["BeyondVLFunction"]


@get_registry().register("beyondvl")
class BeyondVLFunction(EmbeddingFunction):
    """Embeddings of any model, in LanceDB's terms.

    `name`, `dtype` and `truncate_dim`: as of `Embedder`; `modality`: "text", "image", "video" or "audio" for all
    sources, None tells them apart. Queries are told apart in any case, so that words find pictures.
    """

    name: str = "beyond-vl-model"
    dtype: str | None = None
    modality: str | None = None
    truncate_dim: int | None = None
    max_retries: int = 0  # nothing here fails for a while

    _embedders: dict[Any, Embedder] = PrivateAttr(default_factory=dict)

    def _embedder(self, modality: str | None) -> Embedder:
        if modality not in self._embedders:
            options = {"modality": modality, "truncate_dim": self.truncate_dim}
            made = Embedder(self.name, dtype=self.dtype, **options)
            made._model = next((other._model for other in self._embedders.values()), None)
            self._embedders[modality] = made
        return self._embedders[modality]

    def ndims(self) -> int:
        """Numbers of a vector."""
        return self._embedder(self.modality).ndims

    def compute_source_embeddings(self, sources: Any, *args: Any, **kwargs: Any) -> list[np.ndarray | None]:
        """Vectors of a column's values, None for those that cannot be read."""
        return self._vectors(sources, self.modality)

    def compute_query_embeddings(self, query: Any, *args: Any, **kwargs: Any) -> list[np.ndarray | None]:
        """The vector of a text, a path, a picture or a sound."""
        return self._vectors(query, None)

    def _vectors(self, items: Any, modality: str | None) -> list[np.ndarray | None]:
        if hasattr(items, "to_pylist"):
            items = items.to_pylist()
        listed = list(items) if isinstance(items, list | tuple | np.ndarray) and np.ndim(items) <= 1 else [items]
        rows, errors = self._embedder(modality)(listed)
        return [row if error is None else None for row, error in zip(rows, errors, strict=True)]
