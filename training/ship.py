"""Step 6 of the recipe: the checkpoint, out of the towers' packages and what was trained.

    python training/ship.py --work training/work --seed 0 --write FOLDER [--float32] [--over beyond-vl-model]

Matrices are stored as int8 with one scale a row, vectors as float32; --float32 stores all as it was trained, to compare.
Tokenizer, processor and config lie beside them. --over leaves out what a shipped model has bit for bit: that lends it.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import torch
from hearing import POSITIONS
from safetensors.numpy import load_file
from twin import LiteTop
from words import minilm

from beyondvl.hub import shipped_folder
from beyondvl.weights import open_checkpoint, save_safetensors

PICTURE = {
    "image_processor_type": "CLIPImageProcessor", "do_resize": True, "size": {"height": 260, "width": 260}, "resample": 3,
    "do_center_crop": False, "do_rescale": True, "rescale_factor": 1 / 128, "do_normalize": True,
    "image_mean": [127 / 128] * 3, "image_std": [1.0] * 3,
}  # fmt: skip
SOUND = {"feature_extractor_type": "BeyondVLFeatureExtractor", "feature_size": 80, "sampling_rate": 16_000,
         "hop_length": 160, "chunk_length": 10, "n_fft": 400}  # fmt: skip


def read_all(folder: Path) -> dict[str, np.ndarray]:
    checkpoint = open_checkpoint(folder)
    entries = {name: entry for name, entry in checkpoint.entries.items() if entry.dtype.startswith("F")}
    return {name: checkpoint.read(name, entry.shape) for name, entry in entries.items()}


def picture_tower(work: Path, heads: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The published tower with the stages that were tuned."""
    tensors = read_all(work / "tower")
    top = LiteTop({name: torch.from_numpy(array) for name, array in tensors.items()})
    top.load_state_dict({n[4:]: v for n, v in heads.items() if n.startswith("top.")})
    return tensors | {name: value.numpy() for name, value in top.state().items()}


def towers(work: Path, heads: dict[str, torch.Tensor]) -> dict[str, np.ndarray]:
    """The three towers."""
    text = {n: a for n, a in read_all(minilm()).items() if not n.startswith("pooler.")}
    ears = {n: a for n, a in read_all(work / "ears").items() if n.startswith("model.encoder.")}
    place = "model.encoder.embed_positions.weight"
    ears[place] = ears[place][:POSITIONS]
    parts = {"vision_model.": picture_tower(work, heads), "text_model.": text, "audio_model.": ears}
    return {prefix + name: array for prefix, tensors in parts.items() for name, array in tensors.items()}


def stored(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Matrices and convolutions in int8, each row with its scale."""
    out = {}
    for name, array in tensors.items():
        array = np.ascontiguousarray(array, np.float32)
        if array.ndim < 2 or array[0].size < 32:
            out[name] = array
            continue
        scale = np.abs(array).reshape(len(array), -1).max(1) / 127
        scale[scale == 0] = 1
        shaped = scale.reshape(-1, *[1] * (array.ndim - 1))
        out[name], out[f"{name}_scale"] = np.round(array / shaped).astype(np.int8), scale.astype(np.float32)
    return out


def changed(tensors: dict[str, np.ndarray], base: str) -> dict[str, np.ndarray]:
    """What a shipped model has not, or has otherwise; a matrix and its scales go together."""
    lender = load_file(shipped_folder(base) / "model.safetensors")
    alike = {name for name, array in tensors.items() if name in lender and np.array_equal(array, lender[name])}
    whole = {n for n in alike if {f"{n}_scale", n.removesuffix("_scale")} & tensors.keys() <= alike}
    return {name: array for name, array in tensors.items() if name not in whole}


def write_folder(folder: Path, tensors: dict[str, np.ndarray], config: dict, options: argparse.Namespace) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    float32 = options.float32
    tensors = {n: np.ascontiguousarray(a, np.float32) for n, a in tensors.items()} if float32 else stored(tensors)
    if options.over:
        tensors, config = changed(tensors, options.over), config | {"base_model_name_or_path": options.over}
    save_safetensors(folder / "model.safetensors", tensors, {"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config) + "\n")
    parts = {"processor_class": "BeyondVLProcessor", "image_processor": PICTURE, "feature_extractor": SOUND}
    (folder / "processor_config.json").write_text(json.dumps(parts, indent=1) + "\n")
    shutil.copyfile(minilm() / "tokenizer.json", folder / "tokenizer.json")
    settings = {"tokenizer_class": "BertTokenizer", "model_max_length": 256, "do_lower_case": True}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")


def write_tower(work: Path, heads: dict[str, torch.Tensor], folder: Path) -> None:
    """The tuned picture tower alone, for states.py."""
    folder.mkdir(parents=True, exist_ok=True)
    save_safetensors(folder / "model.safetensors", picture_tower(work, heads))
    shutil.copyfile(work / "tower" / "config.json", folder / "config.json")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--tower", action="store_true", help="write the tuned picture tower alone, WORK/tuned, for step 4"
    )
    parser.add_argument("--joint", help="a file of joint.py in WORK, where it is not that of the seed")
    parser.add_argument("--write", type=Path)
    parser.add_argument("--float32", action="store_true")
    parser.add_argument("--over", help="a shipped model")
    options = parser.parse_args()
    heads = torch.load(options.work / f"heads-{options.seed}.pt", weights_only=True)
    if options.tower:
        write_tower(options.work, heads, options.work / "tuned")
    if options.write:
        trained = torch.load(options.work / (options.joint or f"joint-{options.seed}.pt"), weights_only=False)
        tensors = towers(options.work, heads)
        tensors |= {name: value.numpy() for name, value in trained["model"].items()}
        write_folder(options.write, tensors, trained["config"], options)


if __name__ == "__main__":
    main()
