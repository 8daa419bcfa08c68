"""EmbeddingGemma 2's pictures and clips beside transformers: what its processor makes, and what the model makes of it."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from PIL import Image

import beyondvl as bvl

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
KINDS = {"plain": {}, "clipped": {"use_clipped_linears": True}, "clipped apart": {"use_clipped_linears": True}, "standardized": {"standardize": True},
         "shared keys": {"num_key_value_heads": 1, "pooling_kernel_size": 3}}  # fmt: skip


def reference(kind: str):
    """transformers' model with weights by which each part tells, and bounds that bite."""
    torch.manual_seed(0)
    config = transformers.EmbeddingGemma2Config(
        text_config=TEXT, vision_config=VISION | KINDS[kind], audio_config=None, image_token_id=7, video_token_id=8
    )
    model = transformers.EmbeddingGemma2Model(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "position_embedding_table" in name:
                parameter.normal_(0, 0.5)
            elif parameter.ndim > 1:
                parameter.normal_(0, parameter.shape[-1] ** -0.5)
            else:
                parameter.uniform_(0.6, 1.4)
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
    made.feature_extractor = made.video_processor = made.chat_template = None
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
            peer.image_processor.save_pretrained(folder)
            (folder / "processor_config.json").write_text(json.dumps({"processor_class": "EmbeddingGemma2Processor"}))
            folders[kind] = folder
        return folders[kind]

    return build


def picture(height: int, width: int, seed: int = 0) -> Image.Image:
    """Stripes and spots, so that pictures differ in more than noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(y / rng.uniform(5, 40) + x / rng.uniform(5, 40) + rng.uniform(0, 6)) for _ in range(3)]
    return Image.fromarray((np.stack(waves, 2) * 100 + 127 + rng.uniform(-20, 20, (height, width, 3))).astype(np.uint8))


A, B, C = picture(300, 400), picture(200, 90, 1), picture(48, 900, 2)
CALLS = {
    "a picture": {"images": A},
    "pictures of one text": {"images": [A, B]},
    "a text for each": {"images": [[A], [B], [C]]},
    "several in a text": {"images": [[A, B], [C]], "text": ["ab <|image|> cd <|image|>", "<|image|> e"]},
    "some without": {"images": [[A], []], "text": ["<|image|>", "abc def"]},
    "texts": {"text": ["abc", "d"]},
    "more rows of each": {"images": [[B]], "images_kwargs": {"max_soft_tokens": 140}},
}


@pytest.mark.parametrize("call", CALLS)
def test_processor(made, call):
    ours, theirs = bvl.AutoProcessor.from_pretrained(made()), peer_processor()
    assert type(ours).__name__ == "EmbeddingGemma2Processor"
    found, expected = ours(**CALLS[call], return_tensors="np"), theirs(**CALLS[call], return_tensors="np")
    assert dict(found).keys() == dict(expected).keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].shape == array.shape
    assert torch.equal(ours(**CALLS[call], return_tensors="pt")["input_ids"], torch.from_numpy(found["input_ids"]))


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
    r"images: found \[1\], and texts with places \(<\|image\|>\) for \[2\]": {
        "images": A,
        "text": "<|image|><|image|>",
    },
    r"images: found \[2, 1\], and texts": {"images": [[A, B], [C]], "text": ["<|image|>", "<|image|><|image|>"]},
    r"videos: found 1, and texts with places \(<\|video\|>\) for 0": {"videos": [[A, A]], "text": "abc"},
    "images, videos: found 1 and 2 without a text": {"images": A, "videos": [[A], [B]]},
    "audio: given to a processor of texts, pictures and clips": {"audio": np.zeros(9), "text": "a"},
    "found neither text nor images nor videos": {},
    "max_soft_tokens: found 71, expected one of 70, 140": {"images": A, "images_kwargs": {"max_soft_tokens": 71}},
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
    return {
        name: out[name].numpy() for name in ("last_hidden_state", "image_hidden_states") if out.get(name) is not None
    }


@pytest.mark.parametrize("kind", KINDS)
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
    assert np.sort(ours.similarity(found, found)[np.triu_indices(5, 1)])[-1] < 0.99
    np.testing.assert_array_equal(ours.encode(items[:5], batch_size=5), found[:5])
    np.testing.assert_array_equal(ours.encode([C]), found[4:5])
    features = ours.get_image_features(**{n: a for n, a in ours.image_processor([A, B]).items() if "num" not in n})
    assert [len(rows) for rows in features.pooler_output] == [len(r) for r in ours.get_image_features(
        **{n: a for n, a in ours.image_processor([A, B]).items() if "num" not in n}).pooler_output]  # fmt: skip


@pytest.mark.parametrize("kind", ["plain", "clipped", "clipped apart"])
def test_kept_in_every_form(made, kind, tmp_path):
    """Packed, pickled, written again; in bfloat16 and int8."""
    ours = bvl.AutoModel.from_pretrained(made(kind))
    found = ours.encode([A, "abc", B])
    rough = (0.998, 0.99) if kind == "plain" else (0.99, 0.97)  # bounds that cut much: transformers' is no nearer
    for dtype, least in zip(("float32", "bfloat16", "int8"), (1 - 1e-6, *rough), strict=True):
        model = bvl.AutoModel.from_pretrained(made(kind), dtype=dtype)
        rows = model.encode([A, "abc", B])
        assert (rows * found).sum(1).min() > least, (dtype, (rows * found).sum(1))
        model.save_packed(tmp_path / dtype)
        assert np.array_equal(bvl.AutoModel.from_pretrained(tmp_path / dtype).encode([A, "abc", B]), rows)
    ours.save_pretrained(tmp_path / "again")
    assert np.array_equal(bvl.AutoModel.from_pretrained(tmp_path / "again").encode([A]), found[:1])
    assert np.array_equal(pickle.loads(pickle.dumps(ours)).encode([B]), found[2:])


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
        ({"input_features": np.ones((1, 9, 9), "f")}, "input_features: given to a model of texts, pictures and clips"),
        ({"input_ids": None}, "input_ids: not given"),
    ):
        with pytest.raises(ValueError, match=match):
            model(**good | change)
    assert model(**good).last_hidden_state.shape[0] == 2
