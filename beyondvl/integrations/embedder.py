"""What the adapters share: from items to vectors and errors, in whatever process it lands.

It is pickled as what it was made of, and loads its model where it is used first; so an engine's workers each have one.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

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
        self._lock = threading.Lock()

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in ("_model", "_lock")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _model=None, _lock=threading.Lock())

    @property
    def model(self) -> Any:
        """The model, loaded at first use."""
        with self._lock:  # an engine may call from several threads
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
        """Vectors [n, ndims] float32 and of each item None, or why it has none: its vector is NaN then. A file: URL, as
        engines list folders, is the path that it names."""
        rows = self.model.encode(
            [_local(item) for item in items], on_error="null", show_progress_bar=False, **self.options
        )
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


def _local(item: Any) -> Any:
    is_url = isinstance(item, str) and item.startswith("file://")
    return unquote(urlsplit(item).path) if is_url else item
