"""Embeddings of more rows than memory holds: as a stream, or into a folder of files by a job that can be stopped.

Rows are read a chunk at a time, the next chunk beside the model's work on this one; a chunk ends at so many rows, or at
CHUNK_BYTES of what was read of files. A part of a job has always the same rows, and a row's embedding does not depend
on its neighbours: so a job that was killed and goes on leaves the bytes that it would have left.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..ahead import Ahead, progress
from ..modalities import IMAGE, TEXT
from ..outcomes import POLICIES, Embeddings, Failure, counted
from ..outputs import check_count
from ..similarity import quantize_embeddings
from .identity import fingerprint
from .journal import Journal, checksum
from .rows import Row
from .sources import describe, is_source, rows_of
from .stores import fetch
from .tables import import_arrow
from .writers import WRITERS, ClipRetrievalWriter, Writer

__all__ = ["Written", "stream", "write"]

CHUNK_BYTES = 64 << 20
CALIBRATED = ("int8", "uint8")
STORED = {"float32": "<f4", "float16": "<f2", "int8": "|i1", "uint8": "|u1", "binary": "|i1", "ubinary": "|u1"}
OPTIONS = ("modality", "prompt_name", "prompt", "batch_size", "normalize_embeddings", "truncate_dim", "precision")
Chunk = tuple[list[str], list[Any]]  # keys and items


class Written(NamedTuple):
    """What a job wrote: its folder, the rows that it read, those that failed, the files."""

    folder: Path
    rows: int
    failures: tuple[Failure, ...]
    files: list[Path]


def stream(
    model: Any, inputs: Any, column: str | None, key: str | None, size: int, on_error: str, show: bool | None,
    options: dict[str, Any],
) -> Iterator[Embeddings]:  # fmt: skip
    """`encode_stream`."""
    check_count("chunk_size", size)
    precision = options.get("precision")
    if precision in CALIBRATED:
        raise ValueError(
            f"precision: found {precision!r}, expected one that does not depend on all rows: "
            "quantize_embeddings(rows, precision, ranges) makes it of float32"
        )
    _check_options(options)
    chunks = _chunks(rows_of(inputs, model.readable, column, key), size)
    return _encoded(model, _ahead(chunks, inputs), 0, on_error, show, options)


def _encoded(
    model: Any, chunks: Iterable[Chunk], first: int, on_error: str, show: bool | None, options: dict[str, Any]
) -> Iterator[Embeddings]:
    """Embeddings of chunks, rows counted from `first`."""
    with progress(None, show) as bar:
        for keys, items in chunks:
            with _counted_from(first, keys):
                rows = model.encode(items, on_error=on_error, show_progress_bar=False, **options)
            yield _counted(rows, first, keys)
            first += len(items)
            bar.update(len(items))


def write(
    model: Any, output: str | os.PathLike, inputs: Any, job: dict[str, Any], size: int, overwrite: bool,
    show: bool | None, options: dict[str, Any],
) -> Written:  # fmt: skip
    """`encode_to`."""
    check_count("rows_per_file", size)
    _check_options(options)
    for name, known in (("format", WRITERS), ("precision", STORED), ("on_error", POLICIES)):
        if job[name] not in known:
            raise ValueError(f"{name}: found {job[name]!r}, expected one of {', '.join(known)}")
    if job["format"] != "npy":
        import_arrow(f"format {job['format']!r}")  # said before anything is begun
    if job["format"] == "clip-retrieval":
        _as_clip_retrieval(model, job, options)
    width = min(model.get_embedding_dimension() or 0, options.get("truncate_dim") or sys.maxsize)
    facts = {
        "model": Path(model.name_or_path).name,
        "fingerprint": fingerprint(model),
        "dtype": model.dtype,
        "precision": job["precision"],
        "stored": STORED[job["precision"]],
        "dimensions": width,
        **options,
    }
    job = {"inputs": describe(inputs), "rows_per_file": size, **job, **facts}
    with Journal.open(Path(output), job, overwrite) as journal:
        rows = rows_of(inputs, model.readable, job["column"], job["key"])
        count = _passed(journal, rows)
        writer = WRITERS[job["format"]](journal.folder, facts)
        if not journal.known("finished"):
            chunks = _ahead(_chunks(rows, size), inputs)
            count = _write(journal, writer, _encoded(model, chunks, count, job["on_error"], show, options), count, size)
            journal.note(finished=True)
        elif next(rows, None) is not None:
            raise ValueError(f"{output}: more rows than the {count} of before: another folder, or overwrite=True")
        writer.finish(len(journal.parts))
        return Written(journal.folder, count, journal.failures, writer.files())


def _as_clip_retrieval(model: Any, job: dict[str, Any], options: dict[str, Any]) -> None:
    """What that layout cannot say: errors, and modalities but two."""
    if job["on_error"] == "null":
        job["on_error"] = "skip"
    modality = options.setdefault("modality", IMAGE.name if model.supports(IMAGE.name) else TEXT.name)
    if modality not in ClipRetrievalWriter.FOLDERS:
        known = ", ".join(ClipRetrievalWriter.FOLDERS)
        raise ValueError(f"modality: found {modality!r}, expected one that clip-retrieval has: {known}")


def _check_options(options: dict[str, Any]) -> None:
    """TypeError for an option that `encode` has not, or that a stream cannot have."""
    if unknown := sorted(options.keys() - set(OPTIONS)):
        raise TypeError(f"unexpected option {unknown[0]!r}, expected some of {', '.join(OPTIONS)}")


def _ahead(chunks: Generator[Chunk, None, None], inputs: Any) -> Iterator[Chunk]:
    """Chunks, of sources that are read here the next one beside what is done with this one; somebody's own iterator
    stays in the thread that it is of."""
    if not is_source(inputs):
        yield from chunks
        return
    with Ahead(chunks, 1) as coming:
        while taken := coming.take(1):
            yield taken[0]


def _chunks(rows: Iterator[Row], size: int) -> Generator[Chunk, None, None]:
    """Keys and items; a chunk never goes beyond a multiple of `size` rows."""
    left = size
    while True:
        keys, items, held = [], [], 0
        for row in islice(rows, left):
            keys.append(row.key)
            items.append(row.item)
            held += row.size
            if held >= CHUNK_BYTES:
                break
        if not keys:
            return
        fetch(items)
        left = left - len(keys) or size
        yield keys, items


@contextmanager
def _counted_from(first: int, keys: list[str]) -> Iterator[None]:
    """An error of a chunk's row says its place among all rows."""
    try:
        yield
    except BaseException as error:
        if hasattr(error, "source") and hasattr(error, "index"):
            error.add_note(f"row {first + error.index}, {keys[error.index]}")
            error.index += first
        if getattr(error, "results", None) is not None:
            _counted(error.results, first, keys)
        raise


