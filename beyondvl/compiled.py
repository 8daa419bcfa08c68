"""What compiling makes, and packed files hold."""

from __future__ import annotations

from . import _C
from .spec import Spec

__all__ = ["Compiled"]

SUBLAYERS = (
    "self_attention",
    "cross_attention",
    "feed_forward",
    "gated_input",
    "local_attention",
    "light_conv",
    "add_features",
)  # of a block, which begins with the first


class Compiled(Spec):
    """A program and what its caller must know of it. `gemm` says whose products it runs: "own" or "openblas".

    `outputs` maps an output's name to its slot, `sizes` to its columns. `slots` [name, rows, cols, kind] and `records`
    [operation, src, dst, params, {weight: shape}] say how it was built, for packed.py.
    """

    program: _C.Program
    outputs: dict[str, str]
    sizes: dict[str, int]
    slots: list[list]
    records: list[list]
    gemm: str = "own"

    @property
    def states(self) -> list[str]:
        """Names of what stands before the first block and after each of them; none where not all layers are blocks
        over the same rows."""
        ops = [op for op, *_ in self.records]
        at = [i for i, op in enumerate(ops) if op in SUBLAYERS]
        alike = at and at == list(range(at[0], at[-1] + 1)) and len({self.records[i][2] for i in at}) == 1
        if not alike or not at[0]:
            return []
        ends = [i for i in at if i == at[-1] or ops[i + 1] == SUBLAYERS[0]]
        return [f"@{i}" for i in (at[0] - 1, *ends)]
