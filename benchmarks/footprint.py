"""Import time, load time, cold start, peak memory, install size: the figures a user meets before the first picture.

    python benchmarks/footprint.py [MODEL_FOLDER] [--json results.json]

Each figure is taken in fresh processes, median of five: `import beyondvl` over `import numpy`; loading the folder in each
precision with a warm disk cache, and once with its files flushed from it; the same from packed weights; the peak resident
memory of loading against packed weights + largest tensor + 85 MB, and what stays resident of model and processor
against packed weights + 85 MB; from the start of a process to the first picture's embedding, and its peak memory, beside
the peers that are installed (onnxruntime and openvino from files exported beforehand); the installed size of the run-time
dependencies and of the package without weights. Without a folder: CLIP ViT-B/32 with random weights.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bench import recorded

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
# name -> module it needs, what runs from the start of a process to the first embedding of a picture
FIRST = {
    "beyondvl float32": (None, """
import beyondvl as bvl
model = bvl.AutoModel.from_pretrained(sys.argv[1])
model.run_tower("vision", {"pixel_values": np.zeros((1, 3, 224, 224), np.float32)}, ["embeds"])
"""),
    "beyondvl packed int8": (None, """
import beyondvl as bvl
model = bvl.AutoModel.from_pretrained(sys.argv[2])
model.run_tower("vision", {"pixel_values": np.zeros((1, 3, 224, 224), np.float32)}, ["embeds"])
"""),
    "transformers float32": ("transformers", """
import torch, transformers
torch.set_num_threads(2)
model = transformers.CLIPModel.from_pretrained(sys.argv[1])
with torch.inference_mode():
    model.get_image_features(pixel_values=torch.zeros(1, 3, 224, 224))
"""),
    "onnxruntime float32": ("onnxruntime", """
import onnxruntime
session = onnxruntime.InferenceSession(sys.argv[3] + "/tower.onnx", providers=["CPUExecutionProvider"])
session.run(None, {session.get_inputs()[0].name: np.zeros((1, 3, 224, 224), np.float32)})
"""),
    "openvino float32": ("openvino", """
