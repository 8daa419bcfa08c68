"""One compiled encoder with the names of its outputs, and the arrays it takes."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..compiled import Compiled
from ..modalities import FLOATS
from ..outputs import to_numpy
from ..spec import Encoder

__all__ = ["Tower", "plans", "prepared"]


# in the order in which callers want them
MAIN_OUTPUTS = ("unit_embeds", "embeds", "next_logits", "features", "pooler_output", "last_hidden_state")
# of whole numbers that are of other axes than a text's
SHAPES = {
    "image_position_ids": "(n, N, 2)",
    "video_position_ids": "(n, N, 2)",
    "num_frames_per_video": "(n,)",
}


class Tower:
    """One compiled encoder; `outputs` maps the names of its outputs to slots of its program, `sizes` to columns.
    `states` names what each of its layers makes, where all are alike: outputs too."""

    def __init__(self, encoder: Encoder, compiled: Compiled):
        self.encoder, self.compiled = encoder, compiled
        self.program, self.outputs, self.sizes = compiled.program, compiled.outputs, compiled.sizes
        self.states = () if encoder.arrange else tuple(compiled.states)

    def check_outputs(self, wanted: list[str]) -> None:
        """ValueError for an output there is none of."""
        if unknown := [name for name in wanted if name not in self.outputs and name not in self.states]:
            raise ValueError(f"wanted: found {unknown[0]!r}, expected some of {', '.join(self.outputs)}")

    def check_inputs(self, inputs: dict[str, Any], by_name: tuple[str, ...]) -> None:
        """ValueError for an input that some towers take `by_name`, and this one does not."""
        for name in by_name:
            if inputs.get(name) is not None and name not in self.program.info()["inputs"]:
                raise ValueError(f"{name}: given to a tower that takes {', '.join(self.program.info()['inputs'])}")

    def run(self, inputs: dict[str, Any], wanted: list[str], num_threads: int) -> dict[str, Any]:
        """Those outputs by name; the encoder may have a say in how inputs are laid out, and outputs."""
        if self.encoder.prepare:
            inputs = self.encoder.prepare(dict(inputs), self.program.info())
        slots = {name: self.outputs.get(name, name) for name in wanted}
        arrays = self.program.run(inputs, list(dict.fromkeys(slots.values())), num_threads)
        outputs = {name: arrays[slot] for name, slot in slots.items()}
        return self.encoder.arrange(outputs) if self.encoder.arrange else outputs

    def plan(self, inputs: dict[str, Any], num_threads: int) -> list[str]:
        """What a call of it does, a line a phase (see _C.Program.plan), for the output that callers want most."""
        wanted = [next(name for name in MAIN_OUTPUTS if name in self.outputs)]
        wanted += ["context"] if self.encoder.context else []
        return self.program.plan(inputs, [self.outputs.get(name, name) for name in wanted], num_threads)

    @property
    def max_positions(self) -> int:
        """Tokens of the longest text."""
        return self.program.info()["max_positions"] - self.encoder.first_position


def plans(towers: dict[str, Tower], num_threads: int) -> dict[str, list[str]]:
    """What one call of each does, of a few tokens or of a picture. What one makes for others to attend to is computed,
    and those after it are told of attending to that."""
    contexts: list[Any] = []
    lines = {}
    for name, tower in towers.items():
        facts = tower.program.info()
        inputs = example_inputs(facts)
        if facts["context_layers"]:
            inputs["contexts"] = contexts
        lines[name] = tower.plan(inputs, num_threads)
        if tower.encoder.context:
            contexts = tower.program.run(inputs, ["context"], num_threads)["context"]
    return lines


def example_inputs(facts: dict[str, Any]) -> dict[str, Any]:
    """Inputs by which a program can be planned: what its info() says it takes, of the smallest sizes that tell."""
    takes, (first, second, third) = facts["inputs"], facts["image"]
    inputs: dict[str, Any] = {}
    if "input_ids" in takes:
        inputs["input_ids"] = np.zeros((1, min(8, facts["max_positions"])), np.int64)
    elif "features" in takes:
        inputs["features"] = np.zeros((1, 8, facts["feature_size"]), np.float32)
    if "spatial_shapes" in takes:
        inputs["spatial_shapes"] = np.full((1, 2), 12)
        inputs["pixel_values"] = np.zeros((1, 144, second), np.float32)
    elif "num_frames" in takes:
        inputs["num_frames"] = np.full(1, 32)
        inputs["input_features"] = np.zeros((1, 32, second), np.float32)
    elif name := next((name for name in ("pixel_values", "input_features") if name in takes), None):
        inputs[name] = np.zeros((1, first, second, third), np.float32)
    if "is_longer" in takes:
        inputs["is_longer"] = np.zeros((1, 1), np.int64)
    return inputs


def prepared(name: str, value: Any) -> np.ndarray:
    """The array the core borrows: contiguous float32 pixels as they are, other floats converted; contiguous int64
    ids and masks."""
    array = to_numpy(value, name)
    if name in FLOATS:
        if array.dtype.kind != "f":
            raise ValueError(f"{name}: found dtype {array.dtype}, expected floats")
        return np.ascontiguousarray(array, np.float32)
    if name.endswith("mask") and array.dtype.kind == "f" and np.isin(array, (0, 1)).all():
        array = array != 0
    if array.size and array.dtype.kind not in "iub":
        raise ValueError(f"{name}: found dtype {array.dtype}, expected integers")
    shape = SHAPES.get(name, "(B, L)")
    if array.ndim != shape.count(",") + 1 - shape.count(",)"):
        raise ValueError(f"{name}: found shape {array.shape}, expected {shape}")
    return np.ascontiguousarray(array, np.int64)  # the core takes a copy of its own, and checks that
