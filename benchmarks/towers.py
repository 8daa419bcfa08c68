"""MobileCLIP's picture towers beside timm, SmolVLM beside transformers: random weights at published sizes.

    python benchmarks/towers.py [--only mobile|smol] [--rounds 7] [--threads 2]

Pictures of 256 x 256 through S0 and S3 of MobileCLIP2, one and eight at once; timm's with its branches folded, compiled.
SmolVLM-256M: a picture whole (64 rows of a text) and cut into twelve tiles (832 rows), a question, 20 tokens; transformers
as its generate runs. Interleaved, medians of the rounds, and the machine's ceilings.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path

import numpy as np
import open_clip
import torch
import transformers
from bench import ceilings, interleaved_times
from peers import torch_calls
from timm.utils.model import reparameterize_model

import beyondvl as bvl
from beyondvl.weights import save_safetensors

DTYPES = ("float32", "bfloat16", "int8")
TOKENS = 20


def report(title: str, times: dict[str, float], items: int = 1) -> None:
    best = min(seconds for variant, seconds in times.items() if "beyondvl" not in variant)
    print(title)
    for variant, seconds in times.items():
        print(f"  {variant:24} {1e3 * seconds / items:8.1f} ms an item   {best / seconds:5.2f} times the peer's best")


def measure_mobile(name: str, embed: int, rounds: int, threads: int) -> None:
    picture = {"timm_model_name": name, "timm_pool": "avg", "timm_proj": None, "image_size": 256}
    text = {"context_length": 77, "width": 64, "heads": 1, "layers": 1, "no_causal_mask": True}
    config = {"embed_dim": embed, "vision_cfg": picture, "text_cfg": text}
    torch.manual_seed(0)
    reference = open_clip.CustomTextCLIP(**config).eval()
    with tempfile.TemporaryDirectory() as folder:
        state = {n: v.numpy() for n, v in reference.state_dict().items() if v.is_floating_point() and n != "attn_mask"}
        save_safetensors(Path(folder) / "open_clip_model.safetensors", state)
        whole = {"model_cfg": config, "preprocess_cfg": {}}
        (Path(folder) / "open_clip_config.json").write_text(json.dumps(whole))
        ours = {d: bvl.AutoModel.from_pretrained(folder, dtype=d, num_threads=threads) for d in DTYPES}
    folded = reparameterize_model(reference.visual).eval()
    for batch in (1, 8):
        pixels = torch.randn(batch, 3, 256, 256)
        calls = torch_calls(folded, pixels, ("float32", "bfloat16"))
        ready = {"pixel_values": pixels.numpy()}
        calls |= {f"beyondvl {d}": partial(model.get_image_features, **ready) for d, model in ours.items()}
        report(f"{name}, {batch} at once", interleaved_times(calls, rounds), batch)


def smol() -> transformers.PreTrainedModel:
    """SmolVLM-256M with random weights."""
    text = {"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "rms_norm_eps": 1e-5,
            "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49280, "max_position_embeddings": 8192}  # fmt: skip
    vision = {"hidden_size": 768, "num_attention_heads": 12, "image_size": 512, "patch_size": 16}
    config = transformers.Idefics3Config(text_config=text, vision_config=vision, scale_factor=4, image_token_id=49190)
    torch.manual_seed(0)
    return transformers.Idefics3ForConditionalGeneration(config).eval()


def measure_smol(tiles: int, rounds: int, threads: int) -> None:
    reference = smol()
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        ours = {d: bvl.AutoModel.from_pretrained(folder, dtype=d, num_threads=threads) for d in DTYPES}
    pixels = torch.randn(1, tiles, 3, 512, 512)
    ids = torch.tensor([[1, *[49190] * (64 * tiles), *range(100, 120)]])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels}
    settings = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS}

    def theirs(model: transformers.PreTrainedModel):
        return lambda: model.generate(**given, do_sample=False, **settings)

    half = smol().to(torch.bfloat16)
    calls = {"transformers float32": theirs(reference), "transformers bfloat16": theirs(half)}
    arrays = {name: value.numpy() for name, value in given.items()}
    calls |= {f"beyondvl {d}": partial(model.generate, **arrays, **settings) for d, model in ours.items()}
    same = np.array_equal(calls["transformers float32"]().numpy(), calls["beyondvl float32"]())
    with torch.inference_mode():
        times = interleaved_times(calls, rounds)
    report(f"SmolVLM-256M, {tiles} tiles, {TOKENS} tokens; float32's the same: {same}", times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=("mobile", "smol"))
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    for name, embed in (("fastvit_mci0", 512), ("fastvit_mci3", 768)) if options.only in (None, "mobile") else ():
        measure_mobile(name, embed, options.rounds, options.threads)
    for tiles in (1, 13) if options.only in (None, "smol") else ():
        measure_smol(tiles, options.rounds, options.threads)
    print({kind: round(value) for kind, value in ceilings(options.threads).items()})


if __name__ == "__main__":
    main()
