"""What callers of transformers and sentence-transformers are used to writing does the same here, or says why not."""

from __future__ import annotations

import collections
import copy
import importlib.util
import io
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from test_tasks import CAPTION, PHOTOS, WORDS, folders  # noqa: F401

import beyondvl as bvl
import models
import pictures

BERT = {"model_type": "bert", "architectures": ["BertModel"], "hidden_size": 48, "intermediate_size": 64,
        "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 140, "max_position_embeddings": 40}  # fmt: skip
MODULES = [{"idx": 0, "name": "0", "type": "sentence_transformers.models.Transformer", "path": ""},
           {"idx": 1, "name": "1", "type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]  # fmt: skip


def test_a_streamer_of_transformers_is_told_the_words_as_they_come(folders, default, monkeypatch):  # noqa: F811
    transformers = pytest.importorskip("transformers", reason="parity needs transformers")
    model = bvl.AutoModel.from_pretrained(folders[CAPTION])
    whole = model.generate(images=PHOTOS[:1], max_new_tokens=8)
    texts = []

    class Listener(transformers.TextStreamer):
        def on_finalized_text(self, text, stream_end=False):
            texts.append(text)

    tokenizer = model.tokenizer
    model.generate(images=PHOTOS[:1], max_new_tokens=8, streamer=Listener(tokenizer, skip_special_tokens=True))
    assert "".join(texts).strip() == tokenizer.decode(whole[0], skip_special_tokens=True).strip()
    assert len(texts) > 2

    class Ids:
        def __init__(self):
            self.puts, self.ended = [], 0

        def put(self, ids):
            assert not self.ended
            self.puts.append(ids)

        def end(self):
            self.ended += 1

    seen = []
    monkeypatch.setattr(Listener, "on_finalized_text", lambda self, text, stream_end=False: seen.append(text))
    ids = default.generate(images=PHOTOS[0], streamer=Listener(default.tokenizer, skip_special_tokens=True))
    assert "".join(seen).strip() == default.tokenizer.decode(ids[0], skip_special_tokens=True).strip()
    heard = Ids()
    both = model.generate(images=PHOTOS[:2], max_new_tokens=4, streamer=heard)
    np.testing.assert_array_equal(np.concatenate([heard.puts[0], np.stack(heard.puts[1:], 1)], 1), both)
    assert heard.ended == 1 and heard.puts[1].shape == (2,)
    with pytest.raises(ValueError, match="streamer: found one and num_beams 3, expected no beams"):
        model.generate(images=PHOTOS[:1], num_beams=3, streamer=heard)
    with pytest.raises(ValueError, match="streamer: found 3, expected an object with put and end"):
        model.generate(images=PHOTOS[:1], streamer=3)


@pytest.fixture(scope="module")
def default():
    return bvl.AutoModel.from_pretrained("beyond-vl-model")


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return bvl.AutoModel.from_pretrained(models.write(tmp_path_factory.mktemp("clip")))


def sentence_encoder(folder: Path, pooling: dict, **files) -> Path:
    models.write(folder, BERT, modules=MODULES, **files)
    vocab = ["[PAD]", *[f"[unused{i}]" for i in range(99)], "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocab + [f"word{i}" for i in range(140 - len(vocab))]) + "\n")
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    return folder


# ---- processors


def test_a_path_given_as_images_is_a_picture(default):
    """A string by its name alone may be either; a keyword says which."""
    processor = default.processor
    expected = processor(images=Path(PHOTOS[0]))["pixel_values"]
    for given in ({"images": PHOTOS[0]}, {"images": [PHOTOS[0]]}):
        found = processor(**given)
        assert list(found) == ["pixel_values"] and np.array_equal(found["pixel_values"], expected)
    for args in ((PHOTOS[0],), ("a cat", PHOTOS[0]), (PHOTOS[0], "a cat"), (None, PHOTOS[0])):
        assert np.array_equal(processor(*args)["pixel_values"], expected)
    assert "input_ids" in processor("a cat") and "pixel_values" not in processor("a cat")
    with pytest.raises(bvl.ImageError, match="a cat: cannot be read"):
        processor(images="a cat")
    with pytest.raises(TypeError, match="text: found twice"):
        processor("a cat", text="a dog")


def test_fields_of_an_image_processor_may_be_set(default):
    transformers = pytest.importorskip("transformers", reason="parity needs transformers")
    picture = pictures.photo(90, 70)
    ours = bvl.ImageProcessor(size=48, crop_size=48, do_center_crop=True)
    theirs = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 48}, crop_size=48, image_mean=[0.0] * 3, image_std=[1.0] * 3
    )
    for name, value in (("do_normalize", False), ("do_rescale", False), ("do_normalize", True), ("image_std", [0.5] * 3),
                        ("rescale_factor", 0.5), ("do_rescale", True), ("crop_size", {"height": 20, "width": 30}),
                        ("size", {"height": 40, "width": 50}), ("resample", 2), ("do_center_crop", False)):  # fmt: skip
        before = ours(picture)["pixel_values"]
        expected = theirs(picture, return_tensors="np", **{name: value})["pixel_values"]
        np.testing.assert_array_equal(ours(picture, **{name: value})["pixel_values"], expected)
        np.testing.assert_array_equal(ours(picture)["pixel_values"], before)  # of that call alone
        setattr(ours, name, value)
        setattr(theirs, name, theirs.__class__(**{name: value}).__dict__[name])
        np.testing.assert_array_equal(ours(picture)["pixel_values"], expected)
    ours.crop_size, before = None, ours.to_dict()
    for name, value in {"size": "big", "crop_size": {"height": 0, "width": 1}, "do_center_crop": True, "resample": 9,
                        "image_std": [0.0] * 3, "do_rescale": "no", "rescale_factor": None}.items():  # fmt: skip
        with pytest.raises(bvl.ConfigError, match=r"crop_size|" + name):
            setattr(ours, name, value)
    assert ours.to_dict() == {name: value for name, value in before.items() if name != "crop_size"}
    with pytest.raises(TypeError, match="unexpected arguments: colour"):
        ours(picture, colour=1)
    expected = default.image_processor(picture, do_rescale=False)["pixel_values"]
    np.testing.assert_array_equal(default.processor(images=picture, do_rescale=False)["pixel_values"], expected)


def test_options_of_both_halves_of_a_processor():
    load = bvl.AutoProcessor.from_pretrained
    processor = load(
        "beyond-vl-model", do_rescale=False, size=64, padding_side="left", num_threads=1, fast=True, use_fast=True,
        backend="pil", trust_remote_code=False,
    )  # fmt: skip
    pictures_half, texts = processor.image_processor, processor.tokenizer
    assert (pictures_half.do_rescale, pictures_half.size, pictures_half.fast) == (False, {"shortest_edge": 64}, True)
    assert texts.padding_side == "left"
    with pytest.raises(TypeError, match="nonsense"):
        load("beyond-vl-model", nonsense=1)
    with pytest.raises(ValueError, match="trust_remote_code"):
        bvl.AutoTokenizer.from_pretrained("beyond-vl-model", trust_remote_code=True)


def test_pictures_that_are_no_numbers_are_named(default):
    fine = np.full((40, 50, 3), 0.5, np.float32)
    for bad, message in ((np.full((40, 50, 3), np.nan), "nan"), (fine * 1000, "from 500.* expected whole|0 to 1")):
        with pytest.raises(bvl.ImageError, match=f"image 1: .*(?:{message})") as caught:
            default.encode([fine, bad])
        assert caught.value.index == 1


def test_what_is_no_picture_is_named(default):
    processor = default.image_processor
    for bad in (np.array([["a", "b"]]), np.zeros((4, 4, 3), "M8[s]"), np.zeros((4, 4, 3), object)):
        with pytest.raises(bvl.ImageError, match=r"image 0: array of .*: expected numbers"):
            processor([bad])
    for name in ("a\0b.jpg", "\ud800.jpg"):
        with pytest.raises(bvl.ImageError, match="cannot be read"):
            processor(name)
    with pytest.raises(bvl.ConfigError, match=r"crop_size: found .*, expected height and width"):
        bvl.ImageProcessor(size=20, do_center_crop=True, crop_size={"shortest_edge": 5})


def test_tokenizers(default):
    tokenizer = default.tokenizer
    ids = tokenizer(["a cat", "two dogs"])["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == ["a cat", "two dogs"]
    assert tokenizer.decode(np.array(ids), skip_special_tokens=True)[1] == "two dogs"
    assert tokenizer.decode(ids[0], skip_special_tokens=True) == "a cat" and tokenizer.decode([]) == ""
    long = "one two three four five six seven"
    assert len(tokenizer(long, max_length=5)["input_ids"]) == 5
    assert len(tokenizer(long, max_length=5, truncation=False)["input_ids"]) == 9
    assert list(tokenizer("a", return_attention_mask=False)) == ["input_ids", "token_type_ids"]
    assert list(tokenizer("a", return_token_type_ids=False)) == ["input_ids", "attention_mask"]
    for bad, message in (({"truncation": "garbage"}, "truncation: found 'garbage'"), ({"max_length": 3.0}, "max_length: found 3.0"),
                         ({"max_length": 0, "truncation": True}, "max_length: found 0")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            tokenizer(long, **bad)
    with pytest.raises(TypeError, match="text: found NoneType, expected a text"):
        tokenizer(None)
    with pytest.raises(TypeError, match="text: found int, expected a text"):
        tokenizer.encode(3)
    with pytest.raises(ValueError, match="ids: found -1, expected token ids"):
        tokenizer.decode([3, -1])
    other = bvl.AutoTokenizer.from_pretrained("beyond-vl-model")
    other.pad_token = "cat"
    assert other.pad_token_id == other.convert_tokens_to_ids("cat")
    assert other(["a", "a dog"], padding=True)["input_ids"][0][-1] == other.pad_token_id
    with pytest.warns(UserWarning, match="pad_token: 'no such token' is not in the vocabulary"):
        other.pad_token = "no such token"
    assert other.pad_token_id == other.unk_token_id
    other.unk_token = None
    with pytest.raises(ValueError, match="pad_token: found 'nor this one'"):
        other.pad_token = "nor this one"


def test_siglip2_pads_as_its_class_does(tmp_path):
    """On the left, unless the folder says otherwise; its processor pads every text to 64."""
    files = {"tokenizer_config": {"tokenizer_class": "Siglip2Tokenizer"}, "config": {"model_type": "siglip2"},
             "preprocessor_config": {"image_processor_type": "Siglip2ImageProcessor"}}  # fmt: skip
    for name, content in files.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<bos>", "<unk>", "\u2581", *"act"])}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [], "unk_token": "<unk>"}
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "model": model, "added_tokens": []}))
    processor = bvl.Siglip2Processor.from_pretrained(tmp_path)
    row = processor(text="a cat", return_tensors="np")["input_ids"][0]
    assert len(row) == 64 and row[0] == processor.tokenizer.pad_token_id and row[-1] != row[0]
    assert processor(text="a cat", padding="longest", return_tensors="np")["input_ids"].shape[1] < 64
    files["tokenizer_config"]["padding_side"] = "right"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(files["tokenizer_config"]))
    assert bvl.AutoProcessor.from_pretrained(tmp_path)(text=["a cat"])["input_ids"][0][-1] == row[0]


