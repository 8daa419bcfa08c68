"""A transformer block's products alone, beside the machine's ceilings: packed operands in, packed operands of the next out.

    python benchmarks/products.py [--rows 256] [--threads 2] [--json results.json]

Each worker multiplies rows of its own by the same weights again and again, which lie in the caches as those of a model's strips
do; two columns: results rounded for the next product (int8: float32, which its rows are scaled from) and nothing else, and
with the bias, activation and residual the model has there. GFLOP/s of all workers, the median of `--rounds`. Needs a build
with BEYONDVL_TESTS=1.
"""

from __future__ import annotations

import argparse
import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import numpy as np
from bench import PRECISIONS, ceiling, ceilings, recorded

WIDTHS = {"ViT-B/32": 768, "ViT-L/14": 1024}
# outputs and inputs in hidden sizes; the epilogue's parts
PARTS = {
    "qkv": (3, 1, {"bf16"}),
    "out": (1, 1, {"residual"}),
    "fc1": (4, 1, {"bf16", "act"}),
    "fc2": (1, 4, {"residual"}),
}


def padded(words: int) -> int:
    """Words from one row to the next, an odd number of cache lines: bvl_padded."""
    return 16 * (-(-words // 16) | 1)


def zeros(rows: int, words: int) -> np.ndarray:
    """float32 that begins with a huge page, as a model's weights and rows do."""
    memory = np.zeros(rows * words * 4 + (1 << 22), np.uint8)
    begin = -memory.ctypes.data % (1 << 21)
    return memory[begin : begin + rows * words * 4].view(np.float32).reshape(rows, words)


class Worker:
    """One thread's operands of a product of `m` rows, which start and end with those of the others."""

    def __init__(self, barrier: Barrier, shape: tuple[int, int, int], precision: str, parts: set[str]):
        from beyondvl import _C

        m, n, k = shape
        rng, index = np.random.default_rng(0), _C.PRECISIONS.index(precision)
        size, own = _C._test_scratch(n, k, index), precision == "float32"  # whose operand is A itself
        lda, ldc = padded(k if own else size["operand"]), padded(n)
        a, w = (rng.standard_normal(s).astype(np.float32) for s in ((m, k), (n, k)))
        w *= k**-0.5  # sums of order one: activations of large ones are denormal, and slow
        operand, self.out = zeros(m, lda), zeros(m, ldc)
        if own:
            operand[:, :k] = a
        bias = rng.standard_normal(n).astype(np.float32) if parts - {"bf16"} else None
        residual = self.out if "residual" in parts else None
        self.arrays = (operand if own else a, w, bias, residual, zeros(1, size["packed"]), operand)
        act = _C.ACTIVATIONS.index("quick_gelu" if "act" in parts else "none")
        rounded = "bf16" in parts and precision == "bfloat16"
        self.numbers, self.barrier, self.run = (m, n, k, act, index, rounded), barrier, _C._test_kernel
        self.apart = lda, ldc

    def seconds(self, times: int) -> float:
        self.barrier.wait()
        start = time.perf_counter()
        self.run("gemm", self.out, self.arrays, tuple(map(float, (*self.numbers, times, *self.apart))))
        self.barrier.wait()
        return time.perf_counter() - start


def rate(pool: ThreadPoolExecutor, threads: int, shape: tuple, precision: str, parts: set[str], rounds: int) -> float:
    """GFLOP/s; a call packs its weights first, so calls of few and of many products are subtracted."""
    barrier, flop = Barrier(threads), 2.0 * np.prod(shape) * threads
    workers = [Worker(barrier, shape, precision, parts) for _ in range(threads)]
    longest = lambda times: max(pool.map(lambda worker: worker.seconds(times), workers))  # noqa: E731
    more = max(4, int(0.4 * 2e12 / flop))
    return float(np.median([flop * more / (longest(1 + more) - longest(1)) for _ in range(rounds)])) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=256, help="of each worker; AMX takes strips of 256")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="results are added to this file")
    options = parser.parse_args()
    found, record = ceilings(options.threads), recorded(options.json)
    print(f"ceilings {found}")
    rows = record.setdefault("products", {})
    with ThreadPoolExecutor(options.threads) as pool:
        for model, width in WIDTHS.items():
            for precision in PRECISIONS:
                most = ceiling(found, precision)
                for name, (n, k, parts) in PARTS.items():
                    shape = (options.rows, n * width, k * width)
                    both = [rate(pool, options.threads, shape, precision, p, options.rounds) for p in ({"bf16"}, parts)]
                    rows[f"{model} {name} {precision}"] = both
                    shares = "".join(f", {100 * r / most:.0f} %" for r in both) if most else ""
                    print(f"{model} {name} {precision}: {both[0]:.0f}, {both[1]:.0f} GFLOP/s{shares}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
