"""Sounds: features equal to transformers', files of every kind, what is said of bad ones, one front door."""

from __future__ import annotations

import io
import json
import struct
import sys
import time

import numpy as np
import pytest
import refusals
import sounds

import beyondvl as bvl
import reference
from beyondvl import _C
from beyondvl.cli import main
from beyondvl.errors import AudioError
from beyondvl.processing import features

soundfile = pytest.importorskip("soundfile", reason="sound files need soundfile: pip install 'beyondvl[audio]'")
soxr = pytest.importorskip("soxr", reason="other rates need soxr: pip install 'beyondvl[audio]'")


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers", reason="parity needs transformers: pip install 'beyondvl[test]'")


# ---- the core's spectrograms


@pytest.mark.parametrize("length,frame,hop", [(400, 400, 160), (1024, 1024, 480), (512, 400, 160), (30, 30, 7),
                                              (77, 50, 13), (97, 97, 10), (2, 2, 1), (3, 1, 2)])  # fmt: skip
@pytest.mark.parametrize("kaldi,amplitudes", [(False, False), (True, False), (True, True)])
def test_log_mel(isa, rng, length, frame, hop, kaldi, amplitudes):
    """Against NumPy's transform, in double precision: a loud tone above quiet noise, ends mirrored."""
    sound = (1e-4 * rng.normal(size=2 * frame + 333)).astype(np.float32)
    sound += np.sin(np.arange(sound.size) * 0.7).astype(np.float32)
    window, filters = rng.uniform(0.1, 1, frame), np.ascontiguousarray(rng.uniform(0, 1, (length // 2 + 1, 5)))
    filters[:, 1] = 0
    filters[: length // 4, 2] = 0
    emphasis = 0.97 if kaldi else 0.0
    floor = 1e-3 if amplitudes else 1e-10
    expected = reference.log_mel(
        sound, window, filters, length, hop, not kaldi, kaldi, emphasis, floor, 2.5, amplitudes
    )
    for threads in (1, 3):
        for mels_first in (False, True):
            found = _C.log_mel(sound, window, filters, length, hop, not kaldi, mels_first, kaldi, amplitudes, emphasis, floor,
                               2.5, threads)  # fmt: skip
            np.testing.assert_allclose(found.T if mels_first else found, expected, atol=2e-5)


def test_levels_give_the_same_bits(rng):
    sound = rng.normal(size=5000).astype(np.float32)
    found = []
    for isa in _C.usable_isas():
        _C.set_isa(isa)
        found.append(bvl.WhisperFeatureExtractor()(sound, sampling_rate=16000, return_tensors="np").input_features)
    _C.set_isa()
    for other in found[1:]:
        np.testing.assert_array_equal(other, found[0])


def test_what_the_core_refuses(rng):
    sound, window, filters = np.ones(100, np.float32), np.ones(10), np.ones((6, 3))

    def run(sound=sound, window=window, filters=filters, length=10, hop=5, floor=1e-10, center=True):
        return _C.log_mel(sound, window, filters, length, hop, center, False, False, False, 0.0, floor, 1.0, 2)

    assert run().shape == (21, 3)
    for change, message in (
        ({"sound": sound.astype(np.float64)}, "sound: found dtype float64"),
        ({"sound": np.zeros(0, np.float32)}, "a sound of 0 samples"),
        ({"sound": sound[:9], "center": False}, "a sound of 9 samples, expected at least a frame, 10"),
        ({"filters": np.ones((5, 3))}, "filters: found 5 bins, expected 6"),
        ({"filters": np.ones((6, 0))}, "0 filters"),
        ({"hop": 0}, "0 apart"),
        ({"window": np.ones(11)}, "frames of 11"),
        ({"length": 1 << 20, "filters": np.ones(((1 << 19) + 1, 1))}, "transforms of 1048576"),
        ({"floor": 0.0}, "floor: found 0"),
    ):
        with pytest.raises(ValueError, match=message):
            run(**change)
    live = _C.alloc_live()
    for n in (1, 2):
        _C.alloc_fail_at(n)
        with pytest.raises(MemoryError):
            run()
        _C.alloc_fail_at(0)
    assert _C.alloc_live() == live


# ---- extractors


def speech(rate: int, seconds: float) -> np.ndarray:
    """Noise whose loudness and colour change, float32."""
    rng = np.random.default_rng(5)
    noise = rng.normal(size=int(rate * seconds)).cumsum() * 0.01
    t = np.arange(noise.size) / rate
    return (np.sin(noise * 9) * np.abs(np.sin(3 * t)) ** 3 * 0.4 + 1e-4 * rng.normal(size=noise.size)).astype(
        np.float32
    )


@pytest.mark.parametrize("truncation", ["fusion", "rand_trunc"])
@pytest.mark.parametrize("padding", ["repeatpad", "repeat", "pad"])
@pytest.mark.parametrize("seconds", [0.01, 1.7, 10.0, 10.002, 14.3, 33.0])
def test_clap_features(transformers, truncation, padding, seconds):
    theirs = transformers.ClapFeatureExtractor(truncation=truncation, padding=padding)
    ours = bvl.ClapFeatureExtractor(truncation=truncation, padding=padding)
    sound = speech(48_000, seconds)
    np.random.seed(11)
    expected = theirs(sound, sampling_rate=48_000, return_tensors="np")
    found = ours(sound, sampling_rate=48_000, return_tensors="np", seed=11)
    assert found["input_features"].dtype == np.float32
    np.testing.assert_allclose(found["input_features"], expected["input_features"], atol=1e-4)
    np.testing.assert_array_equal(found["is_longer"], expected["is_longer"])


def test_clap_is_deterministic():
    """Whatever its neighbours are, and however often; the seed draws other crops."""
    sound = speech(48_000, 21.0)
    for truncation in ("fusion", "rand_trunc"):
        extract = bvl.ClapFeatureExtractor(truncation=truncation)
        first = extract(sound, sampling_rate=48_000, return_tensors="np")
        batch = extract([sound[:9000], sound], sampling_rate=48_000, return_tensors="np")
        short = extract(sound[:9000], sampling_rate=48_000, return_tensors="np")
        for name in first:
            np.testing.assert_array_equal(batch[name], np.concatenate([short[name], first[name]]))
        drawn = [extract(sound, sampling_rate=48_000, seed=s, return_tensors="np").input_features for s in (1, 1, 2)]
        np.testing.assert_array_equal(drawn[0], drawn[1])
        assert np.abs(drawn[0] - drawn[2]).max() > 1


def test_whisper_features(transformers):
    theirs, ours = transformers.WhisperFeatureExtractor(), bvl.WhisperFeatureExtractor()
    batch = [speech(16_000, 3.2), speech(16_000, 31.0), np.zeros(100, np.float32)]
    for settings in ({}, {"return_attention_mask": True}, {"max_length": 16_000 * 4}, {"padding": "longest"}):
        expected = theirs(batch, sampling_rate=16_000, return_tensors="np", **settings)
        found = ours(batch, sampling_rate=16_000, return_tensors="np", **settings)
        assert set(found) == set(expected)
        np.testing.assert_allclose(found["input_features"], expected["input_features"], atol=1e-4)
        if "attention_mask" in expected:
            np.testing.assert_array_equal(found["attention_mask"], expected["attention_mask"])


def test_ast_features(transformers):
    for settings in ({}, {"num_mel_bins": 64, "max_length": 200}, {"do_normalize": False}):
        theirs, ours = transformers.ASTFeatureExtractor(**settings), bvl.ASTFeatureExtractor(**settings)
        batch = [speech(16_000, 3.2), speech(16_000, 12.0)]
        expected = theirs(batch, sampling_rate=16_000, return_tensors="np")
        found = ours(batch, sampling_rate=16_000, return_tensors="np")
        np.testing.assert_allclose(found["input_values"], expected["input_values"], atol=1e-4)


@pytest.mark.parametrize("scale,norm", [("htk", None), ("slaney", "slaney"), ("kaldi", None)])
def test_mel_filters(transformers, scale, norm):
    from transformers.audio_utils import mel_filter_bank

    for bins, count, low, high, rate in (
        (513, 64, 0, 14_000, 48_000),
        (257, 128, 20, 8000, 16_000),
        (40, 9, 100, 900, 2001),
    ):
        expected = mel_filter_bank(bins, count, low, high, rate, norm=norm, mel_scale=scale,
                                   triangularize_in_mel_space=scale == "kaldi")  # fmt: skip
        np.testing.assert_allclose(features.mel_filters(bins, count, low, high, rate, scale), expected, atol=1e-12)


@pytest.mark.parametrize(
    "cls,fields,message",
    [
        ("Clap", {"truncation": "fuse"}, "truncation: found 'fuse'"),
        ("Clap", {"padding": "zeros"}, "padding: found 'zeros'"),
        ("Clap", {"fft_window_size": 1}, "fft_window_size: found 1"),
        ("Clap", {"frequency_max": -1}, "frequency_max: found -1"),
        ("Whisper", {"dither": 0.1}, "neither dither"),
        ("AST", {"std": 0}, "std: found 0"),
        ("AST", {"do_normalize": "false"}, "do_normalize: found 'false'"),
    ],
)
def test_extractors_that_cannot_be(cls, fields, message):
    with pytest.raises(ValueError, match=message):
        getattr(bvl, f"{cls}FeatureExtractor")(**fields)


def test_short_and_wrong_sounds(transformers):
    """Shorter than a frame: filled up; lengths that make no sense, and arrays that cannot be several sounds: refused."""
    sound = speech(16_000, 1.0)
    found = bvl.ASTFeatureExtractor()(sound[:300], sampling_rate=16_000, return_tensors="np").input_values
    assert np.isfinite(found).all()
    assert bvl.ASTFeatureExtractor(mean=None).mean == -4.2677393
    whisper = bvl.WhisperFeatureExtractor()
    assert whisper(sound[:9], sampling_rate=16_000, padding="longest", return_tensors="np").input_features.shape[2] == 1
    clap = bvl.ClapFeatureExtractor()
    for extract in (whisper, clap):
        for length in (0, -5, 480.0, True):
            with pytest.raises(ValueError, match=f"max_length: found {length}"):
                extract(sound, sampling_rate=16_000, max_length=length)
        with pytest.raises(AudioError, match=r"array of shape \(300, 2\): expected \(B, n\)"):
            extract(np.zeros((300, 2), np.float32), sampling_rate=16_000)
    assert len(clap(np.zeros((2, 300), np.float32), sampling_rate=48_000)["input_features"]) == 2


# ---- files

KINDS = [("wav", "PCM_16"), ("wav", "PCM_U8"), ("wav", "FLOAT"), ("flac", "PCM_16"), ("ogg", "VORBIS"),
         ("mp3", "MPEG_LAYER_III")]  # fmt: skip
CLOSE = {"VORBIS": 0.999, "MPEG_LAYER_III": 0.999, "PCM_U8": 0.99}


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("extension,subtype", KINDS)
def test_files(tmp_path, extension, subtype, channels, rate):
    sound = sounds.tone(rate, 1.5, channels=channels)
    path = tmp_path / f"tone.{extension}"
    soundfile.write(path, sound, rate, subtype=subtype)
    expected = soxr.resample(sound if channels == 1 else sound.mean(1), rate, 16_000)
    for source in (path, str(path), path.read_bytes()):
        found = bvl.load_audio(source, 16_000)
        assert found.dtype == np.float32 and abs(len(found) - len(expected)) <= 0.1 * 16_000
        assert same_tone(found, expected) > CLOSE.get(subtype, 0.99999)


def same_tone(found, expected):
    """By their spectra: a decoder may begin a little late."""
    spectra = [np.abs(np.fft.rfft(x[:20_000] * np.hanning(20_000), 1 << 15)) for x in (found, expected)]
    return spectra[0] @ spectra[1] / np.linalg.norm(spectra[0]) / np.linalg.norm(spectra[1])


@pytest.mark.parametrize("name,codec", [("a.m4a", "aac"), ("a.aac", "aac"), ("a.mkv", "aac"), ("a.webm", "libopus"),
                                        ("a.ts", "aac"), ("a.avi", "mp3"), ("a.flv", "aac")])  # fmt: skip
def test_what_libsndfile_does_not_read(tmp_path, name, codec):
    av = pytest.importorskip("av", reason="M4A and clips need PyAV: pip install 'beyondvl[video]'")
    if codec not in av.codecs_available:
        pytest.skip(f"this PyAV has no {codec}")
    rate = 48_000 if codec == "libopus" else 44_100
    sound = sounds.tone(rate, 1.5)
    path = sounds.write_compressed(tmp_path / name, sound, rate, codec)
    expected = soxr.resample(sound, rate, 16_000)
    for source in (path, path.read_bytes()):
        found = bvl.load_audio(source, 16_000)
        assert found.dtype == np.float32 and abs(len(found) - len(expected)) <= 0.1 * 16_000
        assert same_tone(found, expected) > 0.999


def test_what_an_array_may_be(tmp_path):
    sound = sounds.tone(24_000, 0.5)
    exact = bvl.load_audio((sound, 24_000), 48_000)
    assert len(exact) == 24_000
    np.testing.assert_allclose(exact, soxr.resample(sound, 24_000, 48_000), atol=1e-6)
    stereo = np.stack([sound, 0 * sound], 1)
    for source in ({"array": sound, "sampling_rate": 24_000}, (sound.astype(np.float64), 24_000.0),
                   (2 * stereo, np.int64(24_000)), (np.ascontiguousarray(2 * stereo.T), 24_000)):  # fmt: skip
        np.testing.assert_allclose(bvl.load_audio(source, 48_000), exact, atol=1e-6)
    whole = (sound * 32_767).round().astype(np.int16)
    np.testing.assert_allclose(bvl.load_audio((whole, 24_000), 48_000), exact, atol=1e-4)
    np.testing.assert_array_equal(bvl.load_audio(sound, 24_000, 24_000), sound)
    for source, message in (
        (sound, "sampling_rate: not given"),
        ((sound, 0), "sampling_rate: found 0"),
        ((sound, 1e9), "sampling_rate: found 1000000000.0"),
        ((sound, 8000.5), "sampling_rate: found 8000.5"),
        ((np.zeros(0), 8000), r"array of shape \(0,\)"),
        ((np.zeros((2, 3, 4)), 8000), r"array of shape \(2, 3, 4\)"),
        ((np.full(9, np.nan), 8000), "not finite"),
        ((np.ones(9, complex), 8000), "array of complex128"),
        (([1000, -1000], 8000), "array of int64"),
        ((sound, float("nan")), "sampling_rate: found nan"),
        ({"array": sound, "sampling_rate": [8000]}, r"sampling_rate: found \[8000\]"),
        ((np.ones((70, 90)), 8000), "70 channels"),
        ({"array": sound}, "found keys array"),
    ):
        with pytest.raises(ValueError, match=message):
            bvl.load_audio(source, 16_000)


def wav_header(frames: int, rate: int = 8_000, channels: int = 1, body: bytes = b"\0" * 64) -> bytes:
    size = min(2 * channels * frames, 0xFFFFFFF0)
    head = struct.pack("<4sI4s4sIHHIIHH4sI", b"RIFF", min(36 + size, 0xFFFFFFF0), b"WAVE", b"fmt ", 16, 1, channels,
                       rate, 2 * rate * channels, 2 * channels, 16, b"data", size)  # fmt: skip
    return head + body


def test_bad_files(tmp_path):
    """Each gives one error that names the file, soon and without memory for what the header promises."""
    av = pytest.importorskip("av", reason="M4A and clips need PyAV: pip install 'beyondvl[video]'")
    sound = sounds.tone(16_000, 3.0)
    files: dict[str, tuple[bytes, str | None]] = {}
    for extension in ("wav", "flac", "ogg"):
        path = tmp_path / f"whole.{extension}"
        soundfile.write(path, sound, 16_000)
        files[f"half.{extension}"] = (path.read_bytes()[: path.stat().st_size // 2], None)
    files["half.wav"] = (files["half.wav"][0], "truncated")
    files["half.ogg"] = (files["half.ogg"][0], "truncated")
    files["empty.wav"] = (b"", "the file is empty")
    files["head.wav"] = ((tmp_path / "whole.wav").read_bytes()[:30], None)
    files["none.wav"] = (wav_header(0, body=b""), "holds no samples")
    files["text.mp3"] = (b"this is not a sound\n" * 50, None)
    files["picture.flac"] = (b"\x89PNG\r\n\x1a\n" + b"\0" * 500, None)
    files["long.wav"] = (wav_header(1 << 40), "truncated")
    files["rate.wav"] = (wav_header(32, rate=3), "3 samples a second")
    files["channels.wav"] = (wav_header(1, channels=200, body=b"\0" * 400), None)
    flac = bytearray((tmp_path / "whole.flac").read_bytes())
    flac[21] |= 0x0F  # the high bits of the number of samples
    flac[22:26] = b"\xff\xff\xff\xff"
    files["long.flac"] = (bytes(flac), "a length of")
    for extension, subtype in (("aiff", "PCM_16"), ("au", "PCM_16"), ("rf64", "PCM_16"), ("w64", "PCM_16")):
        path = tmp_path / f"whole.{extension}"
        soundfile.write(path, sound, 16_000, subtype=subtype, format=extension.upper())
        files[f"half.{extension}"] = (path.read_bytes()[: path.stat().st_size // 2], "truncated")
    for name, options in (("half.m4a", {}), ("fast.m4a", {"movflags": "faststart"})):
        path = sounds.write_compressed(tmp_path / f"whole.{name}", sound, 16_000, options=options)
        files[name] = (path.read_bytes()[: path.stat().st_size // 2], "Invalid data")
    with av.open(str(path)) as container:
        places = [packet.pos for packet in container.demux(audio=0) if packet.size]
    files["packet.m4a"] = (path.read_bytes()[: places[len(places) // 2]], "ends after 1.*expected 3.*truncated")
    files["head.m4a"] = (b"\0\0\0\x20ftypM4A \0\0\0\0" + b"\0" * 100, None)
    files["adts.aac"] = (b"\xff\xf1" + b"\x5a" * 5000, None)
    files["zeros.wav"] = (b"RIFF\0\0\0\0WAVE" + bytes(30_000_000), None)
    files["valid.raw"] = ((tmp_path / "whole.wav").read_bytes()[:-100], "truncated")
    files["junk.raw"] = (b"junk" * 100, None)
    start = time.perf_counter()
    for name, (content, message) in files.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(AudioError, match=message) as found:
            bvl.load_audio(path, 16_000)
        assert str(found.value).startswith(str(path)), found.value
        with pytest.raises(AudioError, match=r"^sound bytes: "):
            bvl.load_audio(content, 16_000)
    for path, message in ((tmp_path / "nowhere.wav", "No such file"), (tmp_path, "not a regular file"),
                          ("https://example.org/a.wav", "URLs are not fetched")):  # fmt: skip
        with pytest.raises(AudioError, match=message):
            bvl.load_audio(path, 16_000)
    assert time.perf_counter() - start < 5
    assert refusals.peak_kib("load_audio", "AudioError", [tmp_path / name for name in files], "16_000") < 300 * 1024


def test_a_clip_without_sound(tmp_path):
    clips = pytest.importorskip("clips")
    pytest.importorskip("av", reason="video files need PyAV: pip install 'beyondvl[video]'")
    path = clips.write(tmp_path / "silent.mp4")
    with pytest.raises(AudioError, match=r"silent\.mp4: holds no sound, only video"):
        bvl.load_audio(path, 16_000)


# ---- one front door


@pytest.fixture(scope="module")
def folder(tmp_path_factory, transformers):
    """A CLAP folder as published: weights, a tokenizer, an extractor."""
    folder = tmp_path_factory.mktemp("clap")
    sounds.build("thin", False).save_pretrained(folder)
    transformers.ClapFeatureExtractor(truncation="rand_trunc").save_pretrained(folder)
    sounds.tokenizer(folder)
    return folder


def test_processor(folder, transformers, tmp_path):
    sound = sounds.tone(48_000, 2.0)
    path = tmp_path / "a.wav"
    soundfile.write(path, sound, 48_000, subtype="FLOAT")
    theirs = transformers.ClapProcessor(
        transformers.ClapFeatureExtractor.from_pretrained(folder), transformers.AutoTokenizer.from_pretrained(folder)
    )
    ours = bvl.AutoProcessor.from_pretrained(folder)
    assert type(ours) is bvl.ClapProcessor and ours.model_input_names[0] == "input_features"
    words = ["a cat sat", "Hello,  wörld!"]
    expected = theirs(text=words, audio=sound, sampling_rate=48_000, return_tensors="np", padding=True)
    for audio in (path, [str(path)], (sound, 48_000), [{"array": sound, "sampling_rate": 48_000}], path.read_bytes()):
        found = ours(text=words, audio=audio, return_tensors="np", padding=True)
        assert set(found) == set(expected)
        for name in found:
            np.testing.assert_allclose(found[name], expected[name], atol=1e-4)
    found = ours(audio=[sound, sound[:100]], sampling_rate=48_000, return_tensors="pt", seed=3)
    assert tuple(found["input_features"].shape) == (2, 1, 1001, 64)
    for given, message in (
        ({}, "neither text nor audio"),
        ({"images": [np.zeros((4, 4, 3), np.uint8)]}, "given to a processor of sounds"),
        ({"audio": []}, "the list is empty"),
        ({"audio": [(sound, 48_000), (sound[:0], 48_000)]}, "sound 1: array of shape"),
    ):
        with pytest.raises(ValueError, match=message):
            ours(**given)
    with pytest.warns(UserWarning, match="taken to be at 48000"):  # as transformers takes it
        bare = ours(audio=sound, return_tensors="np")["input_features"]
    np.testing.assert_array_equal(bare, ours(audio=(sound, 48_000), return_tensors="np")["input_features"])
    with pytest.raises(ValueError, match="audio: given to a processor of pictures"):
        whole = bvl.AutoProcessor.from_pretrained("beyond-vl-model")
        type(whole)(whole.image_processor, whole.tokenizer)(text="a", audio=(sound, 48_000))


def test_encode(folder, tmp_path, capsys):
    model = bvl.AutoModel.from_pretrained(folder)
    sound = sounds.tone(44_100, 12.5, 300.0, channels=2)
    soundfile.write(tmp_path / "a.flac", sound, 44_100, subtype="PCM_16")
    path = str(tmp_path / "a.flac")
    stored = soundfile.read(path, dtype="float32")
    items = [
        path,
        "a cat sat",
        {"audio": path},
        {"audio": stored},
        stored,
        {"array": stored[0], "sampling_rate": 44_100},
    ]
    rows = model.encode(items, batch_size=2)
    assert rows.shape == (6, 40)
    for i in (2, 3, 4, 5):
        np.testing.assert_array_equal(rows[i], rows[0])
    np.testing.assert_array_equal(model.encode(stored), rows[0])
    for _ in range(98):
        np.testing.assert_array_equal(model.encode(path), rows[0])
    np.testing.assert_array_equal(model.encode({"text": path}), model.encode([path], modality="text")[0])
    inputs = model.processor(audio=path, return_tensors="np")
    expected = model.run_tower("audio", dict(inputs), ["embeds"])["embeds"][0]
    np.testing.assert_array_equal(rows[0], expected)
    with pytest.raises(AudioError, match=r"sound 0: .*nowhere"):
        model.encode([str(tmp_path / "nowhere.wav")])
    with pytest.raises(ValueError, match="has no audio tower; it has text, vision"):
        bvl.BeyondVLModel.from_pretrained("beyond-vl-model").encode([path])
    assert main(["embed", "--model", str(folder), path, "a cat"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    np.testing.assert_allclose(lines[0]["embedding"], rows[0], atol=1e-6)
    assert main(["similarity", "--model", str(folder), "--json", str(tmp_path), "--text", "a cat", "a dog"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["image"] == path and set(result["scores"]) == {"a cat", "a dog"}


def test_zero_shot(folder, tmp_path, transformers):
    """As transformers' pipeline, which takes an array for one at the model's rate."""
    low, high = sounds.tone(48_000, 1.0, 200.0), sounds.tone(48_000, 1.0, 3000.0)
    labels = ["a cat", "the dog", "rain"]
    theirs = transformers.pipeline("zero-shot-audio-classification", model=str(folder))
    ours = bvl.pipeline("zero-shot-audio-classification", model=folder)
    for sound in (low, high):
        expected = {r["label"]: r["score"] for r in theirs(sound, candidate_labels=labels)}
        found = ours((sound, 48_000), candidate_labels=labels)
        assert [r["score"] for r in found] == sorted((r["score"] for r in found), reverse=True)
        for row in found:
            assert abs(row["score"] - expected[row["label"]]) < 1e-4
    several = ours([low, high], candidate_labels="a cat, rain", sampling_rate=48_000)
    assert len(several) == 2 and len(several[0]) == 2
    with pytest.raises(ValueError, match="candidate_labels: found none"):
        ours((low, 48_000))


def test_zero_shot_of_clips():
    shown = bvl.pipeline("zero-shot-video-classification")
    black, white = (np.full((6, 32, 32, 3), v, np.uint8) for v in (0, 255))
    single = shown(black, candidate_labels=["black", "white"], num_frames=2)
    assert [set(row) for row in single] == [{"score", "label"}] * 2
    several = shown([black, white], candidate_labels=["black", "white"])
    assert len(several) == 2 and several[0] != several[1]
    frames = shown(list(black), candidate_labels=["black", "white"])
    assert isinstance(frames[0], dict)


def test_without_the_extra(monkeypatch):
    for name in ("soundfile", "soxr"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"install soundfile: pip install 'beyondvl\[audio\]'"):
        bvl.load_audio(io.BytesIO(b"RIFF").getvalue(), 16_000)
    with pytest.raises(ImportError, match=r"install soxr"):
        bvl.load_audio((np.ones(100, np.float32), 8_000), 16_000)
    np.testing.assert_array_equal(bvl.load_audio((np.ones(9, np.float32), 16_000), 16_000), np.ones(9))
