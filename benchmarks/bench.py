"""The same work in beyondvl and its peers, each at its best, in one interleaved run.

    python benchmarks/bench.py [--rounds 7] [--json results.json]

Work: the CLIP ViT-B/32 image tower at batch 1 and 32 and its text tower, float32, two threads, inputs prepared outside.
Peers: transformers (inference mode, sdpa), the same under torch.compile, onnxruntime with all optimisations, openvino in
latency and throughput mode with f32 precision set. Whatever is not installed is named and left out. All variants of a
round run one after another, rounds repeat; medians are compared, and every variant is printed. The machine's float32
ceiling is measured beside them (peak.c).
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

GFLOP = {"image": 8.82, "text": 1.27}  # per item: ViT-B/32 at 224 px; 16 tokens of the text tower


def peak(threads: int) -> float | None:
    """GFLOP/s of the register-only loop; None without a compiler."""
    source = Path(__file__).with_name("peak.c")
    with tempfile.TemporaryDirectory() as folder:
        binary = f"{folder}/peak"
        built = subprocess.run(
            ["gcc", "-O2", "-fopenmp", "-march=native", str(source), "-o", binary], capture_output=True
        )
        if built.returncode:
            return None
        return float(subprocess.run([binary, str(threads)], capture_output=True, text=True).stdout)


def checkpoint(folder: Path):
    """A CLIP ViT-B/32 with random weights, saved for beyondvl; returns the transformers model."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    torch.manual_seed(0)
    config = CLIPConfig()
    config._attn_implementation = "sdpa"
    model = CLIPModel(config).eval()
    model.save_pretrained(folder)
    return model


class Towers:
    """torch modules of one tower each, for export."""

    @staticmethod
    def make(model, kind: str):
        import torch

        class Tower(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.tower = model.vision_model if kind == "image" else model.text_model
                self.projection = model.visual_projection if kind == "image" else model.text_projection

            def forward(self, x):
                return self.projection(self.tower(x).pooler_output)

        return Tower().eval()


def torch_variants(tower, x) -> dict[str, Callable]:
    import torch

    def plain(module):
        def run():
            with torch.inference_mode():
                return module(x).numpy()

        return run

    found = {"transformers": plain(tower)}
    try:
        compiled = torch.compile(tower, dynamic=False)
        plain(compiled)()
        found["transformers, torch.compile"] = plain(compiled)
    except Exception as error:
        print(f"torch.compile left out: {str(error).splitlines()[0][:100]}")
    return found


def onnx_variant(tower, x, threads: int, folder: Path) -> dict[str, Callable]:
    import onnxruntime as ort
    import torch

    path = folder / "tower.onnx"
    torch.onnx.export(tower, (x,), str(path), dynamo=True, external_data=False, verbose=False)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    name, given = session.get_inputs()[0].name, x.numpy()
    return {"onnxruntime": lambda: session.run(None, {name: given})[0]}


def openvino_variants(tower, x, threads: int) -> dict[str, Callable]:
    import openvino as ov

    model, given = ov.convert_model(tower, example_input=x), x.numpy()
    model.reshape(list(x.shape))
    found = {}
    for mode in ("LATENCY", "THROUGHPUT"):
        options = {"PERFORMANCE_HINT": mode, "INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
        compiled = ov.Core().compile_model(model, "CPU", options)
        if mode == "LATENCY":
            request = compiled.create_infer_request()
            found["openvino, latency"] = lambda request=request: next(iter(request.infer([given]).values()))
            continue
        queue = ov.AsyncInferQueue(compiled, 2)

        def pair(queue=queue):
            for _ in range(2):
                queue.start_async([given])
            queue.wait_all()
            return next(iter(queue[0].results.values()))

        pair.items = 2
        found["openvino, throughput (two at once)"] = pair
    return found


def variants(model, bvl_model, kind: str, batch: int, threads: int, folder: Path) -> dict[str, Callable]:
    import torch

    generator = torch.Generator().manual_seed(1)
    if kind == "image":
        x = torch.randn(batch, 3, 224, 224, generator=generator)
        inputs = {"pixel_values": x.numpy()}
    else:
        x = torch.randint(1, 49000, (batch, 16), generator=generator)
        x[:, -1] = 49407
        inputs = {"input_ids": x.numpy()}
    modality = "vision" if kind == "image" else "text"
    found = {"beyondvl": lambda: bvl_model.run_tower(modality, inputs, ["embeds"])["embeds"]}
    tower = Towers.make(model, kind)
    for make in (
        lambda: torch_variants(tower, x),
        lambda: onnx_variant(tower, x, threads, folder),
        lambda: openvino_variants(tower, x, threads),
    ):
        try:
            found |= make()
        except Exception as error:
            print(f"left out: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
    return found


def interleaved(found: dict[str, Callable], rounds: int, seconds: float = 0.5) -> dict[str, float]:
    """Median seconds per call of each variant; a round runs every variant for a while before the next round."""
    expected = found["beyondvl"]()
    counts = {}
    for name, call in found.items():
        result = call()
        worst = np.abs(result - expected).max() / np.abs(expected).max()
        assert worst < 1e-3, f"{name} computes something else: {worst}"
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--work", nargs="*", default=["image 32", "image 1", "text 32", "text 1"])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    import beyondvl as bvl

    torch.set_num_threads(options.threads)
    record = {"config": bvl._C.config(), "peak_gflops": peak(options.threads), "work": {}}
    print(f"{record['config']['cpu']}, {options.threads} threads, float32 ceiling {record['peak_gflops']} GFLOP/s")
    with tempfile.TemporaryDirectory() as name:
        model = checkpoint(Path(name))
        ours = bvl.AutoModel.from_pretrained(name, num_threads=options.threads)
        for work in options.work:
            kind, batch = work.split()[0], int(work.split()[1])
            found = interleaved(variants(model, ours, kind, batch, options.threads, Path(name)), options.rounds)
            rows = {n: {"ms_per_item": 1e3 * t / batch, "gflops": GFLOP[kind] * batch / t} for n, t in found.items()}
            record["work"][work] = rows
            fastest = min((r["ms_per_item"] for n, r in rows.items() if n != "beyondvl"), default=None)
            print(f"\n{kind}, batch {batch}")
            for n, r in sorted(rows.items(), key=lambda item: item[1]["ms_per_item"]):
                share = (
                    f", {100 * r['gflops'] / record['peak_gflops']:.0f} % of the ceiling"
                    if record["peak_gflops"]
                    else ""
                )
                print(f"  {n:<36} {r['ms_per_item']:8.2f} ms an item, {r['gflops']:6.0f} GFLOP/s{share}")
            if fastest:
                print(f"  fastest peer / beyondvl: {fastest / rows['beyondvl']['ms_per_item']:.2f}")
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
