"""EmbeddingGemma 2's pictures, clips and sounds beside transformers: what its processor makes, and the model of it."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from PIL import Image

import beyondvl as bvl
from beyondvl.verify import verify_model

torch = pytest.importorskip("torch", reason="parity needs torch: pip install 'beyondvl[test]'")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install 'beyondvl[test]'")

WORDS = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "<boi>", "<eoi>", "<|image|>", "<|video|>", "<|audio|>", "<boa>",
         "<eoa>", *"abcdefghijklmnop", "▁"]  # fmt: skip
NAMED = {"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<|image|>", "audio_token": "<|audio|>",
         "boa_token": "<boa>", "eoa_token": "<eoa>"}  # fmt: skip
TEXT = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3, "num_key_value_heads": 2, "head_dim": 16,
        "hidden_size_per_layer_input": 24, "embedding_dim": 40, "sliding_window": 30, "sliding_window_pattern": 3,
        "global_head_dim": 32, "num_global_key_value_heads": 1, "vocab_size": len(WORDS)}  # fmt: skip
VISION = {"model_type": "gemma4_vision", "hidden_size": 60, "intermediate_size": 88, "num_hidden_layers": 2,
          "num_attention_heads": 3, "num_key_value_heads": 3, "head_dim": 20, "position_embedding_size": 300}  # fmt: skip
AUDIO = {"model_type": "gemma4_audio", "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3,
         "subsampling_conv_channels": [128, 6], "output_proj_dims": 40, "use_clipped_linears": False}  # fmt: skip
KINDS = {"plain": {}, "clipped": {"use_clipped_linears": True}, "clipped apart": {"use_clipped_linears": True}, "standardized": {"standardize": True},
         "shared keys": {"num_key_value_heads": 1, "pooling_kernel_size": 3}, "no pictures": {},
         "pictures alone": {}}  # fmt: skip
SEEN = [kind for kind in KINDS if kind != "no pictures"]
# as EmbeddingGemma 2 is published, but for its depth and its words
REAL_TEXT = {"num_hidden_layers": 2, "vocab_size": len(WORDS), "sliding_window_pattern": 2}
REAL_VISION = {"model_type": "gemma4_vision", "num_hidden_layers": 2, "use_clipped_linears": True}
REAL_AUDIO = {"model_type": "gemma4_audio", "num_hidden_layers": 2}


def reference(kind: str):
    """transformers' model with weights by which each part tells, and bounds that bite."""
    torch.manual_seed(0)
    text, vision, audio = REAL_TEXT, REAL_VISION, REAL_AUDIO
    if kind != "real widths":
        text, vision, audio = TEXT, VISION | KINDS[kind], AUDIO | {"use_clipped_linears": "clipped" in kind}
    config = transformers.EmbeddingGemma2Config(
        text_config=text, vision_config=None if kind == "no pictures" else vision,
        audio_config=None if kind == "pictures alone" else audio, image_token_id=7, video_token_id=8, audio_token_id=9,
    )  # fmt: skip
    model = transformers.EmbeddingGemma2Model(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "position_embedding_table" in name:
                parameter.normal_(0, 0.5)
            elif "conv" in name and parameter.ndim > 2:
                parameter.normal_(0, parameter[0].numel() ** -0.5)
            elif parameter.ndim > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
            else:  # scores are not scaled, and those of random rows would leave one key each
                parameter.uniform_(0.6, 1.4).mul_(
                    len(parameter) ** -0.25 if "q_norm" in name or "k_norm" in name else 1
                )
        for name, buffer in model.named_buffers():
            if "std_" in name:
                buffer.uniform_(0.5, 1.5)
            elif name.endswith(("put_min", "put_max")):
                buffer.fill_(float(torch.empty(()).uniform_(0.8, 1.6)) * (-1 if name.endswith("min") else 1))
        for layer in model.vision_tower.encoder.layers if kind == "clipped" else ():
            attention, mlp = layer.self_attn, layer.mlp
            for one, others in (
                (attention.q_proj, (attention.k_proj, attention.v_proj)),
                (mlp.gate_proj, (mlp.up_proj,)),
            ):
                for other in others:
                    other.input_min.copy_(one.input_min), other.input_max.copy_(one.input_max)
    return model


def peer_processor():
    """transformers' processor without those of clips and sounds, which want torchvision."""
    from transformers.models.embedding_gemma2.processing_embedding_gemma2 import EmbeddingGemma2Processor
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    tokenizer = transformers.GemmaTokenizer(
        vocab={word: i for i, word in enumerate(WORDS)}, extra_special_tokens=NAMED, add_bos_token=True
    )
    made = object.__new__(EmbeddingGemma2Processor)
    made.tokenizer, made.image_processor = tokenizer, Gemma4ImageProcessorPil(max_soft_tokens=70)
    made.feature_extractor = transformers.Gemma4AudioFeatureExtractor()
    made.video_processor = made.chat_template = None
    for name, token in (NAMED | {"video_token": "<|video|>"}).items():
        setattr(made, name, token)
        setattr(made, f"{name}_id", tokenizer.convert_tokens_to_ids(token))
    return made


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of each kind of model, with the files of a processor."""
    folders = {}

    def build(kind: str = "plain"):
        if kind not in folders:
            folder = tmp_path_factory.mktemp("model") / kind.replace(" ", "_")
            reference(kind).save_pretrained(folder)
            peer = peer_processor()
            peer.tokenizer.save_pretrained(folder)
            parts = {"image_processor": peer.image_processor, "feature_extractor": peer.feature_extractor}
            fields = {name: json.loads(part.to_json_string()) for name, part in parts.items()}
            fields["video_processor"] = {"video_processor_type": "EmbeddingGemma2VideoProcessor", "max_soft_tokens": 70}
            fields["processor_class"] = "EmbeddingGemma2Processor"
            (folder / "processor_config.json").write_text(json.dumps(fields))
            folders[kind] = folder
        return folders[kind]

    return build


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Stripes and spots, so that pictures differ in more than noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(y / rng.uniform(5, 40) + x / rng.uniform(5, 40) + rng.uniform(0, 6)) for _ in range(3)]
    return Image.fromarray((np.stack(waves, 2) * 100 + 127 + rng.uniform(-20, 20, (height, width, 3))).astype(np.uint8))


def sound(seconds: float, seed: int = 0) -> np.ndarray:
    """A chord that fades, in noise, at 16 kHz."""
    rng, t = np.random.default_rng(seed), np.arange(int(16_000 * seconds)) / 16_000
    chord = sum(np.sin(2 * np.pi * rng.uniform(200, 2000) * t + rng.uniform(0, 6)) for _ in range(3))
    return (0.1 * chord * np.exp(-t) + 0.01 * rng.standard_normal(len(t))).astype(np.float32)


A, B, C = picture(300, 400), picture(200, 90, 1), picture(48, 900, 2)
CALLS = {
    "a picture": {"images": A},
    "pictures of one text": {"images": [A, B]},
    "a text for each": {"images": [[A], [B], [C]]},
    "several in a text": {"images": [[A, B], [C]], "text": ["ab <|image|> cd <|image|>", "<|image|> e"]},
    "some without": {"images": [[A], []], "text": ["<|image|>", "abc def"]},
    "texts": {"text": ["abc", "d"]},
    "more rows of each": {"images": [[B]], "images_kwargs": {"max_soft_tokens": 140}},
    "sounds": {"audio": [sound(1.3), sound(0.4, 1)]},
    "a text of each, several sounds": {"audio": [[sound(0.5), sound(0.4, 1)], [sound(0.3, 2)]]},
    "sounds cut": {"audio": sound(1.3), "audio_kwargs": {"max_length": 8000}},
    "a picture and a sound": {"images": A, "audio": sound(0.7)},
    "sounds in texts": {"audio": [sound(1.3), sound(0.4, 1)], "images": [[A], []],
                        "text": ["ab <|audio|> cd <|image|>", "<|audio|> e"]},
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_processor(made, call):
    ours, theirs = bvl.AutoProcessor.from_pretrained(made()), peer_processor()
    assert type(ours).__name__ == "EmbeddingGemma2Processor"
    more = {"sampling_rate": 16_000} if "audio" in CALLS[call] else {}
    found, expected = ours(**CALLS[call], **more, return_tensors="np"), theirs(**CALLS[call], return_tensors="np")
    assert dict(found).keys() == dict(expected).keys()
    for name, array in expected.items():
        np.testing.assert_allclose(found[name], array, rtol=0, atol=5e-6 if name == "input_features" else 0)
        assert found[name].shape == array.shape
    tensors = ours(**CALLS[call], **more, return_tensors="pt")
    assert torch.equal(tensors["input_ids"], torch.from_numpy(found["input_ids"]))


@pytest.mark.parametrize("seconds", [0.05, 0.5, 1.003, 31])
@pytest.mark.parametrize("options", [{}, {"padding": "max_length", "max_length": 20_000}, {"pad_to_multiple_of": None}])
def test_features_of_sounds(seconds, options):
    ours, theirs = bvl.Gemma4AudioFeatureExtractor(), transformers.Gemma4AudioFeatureExtractor()
    sounds = [sound(seconds), sound(0.3, 1)]
    found, expected = (
        ours(sounds, sampling_rate=16_000, return_tensors="np", **options),
        theirs(sounds, return_tensors="np", **options),
    )
    np.testing.assert_array_equal(found["input_features_mask"], expected["input_features_mask"])
    np.testing.assert_allclose(found["input_features"], expected["input_features"], rtol=0, atol=5e-6)
    with pytest.raises(bvl.AudioError, match="sound 1: 100 samples, expected 161 at least"):
        ours([sounds[0], sounds[0][:100]], sampling_rate=16_000)


@pytest.mark.parametrize("size", [(1, 1), (7, 2000), (2000, 7), (768, 768), (480, 640), (49, 47), (1000, 30)])
@pytest.mark.parametrize("most", [70, 280])
def test_sizes(size, most):
    from transformers.models.gemma4.image_processing_pil_gemma4 import Gemma4ImageProcessorPil

    ours, theirs = (cls(max_soft_tokens=most) for cls in (bvl.Gemma4ImageProcessor, Gemma4ImageProcessorPil))
    found, expected = ours(picture(*size)), theirs(picture(*size), return_tensors="np")
    for name in ("pixel_values", "image_position_ids"):
        np.testing.assert_array_equal(found[name], expected[name])
    assert list(found["num_soft_tokens_per_image"]) == list(expected["num_soft_tokens_per_image"])


SAID = {
    r"images: found 1, and texts with places \(<\|image\|>\) for \[2\]": {"images": A, "text": "<|image|><|image|>"},
    r"images: found \[2, 1\], and texts": {"images": [[A, B], [C]], "text": ["<|image|>", "<|image|><|image|>"]},
    r"videos: found 1, and texts with places \(<\|video\|>\) for \[0\]": {"videos": [[A, A]], "text": "abc"},
    "text: not given, and found 1 of image, 2 of video": {"images": A, "videos": [[A], [B]]},
    r"audio: found 1, and texts with places \(<\|audio\|>\) for \[0\]": {
        "audio": sound(1),
        "text": "a",
        "sampling_rate": 16_000,
    },
    "found neither text nor images nor videos nor audio": {},
    "max_soft_tokens: found 71, expected one of 70, 140": {"images": A, "images_kwargs": {"max_soft_tokens": 71}},
    "images, videos, audio: a list is empty": {"images": []},
    "resample: given twice": {"images": A, "resample": 3, "images_kwargs": {"resample": 2}},
}


@pytest.mark.parametrize("said", SAID)
def test_what_does_not_fit_is_named(made, said):
    processor = bvl.AutoProcessor.from_pretrained(made())
    with pytest.raises(ValueError, match=said):
        processor(**SAID[said])
    assert len(processor(text="abc")["input_ids"]) == 1


def agree(found: np.ndarray, expected: np.ndarray) -> None:
    """To 1e-4 of the largest number."""
    np.testing.assert_allclose(found, expected, atol=1e-4 * max(1, np.abs(expected).max()))


def expected_of(model, inputs) -> dict[str, np.ndarray]:
    with torch.no_grad():
        out = model(**{name: torch.as_tensor(np.asarray(value)) for name, value in inputs.items()})
    names = ("last_hidden_state", "image_hidden_states", "audio_hidden_states")
    return {name: out[name].numpy() for name in names if out.get(name) is not None}


@pytest.mark.parametrize("kind", SEEN)
def test_model(isa, made, kind):
    """Texts with pictures, several and none, padded on the left; every picture, axis and norm tells."""
    folder = made(kind)
    ours, theirs = bvl.EmbeddingGemma2Model.from_pretrained(folder), reference(kind)
    inputs = ours.processor(**CALLS["several in a text"], return_tensors="np")
    expected = expected_of(theirs, inputs)
    keep = inputs["attention_mask"].astype(bool)
    for threads in (1, 2):
        found = bvl.AutoModel.from_pretrained(folder, num_threads=threads)(**inputs)
        agree(found.last_hidden_state[keep], expected["last_hidden_state"][keep])
        agree(found.image_hidden_states, expected["image_hidden_states"])
    rows = expected["last_hidden_state"][keep]
    assert np.abs(np.corrcoef(expected["image_hidden_states"])[np.triu_indices(20, 1)]).mean() < 0.9
    for change in ("patches", "table", "rope", "norm"):
        changed, other = reference(kind), dict(inputs)
        tower = changed.vision_tower
        with torch.no_grad():
            if change == "patches":
                other["pixel_values"] = inputs["pixel_values"][::-1].copy()
            elif change == "table":
                tower.patch_embedder.position_embedding_table.copy_(
                    tower.patch_embedder.position_embedding_table.flip(0)
                )
            elif change == "rope":
                tower.encoder.rotary_emb.inv_freq.mul_(0.9)
            else:
                tower.encoder.layers[1].self_attn.k_norm.weight.mul_(torch.linspace(0.5, 1.5, 20))
        assert np.abs(expected_of(changed, other)["last_hidden_state"][keep] - rows).max() > 1e-3, change


@pytest.mark.parametrize("kind", ["plain", "clipped", "clipped apart", "no pictures"])
def test_sounds(isa, made, kind):
    """Of several lengths, in texts and alone; each part of a layer tells."""
    folder = made(kind)
    ours, theirs = bvl.AutoModel.from_pretrained(folder), reference(kind)
    sounds, texts = [sound(1.3), sound(0.4, 1), sound(0.12, 2)], ["ab <|audio|> c", "<|audio|>", "<|audio|> de"]
    inputs = ours.processor(text=texts, audio=sounds, sampling_rate=16_000, return_tensors="np")
    expected, keep = expected_of(theirs, inputs), inputs["attention_mask"].astype(bool)
    for threads in (1, 2, 3):
        found = bvl.AutoModel.from_pretrained(folder, num_threads=threads)(**inputs)
        agree(found.last_hidden_state[keep], expected["last_hidden_state"][keep])
        agree(found.audio_hidden_states, expected["audio_hidden_states"])
    rows = expected["audio_hidden_states"]
    for part in ("relative_k_proj.weight", "per_dim_scale", "depthwise_conv1d.weight", "feed_forward2", "norm_out"):
        changed = reference(kind)
        with torch.no_grad():
            for name, parameter in changed.audio_tower.layers[0].named_parameters():
                if part in name:
                    parameter.mul_(torch.linspace(0.5, 1.5, parameter.shape[-1]))
        assert np.abs(expected_of(changed, inputs)["audio_hidden_states"] - rows).max() > 1e-2, part
    features = ours.get_audio_features(inputs["input_features"], inputs["input_features_mask"])
    np.testing.assert_array_equal(features.pooler_output[features.attention_mask], found.audio_hidden_states)
    for i, one in enumerate(sounds):
        text = ours.processor(audio=one, sampling_rate=16_000, return_tensors="np")
        mean = expected_of(theirs, text)["last_hidden_state"][0].mean(0)
        embedding = ours.encode({"audio": (one, 16_000)})
        np.testing.assert_allclose(embedding, mean / np.linalg.norm(mean), atol=2e-5)
        assert i == 0 or embedding @ ours.encode({"audio": (sounds[0], 16_000)}) < 0.99


def test_real_widths(made):
    """A picture of 280 rows at most, and one of 70, and a sound."""
    folder = made("real widths")
    ours, theirs = bvl.AutoModel.from_pretrained(folder), reference("real widths")
    for most in (70, 280):
        given = {"audio": sound(3), "sampling_rate": 16_000} if most == 70 else {}
        inputs = ours.processor(images=A, **given, images_kwargs={"max_soft_tokens": most}, return_tensors="np")
        expected, found = expected_of(theirs, inputs), ours(**inputs)
        for name, array in expected.items():
            agree(found[name], array)
        assert len(expected["image_hidden_states"]) == {70: 63, 280: 266}[most]


def test_clips(made):
    """Frames of clips of several lengths in one call, in texts and alone."""
    folder = made()
    ours, theirs = bvl.AutoModel.from_pretrained(folder), reference("plain")
    clips = [[picture(96, 200, i) for i in range(3)], np.stack([np.asarray(picture(120, 80, i)) for i in range(4, 6)])]
    inputs = ours.processor(
        text=["ab <|video|>", "<|video|> c <|image|>"], videos=clips, images=[[], [A]], return_tensors="np"
    )
    assert list(inputs["num_frames_per_video"]) == [3, 2] and len(inputs["pixel_values_videos"]) == 5
    expected, keep = expected_of(theirs, inputs), inputs["attention_mask"].astype(bool)
    found = ours(**inputs)
    agree(found.last_hidden_state[keep], expected["last_hidden_state"][keep])
    alone = ours.processor(videos=clips, return_tensors="np")
    expected = expected_of(theirs, alone)["last_hidden_state"]
    for i, clip in enumerate(clips):
        rows = expected[i][alone["attention_mask"][i].astype(bool)].mean(0)
        np.testing.assert_allclose(ours.encode({"video": clip}), rows / np.linalg.norm(rows), atol=1e-5)


def test_clips_of_files(made, tmp_path):
    """A frame a second, at most 32 evenly, where transformers takes them."""
    av = pytest.importorskip("av", reason="clips are read by PyAV: pip install 'beyondvl[video]'")
    from beyondvl.processing.interleaved import frames_of

    path, rate, count = tmp_path / "clip.mkv", 25, 272
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=rate)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "bgr0"
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), i % 256, np.uint8), "rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    for given in ({}, {"max_frames": 4}, {"fps": 2.0}, {"fps": 7.0}):  # as the peer's sample_frames has it
        fps, most = given.get("fps", 1), given.get("max_frames", 32)
        wanted = [min(count - 1, int(i * rate / fps)) for i in range(max(1, int(count / rate * fps)))]
        if len(wanted) > most:
            wanted = [wanted[i] for i in np.linspace(0, len(wanted) - 1, most, dtype=int)]
        assert [int(frame[0, 0, 0]) for frame in frames_of(str(path), **given)] == [i % 256 for i in wanted]
    processor = bvl.AutoProcessor.from_pretrained(made())
    inputs = processor(videos=[str(path)], videos_kwargs={"max_frames": 3}, images_kwargs={"max_soft_tokens": 140})
    assert inputs["num_frames_per_video"] == [3] and np.shape(inputs["pixel_values_videos"]) == (3, 630, 768)
    many = [np.full((9, 9, 3), i % 256, np.uint8) for i in range(100)]
    with pytest.raises(bvl.VideoError, match=r"array of shape \(9, 9, 3\)"):
        frames_of(np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(ValueError, match="most: found -1 frames"):
        frames_of(many, max_frames=-1)
    assert len(frames_of(many)) == 32 and len(frames_of(many, num_frames=5)) == 5
    with pytest.raises(bvl.VideoError, match="the list of frames is empty"):
        frames_of([])


def test_models_of_fewer_modalities(made):
    blind, deaf = (bvl.AutoModel.from_pretrained(made(kind)) for kind in ("no pictures", "pictures alone"))
    assert blind.modalities == ["text", "audio"] and deaf.modalities == ["text", "image"]
    for model, item, match in ((blind, A, "no vision tower"), (deaf, {"audio": (sound(1), 16_000)}, "no audio tower")):
        with pytest.raises(ValueError, match=match):
            model.encode([item])
        assert model.encode(["abc", "d"]).shape == (2, 40)
    with pytest.raises(ValueError, match="no vision tower"):
        blind.encode({"video": [A, A]})
    np.testing.assert_array_equal(deaf.encode("ab <|image|> c"), deaf.encode("ab <|audio|> c"))  # nothing stands there


def test_encode(made):
    """Pictures, clips and texts in one call; each is its text of placeholders, pooled; batches change nothing."""
    folder = made()
    ours, theirs = bvl.AutoModel.from_pretrained(folder), reference("plain")
    items = [A, "abc", B, {"video": [A, B.resize(A.size)]}, C, A]
    found = ours.encode(items, batch_size=2)
    assert found.shape == (6, 40) and np.array_equal(found[0], found[5])
    for i, given in enumerate(
        ({"images": A}, {"text": "abc"}, {"images": B}, {"videos": [items[3]["video"]]}, {"images": C})
    ):
        inputs = ours.processor(**given, return_tensors="np")
        rows = expected_of(theirs, inputs)["last_hidden_state"][0].mean(0)
        np.testing.assert_allclose(found[i], rows / np.linalg.norm(rows), atol=1e-5)
    assert np.sort(ours.similarity(found, found)[np.triu_indices(5, 1)])[-1] < 0.995
    np.testing.assert_array_equal(ours.encode(items[:5], batch_size=5), found[:5])
    np.testing.assert_array_equal(ours.encode([C]), found[4:5])
    made = ours.image_processor([A, B])
    given = {name: made[name] for name in ("pixel_values", "image_position_ids")}
    features = ours.get_image_features(**given).pooler_output
    assert [len(rows) for rows in features] == list(made["num_soft_tokens_per_image"])
    clips = {"pixel_values_videos": given["pixel_values"], "video_position_ids": given["image_position_ids"]}
    assert np.array_equal(
        ours.get_video_features(**clips, num_frames_per_video=[2]).pooler_output[0], np.concatenate(features)
    )


@pytest.mark.parametrize("kind", ["plain", "clipped", "clipped apart"])
def test_kept_in_every_form(made, kind, tmp_path):
    """Packed, pickled, written again; in bfloat16 and int8."""
    ours = bvl.AutoModel.from_pretrained(made(kind))
    items = [A, "abc", {"audio": (sound(0.9), 16_000)}]
    found = ours.encode(items)
    rough = (0.998, 0.99) if kind == "plain" else (0.99, 0.97)  # bounds that cut much: transformers' is no nearer
    for dtype, least in zip(("float32", "bfloat16", "int8"), (1 - 1e-6, *rough), strict=True):
        model = bvl.AutoModel.from_pretrained(made(kind), dtype=dtype)
        rows = model.encode(items)
        assert (rows * found).sum(1).min() > least, (dtype, (rows * found).sum(1))
        model.save_packed(tmp_path / dtype)
        assert np.array_equal(bvl.AutoModel.from_pretrained(tmp_path / dtype).encode(items), rows)
    ours.save_pretrained(tmp_path / "again")
    assert np.array_equal(bvl.AutoModel.from_pretrained(tmp_path / "again").encode([A]), found[:1])
    assert np.array_equal(pickle.loads(pickle.dumps(ours)).encode(items[2:]), found[2:])


@pytest.mark.parametrize("kind", ["plain", "no pictures", "pictures alone"])
def test_verify(made, kind, capsys):
    assert verify_model(str(made(kind)))
    said = capsys.readouterr().out
    assert "last_hidden_state" in said and ("image_hidden_states" in said) == (kind != "no pictures")
    assert ("audio_hidden_states" in said) == (kind != "pictures alone") and said.rstrip().endswith("agrees")


def test_bad_inputs_are_named(made):
    model = bvl.AutoModel.from_pretrained(made())
    good = model.processor(images=[[A], [B]], return_tensors="np")
    places = good["image_position_ids"].copy()
    places[1, 3] = places[1, 2]
    ids = good["input_ids"].copy()
    ids[0, 4] = 12
    for change, match in (
        ({"image_position_ids": places}, r"image_position_ids\[1\]: expected the column and the row of each patch"),
        ({"image_position_ids": None}, "image_position_ids: not given, expected it beside pixel_values"),
        ({"image_position_ids": places[..., 0]}, r"image_position_ids: found shape \(2, 630\), expected \(n, N, 2\)"),
        (
            {"pixel_values": None, "image_position_ids": None},
            r"input_ids: found 123 placeholders of image \(id 7\), expected 0",
        ),
        ({"input_ids": ids}, r"input_ids: found 122 placeholders of image \(id 7\), expected 123"),
        (
            {"pixel_values": good["pixel_values"][..., 1:]},
            r"pixel_values: found shape \(2, 630, 767\), expected \(B, N, 768\)",
        ),
        (
            {"input_features": np.ones((1, 9, 9), "f")},
            "input_features_mask: not given, expected it beside input_features",
        ),
        (
            {"input_features": np.ones((1, 9, 128), "f"), "input_features_mask": np.zeros((1, 9), int)},
            "input_features_mask: expected the first frames of each sound, one at least",
        ),
        ({"input_values": np.ones((1, 9), "f")}, "input_values: given to a model that does not take it"),
        ({"num_frames_per_video": [3]}, "num_frames_per_video: found 3 in all, expected 0"),
        (
            {"pixel_values": good["pixel_values"][:1]},
            r"image_position_ids: found shape \(2, 630, 2\), expected \(1, 630, 2\)",
        ),
        ({"input_ids": None}, "input_ids: not given"),
    ):
        with pytest.raises(ValueError, match=match):
            model(**good | change)
    assert model(**good).last_hidden_state.shape[0] == 2
