"""What a model is made of, as plain frozen data: families build these, compile.py turns them into programs.

A weight is named as in the checkpoint. `Ref` adds what a stored layout may need: a slice of rows (packed q, k, v),
a transposition (OpenCLIP's projections), or several tensors stacked by rows (separate q, k, v).

They are frozen dataclasses but for where their methods come from, one base class: to generate them for each of thirty
classes takes longer than to load packed weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar, dataclass_transform

__all__ = [
    "AddFeatures",
    "AttentionPool",
    "BatchNormConv",
    "BatchNormInput",
    "Block",
    "Branches",
    "CFormer",
    "Clip",
    "Conformer",
    "Context",
    "Cross",
    "Encoder",
    "FeedForward",
    "FirstRows",
    "GatedInput",
    "LightConv",
    "Linear",
    "LocalAttention",
    "MergeRows",
    "Message",
    "Norm",
    "Normalize",
    "Pool",
    "PoolPatches",
    "Project",
    "QFormer",
    "Ref",
    "RelativeBias",
    "Softmax",
    "Spec",
    "Step",
    "TakeRows",
    "Windows",
    "ref",
    "refs",
    "replace",
]

S = TypeVar("S", bound="Spec")
MISSING: Any = object()


@dataclass_transform(frozen_default=True, eq_default=False)
class Spec:
    """Data whose fields are the annotations of its class and of those it extends, given by place or by name."""

    defaults: ClassVar[dict[str, Any]] = {}  # of every field in order, MISSING where one must be given

    def __init_subclass__(cls):
        cls.defaults = cls.defaults | {name: vars(cls).get(name, MISSING) for name in cls.__annotations__}

    def __init__(self, *values: Any, **named: Any):
        stated = self.__dict__  # hundreds are made of every model that is loaded
        stated.update(self.defaults)
        stated.update(zip(self.defaults, values, strict=False))
        stated.update(named)
        surplus = len(values) > len(self.defaults) or len(stated) > len(self.defaults)
        twice = values and named and any(name in named for name in list(self.defaults)[: len(values)])
        if surplus or twice or MISSING in stated.values():
            must = [name for name, value in self.defaults.items() if value is MISSING]
            raise TypeError(
                f"{type(self).__name__}: found {len(values)} values and {', '.join(named) or 'none by name'}, expected "
                f"{', '.join(must) or 'none'} and any of {', '.join(self.defaults)}, each once"
            )

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{type(self).__name__}.{name} is frozen: replace() makes a copy with another value")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in vars(self).items())})"


def replace(spec: S, **changes: Any) -> S:
    """A copy with other values for some fields."""
    return type(spec)(**vars(spec) | changes)


class Ref(Spec):
    """One parameter: the shape the config implies and where the checkpoint keeps it.

    `names` are stacked along rows when there are several, `row_counts` of each where they differ; an empty name stands
    for zeros. `rows` = (begin, end) takes part of a packed tensor whose full number of rows is `packed_rows`.
    `transpose` is for tensors stored as [in, out]. `optional` parameters may be absent and are then zero or left out. A
    `tied` parameter is stored under another name where its own is absent. To what is read `plus` is added, then it is
    multiplied by `scale`, and its rows by the elements of `scaled_by`.
    `stored_as` tells another layout of the weight: "diagonal" of [D, D] its diagonal [D]; "time" of a convolution
    [D, 1, k, C] along the lines of a picture whose columns are C, [D, C, k]. Rows are taken in that `order`, if any.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    row_counts: tuple[int, ...] = ()
    rows: tuple[int, int] | None = None
    packed_rows: int | None = None
    transpose: bool = False
    optional: bool = False
    tied: str | None = None
    plus: float = 0.0
    scale: float = 1.0
    scaled_by: str | None = None
    stored_as: str = ""
    order: tuple[int, ...] = ()

    @property
    def stored_rows(self) -> tuple[int, ...]:
        """Rows of the tensor under each name."""
        return self.row_counts or (self.packed_rows or self.shape[0] // len(self.names),) * len(self.names)


def ref(name: str | tuple[str, ...], *shape: int, **kwargs) -> Ref:
    return Ref((name,) if isinstance(name, str) else tuple(name), shape, **kwargs)


class Clip(Spec):
    """What a linear reads is kept between two numbers, and what it gives (Gemma 4, 2026): one of each for every part of
    a stacked weight."""

    input_min: Ref
    input_max: Ref
    output_min: Ref
    output_max: Ref


class Linear(Spec):
    """y = x W^T + b, W [out, in]; in a block both may be clipped."""

    weight: Ref
    bias: Ref | None = None
    clip: Clip | None = None

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]


class Norm(Spec):
    """Layer norm over the last axis; without a bias the norm by the root of the mean square (T5, Llama)."""

    weight: Ref
    bias: Ref | None
    eps: float


class Cross(Spec):
    """The part of a block that attends to a context: its queries, its output and its norm."""

    query: Linear
    out: Linear
    norm: Norm


