"""The other way round: of a shipped checkpoint what the steps of the recipe wrote, to train on from there.

    python training/unpack.py --work training/work --model beyondvl/default

Writes WORK/tower (the published one), WORK/tuned, WORK/heads-0.pt and WORK/joint-shipped.pt, widened from int8: contrast.py
and the heads of heads.py need not be run; then joint.py or critical.py go on with --begin joint-shipped.pt.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

import torch
from twin import LiteTop
from views import tower

from beyondvl.weights import open_checkpoint, save_safetensors

TOWERS = ("vision_model.", "text_model.", "audio_model.")
HEADS = ("vision_head", "text_projection", "logit_scale")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    options = parser.parse_args()
    work = options.work
    tower(work / "tower")
    checkpoint = open_checkpoint(options.model)
    names = set(checkpoint.names()) - checkpoint.companions(set(checkpoint.names()))
    weights = {name: torch.tensor(checkpoint.read(name, checkpoint.entries[name].shape)) for name in names}
    vision = {n.removeprefix(TOWERS[0]): value for n, value in weights.items() if n.startswith(TOWERS[0])}
    (work / "tuned").mkdir(exist_ok=True)
    save_safetensors(work / "tuned" / "model.safetensors", {name: value.numpy() for name, value in vision.items()})
    shutil.copyfile(work / "tower" / "config.json", work / "tuned" / "config.json")
    trained = {name: value for name, value in weights.items() if not name.startswith(TOWERS)}
    trained["logit_scale"] = trained["logit_scale"].reshape(())
    heads = {name: value for name, value in trained.items() if name.startswith(HEADS)}
    heads |= {f"top.{name}": value for name, value in LiteTop(vision).state_dict().items()}
    torch.save(heads, work / "heads-0.pt")
    config = json.loads((options.model / "config.json").read_text())
    config.pop("confidence", None)
    torch.save({"model": trained, "config": config}, work / "joint-shipped.pt")


if __name__ == "__main__":
    main()
