"""How an encoder begins: what makes its first rows of tokens, pictures, spectrograms, queries, or other features."""

from __future__ import annotations

from .maps import out_size, same_padding
from .spec import BatchNormConv, Branches, Linear, Norm, Ref, Spec

__all__ = [
    "CropFusion",
    "FramesStem",
    "JoinStem",
    "PatchRowsStem",
    "PatchStem",
    "QueryStem",
    "SpectrogramStem",
    "TokenStem",
]


class TokenStem(Spec):
    """Token embeddings plus positions (plus types). Features given to the call stand in for `feature_token`, as many in
    each item, or those of all items one after the other (`flat_features`).

    Without a table of positions there may be `max_positions`, told apart by the blocks: by distance, or by `rotary`,
    or some of them by `rotary_2`. Frequencies along several axes, one row each: a token has a position along each.
    """

    word: Ref
    position: Ref | None
    type: Ref | None = None
    feature_token: int = -1
    flat_features: bool = False
    max_positions: int = 0
    rotary: tuple[float, ...] | tuple[tuple[float, ...], ...] = ()  # frequencies: times a position they are angles
    rotary_2: tuple[float, ...] | tuple[tuple[float, ...], ...] = ()


class QueryStem(Spec):
    """Learned query tokens [queries, hidden_size], then the tokens of a text where one is given.

    A call that gives contexts runs the queries, with or without a text; one that gives none runs the text alone.
    """

    query: Ref
    tokens: TokenStem | None = None


class JoinStem(Spec):
    """One stream of the features of several inputs [n, hidden_size], projected by their own programs; a class token may
    come first, and each row may add the embedding of its type: the place of its input's name among `inputs`. The class
    token is of the first type."""

    class_token: Ref | None = None
    type: Ref | None = None
    inputs: tuple[str, ...] = ()


class SpectrogramStem(Spec):
    """A log-mel spectrogram (channels, frames, mels) as a picture: a batch norm by mel (`norm` is the prefix of its
    weight, bias, running_mean, running_var), stretched along time to `size`[1] * parts frames, cut in parts that lie
    one above the other (Chen et al., 2022)."""

    norm: str
    eps: float
    mels: int
    parts: int
    size: tuple[int, int]
    channels: int = 1


class CropFusion(Spec):
    """Crops of a long sound, channels 1, 2, ... of a spectrogram, fused into its patches (Wu et al., 2023): a
    convolution of each crop, side by side, and attention over channels, `local` and of the mean, `whole`."""

    crop: Linear  # [D, 1, k, k']
    stride: tuple[int, int]
    local: tuple[BatchNormConv, BatchNormConv]
    whole: tuple[BatchNormConv, BatchNormConv]


class PatchStem(Spec):
    """A convolution over the picture; with stride = kernel it is a patch embedding.

    `padding` is "valid" or "same" (TensorFlow's: the odd pixel at the bottom and right), or zeros (vertical,
    horizontal). `stride` is one number, or (down, right). The picture is the call's, or what `source` makes: a
    spectrogram, or the rows of another convolution, which are the pixels of several `channels`, or the lines of one.
    An item may be several `pictures`; each may have `spare` rows to be filled.
    """

    weight: Ref | BatchNormConv | Branches
    bias: Ref | None
    class_token: Ref | None
    position: Ref | None
    size: tuple[int, int]
    stride: int | tuple[int, int]
    channels: int = 3
    padding: str | tuple[int, int] = "valid"
    activation: str = "none"
    source: PatchStem | SpectrogramStem | None = None
    fusion: CropFusion | None = None
    pictures: int = 1
    spare: int = 0

    @property
    def kernel(self) -> tuple[int, int]:
        return (self.weight.weight if isinstance(self.weight, BatchNormConv) else self.weight).shape[-2:]

    @property
    def rows(self) -> int:
        """Rows of one picture."""
        return self.grid[0] * self.grid[1] + self.class_tokens + self.spare

    @property
    def class_tokens(self) -> int:
        shape = self.class_token.shape if self.class_token else (0, 0)
        return shape[0] if len(shape) == 2 else 1

    @property
    def strides(self) -> tuple[int, int]:
        return (self.stride, self.stride) if isinstance(self.stride, int) else self.stride

    @property
    def zeros(self) -> tuple[int, int]:
        """Rows of zeros above the picture, columns before it."""
        if self.padding == "same":
            return tuple(same_padding(*sizes) for sizes in zip(self.size, self.kernel, self.strides, strict=True))
        return (0, 0) if self.padding == "valid" else self.padding

    @property
    def grid(self) -> tuple[int, int]:
        if isinstance(self.padding, str):
            sizes = zip(self.size, self.kernel, self.strides, strict=True)
            return tuple(out_size(*each, self.padding) for each in sizes)
        sizes = zip(self.size, self.zeros, self.kernel, self.strides, strict=True)
        return tuple(out_size(n + 2 * pad, kernel, stride, "valid") for n, pad, kernel, stride in sizes)


class PatchRowsStem(Spec):
    """Pictures of any size: of one in a call, or, where `weight` has two axes, of several, each given as its patches.
    An item has as many rows as its picture has patches, after the class tokens.

    `position` is a table over the cells of `grid`, resized to each picture by `filter` (of _C.FILTERS); with
    `class_position` its first row is the class token's; with `per_axis` it is of the columns of the grid, then of its
    rows, and a patch has the sum of both. Or blocks turn queries and keys (`rotary`) by the angles
    y f_y + x f_x, for each f_y and f_x of `frequencies`, where y and x count patches from `offset` on or, `centred`, go
    from -1 to 1.
    """

    weight: Ref  # [D, channels, k, k], or [D, numbers of a patch]
    bias: Ref | None
    class_token: Ref | None = None  # [n, D]
    position: Ref | None = None  # [rows * columns of the grid (+ 1), D], or [columns + rows, D]
    grid: tuple[int, int] = (1, 1)
    class_position: bool = False
    per_axis: bool = False
    filter: str = "bilinear"
    frequencies: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())
    centred: bool = False
    offset: float = 0.0


class FramesStem(Spec):
    """Spectrograms of several lengths: two convolutions of 3 x 3 windows, two apart, each with a norm of its channels
    and a rectifier, then a product over the mels that are left; four frames make a row."""

    first: Ref  # [C1, 1, 3, 3]
    second: Ref  # [C2, C1, 3, 3]
    norm1: Norm
    norm2: Norm
    weight: Ref  # [D, mels / 4 * C2]
    mels: int
