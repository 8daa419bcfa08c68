"""`verify MODEL`: the user's own check of published weights against transformers, on the spot.

Loads the checkpoint in both libraries, feeds both the same pictures, sounds and texts, each through its own processor,
and prints for every input and output the largest difference, the smallest cosine between rows and both speeds.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from .hub import resolve
from .models.auto import AutoModel
from .models.packed import is_packed
from .outputs import to_numpy
from .tasks.base import TaskModel
from .tasks.classifying import ClassifyingModel
from .tasks.interleaved import InterleavedModel
from .tasks.tiles import TilesMixin
from .tasks.transcribing import TranscribingModel
from .tasks.writing import AnsweringModel

__all__ = ["agrees", "compared_rows", "verify_model"]

TEXTS = ["a photo of a cat", "a dog that runs on the beach", "two cups of coffee on a wooden table", "a red car"]
EMBEDS = ("text_embeds", "image_embeds", "audio_embeds", "embeddings")
# what a model without embeddings is judged by: sizes are free there, so by the angle alone
STATES = ("itm_score", "logits", "image_embeddings", "text_embeddings", "multimodal_embeddings", "pooler_output",
          "last_hidden_state", "encoder_last_hidden_state")  # fmt: skip
COSINE, DIFFERENCE, INPUTS = 0.99999, 2e-5, 1e-4


MIXED = (InterleavedModel, TilesMixin)  # whose pictures stand in texts


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
    """What our own processor makes of them, as torch tensors."""
    import torch

    inputs: dict[str, Any] = {}
    if isinstance(model, MIXED):
        return dict(model.processor(**_mixed(model), return_tensors="pt"))
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
        inputs |= model.tokenizer(TEXTS, **_text_options(model))
    if "vision" in model.towers:
        inputs |= model.image_processor(_pictures(4), return_tensors="pt")
    if "audio" in model.towers:
        inputs |= _sound_inputs(model.feature_extractor, model.feature_extractor.sampling_rate)
    return inputs


def _mixed(model: Any) -> dict[str, Any]:
    """One text with a picture and a sound in it, where the model reads these: padding is nobody's business."""
    given: dict[str, Any] = {}
    if "vision" in model.towers:
        given["images"] = [_pictures(1)]
    if "audio" in model.towers:
        given["audio"] = _sounds(1, model.feature_extractor.sampling_rate)
        given["audio_kwargs"] = {"sampling_rate": model.feature_extractor.sampling_rate}
    tokens = [
        model.processor.token(f"{name}_token") for name in ("image", "audio") if f"{name}s" in given or name in given
    ]
    return given | {"text": [" ".join([*tokens, TEXTS[0]])]}


def _text_options(model: Any) -> dict[str, Any]:
    most = min(model.tower("text").max_positions, model.tokenizer.model_max_length)
    padding = "max_length" if model.tokenizer.exact_length else True
    return {"padding": padding, "truncation": True, "max_length": most, "return_tensors": "pt"}


def _sound_inputs(extract: Any, rate: int) -> dict[str, Any]:
    return dict(extract(_sounds(4, rate), sampling_rate=rate, return_tensors="pt"))


