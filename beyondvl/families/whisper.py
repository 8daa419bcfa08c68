"""Whisper: a transformer over 30 seconds of log-mel frames, and a decoder that writes what it hears (Radford et al.,
2023).

The stem is two convolutions along time, the second of stride 2; encoder and decoder are pre-norm. Traps: keys have no
bias; positions of the encoder are stored (sinusoids); the output weights are the embeddings; English-only checkpoints
have one token less and no languages.
"""

from __future__ import annotations

from ..config import Config
from ..errors import ConfigError
from ..spec import (
    Block,
    Context,
    Cross,
    Encoder,
    Linear,
    PatchStem,
    Pool,
    Project,
    Ref,
    Step,
    TokenStem,
    ref,
    replace,
)
from .blocks import ACTIVATIONS, bart_block, linear, norm
from .registry import Family, Head

EPS = 1e-5
END = 50256  # the class's own default for the ids that begin, end and fill up


def sizes(config: Config, side: str) -> tuple[int, int, int, int, str]:
    """d_model, feed-forward size, layers, heads, activation of "encoder" or "decoder"."""
    hidden = config.integer("d_model", 384, 1, 1 << 16)
    heads = config.integer(f"{side}_attention_heads", 6, 1, 1024)
    if hidden % heads:
        raise ConfigError(f"config.json: d_model {hidden} is not a multiple of {heads} heads")
    wide, layers = config.integer(f"{side}_ffn_dim", 1536, 1, 1 << 18), config.integer(f"{side}_layers", 4, 1, 1024)
    return hidden, wide, layers, heads, config.choice("activation_function", "gelu", ACTIVATIONS)


def projections(name: str, parts: str, hidden: int) -> Linear:
    """Some of q, k and v as one linear; keys have no bias."""
    weights = tuple(f"{name}.{part}_proj.weight" for part in parts)
    biases = tuple("" if part == "k" else f"{name}.{part}_proj.bias" for part in parts)
    rows = len(parts) * hidden
    return Linear(ref(weights, rows, hidden), ref(biases, rows))


def block(prefix: str, hidden: int, wide: int, heads: int, activation: str, causal: bool) -> Block:
    """The encoder's, or the decoder's, which is causal and attends to what was heard."""
    qkv = projections(f"{prefix}.self_attn", "qkv", hidden)
    cross = Cross(
        query=linear(f"{prefix}.encoder_attn.q_proj", hidden, hidden),
        out=linear(f"{prefix}.encoder_attn.out_proj", hidden, hidden),
        norm=norm(f"{prefix}.encoder_attn_layer_norm", hidden, EPS),
    )
    found = bart_block(prefix, qkv, hidden, wide, heads, activation, EPS, causal)
    return replace(found, cross=cross) if causal else found


def audio(config: Config) -> Encoder:
    hidden, wide, layers, heads, activation = sizes(config, "encoder")
    mels = config.integer("num_mel_bins", 80, 1, 1 << 12)
    positions = config.integer("max_source_positions", 1500, 1, 1 << 16)
    prefix = "model.encoder"

    def conv(name: str, columns: int, frames: int, stride: int, position: Ref | None, source: PatchStem | None):
        """A convolution of three frames along time."""
        return PatchStem(
            weight=ref(f"{prefix}.{name}.weight", hidden, 1, 3, columns, stored_as="time"),
            bias=ref(f"{prefix}.{name}.bias", hidden),
            class_token=None,
            position=position,
            size=(frames, columns),
            stride=(stride, 1),
            channels=1,
            padding=(1, 0),
            activation="gelu",
            source=source,
        )

    position = ref(f"{prefix}.embed_positions.weight", positions, hidden)
    heard = [f"model.decoder.layers.{i}.encoder_attn" for i in range(sizes(config, "decoder")[2])]
    return Encoder(
        hidden_size=hidden,
        stem=conv("conv2", hidden, 2 * positions, 2, position, conv("conv1", mels, 2 * positions, 1, None, None)),
        layers=tuple(block(f"{prefix}.layers.{i}", hidden, wide, heads, activation, False) for i in range(layers)),
        steps=(Step("last_hidden_state", "hidden", norm(f"{prefix}.layer_norm", hidden, EPS)),),
        context=Context(
            "last_hidden_state",
            tuple(projections(name, "kv", hidden) for name in heard),
            sizes(config, "decoder")[3],
        ),
    )


def decoder(config: Config) -> Encoder:
    hidden, wide, layers, heads, activation = sizes(config, "decoder")
    vocab = config.integer("vocab_size", 51865, 1, 1 << 20)
    prefix, words = "model.decoder", "model.decoder.embed_tokens.weight"
    return Encoder(
        hidden_size=hidden,
        stem=TokenStem(
            word=ref(words, vocab, hidden),
            position=ref(
                f"{prefix}.embed_positions.weight", config.integer("max_target_positions", 448, 1, 1 << 16), hidden
            ),
        ),
        layers=tuple(block(f"{prefix}.layers.{i}", hidden, wide, heads, activation, True) for i in range(layers)),
        steps=(
            Step("last_hidden_state", "hidden", norm(f"{prefix}.layer_norm", hidden, EPS)),
            Step(
                "logits",
                "last_hidden_state",
                Project(Linear(ref("proj_out.weight", vocab, hidden, tied=words)), as_blocks=True),
            ),
            Step("next_logits", "logits", Pool("last")),
        ),
    )


def tokens(config: Config) -> dict[str, int]:
    """Ids that generation begins, ends and fills up with."""
    vocab = config.integer("vocab_size", 51865, 1, 1 << 20)
    defaults = {"decoder_start_token_id": 50257, "eos_token_id": END, "pad_token_id": END}
    return {name: config.integer(name, default, 0, vocab - 1) for name, default in defaults.items()}


FAMILY = Family(
    model_type="whisper",
    towers={},
    classes={},
    heads={"WhisperForConditionalGeneration": Head("transcribing", {"audio": audio, "decoder": decoder}, tokens)},
)
