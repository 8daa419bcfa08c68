"""How much several processes on the same processors cost each other.

    python benchmarks/company.py [--copies 2] [--threads 2] [--dtype int8]

BLIP-base shapes, random weights: each copy encodes a picture and writes 20 tokens, over and over, all at the same time, then
one alone. With n copies on processors that one keeps busy, n times the time of one alone is what can be had.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROUNDS = 7


def write(folder: Path) -> None:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.BlipConfig(text_config={"num_attention_heads": 12})
    transformers.BlipForConditionalGeneration(config).save_pretrained(folder)


def measure(folder: Path, dtype: str, threads: int) -> dict[str, float]:
    import beyondvl as bvl

    model = bvl.AutoModel.from_pretrained(folder, dtype=dtype, num_threads=threads)
    pixels = np.random.default_rng(0).standard_normal((1, 3, 384, 384)).astype(np.float32)
    times: dict[str, list[float]] = {"picture_ms": [], "tokens_ms": []}
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        encoded = model.encode_image(pixel_values=pixels)
        middle = time.perf_counter()
        model.generate(images=encoded, max_new_tokens=20, min_new_tokens=20)
        times["picture_ms"].append(middle - start)
        times["tokens_ms"].append(time.perf_counter() - middle)
    return {name: round(1e3 * float(np.median(values[1:])), 1) for name, values in times.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.folder:
        print(json.dumps(measure(options.folder, options.dtype, options.threads)))
        return
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder))
        command = [sys.executable, __file__, "--folder", folder, "--dtype", options.dtype, "--threads",
                   str(options.threads)]  # fmt: skip
        for copies in (options.copies, 1):
            running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(copies)]
            print(copies, *[process.communicate()[0].strip() for process in running])


if __name__ == "__main__":
    main()
