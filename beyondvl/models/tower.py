"""One compiled encoder with the names of its outputs, and the arrays it takes."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..compile import Compiled
from ..modalities import FLOATS
from ..outputs import to_numpy
from ..spec import Encoder

__all__ = ["Tower", "prepared"]


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

    @property
    def max_positions(self) -> int:
        """Tokens of the longest text."""
        return self.program.info()["max_positions"] - self.encoder.first_position


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