import openvino
model = openvino.Core().compile_model(sys.argv[3] + "/tower.xml", "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
model.create_infer_request().infer([np.zeros((1, 3, 224, 224), np.float32)])
"""),
}  # fmt: skip
PEAK = "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)"
# in processes of their own, so that no child's peak begins with torch in it
CHECKPOINT = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
import bench; bench.checkpoint("ViT-B/32", Path(sys.argv[2]))
(Path(sys.argv[2]) / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
"""
EXPORT = """
import sys; sys.path.insert(0, sys.argv[1])
from pathlib import Path
import footprint; footprint.exported(Path(sys.argv[2]), Path(sys.argv[3]))
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


def loading(folder: Path, dtype: str) -> dict[str, float]:
    loads = [json.loads(run(LOAD, str(folder), dtype)) for _ in range(5)]
    flush(folder)
    load = loads[0]
    found = {
        "ms": 1e3 * statistics.median(r["seconds"] for r in loads),
        "flushed_ms": 1e3 * json.loads(run(LOAD, str(folder), dtype))["seconds"],
        "peak_mb": max(r["peak"] for r in loads) / 1e6,
        "peak_bound_mb": (load["packed"] + load["largest"]) / 1e6 + 85,
        "resident_mb": max(r["resident"] for r in loads) / 1e6,
        "resident_bound_mb": load["packed"] / 1e6 + 85,
    }
    print(
        "loaded in {ms:.0f} ms ({flushed_ms:.0f} with flushed files); peak {peak_mb:.0f} MB, bound {peak_bound_mb:.0f}; "
        "resident {resident_mb:.0f} MB, packed + 85 = {resident_bound_mb:.0f}".format(**found)
    )
    return found


def exported(folder: Path, target: Path) -> None:
    """The picture tower as files in `target` of the peers that read such, where they are installed."""
    import peers
    import torch
    from transformers import CLIPModel

    module, x = peers.tower(CLIPModel.from_pretrained(folder).eval(), "image"), torch.zeros(1, 3, 224, 224)
    if importlib.util.find_spec("onnxruntime"):
        peers.onnx_calls(module, x, 2, target)
    if importlib.util.find_spec("openvino"):
        import openvino

        openvino.save_model(peers.openvino_models(module, x, False)["float32"][0], target / "tower.xml", False)


def first_embedding(folder: Path, packed: Path, files: Path) -> dict[str, dict[str, float]]:
    """From the start of a process to the first embedding, with files in the disk cache and flushed from it."""
    found = {}
    config = json.loads((folder / "config.json").read_text())
    if config.get("model_type") != "clip" or config.get("vision_config", {}).get("image_size", 224) != 224:
        print("first embedding: told of a CLIP of 224 pixels alone")
        return found
    if importlib.util.find_spec("torch") and importlib.util.find_spec("transformers"):
        run(EXPORT, str(Path(__file__).parent), str(folder), str(files))
    for name, (module, code) in FIRST.items():
        exports = {"onnxruntime": "tower.onnx", "openvino": "tower.xml"}
        ready = module not in exports or (files / exports[module]).exists()
        if module and not (importlib.util.find_spec(module) and ready):
            print(f"{name}: {module}, or torch to export for it, is not installed")
            continue
        whole, times, peaks = f"import resource, sys\nimport numpy as np\n{code}\n{PEAK}", [], []
        for flushed in (False, False, False, True):
            for place in (folder, packed, files) if flushed else ():
                flush(place)
            start = time.perf_counter()
            peaks.append(int(run(whole, str(folder), str(packed), str(files)).splitlines()[-1]))
            times.append(1e3 * (time.perf_counter() - start))
        found[name] = {"ms": statistics.median(times[:3]), "flushed_ms": times[3], "peak_mb": max(peaks) / 1e6}
        print("{0}: first embedding after {ms:.0f} ms ({flushed_ms:.0f} with flushed files), peak {peak_mb:.0f} MB".format(
            name, **found[name]))  # fmt: skip
    return found


def installed() -> dict[str, float]:
    names = closure(RUN_TIME)
    try:
        own = importlib.metadata.files("beyondvl") or []
    except importlib.metadata.PackageNotFoundError:
        print("beyondvl is not installed here: its size is not told")
        own = []
    sizes = {str(f): Path(f.locate()).stat().st_size for f in own if Path(f.locate()).is_file()}
    weights = sum(n for f, n in sizes.items() if "default/" in f)
    found = {"dependencies_mb": sum(map(installed_bytes, names)) / 1e6, "own_mb": (sum(sizes.values()) - weights) / 1e6,
             "weights_mb": weights / 1e6}  # fmt: skip
    print(f"run-time dependencies: {found['dependencies_mb']:.1f} MB ({', '.join(sorted(names))})")
    print(f"own files without weights: {found['own_mb']:.1f} MB, weights {found['weights_mb']:.1f} MB")
    return found


def measure(folder: Path) -> dict[str, Any]:
    imports = [float(run(IMPORT)) for _ in range(5)]
    found: dict[str, Any] = {"import_ms": 1e3 * statistics.median(imports), "loading": {}}
    print(f"import beyondvl over numpy: {found['import_ms']:.1f} ms")
    for dtype in ("float32", "bfloat16", "int8"):
        print(f"{dtype}: ", end="", flush=True)
        found["loading"][dtype] = loading(folder, dtype)
        with tempfile.TemporaryDirectory() as packed:
            run(PACK, str(folder), dtype, packed)  # not here: a child's peak begins with its parent's memory
            print(f"  packed {dtype}: ", end="", flush=True)
            found["loading"][f"packed {dtype}"] = loading(Path(packed), "packed")
            if dtype == "int8":
                with tempfile.TemporaryDirectory() as files:
                    found["first_embedding"] = first_embedding(folder, Path(packed), Path(files))
    return found | installed()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--json", type=Path, help="results are added to this file")
    options = parser.parse_args()
    record = recorded(options.json)
    with tempfile.TemporaryDirectory() as made:
        if options.folder is None:
            run(CHECKPOINT, str(Path(__file__).parent), made)
        record["footprint"] = measure(options.folder or Path(made))
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
