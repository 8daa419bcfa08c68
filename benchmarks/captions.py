"""BLIP-base at 384 px in beyondvl and in transformers: captions and matching, one interleaved run.

    python benchmarks/captions.py [--rounds 5] [--json results.json]

Captions: one picture, 20 tokens, greedy. Matching: one picture with 32 captions of 16 tokens; transformers runs its vision
tower once and expands the features, beyondvl makes one context. Random weights; two threads; inputs prepared outside.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from bench import PRECISIONS, interleaved_times, recorded

TOKENS, CAPTIONS, LENGTH = 20, 32, 16


def models(cls: str, folder: Path, threads: int) -> tuple:
    """(transformers' model by precision, ours by precision)."""
    import torch
    import transformers

    import beyondvl as bvl

    torch.manual_seed(0)
    config = transformers.BlipConfig(text_config={"num_attention_heads": 12})
    model = getattr(transformers, cls)(config).eval()
    model.save_pretrained(folder)
    ours = {p: bvl.AutoModel.from_pretrained(folder, dtype=p, num_threads=threads) for p in PRECISIONS}
    half = getattr(transformers, cls).from_pretrained(folder, dtype=torch.bfloat16).eval()
    return {"float32": model, "bfloat16": half}, ours


def captioning(folder: Path, threads: int) -> dict[str, Callable]:
    import torch

    theirs, ours = models("BlipForConditionalGeneration", folder, threads)
    pixels = torch.randn(1, 3, 384, 384)
    length = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS}

    def reference(model):
        def run():
            with torch.inference_mode():
                return model.generate(pixels.to(model.dtype), **length)

        return run

    found = {f"transformers {p}": reference(m) for p, m in theirs.items()}
    return found | {
        f"beyondvl {p}": lambda m=m: m.generate(pixel_values=pixels.numpy(), **length) for p, m in ours.items()
    }


def matching(folder: Path, threads: int) -> dict[str, Callable]:
    import torch

    theirs, ours = models("BlipForImageTextRetrieval", folder, threads)
    pixels = torch.randn(1, 3, 384, 384)
    ids = torch.randint(1000, 30000, (CAPTIONS, LENGTH))

    def reference(model):
        def run():
            with torch.inference_mode():
                states = model.vision_model(pixels.to(model.dtype)).last_hidden_state.expand(CAPTIONS, -1, -1)
                text = model.text_encoder(input_ids=ids, encoder_hidden_states=states).last_hidden_state
                return model.itm_head(text[:, 0])

        return run

    def own(model):
        def run():
            source = model.encode_image(pixel_values=pixels.numpy()).source(CAPTIONS, "texts")
            inputs = {"input_ids": ids.numpy(), **source}
            return model.tower("text").run(inputs, ["itm_score"], threads)["itm_score"]

        return run

    found = {f"transformers {p}": reference(m) for p, m in theirs.items()}
    return found | {f"beyondvl {p}": own(m) for p, m in ours.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path, help="results are added to this file")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    import torch

    torch.set_num_threads(options.threads)
    record = recorded(options.json)
    for name, make in (("caption, 20 tokens", captioning), ("match, 32 captions", matching)):
        with tempfile.TemporaryDirectory() as folder:
            calls = make(Path(folder), options.threads)
            if name.startswith("match"):
                expected = np.asarray(calls["transformers float32"]())
                np.testing.assert_allclose(calls["beyondvl float32"](), expected, atol=1e-3)
            times = interleaved_times(calls, options.rounds)
        record.setdefault("captions", {})[name] = {n: 1e3 * t for n, t in times.items()}
        peer = times["transformers bfloat16"]
        print(f"\nBLIP-base, {name}")
        for variant, seconds in sorted(times.items(), key=lambda item: item[1]):
            print(f"  {variant:<24} {1e3 * seconds:8.1f} ms, {peer / seconds:5.2f} x transformers bfloat16")
    if options.json:
        options.json.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