def _their_inputs(model: Any, inputs: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """What transformers' processor makes of the same texts, pictures and sounds; ours, and why, where it makes none."""
    import transformers
    from PIL import Image

    made: dict[str, Any] = {}
    try:
        processor = transformers.AutoProcessor.from_pretrained(model.folder, backend="pil")
        if isinstance(model, MIXED):
            return dict(processor(**_mixed(model), return_tensors="pt")), ""
        if "vision" in model.towers:
            pictures = [Image.fromarray(picture) for picture in _pictures(4)]
            made |= getattr(processor, "image_processor", processor)(pictures, return_tensors="pt")
        if "audio" in model.towers:
            extract = getattr(processor, "feature_extractor", processor)
            made |= _sound_inputs(extract, model.feature_extractor.sampling_rate)
            made.pop("is_longer", None)  # of a fusing extractor drawn by chance there
        if "text" in model.towers and not isinstance(model, TaskModel):
            made |= getattr(processor, "tokenizer", processor)(TEXTS, **_text_options(model))
    except Exception as error:  # whatever it is, the models can be compared
        return inputs, f"transformers has no processor for this folder ({type(error).__name__}: {error})"[:200]
    return inputs | made, ""


def _timed(call: Any, repeats: int = 5) -> tuple[Any, float]:
    result, times = call(), []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return result, float(np.median(times))


def _compare(ours: np.ndarray, expected: np.ndarray) -> dict[str, float]:
    a, b = (x.reshape(-1, x.shape[-1]).astype(np.float64) for x in (ours, expected))
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
    if getattr(reference.config, "return_loss", None):
        reference.config.return_loss = False  # FLAVA's, which needs its codebook
    theirs, note = _their_inputs(model, inputs)
    with torch.inference_mode():
        expected, seconds = _timed(lambda: reference(**theirs))
    outputs, ours = _timed(lambda: model(**inputs))
    input_rows = (
        [] if note else compared_rows(dict(inputs), {n: theirs[n] for n in theirs if theirs[n] is not inputs.get(n)})
    )
    rows = compared_rows(outputs, expected)
    speed = {"beyondvl_seconds": ours, "transformers_seconds": seconds, "ratio": seconds / ours}
    # of other shapes the outputs tell
    good = agrees(rows) and all(row.get("max_difference", 0) <= INPUTS for row in input_rows)
    if as_json:
        said = {"model": str(name), "inputs": input_rows, "note": note, "outputs": rows, **speed, "agrees": good}
        print(json.dumps(said))
        return good
    _print(input_rows, rows, note)
    print(f"one call: beyondvl {1e3 * ours:.1f} ms, transformers {1e3 * seconds:.1f} ms ({seconds / ours:.2f}x)")
    print(
        "agrees" if good else f"DIFFERS: expected cosine >= {COSINE}, differences <= {DIFFERENCE} and the same inputs"
    )
    return good


def compared_rows(outputs: Any, expected: Any, prefix: str = "") -> list[dict[str, Any]]:
    """A comparison for every array that both have, those of nested outputs with their places; or the "shapes" where
    these differ."""
    rows: list[dict[str, Any]] = []
    for name in (name for name in expected if name in outputs):
        ours, theirs = outputs[name], expected[name]
        if isinstance(theirs, Mapping) and isinstance(ours, Mapping):
            rows += compared_rows(ours, theirs, f"{prefix}{name}.")
        elif hasattr(theirs, "shape") and hasattr(ours, "shape"):
            a, b = to_numpy(ours), to_numpy(theirs)
            if a.shape != b.shape:
                rows.append({"output": prefix + name, "shapes": [list(a.shape), list(b.shape)]})
            elif a.size and a.ndim:
                rows.append({"output": prefix + name, **_compare(a, b)})
    return rows


def agrees(rows: list[dict[str, Any]]) -> bool:
    """Whether embeddings are within the library's bounds; of a model without any, whether all states are."""
    judged = [row for row in rows if row["output"] in EMBEDS]
    close = all(row.get("max_difference", np.inf) <= DIFFERENCE for row in judged)
    judged = judged or [row for row in rows if row["output"] in STATES]
    return bool(judged) and close and all(row.get("min_cosine", 0) >= COSINE for row in judged)


def _print(inputs: list[dict[str, Any]], rows: list[dict[str, Any]], note: str) -> None:
    if note:
        print(f"{note}: both models are given what beyondvl's makes")
    for what, row in [(" (input)", row) for row in inputs] + [("", row) for row in rows]:
        said = "max difference {max_difference:.2e}   min cosine {min_cosine:.7f}"
        said = "shapes {shapes[0]} and {shapes[1]}" if "shapes" in row else said
        print(f"{row['output'] + what:<38} {said.format(**row)}")
