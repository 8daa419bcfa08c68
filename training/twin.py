"""The torch twin of Beyond VL: the same parts under the same parameter names, to train and to compare with the core.

Sizes: D is hidden_size, K queries a modality. Blocks are pre-norm: x + attention(norm(x)), x + cross(norm(x)), x + ffn(norm(x)).
What each part takes and gives is in docs/MODELS.md.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from beyondvl.config import Config
from beyondvl.families import beyond_vl as family
from beyondvl.families.efficientnet_lite import EPS, lite_encoder
from beyondvl.processing.motion import GRID, LAGS, columns, shifts

FROZEN = 15  # blocks of the picture tower that no training touches


def mixed() -> torch.autocast:
    """Products in bfloat16 where the processor has them: where it has not, torch's are seven times slower than float32."""
    return torch.autocast("cpu", torch.bfloat16, enabled=torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Convolution(nn.Module):
    """A convolution whose weight and batch norm (with the statistics it was trained with) are applied as one."""

    def __init__(self, state: dict[str, Tensor], conv: str, norm: str, stride: int = 1, groups: int = 1):
        super().__init__()
        self.names = {"weight": f"{conv}.weight", "gain": f"{norm}.weight", "offset": f"{norm}.bias"}
        for field, name in self.names.items():
            setattr(self, field, nn.Parameter(state[name].clone()))
        for field in ("running_mean", "running_var"):
            self.register_buffer(field, state[f"{norm}.{field}"].clone())
        self.stride, self.groups = stride, groups

    def forward(self, x: Tensor) -> Tensor:
        scale = self.gain / (self.running_var + EPS).sqrt()
        weight, bias = self.weight * scale[:, None, None, None], self.offset - self.running_mean * scale
        kernel = weight.shape[-1]
        if self.groups > 1:  # torch's depthwise convolutions are faster in float32
            with torch.autocast("cpu", enabled=False):
                return self.slide(x.float(), weight, bias, kernel)
        return F.conv2d(x, weight, bias)

    def slide(self, x: Tensor, weight: Tensor, bias: Tensor, kernel: int) -> Tensor:
        if self.stride > 1:  # TensorFlow's "same": the odd pixel at the bottom and right
            total = [max((-(-n // self.stride) - 1) * self.stride + kernel - n, 0) for n in x.shape[-2:]]
            x = F.pad(x, (total[1] // 2, total[1] - total[1] // 2, total[0] // 2, total[0] - total[0] // 2))
            return F.conv2d(x, weight, bias, self.stride, 0, 1, self.groups)
        return F.conv2d(x, weight, bias, 1, kernel // 2, 1, self.groups)


class Residual(nn.Module):
    def __init__(self, state: dict[str, Tensor], prefix: str, stride: int, groups: int, residual: bool):
        super().__init__()
        self.expand = Convolution(state, f"{prefix}._expand_conv", f"{prefix}._bn0")
        self.depthwise = Convolution(state, f"{prefix}._depthwise_conv", f"{prefix}._bn1", stride, groups)
        self.project = Convolution(state, f"{prefix}._project_conv", f"{prefix}._bn2")
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(F.relu6(self.depthwise(F.relu6(self.expand(x)))))
        return x + y if self.residual else y


class LiteTop(nn.Module):
    """The last two stages of EfficientNet-Lite and its classifier: (B, 289, 120) of the fifth stage to the last map
    (B, 81, 1280) and class scores (B, 1000)."""

    def __init__(self, state: dict[str, Tensor], variant: str = "efficientnet-lite2"):
        super().__init__()
        layers = lite_encoder(Config({"variant": variant}), "").layers
        self.side = layers[FROZEN].size[0]
        self.blocks = nn.ModuleList(
            Residual(state, f"_blocks.{i}", layer.stride, layer.depthwise.out_features, layer.residual)
            for i, layer in enumerate(layers)
            if i >= FROZEN
        )
        self.head = Convolution(state, "_conv_head", "_bn1")
        self.register_buffer("fc_weight", state["_fc.weight"].clone())
        self.register_buffer("fc_bias", state["_fc.bias"].clone())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x.transpose(1, 2).reshape(len(x), -1, self.side, self.side).contiguous(memory_format=torch.channels_last)
        for block in self.blocks:
            x = block(x)
        x = F.relu6(self.head(x)).flatten(2).transpose(1, 2).float()
        with torch.autocast("cpu", enabled=False):
            return x, F.linear(x.mean(1), self.fc_weight, self.fc_bias)

    def state(self) -> dict[str, Tensor]:
        """What was tuned, under the names of the checkpoint."""
        return {
            name: getattr(module, field).detach()
            for module in self.modules()
            if isinstance(module, Convolution)
            for field, name in module.names.items()
        }


class Attention(nn.Module):
    """Multi-head attention of x (B, n, D) over `context` (B, m, D), itself where there is none; `mask` (B, m) is False
    where a row is hidden."""

    def __init__(self, size: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.out_proj = (nn.Linear(size, size) for _ in range(4))

    def forward(self, x: Tensor, context: Tensor | None = None, mask: Tensor | None = None, causal: bool = False):
        context = x if context is None else context
        shape = (len(x), -1, self.heads, x.shape[2] // self.heads)
        q, k, v = (
            layer(rows).view(len(rows), *shape[1:]).transpose(1, 2).float()  # torch's attention is slow in bfloat16
            for layer, rows in ((self.q_proj, x), (self.k_proj, context), (self.v_proj, context))
        )
        if len(k) < len(q):  # one context serves several texts
            k, v = (rows.repeat_interleave(len(q) // len(k), 0) for rows in (k, v))
            mask = None if mask is None else mask.repeat_interleave(len(q) // len(mask), 0)
        with torch.autocast("cpu", enabled=False):
            y = F.scaled_dot_product_attention(q, k, v, None if mask is None else mask[:, None, None], is_causal=causal)
        return self.out_proj(y.transpose(1, 2).reshape(x.shape))


class Block(nn.Module):
    """A pre-norm transformer block; `cross`: it attends to a context too."""

    def __init__(self, size: int, heads: int, inner: int, cross: bool, dropout: float):
        super().__init__()
        self.self_attn, self.self_attn_layer_norm = Attention(size, heads), nn.LayerNorm(size)
        if cross:
            self.encoder_attn, self.encoder_attn_layer_norm = Attention(size, heads), nn.LayerNorm(size)
        self.fc1, self.fc2, self.final_layer_norm = (
            nn.Linear(size, inner), nn.Linear(inner, size), nn.LayerNorm(size),
        )  # fmt: skip
        self.dropout = dropout

    def drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, context: Tensor | None = None, context_mask: Tensor | None = None,
        causal: bool = False,
    ) -> Tensor:  # fmt: skip
        x = x + self.drop(self.self_attn(self.self_attn_layer_norm(x), None, mask, causal))
        if context is not None:
            x = x + self.drop(self.encoder_attn(self.encoder_attn_layer_norm(x), context, context_mask))
        return x + self.drop(self.fc2(F.gelu(self.fc1(self.final_layer_norm(x)))))


def alike(block: Block) -> None:
    """Rows that are alike attend to each other from the start: where embeddings of several inputs are to be compared,
    and where one thing is in several frames."""
    with torch.no_grad():
        block.self_attn.k_proj.weight.copy_(block.self_attn.q_proj.weight)


def spread(position: nn.Embedding, sizes: tuple[int, ...], gain: float = 0.3) -> None:
    """Places along axes: at first each is the sum of a vector for every axis, so that those of one time, line or column
    are alike."""
    if math.prod(sizes) > position.num_embeddings:
        return
    with torch.no_grad():
        grid = torch.zeros(*sizes, position.embedding_dim)
        for axis, size in enumerate(sizes):
            grid += torch.randn(size, *[1] * (len(sizes) - 1 - axis), position.embedding_dim) * gain
        position.weight[: math.prod(sizes)] = grid.flatten(0, -2)


class Rows(nn.Module):
    """What a tower gives (B, n, columns) as the rows (B, n, D) that queries draw from, or that formers read: normed and
    projected; `places`: of those, each row adds the embedding of its place; `layers`, of the sizes of a Stack: the rows
    attend to each other; `joined`: they are normed last. `labels`: one more row for class probabilities."""

    def __init__(
        self, size: int, columns: int, places: int = 0, labels: int = 0, joined: bool = True, layers: tuple = (0, 1, 1),
        dropout: float = 0.0,
    ):  # fmt: skip
        super().__init__()
        count, heads, inner = layers
        self.layers = nn.ModuleList(Block(size, heads, inner, False, dropout) for _ in range(count))
        if columns:
            self.norm, self.projection = nn.LayerNorm(columns), nn.Linear(columns, size)
        if labels:
            self.class_embeddings = nn.Parameter(torch.randn(size, labels) * 0.3)
        if places:
            self.position = nn.Embedding(places, size)
            nn.init.normal_(self.position.weight, std=0.02)
        if joined:
            self.layer_norm = nn.LayerNorm(size)

    def project(self, states: Tensor, dropout: float = 0.0) -> Tensor:
        """(B, n, D); in training whole columns of an item are left out."""
        x = self.norm(states)
        if self.training and dropout:
            x = x * F.dropout(x.new_ones(len(x), 1, x.shape[2]), dropout)
        return self.projection(x)

    def join(self, rows: Tensor) -> Tensor:
        x = rows + self.position.weight[: rows.shape[1]]
        for layer in self.layers:
            x = layer(x)
        return self.layer_norm(x)


class Motion(nn.Module):
    """How things move in a clip: cells (B, frames, cells, D) to a row (B, 1, D); see beyondvl/processing/motion.py."""

    def __init__(self, frames: int, cells: int, size: int):
        super().__init__()
        count = columns(frames, cells, size)
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(count), nn.Linear(count, size), nn.Linear(size, size)
        self.register_buffer("shifts", torch.from_numpy(shifts()), persistent=False)

    def features(self, cells: Tensor) -> Tensor:
        """(B, columns) in numbers of about 1."""
        departures = cells - cells.mean(1, keepdim=True)
        norms = departures.norm(dim=3).flatten(1)
        shares = norms / (norms.mean(1, keepdim=True) + 1e-6)
        what = ((3 * shares).softmax(1)[:, None] @ cells.flatten(1, 2))[:, 0]
        what = what - what.mean(1, keepdim=True)
        parts = [what / (what.std(1, correction=0, keepdim=True) + 1e-6), 2 * (shares - 1)]
        if cells.shape[2] == GRID * GRID:
            whole = (norms * norms).sum(1, keepdim=True) / cells.shape[1] + 1e-6
            for lag in (lag for lag in LAGS if lag < cells.shape[1]):
                alike = (departures[:, :-lag] @ departures[:, lag:].transpose(2, 3)).mean(1).flatten(1)
                parts.append(4 * (alike @ self.shifts) / whole)
        return torch.cat(parts, 1)

    def forward(self, cells: Tensor) -> Tensor:
        with torch.autocast("cpu", enabled=False):
            features = self.features(cells.float())
        return self.fc2(F.gelu(self.fc1(self.norm(features))))[:, None]


class Agreement(nn.Module):
    """How inputs agree with texts, of unit embeddings (B, D) of both: a row (B, 1, D). At first every hidden number is
    about their cosine."""

    def __init__(self, size: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(size, size), nn.Linear(size, size)
        with torch.no_grad():
            self.fc1.weight += torch.randn(size, 1) / size**0.5

    def forward(self, embeds: Tensor, text_embeds: Tensor) -> Tensor:
        product = embeds * text_embeds * embeds.shape[1]
        return self.fc2(F.gelu(self.fc1(product)))[:, None]


class Stack(nn.Module):
    """Blocks and the norm after them."""

    def __init__(self, size: int, layers: int, heads: int, inner: int, cross: bool, dropout: float):
        super().__init__()
        self.layers = nn.ModuleList(Block(size, heads, inner, cross, dropout) for _ in range(layers))
        self.layer_norm = nn.LayerNorm(size)

    def forward(self, x: Tensor, *args, **kwargs) -> Tensor:
        for layer in self.layers:
            x = layer(x, *args, **kwargs)
        return self.layer_norm(x)


MODALITIES = ("image", "video", "audio")
TEXT = len(MODALITIES)


class QFormer(Stack):
    """Learned queries of each modality, and the rows of an instruction, draw from the rows of an input."""

    def __init__(self, queries: int, size: int, layers: int, heads: int, inner: int, dropout: float):
        super().__init__(size, layers, heads, inner, True, dropout)
        self.queries = queries
        self.query_tokens = nn.Parameter(torch.randn(len(MODALITIES) * queries + 1, size) * 0.2)

    def forward(
        self, modality: str, rows: Tensor, rows_mask: Tensor | None = None, text: Tensor | None = None,
        text_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """(B, K, D) of rows (B, n, D) and an instruction (B, L, D); one input may serve several instructions."""
        first = MODALITIES.index(modality) * self.queries
        x = self.query_tokens[first : first + self.queries].expand(len(rows if text is None else text), -1, -1)
        mask = None
        if text is not None:
            x = torch.cat([x, text + self.query_tokens[-1]], 1)
            mask = F.pad(text_mask, (self.queries, 0), value=True)
        return super().forward(x, mask, rows, rows_mask)[:, : self.queries]


class CFormer(Stack):
    """One stream of a class token, each input's embedding and what the queries drew from it, and the text."""

    def __init__(self, size: int, layers: int, heads: int, inner: int, dropout: float):
        super().__init__(size, layers, heads, inner, False, dropout)
        self.class_token = nn.Parameter(torch.randn(size) * 0.02)
        self.token_type = nn.Parameter(torch.randn(TEXT + 1, size) * 0.02)
        alike(self.layers[0])

    def forward(
        self, drawn: dict[str, Tensor], text: Tensor | None = None, text_mask: Tensor | None = None,
        text_embeds: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The stream (B, 1 + n, D) and its mask (B, 1 + n)."""
        parts = [drawn[name] + self.token_type[MODALITIES.index(name)] for name in MODALITIES if name in drawn]
        masks = [torch.ones(part.shape[:2], dtype=torch.bool) for part in parts]
        if text is not None:
            parts.append(torch.cat([text_embeds[:, None].to(text.dtype), text], 1) + self.token_type[TEXT])
            masks.append(F.pad(text_mask, (1, 0), value=True))
        lead = (self.class_token + self.token_type[0]).expand(len(parts[0]), 1, -1)
        mask = torch.cat([torch.ones(len(lead), 1, dtype=torch.bool), *masks], 1)
        return super().forward(torch.cat([lead, *parts], 1), mask), mask


class Decoder(Stack):
    """Writes words about a stream; its output weights are its embeddings."""

    def __init__(self, vocab: int, positions: int, size: int, layers: int, heads: int, inner: int, dropout: float):
        super().__init__(size, layers, heads, inner, True, dropout)
        self.embed_tokens, self.embed_positions = nn.Embedding(vocab, size), nn.Embedding(positions, size)
        for table in (self.embed_tokens, self.embed_positions):
            nn.init.normal_(table.weight, std=0.02 * math.sqrt(2))

    def hidden(self, ids: Tensor, stream: Tensor, stream_mask: Tensor | None = None) -> Tensor:
        """States (B, L, D) after ids (B, L)."""
        x = self.embed_tokens(ids) + self.embed_positions.weight[: ids.shape[1]]
        x = F.dropout(x, self.layers[0].dropout, self.training)
        return super().forward(x, None, stream, stream_mask, causal=True)

    def forward(self, ids: Tensor, stream: Tensor, stream_mask: Tensor | None = None) -> Tensor:
        """Logits (B, L, vocabulary) of the token after each of ids (B, L)."""
        return F.linear(self.hidden(ids, stream, stream_mask), self.embed_tokens.weight)


class VisionHead(nn.Module):
    """m / |m| + C p: an MLP on the mean of the rows, and a vector for each class."""

    def __init__(self, size: int, columns: int, inner: int, labels: int, dropout: float):
        super().__init__()
        self.norm, self.fc1, self.fc2 = nn.LayerNorm(columns), nn.Linear(columns, inner), nn.Linear(inner, size)
        if labels:
            self.class_embeddings = nn.Parameter(torch.zeros(size, labels))
        self.dropout = dropout

    def forward(self, states: Tensor, probabilities: Tensor | None) -> Tensor:
        """Unit embeddings (B, D); in training each of the two parts is now and then left out."""
        x = F.dropout(self.norm(states.mean(1)), 0.4 * self.dropout, self.training)
        x = F.dropout(F.gelu(self.fc1(x)), self.dropout, self.training)
        learned = F.normalize(self.fc2(x).float(), dim=-1)
        if probabilities is None:
            return learned
        named = F.linear(probabilities, self.class_embeddings).float()
        if self.training:
            kept = torch.rand(len(x), 1)
            learned, named = learned * (kept > 0.1), named * (kept < 0.9)
        return F.normalize(learned + named, dim=-1)


class BeyondVL(nn.Module):
    """What is trained here, over the states that the towers of a config.json give."""

    def __init__(self, values: dict, dropout: float = 0.1):
        super().__init__()
        config = Config(values)
        size, queries = family.sizes(config)
        towers = {name: family.tower(config, name) for name in ("text", "vision", "audio")}
        widths = {name: family.width(encoder) for name, encoder in towers.items()}
        places, labels = family.places(towers["vision"]), family.classes(towers["vision"])
        order, self.cell = family.cells(places)
        self.register_buffer("order", torch.tensor(order), persistent=False)
        former = {
            name: (size, len(layers), family.heads(config), layers[0].ffn.fc1.out_features if layers else 1)
            for name in ("image_rows", "video_rows", "qformer", "cformer", "decoder")
            for layers in [family.blocks(config, name, cross=False)]
        }
        self.vision_head = VisionHead(size, widths["vision"], family.head_size(config), labels, 0.5)
        self.text_projection = nn.Linear(widths["text"], size)
        self.text_rows = Rows(size, widths["text"], joined=False)
        own = {name: {"layers": former[name][1:], "dropout": dropout} for name in ("image_rows", "video_rows")}
        self.image_rows = Rows(size, widths["vision"], places + bool(labels), labels, **own["image_rows"])
        frames = family.num_frames(config)
        self.video_rows = Rows(size, 0, (frames + 1) * places // self.cell, **own["video_rows"])
        side, grid = math.isqrt(places), math.isqrt(places // self.cell)
        spread(self.image_rows.position, (side, side))
        spread(self.video_rows.position, (frames + 1, grid, grid))
        for block in self.video_rows.layers:
            alike(block)
        self.motion = Motion(frames, places // self.cell, size)
        self.agreement = Agreement(size)
        self.audio_rows = Rows(size, widths["audio"] * (len(towers["audio"].layers) + 1))
        self.audio_head = nn.Linear(size, size)
        self.qformer = QFormer(queries, *former["qformer"], dropout)
        self.cformer = CFormer(*former["cformer"], dropout)
        self.decoder = Decoder(
            len(family.vocabulary(config)), family.decoder_positions(config), *former["decoder"], dropout
        )
        self.query_projection, self.fused_projection = nn.Linear(size, size), nn.Linear(size, size)
        self.matching_head = nn.Linear(size, 2)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(20.0)))

    def text(self, states: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings (B, D) and rows (B, L, D) of a text tower's states (B, L, columns)."""
        mean = F.normalize((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)
        return F.normalize(self.text_projection(mean), dim=-1), self.text_rows.project(states)

    def image(self, states: Tensor, logits: Tensor | None, dropout: float = 0.0) -> tuple[Tensor, Tensor, Tensor]:
        """Unit embeddings (B, D), rows (B, places + 1, D) to draw from, and the map's own (B, places, D)."""
        probabilities = None if logits is None else logits.softmax(-1)
        rows = self.image_rows.project(states, dropout)
        return self.vision_head(states, probabilities), self.placed(rows, probabilities), rows

    def placed(self, rows: Tensor, probabilities: Tensor | None) -> Tensor:
        """A map's rows with their places, after which comes the row of its classes."""
        if probabilities is not None:
            named = F.linear(probabilities, self.image_rows.class_embeddings)
            rows = torch.cat([rows, named[:, None]], 1)
        return self.image_rows.join(rows)

    def video(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (B, (1 + frames) * cells, D) to draw from, and one (B, 1, D) of how things move, of the rows (B, frames,
        places, D) of the frames."""
        cells = rows[:, :, self.order].unflatten(2, (-1, self.cell)).mean(3)
        return self.moving(cells), self.motion(cells)

    def moving(self, cells: Tensor) -> Tensor:
        """Rows of cells (B, frames, cells, D): what is there all the time, and how each frame departs from it, in units
        of how far they depart in all: where something moves, they do so more than elsewhere."""
        cells = cells.float()
        scene = cells.mean(1, keepdim=True)
        departures = cells - scene
        strength, least = (x.norm(dim=3, keepdim=True).mean((1, 2), keepdim=True) for x in (departures, scene))
        departures = departures * (0.5 * math.sqrt(cells.shape[3]) / (strength + 0.05 * least))
        return self.video_rows.join(torch.cat([scene, departures], 1).flatten(1, 2))

    def audio(self, states: Tensor, mask: Tensor, dropout: float = 0.0) -> tuple[Tensor, Tensor]:
        """Embeddings (B, D), not normalised, and rows (B, n, D) to draw from, of states (B, n, columns)."""
        rows = self.audio_rows.layer_norm(self.audio_rows.project(states, dropout))
        mean = (rows * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        return self.audio_head(mean), rows

    def drawn(self, modality: str, rows: Tensor, *args: Tensor | None) -> tuple[Tensor, Tensor]:
        """What the queries drew (B, K, D), and what that adds to the embedding (B, D)."""
        queries = self.qformer(modality, rows, *args)
        return queries, self.query_projection(queries).mean(1)

    def matched(self, fused: Tensor, embeds: list[Tensor], text_embeds: Tensor) -> Tensor:
        """Whether inputs of some embeddings (B, D) and a text match (B, 2), by the class token (B, D) of the stream."""
        cosines = torch.stack([(each * text_embeds).sum(1) for each in embeds]).mean(0)
        logits = self.matching_head(fused).float()
        return torch.stack([logits[:, 0], logits[:, 1] + self.logit_scale.exp() * cosines], 1)
