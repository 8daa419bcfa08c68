"""BLIP-2, random weights of the published shapes: memory of loading, and decoding against the memory's speed.

    python benchmarks/blip2.py [--language opt-2.7b|flan-t5-xl|vicuna-7b] [--dtype int8] [--folder DIR] [--json results.json]

Writes a float16 checkpoint (7.5, 8 or 16 GB) to DIR (a temporary folder by default) one tensor at a time, loads it in a
process of its own and decodes with one picture. A token reads all weights of the decoder but the embedding table; their
bytes per second are compared with what peak.c reads from memory between rounds of tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

CONFIG = {
    "model_type": "blip-2",
    "architectures": ["Blip2ForConditionalGeneration"],
    "image_token_index": 50265,
    "num_query_tokens": 32,
    "vision_config": {"hidden_size": 1408, "intermediate_size": 6144, "num_hidden_layers": 39, "num_attention_heads": 16,
                      "image_size": 224, "patch_size": 14},
    "qformer_config": {"num_attention_heads": 12, "encoder_hidden_size": 1408},
}  # fmt: skip
TEXT = {
    "opt-2.7b": {"model_type": "opt", "vocab_size": 50304, "hidden_size": 2560, "ffn_dim": 10240, "num_hidden_layers": 32,
                 "num_attention_heads": 32, "eos_token_id": 50118},
    "flan-t5-xl": {"model_type": "t5", "vocab_size": 32128, "d_model": 2048, "d_kv": 64, "d_ff": 5120, "num_layers": 24,
                   "num_heads": 32, "feed_forward_proj": "gated-gelu", "dense_act_fn": "gelu",
                   "tie_word_embeddings": False},
    "vicuna-7b": {"model_type": "llama", "vocab_size": 32001, "hidden_size": 4096, "intermediate_size": 11008,
                  "num_hidden_layers": 32, "num_attention_heads": 32, "pad_token_id": 0},
}  # fmt: skip
CHUNK = 1 << 24
ROUNDS = 5


def config_of(language: str) -> dict:
    text = TEXT[language]
    return CONFIG | {"text_config": text, "image_token_index": text["vocab_size"] - 1}


def shapes(config: dict) -> dict[str, tuple[int, ...]]:
    """Every parameter of the checkpoint; of two that are tied, the first alone."""
    from beyondvl.config import Config
    from beyondvl.families.blip_2 import FAMILY
    from beyondvl.spec import refs

    found: dict[str, tuple[int, ...]] = {}
    for build in FAMILY.heads[config["architectures"][0]].towers.values():
        for ref in refs(build(Config(config))):
            if ref.tied not in found:
                sizes = zip(ref.names, ref.stored_rows, strict=True)
                found |= {name: (rows, *ref.shape[1:]) for name, rows in sizes}
    return found


def write(folder: Path, config: dict) -> None:
    """A checkpoint of float16 noise, one tensor in memory at a time."""
    rng, header, at = np.random.default_rng(0), {}, 0
    for name, shape in shapes(config).items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "F16", "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    noise = rng.standard_normal(CHUNK, np.float32)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for shape in (entry["shape"] for entry in header.values()):
            count = int(np.prod(shape))
            scale = 0.7 / float(np.prod(shape[1:])) ** 0.5 if len(shape) > 1 else 0.02
            for start in range(0, count, CHUNK):
                file.write((noise[: min(CHUNK, count - start)] * scale).astype(np.float16).tobytes())
    (folder / "config.json").write_text(json.dumps(config))


def measure(folder: Path, dtype: str, threads: int) -> dict[str, float]:
    """In this process: seconds and peak memory of loading, milliseconds a token."""
    from bench import ceilings

    import beyondvl as bvl

    start = time.perf_counter()
    model = bvl.AutoModel.from_pretrained(folder, dtype=dtype, num_threads=threads)
    loaded = time.perf_counter() - start

    def status(field: str) -> float:
        line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
        return int(line.split()[1]) / 1024

    peak = status("VmHWM")
    pixels = np.random.default_rng(1).standard_normal((1, 3, 224, 224)).astype(np.float32)
    start = time.perf_counter()
    encoded = model.encode_image(pixel_values=pixels)
    picture = time.perf_counter() - start
    stream = model.stream(images=encoded, max_new_tokens=48, min_new_tokens=48)
    next(stream)  # the prompt
    rounds = []
    for _ in range(ROUNDS):
        times = []
        for _ in range(8):
            start = time.perf_counter()
            next(stream)
            times.append(time.perf_counter() - start)
        rounds.append((float(np.median(times)), ceilings(threads, "memory").get("memory", float("nan"))))
    decoder = model.tower("decoder").program.info()["packed_bytes"]
    hidden = model.tower("decoder").encoder.hidden_size
    table = model.config.text_config.vocab_size * hidden * (4 if dtype == "float32" else 2)
    read = (decoder - table) / 1e9
    shares = [read / token / bandwidth for token, bandwidth in rounds]
    token = float(np.median([token for token, _ in rounds]))
    return {
        "load_seconds": loaded,
        "peak_mb": peak,
        "resident_mb": status("VmRSS"),
        "picture_ms": 1e3 * picture,
        "token_ms": 1e3 * token,
        "bytes_a_token": decoder - table,
        "gb_per_second": read / token,
        "rounds": [{"token_ms": 1e3 * token, "memory_gb_per_second": bandwidth} for token, bandwidth in rounds],
        "share_of_bandwidth": float(np.median(shares)) if np.isfinite(shares).all() else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--language", choices=TEXT, default="opt-2.7b")
    parser.add_argument("--dtype", default="int8")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", type=Path, help="results are added to this file")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.folder, options.dtype, options.threads)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "config.json").exists():
            write(folder, config_of(options.language))
        command = [sys.executable, __file__, "--measure", "--folder", str(folder), "--dtype", options.dtype,
                   "--threads", str(options.threads)]  # fmt: skip
        run = subprocess.run(command, capture_output=True, text=True, env=os.environ, check=True)
    found = json.loads(run.stdout.splitlines()[-1])
    print(json.dumps(found, indent=1))
    if options.json:
        from bench import recorded

        record = recorded(options.json)
        record.setdefault("blip2", {})[f"{options.language} {options.dtype}"] = found
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
