"""What convnets are made of: layers over maps, whose rows are pixels, line by line, and whose columns are channels."""

from __future__ import annotations

from .spec import BatchNormConv, Branches, Linear, Spec

__all__ = [
    "ConvFeedForward",
    "Depthwise",
    "InvertedResidual",
    "Pointwise",
    "SqueezeExcite",
    "out_size",
    "same_padding",
]


def out_size(size: int, kernel: int, stride: int, padding: str) -> int:
    return -(-size // stride) if padding == "same" else (size - kernel) // stride + 1


def same_padding(size: int, kernel: int, stride: int) -> int:
    """Zeros before the first pixel under TensorFlow's "same" rule."""
    return max((-(-size // stride) - 1) * stride + kernel - size, 0) // 2


class InvertedResidual(Spec):
    """Pointwise expansion, depthwise convolution, pointwise projection; `size` is the input's height and width."""

    expand: BatchNormConv | None
    depthwise: BatchNormConv
    project: BatchNormConv
    size: tuple[int, int]
    stride: int
    activation: str
    residual: bool

    @property
    def kernel(self) -> int:
        return self.depthwise.weight.shape[-1]

    @property
    def out_size(self) -> tuple[int, int]:
        return tuple(out_size(n, self.kernel, self.stride, "same") for n in self.size)


class Depthwise(Spec):
    """A convolution of each channel by itself, over `size`, height and width; one channel may make several. Zeros
    around as many as half its kernel."""

    conv: BatchNormConv | Branches
    size: tuple[int, int]
    stride: int = 1
    activation: str = "none"

    @property
    def weight_shape(self) -> tuple[int, ...]:
        return self.conv.shape if isinstance(self.conv, Branches) else self.conv.weight.shape

    @property
    def out_size(self) -> tuple[int, int]:
        return tuple((n - 1) // self.stride + 1 for n in self.size)


class Pointwise(Spec):
    """act(conv(x)), of each pixel by itself."""

    conv: BatchNormConv | Branches
    activation: str = "none"


class SqueezeExcite(Spec):
    """act(x g), where g = sigmoid(fc2(relu(fc1(mean x)))) is of each channel (Hu et al., 2018)."""

    fc1: Linear
    fc2: Linear
    activation: str = "none"


class ConvFeedForward(Spec):
    """x + fc2(act(fc1(conv(x)))) (FastViT; Vasu et al., 2023)."""

    conv: Depthwise
    fc1: Linear
    fc2: Linear
    activation: str
