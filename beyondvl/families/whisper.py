"""Whisper: a transformer over 30 seconds of log-mel frames, and a decoder that writes what it hears (Radford et al.,
2023).

The stem is two convolutions along time, the second of stride 2; encoder and decoder are pre-norm. Traps: keys have no
bias; positions of the encoder are stored (sinusoids); the output weights are the embeddings; English-only checkpoints
have one token less and no languages.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ..config import Config
from ..errors import ConfigError
from ..outputs import BatchFeature, check_device, from_numpy
from ..processing.features import MOST_MELS, MOST_WINDOW, FeatureExtractor, hann, mel_filters
from ..spec import Block, Context, Cross, Encoder, Linear, Pool, Project, Ref, Step, ref, replace
from ..stems import PatchStem, TokenStem
from .blocks import ACTIVATIONS, as_picture, bart_block, linear, norm, stacked
from .registry import Family, Head, Processing, ProcessorKind, Speech
from .whisper_words import LANGUAGES, PRECISION, TASKS, WHISPER_TOKENS, WhisperTokenizer, language_code

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
    return stacked([f"{name}.{part}_proj" for part in parts], hidden, hidden, bias=[part != "k" for part in parts])


def block(prefix: str, hidden: int, wide: int, heads: int, activation: str, causal: bool) -> Block:
    """The encoder's, or the decoder's, which is causal and attends to what was heard."""
    qkv = projections(f"{prefix}.self_attn", "qkv", hidden)
    cross = Cross(
        query=linear(f"{prefix}.encoder_attn.q_proj", hidden, hidden),
        out=linear(f"{prefix}.encoder_attn.out_proj", hidden, hidden),
        norm=norm(f"{prefix}.encoder_attn_layer_norm", hidden, EPS),
    )
    layer = bart_block(prefix, qkv, hidden, wide, heads, activation, EPS, causal)
    return replace(layer, cross=cross) if causal else layer


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
    attending = [f"model.decoder.layers.{i}.encoder_attn" for i in range(sizes(config, "decoder")[2])]
    return Encoder(
        hidden_size=hidden,
        stem=conv("conv2", hidden, 2 * positions, 2, position, conv("conv1", mels, 2 * positions, 1, None, None)),
        layers=tuple(block(f"{prefix}.layers.{i}", hidden, wide, heads, activation, False) for i in range(layers)),
        steps=(Step("last_hidden_state", "hidden", norm(f"{prefix}.layer_norm", hidden, EPS)),),
        context=Context(
            "last_hidden_state",
            tuple(projections(name, "kv", hidden) for name in attending),
            sizes(config, "decoder")[3],
        ),
        prepare=as_picture("input_features"),
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


class WhisperFeatureExtractor(FeatureExtractor):
    """`input_features` (B, mels, 3000) of 30 seconds at 16 kHz, filled up with silence or cut; with
    `return_attention_mask` also `attention_mask` (B, 3000)."""

    defaults: ClassVar[dict[str, Any]] = {
        "feature_size": 80, "sampling_rate": 16_000, "hop_length": 160, "chunk_length": 30, "n_fft": 400,
        "dither": 0.0, "padding_value": 0.0, "return_attention_mask": False,
    }  # fmt: skip

    def _prepare(self, config: Config) -> None:
        size = config.integer("n_fft", 400, 2, MOST_WINDOW)
        mels = config.integer("feature_size", 80, 1, MOST_MELS)
        rate = config.integer("sampling_rate", 16_000, 1_000, 768_000)
        config.integer("hop_length", 160, 1, 1 << 16)
        self.n_samples = config.integer("chunk_length", 30, 1, 3600) * rate
        self._check_size("chunk_length", self.n_samples, mels)
        if self.dither or self.padding_value:
            raise ConfigError("preprocessor_config.json: expected neither dither nor a padding_value other than 0")
        self.window, self.filters = hann(size), mel_filters(size // 2 + 1, mels, 0, 8000, rate, "slaney")

    def __call__(
        self,
        raw_speech: Any,
        truncation: bool = True,
        pad_to_multiple_of: int | None = None,
        return_tensors: str | None = None,
        return_attention_mask: bool | None = None,
        padding: str | bool = "max_length",
        max_length: int | None = None,
        sampling_rate: int | None = None,
        do_normalize: bool | None = None,
        device: str | None = "cpu",
    ) -> BatchFeature:
        """`raw_speech`: one sound or a list; `padding` "max_length" (30 s, or `max_length` samples) or "longest";
        `do_normalize`: samples of mean 0 and variance 1 first. Raises AudioError, ValueError."""
        check_device(device or "cpu")
        sounds = self.sounds(raw_speech, sampling_rate)
        padding = getattr(padding, "value", padding)
        if padding not in ("max_length", "longest", True, False, "do_not_pad"):
            raise ValueError(f"padding: found {padding!r}, expected 'max_length' or 'longest'")
        if padding == "longest" or padding is True:  # a frame at least
            sounds = [np.pad(sound, (0, max(0, self.hop_length - len(sound)))) for sound in sounds]
        filled = self.pad(
            {self.input_name: sounds}, padding, self._samples(max_length, self.n_samples), truncation,
            pad_to_multiple_of, True,
        )  # fmt: skip
        samples, masks = filled[self.input_name], filled["attention_mask"]
        if do_normalize:
            samples = [normalised(sound, mask.sum()) for sound, mask in zip(samples, masks, strict=True)]
        features = [self._features(sound) for sound in samples]
        if len({each.shape for each in features}) == 1:
            features = np.stack(features)
        inputs = BatchFeature(input_features=from_numpy(features, return_tensors) if return_tensors else list(features))
        if self.return_attention_mask if return_attention_mask is None else return_attention_mask:
            mask = np.stack(
                [mask[:: self.hop_length][: each.shape[1]] for mask, each in zip(masks, features, strict=True)]
            )
            inputs["attention_mask"] = from_numpy(mask, return_tensors) if return_tensors else list(mask)
        return inputs

    def _features(self, sound: np.ndarray) -> np.ndarray:
        """log10 of the energies, at most 8 below the loudest, brought to about -1 to 1."""
        mel = self._log_mel(sound, self.filters, 1 / np.log(10), mels_first=True)[:, :-1]
        mel = np.maximum(mel, mel.max() - np.float32(8))
        mel += np.float32(4)
        mel *= np.float32(0.25)
        return mel


def normalised(sound: np.ndarray, length: int) -> np.ndarray:
    """Samples of mean 0 and variance 1, by those of the sound itself; what fills it up stays 0."""
    scaled = (sound - sound[:length].mean()) / np.sqrt(sound[:length].var() + 1e-7)
    scaled[length:] = 0
    return scaled.astype(np.float32)


SPEECH = Speech(LANGUAGES, TASKS, language_code, PRECISION)
FAMILY = Family(
    model_type="whisper",
    processing=Processing(
        processor="WhisperProcessor",
        tokenizer="WhisperTokenizer",
        feature_extractor="WhisperFeatureExtractor",
        feature_extractors={"WhisperFeatureExtractor": WhisperFeatureExtractor},
        tokenizers={"WhisperTokenizer": WHISPER_TOKENS},
        tokenizer_classes={"WhisperTokenizer": WhisperTokenizer},
        kind=ProcessorKind(labels=True),
    ),
    towers={},
    classes={},
    heads={
        "WhisperForConditionalGeneration": Head(
            "transcribing", {"audio": audio, "decoder": decoder}, tokens, speech=SPEECH
        )
    },
)