# ---- models


def test_inputs_without_a_name(clip, tmp_path):
    given = models.inputs()
    ids, mask, pixels = given["input_ids"], given["attention_mask"], given["pixel_values"]
    expected = clip(**given)
    np.testing.assert_array_equal(clip(ids, pixels, mask).text_embeds, expected.text_embeds)
    vision, text = (
        getattr(bvl, f"CLIP{kind}ModelWithProjection").from_pretrained(clip.folder) for kind in ("Vision", "Text")
    )
    np.testing.assert_array_equal(vision(pixels).image_embeds, vision(pixel_values=pixels).image_embeds)
    np.testing.assert_array_equal(text(ids, mask).text_embeds, text(input_ids=ids, attention_mask=mask).text_embeds)
    with pytest.raises(TypeError, match="found 2 inputs without a name, expected at most 1: pixel_values"):
        vision(pixels, mask)
    with pytest.raises(TypeError, match="input_ids: found twice"):
        text(ids, input_ids=ids)


def test_other_floats_are_converted(clip):
    torch = pytest.importorskip("torch", reason="needs torch")
    given = models.inputs()
    expected = clip(**given)
    pixels = given["pixel_values"].astype(np.float16)
    half = clip(pixel_values=pixels.astype(np.float32)).image_embeds
    for same in (pixels, torch.from_numpy(pixels), pixels.astype(np.float64), pixels.tolist()):
        np.testing.assert_array_equal(np.asarray(clip(pixel_values=same).image_embeds), half)
    rough = torch.from_numpy(given["pixel_values"]).to(torch.bfloat16)
    found = clip(pixel_values=rough).image_embeds
    assert torch.equal(found, clip(pixel_values=rough.float()).image_embeds)
    mask = given["attention_mask"].astype(np.float32)
    np.testing.assert_array_equal(clip(given["input_ids"], attention_mask=mask).text_embeds, expected.text_embeds)
    with pytest.raises(ValueError, match="attention_mask: found dtype float32, expected integers"):
        clip(given["input_ids"], attention_mask=mask * 0.5)
    features = clip.get_image_features(torch.from_numpy(given["pixel_values"]))
    assert torch.equal(features.pooler_output, features)
    picture = torch.from_numpy(np.array(pictures.photo(60, 50))).float() / 255
    image_processor = bvl.ImageProcessor(size=48)
    expected = image_processor(picture.to(torch.bfloat16).float())["pixel_values"]
    np.testing.assert_array_equal(image_processor(picture.to(torch.bfloat16))["pixel_values"], expected)


