"""The same work in beyondvl and its peers, each at its best and in every precision, in one interleaved run.

    python benchmarks/bench.py [--rounds 7] [--work "ViT-B/32 image 32" ...] [--json results.json]

Work: image towers and text towers (16 tokens) of published shapes with random weights, two threads, inputs prepared
outside. All variants of a round run one after another, rounds repeat; medians are compared, and every variant is printed
(peers.py says what they are): calls one at a time on all threads, and two at once. The machine's ceilings are measured
beside them (peak.c).
"""

from __future__ import annotations

import argparse
import atexit
import functools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from peers import PRECISIONS, TWO, all_calls

# GFLOP of one item, by kind; text of 16 tokens
MODELS = {
    "ViT-B/32": {"image": 8.82, "text": 1.27, "size": 224},
    "ViT-L/14": {"image": 162.0, "text": 2.86, "size": 224},
    "so400m/14-384": {"image": 669.0, "text": 14.2, "size": 384},
}
WORK = ("ViT-B/32 image 32", "ViT-B/32 image 1", "ViT-B/32 text 32", "ViT-B/32 text 1", "ViT-L/14 image 32",
        "ViT-L/14 image 1", "so400m/14-384 image 8")  # fmt: skip


@functools.cache
def compiled_peak(machine: str = "native") -> str | None:
    """The program peak.c for gcc's -march, which stays until this process ends; None without a compiler."""
    folder = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, folder)
    source, binary = Path(__file__).with_name("peak.c"), f"{folder}/peak"
    command = ["gcc", "-O2", "-fopenmp", f"-march={machine}", str(source), "-o", binary]
    return None if subprocess.run(command, capture_output=True).returncode else binary


def ceilings(threads: int, *only: str, machine: str = "native") -> dict[str, float]:
    """Name -> GFLOP/s (memory: GB/s) of the register-only loops, or of memory `only`; empty without a compiler. AMX is zero
    where the loop finds less than 90 % of its 1,024 (int8: 2,048) operations per cycle and core."""
    binary = compiled_peak(machine)
    if not binary:
        return {}
    lines = subprocess.run([binary, str(threads), *only], capture_output=True, text=True).stdout.splitlines()
    found = {name: (float(rate), float(per_cycle)) for name, rate, per_cycle in map(str.split, lines)}
    least = {"amx_bfloat16": 0.9 * 1024, "amx_int8": 0.9 * 2048}
    return {name: rate if per_cycle >= least.get(name, 0) else 0.0 for name, (rate, per_cycle) in found.items()}


def ceiling(found: dict[str, float], precision: str) -> float | None:
    """Of the fastest unit for that precision; None where it was not measured."""
    for name in (f"amx_{precision}", precision, "float32"):
        if name in found:
            return found[name] or None
    return None


def checkpoint(name: str, folder: Path):
    """A model of that shape with random weights, saved for beyondvl; returns the transformers model."""
    import torch
    from transformers import CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

    torch.manual_seed(0)
    if name == "ViT-B/32":
        config, cls = CLIPConfig(), CLIPModel
    elif name == "ViT-L/14":
        text = {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "projection_dim": 768}
        vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24,
                  "patch_size": 14, "projection_dim": 768}  # fmt: skip
        config, cls = CLIPConfig(text_config=text, vision_config=vision, projection_dim=768), CLIPModel
    else:
        tower = {"hidden_size": 1152, "intermediate_size": 4304, "num_attention_heads": 16, "num_hidden_layers": 27}
        vision = tower | {"patch_size": 14, "image_size": 384}
        config, cls = SiglipConfig(text_config=tower | {"vocab_size": 1000}, vision_config=vision), SiglipModel
    config._attn_implementation = "sdpa"
    model = cls(config).eval()
    model.save_pretrained(folder)
    return model


def given(kind: str, batch: int, size: int):
    import torch

    generator = torch.Generator().manual_seed(1)
    if kind == "image":
        return torch.randn(batch, 3, size, size, generator=generator)
    x = torch.randint(1, 900, (batch, 16), generator=generator)
    x[:, -1] = 49407
    return x


