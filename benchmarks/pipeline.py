"""From files to embeddings: decoding, resizing and the model together, beside the best that can be assembled of others.

    python benchmarks/pipeline.py [--rounds 5] [--json results.json]

Work, CLIP ViT-B/32 with random weights: 1080p JPEG bytes -> pixel_values; decoded PIL images -> pixel_values; a folder of
1080p JPEGs -> embeddings; a tar of 256-pixel JPEGs -> embeddings. Peers: transformers with two worker threads for its PIL
processor and the model in bfloat16; hf-processors-rs (bit-equal PIL rules) with openvino in bfloat16. The pictures are
the photographs of examples/ enlarged, with noise, so that they compress like photographs of that size.
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bench
import numpy as np
import peers
from PIL import Image

PHOTOS = Path(__file__).parent.parent / "examples" / "photos"
BATCH = 32


def jpegs(count: int, width: int, height: int) -> list[bytes]:
    rng, found = np.random.default_rng(0), []
    sources = sorted(PHOTOS.glob("*.jpg"))
    for i in range(count):
        with Image.open(sources[i % len(sources)]) as image:
            pixels = np.asarray(image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noisy = pixels + rng.normal(0, 5.5, (height, width, 1)).astype(np.int16)
        buffer = io.BytesIO()
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=85)
        found.append(buffer.getvalue())
    return found


def tar_members(path: Path) -> list[bytes]:
    with tarfile.open(path) as archive:
        return [archive.extractfile(member).read() for member in archive]


class Work:
    """Every way to do the work; each call returns one array for the whole set."""

    def __init__(self, folder: Path, threads: int):
        import hf_processors_rs
        import openvino as ov
        import torch
        import transformers

        import beyondvl as bvl

        torch.set_num_threads(threads)
        model = bench.checkpoint("ViT-B/32", folder)
        (folder / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
        self.ours = {
            p: bvl.AutoModel.from_pretrained(folder, dtype=p, num_threads=threads) for p in ("bfloat16", "int8")
        }
        self.exact = bvl.AutoImageProcessor.from_pretrained(folder)
        self.fast = bvl.AutoImageProcessor.from_pretrained(folder, fast=True)
        self.rust = hf_processors_rs.AutoImageProcessor.from_pretrained(str(folder), backend="pil")
        self.theirs = transformers.CLIPImageProcessorPil()
        self.pool = ThreadPoolExecutor(threads)
        tower = peers.tower(model, "image")
        converted = ov.convert_model(tower, example_input=torch.zeros(1, 3, 224, 224))
        self.torch_model = copy.deepcopy(tower).to(torch.bfloat16)
        converted.reshape([BATCH, 3, 224, 224])
        options = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": "bf16",
        }
        self.openvino = ov.AsyncInferQueue(ov.Core().compile_model(converted, "CPU", options), 2)

    def encode(self, precision: str, sources: list, fast: bool = False) -> np.ndarray:
        model = self.ours[precision]
        model._processor = self.fast if fast else self.exact
        return model.encode(sources, batch_size=BATCH, modality="image")

    def transformers_pixels(self, sources: list) -> np.ndarray:
        def one(source):
            image = source if isinstance(source, Image.Image) else Image.open(
                io.BytesIO(source) if isinstance(source, bytes) else source)  # fmt: skip
            return self.theirs(image.convert("RGB"), return_tensors="np")["pixel_values"][0]

        return np.stack(list(self.pool.map(one, sources)))

    def transformers_embeddings(self, sources: list) -> np.ndarray:
        import torch

        found = []
        for start in range(0, len(sources), BATCH):
            pixels = torch.from_numpy(self.transformers_pixels(sources[start : start + BATCH]))
            with torch.inference_mode():
                found.append(self.torch_model(pixels.to(torch.bfloat16)).float().numpy())
        return np.concatenate(found)

    def assembled_embeddings(self, sources: list) -> np.ndarray:
        """hf-processors-rs one batch after another, openvino with two requests in flight behind it."""
        found: dict[int, np.ndarray] = {}
        self.openvino.set_callback(lambda request, at: found.update({at: request.get_output_tensor().data.copy()}))
        for start in range(0, len(sources), BATCH):
            self.openvino.start_async([np.asarray(self.rust(sources[start : start + BATCH]))], start)
        self.openvino.wait_all()
        return np.concatenate([found[at] for at in sorted(found)])


def variants(work: Work, folder: Path) -> dict[str, dict[str, Callable]]:
    large = jpegs(2 * BATCH, 1920, 1080)
    small = jpegs(8 * BATCH, 256, 256)
    decoded = [Image.open(io.BytesIO(data)).convert("RGB") for data in large[:BATCH]]
    paths = []
    for i, data in enumerate(large):
        paths.append(str(folder / f"{i:03}.jpg"))
        Path(paths[-1]).write_bytes(data)
    shard = folder / "shard.tar"
    with tarfile.open(shard, "w") as archive:
        for i, data in enumerate(small):
            member = tarfile.TarInfo(f"{i:06}.jpg")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return {
        "1080p JPEG bytes -> pixel_values": {
            "beyondvl": lambda: work.exact(large)["pixel_values"],
            "beyondvl, fast=True": lambda: work.fast(large)["pixel_values"],
            "hf-processors-rs": lambda: np.asarray(work.rust(large)),
            "transformers, two threads": lambda: work.transformers_pixels(large),
        },
        "decoded 1080p PIL images -> pixel_values": {
            "beyondvl": lambda: work.exact(decoded)["pixel_values"],
            "hf-processors-rs": lambda: np.asarray(work.rust(decoded)),
            "transformers, two threads": lambda: work.transformers_pixels(decoded),
        },
        "folder of 1080p JPEGs -> embeddings": {
            "beyondvl int8": lambda: work.encode("int8", paths),
            "beyondvl bfloat16": lambda: work.encode("bfloat16", paths),
            "beyondvl int8, fast=True": lambda: work.encode("int8", paths, fast=True),
            "hf-processors-rs + openvino bfloat16": lambda: work.assembled_embeddings(paths),
            "transformers bfloat16, two threads": lambda: work.transformers_embeddings(paths),
        },
        "tar of 256 px JPEGs -> embeddings": {
            "beyondvl int8": lambda: work.encode("int8", tar_members(shard)),
            "beyondvl bfloat16": lambda: work.encode("bfloat16", tar_members(shard)),
            "hf-processors-rs + openvino bfloat16": lambda: work.assembled_embeddings(tar_members(shard)),
            "transformers bfloat16, two threads": lambda: work.transformers_embeddings(tar_members(shard)),
        },
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="results are added to this file")
    options = parser.parse_args()
    record = bench.recorded(options.json)
    record["pipeline"] = {}
    with tempfile.TemporaryDirectory() as name:
        work = Work(Path(name), options.threads)
        for title, calls in variants(work, Path(name)).items():
            times: dict[str, list[float]] = {n: [] for n in calls}
            counts = {n: len(call()) for n, call in calls.items()}
            for _ in range(options.rounds):
                for n, call in calls.items():
                    start = time.perf_counter()
                    call()
                    times[n].append((time.perf_counter() - start) / counts[n])
            rows = {n: 1e3 * float(np.median(t)) for n, t in times.items()}
            record["pipeline"][title] = rows
            print(f"\n{title}")
            for n, ms in sorted(rows.items(), key=lambda item: item[1]):
                print(f"  {n:<40} {ms:8.2f} ms a picture, {1e3 / ms / options.threads:7.1f} pictures a second and core")
            fastest = min(ms for n, ms in rows.items() if not n.startswith("beyondvl"))
            print(f"  fastest peer / beyondvl: {fastest / next(iter(rows.values())):.2f}")
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
