"""What the adapters share: from items to vectors and errors, in whatever process it lands.

It is pickled as what it was made of, and loads its model where it is used first; so an engine's workers each have one.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ..bulk.tables import import_arrow, lists_of, values_of
from ..outcomes import counted

__all__ = ["Embedder"]


class Embedder:
    """Embeds items by a model that is loaded when it is needed.

    Args:
        model: a folder, a hub id or the shipped default; a folder is made absolute, for processes elsewhere.
        dtype, num_threads: as of `from_pretrained`; num_threads: the processors that an engine gives a worker.
        options: of `encode`: modality, prompt_name, prompt, batch_size, normalize_embeddings (True here), truncate_dim.
    """

    def __init__(
        self,
        model: str | os.PathLike = "beyond-vl-model",
        *,
        dtype: str | None = None,
        num_threads: int | None = None,
        **options: Any,
    ):
        name = os.fspath(model)
        self.name = str(Path(name).absolute()) if Path(name).is_dir() else name
        self.dtype, self.num_threads = dtype, num_threads
        self.options = {"normalize_embeddings": True, **options}
        self._model: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_model": None}

    def __repr__(self) -> str:
        return f"Embedder({self.name!r}, dtype={self.dtype!r}, num_threads={self.num_threads}, **{self.options!r})"

    @property
    def model(self) -> Any:
        """The model, loaded at first use."""
        if self._model is None:
            from ..models.auto import AutoModel

            self._model = AutoModel.from_pretrained(self.name, dtype=self.dtype, num_threads=self.num_threads)
        return self._model

    @property
    def ndims(self) -> int:
        """Numbers of a vector."""
        width = self.model.get_embedding_dimension()
        return min(width, self.options.get("truncate_dim") or width)

    def __call__(self, items: Iterable[Any]) -> tuple[np.ndarray, list[str | None]]:
        """Vectors [n, ndims] float32 and of each item None, or why it has none: its vector is NaN then."""
        rows = self.model.encode(list(items), on_error="null", show_progress_bar=False, **self.options)
        errors: list[str | None] = [None] * len(rows)
        for failure in counted(rows.failures, 0):
            errors[failure.index] = str(failure.error).removeprefix(f"item {failure.index}: ")
        return np.asarray(rows), errors

    def arrow(self, column: Any) -> Any:
        """An Arrow array of the same length: structs of `vector`, a list of ndims float32, and `error`, a string or
        null; where there is an error the vector is NaN, as Parquet readers fail at lists of one size that are null."""
        arrow = import_arrow("an Arrow array")
        rows, errors = self(values_of(column))
        return arrow.StructArray.from_arrays([lists_of(rows), arrow.array(errors, arrow.string())], ["vector", "error"])
