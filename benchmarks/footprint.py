"""Import time, load time, peak memory, install size: the figures a user meets before the first picture.

    python benchmarks/footprint.py MODEL_FOLDER

Each figure is taken in fresh processes, median of five: `import beyondvl` over `import numpy`; loading the folder with a
warm disk cache; the peak resident memory of loading against packed weights + largest tensor + 85 MB; the installed
size of the run-time dependencies and of the package itself without weights.
"""

from __future__ import annotations

import importlib.metadata
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

IMPORT = "import numpy, time; t = time.perf_counter(); import beyondvl; print(time.perf_counter() - t)"
LOAD = """
import json, resource, sys, time
import beyondvl as bvl
from beyondvl.weights import open_checkpoint
from pathlib import Path
start = time.perf_counter()
model = bvl.AutoModel.from_pretrained(sys.argv[1])
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
checkpoint = open_checkpoint(Path(sys.argv[1]))
largest = max(4 * entry.count for entry in checkpoint.entries.values())
print(json.dumps({"seconds": seconds, "peak": peak, "packed": model.packed_bytes, "largest": largest}))
"""
RUN_TIME = ("numpy", "pillow", "simplejpeg", "tokenizers", "tqdm")


def run(code: str, *arguments: str) -> str:
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=tempfile.gettempdir()).stdout


def closure(names: tuple[str, ...]) -> set[str]:
    """The named distributions and all they require without extras."""
    from packaging.requirements import Requirement

    found: set[str] = set()
    queue = list(names)
    while queue:
        name = queue.pop().lower().replace("_", "-")
        if name in found:
            continue
        found.add(name)
        for text in importlib.metadata.requires(name) or ():
            requirement = Requirement(text)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                queue.append(requirement.name)
    return found


def installed_bytes(name: str) -> int:
    files = importlib.metadata.files(name) or []
    return sum(p.stat().st_size for file in files if (p := Path(file.locate())).is_file() and p.suffix != ".pyc")


def main() -> None:
    imports = [float(run(IMPORT)) for _ in range(5)]
    loads = [json.loads(run(LOAD, sys.argv[1])) for _ in range(5)]
    load = loads[0]
    bound = load["packed"] + load["largest"] + 85e6
    print(f"import beyondvl over numpy: {1e3 * statistics.median(imports):.1f} ms")
    print(f"loading: {statistics.median(r['seconds'] for r in loads):.2f} s")
    peak = max(r["peak"] for r in loads)
    print(f"peak memory: {peak / 1e6:.0f} MB, packed + largest tensor + 85 MB = {bound / 1e6:.0f} MB")
    names = closure(RUN_TIME)
    print(f"run-time dependencies: {sum(map(installed_bytes, names)) / 1e6:.1f} MB ({', '.join(sorted(names))})")
    own = importlib.metadata.files("beyondvl") or []
    sizes = {str(f): Path(f.locate()).stat().st_size for f in own if Path(f.locate()).is_file()}
    weights = sum(n for f, n in sizes.items() if "default/" in f)
    print(f"own files without weights: {(sum(sizes.values()) - weights) / 1e6:.1f} MB, weights {weights / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
