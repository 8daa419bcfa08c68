"""Exact search beside its peers: the ten nearest of many rows, ours in each precision, faiss-cpu's flat index, usearch's
exact search, all with as many threads, and what the machine reads from memory.

    python benchmarks/search.py [--rows 1000000] [--dim 512] [--json results.json]
    python benchmarks/search.py --signs [--rows 10000000]

Rows are unit vectors around seeded centres. All run in one process, one after another within each round, for one query
and for 256 at once; times are medians over the rounds, "times ours" their ratio to ours that is named first, of the same
round. Recall is of the ten nearest by our float32, which are compared with faiss' too. The last column is how much of what
peak.c reads a second the rows of one query are.

With --signs rows are kept as signs, scored again as int8 in a folder, and written as they are made: too many for float32.
Beside it the scan of signs alone, faiss-cpu's binary flat index and usearch's exact search of bits, which score nothing.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from bench import ceilings

import beyondvl as bvl
from beyondvl import _C

BYTES = {"float32": 4, "bfloat16": 2, "int8": 1, "int8 + float32": 1}


def clustered(rows: int, dim: int, rng: np.random.Generator, centres: np.ndarray) -> np.ndarray:
    """Unit vectors (rows, dim) around centres, made a part at a time."""
    out = np.empty((rows, dim), np.float32)
    for start in range(0, rows, 65536):
        part = out[start : start + 65536]
        part[:] = centres[rng.integers(0, len(centres), len(part))]
        part += 0.8 * rng.standard_normal(part.shape, np.float32) / np.sqrt(dim, dtype=np.float32)
        part /= np.linalg.norm(part, axis=1, keepdims=True)
    return out


def ours(rows: np.ndarray, dtype: str, rescore: bool, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    index = bvl.Index(rows.shape[1], dtype, rescore=rescore)
    index.add(range(len(rows)), rows)
    return lambda queries: np.array(index.search(queries, 10, num_threads=threads)[0])


def faiss_flat(rows: np.ndarray, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    return lambda queries: index.search(queries, 10)[1]


def usearch_exact(rows: np.ndarray, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    from usearch.index import search

    return lambda queries: search(rows, queries, 10, "ip", exact=True, threads=threads).keys.reshape(len(queries), -1)


def faiss_binary(bits: np.ndarray, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    import faiss

    faiss.omp_set_num_threads(threads)
    index = faiss.IndexBinaryFlat(8 * bits.shape[1])
    index.add(bits)
    return lambda queries: index.search(np.packbits(queries > 0, axis=1), 10)[1]


def usearch_bits(bits: np.ndarray, threads: int) -> Callable[[np.ndarray], np.ndarray]:
    from usearch.index import MetricKind, search

    def ten(queries: np.ndarray) -> np.ndarray:
        packed = np.packbits(queries > 0, axis=1)
        return search(bits, packed, 10, MetricKind.Hamming, exact=True, threads=threads).keys.reshape(len(queries), -1)

    return ten


def signs(options: argparse.Namespace, rng: np.random.Generator, centres: np.ndarray) -> None:
    """Rows as signs, scored again as int8, made a part at a time: too many for float32."""
    queries, rows = clustered(256, options.dim, rng, centres), []
    best, wanted = np.zeros((64, 0), np.float32), np.zeros((64, 0), np.int64)
    with tempfile.TemporaryDirectory() as folder:
        index = bvl.Index(options.dim, "binary", path=Path(folder) / "index")
        for start in range(0, options.rows, 500_000):
            part = clustered(min(500_000, options.rows - start), options.dim, rng, centres)
            scores, near = _C.search(part, None, None, queries[:64], 10, options.threads)
            best, wanted = np.concatenate([best, scores], 1), np.concatenate([wanted, near + start], 1)
            order = np.argsort(-best, 1)[:, :10]
            best, wanted = np.take_along_axis(best, order, 1), np.take_along_axis(wanted, order, 1)
            index.add(range(start, start + len(part)), part)
            rows.append(np.packbits(part > 0, axis=1))
        bits = np.concatenate(rows)

        def ours_of(candidates: int) -> Callable[[], Callable]:
            return lambda: (
                lambda some: np.array(
                    index.search(some, 10, rescore_multiplier=candidates, num_threads=options.threads)[0]
                )
            )

        made = {
            "binary": lambda: lambda some: _C.search(bits, None, None, some, 10, options.threads)[1],
            "faiss binary": lambda: faiss_binary(bits, options.threads),
            "usearch bits": lambda: usearch_bits(bits, options.threads),
            "binary + int8": ours_of(64),
            "16 a hit": ours_of(16),
            "256 a hit": ours_of(256),
        }
        report(options, start_all(made), queries, wanted)


def start_all(made: dict[str, Callable[[], Callable]]) -> dict[str, Callable]:
    """What can be run here, started."""
    engines: dict[str, Callable] = {}
    for name, make in made.items():
        try:
            engines[name] = make()
        except ImportError as error:
            print(f"left out: {name}: {error}")
    return engines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--signs", action="store_true", help="rows of one bit a number, and peers that search such")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=_C.default_threads())
    parser.add_argument("--json", type=Path, help="results are added to this file")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((options.rows // 500 + 1, options.dim), np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    if options.signs:
        return signs(options, rng, centres)
    rows = clustered(options.rows, options.dim, rng, centres)
    queries = clustered(256, options.dim, rng, centres)
    made: dict[str, Callable[[], Callable]] = {
        "float32": lambda: ours(rows, "float32", False, options.threads),
        "faiss flat": lambda: faiss_flat(rows, options.threads),
        "usearch exact": lambda: usearch_exact(rows, options.threads),
        "bfloat16": lambda: ours(rows, "bfloat16", False, options.threads),
        "int8": lambda: ours(rows, "int8", False, options.threads),
        "int8 + float32": lambda: ours(rows, "int8", True, options.threads),
    }
    engines = start_all(made)
    report(options, engines, queries, engines["float32"](queries[:64]))


def report(options: argparse.Namespace, engines: dict[str, Callable], queries: np.ndarray, wanted: np.ndarray) -> None:
    """Prints each engine's times, and its recall of the wanted ten of the first 64 queries."""
    results: dict[str, Any] = {
        "rows": options.rows,
        "dim": options.dim,
        "threads": options.threads,
        "isa": _C.config()["isa"],
    }
    results["gigabytes_a_second"] = bandwidth = ceilings(options.threads, "memory").get("memory", 0.0)
    print(f"{options.rows} x {options.dim}, {options.threads} threads, {results['isa']}, memory {bandwidth:.1f} GB/s")
    first = next(iter(engines))
    for count in (1, 256):
        times: dict[str, list[float]] = {name: [] for name in engines}
        for round_number in range(options.rounds):
            for name, search in engines.items():
                if name == "usearch bits" and count > 1:  # keeps a matrix of queries by rows: beyond memory
                    times[name].append(math.nan)
                    continue
                some = queries[:count] if count > 1 else queries[round_number : round_number + 1]
                start = time.perf_counter()
                search(some)
                times[name].append(time.perf_counter() - start)
        for name, search in engines.items():
            found = search(queries[:64])
            recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), wanted.tolist(), strict=True)])
            seconds = statistics.median(times[name])
            ratio = statistics.median(a / b for a, b in zip(times[first], times[name], strict=True))
            used = (
                BYTES.get(name, 1 / 8 if options.signs else 4) * options.rows * options.dim / seconds / 1e9 / bandwidth
                if bandwidth
                else 0
            )
            read = f", {used:.2f} of memory's rate" if count == 1 else ""
            print(f"{count:>3} {name:<15} {1e3 * seconds:9.1f} ms, {ratio:5.2f} times ours, recall {recall:.3f}{read}")
            results[f"{name}, {count}"] = {"ms": 1e3 * seconds, "ratio": ratio, "recall": recall, "of_memory": used}
    if options.json:
        known = json.loads(options.json.read_text()) if options.json.exists() else {}
        options.json.write_text(json.dumps(known | {"signs" if options.signs else "search": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