def test_to_and_dtype(clip):
    torch = pytest.importorskip("torch", reason="needs torch")
    assert clip.to("cpu") is clip and clip.to(torch.float32) is clip and clip.to(dtype=torch.float32) is clip
    assert clip.to(torch.device("cpu")) is clip
    with pytest.raises(ValueError, match="dtype: found bfloat16, expected float32"):
        clip.to(torch.bfloat16)
    with pytest.raises(ValueError, match="device: found 'cuda'"):
        clip.to("cuda")
    inputs = bvl.ImageProcessor(size=48)(pictures.photo(60, 60), return_tensors="pt")
    assert inputs.to("cpu") is inputs and inputs.to(torch.bfloat16).pixel_values.dtype == torch.bfloat16
    load = bvl.AutoModel.from_pretrained
    assert load(clip.folder, torch_dtype=torch.bfloat16).dtype == "bfloat16"
    with pytest.raises(ValueError, match="dtype: found 'garbage'"):
        load(clip.folder, torch_dtype="garbage")


def test_copies_and_pickles(clip):
    assert copy.deepcopy(clip).towers is clip.towers and copy.copy(clip).towers is clip.towers
    again = pickle.loads(pickle.dumps(clip))
    assert type(again) is type(clip) and again.num_threads == clip.num_threads
    np.testing.assert_array_equal(again(**models.inputs()).image_embeds, clip(**models.inputs()).image_embeds)