def _counted(rows: np.ndarray, first: int, keys: list[str]) -> Embeddings:
    """A chunk's rows and failures, counted among all, and nowhere by their place in the chunk."""
    rows = rows if isinstance(rows, Embeddings) else rows.view(Embeddings)
    indices = np.arange(len(keys)) if rows.indices is None else rows.indices
    failures = counted(rows.failures, first)
    rows.indices, rows.failures, rows.keys = indices + first, failures, keys
    return rows


def _passed(journal: Journal, rows: Iterator[Row]) -> int:
    """How many rows were written before. ValueError where these are others."""
    count = 0
    for part in journal.parts:
        keys = [row.key for row in islice(rows, part["rows"])]
        if len(keys) != part["rows"] or checksum(keys) != part["keys"]:
            raise ValueError(f"{journal.folder}: rows {count} to {count + part['rows'] - 1} are not those of before: "
                             "another folder, or overwrite=True")  # fmt: skip
        count += len(keys)
    return count


def _write(journal: Journal, writer: Writer, stream: Iterable[Embeddings], first: int, size: int) -> int:
    """Writes rows from the `first` on, `size` to a part; returns how many rows there are then."""
    chunks: list[Embeddings] = []
    for chunk in stream:
        chunks.append(chunk)
        if (waiting := sum(len(one.keys) for one in chunks)) == size:
            _write_part(journal, writer, chunks, first)
            first, chunks = first + waiting, []
    if chunks or not journal.parts:
        _write_part(journal, writer, chunks, first)
    return first + sum(len(one.keys) for one in chunks)


def _write_part(journal: Journal, writer: Writer, chunks: list[Embeddings], first: int) -> None:
    keys = [key for chunk in chunks for key in chunk.keys]
    failures = [failure for chunk in chunks for failure in chunk.failures]
    errors: list[str | None] = [None] * len(keys)
    for failure in failures:
        errors[failure.index - first] = str(failure.error)
    none = np.empty((0, writer.facts["dimensions"]), np.float32)
    kept = np.concatenate([np.arange(0), *(chunk.indices - first for chunk in chunks)])
    rows = _stored(journal, np.concatenate([none, *(np.asarray(chunk) for chunk in chunks)]), writer.facts)
    writer.write(len(journal.parts), [keys[i] for i in kept], rows, [errors[i] for i in kept])
    told = [[failure.index, keys[failure.index - first], str(failure.error)] for failure in failures]
    journal.note(part=len(journal.parts), rows=len(keys), keys=checksum(keys), failures=told)


def _stored(journal: Journal, rows: np.ndarray, facts: dict[str, Any]) -> np.ndarray:
    """Rows (n, D) float32 in the precision of the files; what failed is NaN before, and 0 in whole numbers."""
    precision = facts["precision"]
    if precision in ("float32", "float16"):
        return rows.astype(facts["stored"])
    failed = np.isnan(rows).all(1)
    if precision in CALIBRATED and journal.known("ranges") is None:
        good = rows[~failed]
        width = rows.shape[1]
        low, high = (good.min(0), good.max(0)) if len(good) else (np.full(width, -1.0), np.ones(width))
        journal.note(ranges=[low.tolist(), high.tolist()])
    facts["ranges"] = journal.known("ranges")
    out = quantize_embeddings(np.where(failed[:, None], 0, rows), precision, facts["ranges"])
    out[failed] = 0
    return out
