"""AST against transformers: hidden states, logits, labels, every level and precision."""

from __future__ import annotations

import json

import numpy as np
import pytest
import sounds
from parity import close, unit_gain, worst_cosine

import beyondvl as bvl

torch = pytest.importorskip("torch", reason="parity needs torch and transformers: pip install 'beyondvl[test]'")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install 'beyondvl[test]'")

LABELS = ["a cat", "rain", "speech", "engine"]
SHAPES = {
    "base": {"num_hidden_layers": 2},
    "odd": {"hidden_size": 54, "num_attention_heads": 3, "intermediate_size": 70, "num_hidden_layers": 3, "max_length": 61,
            "num_mel_bins": 23, "patch_size": 7, "frequency_stride": 5, "time_stride": 6, "qkv_bias": False,
            "hidden_act": "gelu_pytorch_tanh"},
}  # fmt: skip
_made: dict = {}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, reference, input_values) of a shape."""

    def make(shape):
        if shape not in _made:
            torch.manual_seed(3)
            config = transformers.ASTConfig(**SHAPES[shape], id2label=dict(enumerate(LABELS)),
                                            label2id={name: i for i, name in enumerate(LABELS)})  # fmt: skip
            model = transformers.ASTForAudioClassification(config).eval()
            unit_gain(model, gain=1.3, tables=0.4, bias=0.05, table_names=("token", "position"))
            folder = tmp_path_factory.mktemp("ast")
            model.save_pretrained(folder)
            extractor = transformers.ASTFeatureExtractor(max_length=config.max_length, num_mel_bins=config.num_mel_bins)
            extractor.save_pretrained(folder)
            size = (config.max_length, config.num_mel_bins)
            coarse = torch.nn.functional.interpolate(2 * torch.randn(4, 1, 5, 4), size=size, mode="bilinear")[:, 0]
            _made[shape] = folder, model, coarse + 0.5 * torch.randn(4, *size)
        return _made[shape]

    return make


def test_outputs(isa, made):
    check_outputs(made, "odd")


def test_outputs_at_real_widths(made):
    check_outputs(made, "base")


def check_outputs(made, shape):
    folder, reference, values = made(shape)
    model = bvl.AutoModel.from_pretrained(folder, strict=True)
    assert type(model).__name__ == "ASTForAudioClassification" and model.labels == LABELS
    with torch.no_grad():
        logits = reference(values).logits
        states = reference.audio_spectrogram_transformer(values)
    close(model(input_values=values).logits, logits)
    assert logits.std(0).min() > 0.05
    out = bvl.ASTModel.from_pretrained(folder)(input_values=values)
    close(out.last_hidden_state, states.last_hidden_state)
    close(out.pooler_output, states.pooler_output)


@pytest.mark.parametrize("precision", ["bfloat16", "int8"])
def test_precisions(isa, made, precision):
    folder, _, values = made("odd")
    exact = bvl.ASTModel.from_pretrained(folder)(input_values=values.numpy()).pooler_output
    model = bvl.ASTModel.from_pretrained(folder, dtype=precision, num_threads=2)
    found = model(input_values=values.numpy()).pooler_output
    assert worst_cosine(found, exact) >= {"bfloat16": 0.9995, "int8": 0.995}[precision]
    alone = [model(input_values=values[i : i + 1].numpy()).pooler_output[0] for i in range(len(values))]
    np.testing.assert_array_equal(np.stack(alone), found)


@pytest.mark.parametrize("part", ["distillation_token", "position_embeddings", "classifier.layernorm.weight"])
def test_a_zeroed_part_is_noticed(made, tmp_path, part):
    folder, reference, values = made("odd")
    other = transformers.ASTForAudioClassification(reference.config)
    other.load_state_dict({n: torch.zeros_like(p) if part in n else p for n, p in reference.state_dict().items()})
    other.save_pretrained(tmp_path)
    found, whole = (bvl.AutoModel.from_pretrained(f)(input_values=values).logits for f in (tmp_path, folder))
    assert (found - whole).abs().max() > 1e-2


def test_labels(made, tmp_path):
    """The pipeline as transformers' own, on a real extractor and a sound of another rate."""
    folder, reference, _ = made("base")
    sound = sounds.tone(16_000, 3.0, 500.0)
    theirs = transformers.pipeline("audio-classification", model=reference,
                                   feature_extractor=transformers.ASTFeatureExtractor.from_pretrained(folder))  # fmt: skip
    ours = bvl.pipeline("audio-classification", folder)
    wanted, found = theirs(sound, top_k=3), ours((sound, 16_000), top_k=3)
    assert [row["label"] for row in found] == [row["label"] for row in wanted]
    np.testing.assert_allclose([row["score"] for row in found], [row["score"] for row in wanted], atol=1e-4)
    several = ours([(sound, 16_000), (sounds.tone(44_100, 1.0), 44_100)], top_k=None)
    assert [len(rows) for rows in several] == [4, 4]
    np.testing.assert_allclose(sum(row["score"] for row in several[1]), 1, atol=1e-6)
    assert bvl.ASTModel.from_pretrained(folder).encode([(sound, 16_000)]).shape == (1, 768)


def test_what_does_not_fit(made, tmp_path):
    folder, _, values = made("odd")
    model = bvl.AutoModel.from_pretrained(folder)
    for given, message in (
        (values[:, 1:], r"input_values: found shape \(4, 60, 23\), expected \(B, 61, 23\)"),
        (values[0], r"input_values: found shape \(61, 23\)"),
        (values.int(), "input_values: found dtype int32, expected floats"),
    ):
        with pytest.raises(ValueError, match=message):
            model(input_values=given)
    with pytest.raises(ValueError, match="expected one that classifies sounds"):
        bvl.pipeline("audio-classification")("a.wav")
    config = json.loads((folder / "config.json").read_text())
    for change, message in (
        ({"patch_size": 40}, "patch_size 40 is larger"),
        ({"num_attention_heads": 4}, "multiple of 4"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            bvl.AutoModel.from_pretrained(tmp_path)