def our_calls(ours: dict, kind: str, x) -> dict[str, Callable]:
    """Each model one call at a time, and two calls at once of half the threads each."""
    modality, name = ("vision", "pixel_values") if kind == "image" else ("text", "input_ids")
    output = "embeds" if "embeds" in next(iter(ours.values())).tower(modality).outputs else "pooler_output"
    inputs = {name: x.numpy()}
    found: dict[str, Callable] = {}
    pool = ThreadPoolExecutor(2)
    for precision, model in ours.items():

        def one(threads: int | None = None, model=model):
            return model.run_tower(modality, inputs, [output], threads)[output]

        def two(one=one, threads=model.num_threads):
            first, _ = pool.map(one, [max(1, threads // 2)] * 2)
            return first

        two.items = 2
        found |= {f"beyondvl {precision}": one, f"beyondvl {precision}{TWO}": two}
    return found


def interleaved(found: dict[str, Callable], rounds: int) -> dict[str, float]:
    """Median seconds per call of each variant, after all were seen to compute what the first does, in float32."""
    expected = next(iter(found.values()))()
    for name, call in found.items():
        result = np.asarray(call(), np.float32)
        cosine = (result * expected).sum(1) / np.linalg.norm(result, axis=1) / np.linalg.norm(expected, axis=1)
        assert cosine.min() > (0.9999 if "float32" in name else 0.9), f"{name} computes something else: {cosine.min()}"
    return interleaved_times(found, rounds)


def interleaved_times(found: dict[str, Callable], rounds: int, seconds: float = 0.5) -> dict[str, float]:
    """Median seconds per call of each variant; a round runs every variant for a while before the next round."""
    counts = {}
    for name, call in found.items():
        call()
        start = time.perf_counter()
        call()
        counts[name] = max(1, int(seconds / (time.perf_counter() - start)))
    times: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(rounds):
        for name, call in found.items():
            start = time.perf_counter()
            for _ in range(counts[name]):
                call()
            times[name].append((time.perf_counter() - start) / counts[name] / getattr(call, "items", 1))
    return {name: float(np.median(t)) for name, t in times.items()}


def recorded(path: Path | None) -> dict:
    """What earlier runs wrote to that file; empty without one."""
    return json.loads(path.read_text()) if path and path.exists() else {}


def report(work: str, rows: dict, found: dict[str, float]) -> None:
    print(f"\n{work}")
    for name, row in sorted(rows.items(), key=lambda item: item[1]["ms_per_item"]):
        most = ceiling(found, next((p for p in PRECISIONS if p in name), "float32"))
        share = f", {100 * row['gflops'] / most:.0f} % of its ceiling" if most else ""
        print(f"  {name:<36} {row['ms_per_item']:8.2f} ms an item, {row['gflops']:6.0f} GFLOP/s{share}")
    for mode in ("", TWO):
        times = {n: r["ms_per_item"] for n, r in rows.items() if n.endswith(TWO) == bool(mode)}
        peers = {n: t for n, t in times.items() if not n.startswith("beyondvl")}
        if not peers:
            continue
        fastest = min(peers, key=peers.get)
        print(f"  fastest peer: {fastest}")
        for precision in (p for p in PRECISIONS if f"beyondvl {p}{mode}" in times):
            mine = times[f"beyondvl {precision}{mode}"]
            same = min((t for n, t in peers.items() if precision in n), default=None)
            extra = f"; fastest {precision} peer: {same / mine:.2f}" if same else ""
            print(f"    / beyondvl {precision}{mode}: {peers[fastest] / mine:.2f}{extra}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", nargs="*", default=WORK, help='for example "ViT-B/32 image 32"')
    parser.add_argument("--peers", nargs="*", default=("torch", "onnxruntime", "openvino", "nncf"),
                        help="which to run; nncf quantises for openvino, which takes minutes for large models")  # fmt: skip
    parser.add_argument("--precisions", nargs="*", default=PRECISIONS, choices=PRECISIONS,
                        help="fewer where the largest models in all of them would not fit in memory")  # fmt: skip
    parser.add_argument("--json", type=Path, help="results are added to this file")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    import beyondvl as bvl

    torch.set_num_threads(options.threads)
    found, precisions = ceilings(options.threads), tuple(options.precisions)
    config = bvl._C.config()
    record = (
        {"work": {}}
        | recorded(options.json)
        | {"cpu": config["cpu"], "isa": config["isa"], "threads": options.threads, "ceilings": found}
    )
    print(f"{config['cpu']}, {options.threads} threads, level {config['isa']}; ceilings {found}")
    for name in dict.fromkeys(work.split()[0] for work in options.work):
        with tempfile.TemporaryDirectory() as folder:
            model = checkpoint(name, Path(folder))
            ours = {p: bvl.AutoModel.from_pretrained(folder, dtype=p, num_threads=options.threads) for p in precisions}
            for work in (w for w in options.work if w.split()[0] == name):
                _, kind, batch = work.split()
                x = given(kind, int(batch), MODELS[name]["size"])
                calls = our_calls(ours, kind, x) | all_calls(
                    model, kind, x, options.threads, Path(folder), tuple(options.peers), precisions
                )
                times = interleaved(calls, options.rounds)
                rows = {n: {"ms_per_item": 1e3 * t / int(batch), "gflops": MODELS[name][kind] * int(batch) / t}
                        for n, t in times.items()}  # fmt: skip
                record["work"][work] = rows
                report(work, rows, found)
                if options.json:
                    options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
