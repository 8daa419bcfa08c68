"""What the lower levels give, in one interleaved run: AVX2 beside torch held to AVX2, AVX-512 VNNI beside AVX-512.

    python benchmarks/levels.py [--rounds 5] [--work "ViT-B/32 image 32" ...] [--json results.json]

Work as bench.py has it. float32 at avx2 and avx512, int8 at avx512_vnni, transformers' float32 plain and compiled with every
library of the process held to AVX2; AVX2's ceiling is peak.c's, compiled for a machine without AVX-512.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path

from bench import MODELS, ceilings, checkpoint, given, interleaved, our_calls, recorded

HELD = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}
LEVELS = (("avx2", "float32"), ("avx512", "float32"), ("avx512_vnni", "int8"))


def calls(name: str, kind: str, batch: int, threads: int, folder: Path) -> dict:
    import peers

    import beyondvl as bvl

    model = checkpoint(name, folder)
    x, found, best = given(kind, batch, MODELS[name]["size"]), {}, bvl._C.config()["isa"]
    usable = bvl._C.usable_isas()
    for level, precision in LEVELS:
        if level not in usable:
            print(f"left out: this machine lacks {level}")
            continue
        bvl._C.set_isa(level)
        ours = {precision: bvl.AutoModel.from_pretrained(folder, dtype=precision, num_threads=threads)}
        found[f"beyondvl {level} {precision}"] = our_calls(ours, kind, x)[f"beyondvl {precision}"]
    bvl._C.set_isa(best)
    theirs = peers.all_calls(model, kind, x, threads, folder, ("torch",), ("float32",))
    return found | {f"{label} held to AVX2": call for label, call in theirs.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", nargs="*", default=("ViT-B/32 image 32", "ViT-L/14 image 8"))
    parser.add_argument("--json", type=Path, help="results are added to this file")
    options = parser.parse_args()
    os.environ |= HELD | {"OMP_NUM_THREADS": str(options.threads)}
    most = ceilings(options.threads, machine="haswell").get("float32")
    print(f"AVX2's ceiling {most} GFLOP/s")
    record = recorded(options.json)
    for work in options.work:
        name, kind, batch = work.split()
        with tempfile.TemporaryDirectory() as folder:
            found = calls(name, kind, int(batch), options.threads, Path(folder))
            times = interleaved(found, options.rounds)
        print(work)
        for label, seconds in times.items():
            rate = MODELS[name][kind] * int(batch) / seconds
            share = f", {100 * rate / most:.0f} % of AVX2's ceiling" if most and "avx2" in label else ""
            print(f"  {label:<44} {1e3 * seconds / int(batch):8.2f} ms an item, {rate:6.0f} GFLOP/s{share}")
        record.setdefault("levels", {})[work] = {"ceiling": most, "seconds": times}
        if options.json:
            options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
