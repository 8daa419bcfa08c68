"""Embeddings in Ray Data: a dataset with two columns more.

    import ray
    from beyondvl.integrations.ray import embed

    photos = ray.data.read_binary_files("photos", include_paths=True)
    embed(photos, "bytes", concurrency=2, num_cpus=4).drop_columns("bytes").write_parquet("vectors")

Rows of a worker that dies are done again by another, which Ray starts.
"""

from __future__ import annotations

import os
from typing import Any

from ray.data import ActorPoolStrategy

from .embedder import Embedder

__all__ = ["embed"]


class _Embed:
    """What an actor holds."""

    def __init__(self, embedder: Embedder, column: str, output: str, error: str):
        self.embedder, self.column, self.output, self.error = embedder, column, output, error

    def __call__(self, table: Any) -> Any:
        if there := {self.output, self.error} & set(table.column_names):
            raise ValueError(f"dataset: has a column {min(there)!r}, expected none: name the new ones otherwise")
        both = self.embedder.arrow(table.column(self.column).combine_chunks())
        return table.append_column(self.output, both.field("vector")).append_column(self.error, both.field("error"))


def embed(
    dataset: Any,
    column: str,
    model: str | os.PathLike = "beyond-vl-model",
    *,
    output: str = "vector",
    error: str = "error",
    num_cpus: int = 1,
    concurrency: int | tuple[int, int] = 1,
    batch_size: int = 64,
    ray_remote_args: dict[str, Any] | None = None,
    **options: Any,
) -> Any:
    """A ray.data.Dataset with a column of vectors (lists of one size, float32, length 1) and one of errors: null, or a
    string beside a vector of NaN.

    Args:
        column: of paths, bytes or texts.
        model, options: see `Embedder`.
        output, error: what the new columns are called.
        num_cpus: processors, and threads, of a worker.
        concurrency: workers, or the least and the most of them.
        batch_size, ray_remote_args: see `ray.data.Dataset.map_batches`.

    A dataset that has such columns already fails with ValueError when it is run.
    """
    least, most = (concurrency, concurrency) if isinstance(concurrency, int) else concurrency
    embedder = Embedder(model, num_threads=num_cpus, **options)
    return dataset.map_batches(
        _Embed,
        fn_constructor_args=(embedder, column, output, error),
        batch_format="pyarrow",
        batch_size=batch_size,
        num_cpus=num_cpus,
        compute=ActorPoolStrategy(min_size=least, max_size=most),
        **ray_remote_args or {},
    )
