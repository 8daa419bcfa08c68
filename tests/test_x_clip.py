"""X-CLIP against transformers: embeddings that look at the clip, every level and precision, from pixels and from files."""

from __future__ import annotations

import json

import numpy as np
import pytest
from parity import close, unit_gain, worst_cosine

import beyondvl as bvl
from beyondvl import _C

torch = pytest.importorskip("torch", reason="parity needs torch and transformers: pip install 'beyondvl[test]'")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install 'beyondvl[test]'")

TEXT = {"hidden_size": 48, "intermediate_size": 70, "num_hidden_layers": 2, "num_attention_heads": 3, "vocab_size": 300,
        "max_position_embeddings": 20}  # fmt: skip
SHAPES = {
    "small": ({"hidden_size": 40, "intermediate_size": 60, "num_hidden_layers": 3, "num_attention_heads": 5,
               "image_size": 45, "patch_size": 14, "num_frames": 4, "mit_hidden_size": 32, "mit_intermediate_size": 50,
               "mit_num_hidden_layers": 2, "mit_num_attention_heads": 4},
              {"projection_dim": 32, "prompt_num_attention_heads": 4, "prompt_layers": 3}),
    "odd": ({"hidden_size": 22, "intermediate_size": 31, "num_hidden_layers": 2, "num_attention_heads": 2,
             "image_size": 30, "patch_size": 15, "num_frames": 5, "mit_hidden_size": 18, "mit_intermediate_size": 20,
             "mit_num_attention_heads": 3, "hidden_act": "gelu"},
            {"projection_dim": 18, "prompt_num_attention_heads": 2, "prompt_layers": 1, "prompt_alpha": 0.7}),
    "real": ({"num_hidden_layers": 2}, {}),
}  # fmt: skip
_made: dict = {}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, reference, inputs) of a shape: three clips that differ in the large and from frame to frame, four texts."""

    def make(shape):
        if shape not in _made:
            torch.manual_seed(1)
            vision, rest = SHAPES[shape]
            text = {"num_hidden_layers": 2} if shape == "real" else TEXT
            model = transformers.XCLIPModel(
                transformers.XCLIPConfig(text_config=text, vision_config=vision, **rest)
            ).eval()
            unit_gain(model, gain=1.3, tables=0.5, bias=0.05, table_names=("embedding",))
            with torch.no_grad():
                model.logit_scale.fill_(1.1)
            folder = tmp_path_factory.mktemp("x_clip")
            model.save_pretrained(folder)
            section = model.config.vision_config
            size, frames = section.image_size, section.num_frames
            pixels = torch.randn(3, frames, 3, size, size) + 1.5 * torch.randn(3, frames, 3, 1, 1)
            pixels += 2 * torch.randn(3, 1, 3, 1, 1)
            ids = torch.randint(3, 290, (4, 9))
            ids[:, -1], ids[1, 4:] = 295, 295
            mask = torch.ones_like(ids)
            mask[1, 5:] = 0
            _made[shape] = folder, model, {"input_ids": ids, "attention_mask": mask, "pixel_values": pixels}
        return _made[shape]

    return make


def check_outputs(made, shape):
    folder, reference, given = made(shape)
    model = bvl.AutoModel.from_pretrained(folder, strict=True)
    with torch.no_grad():
        wanted = reference(**given)
        clips = reference.get_video_features(given["pixel_values"]).pooler_output
        texts = reference.get_text_features(given["input_ids"], given["attention_mask"]).pooler_output
    out = model(**given)
    names = ["logits_per_video", "logits_per_text", "text_embeds", "video_embeds"]
    assert list(out)[:4] == names
    for name in names:
        close(out[name], wanted[name])
    for tower in ("vision_model_output", "mit_output"):
        close(out[tower].last_hidden_state, wanted[tower].last_hidden_state)
        close(out[tower].pooler_output, wanted[tower].pooler_output)
    close(out.text_model_output.pooler_output, wanted.text_model_output.pooler_output)
    close(model.get_video_features(given["pixel_values"]), clips)
    close(model.get_text_features(given["input_ids"], given["attention_mask"]), texts)
    # texts see the clip, clips are told apart
    assert (out.text_embeds[0] - out.text_embeds[1]).abs().max() > 1e-3
    assert (out.video_embeds @ out.video_embeds.T).numpy()[np.triu_indices(3, 1)].max() < 0.99


@pytest.mark.parametrize("shape", ["small", "odd"])
def test_outputs(isa, made, shape):
    check_outputs(made, shape)


def test_outputs_at_real_widths(made):
    check_outputs(made, "real")


@pytest.mark.parametrize(
    "part", ["message_fc.weight", "message_attn.v_proj.weight", "mit.position_embedding", "cross_attn.v_proj", "alpha"]
)
def test_a_zeroed_part_is_noticed(made, tmp_path, part):
    folder, reference, given = made("small")
    other = transformers.XCLIPModel(reference.config)
    other.load_state_dict({n: torch.zeros_like(p) if part in n else p for n, p in reference.state_dict().items()})
    other.save_pretrained(tmp_path)
    found, whole = (bvl.AutoModel.from_pretrained(f)(**given) for f in (tmp_path, folder))
    changed = max(float((found[n] - whole[n]).abs().max()) for n in ("text_embeds", "video_embeds"))
    assert changed > 1e-3


def test_the_order_of_frames_matters(made):
    folder, _, given = made("small")
    model = bvl.AutoModel.from_pretrained(folder)
    pixels = given["pixel_values"].numpy()
    assert np.abs(model.get_video_features(pixels) - model.get_video_features(pixels[:, ::-1].copy())).max() > 1e-3


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_precisions(isa, made, precision):
    folder, _, given = made("small")
    given = {name: tensor.numpy() for name, tensor in given.items()}
    exact = bvl.AutoModel.from_pretrained(folder).get_video_features(given["pixel_values"])
    model = bvl.AutoModel.from_pretrained(folder, dtype=precision, num_threads=2)
    out = model(**given)
    found = model.get_video_features(given["pixel_values"])
    assert worst_cosine(found, exact) >= {"float32": 0.9999999, "bfloat16": 0.9995, "int8": 0.99}[precision]
    single = bvl.AutoModel.from_pretrained(folder, dtype=precision, num_threads=1)
    np.testing.assert_array_equal(single(**given).text_embeds, out.text_embeds)
    for i in range(3):
        alone = model(given["input_ids"], given["pixel_values"][i : i + 1], given["attention_mask"])
        np.testing.assert_array_equal(alone.text_embeds[0], out.text_embeds[i])
        np.testing.assert_array_equal(alone.video_embeds[0], out.video_embeds[i])


def test_packed(made, tmp_path):
    folder, _, given = made("odd")
    model = bvl.AutoModel.from_pretrained(folder, dtype="int8")
    model.save_packed(tmp_path)
    again = bvl.AutoModel.from_pretrained(tmp_path)
    assert (model(**given).logits_per_video == again(**given).logits_per_video).all()


@pytest.fixture(scope="module")
def whole(made):
    """The small folder with CLIP's kind of tokenizer and VideoMAE's of pictures."""
    folder, reference, _ = made("small")
    from tokenizers.pre_tokenizers import ByteLevel

    letters = sorted(ByteLevel.alphabet())[:94]
    tokens = [*letters, *[f"{letter}</w>" for letter in letters], "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "CLIPTokenizer", "model_max_length": 20})
    )
    size = {"height": 45, "width": 45}
    transformers.VideoMAEImageProcessor(size={"shortest_edge": 45}, crop_size=size).save_pretrained(folder)
    return folder, reference


def moving(count: int, seed: int) -> np.ndarray:
    """Frames of a bright square that crosses noise, uint8 [T, H, W, 3]."""
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 90, (count, 60, 80, 3), dtype=np.uint8)
    for i in range(count):
        frames[i, 20:40, 6 * i : 6 * i + 20] = rng.integers(100, 255, 3)
    return frames


def test_processor_and_pipeline(whole):
    folder, reference = whole
    ours = bvl.AutoProcessor.from_pretrained(folder)
    assert type(ours) is bvl.XCLIPProcessor and ours.num_frames == 4
    clip, other = moving(4, 0), moving(9, 1)
    wanted = transformers.VideoMAEImageProcessorPil.from_pretrained(folder)(
        list(clip), return_tensors="pt"
    ).pixel_values
    inputs = ours(text=["a cat", "a dog"], videos=list(clip), return_tensors="pt", padding=True)
    np.testing.assert_allclose(inputs["pixel_values"], wanted, atol=1e-6)
    model = bvl.AutoModel.from_pretrained(folder)
    with torch.no_grad():
        logits = reference(**inputs).logits_per_video
    close(model(**inputs).logits_per_video, logits)
    shown = bvl.pipeline("zero-shot-video-classification", model)
    found = shown(clip, candidate_labels=["a cat", "a dog"], hypothesis_template="{}")
    scores = dict(zip(["a cat", "a dog"], logits.softmax(1)[0].tolist(), strict=True))
    for row in found:
        assert abs(row["score"] - scores[row["label"]]) < 1e-4
    several = shown([clip, other], candidate_labels="a cat, a dog")
    assert len(several) == 2 and several[0] != several[1]
    rows = model.encode([{"video": clip}, "a cat"])
    close(rows[0], model.get_video_features(wanted.numpy())[0])
    for given, message in (({"video": other, "num_frames": 3}, "this model takes 4 frames"),
                           ({"video": clip, "image": 1}, "found keys video, image")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            model.encode([given])


def test_what_does_not_fit(made, tmp_path):
    folder, _, given = made("small")
    model = bvl.AutoModel.from_pretrained(folder)
    pixels = given["pixel_values"]
    for inputs, message in (
        (given | {"pixel_values": pixels[:, 1:]}, r"found shape \(3, 3, 3, 45, 45\), expected \(B, 4, 3, 45, 45\)"),
        (given | {"pixel_values": pixels[0]}, r"pixel_values: found shape \(4, 3, 45, 45\)"),
        (given | {"pixel_values": pixels.int()}, "pixel_values: found dtype int32"),
        ({"input_ids": given["input_ids"]}, "pixel_values: not given"),
        ({"pixel_values": pixels}, "input_ids: not given"),
    ):
        with pytest.raises(ValueError, match=message):
            model(**inputs)
    config = json.loads((folder / "config.json").read_text())
    for change, message in (({"projection_dim": 36}, "expected projection_dim, 36"),
                            ({"prompt_num_attention_heads": 5}, "projection_dim 32 is not a multiple of 5")):  # fmt: skip
        (tmp_path / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(ValueError, match=message):
            bvl.AutoModel.from_pretrained(tmp_path)


def test_rows_are_checked():
    for op, src, dst, params, order, message in (
        ("take_rows", 0, 1, {"count": 1}, [0, 8], r"take_rows: order\[1\]: found 8, expected each of 0 to 7"),
        ("take_rows", 0, 1, {"count": 2}, [0, 1, 2, 2], r"order\[3\]: found 2"),
        ("take_rows", 0, 1, {"count": 0}, [0, 1], "0 rows at once"),
        ("take_rows", 0, 0, {"count": 1}, list(range(8)), "expected two of one width"),
        ("put_rows", 1, 0, {}, [3, 3], r"put_rows: order\[1\]: found 3"),
        ("put_rows", 1, 0, {}, [3], r"order: found \(1\), expected shape \(2\)"),
    ):
        program = _C.Program()
        slots = [program.slot("a", 8, 4), program.slot("b", 2, 4)]
        with pytest.raises(ValueError, match=message):
            program.add(op, slots[src], slots[dst], params, {"order": np.array(order, np.float32)}, 1)
