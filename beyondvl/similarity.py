"""Scores of embeddings, with sentence-transformers' names: cosines, products, nearest rows, fewer bits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from . import _C
from .ahead import progress
from .outputs import check_count, from_numpy, is_torch, thread_count, to_numpy

__all__ = ["PRECISIONS", "SIMILARITIES", "THREADED", "community_detection", "cos_sim", "dot_score", "euclidean_sim",
           "manhattan_sim", "maxsim", "normalize_embeddings", "pairwise_cos_sim", "pairwise_dot_score",
           "pairwise_euclidean_sim", "pairwise_manhattan_sim", "paraphrase_mining_embeddings", "pytorch_cos_sim",
           "quantize_embeddings", "semantic_search", "truncate_embeddings", "unit_rows"]  # fmt: skip

QUERY_ROWS, OTHER_ROWS = 2048, 8192  # of one product of maxsim: 64 MB
PRECISIONS = ("float32", "float16", "int8", "uint8", "binary", "ubinary")


def _rows(rows: Any) -> np.ndarray:
    """Embeddings (n, D) float32 of an array, a tensor or a list of rows; one row is (1, D)."""
    if isinstance(rows, list | tuple) and rows and all(map(is_torch, rows)):
        rows = [to_numpy(row) for row in rows]
    array = np.atleast_2d(np.asarray(to_numpy(rows, "embeddings"), np.float32))
    if array.ndim != 2:
        raise ValueError(f"embeddings: found shape {array.shape}, expected (n, D)")
    return array


def unit_rows(rows: Any) -> np.ndarray:
    """Embeddings (n, D) of length 1. ValueError for one whose length is not finite."""
    array = _rows(rows)
    norms = np.linalg.norm(array, axis=1, keepdims=True)
    if not np.isfinite(norms).all():
        row = int(np.argmin(np.isfinite(norms)))
        raise ValueError(f"embeddings: row {row} has length {norms[row, 0]}, expected a finite one")
    return np.ascontiguousarray(array / np.maximum(norms, 1e-12))


def _matched(a: Any, b: Any, prepare: Callable[[Any], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Rows of both. ValueError where they are not of one width."""
    rows, others = prepare(a), prepare(b)
    if rows.shape[1] != others.shape[1]:
        raise ValueError(f"embeddings: found shapes {rows.shape} and {others.shape}, expected rows of one width")
    return rows, others


