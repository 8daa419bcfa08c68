"""From picture files and words to captions, answers and matches: methods, pipelines, command line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import beyondvl as bvl
import models
from beyondvl.cli import main
from beyondvl.weights import save_safetensors

PHOTOS = sorted(str(p) for p in (Path(__file__).parent.parent / "examples").rglob("*.jpg"))[:3]
WORDS = "a the of in on man woman cat dog picture photo what is this how many red cup old wall ? two".split()
CONFIG = {
    "model_type": "blip",
    "image_text_hidden_size": 16,
    "text_config": {"hidden_size": 32, "encoder_hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
                    "num_attention_heads": 4, "vocab_size": 140, "bos_token_id": 139, "sep_token_id": 102,
                    "pad_token_id": 0, "max_position_embeddings": 40},
    "vision_config": {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
                      "image_size": 48, "patch_size": 16},
}  # fmt: skip
CAPTION, MATCH, ANSWER = "BlipForConditionalGeneration", "BlipForImageTextRetrieval", "BlipForQuestionAnswering"
pytestmark = pytest.mark.skipif(not PHOTOS, reason="needs the examples folder")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each class: random weights, a small vocabulary, BLIP's processor."""
    found = {}
    vocab = ["[PAD]", *[f"[unused{i}]" for i in range(99)], "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    vocab += [f"word{i}" for i in range(139 - len(vocab))] + ["[DEC]"]
    for cls in (CAPTION, MATCH, ANSWER):
        folder = tmp_path_factory.mktemp(cls)
        files = {
            "preprocessor_config": {"image_processor_type": "BlipImageProcessor", "size": {"height": 48, "width": 48}},
            "tokenizer_config": {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 40},
        }
        config = CONFIG | {"architectures": [cls]}
        models.write(folder, config, **files)
        weights = models.tensors(config)
        for name in (n for n in weights if "decoder.bias" in n):  # a decoder that says words
            weights[name][:] = 0
            weights[name][:104] = weights[name][139] = -50
        for name, array in weights.items():  # pictures that differ in what they show, not in what all have
            if (name.endswith("bias") and "decoder.bias" not in name) or "position" in name or "class_emb" in name:
                weights[name] = array * np.float32(0.05)
            elif array.ndim == 1 and "norm" in name.lower():
                weights[name] = np.ones_like(array)
            elif array.ndim == 2 and "embed" not in name:
                weights[name] = array * np.float32(2)
        for name, axes in (("class_embedding", (1, 1)), ("position_embedding", (1,))):  # as they are published
            key = f"vision_model.embeddings.{name}"
            weights[key] = weights[key].reshape(*axes, *weights[key].shape)
        save_safetensors(folder / "model.safetensors", weights)
        (folder / "vocab.txt").write_text("\n".join(vocab) + "\n")
        found[cls] = folder
    return found


def test_captions(folders):
    model = bvl.AutoModel.from_pretrained(folders[CAPTION])
    one = model.caption(PHOTOS[0], max_new_tokens=6)
    assert isinstance(one, str) and one
    assert model.caption(PHOTOS, max_new_tokens=6)[0] == one and len(set(model.caption(PHOTOS, max_new_tokens=6))) > 1
    prompted = model.caption(PHOTOS[0], prompt="a picture of", max_new_tokens=6)
    assert prompted.startswith("a picture of ")
    encoded = model.encode_image(PHOTOS[0])
    both = model.caption(encoded, prompt=["a picture of", "the"], max_new_tokens=6)
    assert both[0] == prompted and both[1] == model.caption(encoded, prompt=["the"], max_new_tokens=6)[0]
    assert both[1].startswith("the ")
    with pytest.raises(ValueError, match="found 2 prompts and 3 pictures"):
        model.caption(PHOTOS, prompt=["a", "the"])
    with pytest.raises(ValueError, match="images: the list is empty"):
        model.caption([])
    again = bvl.AutoModel.from_pretrained(folders[CAPTION])
    assert again.caption(encoded, prompt="a picture of", max_new_tokens=6) == [prompted]
    for other in (bvl.AutoModel.from_pretrained(folders[CAPTION], dtype="int8"),
                  bvl.AutoModel.from_pretrained(folders[ANSWER])):  # fmt: skip
        with pytest.raises(ValueError, match="images: encoded by another model"):
            model.caption(other.encode_image(PHOTOS)[0])


def test_answers(folders):
    """A question's answer does not depend on the longer question beside it."""
    model = bvl.AutoModel.from_pretrained(folders[ANSWER])
    asked = ["what is this?", "how many cats in the picture of a man?"]
    both = model.answer(PHOTOS[0], asked, max_new_tokens=8)
    assert both == [model.answer(PHOTOS[0], q, max_new_tokens=8) for q in asked] and all(both) and both[0] != both[1]


def test_matches_and_reranking(folders):
    model = bvl.AutoModel.from_pretrained(folders[MATCH])
    texts = ["a red cup", "an old wall", "two cats"]
    scores = model.match(PHOTOS[0], texts)
    assert scores.shape == (3,) and ((scores > 0) & (scores < 1)).all() and np.ptp(scores) > 1e-4
    encoded = model.encode_image(PHOTOS)
    pairs = model.match(encoded, ["a red cup"] * 3)
    assert pairs[0] == scores[0] and np.ptp(pairs) > 1e-5
    similarity = model.similarity(model.encode(PHOTOS), model.encode(texts))
    by_text = model.rerank("a red cup", encoded, top_k=2, shortlist=3)
    assert [r["corpus_id"] for r in by_text] == list(np.argsort(-pairs)[:2])
    by_picture = model.rerank(PHOTOS[0], texts, top_k=3)
    assert [r["corpus_id"] for r in by_picture] == list(np.argsort(-scores))
    for result in by_picture:
        assert result["similarity"] == pytest.approx(similarity[0, result["corpus_id"]], abs=1e-5)
    with pytest.raises(ValueError, match="texts: the list is empty"):
        model.match(PHOTOS[0], [])
    with pytest.raises(ValueError, match="top_k: found None, expected a whole number from 1"):
        model.rerank("a red cup", encoded, top_k=None)
    long = " ".join(["a red cup"] * 60)
    assert 0 < model.match(PHOTOS[0], [long])[0] < 1  # cut at the model's length
    nearest = int(similarity[0].argmax())
    assert [r["corpus_id"] for r in model.rerank(PHOTOS[0], texts, top_k=1, shortlist=1)] == [nearest]


def test_pipelines(folders):
    read = bvl.pipeline("image-text-to-text", model=str(folders[CAPTION]))
    expected = read.model.caption(PHOTOS, max_new_tokens=6)
    assert read(PHOTOS[0], max_new_tokens=6) == [{"generated_text": expected[0]}]
    assert read(PHOTOS, max_new_tokens=6) == [[{"generated_text": text}] for text in expected]
    (found,) = read(PHOTOS[0], "a picture of", max_new_tokens=6)
    assert found["input_text"] == "a picture of" and found["generated_text"].startswith("a picture of")
    old = bvl.pipeline("image-to-text", model=read.model)
    assert old(PHOTOS[0], prompt="a picture of", max_new_tokens=6) == [{"generated_text": found["generated_text"]}]
    ask = bvl.pipeline("visual-question-answering", model=str(folders[ANSWER]))
    assert ask(PHOTOS[0], "what is this?", max_new_tokens=6) == [
        {"answer": ask.model.answer(PHOTOS[0], "what is this?", max_new_tokens=6)}
    ]
    with pytest.raises(ValueError, match="expected a question"):
        bvl.pipeline("image-text-to-text", model=ask.model)(PHOTOS[0])
    match = bvl.pipeline("image-text-matching", model=str(folders[MATCH]))
    ranked = match(PHOTOS[0], ["a red cup", "two cats"])
    assert ranked[0]["score"] >= ranked[1]["score"] and {r["label"] for r in ranked} == {"a red cup", "two cats"}
    with pytest.raises(ValueError, match="expected one that writes text"):
        bvl.pipeline("image-text-to-text", model=match.model)(PHOTOS[0])
    with pytest.raises(ValueError, match="expected one with a matching head"):
        bvl.pipeline("image-text-matching", model=ask.model)(PHOTOS[0], "a cup")


def test_command_line(folders, capsys):
    model = bvl.AutoModel.from_pretrained(folders[CAPTION])
    assert main(["caption", *PHOTOS[:2], "--model", str(folders[CAPTION]), "--max-new-tokens", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    texts = model.caption(PHOTOS[:2], max_new_tokens=5)
    assert lines == [f"{Path(p).name}: {t}" for p, t in zip(PHOTOS[:2], texts, strict=True)]
    questions = ["what is this?", "how many cats?"]
    assert main(["ask", PHOTOS[0], *questions, "--model", str(folders[ANSWER]), "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [f["input_text"] for f in found] == questions and all(f["image"] == PHOTOS[0] for f in found)
    assert main(["match", PHOTOS[0], "--text", "a red cup", "two cats", "--model", str(folders[MATCH])]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 2
    assert main(["match", PHOTOS[0], "--text", "a", "--model", str(folders[ANSWER])]) == 1
    assert "matching head" in capsys.readouterr().err


def test_verify(folders, capsys):
    """The user's own check knows these models too."""
    pytest.importorskip("transformers", reason="parity needs transformers: pip install 'beyondvl[test]'")
    for cls in (CAPTION, MATCH, ANSWER):
        assert main(["verify", str(folders[cls])]) == 0
        assert "agrees" in capsys.readouterr().out


def test_processor_equals_transformers(folders):
    transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install 'beyondvl[test]'")
    from PIL import Image

    pictures = [Image.open(p).convert("RGB") for p in PHOTOS]
    for size in (48, 384):
        theirs = transformers.BlipImageProcessorPil(size={"height": size, "width": size})
        ours = bvl.BlipImageProcessor.from_pretrained(folders[CAPTION], size={"height": size, "width": size})
        assert np.array_equal(ours(pictures)["pixel_values"], theirs(pictures, return_tensors="np")["pixel_values"])
    tokenizer = transformers.BertTokenizer(str(folders[CAPTION] / "vocab.txt"))
    processor = bvl.BlipProcessor.from_pretrained(folders[CAPTION])
    texts = ["a picture of", "what is this?"]
    expected = tokenizer(texts, padding=True, return_tensors="np", return_token_type_ids=False)
    found = processor(images=pictures[:2], text=texts, padding=True, return_tensors="np")
    assert np.array_equal(found["input_ids"], expected["input_ids"])
    assert np.array_equal(found["attention_mask"], expected["attention_mask"])
    model = bvl.AutoModel.from_pretrained(folders[CAPTION])
    assert model(**found).logits.shape == (2, found["input_ids"].shape[1], 140)
    assert model.generate(**found, max_new_tokens=3).shape[0] == 2
