"""Embeddings in Spark: a frame with two columns more.

    from beyondvl.integrations.spark import embed

    photos = spark.read.format("binaryFile").load("photos").select("path", "content")
    embed(photos, "content").drop("content").write.parquet("vectors")

A process that dies fails its task, which Spark tries again (`spark.task.maxFailures`; of `local[n]` it does not).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from typing import Any
from uuid import uuid4

from pyspark.sql.types import ArrayType, FloatType, StringType, StructType

from .embedder import Embedder

__all__ = ["embed"]

_LAST: dict[str, Embedder] = {}  # the one that this process had last: Spark uses it again for other tasks


class _Embed:
    """What a task is sent."""

    def __init__(self, embedder: Embedder, column: str):
        self.embedder, self.column, self.job = embedder, column, uuid4().hex

    def __call__(self, batches: Iterable[Any]) -> Iterator[Any]:
        import pyarrow as arrow

        if self.job not in _LAST:  # another one's files may have changed since
            _LAST.clear()
            _LAST[self.job] = self.embedder
        embedder = _LAST[self.job]
        for batch in batches:
            vector, error = embedder.arrow(batch.column(self.column)).flatten()
            lists = vector.cast(arrow.list_(arrow.float32()))  # Spark has no lists of one size
            names = [*batch.schema.names, "vector", "error"]
            yield arrow.RecordBatch.from_arrays([*batch.columns, lists, error], names=names)


def embed(frame: Any, column: str, model: str | os.PathLike = "beyond-vl-model", **options: Any) -> Any:
    """A frame with `vector`, an array of floats of length 1, and `error`: null, or a string beside a vector of NaN.

    Args:
        column: of paths that every worker sees, bytes, or texts.
        model, options: see `Embedder`; num_threads: those of a task, the frame's `spark.task.cpus` at first.

    Raises ValueError where the frame has such columns already, or lacks `column`.
    """
    for name in ("vector", "error"):
        if name in frame.columns:
            raise ValueError(f"frame: has a column {name!r}, expected none: rename it first")
    if column not in frame.columns:
        raise ValueError(f"column: found {column!r}, expected one of {', '.join(frame.columns)}")
    cpus = int(frame.sparkSession.conf.get("spark.task.cpus", "1"))
    embedder = Embedder(model, **{"num_threads": cpus, **options})
    schema = StructType([*frame.schema.fields]).add("vector", ArrayType(FloatType())).add("error", StringType())
    return frame.mapInArrow(_Embed(embedder, column), schema)
