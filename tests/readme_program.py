"""Runs README's example of one published id and prints, as JSON, its numbers beside transformers' from the same hub.

python readme_program.py clip|blip, in the checkout's root; the hub is where HF_ENDPOINT says.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import conftest  # noqa: F401  (transformers' Pillow path)
import numpy as np
import torch
import transformers
from PIL import Image

import beyondvl as bvl

README = Path(__file__).parent.parent / "README.md"
IDS = {"clip": "openai/clip-vit-base-patch32", "blip": "Salesforce/blip-image-captioning-base"}
PHOTOS = [Image.open(f"examples/photos/{name}.jpg") for name in ("cat", "coffee")]


def example(name: str) -> dict:
    """What README's block that loads that id leaves behind."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    (block,) = [block for block in blocks if f'"{name}"' in block]
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    return names


def distance(ours, theirs) -> float:
    return float(np.abs(np.asarray(ours) - theirs.detach().numpy()).max())


def clip() -> dict:
    found = example(IDS["clip"])
    name = IDS["clip"]
    model, processor = transformers.CLIPModel.from_pretrained(name), transformers.CLIPProcessor.from_pretrained(name)
    texts = ["a photo of a cat", "a photo of a dog"]
    inputs = processor(text=texts, images=PHOTOS, return_tensors="pt", padding=True)
    with torch.no_grad():
        theirs = model(**inputs)
    again = found["processor"](text=texts, images=PHOTOS, return_tensors="np", padding=True)
    ours = found["model"](**again)
    rows = np.asarray(ours.image_embeds)
    return {
        "ids": np.array_equal(again["input_ids"], inputs["input_ids"]),
        "pixels": np.array_equal(again["pixel_values"], inputs["pixel_values"]),
        "distances": {n: distance(ours[n], theirs[n]) for n in ("text_embeds", "image_embeds", "logits_per_image")},
        "readme": distance(found["outputs"].image_embeds, theirs.image_embeds[:1]),
        "apart": float(np.abs(rows[0] - rows[1]).max()),
        "sum": float(rows.sum()),
    }


def blip() -> dict:
    name = IDS["blip"]
    found = example(name)
    model = transformers.BlipForConditionalGeneration.from_pretrained(name)
    processor = transformers.BlipProcessor.from_pretrained(name)
    ours, ours_processor = bvl.AutoModel.from_pretrained(name), bvl.AutoProcessor.from_pretrained(name)
    inputs = processor(images=PHOTOS, return_tensors="pt")
    again = ours_processor(images=PHOTOS, return_tensors="np")
    with torch.no_grad():
        theirs = model.generate(**inputs, max_new_tokens=8)
    rows = ours.generate(**again, max_new_tokens=8)
    return {
        "pixels": np.array_equal(again["pixel_values"], inputs["pixel_values"]),
        "ids": np.array_equal(rows, theirs.numpy()),
        "texts": ours_processor.batch_decode(rows, skip_special_tokens=True)
        == processor.batch_decode(theirs, skip_special_tokens=True),
        "apart": not np.array_equal(rows[0], rows[1]),
        "rows": np.asarray(rows).tolist(),
        "captions": found["captions"],
    }


if __name__ == "__main__":
    print(json.dumps({"clip": clip, "blip": blip}[sys.argv[1]]()))
