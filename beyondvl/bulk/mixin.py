"""`encode` for more rows than memory holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..outcomes import Embeddings
    from .jobs import Written

__all__ = ["BulkMixin"]


class BulkMixin:
    """What a model can do with rows by the million; what it takes is loaded when it is asked for."""

    def encode_stream(
        self,
        inputs: Any,
        *,
        column: str | None = None,
        key: str | None = None,
        chunk_size: int = 1000,
        on_error: str = "null",
        show_progress_bar: bool | None = None,
        **options: Any,
    ) -> Iterator[Embeddings]:
        """Embeddings of rows that come one after another, some at a time, in order.

        Args:
            inputs: a folder (its pictures, clips and sounds that the model reads, at any depth), a pattern ("*.jpg",
                "shard-{000..017}.tar"), tar shards as WebDataset's, a table (.parquet, .arrow, .feather, .csv; or one
                of Arrow, pandas, Polars or datasets), a .txt of texts, a line each, or any iterable of what `encode`
                takes; names may lie where fsspec reaches ("s3://...").
            column, key: of a table, the columns of items and of keys; `column` is of shards the extension ("jpg").
            chunk_size: at most so many rows at a time.
            on_error: as of `encode`; "null", the default here, gives a row of NaN for what cannot be read.
            options: modality, prompt_name, prompt, batch_size, normalize_embeddings, truncate_dim and, but for "int8"
                and "uint8", precision, as of `encode`.

        Each has `keys` of all its items (paths, names of samples, numbers), `indices` of its rows among all rows, and
        `failures`, counted likewise.

        Raises ValueError where there is nothing to read, and what `encode` raises; by "raise" the error of a row has
        its `index` among all rows, its `source`, and the `results` of its chunk.
        """
        from .jobs import stream

        return stream(self, inputs, column, key, chunk_size, on_error, show_progress_bar, options)

    def encode_to(
        self,
        output: str | os.PathLike,
        inputs: Any,
        *,
        column: str | None = None,
        key: str | None = None,
        format: str = "parquet",
        precision: str = "float32",
        on_error: str = "null",
        rows_per_file: int = 2000,
        overwrite: bool = False,
        show_progress_bar: bool | None = None,
        **options: Any,
    ) -> Written:
        """Embeddings of rows, in order, into a folder. Stopped at any moment, the same call goes on where it was, and
        leaves the same bytes as one that was not.

        Args:
            output: a new or empty folder, or one where this job was begun.
            inputs, column, key: as of `encode_stream`.
            format: "parquet" or "arrow" (part-*: columns key, vector, error), "npy" (embeddings.npy, keys.jsonl), or
                "clip-retrieval" (img_emb_0.npy, metadata_0.parquet, ... for that program's index; no rows that failed).
            precision: as of `encode`, or "float16". "int8" and "uint8" have the range of the first file's rows, which
                the files tell.
            on_error: "null": a row that cannot be read has its `error`, and a vector of NaN (of zeros in whole
                numbers); "skip": it is left out; "raise": the job ends there, and what was written stays.
            rows_per_file: at most so many are worked on again after a stop.
            overwrite: begin anew.
            options: modality, prompt_name, prompt, batch_size, normalize_embeddings, truncate_dim, as of `encode`.

        Returns the folder, the number of rows, the failures and the files.

        Raises ValueError where the folder holds another job or other things, or the rows are not those of before;
        BlockingIOError while another process writes there.
        """
        from .jobs import write

        job = {"column": column, "key": key, "format": format, "precision": precision, "on_error": on_error}
        return write(self, output, inputs, job, rows_per_file, overwrite, show_progress_bar, options)
