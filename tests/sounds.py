"""CLAP with small and real shapes, and sounds to give it."""

from __future__ import annotations

import json
from fractions import Fraction

import numpy as np
from parity import unit_gain

TEXT = {"vocab_size": 400, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3,
        "intermediate_size": 80, "max_position_embeddings": 40}  # fmt: skip
SMALL = {"spec_size": 64, "num_mel_bins": 16, "window_size": 4, "patch_embeds_hidden_size": 16, "hidden_size": 64,
         "depths": [2, 2, 2], "num_attention_heads": [2, 4, 8]}  # fmt: skip
# windows of 5 shifted by 2, head sizes 6 and 12, three parts out of four used at the end, no biases of q, k, v
ODD = {"spec_size": 80, "num_mel_bins": 20, "window_size": 5, "patch_embeds_hidden_size": 12, "hidden_size": 48,
       "depths": [3, 1, 2], "num_attention_heads": [2, 2, 4], "qkv_bias": False, "mlp_ratio": 2.5,
       "enable_patch_layer_norm": False, "hidden_act": "relu"}  # fmt: skip
REAL = {"depths": [2, 2, 2, 2]}
SHAPES = {"small": SMALL, "odd": ODD, "real": REAL, "thin": {"depths": [1, 1, 1, 1]}}


def build(shape: str, fused: bool, seed: int = 0):
    """A ClapModel of transformers whose weights and buffers matter."""
    import torch
    import transformers

    torch.manual_seed(seed)
    audio = SHAPES[shape] | {"enable_fusion": fused, "fusion_type": "aff_2d" if fused else None}
    config = transformers.ClapConfig(text_config=TEXT, audio_config=audio, projection_dim=40)
    model = transformers.ClapModel(config).eval()
    unit_gain(model, gain=1.3, tables=0.7, bias=0.1, table_names=("embeddings", "bias_table"))
    with torch.no_grad():
        for name, buffer in model.named_buffers():
            outer = "audio_encoder.batch_norm" in name  # sees decibels
            if name.endswith("running_mean"):
                buffer.copy_(torch.randn_like(buffer) * (4 if outer else 0.1) - (20 if outer else 0))
            if name.endswith("running_var"):
                buffer.copy_(torch.rand_like(buffer) * (90 if outer else 1) + (60 if outer else 0.5))
        model.logit_scale_a.fill_(1.2)
        model.logit_scale_t.fill_(0.4)
    return model


def inputs(
    shape: str, fused: bool, batch: int = 3, frames: int | None = None, seed: int = 0, tilt: float = 9
) -> dict[str, np.ndarray]:
    """Texts with padding, and spectrograms that differ in the large and the small, by `tilt` in which bands are loud."""
    rng = np.random.default_rng(seed)
    audio = {"spec_size": 256, "num_mel_bins": 64} | SHAPES[shape]
    mels = audio["num_mel_bins"]
    frames = frames or audio["spec_size"] ** 2 // mels - 23
    coarse = rng.normal(size=(batch, 4 if fused else 1, 6, 4)) * 12 + rng.normal(size=(batch, 1, 1, 4)) * tilt - 25
    t, f = (np.arange(n) * m // n for n, m in ((frames, 6), (mels, 4)))
    features = coarse[:, :, t][:, :, :, f] + rng.normal(size=(batch, 4 if fused else 1, frames, mels)) * 5
    ids = rng.integers(3, 390, (batch, 9))
    ids[:, 0], ids[:, -1] = 0, 2
    mask = np.ones_like(ids)
    ids[1, 5:], mask[1, 5:] = 1, 0
    longer = np.arange(batch)[:, None] % 2 == 0
    return {"input_ids": ids, "attention_mask": mask, "input_features": features.astype(np.float32),
            "is_longer": longer}  # fmt: skip


def tone(rate: int, seconds: float, hertz: float = 440.0, channels: int = 1) -> np.ndarray:
    """A swelling tone with overtones, float32 [n] or [n, channels]."""
    t = np.arange(int(rate * seconds)) / rate
    wave = (0.3 + 0.2 * np.sin(2 * np.pi * t)) * sum(np.sin(2 * np.pi * hertz * k * t) / k for k in (1, 2, 3))
    wave = wave.astype(np.float32)
    return wave if channels == 1 else np.stack([wave * (0.5 + c) for c in range(channels)], 1) / channels


def tokenizer(folder) -> None:
    """A RoBERTa's files of 400 tokens: bytes, a few merges."""
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = ["<s>", "<pad>", "</s>", "<unk>", *sorted(ByteLevel.alphabet()), "at", "cat", "Ġa", "he", "Ġcat"]
    vocab = {token: i for i, token in enumerate([*tokens, "<mask>"])}
    (folder / "vocab.json").write_text(json.dumps(vocab))
    (folder / "merges.txt").write_text("#version: 0.2\na t\nc at\nĠ a\nh e\nĠ cat\n")
    settings = {"tokenizer_class": "RobertaTokenizer", "model_max_length": 38}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def write_compressed(path, sound, rate, codec="aac", options=None):
    """Stereo sound in what FFmpeg writes by that name."""
    import av

    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream(codec, rate=rate, layout="stereo")
        frame = av.AudioFrame.from_ndarray(np.stack([sound, sound]), format="fltp", layout="stereo")
        frame.sample_rate, frame.pts, frame.time_base = rate, 0, Fraction(1, rate)
        resampler = av.AudioResampler(format=stream.format, layout="stereo", rate=rate)
        for part in (*resampler.resample(frame), *resampler.resample(None)):
            container.mux(stream.encode(part))
        container.mux(stream.encode())
    return path
