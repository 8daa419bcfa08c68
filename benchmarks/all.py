"""Every benchmark, one after another, into one file; then the table of docs/SPEED.md and the plot where asked for.

    python benchmarks/all.py [--json results.json] [--quick] [--report]

Each runs in a process of its own: models beside their peers (bench.py), pictures from files (pipeline.py), captions and
matching (captions.py), exact search (search.py), import, load, cold start, memory and size (footprint.py). What is not installed is named and left
out. `--quick` takes ViT-B/32 alone, without quantising for openvino, and one round of each.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
QUICK = {
    "bench.py": ("--rounds", "1", "--peers", "torch", "onnxruntime", "openvino", "--work", "ViT-B/32 image 32",
                 "ViT-B/32 image 1", "ViT-B/32 text 32", "ViT-B/32 text 1"),
    "pipeline.py": ("--rounds", "1"),
    "captions.py": ("--rounds", "1"),
    "search.py": ("--rows", "100000", "--rounds", "1"),
    "footprint.py": (),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path("results.json"), help="results are added to this file")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--report", action="store_true", help="write the table of docs/SPEED.md and docs/speed.svg of the results"
    )
    options = parser.parse_args()
    failed = []
    for name, quick in QUICK.items():
        print(f"== {name}", flush=True)
        command = [sys.executable, str(HERE / name), "--json", str(options.json), *(quick if options.quick else ())]
        if subprocess.run(command).returncode:
            failed.append(name)
    if options.report:
        subprocess.run([sys.executable, str(HERE / "report.py"), str(options.json)], check=True)
    if failed:
        raise SystemExit(f"did not run: {', '.join(failed)}")


if __name__ == "__main__":
    main()
