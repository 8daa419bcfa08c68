"""Embeddings in Daft, on one machine or on Ray: an expression of a column.

    import daft
    from beyondvl.integrations.daft import embed

    rows = daft.from_glob_path("photos/**").with_column("embedding", embed(daft.col("path"), max_concurrency=2, cpus=4))
    rows.select("path", daft.col("embedding").struct.get("vector")).write_parquet("vectors")

A worker that dies takes its query with it on one machine, which names it; on Ray its rows are done again.
"""

from __future__ import annotations

import os
from typing import Any

import daft
from daft import DataType

from .embedder import Embedder

__all__ = ["embed"]


class _Embed:
    """What a worker holds."""

    def __init__(self, embedder: Embedder):
        self.embedder = embedder

    def __call__(self, column: Any) -> Any:
        return self.embedder.arrow(column.to_arrow())


def embed(
    column: Any,
    model: str | os.PathLike = "beyond-vl-model",
    *,
    cpus: int = 1,
    max_concurrency: int | None = None,
    batch_size: int = 64,
    use_process: bool | None = None,
    **options: Any,
) -> Any:
    """An expression: of each value of a column (paths, bytes, texts) a struct of `vector`, an
    embedding of float32 and length 1, and `error`, null or a string; with it the vector is NaN.

    Args:
        column: an expression.
        model, options: see `Embedder`.
        cpus: processors, and threads, of a worker.
        max_concurrency: workers, each with a model of its own; None: one that all share.
        use_process: see `daft.cls`.
    """
    embedder = Embedder(model, num_threads=cpus, **options)
    vector = DataType.embedding(DataType.float32(), embedder.ndims)
    kind = DataType.struct({"vector": vector, "error": DataType.string()})

    class Embed(_Embed):
        __call__ = daft.method.batch(return_dtype=kind, batch_size=batch_size)(_Embed.__call__)

    worker = daft.cls(
        Embed, cpus=cpus, max_concurrency=max_concurrency, use_process=use_process, name_override="beyondvl"
    )
    return worker(embedder)(column)