class FeedForward(Spec):
    """fc2(act(fc1(x))) and the norm before or after it; `gated`: fc2(act(g) * u), where fc1's rows are g, then u.
    `post_norm` is of what is added."""

    fc1: Linear
    fc2: Linear
    norm: Norm
    gated: bool = False
    post_norm: Norm | None = None


class GatedInput(Spec):
    """Per-layer embeddings (Gemma 3n, 2025): x = scale (x + post_norm(out(act(gate(x)) * norm(inputs(e))))), where e is
    what the first layer was given."""

    gate: Ref
    inputs: Ref
    norm: Norm
    out: Ref
    post_norm: Norm
    scale: Ref | None = None


class RelativeBias(Spec):
    """What is added to scores by distance: table[buckets[key - query + reach], head], for distances from -reach to
    reach; what lies further off counts as that far. In windows of n rows by pair: table[buckets[query * n + key]]."""

    table: Ref  # [buckets, heads]
    buckets: tuple[int, ...]  # 2 * reach + 1, or n * n


class Windows(Spec):
    """Rows that attend to each other alone (Liu et al., 2021): `size` at a time in the order of `rows`; within a window
    those of different `regions`, which are in that order too, all but do not."""

    size: int
    rows: tuple[int, ...]
    regions: tuple[int, ...] = ()


class Context(Spec):
    """What an encoder gives the blocks of another to attend to: a linear each, 2 * heads * head_dim rows, k then v."""

    src: str
    layers: tuple[Linear, ...]
    num_attention_heads: int


class Block(Spec):
    """A transformer block; `qkv` is one linear of heads * head_dim rows for q, then as many for k and v, or fewer where
    several heads share one of `num_key_value_heads`.

    Scores are scaled by `scale`, None: 1 / sqrt(head_dim). With `rotary` q and k are turned by the stem's frequencies,
    2: by its second ones. `head_norms` are gains [head_dim] of a norm of each head of q and of k, `norms_values` has
    one of v too. Rows see `sliding_window` others to either side, 0: all. `post_norm` is of what attention adds.

    In a Q-Former query tokens have a feed-forward of their own, `query_ffn`, and they alone attend to the context;
    `ffn` is the text's, None where there is no text.
    """

    qkv: Linear | BatchNormInput
    out: Linear
    norm1: Norm | None
    ffn: FeedForward | None
    num_attention_heads: int
    activation: str
    causal: bool = False
    pre_norm: bool = True
    cross: Cross | None = None
    query_ffn: FeedForward | None = None
    num_key_value_heads: int | None = None
    scale: float | None = None
    relative: RelativeBias | None = None
    rotary: int = 0
    windows: Windows | None = None
    head_norms: tuple[Ref, Ref] | None = None
    norms_values: bool = False
    sliding_window: int = 0
    post_norm: Norm | None = None
    gated_input: GatedInput | None = None


class LocalAttention(Spec):
    """Attention of a row to itself and the `span - 1` rows before it, scores kept within `cap` by tanh (Zhang et al.,
    2023). `derive` makes of two parameters what queries are multiplied by [head_dim] and the keys of distances [heads,
    span, head_dim]."""

    qkv: Linear
    out: Linear
    norm: Norm
    post_norm: Norm
    num_attention_heads: int
    span: int
    cap: float
    parameters: tuple[Ref, Ref]
    derive: Callable[[Any, Any], tuple[Any, Any]]


class LightConv(Spec):
    """A conformer's convolution, x + end(act(norm2(conv(a + a tanh(b))))), where a and b are the halves of
    start(norm(x)) (Gulati et al., 2020); `conv` [D, k] looks back."""

    start: Linear
    end: Linear
    norm: Norm
    conv: Ref
    conv_norm: Norm


class Conformer(Spec):
    """Half a feed-forward, attention, convolution, half a feed-forward and a norm (Gulati et al., 2020)."""

    ffn1: FeedForward
    attention: LocalAttention
    conv: LightConv
    ffn2: FeedForward
    norm: Norm
    activation: str


class AddFeatures(Spec):
    """The rows that stand for placeholders are added the next hidden_size columns of their features (DeepStack; Meng et
    al., 2024), which have so many more for each of these layers."""


class MergeRows(Spec):
    """Every `count` rows in the order of `rows` side by side, normed (Liu et al., 2021) or as they are (Shi et al.,
    2016), and projected to one. Of pictures of any size, without an order, the patches of each square of `side`."""

    norm: Norm | None
    linear: Linear
    rows: tuple[int, ...] = ()
    count: int = 4
    activation: str = "none"
    side: int = 0


class Message(Spec):
    """One row of each picture, from `rows`, attends to those of the others and is put in its row `spare` (Ni et al.,
    2022): m = fc(x[rows]); m + attention(m)."""

    fc: Linear
    block: Block
    rows: tuple[int, ...]
    spare: tuple[int, ...]


