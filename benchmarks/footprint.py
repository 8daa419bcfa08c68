"""Import time, load time, peak memory, install size: the figures a user meets before the first picture.

    python benchmarks/footprint.py MODEL_FOLDER

Each figure is taken in fresh processes, median of five: `import beyondvl` over `import numpy`; loading the folder in each
precision with a warm disk cache, and once with its files flushed from it; the same from packed weights; the peak resident
memory of loading against packed weights + largest tensor + 85 MB, and what stays resident of model and processor
against packed weights + 85 MB; the installed size of the run-time dependencies and of the package without weights.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
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
folder, dtype = Path(sys.argv[1]), sys.argv[2]
start = time.perf_counter()
model = bvl.AutoModel.from_pretrained(folder, dtype=None if dtype == "packed" else dtype)
seconds = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
processor = bvl.AutoImageProcessor.from_pretrained(folder)
resident = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
files = [folder / "packed.bin"] if dtype == "packed" else []
largest = 0 if files else max(4 * entry.count for entry in open_checkpoint(folder).entries.values())
print(json.dumps({"seconds": seconds, "peak": peak, "resident": resident, "packed": model.packed_bytes,
                  "largest": largest}))
"""
PACK = """
import sys, beyondvl
beyondvl.AutoModel.from_pretrained(sys.argv[1], dtype=sys.argv[2]).save_packed(sys.argv[3])
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


def flush(folder: Path) -> None:
    """Drops a folder's files from the disk cache."""
    for path in folder.iterdir():
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def loading(folder: Path, dtype: str) -> None:
    loads = [json.loads(run(LOAD, str(folder), dtype)) for _ in range(5)]
    flush(folder)
    cold = json.loads(run(LOAD, str(folder), dtype))["seconds"]
    load = loads[0]
    peak, resident = (max(r[name] for r in loads) / 1e6 for name in ("peak", "resident"))
    print(
        f"{dtype}: loaded in {1e3 * statistics.median(r['seconds'] for r in loads):.0f} ms ({1e3 * cold:.0f} with flushed "
        f"files); peak {peak:.0f} MB, bound {(load['packed'] + load['largest']) / 1e6 + 85:.0f}; "
        f"resident {resident:.0f} MB, packed + 85 = {load['packed'] / 1e6 + 85:.0f}"
    )


def main() -> None:
    imports = [float(run(IMPORT)) for _ in range(5)]
    print(f"import beyondvl over numpy: {1e3 * statistics.median(imports):.1f} ms")
    for dtype in ("float32", "bfloat16", "int8"):
        loading(Path(sys.argv[1]), dtype)
        with tempfile.TemporaryDirectory() as folder:
            run(PACK, sys.argv[1], dtype, folder)  # not here: a child's peak begins with its parent's memory
            print(f"  {dtype} ", end="")
            loading(Path(folder), "packed")
    names = closure(RUN_TIME)
    print(f"run-time dependencies: {sum(map(installed_bytes, names)) / 1e6:.1f} MB ({', '.join(sorted(names))})")
    own = importlib.metadata.files("beyondvl") or []
    sizes = {str(f): Path(f.locate()).stat().st_size for f in own if Path(f.locate()).is_file()}
    weights = sum(n for f, n in sizes.items() if "default/" in f)
    print(f"own files without weights: {(sum(sizes.values()) - weights) / 1e6:.1f} MB, weights {weights / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
