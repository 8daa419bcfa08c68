"""Parameters out of a checkpoint, in the shape and the layout that a spec says."""

from __future__ import annotations

import numpy as np

from .spec import BatchNormConv, BatchNormInput, Branches, Linear, Ref

__all__ = ["BATCH_NORM_PARTS", "Reader"]

BATCH_NORM_PARTS = ("weight", "bias", "running_mean", "running_var")


class Reader:
    """Reads parameters of a checkpoint by `Ref`, and remembers which keys were used."""

    def __init__(self, checkpoint):
        self.checkpoint = checkpoint
        self.used: set[str] = set()

    def has(self, ref: Ref) -> bool:
        """False for an optional parameter that the checkpoint lacks."""
        return not ref.optional or all(name in self.checkpoint for name in ref.names if name)

    def stored(self, ref: Ref, name: str) -> str:
        """The name a parameter is read under; of a tied one that is stored twice, both count as used."""
        if ref.tied is None or not name:
            return name
        self.used |= {twin for twin in (name, ref.tied) if twin in self.checkpoint}
        return name if name in self.checkpoint else ref.tied

    def __call__(self, ref: Ref | None) -> np.ndarray | None:
        if ref is None or not self.has(ref):
            return None
        parts = [
            self.part(ref, self.stored(ref, name), rows) for name, rows in zip(ref.names, ref.stored_rows, strict=True)
        ]
        array = parts[0] if len(parts) == 1 else np.concatenate(parts)
        if ref.order:
            array = np.ascontiguousarray(array[list(ref.order)])
        if ref.plus:
            array = array + np.float32(ref.plus)
        if ref.scaled_by is not None:
            factors = self(Ref((ref.scaled_by,), ref.shape[:1]))
            array = array * factors.reshape(-1, *[1] * (array.ndim - 1))
        return array if ref.scale == 1 else array * np.float32(ref.scale)

    def part(self, ref: Ref, name: str, rows: int) -> np.ndarray:
        if not name:
            return np.zeros((rows, *ref.shape[1:]), np.float32)
        if ref.stored_as:
            self.used.add(name)
            if ref.stored_as == "diagonal":
                return np.diag(self.checkpoint.read(name, ref.shape[:1]))
            out, _, height, width = ref.shape
            return np.ascontiguousarray(self.checkpoint.read(name, (out, width, height)).transpose(0, 2, 1))[:, None]
        shape = (rows, *ref.shape[1:])
        stored = shape[::-1] if ref.transpose else shape
        array = self.checkpoint.read(name, stored)
        self.used.add(name)
        if ref.transpose:
            array = array.T
        if ref.rows:
            array = array[ref.rows[0] : ref.rows[1]]
        return np.ascontiguousarray(array)

    def batch_norm(self, prefix: str, channels: int, eps: float) -> tuple[np.ndarray, np.ndarray]:
        """Factor and offset of a batch norm in inference: g / s, b - mean g / s, float64."""
        gamma, beta, mean, var = (
            self(Ref((f"{prefix}.{part}",), (channels,))).astype(np.float64) for part in BATCH_NORM_PARTS
        )
        scale = gamma / np.sqrt(var + eps)
        return scale, beta - mean * scale

    def folded(self, conv: BatchNormConv | Branches | BatchNormInput) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias of what is one convolution, or one linear, with its batch norms."""
        fold = {Branches: self.summed, BatchNormInput: self.normed}.get(type(conv), self.convolved)
        weight, bias = fold(conv)
        return weight.astype(np.float32), bias.astype(np.float32)

    def convolved(self, conv: BatchNormConv) -> tuple[np.ndarray, np.ndarray]:
        """Of a convolution followed by its batch norm, float64."""
        scale, shift = self.batch_norm(conv.norm, conv.weight.shape[0], conv.eps)
        weight = self(conv.weight) * scale[:, None, None, None]
        return weight, shift + self(conv.bias) * scale if conv.bias else shift

    def normed(self, layer: BatchNormInput) -> tuple[np.ndarray, np.ndarray]:
        """Of a linear of what a batch norm gives, float64."""
        weight, bias = self(layer.linear.weight).astype(np.float64), self(layer.linear.bias)
        scale, shift = self.batch_norm(layer.norm.norm, weight.shape[1], layer.norm.eps)
        return weight * scale, weight @ shift + (0 if bias is None else bias)

    def summed(self, layer: Branches) -> tuple[np.ndarray, np.ndarray]:
        """Of convolutions of one input, float64."""
        out, inner, side, _ = layer.shape
        same, rows = np.zeros(layer.shape), np.arange(out)
        same[rows, rows % inner, side // 2, side // 2] = 1
        weight, bias = np.zeros(layer.shape), np.zeros(out)
        for branch in layer.branches:
            if isinstance(branch, Linear):
                part, shift = self(branch.weight), self(branch.bias)
            elif branch.weight is None:
                scale, shift = self.batch_norm(branch.norm, out, branch.eps)
                part = same * scale[:, None, None, None]
            else:
                part, shift = self.convolved(branch)
            edge = (side - part.shape[-1]) // 2
            weight += np.pad(part, ((0, 0), (0, 0), (edge, edge), (edge, edge)))
            bias += shift
        if layer.less:
            scale, shift = self.batch_norm(layer.less.norm, out, layer.less.eps)
            weight, bias = weight - same * scale[:, None, None, None], bias - shift
        if layer.scale:
            gain = self(layer.scale).astype(np.float64)
            weight, bias = weight * gain[:, None, None, None], bias * gain
        return weight + same if layer.skip else weight, bias