# ---- embeddings


@pytest.mark.parametrize(
    "pooling", [{"pooling_mode": "mean"}, {"pooling_mode_mean_tokens": True}, {"pooling_mode": ["mean"]}]
)
def test_sentence_encoders_of_every_version(tmp_path, pooling):
    model = bvl.AutoModel.from_pretrained(sentence_encoder(tmp_path / "model", pooling | {"embedding_dimension": 48}))
    hidden = model(**model.tokenizer("a cat", return_tensors="np")).last_hidden_state
    np.testing.assert_allclose(model.encode("a cat"), hidden[0].mean(0), atol=1e-6)


def test_sentence_encoders_of_other_kinds_are_refused(tmp_path):
    for i, (pooling, message) in enumerate((({"pooling_mode": "max"}, "pooling .'max'."), ({}, r"pooling \[\]"),
                                            ({"pooling_mode": "mean", "include_prompt": False}, "include_prompt"))):  # fmt: skip
        with pytest.raises(bvl.ConfigError, match=message):
            bvl.AutoModel.from_pretrained(sentence_encoder(tmp_path / str(i), pooling))


def test_prompts_of_sentence_encoders(tmp_path):
    files = {
        "config_sentence_transformers": {
            "prompts": {"query": "what is ", "passage": "the "},
            "default_prompt_name": "query",
        }
    }
    model = bvl.AutoModel.from_pretrained(sentence_encoder(tmp_path / "model", {"pooling_mode": "mean"}, **files))
    plain = model.encode("a cat", prompt="")
    asked = model.encode("what is a cat", prompt="")
    assert np.abs(asked - plain).max() > 0.01
    for found in (model.encode("a cat"), model.encode(["a cat"], prompt_name="query")[0], model.encode_query({"text": "a cat"}),
                  model.encode("a cat", prompt="what is ")):  # fmt: skip
        np.testing.assert_array_equal(found, asked)
    # every model has a prompt named "document", empty here: that of passages is asked for by name
    np.testing.assert_array_equal(model.encode_document("a cat"), plain)
    passage = model.encode("the a cat", prompt="")
    np.testing.assert_array_equal(model.encode_document("a cat", prompt_name="passage"), passage)
    with pytest.raises(ValueError, match="prompt_name: found 'other', expected one of query, document, passage"):
        model.encode("a cat", prompt_name="other")
    files["config_sentence_transformers"]["default_prompt_name"] = "other"
    with pytest.raises(bvl.ConfigError, match="default_prompt_name: found 'other'"):
        bvl.AutoModel.from_pretrained(sentence_encoder(tmp_path / "other", {"pooling_mode": "mean"}, **files))