def _pairs(a: Any, b: Any, prepare: Callable[[Any], np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """As many rows of both. ValueError where they are not."""
    rows, others = _matched(a, b, prepare)
    if len(rows) != len(others):
        raise ValueError(f"embeddings: found {len(rows)} and {len(others)} rows, expected pairs")
    return rows, others


def _in_kind(scores: np.ndarray, a: Any, b: Any) -> Any:
    """A torch tensor where either of the two was one."""
    several = (*a, *b) if isinstance(a, list | tuple) and isinstance(b, list | tuple) else (a, b)
    return from_numpy(scores, "pt") if any(map(is_torch, several)) else scores


def cos_sim(a: Any, b: Any, num_threads: int | None = None) -> Any:
    """Cosine similarities (n, m) float32 of (n, D) and (m, D), computed by OpenBLAS."""
    return _in_kind(_C.matmul_nt(*_matched(a, b, unit_rows), thread_count(num_threads)), a, b)


pytorch_cos_sim = cos_sim  # its older name


def dot_score(a: Any, b: Any, num_threads: int | None = None) -> Any:
    """Products (n, m) float32 of the rows of (n, D) and (m, D)."""
    rows, others = _matched(a, b, lambda x: np.ascontiguousarray(_rows(x)))
    return _in_kind(_C.matmul_nt(rows, others, thread_count(num_threads)), a, b)


def pairwise_cos_sim(a: Any, b: Any) -> Any:
    """Cosine similarity (n,) of row i of a with row i of b."""
    return _in_kind(np.einsum("nd,nd->n", *_pairs(a, b, unit_rows)), a, b)


def pairwise_dot_score(a: Any, b: Any) -> Any:
    """Product (n,) of row i of a with row i of b."""
    return _in_kind(np.einsum("nd,nd->n", *_pairs(a, b, _rows)), a, b)


def _vectors(items: Any) -> list[np.ndarray]:
    """Multi-vector embeddings as a list of (rows, D) float32: of such a list, of (n, rows, D), or of one (rows, D)."""
    single = getattr(items, "ndim", 0) == 2
    vectors = [
        np.ascontiguousarray(to_numpy(item, "embeddings"), np.float32) for item in ([items] if single else items)
    ]
    for place, item in enumerate(vectors):
        if item.ndim != 2 or not len(item) or item.shape[1] != vectors[0].shape[1]:
            raise ValueError(
                f"embeddings: item {place} has shape {item.shape}, expected rows of one width, and at least one"
            )
    return vectors


def _portions(vectors: list[np.ndarray], most: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Rows of items one after the other, so many at once or one item, and where each item begins."""
    begin = 0
    while begin < len(vectors):
        end, rows = begin + 1, len(vectors[begin])
        while end < len(vectors) and rows + len(vectors[end]) <= most:
            rows, end = rows + len(vectors[end]), end + 1
        part = vectors[begin:end]
        yield np.concatenate(part), np.cumsum([0, *map(len, part[:-1])])
        begin = end


def maxsim(a: Any, b: Any, num_threads: int | None = None) -> Any:
    """Scores (n, m) float32 of items of several embeddings each, (rows, D) in a list of any lengths, or (n, rows, D):
    the sum over the rows of item i of `a` of the largest product with a row of item j of `b` (Khattab and Zaharia,
    2020). Rows of zeros in `a` add nothing. ValueError for an item without rows, or of another width."""
    queries, others = _vectors(a), _vectors(b)
    if queries and others and queries[0].shape[1] != others[0].shape[1]:
        found = f"found {queries[0].shape} and {others[0].shape}"
        raise ValueError(f"embeddings: {found}, expected rows of one width")
    threads, scores = thread_count(num_threads), np.zeros((len(queries), len(others)), np.float32)
    row = 0
    for rows, begins in _portions(queries, QUERY_ROWS):
        col = 0
        for columns, starts in _portions(others, OTHER_ROWS):
            best = np.maximum.reduceat(_C.matmul_nt(rows, columns, threads), starts, axis=1)
            scores[row : row + len(begins), col : col + len(starts)] = np.add.reduceat(best, begins, axis=0)
            col += len(starts)
        row += len(begins)
    return _in_kind(scores, a, b)


def _below_zero(a: Any, b: Any, length: Callable[[np.ndarray], np.ndarray]) -> Any:
    """Minus the `length` (m,) of each row's differences (m, D): (n, m), a row at a time: no (n, m, D) is held."""
    rows, others = _matched(a, b, _rows)
    scores = np.empty((len(rows), len(others)), np.float32)
    for row, score in zip(rows, scores, strict=True):
        score[:] = -length(others - row)
    return _in_kind(scores, a, b)


def euclidean_sim(a: Any, b: Any) -> Any:
    """Distances (n, m) float32 of (n, D) and (m, D), below 0: the nearest is the most alike."""
    return _below_zero(a, b, lambda apart: np.linalg.norm(apart, axis=1))


def manhattan_sim(a: Any, b: Any) -> Any:
    """As `euclidean_sim`, the sum of the differences of columns."""
    return _below_zero(a, b, lambda apart: np.abs(apart).sum(1))


def pairwise_euclidean_sim(a: Any, b: Any) -> Any:
    """Distance (n,) of row i of a from row i of b, below 0."""
    rows, others = _pairs(a, b, _rows)
    return _in_kind(-np.linalg.norm(rows - others, axis=1), a, b)


def pairwise_manhattan_sim(a: Any, b: Any) -> Any:
    """As `pairwise_euclidean_sim`, the sum of the differences of columns."""
    rows, others = _pairs(a, b, _rows)
    return _in_kind(-np.abs(rows - others).sum(1), a, b)


# how embeddings are compared, by sentence-transformers' names: (n, m) of all, (n,) of pairs
SIMILARITIES: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "cosine": (cos_sim, pairwise_cos_sim),
    "dot": (dot_score, pairwise_dot_score),
    "euclidean": (euclidean_sim, pairwise_euclidean_sim),
    "manhattan": (manhattan_sim, pairwise_manhattan_sim),
}


THREADED = (cos_sim, dot_score)  # of these, those that take a number of threads


def normalize_embeddings(embeddings: Any) -> Any:
    """Embeddings (n, D) or (D,) of length 1."""
    rows = unit_rows(embeddings)
    return _in_kind(rows if np.ndim(embeddings) > 1 else rows[0], embeddings, embeddings)


def truncate_embeddings(embeddings: Any, truncate_dim: int | None) -> Any:
    """The first `truncate_dim` numbers of embeddings (n, D) or (D,), in the array or tensor that holds them; None: all
    of them."""
    return embeddings[..., :truncate_dim]


def community_detection(
    embeddings: Any,
    threshold: float = 0.75,
    min_community_size: int = 10,
    batch_size: int = 1024,
    show_progress_bar: bool = False,
) -> list[list[int]]:
    """Groups of rows of `embeddings` (n, D) whose cosine to their centre is at least `threshold`: lists of row numbers,
    the largest group first, its centre first and then the nearest; no row is in two. Groups below `min_community_size`
    are left out.

    Raises ValueError for a size that is no whole number from 1.
    """
    check_count("min_community_size", min_community_size)
    check_count("batch_size", batch_size)
    if not len(embeddings):
        return []
    rows, groups = unit_rows(embeddings), []
    with progress(len(rows), show_progress_bar) as bar:
        for start in range(0, len(rows), batch_size):
            cosines = _C.matmul_nt(rows[start : start + batch_size], rows, _C.default_threads())
            for at in np.flatnonzero((cosines >= np.float32(threshold)).sum(1) >= min_community_size):
                near = np.argsort(-cosines[at], kind="stable")
                groups.append((start + int(at), near[cosines[at, near] >= np.float32(threshold)]))
            bar.update(len(cosines))
    taken, communities = np.zeros(len(rows), bool), []
    for centre, near in sorted(groups, key=lambda group: -len(group[1])):
        near = near[~taken[near]]
        if not taken[centre] and len(near) >= min_community_size:
            taken[near] = True
            communities.append([centre, *(int(row) for row in near if row != centre)])
    return sorted(communities, key=len, reverse=True)


def paraphrase_mining_embeddings(
    embeddings: Any,
    query_chunk_size: int = 5000,
    corpus_chunk_size: int = 100_000,
    max_pairs: int = 500_000,
    top_k: int = 100,
    score_function: Callable[[Any, Any], Any] = cos_sim,
) -> list[list[float]]:
    """The most alike pairs of rows of `embeddings` (n, D), as [score, i, j] with i < j, the best first, at most
    `max_pairs`: of each row its `top_k` nearest others are looked at. sentence-transformers' function of that name.

    Raises ValueError for a size that is no whole number from 1.
    """
    check_count("max_pairs", max_pairs)
    check_count("top_k", top_k)
    sizes = (query_chunk_size, corpus_chunk_size, top_k + 1)  # a row finds itself, too
    best: dict[tuple[int, int], float] = {}
    for i, hits in enumerate(semantic_search(embeddings, embeddings, *sizes, score_function)):
        others = [(int(hit["corpus_id"]), hit["score"]) for hit in hits if hit["corpus_id"] != i]
        for j, score in others[:top_k]:
            best.setdefault((min(i, j), max(i, j)), score)
    pairs = sorted(best.items(), key=lambda pair: -pair[1])[:max_pairs]
    return [[score, i, j] for (i, j), score in pairs]


def semantic_search(
    query_embeddings: Any,
    corpus_embeddings: Any,
    query_chunk_size: int = 100,
    corpus_chunk_size: int = 100_000,
    top_k: int = 10,
    score_function: Callable[[Any, Any], Any] = cos_sim,
) -> list[list[dict[str, float]]]:
    """The top_k rows of `corpus_embeddings` (m, D) for each row of `query_embeddings` (n, D), best first, by cosine or
    another function of (n, D) and (m, D) to (n, m).

    Returns for each query a list of {"corpus_id": int, "score": float}; sentence-transformers' function of that name.

    Raises ValueError for a size that is no whole number from 1.
    """
    sizes = {"query_chunk_size": query_chunk_size, "corpus_chunk_size": corpus_chunk_size, "top_k": top_k}
    for name, value in sizes.items():
        check_count(name, value)
    cosines = score_function is cos_sim
    queries, corpus = _matched(query_embeddings, corpus_embeddings, unit_rows if cosines else _rows)
    torch = is_torch(query_embeddings) or is_torch(corpus_embeddings)
    threads, results = _C.default_threads(), []
    for q in range(0, len(queries), query_chunk_size):
        part = queries[q : q + query_chunk_size]
        best: list[list[tuple[float, int]]] = [[] for _ in part]
        for c in range(0, len(corpus), corpus_chunk_size):
            chunk = corpus[c : c + corpus_chunk_size]
            if cosines:
                scores = _C.matmul_nt(part, chunk, threads)
            else:
                pair = (from_numpy(part, "pt"), from_numpy(chunk, "pt")) if torch else (part, chunk)
                scores = np.asarray(to_numpy(score_function(*pair)), np.float32)
            k = min(top_k, scores.shape[1])
            top = np.argpartition(-scores, k - 1, axis=1)[:, :k]
            for i, columns in enumerate(top):
                best[i] = sorted(best[i] + [(-float(scores[i, j]), c + int(j)) for j in columns])[:top_k]
        results += [[{"corpus_id": j, "score": -s} for s, j in row] for row in best]
    return results


def quantize_embeddings(embeddings: Any, precision: str, ranges: Any = None, calibration_embeddings: Any = None) -> Any:
    """Embeddings (n, D) float32 in fewer bits, as sentence-transformers' function: "int8" and "uint8" in 256
    steps between the least and the largest value of each column (`ranges` (2, D), or those of `calibration_embeddings`
    (m, D), or of the embeddings themselves); "binary" and "ubinary" one bit a number, above 0, eight of them a byte.
    An empty list gives an empty list.

    Raises ValueError for another precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"precision: found {precision!r}, expected one of {', '.join(PRECISIONS)}")
    if isinstance(embeddings, list) and not embeddings:
        return []
    rows = _rows(embeddings)
    if precision in ("float32", "float16"):
        return rows.astype(precision, copy=False)
    if precision in ("binary", "ubinary"):
        bits = np.packbits(rows > 0, axis=1)
        return bits if precision == "ubinary" else (bits.astype(np.int16) - 128).astype(np.int8)
    if not len(rows):
        return rows.astype(precision)
    if ranges is None:
        known = rows if calibration_embeddings is None else _rows(calibration_embeddings)
        ranges = np.stack([known.min(0), known.max(0)])
    low, high = np.asarray(ranges, np.float32)
    steps = np.where(high > low, (high - low) / 255, 1)
    levels = np.clip(np.floor((rows - low) / steps), 0, 255)  # what lies beyond the ranges is at their ends
    return levels.astype(np.uint8) if precision == "uint8" else (levels - 128).astype(np.int8)
