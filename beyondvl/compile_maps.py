"""Layers of convnets -> records: the part of compile.py's Builder that knows maps."""

from __future__ import annotations

from typing import Any

import numpy as np

from . import _C
from .maps import ConvFeedForward, Depthwise, InvertedResidual, Pointwise, SqueezeExcite, same_padding
from .spec import BatchNormConv, Branches, Linear, Spec

__all__ = ["MapMixin", "activation_code"]


def activation_code(name: str) -> int:
    return _C.ACTIVATIONS.index(name)


def map_name(rows: int, channels: int, src: str) -> str:
    """One of two slots of a shape that take turns: the other one than `src`."""
    name = f"map_{rows}x{channels}_"
    return name + ("1" if src == name + "0" else "0")


class MapMixin:
    """What a Builder does of maps."""

    read: Any
    sizes: dict[str, tuple[int, int, str]]
    slot: Any
    add: Any
    affine: Any

    def map_layer(self, layer: Spec, hidden: str, index: int) -> str:
        """The slot that a layer leaves its result in."""
        match layer:
            case InvertedResidual():
                return self.inverted_residual(layer, hidden, index)
            case Depthwise():
                return self.depthwise(layer, hidden)
            case Pointwise():
                return self.pointwise(layer.conv, hidden, layer.activation)
            case ConvFeedForward():
                return self.conv_feed_forward(layer, hidden)
            case SqueezeExcite():
                weights = self.affine(layer.fc1, "fc1_") | self.affine(layer.fc2, "fc2_")
                self.add("squeeze_excite", hidden, hidden, {"activation": activation_code(layer.activation)}, **weights)
                return hidden
        raise TypeError(f"layers: found {type(layer).__name__}, expected one that is compiled")

    def inverted_residual(self, layer: InvertedResidual, src: str, index: int) -> str:
        kernel, (height, width), (rows, cols) = layer.kernel, layer.size, layer.out_size
        params = {
            "height": height,
            "width": width,
            "kernel": kernel,
            "stride": layer.stride,
            "pad_top": same_padding(height, kernel, layer.stride),
            "pad_left": same_padding(width, kernel, layer.stride),
            "out_height": rows,
            "out_width": cols,
            "activation": activation_code(layer.activation),
            "residual": layer.residual,
        }
        weights = {}
        for name in ("expand", "depthwise", "project"):
            conv = getattr(layer, name)
            if conv:
                weights |= self.affine(conv, f"{name}_")
        weights["depthwise_weight"] = np.ascontiguousarray(weights["depthwise_weight"].T)
        channels = layer.project.weight.shape[0]
        # two slots of a shape take turns, so that a deep stack needs few
        dst = self.slot(f"map_{rows}x{cols}x{channels}_{index % 2}", rows * cols, channels)
        self.add("inverted_residual", src, dst, params, **weights)
        return dst

    def depthwise(self, layer: Depthwise, src: str) -> str:
        (height, width), (rows, cols) = layer.size, layer.out_size
        out, _, kernel, _ = layer.weight_shape
        params = {"height": height, "width": width, "kernel": kernel, "stride": layer.stride, "pad": kernel // 2,
                  "out_height": rows, "out_width": cols, "activation": activation_code(layer.activation)}  # fmt: skip
        weight, bias = self.read.folded(layer.conv)
        channels = self.sizes[src][1]
        each = out // channels  # of channel c, c m, c m + 1, ...
        weight = np.ascontiguousarray(weight.reshape(channels, each, -1).transpose(1, 2, 0))
        bias = np.ascontiguousarray(bias.reshape(channels, each).T)
        dst = self.slot(map_name(rows * cols, out, src), rows * cols, out)
        self.add("depthwise", src, dst, params, weight=weight, bias=bias)
        return dst

    def pointwise(self, conv: BatchNormConv | Branches | Linear, src: str, activation: str, wide: bool = False) -> str:
        params = {"activation": activation_code(activation), "accumulate": False, "as_blocks": False}
        arrays, rows = self.affine(conv), self.sizes[src][0]
        channels = len(arrays["weight"])
        dst = self.slot(f"wide_{rows}x{channels}" if wide else map_name(rows, channels, src), rows, channels)
        self.add("linear", src, dst, params, **arrays)
        return dst

    def conv_feed_forward(self, layer: ConvFeedForward, hidden: str) -> str:
        made = self.depthwise(layer.conv, hidden)
        wide = self.pointwise(layer.fc1, made, layer.activation, wide=True)
        params = {"activation": activation_code("none"), "accumulate": True, "as_blocks": False}
        self.add("linear", wide, hidden, params, **self.affine(layer.fc2))
        return hidden
