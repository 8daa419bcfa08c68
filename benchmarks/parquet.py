"""A folder of 1080p JPEGs to a Parquet file of embeddings: our `encode_to` beside what people run today.

    python benchmarks/parquet.py [--pictures 192] [--rounds 3] [--json results.json]

CLIP ViT-B/32 with one set of random weights everywhere: sentence-transformers in bfloat16, over paths and with pictures
decoded ahead by two threads; fastembed, whose runtime is onnxruntime in float32, with two threads and with two processes.
The rows of every one are compared with float32 ones, less their mean, before any is timed. All run within each round; times
are medians over the rounds. The shipped model is reported beside. Pillow's processors are used: torchvision may be absent.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import bench
import numpy as np
import peers
from bulk import write_rows
from PIL import Image
from pipeline import BATCH, jpegs

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
import conftest  # noqa: F401  transformers without a torchvision of another build

import beyondvl as bvl


def written(path: Path, keys: list[str], rows: np.ndarray) -> np.ndarray:
    rows = rows.astype(np.float32, copy=False)
    write_rows(path, keys, rows)
    return rows


def ours(model: bvl.PreTrainedModel, folder: Path, out: Path) -> Callable[[], np.ndarray]:
    def run() -> np.ndarray:
        from pyarrow import parquet

        shutil.rmtree(out, ignore_errors=True)
        model.encode_to(out, folder, batch_size=BATCH)
        return np.stack(parquet.read_table(out)["vector"].to_numpy())

    return run


def sentence_transformers(checkpoint: Path, folder: Path, paths: list[str], threads: int) -> dict[str, Callable]:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    model = SentenceTransformer(str(checkpoint), device="cpu", model_kwargs={"dtype": torch.bfloat16})
    pool = ThreadPoolExecutor(threads)

    def decode(path: str) -> Image.Image:
        with Image.open(path) as picture:
            return picture.convert("RGB")

    def ahead() -> Iterator[list[Image.Image]]:
        batches = [paths[at : at + BATCH] for at in range(0, len(paths), BATCH)]
        waiting = [pool.submit(decode, path) for path in batches[0]]
        for following in [*batches[1:], []]:
            pictures = [one.result() for one in waiting]
            waiting = [pool.submit(decode, path) for path in following]
            yield pictures

    def encode(items: list) -> np.ndarray:
        return model.encode(items, batch_size=BATCH, show_progress_bar=False, convert_to_tensor=True).float().numpy()

    return {
        "sentence-transformers bfloat16": lambda: written(folder / "st.parquet", paths, encode(paths)),
        "sentence-transformers bfloat16, decoded ahead": lambda: written(
            folder / "st.parquet", paths, np.concatenate([encode(pictures) for pictures in ahead()])
        ),
    }


def fastembed(model, checkpoint: Path, folder: Path, paths: list[str], threads: int) -> dict[str, Callable]:
    import torch
    from fastembed import ImageEmbedding

    shutil.copy(checkpoint / "preprocessor_config.json", folder)
    torch.onnx.export(peers.tower(model, "image"), (torch.zeros(2, 3, 224, 224),), str(folder / "model.onnx"), dynamo=True,
                      external_data=False, verbose=False, dynamic_shapes=[{0: torch.export.Dim.DYNAMIC}])  # fmt: skip
    found: dict[str, Callable] = {}
    for title, each, parallel in ((f"{threads} threads", threads, None), (f"{threads} processes", 1, threads)):
        engine = ImageEmbedding("Qdrant/clip-ViT-B-32-vision", specific_model_path=str(folder), threads=each)
        found[f"fastembed, {title}"] = lambda engine=engine, parallel=parallel: written(
            folder / "fe.parquet", paths, np.stack(list(engine.embed(paths, batch_size=BATCH, parallel=parallel)))
        )
    return found


def centred_cosines(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    rows, wanted = ((x / np.linalg.norm(x, axis=1, keepdims=True)).astype(np.float64) for x in (rows, wanted))
    rows, wanted = rows - wanted.mean(0), wanted - wanted.mean(0)
    return (rows * wanted).sum(1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(wanted, axis=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="results are added to this file")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        pictures, checkpoint, exported = (work / part for part in ("pictures", "clip", "onnx"))
        for folder in (pictures, checkpoint, exported):
            folder.mkdir()
        for at, data in enumerate(jpegs(options.pictures, 1920, 1080)):
            (pictures / f"{at:05}.jpg").write_bytes(data)
        paths = sorted(map(str, pictures.iterdir()))
        model = bench.checkpoint("ViT-B/32", checkpoint)
        published(checkpoint)
        calls: dict[str, Callable[[], np.ndarray]] = {}
        for source, title in ((str(checkpoint), "beyondvl"), ("beyond-vl-model", "shipped model")):
            for dtype in ("int8", "bfloat16"):
                loaded = bvl.AutoModel.from_pretrained(source, dtype=dtype, num_threads=options.threads)
                calls[f"{title} {dtype}"] = ours(loaded, pictures, work / "rows")
        calls |= sentence_transformers(checkpoint, work, paths, options.threads)
        calls |= fastembed(model, checkpoint, exported, paths, options.threads)
        wanted = bvl.AutoModel.from_pretrained(checkpoint).encode(paths)
        report(options, calls, wanted)


def published(folder: Path) -> None:
    """The small files that CLIP is published with, beside random weights."""
    from transformers import CLIPImageProcessorPil, CLIPTokenizer

    CLIPTokenizer({"<|startoftext|>": 49406, "<|endoftext|>": 49407, "a</w>": 320}, []).save_pretrained(folder)
    values = CLIPImageProcessorPil().to_dict() | {"image_processor_type": "CLIPImageProcessor"}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))


def report(options: argparse.Namespace, calls: dict[str, Callable[[], np.ndarray]], wanted: np.ndarray) -> None:
    times: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in calls.items():
        rows = call()
        if not name.startswith("shipped"):
            print(f"{name}: least cosine to float32 {centred_cosines(rows, wanted).min():.4f}", flush=True)
    for _ in range(options.rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(1e3 * (time.perf_counter() - start) / options.pictures)
    best = {
        peer: np.min([t for name, t in times.items() if name.startswith(peer)], 0)
        for peer in ("sentence-transformers", "fastembed")
    }
    results = {}
    for name, each in times.items():
        ratios = {peer: float(np.median(t / np.array(each))) for peer, t in best.items()}
        results[name] = {"ms": float(np.median(each)), **ratios}
        print(f"{name:<48} {np.median(each):7.2f} ms a picture; "
              + ", ".join(f"{peer} / it {ratio:.2f}" for peer, ratio in ratios.items()), flush=True)  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(bench.recorded(options.json) | {"parquet": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
