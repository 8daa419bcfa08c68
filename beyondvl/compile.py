"""spec -> program: reads each weight once, in order, and hands it to the core, which packs and forgets it.

At no time is more than one record's weights held beside the packed ones.
"""

from __future__ import annotations

import numpy as np

from . import _C
from .compile_maps import MapMixin, activation_code
from .compiled import Compiled
from .folding import fold_norm
from .reader import Reader
from .spec import (
    AddFeatures,
    AttentionPool,
    BatchNormConv,
    BatchNormInput,
    Block,
    Branches,
    Conformer,
    Cross,
    Encoder,
    FeedForward,
    FirstRows,
    GatedInput,
    LightConv,
    Linear,
    LocalAttention,
    MergeRows,
    Message,
    Norm,
    Normalize,
    Pool,
    PoolPatches,
    Project,
    Softmax,
    TakeRows,
)
from .stems import CropFusion, FramesStem, JoinStem, PatchRowsStem, PatchStem, QueryStem, SpectrogramStem

UNNORMED = {"layer_norm_eps": 0.0, "rms_norm": False}
FOLDED = (BatchNormConv, BatchNormInput, Branches)  # what is one weight and bias when it is read


class Builder(MapMixin):
    """Appends records to one program; slots go by name."""

    def __init__(self, encoder: Encoder, reader: Reader, num_threads: int, gemm: str, precision: str):
        self.encoder, self.read, self.num_threads, self.precision = encoder, reader, num_threads, precision
        self.gemm = gemm
        self.program = _C.Program(gemm=gemm, precision=precision)
        self.slots: dict[str, int] = {}
        self.records: list[list] = []
        self.sizes: dict[str, tuple[int, int, str]] = {}

    def slot(self, name: str, rows: int, cols: int, kind: str = "fixed") -> str:
        if name not in self.slots:
            self.slots[name] = self.program.slot(name, rows, cols, _C.ROW_KINDS.index(kind))
            self.sizes[name] = (rows, cols, kind)
        return name

    def add(self, op: str, src: str, dst: str, params: dict | None = None, **weights) -> None:
        arrays = {name: array for name, array in weights.items() if array is not None}
        shapes = {name: list(array.shape) for name, array in arrays.items()}
        self.records.append([op, self.slots[src], self.slots[dst], params or {}, shapes])
        self.program.add(op, self.slots[src], self.slots[dst], params or {}, arrays, self.num_threads)

    def affine(self, layer: Linear | Norm | BatchNormConv, prefix: str = "") -> dict[str, np.ndarray | None]:
        """Weight and bias under the names an operation gives them."""
        if isinstance(layer, FOLDED):
            weight, bias = self.read.folded(layer)
            return {f"{prefix}weight": weight.reshape(weight.shape[0], -1), f"{prefix}bias": bias}
        return {f"{prefix}weight": self.read(layer.weight), f"{prefix}bias": self.read(layer.bias)}

    def clipped(self, layer: Linear, prefix: str) -> dict[str, np.ndarray]:
        """Weights and bias, and the bounds of what a block's linear reads and gives, where it has any."""
        arrays = self.affine(layer, prefix)
        if layer.clip is None:
            return arrays
        low, high, least, most = (self.read(bound) for bound in vars(layer.clip).values())
        bounds = np.array([low, high])
        if (bounds == bounds[:, :1]).all():  # what the parts read is clipped once
            bounds = bounds[:, :1]
        counts = layer.weight.row_counts or layer.weight.shape[0] // len(least)
        reads = np.repeat(bounds.T.reshape(-1, 1), arrays[f"{prefix}weight"].shape[1], 1)
        gives = np.stack([np.repeat(bound, counts) for bound in (least, most)])
        return arrays | {f"{prefix}reads": reads, f"{prefix}gives": gives}

    def stem(self) -> str:
        """The first slot, filled from the inputs."""
        stem = self.encoder.stem
        if isinstance(stem, PatchStem):
            return self.patch_stem(stem)
        if isinstance(stem, PatchRowsStem):
            return self.patch_rows_stem(stem)
        if isinstance(stem, FramesStem):
            return self.frames_stem(stem)
        if isinstance(stem, JoinStem):
            hidden = self.slot("hidden", 0, self.encoder.hidden_size, "text")
            weights = {name: self.read(getattr(stem, name)) for name in ("class_token", "type")}
            self.add("join_features", hidden, hidden, **weights)
            return hidden
        tokens, queries = stem, 0
        if isinstance(stem, QueryStem):
            tokens, queries = stem.tokens, stem.query.shape[0]
        hidden = self.slot("hidden", queries, self.encoder.hidden_size, "text" if tokens else "fixed")
        if queries:
            self.add("query_tokens", hidden, hidden, query=self.read(stem.query))
        if tokens:
            weights = {name: self.read(getattr(tokens, name)) for name in ("word", "position", "type")}
            for name in ("rotary", "rotary_2"):
                if frequencies := getattr(tokens, name):
                    weights[name] = np.array(frequencies, np.float32)
            params = {name: getattr(tokens, name) for name in ("feature_token", "max_positions", "flat_features")}
            self.add("embed_tokens", hidden, hidden, params, **weights)
        return hidden

    def patch_rows_stem(self, stem: PatchRowsStem) -> str:
        names = ("weight", "bias", "class_token", "position")
        weights = {name: self.read(getattr(stem, name)) for name in names}
        sizes = dict(zip(("channels", "patch_height", "patch_width"), weights["weight"].shape[1:], strict=False))
        if len(sizes) == 1:  # patches are given
            sizes = dict.fromkeys(("channels", "patch_height", "patch_width"), 0)
        if stem.class_position:
            weights["class_token"][0] += weights["position"][0]
            weights["position"] = np.ascontiguousarray(weights["position"][1:])
        if stem.per_axis:
            weights["position"] = weights["position"].reshape(-1, self.encoder.hidden_size)
        weights["weight"] = weights["weight"].reshape(len(weights["weight"]), -1)
        params = {
            "grid_height": stem.grid[0],
            "grid_width": stem.grid[1],
            "filter": _C.FILTERS.index(stem.filter),
            "centred": stem.centred,
            "offset": stem.offset,
            "per_axis": stem.per_axis,
        } | sizes
        rotary = np.array(stem.frequencies, np.float32) if stem.frequencies[0] else None
        lead = 0 if weights["class_token"] is None else len(weights["class_token"])
        hidden = self.slot("hidden", lead, self.encoder.hidden_size, "patches")
        self.add("embed_patches", hidden, hidden, params, rotary=rotary, **weights)
        return hidden

    def frames_stem(self, stem: FramesStem) -> str:
        first, second = self.read(stem.first), self.read(stem.second).transpose(0, 2, 3, 1)
        arrays = {"first_weight": first, "second_weight": second, "weight": self.read(stem.weight)}
        weights = {name: np.ascontiguousarray(array.reshape(len(array), -1)) for name, array in arrays.items()}
        weights |= self.affine(stem.norm1, "norm1_") | self.affine(stem.norm2, "norm2_")
        hidden = self.slot("hidden", 0, self.encoder.hidden_size, "patches")
        params = {"mels": stem.mels, "layer_norm_eps": stem.norm1.eps}
        self.add("embed_frames", hidden, hidden, params, **weights)
        return hidden

    def patch_stem(self, stem: PatchStem, name: str = "hidden") -> str:
        if isinstance(stem.weight, FOLDED):
            weight, bias = self.read.folded(stem.weight)
        else:
            weight, bias = self.read(stem.weight), self.read(stem.bias)
        source = self.source(stem.source, f"{name}_source") if stem.source else None
        pixels = isinstance(stem.source, PatchStem) and stem.channels > 1
        if pixels:
            weight = np.ascontiguousarray(weight.transpose(0, 2, 3, 1))
        params = {
            "channels": stem.channels,
            **self.sliding(stem),
            "activation": activation_code(stem.activation),
            "pictures": stem.pictures,
            "spare": stem.spare,
            "channels_last": pixels,
        }
        hidden = self.slot(name, stem.pictures * stem.rows, weight.shape[0])
        more = {"class_token": self.read(stem.class_token), "position": self.read(stem.position)}
        self.add("patch_embed", source or hidden, hidden, params, weight=weight, bias=bias, **more)
        if stem.fusion:
            self.crop_fusion(stem, stem.fusion, source, hidden)
        return hidden

    @staticmethod
    def sliding(stem: PatchStem) -> dict[str, int]:
        """How windows move over a picture."""
        (height, width), (rows, cols) = stem.size, stem.grid
        return {
            "height": height,
            "width": width,
            "stride_down": stem.strides[0],
            "stride_right": stem.strides[1],
            "pad_top": stem.zeros[0],
            "pad_left": stem.zeros[1],
            "out_height": rows,
            "out_width": cols,
        }

    def crop_fusion(self, stem: PatchStem, fusion: CropFusion, picture: str, hidden: str) -> None:
        crops = PatchStem(fusion.crop.weight, None, None, None, stem.size, fusion.stride, 1, stem.zeros)
        params = {"crops": stem.source.channels - 1, **self.sliding(crops)}
        weights = self.affine(fusion.crop, "crop_")
        for name in ("local", "whole"):
            for i, conv in enumerate(getattr(fusion, name), 1):
                weights |= self.affine(conv, f"{name}{i}_")
        self.add("fuse_crops", picture, hidden, params, **weights)

    def source(self, stem: PatchStem | SpectrogramStem, name: str) -> str:
        """The slot of a picture that is made of the input."""
        if isinstance(stem, PatchStem):
            return self.patch_stem(stem, name)
        picture = self.slot(name, stem.channels * stem.size[0], stem.size[1])
        scale, shift = (part.astype(np.float32) for part in self.read.batch_norm(stem.norm, stem.mels, stem.eps))
        self.add("fold_spectrogram", picture, picture, {"channels": stem.channels, "parts": stem.parts},
                 scale=scale, shift=shift)  # fmt: skip
        return picture

    def block(self, block: Block, hidden: str) -> str:
        """Its sub-layers; where there are query tokens, they alone attend to a context, and each side has its own
        feed-forward."""
        self.self_attention(block, hidden)
        if block.cross:
            self.cross_attention(block, block.cross, hidden)
        if block.query_ffn:
            self.feed_forward(block.query_ffn, block.activation, hidden, "queries", block.pre_norm)
        if block.ffn:
            rows = "tokens" if block.query_ffn else "all"
            self.feed_forward(block.ffn, block.activation, hidden, rows, block.pre_norm)
        if block.gated_input:
            self.gated_input(block, block.gated_input, hidden)
        return hidden

    def conformer(self, layer: Conformer, hidden: str) -> str:
        self.feed_forward(layer.ffn1, layer.activation, hidden, "all")
        self.local_attention(layer.attention, hidden)
        self.light_conv(layer.conv, layer.activation, hidden)
        self.feed_forward(layer.ffn2, layer.activation, hidden, "all")
        self.step(hidden, hidden, layer.norm)
        return hidden

    def local_attention(self, attention: LocalAttention, hidden: str) -> None:
        weights = self.clipped(attention.qkv, "qkv_") | self.clipped(attention.out, "out_")
        derived = attention.derive(*map(self.read, attention.parameters))
        weights |= dict(zip(("gain", "relative"), derived, strict=True))
        params = {"num_attention_heads": attention.num_attention_heads, "cap": attention.cap}
        self.sublayer("local_attention", attention.norm, "qkv", hidden, params, weights, attention.post_norm)

    def light_conv(self, conv: LightConv, activation: str, hidden: str) -> None:
        weights = self.clipped(conv.start, "start_") | self.clipped(conv.end, "end_")
        weights |= self.affine(conv.conv_norm, "conv_norm_")
        weights["conv_weight"] = np.ascontiguousarray(self.read(conv.conv).T)
        self.sublayer("light_conv", conv.norm, "start", hidden, {"activation": activation_code(activation)}, weights)

    def sublayer(
        self, op: str, norm: Norm | None, first: str, hidden: str, params: dict, weights: dict,
        post_norm: Norm | None = None, pre_norm: bool = True,
    ) -> None:  # fmt: skip
        """One whose product `first` reads what is normed."""
        weights |= self.affine(norm, "norm_") if norm else {}
        if post_norm:
            weights |= self.affine(post_norm, "post_norm_")
        if self.precision == "int8" and pre_norm and norm:
            fold_norm(weights, "norm", first)
        common = {"layer_norm_eps": norm.eps, "rms_norm": norm.bias is None} if norm else UNNORMED
        common = common | {"pre_norm": pre_norm}
        self.add(op, hidden, hidden, common | params, **weights)

    def self_attention(self, block: Block, hidden: str) -> None:
        params = {
            "num_attention_heads": block.num_attention_heads,
            "num_key_value_heads": block.num_key_value_heads or block.num_attention_heads,
            "attention_scale": block.scale or 0,
            "causal": block.causal,
            "rotary": block.rotary,
            "window": block.windows.size if block.windows else 0,
            "sliding_window": block.sliding_window,
        }
        weights = self.clipped(block.qkv, "qkv_") | self.clipped(block.out, "out_")
        if block.relative:
            table = self.read(block.relative.table)
            weights["relative_bias"] = np.ascontiguousarray(table[list(block.relative.buckets)].T)
        if block.windows:
            weights["window_rows"] = np.array(block.windows.rows, np.float32)
            if len(set(block.windows.regions)) > 1:
                weights["window_regions"] = np.array(block.windows.regions, np.float32)
        if block.head_norms:
            weights["q_norm_weight"], weights["k_norm_weight"] = (self.read(gain) for gain in block.head_norms)
        if block.norms_values:
            weights["v_norm_weight"] = np.ones_like(weights["q_norm_weight"])
        norms = block.post_norm, block.pre_norm
        self.sublayer("self_attention", block.norm1, "qkv", hidden, params, weights, *norms)

    def cross_attention(self, block: Block, cross: Cross, hidden: str) -> None:
        params = {
            "rows": _C.ROWS.index("queries" if block.query_ffn else "all"),
            "num_attention_heads": block.num_attention_heads,
            "attention_scale": block.scale or 0,
        }
        weights = self.affine(cross.query, "q_") | self.affine(cross.out, "out_")
        self.sublayer("cross_attention", cross.norm, "q", hidden, params, weights, None, block.pre_norm)

    def feed_forward(self, ffn: FeedForward, activation: str, hidden: str, rows: str, pre_norm: bool = True) -> None:
        params = {"rows": _C.ROWS.index(rows), "activation": activation_code(activation), "gated": ffn.gated}
        weights = self.clipped(ffn.fc1, "fc1_") | self.clipped(ffn.fc2, "fc2_")
        self.sublayer("feed_forward", ffn.norm, "fc1", hidden, params, weights, ffn.post_norm, pre_norm)

    def gated_input(self, block: Block, gated: GatedInput, hidden: str) -> None:
        params = {
            "layer_norm_eps": gated.norm.eps,
            "activation": activation_code(block.activation),
            "inputs": self.slots["inputs"],
        }
        weights = self.affine(gated.norm, "in_norm_") | self.affine(gated.post_norm, "post_norm_")
        names = {"gate_weight": gated.gate, "in_weight": gated.inputs, "out_weight": gated.out, "scale": gated.scale}
        weights |= {name: self.read(parameter) for name, parameter in names.items()}
        self.add("gated_input", hidden, hidden, params, **weights)

    def take_rows(self, src: str, dst: str, rows: tuple[int, ...], count: int = 1) -> str:
        self.slot(dst, len(rows) // count, self.sizes[src][1])
        self.add("take_rows", src, dst, {"count": count}, order=np.array(rows, np.float32))
        return dst

    def message(self, layer: Message, hidden: str) -> str:
        senders = self.take_rows(hidden, "message_senders", layer.rows)
        messages = self.slot("messages", len(layer.rows), layer.fc.out_features)
        params = {"activation": activation_code("none"), "accumulate": False, "as_blocks": True}
        self.add("linear", senders, messages, params, **self.affine(layer.fc))
        self.block(layer.block, messages)
        self.add("put_rows", messages, hidden, order=np.array(layer.spare, np.float32))
        return hidden

    def merge_rows(self, layer: MergeRows, src: str, dst: str) -> str:
        rows, kind = (layer.side, "pooled") if layer.side else (len(layer.rows) // layer.count, "fixed")
        self.slot(dst, rows, layer.linear.out_features, kind)
        weights = self.affine(layer.linear) | (self.affine(layer.norm, "norm_") if layer.norm else {})
        params = {"layer_norm_eps": layer.norm.eps if layer.norm else 0.0,
                  "activation": activation_code(layer.activation)}  # fmt: skip
        order = None if layer.side else np.array(layer.rows, np.float32)
        self.add("merge_rows", src, dst, params, order=order, **weights)
        return dst

    def attention_pool(self, pool: AttentionPool, src: str, dst: str) -> None:
        probe = self.read(pool.probe).astype(np.float64).reshape(-1)
        query = self.read(pool.query.weight).astype(np.float64) @ probe + self.read(pool.query.bias)
        params = {
            "num_attention_heads": pool.num_attention_heads,
            "activation": activation_code(pool.activation),
            "layer_norm_eps": pool.norm.eps,
        }
        weights = self.affine(pool.kv, "qkv_") | self.affine(pool.norm, "norm2_")
        for name in ("out", "fc1", "fc2"):
            weights |= self.affine(getattr(pool, name), f"{name}_")
        self.add("attention_pool", src, dst, params, query=query.astype(np.float32), **weights)

    def step(self, dst: str, src: str, what: object) -> None:
        rows, cols, kind = self.sizes[src]
        if isinstance(what, Project) and not self.read.has(what.linear.weight):
            return
        if isinstance(what, Pool | AttentionPool):
            rows, kind = 1, "fixed"
        if isinstance(what, FirstRows):
            rows, kind = what.count, "fixed"
        if isinstance(what, PoolPatches):
            rows, kind = what.side, "pooled"
        if isinstance(what, TakeRows):
            self.take_rows(src, dst, what.rows, what.count)
            return
        if isinstance(what, MergeRows):
            self.merge_rows(what, src, dst)
            return
        if isinstance(what, Project):
            cols = what.linear.out_features
        self.slot(dst, rows, cols, kind)
        match what:
            case Pool():
                self.add("pool", src, dst, {"kind": _C.POOLS.index(what.kind), "token": what.token})
            case AttentionPool():
                self.attention_pool(what, src, dst)
            case Project():
                params = {
                    "activation": activation_code(what.activation),
                    "accumulate": what.accumulate,
                    "as_blocks": what.as_blocks,
                }
                self.add("linear", src, dst, params, **self.affine(what.linear))
            case Norm():
                params = {"layer_norm_eps": what.eps, "rms_norm": what.bias is None}
                self.add("norm", src, dst, params, **self.affine(what))
            case Normalize():
                self.add("l2_normalize", src, dst)
            case Softmax():
                self.add("softmax", src, dst)
            case FirstRows():
                self.add("first_rows", src, dst)
            case PoolPatches():
                self.add("pool_patches", src, dst, gain=self.read(what.gain), offset=self.read(what.offset))

    def build(self) -> Compiled:
        hidden = self.stem()
        if self.encoder.stem_norm:
            self.step(hidden, hidden, self.encoder.stem_norm)
        if any(isinstance(layer, Block) and layer.gated_input for layer in self.encoder.layers):
            rows, cols, kind = self.sizes[hidden]
            self.add("copy", hidden, self.slot("inputs", rows, cols, kind))
        for index, layer in enumerate(self.encoder.layers):
            match layer:
                case AddFeatures():
                    self.add("add_features", hidden, hidden)
                case Block():
                    hidden = self.block(layer, hidden)
                case Conformer():
                    hidden = self.conformer(layer, hidden)
                case MergeRows():
                    hidden = self.merge_rows(layer, hidden, f"merged_{index}")
                case Message():
                    hidden = self.message(layer, hidden)
                case _:
                    hidden = self.map_layer(layer, hidden, index)
        for step in self.encoder.steps:
            self.step(step.dst, hidden if step.src == "hidden" else step.src, step.what)
        if context := self.encoder.context:
            src = hidden if context.src == "hidden" else context.src
            for layer in context.layers:
                self.add("context", src, src, {"num_attention_heads": context.num_attention_heads},
                         **self.affine(layer, "kv_"))  # fmt: skip
        # the last hidden state is the last layer's slot, unless a step makes it
        outputs = {"last_hidden_state": hidden} | {name: name for name in self.slots}
        sizes = {name: self.sizes[slot][1] for name, slot in outputs.items()}
        if self.encoder.context:
            outputs |= {name: name for name in ("context", "padded_context")}
        slots = [[n, rows, cols, _C.ROW_KINDS.index(kind)] for n, (rows, cols, kind) in self.sizes.items()]
        return Compiled(self.program, outputs, sizes, slots, self.records, self.gemm)


def compile_encoder(
    encoder: Encoder, reader: Reader, num_threads: int, gemm: str = "own", precision: str = "float32"
) -> Compiled:
    """The program of one encoder.

    Weights are read through `reader` and packed on `num_threads` threads, in one of _C.PRECISIONS.
    """
    return Builder(encoder, reader, num_threads, gemm, precision).build()
