"""`verify MODEL`: the user's own check of published weights against transformers, on the spot.

Loads the checkpoint in both libraries, feeds both the same pictures, sounds and texts, and prints for every output the
largest difference, the smallest cosine between rows and both speeds.
"""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np

from .hub import resolve
from .modeling import AutoModel
from .outputs import to_numpy
from .packed import is_packed
from .tasks import AnsweringModel, ClassifyingModel, TaskModel, TranscribingModel

__all__ = ["verify_model"]

TEXTS = ["a photo of a cat", "a dog that runs on the beach", "two cups of coffee on a wooden table", "a red car"]
OUTPUTS = (
    "text_embeds",
    "image_embeds",
    "audio_embeds",
    "logits_per_image",
    "logits_per_audio",
    "logits_per_text",
    "itm_score",
    "logits",
    "image_embeddings",
    "text_embeddings",
    "multimodal_embeddings",
    "pooler_output",
    "last_hidden_state",
    "encoder_last_hidden_state",
)
# what a model without embeddings is judged by: sizes are free there, so by the angle alone
STATES = OUTPUTS[6:]
COSINE, DIFFERENCE = 0.99999, 2e-5


def _pictures(count: int) -> list[np.ndarray]:
    """Smooth random pictures of several sizes."""
    from PIL import Image

    rng = np.random.default_rng(0)
    shapes = [(480, 640), (300, 300), (700, 500), (224, 224)]
    small = [rng.integers(0, 256, (9, 9, 3), dtype=np.uint8) for _ in range(count)]
    return [
        np.asarray(Image.fromarray(s).resize(shapes[i % 4][::-1], Image.Resampling.BICUBIC))
        for i, s in enumerate(small)
    ]


def _sounds(count: int, rate: int) -> list[np.ndarray]:
    """Three seconds each of tones that swell."""
    t = np.arange(3 * rate) / rate
    return [(np.sin(2 * np.pi * 220 * (i + 1) * t) * np.sin(np.pi * t / 3)).astype(np.float32) for i in range(count)]


def _inputs(model: Any) -> dict[str, Any]:
    """What both libraries are given, as torch tensors."""
    import torch

    inputs: dict[str, Any] = {}
    if isinstance(model, TranscribingModel):
        inputs["decoder_input_ids"] = torch.full((4, 1), model.tokens["decoder_start_token_id"])
    elif isinstance(model, ClassifyingModel):
        pass
    elif isinstance(model, TaskModel):  # one text for all pictures: what stands in for padding is nobody's business
        most = next((model.tower(name).max_positions for name in ("text", "decoder") if name in model.towers), None)
        inputs |= {n: torch.from_numpy(array) for n, array in model.texts(TEXTS[:1] * 4, most).items()}
        if isinstance(model, AnsweringModel):
            inputs["decoder_input_ids"] = inputs["input_ids"]
        elif "encoder" in model.towers:
            inputs["decoder_input_ids"] = torch.full((4, 1), model.tokens["decoder_start_token_id"])
    elif "text" in model.towers:
        tokenizer = model.tokenizer
        padding = "max_length" if tokenizer.exact_length else True
        most = min(model.tower("text").max_positions, tokenizer.model_max_length)
        inputs |= tokenizer(TEXTS, padding=padding, truncation=True, max_length=most, return_tensors="pt")
    if "vision" in model.towers:
        inputs |= model.image_processor(_pictures(4), return_tensors="pt")
    if "audio" in model.towers:
        extract = model.feature_extractor
        sounds = _sounds(4, extract.sampling_rate)
        inputs |= extract(sounds, sampling_rate=extract.sampling_rate, return_tensors="pt")
    return inputs


def _timed(call: Any, repeats: int = 5) -> tuple[Any, float]:
    result, times = call(), []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return result, float(np.median(times))


def _compare(found: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    a, b = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (found, expected))
    cosine = (a * b).sum(1) / np.maximum(np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1), 1e-30)
    return {"max_difference": float(np.abs(a - b).max()), "min_cosine": float(cosine.min())}


def verify_model(name: str, as_json: bool = False) -> bool:
    """Prints the comparison; True when every embedding agrees within the library's bounds."""
    try:
        import torch
        import transformers
    except ImportError as error:
        raise ImportError(f"verify needs torch and transformers: {error}") from error
    folder = resolve(name)
    if is_packed(folder):
        raise ValueError(f"{folder}: packed weights, expected the checkpoint they were made of")
    model = AutoModel.from_pretrained(folder)
    inputs = _inputs(model)
    torch.set_num_threads(model.num_threads)
    reference_class = getattr(transformers, type(model).__name__, None)
    if reference_class is None:
        raise ValueError(f"transformers has no {type(model).__name__} to compare with")
    reference = reference_class.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        expected, theirs = _timed(lambda: reference(**inputs))
    found, ours = _timed(lambda: model(**inputs))
    rows = []
    for output in OUTPUTS:
        if output not in expected or output not in found or expected[output] is None:
            continue
        row = {"output": output, **_compare(to_numpy(found[output]), to_numpy(expected[output]))}
        rows.append(row)
    judged = [row for row in rows if row["output"].endswith("_embeds")]
    good = all(row["max_difference"] <= DIFFERENCE for row in judged)
    judged = judged or [row for row in rows if row["output"] in STATES]
    good = bool(judged) and good and all(row["min_cosine"] >= COSINE for row in judged)
    speed = {"beyondvl_seconds": ours, "transformers_seconds": theirs, "ratio": theirs / ours}
    if as_json:
        print(json.dumps({"model": str(name), "outputs": rows, **speed, "agrees": bool(good)}))
        return bool(good)
    for row in rows:
        print(f"{row['output']:<18} max difference {row['max_difference']:.2e}   min cosine {row['min_cosine']:.7f}")
    print(f"one call: beyondvl {1e3 * ours:.1f} ms, transformers {1e3 * theirs:.1f} ms ({theirs / ours:.2f}x)")
    print("agrees" if good else f"DIFFERS: expected cosine >= {COSINE} and differences <= {DIFFERENCE}")
    return bool(good)
