"""Two builds of beyondvl, line by line, in one interleaved run: did anything become slower?

    python benchmarks/builds.py OLD NEW [--pairs 30] [--only TEXT] [--json builds.json]

OLD and NEW are folders with a built package `beyondvl` in them. The lines are our own of `all.py --quick`: ViT-B/32 in
every precision, pictures from files, captions and matching, tokens, import, load and first embedding, with random
weights and two threads. Each build has a process of its own that holds its models; a pair is one measurement of either,
in turns the one and the other first. Printed are the medians of both, the median ratio new / old of the pairs and its
upper 95 % bound (bootstrap).
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bench import PRECISIONS, checkpoint, recorded
from pipeline import jpegs

HERE = Path(__file__).parent
THREADS, SECONDS = 2, 0.3
MAKE = "import sys; sys.path.insert(0, sys.argv[1]); import builds; builds.make(sys.argv[2])"
WORK = "import sys; sys.path.insert(0, sys.argv[1]); import builds; builds.work(sys.argv[2])"
# measured in fresh processes: seconds are what they print
FRESH = {
    "import": "import numpy, time; t = time.perf_counter(); import beyondvl; print(time.perf_counter() - t)",
    "load float32": "import beyondvl, sys, time; t = time.perf_counter(); "
    "beyondvl.AutoModel.from_pretrained(sys.argv[1] + '/clip'); print(time.perf_counter() - t)",
    "load packed int8": "import beyondvl, sys, time; t = time.perf_counter(); "
    "beyondvl.AutoModel.from_pretrained(sys.argv[1] + '/packed-' + sys.argv[2]); print(time.perf_counter() - t)",
    "load the default": "import beyondvl, time; t = time.perf_counter(); "
    "beyondvl.AutoModel.from_pretrained('beyond-vl-model'); print(time.perf_counter() - t)",
}


def make(folder: str) -> None:
    """The checkpoints and pictures of both."""
    import torch
    import transformers

    place = Path(folder)
    checkpoint("ViT-B/32", place / "clip")
    (place / "clip" / "preprocessor_config.json").write_text('{"image_processor_type": "CLIPImageProcessor"}')
    torch.manual_seed(0)
    config = transformers.BlipConfig(text_config={"num_attention_heads": 12})
    for name, cls in (("captions", "BlipForConditionalGeneration"), ("matching", "BlipForImageTextRetrieval")):
        getattr(transformers, cls)(config).save_pretrained(place / name)
    (place / "jpegs").mkdir()
    for i, data in enumerate(jpegs(32, 1920, 1080)):
        (place / "jpegs" / f"{i:03}.jpg").write_bytes(data)
    for i, data in enumerate(jpegs(64, 256, 256)):
        (place / "jpegs" / f"small{i:03}.jpg").write_bytes(data)


def lines(place: Path) -> dict[str, Callable[[], object]]:
    """Name -> a call, of the build that this process imports."""
    from PIL import Image

    import beyondvl as bvl

    rng, calls = np.random.default_rng(0), {}
    load = functools.partial(bvl.AutoModel.from_pretrained, num_threads=THREADS)
    clips = {p: load(place / "clip", dtype=p) for p in PRECISIONS}
    ids = rng.integers(1, 900, (32, 16))
    ids[:, -1] = 49407
    pixels = rng.standard_normal((32, 3, 224, 224)).astype(np.float32)
    for precision, model in clips.items():
        for count in (32, 1):
            seen, read = {"pixel_values": pixels[:count]}, {"input_ids": ids[:count]}
            calls[f"image {count} {precision}"] = functools.partial(model.run_tower, "vision", seen, ["embeds"])
            calls[f"text {count} {precision}"] = functools.partial(model.run_tower, "text", read, ["embeds"])
    large = sorted(map(str, (place / "jpegs").glob("0*.jpg")))
    small = [path.read_bytes() for path in sorted((place / "jpegs").glob("small*.jpg"))]
    decoded = [Image.open(io.BytesIO(Path(path).read_bytes())).convert("RGB") for path in large]
    data = [Path(path).read_bytes() for path in large]
    process = bvl.AutoImageProcessor.from_pretrained(place / "clip", num_threads=THREADS)
    fast = bvl.AutoImageProcessor.from_pretrained(place / "clip", num_threads=THREADS, fast=True)
    calls["JPEG bytes to pixels"] = lambda: process(data)
    calls["JPEG bytes to pixels, fast"] = lambda: fast(data)
    calls["PIL images to pixels"] = lambda: process(decoded)
    calls["folder to embeddings int8"] = lambda: clips["int8"].encode(large, modality="image")
    calls["folder to embeddings bfloat16"] = lambda: clips["bfloat16"].encode(large, modality="image")
    calls["small JPEGs to embeddings int8"] = lambda: clips["int8"].encode(small, modality="image")
    picture = rng.standard_normal((1, 3, 384, 384)).astype(np.float32)
    words = {"input_ids": rng.integers(1000, 30000, (32, 16))}
    for precision in PRECISIONS:
        writes, matches = (load(place / name, dtype=precision) for name in ("captions", "matching"))
        calls[f"caption {precision}"] = functools.partial(
            writes.generate, pixel_values=picture, max_new_tokens=20, min_new_tokens=20
        )
        calls[f"match {precision}"] = functools.partial(match, matches, picture, words)
    default = load("beyond-vl-model")
    texts = [f"a photo of {n} red cars on the {n % 97} th street" for n in range(20_000)]
    long = " ".join(texts[:4000])
    calls["20000 short texts to ids"] = lambda: default.tokenizer(texts, return_tensors="np", padding=True)
    calls["a long text to ids, cut"] = lambda: default.tokenizer(long, truncation=True, max_length=100)
    calls["256 texts to embeddings, the default"] = lambda: default.encode(texts[:256])
    return calls


def match(model, picture: np.ndarray, words: dict) -> object:
    source = model.encode_image(pixel_values=picture).source(len(words["input_ids"]), "texts")
    return model.tower("text").run(words | source, ["itm_score"], THREADS)["itm_score"]


def work(folder: str) -> None:
    """Reads names of lines, answers with seconds per call; of "?" with all names."""
    calls = lines(Path(folder))
    counts: dict[str, int] = {}
    for name in map(str.strip, sys.stdin):
        if name == "?":
            print(json.dumps(list(calls)), flush=True)
            continue
        call = calls[name]
        if name not in counts:
            call()
            start = time.perf_counter()
            call()
            counts[name] = max(1, int(SECONDS / (time.perf_counter() - start)))
        start = time.perf_counter()
        for _ in range(counts[name]):
            call()
        print((time.perf_counter() - start) / counts[name], flush=True)


class Build:
    """One of the two, in a process of its own."""

    def __init__(self, root: Path, folder: str):
        self.folder, self.name = folder, root.resolve().name
        # modules are compiled once, as where they are installed
        self.environment = os.environ | {"PYTHONPATH": str(root.resolve()), "PYTHONPYCACHEPREFIX": f"{folder}/pyc"}
        self.environment.pop("PYTHONDONTWRITEBYTECODE", None)
        self.process = subprocess.Popen([sys.executable, "-c", WORK, str(HERE), folder], text=True, cwd=folder,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.environment)  # fmt: skip

    def ask(self, name: str) -> str:
        self.process.stdin.write(f"{name}\n")
        self.process.stdin.flush()
        if not (answer := self.process.stdout.readline()):
            raise SystemExit(f"{self.name}: ended at {name!r}")
        return answer

    def run(self, code: str) -> float:
        command = [sys.executable, "-c", code, self.folder, self.name]
        return float(subprocess.run(command, env=self.environment, cwd=self.folder, check=True, text=True,
                                    capture_output=True).stdout)  # fmt: skip

    def seconds(self, name: str) -> float:
        return self.run(FRESH[name]) if name in FRESH else float(self.ask(name))


def compare(old: Build, new: Build, name: str, pairs: int) -> dict[str, float]:
    for build in (old, new):
        build.seconds(name)  # warm
    times: dict[Build, list[float]] = {old: [], new: []}
    for pair in range(pairs):
        for build in (old, new) if pair % 2 else (new, old):
            times[build].append(build.seconds(name))
    ratios = np.array(times[new]) / np.array(times[old])
    draws = np.random.default_rng(0).choice(ratios, (2000, pairs))
    return {"old_ms": 1e3 * float(np.median(times[old])), "new_ms": 1e3 * float(np.median(times[new])),
            "ratio": float(np.median(ratios)), "upper": float(np.quantile(np.median(draws, 1), 0.95))}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path)
    parser.add_argument("new", type=Path)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--only", default="", help="lines whose name holds it")
    parser.add_argument("--json", type=Path, help="results are added to this file")
    options = parser.parse_args()
    results = recorded(options.json)
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-c", MAKE, str(HERE), folder], check=True, stdout=subprocess.DEVNULL,
                       env=os.environ | {"PYTHONPATH": str(options.new.resolve())})  # fmt: skip
        old, new = Build(options.old, folder), Build(options.new, folder)
        pack = "import beyondvl, sys; f = sys.argv[1]; beyondvl.AutoModel.from_pretrained(f + '/clip', dtype='int8')"
        for build in (old, new):
            build.run(f"{pack}.save_packed(f + '/packed-' + sys.argv[2]); print(0)")
        for name in (n for n in (*FRESH, *json.loads(new.ask("?"))) if options.only in n):
            row = compare(old, new, name, options.pairs)
            print("{0:<40} old {old_ms:9.3f} ms, new {new_ms:9.3f} ms, ratio {ratio:.3f} (at most {upper:.3f})".format(
                name, **row), flush=True)  # fmt: skip
            results.setdefault("builds", {})[name] = row
            if options.json:
                options.json.write_text(json.dumps(results, indent=1))
        for build in (old, new):
            build.process.stdin.close()
            build.process.wait()


if __name__ == "__main__":
    main()