def test_encode_takes_arrays_of_texts(default):
    expected = default.encode(["a cat", "a dog"])
    for texts in (np.array(["a cat", "a dog"]), np.array(["a cat", "a dog"], object)):
        np.testing.assert_array_equal(default.encode(texts, batch_size=np.int64(4)), expected)
    rows = default.encode(["a cat", "a dog"], convert_to_numpy=False)
    assert isinstance(rows, list) and all(map(np.array_equal, rows, expected))
    assert all(type(row).__name__ == "Tensor" for row in rows)
    hits = bvl.semantic_search(query_embeddings=expected[:1], corpus_embeddings=expected, top_k=1)
    assert hits[0][0]["corpus_id"] == 0
    with pytest.raises(ValueError, match="corpus_chunk_size: found 0"):
        bvl.semantic_search(expected, expected, corpus_chunk_size=0)


# ---- words


def test_generate_takes_what_transformers_takes(folders):  # noqa: F811
    model = bvl.AutoModel.from_pretrained(folders[CAPTION])
    encoded = model.encode_image(PHOTOS[:2])
    expected = model.generate(images=encoded, max_new_tokens=5)
    found = model.generate(
        images=encoded, max_new_tokens=np.int64(5), use_cache=True, streamer=None, stopping_criteria=None
    )
    np.testing.assert_array_equal(found, expected)
    drawn = model.generate(
        images=encoded, do_sample=True, num_return_sequences=3, max_new_tokens=5, temperature=3.0, seed=1
    )
    assert drawn.shape[0] == 6 and len({tuple(row) for row in drawn[:3]}) > 1
    for bad, message in (({"num_return_sequences": 2}, "num_return_sequences: found 2, expected a whole number from 1 to 1"),
                         ({"seed": -1}, "seed: found -1"),
                         ({"eos_token_id": []}, "eos_token_id: found no ids")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            model.generate(images=encoded, **bad)
    for prompt in (("a picture of", "the"), ["a picture of", "the"]):
        assert len(model.caption(PHOTOS[0], prompt=prompt, max_new_tokens=3)) == 2
    for size in (0, -1, 1.5):
        with pytest.raises(ValueError, match=f"batch_size: found {size}, expected a whole number from 1"):
            model.encode_image(PHOTOS, batch_size=size)
    ids = np.full((1, 6), 104)
    for mask in (np.ones((1, 5), int), np.ones((1, 7), int), np.ones((2, 6), int)):
        with pytest.raises(ValueError, match=r"attention_mask: found shape \(., .\), expected \(1, 6\)"):
            model.generate(images=encoded, input_ids=ids, attention_mask=mask)


def test_several_ids_may_end_a_sequence(folders):  # noqa: F811
    """Whichever comes first; a beam search keeps more continuations then, as transformers does (test_language.py)."""
    model = bvl.AutoModel.from_pretrained(folders[CAPTION])
    encoded = model.encode_image(PHOTOS[0])
    plain = model.generate(images=encoded, max_new_tokens=8)[0]
    end = int(plain[4])
    stopped = model.generate(images=encoded, max_new_tokens=8, eos_token_id=[102, end])[0]
    at = plain.tolist().index(end, 1)
    np.testing.assert_array_equal(stopped, plain[: at + 1])


def test_ids_beyond_the_vocabulary_are_refused(folders):  # noqa: F811
    model = bvl.AutoModel.from_pretrained(folders[CAPTION])
    encoded = model.encode_image(PHOTOS[0])
    for name in ("suppress_tokens", "begin_suppress_tokens", "eos_token_id"):
        for write in (model.generate, model.stream):
            with pytest.raises(ValueError, match=f"{name}: found 140, expected at most 139"):
                write(images=encoded, min_length=9, **{name: [140]})
    for bad, message in (({"length_penalty": 1e10, "num_beams": 2}, "length_penalty: found 1"),
                         ({"suppress_tokens": [True]}, "suppress_tokens: found .True."),
                         ({"logits_processor": [lambda ids, scores: scores.tolist()]}, "returned list, expected scores")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            model.generate(images=encoded, **bad)


# ---- pipelines and commands


def test_pipelines(default):
    classify = bvl.pipeline("zero-shot-image-classification", default, device="cpu", batch_size=2)
    labels = ["cat", "rocket"]
    expected = classify(PHOTOS, candidate_labels=labels)
    assert classify(image=PHOTOS, candidate_labels=np.array(labels)) == expected
    assert classify(images=PHOTOS, candidate_labels="cat, rocket") == expected
    for bad, message in (([], "found none"), (None, "found none"), ([1], "candidate_labels: found 1")):
        with pytest.raises(ValueError, match=message):
            classify(PHOTOS[0], candidate_labels=bad)
    with pytest.raises(ValueError, match="dtype: found int8, expected float32"):
        bvl.pipeline("zero-shot-image-classification", default, dtype="int8")
    with pytest.raises(TypeError, match="unexpected arguments: made_up"):
        bvl.pipeline("zero-shot-image-classification", default, made_up=1)
    with pytest.raises(ValueError, match="device: found 'cuda'"):
        bvl.pipeline("zero-shot-image-classification", default, device="cuda")
    with pytest.raises(ValueError, match="batch_size: found 0"):
        classify(PHOTOS[0], candidate_labels=labels, batch_size=0)
    for task in ("zero-shot-video-classification", "zero-shot-image-classification"):
        assert bvl.pipeline(task, default)([], candidate_labels=labels) == []
    assert bvl.pipeline("image-feature-extraction", default)([]) == []


def test_columns_of_tables_and_iterators(default):
    """Whatever holds texts or files in order: each library's own column, where it is installed."""
    texts = ["a red car", "two dogs", "the sea"]
    expected = default.encode(texts)
    columns = [iter(texts), (text for text in texts), map(str.strip, texts), collections.deque(texts),
               np.array(texts), np.array(texts, object)]  # fmt: skip
    for name, make in (
        ("pyarrow", lambda m: m.chunked_array([texts[:2], texts[2:]])),
        ("pandas", lambda m: m.Series(texts, index=[5, 6, 7])),
        ("polars", lambda m: m.Series(texts)),
        ("datasets", lambda m: m.Dataset.from_dict({"text": texts})["text"]),
    ):
        if importlib.util.find_spec(name):
            columns.append(make(importlib.import_module(name)))
    for column in columns:
        np.testing.assert_array_equal(default.encode(column), expected, err_msg=type(column).__name__)
    photo = pictures.EXAMPLES / "cat.jpg"
    several = default.encode(io.BytesIO(photo.read_bytes()) for _ in range(2))
    assert several.shape == (2, 384)
    with open(photo, "rb") as file:  # a file is an iterator of its lines, and one picture
        np.testing.assert_array_equal(default.encode(file), several[0])
    assert default.encode(iter(())).shape == (0, 384)