class BatchNormConv(Spec):
    """A convolution and the batch norm after it; folded into one weight and bias when compiled. Without a weight the
    batch norm of what is there."""

    weight: Ref | None  # [out, in / groups, k, k]
    norm: str  # prefix of weight, bias, running_mean, running_var
    eps: float
    bias: Ref | None = None

    @property
    def out_features(self) -> int:
        return self.weight.shape[0]


class Branches(Spec):
    """Convolutions of one input, each with its batch norm or (a Linear) a bias, summed and folded into one when they
    are compiled (RepVGG; Ding et al., 2021); smaller ones lie in the middle of the largest. With `skip` x is added,
    where there is a `scale` to x times that, the sum less what `less` makes of x."""

    shape: tuple[int, ...]  # [out, in / groups, k, k]
    branches: tuple[BatchNormConv | Linear, ...]
    less: BatchNormConv | None = None
    scale: Ref | None = None
    skip: bool = False

    @property
    def out_features(self) -> int:
        return self.shape[0]


class BatchNormInput(Spec):
    """A linear of what a batch norm gives; folded into one when compiled."""

    norm: BatchNormConv
    linear: Linear
    clip: Clip | None = None


class Pool(Spec):
    """One row of the tokens ("first", "last", "argmax" of the ids, first "token"), or their "mean"."""

    kind: str
    token: int = 0


class AttentionPool(Spec):
    """SigLIP's MAP head: a learned probe attends to all tokens, then norm and MLP with a residual."""

    probe: Ref
    query: Linear
    kv: Linear
    out: Linear
    norm: Norm
    fc1: Linear
    fc2: Linear
    num_attention_heads: int
    activation: str


class Project(Spec):
    """y = act(x W^T + b); with `accumulate` it is added to what dst holds. Left out where its weight is optional and
    absent. `as_blocks`: in the precision of the blocks, for a product over a whole vocabulary, which is read from
    memory for every token."""

    linear: Linear | BatchNormConv
    activation: str = "none"
    accumulate: bool = False
    as_blocks: bool = False


class TakeRows(Spec):
    """Rows of the source in that order; with `count` the mean of as many at a time."""

    rows: tuple[int, ...]
    count: int = 1


class FirstRows(Spec):
    """The first `count` rows: what the query tokens drew."""

    count: int


class PoolPatches(Spec):
    """The mean of each `side` x `side` patches of a picture, times `gain` plus `offset` of each column (Gemma 3)."""

    side: int
    gain: Ref | None = None
    offset: Ref | None = None


class Softmax(Spec):
    """Probabilities of each row."""


class Normalize(Spec):
    """x / |x| per row."""


class Step(Spec):
    """dst = what(src); `dst` names an output slot of the program."""

    dst: str
    src: str
    what: Pool | AttentionPool | Project | Norm | Normalize | Softmax | FirstRows | TakeRows | MergeRows | PoolPatches


class Encoder(Spec):
    """Stem, layers, then steps from "hidden" to the outputs.

    Outputs by convention: last_hidden_state, pooler_output, embeds (projected), unit_embeds (normalised), logits;
    "context" where it makes one. `prepare` lays a call's inputs out as the core takes them: (inputs, facts of the
    program) -> inputs; `arrange` lays the outputs out as a caller expects them. Positions count from `first_position`.
    `states_end_in_output`: the last of all layers' states is last_hidden_state, as transformers has it for some.
    """

    stem: Spec  # one of stems.py
    layers: tuple[Spec, ...]  # of AddFeatures, Block, Conformer, MergeRows, Message, or those of maps.py
    steps: tuple[Step, ...]
    hidden_size: int
    stem_norm: Norm | None = None
    context: Context | None = None
    prepare: Callable[[dict[str, Any], dict[str, Any]], dict[str, Any]] | None = None
    arrange: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    first_position: int = 0
    states_end_in_output: bool = False

    def without_projection(self) -> Encoder:
        """The encoder as the classes that end in "Model" and not "WithProjection" have it."""
        left_out = ("embeds_inner", "embeds", "unit_embeds")
        return replace(self, steps=tuple(step for step in self.steps if step.dst not in left_out))


class QFormer(Encoder):
    """Query tokens that draw from a context what a question needs (Li et al., 2023): a QueryStem, and blocks whose
    `query_ffn` and `cross` are the queries' own, the latter in every k-th block."""


class CFormer(Encoder):
    """A cross-former: fuses inputs, either in one stream (a JoinStem; Singh et al., 2022) or as a text whose blocks
    attend to the context of another input (`cross`, from any block on; Li et al., 2022). Steps give what comes out of
    it: every row, and how the inputs relate."""


def refs(spec: object) -> list[Ref | BatchNormConv]:
    """Every parameter that a spec mentions."""
    if isinstance(spec, Ref | BatchNormConv):
        return [spec]
    if isinstance(spec, tuple):
        return [one for item in spec for one in refs(item)]
    return [one for value in vars(spec).values() for one in refs(value)] if isinstance(spec, Spec) else []
