"""Exact search beside its peers: the ten nearest of many rows, ours in each precision, faiss-cpu's flat index, usearch's
exact search, all with as many threads, and what the machine reads from memory.

    python benchmarks/search.py [--rows 1000000] [--dim 512] [--json results.json]

Rows are unit vectors around seeded centres. All run in one process, one after another within each round, for one query
and for 256 at once; times are medians over the rounds, "times ours" their ratio to our float32 of the same round.
Recall is of the ten nearest by our float32, which are compared with faiss' too. The last column is how much of what
peak.c reads a second the rows of one query are.
"""

from __future__ import annotations

import argparse
import json
import statistics
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=_C.default_threads())
    parser.add_argument("--json", type=Path, help="results are added to this file")
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((options.rows // 500 + 1, options.dim), np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
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
    engines: dict[str, Callable] = {}
    for name, make in made.items():
        try:
            engines[name] = make()
        except ImportError as error:
            print(f"left out: {name}: {error}")
    report(options, engines, queries)


def report(options: argparse.Namespace, engines: dict[str, Callable], queries: np.ndarray) -> None:
    results: dict[str, Any] = {
        "rows": options.rows,
        "dim": options.dim,
        "threads": options.threads,
        "isa": _C.config()["isa"],
    }
    results["gigabytes_a_second"] = bandwidth = ceilings(options.threads, "memory").get("memory", 0.0)
    print(f"{options.rows} x {options.dim}, {options.threads} threads, {results['isa']}, memory {bandwidth:.1f} GB/s")
    wanted = engines["float32"](queries)
    for count in (1, 256):
        times: dict[str, list[float]] = {name: [] for name in engines}
        for round_number in range(options.rounds):
            for name, search in engines.items():
                some = queries[:count] if count > 1 else queries[round_number : round_number + 1]
                start = time.perf_counter()
                search(some)
                times[name].append(time.perf_counter() - start)
        for name, search in engines.items():
            found = search(queries[:64])
            recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found, wanted[:64], strict=True)])
            seconds = statistics.median(times[name])
            ratio = statistics.median(a / b for a, b in zip(times["float32"], times[name], strict=True))
            used = BYTES.get(name, 4) * options.rows * options.dim / seconds / 1e9 / bandwidth if bandwidth else 0
            read = f", {used:.2f} of memory's rate" if count == 1 else ""
            print(f"{count:>3} {name:<15} {1e3 * seconds:9.1f} ms, {ratio:5.2f} times ours, recall {recall:.3f}{read}")
            results[f"{name}, {count}"] = {"ms": 1e3 * seconds, "ratio": ratio, "recall": recall, "of_memory": used}
    if options.json:
        known = json.loads(options.json.read_text()) if options.json.exists() else {}
        options.json.write_text(json.dumps(known | {"search": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
