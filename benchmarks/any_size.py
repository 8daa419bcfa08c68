"""Pictures of mixed shapes through SigLIP 2's NaFlex tower, beside transformers: random weights at published sizes.

    python benchmarks/any_size.py [--pictures 64] [--rounds 3] [--threads 2]

The tower is that of siglip2-base-patch16-naflex (12 layers of 768, 256 patches). The pictures are of sides from 120 to 1600
pixels and proportions from 1:4 to 4:1; both libraries get the same patches, in batches of 16, whose padding transformers
computes and we do not. Prints the time of a picture in each, interleaved, medians of the rounds, and how alike the results
are.
"""

from __future__ import annotations

import argparse
import tempfile
import time

import numpy as np

BATCH = 16
SIZES = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}


def pictures(count: int) -> list[np.ndarray]:
    """Noise of many shapes."""
    rng = np.random.default_rng(0)
    shapes = []
    for _ in range(count):
        side, stretch = rng.uniform(240, 800), 2 ** rng.uniform(-1, 1)
        shapes.append((int(side * stretch), int(side / stretch)))
    return [rng.integers(0, 256, (height, width, 3), np.uint8) for height, width in shapes]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    import torch
    import transformers

    import beyondvl as bvl

    torch.set_num_threads(options.threads)
    config = transformers.Siglip2Config(
        text_config=SIZES | {"num_hidden_layers": 1, "vocab_size": 100}, vision_config=SIZES
    )
    torch.manual_seed(0)
    reference = transformers.Siglip2Model(config).eval()
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        ours = {
            dtype: bvl.AutoModel.from_pretrained(folder, dtype=dtype, num_threads=options.threads)
            for dtype in ("float32", "bfloat16", "int8")
        }
    processor = transformers.Siglip2ImageProcessorPil()
    made = processor(pictures(options.pictures), return_tensors="pt")
    real = int(made["spatial_shapes"].prod(1).sum())
    print(f"{options.pictures} pictures of {len(set(map(tuple, made['spatial_shapes'].tolist())))} shapes: "
          f"{real} patches, {made['pixel_values'].shape[0] * made['pixel_values'].shape[1]} with padding")  # fmt: skip
    batches = [
        {name: values[start : start + BATCH] for name, values in made.items()}
        for start in range(0, options.pictures, BATCH)
    ]

    def torch_call(model, dtype):
        def run():
            with torch.inference_mode():
                outputs = [
                    model(**batch | {"pixel_values": batch["pixel_values"].to(dtype)}).pooler_output
                    for batch in batches
                ]
                return torch.cat(outputs).float().numpy()

        return run

    def our_call(model):
        given = [{name: values.numpy() for name, values in batch.items()} for batch in batches]
        return lambda: np.concatenate(
            [model.run_tower("vision", batch, ["pooler_output"])["pooler_output"] for batch in given]
        )

    tower = reference.vision_model
    half = transformers.Siglip2Model(config).eval()
    half.load_state_dict(reference.state_dict())
    half = half.to(torch.bfloat16).vision_model
    calls = {
        "transformers float32": torch_call(tower, torch.float32),
        "transformers bfloat16": torch_call(half, torch.bfloat16),
        "torch.compile bfloat16": torch_call(torch.compile(half, dynamic=False), torch.bfloat16),
    } | {f"beyondvl {dtype}": our_call(model) for dtype, model in ours.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    results = {}
    for round_ in range(options.rounds + 1):
        for name, call in list(calls.items()):
            start = time.perf_counter()
            try:
                results[name] = call()
            except Exception as error:  # compiling is another library's affair
                print(f"left out: {name}: {type(error).__name__}")
                del calls[name], times[name]
                continue
            if round_:
                times[name].append(time.perf_counter() - start)
    best = min(np.median(values) for name, values in times.items() if "bfloat16" in name and "beyondvl" not in name)
    exact = results["transformers float32"]
    for name, values in times.items():
        found = results[name]
        cosine = ((found * exact).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(exact, axis=1)).min()
        median = np.median(values)
        print(f"{name:24} {1e3 * median / options.pictures:7.2f} ms a picture  {best / median:5.2f} times transformers' "
              f"bfloat16  least cosine {cosine:.6f}")  # fmt: skip


if __name__ == "__main__":
    main()
