"""Rows of tables: Parquet, Arrow and CSV files, and what libraries hold in memory, by pyarrow.

Values of binary columns are views of Arrow's memory, lists of one size (and tensors) are arrays over it: nothing is
copied before it is decoded. A struct of `bytes` and `path`, as the Hugging Face hub keeps pictures and sounds, is the
one of these that it has.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .rows import Columns, Row
from .stores import Elsewhere, Store

__all__ = ["batches_of", "batches_of_file", "import_arrow", "is_table", "lists_of", "rows_of_batches", "values_of"]

BATCH_ROWS = 256
FORMATS = {".arrow": "ipc", ".feather": "feather", ".csv": "csv", ".parquet": "parquet"}


def import_arrow(why: str) -> Any:
    """pyarrow. ImportError that says what is to be installed."""
    try:
        import pyarrow
    except ImportError as error:
        raise ImportError(f"{why}: needs pyarrow: pip install 'beyondvl[arrow]'") from error
    return pyarrow


def lists_of(rows: np.ndarray) -> Any:
    """Rows [n, d] as an Arrow array of lists of one size, over the same memory."""
    arrow = import_arrow("an Arrow array")
    return arrow.FixedSizeListArray.from_arrays(arrow.array(rows.reshape(-1)), rows.shape[1])


def is_table(inputs: Any) -> bool:
    """Whether it holds named columns: a table or reader of Arrow, a frame, a dataset."""
    named = hasattr(inputs, "column_names") or hasattr(inputs, "columns") or hasattr(inputs, "schema")
    return named and (hasattr(inputs, "__arrow_c_stream__") or hasattr(inputs, "with_format") or _is_dataset(inputs))


def _is_dataset(inputs: Any) -> bool:
    return hasattr(inputs, "to_batches") and hasattr(inputs, "schema")


def batches_of(inputs: Any) -> Iterator[Any]:
    """Record batches of a table in memory."""
    arrow = import_arrow("a table")
    if hasattr(inputs, "with_format"):  # of Hugging Face's datasets
        for table in inputs.with_format("arrow").iter(BATCH_ROWS):
            yield from table.to_batches()
    elif _is_dataset(inputs) and not hasattr(inputs, "__arrow_c_stream__"):
        yield from inputs.to_batches(batch_size=BATCH_ROWS, batch_readahead=1, fragment_readahead=1)
    else:
        yield from arrow.RecordBatchReader.from_stream(inputs)


def batches_of_file(store: Store, name: str, columns: Columns) -> Iterator[Any]:
    """Record batches of a file, the columns that are needed, a few hundred rows at a time."""
    import_arrow(name)
    from pyarrow import ArrowInvalid, dataset

    files, path = (store.files, store.files._strip_protocol(name)) if isinstance(store, Elsewhere) else (None, name)
    try:
        form = next(form for ending, form in FORMATS.items() if name.lower().endswith(ending))
        source = dataset.dataset(path, format=form, filesystem=files)
        wanted = [column_of(source.schema.names, columns), *([columns.key] if columns.key else [])]
        scanned = {"columns": wanted, "batch_size": BATCH_ROWS, "batch_readahead": 1, "fragment_readahead": 1}
        if form == "parquet":
            scanned["fragment_scan_options"] = dataset.ParquetFragmentScanOptions(pre_buffer=False)
        yield from source.to_batches(**scanned, use_threads=False)
    except ArrowInvalid as error:
        raise ValueError(f"{name}: not a table that can be read: {error}") from error


def column_of(names: list[str], columns: Columns) -> str:
    """The column of items. ValueError where it is not there, or not said of several; or where the key's is not."""
    if columns.key is not None and columns.key not in names:
        raise ValueError(f"key: found {columns.key!r}, expected one of {', '.join(names)}")
    others = [name for name in names if name != columns.key]
    if columns.column is None and len(others) == 1:
        return others[0]
    if columns.column not in names:
        raise ValueError(f"column: found {columns.column!r}, expected one of {', '.join(others)}")
    return columns.column


def rows_of_batches(batches: Iterable[Any], columns: Columns) -> Iterator[Row]:
    """Rows of record batches."""
    for batch in batches:
        items = values_of(batch.column(column_of(batch.schema.names, columns)))
        keys = columns.numbers if columns.key is None else batch.column(columns.key).to_pylist()
        for item, key in zip(items, keys, strict=False):
            yield Row(str(key), item, len(item) if isinstance(item, memoryview) else getattr(item, "nbytes", 0))


def values_of(column: Any) -> Iterator[Any]:
    """Values of a column as `encode` takes them."""
    import pyarrow as arrow

    kind = column.type
    if isinstance(column, arrow.FixedShapeTensorArray):
        yield from column.to_numpy_ndarray()
    elif arrow.types.is_fixed_size_list(kind) and not column.null_count:
        yield from np.asarray(column.flatten()).reshape(len(column), kind.list_size)
    elif arrow.types.is_binary(kind) or arrow.types.is_large_binary(kind) or arrow.types.is_binary_view(kind):
        for value in column:
            yield memoryview(value.as_buffer()) if value.is_valid else None
    elif arrow.types.is_struct(kind) and {"bytes", "path"} <= {field.name for field in kind}:
        for data, path in zip(values_of(column.field("bytes")), column.field("path").to_pylist(), strict=True):
            yield path if data is None else data
    else:
        yield from column.to_pylist()
