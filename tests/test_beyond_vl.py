"""Beyond VL over random weights: the core against its torch twin, any subset of inputs, masks, batches, words."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

import beyondvl as bvl
import models
from beyondvl import _C
from beyondvl.processing.motion import GRID, columns, motion
from beyondvl.weights import save_safetensors

torch = pytest.importorskip("torch", reason="the twin needs torch: pip install 'beyondvl[test]'")
from beyond_vl_twin import expected, twin, twin_of  # noqa: E402

VOCABULARY = [0, 101, 102, 7, 9, 30, 31, 40, 55, 56, 57, 58]
CONFIG = {
    "model_type": "beyond_vl",
    "architectures": ["BeyondVLForConditionalGeneration"],
    "hidden_size": 48,
    "num_attention_heads": 3,
    "num_query_tokens": 5,
    "num_frames": 3,
    "head_size": 33,
    "audio_pooling": 5,
    "video_rows_config": {"num_hidden_layers": 1, "intermediate_size": 30},
    "qformer_config": {"num_hidden_layers": 2, "intermediate_size": 80},
    "cformer_config": {"num_hidden_layers": 1, "intermediate_size": 70},
    "decoder_config": {"num_hidden_layers": 2, "intermediate_size": 64, "token_ids": VOCABULARY,
                       "max_position_embeddings": 24},
    "text_config": {"model_type": "bert", "hidden_size": 40, "num_attention_heads": 2, "num_hidden_layers": 2,
                    "intermediate_size": 60, "vocab_size": 120, "max_position_embeddings": 20},
    "vision_config": {"model_type": "efficientnet_lite", "variant": "efficientnet-lite0", "image_size": 96,
                      "num_labels": 7},
    "audio_config": {"model_type": "whisper", "d_model": 32, "encoder_attention_heads": 2, "encoder_layers": 2,
                     "encoder_ffn_dim": 50, "max_source_positions": 50, "num_mel_bins": 12,
                     "decoder_layers": 1, "decoder_attention_heads": 2},
}  # fmt: skip
SWAPPED = CONFIG | {
    "text_config": {"model_type": "clip_text_model", "hidden_size": 36, "num_attention_heads": 2,
                    "num_hidden_layers": 2, "intermediate_size": 60, "vocab_size": 120, "max_position_embeddings": 20,
                    "eos_token_id": 102},
    "vision_config": {"model_type": "clip_vision_model", "hidden_size": 44, "num_attention_heads": 2,
                      "num_hidden_layers": 2, "intermediate_size": 60, "image_size": 36, "patch_size": 9},
}  # fmt: skip
SIDES = ("text", "image", "video", "audio")


def inputs(config: dict, batch: int = 3) -> dict[str, np.ndarray]:
    """Inputs of every modality: texts of two lengths, sounds of one window and of two."""
    rng = np.random.default_rng(5)
    size = config["vision_config"]["image_size"]
    ids = rng.integers(1, 110, (batch, 7))
    mask = np.ones_like(ids)
    mask[1, 4:] = 0
    heard = np.ones((batch, 200), np.int64)
    heard[0, 70:] = 0
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "pixel_values": rng.normal(size=(batch, 3, size, size)).astype(np.float32),
        "pixel_values_videos": rng.normal(size=(batch, 3, 3, size, size)).astype(np.float32),
        "input_features": rng.normal(size=(batch, 12, 200)).astype(np.float32),
        "feature_attention_mask": heard,
    }


FIELDS = {
    "text": ("input_ids", "attention_mask"),
    "image": ("pixel_values",),
    "video": ("pixel_values_videos",),
    "audio": ("input_features", "feature_attention_mask"),
}


@pytest.fixture(scope="module", params=["own towers", "swapped towers"])
def pair(request, tmp_path_factory):
    """The model and its twin over the same weights."""
    config = CONFIG if request.param == "own towers" else SWAPPED
    folder = models.write(tmp_path_factory.mktemp("beyond_vl"), config)
    return bvl.AutoModel.from_pretrained(folder), twin_of(config, models.tensors(config))


@pytest.mark.parametrize("sides", [SIDES, ("image",), ("audio", "text"), ("text",), ("video", "image")], ids=" ".join)
def test_equals_its_twin(pair, sides):
    model, other = pair
    given = {name: array for name, array in inputs(dict(model.config.to_dict())).items()
             if any(name in FIELDS[side] for side in sides)}  # fmt: skip
    ids = np.array([[1, 5, 9, 3], [1, 6, 6, 2], [1, 11, 4, 4]])
    outputs = model(**given, decoder_input_ids=ids)
    reference = expected(model, other, given, ids)
    mask = reference["fused_hidden_state"].any(-1, keepdims=True)
    outputs["fused_hidden_state"] = outputs["fused_hidden_state"] * mask
    logits = {f"logits_per_{side}" for side in sides if side != "text" and "text" in sides}
    alone = {"logits_per_text"} if len(logits) == 1 else set()
    assert set(outputs) == set(reference) | logits | alone
    for name, array in reference.items():
        assert np.abs(outputs[name] - array).max() <= 1e-5 * max(1, np.abs(array).max()), name
        assert np.ptp(array, axis=0).max() > 2e-4, f"{name}: all items look alike"


def test_rows_are_bitwise_alone_and_masked_rows_change_nothing(pair):
    model, _ = pair
    given = inputs(dict(model.config.to_dict()))
    ids = np.array([[1, 5, 9]] * 3)
    whole = model(**given, decoder_input_ids=ids)
    alone = [model(**{n: a[i : i + 1] for n, a in given.items()}, decoder_input_ids=ids[:1]) for i in range(3)]
    for name in ("image_embeds", "video_embeds", "audio_embeds", "text_embeds", "match_logits", "logits"):
        np.testing.assert_array_equal(whole[name], np.concatenate([one[name] for one in alone]), name)
    other = {name: array.copy() for name, array in given.items()}
    other["input_ids"][1, 4:] = 77
    other["input_features"][0, :, 100:] = 9.0  # the second window of a sound that ends in the first
    changed = model(**other, decoder_input_ids=ids)
    for name in ("audio_embeds", "text_embeds", "match_logits", "logits"):
        np.testing.assert_array_equal(whole[name], changed[name], name)
    threads = type(model).from_pretrained(model.folder, num_threads=1)(**given, decoder_input_ids=ids)
    np.testing.assert_array_equal(whole.logits, threads.logits)


def test_twenty_steps_over_swapped_towers(tmp_path):
    """Another family's towers, formers of this one: training on a batch lowers its loss, leaves the towers as they were,
    and the core says of the checkpoint what the twin says."""
    weights = models.tensors(SWAPPED)
    model = bvl.AutoModel.from_pretrained(models.write(tmp_path / "before", SWAPPED))
    pixels = np.random.default_rng(1).normal(size=(8, 3, 36, 36)).astype(np.float32)
    states = model.run_tower("vision", {"pixel_values": pixels}, ["last_hidden_state"])["last_hidden_state"]
    torch.manual_seed(0)
    other = twin.BeyondVL(SWAPPED, dropout=0.0).eval()  # the head drops parts in training
    own = {name: torch.from_numpy(array.copy()) for name, array in weights.items() if name in other.state_dict()}
    other.load_state_dict({name: array.reshape(other.state_dict()[name].shape) for name, array in own.items()})
    ids = torch.from_numpy(np.random.default_rng(2).integers(3, len(VOCABULARY), (8, 6)))

    def logits() -> torch.Tensor:
        embeds, rows, _ = other.image(torch.from_numpy(states), None)
        stream, mask = other.cformer({"image": torch.cat([embeds[:, None], other.drawn("image", rows)[0]], 1)})
        return other.decoder(ids[:, :-1], stream, mask)

    optimizer, losses = torch.optim.Adam(other.parameters(), 2e-3), []
    for _ in range(20):
        loss = torch.nn.functional.cross_entropy(logits().flatten(0, 1), ids[:, 1:].flatten())
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]
    trained = {name: tensor.numpy() for name, tensor in other.state_dict().items()}
    folder = shutil.copytree(tmp_path / "before", tmp_path / "after")
    save_safetensors(folder / "model.safetensors", weights | trained)
    after = bvl.AutoModel.from_pretrained(folder)
    np.testing.assert_array_equal(
        after.run_tower("vision", {"pixel_values": pixels}, ["last_hidden_state"])["last_hidden_state"], states
    )
    found = after(pixel_values=pixels, decoder_input_ids=ids[:, :-1].numpy()).logits
    with torch.no_grad():
        expected = logits().numpy()
    assert np.abs(found - expected).max() <= 1e-4 * max(1, np.abs(expected).max())
    assert np.ptp(expected, axis=0).max() > 1e-2  # pictures differ


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """With a tokenizer and processors: pieces of words are their ids."""
    tokenizers = pytest.importorskip("tokenizers")
    folder = models.write(tmp_path_factory.mktemp("beyond_vl"), CONFIG)
    weights = models.tensors(CONFIG)
    weights["decoder.embed_tokens.weight"][:3] *= 0.2  # words, and a text that ends late
    save_safetensors(folder / "model.safetensors", weights)
    words = {"[PAD]": 0, "[CLS]": 101, "[SEP]": 102, "[UNK]": 100}
    words |= {f"w{i}": i for i in range(120) if i not in words.values()}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordPiece(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 101), ("[SEP]", 102)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names | {"model_max_length": 20}))
    picture = {"image_processor_type": "CLIPImageProcessor", "size": {"height": 96, "width": 96},
               "do_center_crop": False, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}  # fmt: skip
    sound = {"feature_extractor_type": "BeyondVLFeatureExtractor", "feature_size": 12, "chunk_length": 1}
    parts = {"processor_class": "BeyondVLProcessor", "image_processor": picture, "feature_extractor": sound}
    (folder / "processor_config.json").write_text(json.dumps(parts))
    return bvl.AutoModel.from_pretrained(folder)


RNG = np.random.default_rng(3)
PICTURES = [RNG.integers(0, 255, (40, 50, 3), dtype=np.uint8) for _ in range(3)]
CLIP = RNG.integers(0, 255, (6, 30, 30, 3), dtype=np.uint8)
SOUNDS = [(RNG.normal(0, 0.3, n).astype(np.float32), 16_000) for n in (9_000, 30_000)]


def test_words_about_everything(model):
    captions = model.caption(PICTURES, max_new_tokens=6)
    assert captions == [model.caption(picture, max_new_tokens=6) for picture in PICTURES]
    assert all(set(text.split()) <= {f"w{i}" for i in VOCABULARY} for text in captions) and any(captions)
    photo = model.encode_image(PICTURES)
    assert model.caption(photo, max_new_tokens=6) == captions
    one = model.answer(photo[0], ["w30 w31", "w9"], max_new_tokens=5)
    assert one == [model.answer(PICTURES[0], question, max_new_tokens=5) for question in ("w30 w31", "w9")]
    clip, sounds = model.encode_video(CLIP), model.encode_audio(SOUNDS)
    assert (len(clip), len(sounds), clip.modality, sounds.modality) == (1, 2, "video", "audio")
    assert model.caption(clip, max_new_tokens=4) == [model.caption(CLIP, max_new_tokens=4)]
    assert model.caption(sounds, max_new_tokens=4) == [model.caption(s, max_new_tokens=4) for s in SOUNDS]
    assert model.answer(sounds, "w9", max_new_tokens=4)[0] == model.answer(SOUNDS[0], "w9", max_new_tokens=4)
    begun = model.caption(photo[1], prompt="w30 w55", max_new_tokens=3, num_beams=2)
    assert begun[0].startswith("w30 w55")
    with pytest.raises(ValueError, match="w77"):
        model.caption(photo[1], prompt="w77")
    with pytest.raises(ValueError, match="audio and image"):
        model.caption([PICTURES[0], SOUNDS[0]])


def confident(model, tmp_path, least: float) -> bvl.PreTrainedModel:
    """The same weights with a confidence that grows with the cosine, and falls with that of the best name."""
    section = {"caption": [0.0, 0.0, 5.0, -2.0, -1.0], "answer": [0.5, 0.25, 1.0], "name": [1.0, 2.0], "least": least,
               "names": ["w30", "w31", "w40"]}  # fmt: skip
    folder = shutil.copytree(model.folder, tmp_path / f"least-{least}")
    config = json.loads((folder / "config.json").read_text()) | {"confidence": section}
    (folder / "config.json").write_text(json.dumps(config))
    return bvl.AutoModel.from_pretrained(folder)


def test_words_carry_a_confidence(model, tmp_path):
    """Without a section the geometric mean of the tokens' probabilities, by the logits of the same call."""
    pixels = model.image_processor(PICTURES)["pixel_values"]
    captions = model.caption(PICTURES, max_new_tokens=6)
    ids = model.generate(pixel_values=pixels, max_new_tokens=6)
    own = np.array([[VOCABULARY.index(i) for i in row] for row in ids.tolist()])
    logits = model(pixel_values=pixels, decoder_input_ids=own[:, :-1]).logits.astype(np.float64)
    chances = np.log(np.exp(logits) / np.exp(logits).sum(2, keepdims=True))
    logs = np.take_along_axis(chances, own[:, 1:, None], 2)[:, :, 0]
    for caption, row, line in zip(captions, logs, own[:, 1:].tolist(), strict=True):
        length = line.index(2) + 1 if 2 in line else len(line)
        assert caption.confidence == pytest.approx(np.exp(row[:length].mean()), 1e-4)
    assert pickle.loads(pickle.dumps(captions[0])).confidence == captions[0].confidence
    sure = confident(model, tmp_path, 0.0)
    for picture, caption in zip(PICTURES, sure.caption(PICTURES, max_new_tokens=6), strict=True):
        texts = [caption or "nothing", *(f"a photo of {name}" for name in ("w30", "w31", "w40"))]
        rows = sure.encode([picture, *({"text": text} for text in texts)])
        cosine, *named = sure.similarity(rows[:1], rows[1:])[0]
        assert caption.confidence == pytest.approx(1 / (1 + np.exp(1 - 5 * cosine + 2 * max(named))), 1e-4)
    answer = sure.answer(PICTURES[0], "w9", max_new_tokens=5)
    text = sure.texts("w9")
    ids = sure.generate(**text, pixel_values=pixels[:1], max_new_tokens=5)[0].tolist()
    line = [VOCABULARY.index(i) for i in ids]
    logits = sure(**text, pixel_values=pixels[:1], decoder_input_ids=[line[:-1]]).logits[0].astype(np.float64)
    row = np.log(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))[np.arange(len(line) - 1), line[1:]]
    row = row[: line[1:].index(2) + 1 if 2 in line[1:] else None]
    assert answer.confidence == pytest.approx(1 / (1 + np.exp(-(0.5 * row.mean() + 0.25 * row.min() + 1))), 1e-4)


def test_an_unsure_caption_gives_way_to_a_name(model, tmp_path):
    unsure = confident(model, tmp_path, 1.0)
    captions = unsure.caption(PICTURES, max_new_tokens=6)
    names = ["w30", "w31", "w40"]
    rows = unsure.encode([{"text": f"a photo of {name}"} for name in names], normalize_embeddings=True)
    seen = unsure.encode(PICTURES, normalize_embeddings=True)
    scores = np.exp(np.float32(unsure.logit_scale) * seen @ rows.T)
    shares = scores / scores.sum(1, keepdims=True)
    for caption, share in zip(captions, shares, strict=True):
        assert caption == f"probably {names[share.argmax()]}"
        assert caption.confidence == pytest.approx(1 / (1 + np.exp(-(np.log(share.max()) + 2))), 1e-4)
    assert not unsure.caption(PICTURES, prompt="w30", max_new_tokens=3)[0].startswith("probably")  # begun as asked
    assert not unsure.caption(SOUNDS[0], max_new_tokens=3).startswith("probably")
    results = bvl.pipeline("image-text-to-text", unsure)(PICTURES[0])
    assert results == [{"generated_text": captions[0], "score": captions[0].confidence}]


def test_a_confidence_that_makes_no_sense_is_refused(model, tmp_path):
    bad = confident(model, tmp_path, 0.5)
    path = Path(bad.folder) / "config.json"
    path.write_text(path.read_text().replace("[1.0, 2.0]", "[1.0]"))
    with pytest.raises(bvl.ConfigError, match=r"confidence: name: found \[1.0\], expected 2 numbers"):
        bvl.AutoModel.from_pretrained(bad.folder).caption(PICTURES[0])


@pytest.mark.parametrize("way", [(0, 1), (0, -1), (1, 0), (-1, 0)])
def test_which_way_things_move_is_in_the_numbers_of_a_clip(way):
    """What goes over a still scene makes departures like those of the frame before, one cell on."""
    rng = np.random.default_rng(3)
    cells = np.tile(rng.normal(size=(1, 1, GRID * GRID, 20)).astype(np.float32), (1, 3, 1, 1))
    thing, place = rng.normal(size=20).astype(np.float32), np.array([1, 1]) - np.array(way)
    for frame in range(3):
        cells[0, frame, place[0] * GRID + place[1]] += thing
        place += way
    numbers = motion(cells)
    assert numbers.shape == (1, columns(3, GRID * GRID, 20))
    width = 2 * GRID - 1
    after_one = numbers[0, 20 + 3 * GRID * GRID :].reshape(2, width, width)[0]
    assert np.unravel_index(after_one.argmax(), after_one.shape) == (GRID - 1 + way[0], GRID - 1 + way[1])
    still = motion(np.repeat(cells[:, :1], 3, 1))
    assert np.isfinite(still).all() and np.abs(still[0, 20 + 3 * GRID * GRID :]).max() < 1e-3


def test_what_a_processor_makes_goes_into_every_call(model):
    """generate(**inputs) and stream(**inputs) of any subset, in the caller's kind of array; one of an input serves many
    of another."""
    processor = model.processor
    made = processor(text=["w1 w2"], images=PICTURES[:3], audio=[SOUNDS[0]], return_tensors="pt", padding=True)
    assert "token_type_ids" in made and set(made) <= {*processor.model_input_names, "pixel_values_videos"}
    ids = model.generate(**made, max_new_tokens=4)
    assert ids.dtype == torch.int64 and len(ids) == 3
    steps = [torch.from_numpy(step) for step in model.stream(**made, max_new_tokens=4)]
    streamed = torch.stack(steps, 1)
    assert torch.equal(ids[:, 1 : 1 + streamed.shape[1]], streamed)
    single = [model.generate(**processor(text=["w1 w2"], images=[picture], audio=[SOUNDS[0]], return_tensors="np"),
                             max_new_tokens=4) for picture in PICTURES[:3]]  # fmt: skip
    for row, other in zip(ids.numpy(), single, strict=True):
        np.testing.assert_array_equal(row[: other.shape[1]], other[0])
    clips = processor(videos=[CLIP], return_tensors="pt")
    assert model.generate(**clips, max_new_tokens=3).dtype == torch.int64
    assert len(list(model.stream(**clips, max_new_tokens=3))) >= 1
    with pytest.raises(ValueError, match=r"\[2, 3\] items"):
        model.generate(images=PICTURES[:3], **processor(text=["w1", "w2"], padding=True, return_tensors="np"))
    pair = processor(text=["w1 w2"], return_tensors="np")
    types = np.ones_like(pair["token_type_ids"])
    moved = model(**pair | {"token_type_ids": types}).text_embeds - model(**pair).text_embeds
    assert np.abs(moved).max() > 1e-4
    assert processor(audio=SOUNDS[0], padding=True, return_attention_mask=True)["feature_attention_mask"]
    with pytest.raises(ValueError, match="truncation"):
        processor(audio=SOUNDS[0], truncation=True)


def test_options_of_encode_are_of_encode_alone(model):
    """Captions, confidences and what ranks again are the same whatever `encode` is told."""
    texts = ["w1 w2", "w3"]
    rows, said = model.rerank(PICTURES[0], texts), model.caption(PICTURES[0], max_new_tokens=3)
    with model.truncate_embeddings(8):
        assert model.rerank(PICTURES[0], texts) == rows and model.rerank("w1", PICTURES[:2])
        again = model.caption(PICTURES[0], max_new_tokens=3)
    assert again == said and again.confidence == said.confidence


def test_sounds_of_several_lengths_are_those_of_each_alone(model):
    long = (np.tile(SOUNDS[0][0], 5), SOUNDS[0][1])
    together = model.encode_audio([long, SOUNDS[1], SOUNDS[0]])
    for at, sound in enumerate((long, SOUNDS[1], SOUNDS[0])):
        np.testing.assert_array_equal(together.embeds[at], model.encode_audio(sound).embeds[0])
    with pytest.raises(bvl.AudioError, match="sound 1:"):
        model.encode_audio([long, "nowhere.wav"])
    with pytest.raises(ValueError, match="the list is empty"):
        model.rerank(PICTURES[0], [])
    rows = model.encode([{"audio": sound} for sound in (long, SOUNDS[1], SOUNDS[0])])
    np.testing.assert_array_equal(rows, together.embeds[:, 0])


def test_a_clip_is_embedded_of_as_many_frames_as_are_asked_for(model):
    """`fps` and `num_frames` as with every model of pictures; of as many frames as the model takes it is the same."""
    own, same, more = model.encode(
        [{"video": CLIP}, {"video": CLIP, "num_frames": 3}, {"video": CLIP, "num_frames": 6}]
    )
    np.testing.assert_allclose(same, own, atol=1e-6)
    frames = model.encode([{"image": frame} for frame in CLIP], normalize_embeddings=True).mean(0)
    np.testing.assert_allclose(more / np.linalg.norm(more), frames / np.linalg.norm(frames), atol=1e-5)
    assert np.abs(more - own).max() > 1e-4


def test_pipelines_take_clips_and_sounds(model):
    write = bvl.pipeline("image-text-to-text", model=model)
    (said,) = write(SOUNDS[0], max_new_tokens=3)
    assert said["generated_text"] == model.caption(SOUNDS[0], max_new_tokens=3)
    (said,) = write(PICTURES[0], text="w1?", max_new_tokens=3)
    assert said["generated_text"] == model.answer(PICTURES[0], "w1?", max_new_tokens=3)
    with pytest.raises(ValueError, match="expected a question"):
        bvl.pipeline("visual-question-answering", model=model)(PICTURES[0])


def test_the_sound_of_a_clip_is_that_of_its_part(model, monkeypatch):
    """Of a file between start and end; of an animated picture, and of a file without a sound, there is none."""
    from beyondvl.tasks import drawing

    whole = np.arange(64_000, dtype=np.float32)
    monkeypatch.setattr(drawing, "load_audio", lambda source, rate: whole)
    samples, rate = model._sound_of("some.mp4", 1.0, 2.5)
    assert rate == 16_000 and (samples[0], samples[-1], len(samples)) == (16_000, 39_999, 24_000)
    assert len(model._sound_of(b"\x1aE\xdf\xa3", None, None)[0]) == len(whole)
    assert model._sound_of("some.mp4", 9.0, None) is None
    assert model._sound_of("some.gif", None, None) is None and model._sound_of(CLIP, None, None) is None

    def silent(source, rate):
        raise bvl.NoSoundError("holds no sound")

    monkeypatch.setattr(drawing, "load_audio", silent)
    assert model._sound_of("some.mp4", None, None) is None


def test_narrates_a_clip_with_its_sound(model):
    silent, both = model.encode_clip(CLIP), model.encode_clip({"video": CLIP, "audio": SOUNDS[0]})
    assert (len(silent.beside), len(both.beside), len(both[0].beside)) == (0, 1, 1)
    assert model.narrate(CLIP, max_new_tokens=5) == model.caption(CLIP, max_new_tokens=5)
    heard = [model._prompted(None, None, None, seen)[0]["contexts"][0].nbytes for seen in (silent, both)]
    assert heard[1] > heard[0]  # the stream holds the sound too
    assert (
        model.narrate({"video": CLIP, "audio": SOUNDS[0]}, max_new_tokens=5) == model.caption(both, max_new_tokens=5)[0]
    )


def test_where_each_query_looked(model):
    maps = model.attend(PICTURES)
    assert maps.shape == (3, 5, 3, 3) and maps.min() >= 0
    np.testing.assert_allclose(maps.sum((2, 3)), 1, atol=1e-5)
    asked = model.attend(PICTURES[0], "w30 w31")
    np.testing.assert_allclose(asked[0], model.attend(PICTURES, "w30 w31")[0], atol=1e-5)
    assert np.abs(asked[0] - maps[0]).max() > 1e-4  # the question changes where they look
    with pytest.raises(ValueError, match="found 2 texts and 3 pictures"):
        model.attend(PICTURES, ["w1", "w2"])


def test_attention_is_drawn_over_the_picture(tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'beyondvl[plot]'")
    maps = np.zeros((5, 3, 3), np.float32)
    maps[:, 0, 0] = 1  # the upper left corner
    figure = bvl.plot_attention(np.full((60, 90, 3), 255, np.uint8), maps, queries=[2, 4])
    assert [axes.get_title() for axes in figure.axes] == ["query 2", "query 4"]
    figure.savefig(tmp_path / "seen.png")
    drawn = np.asarray(bvl.load_image(tmp_path / "seen.png"), np.float32).mean(2)
    panel = drawn[:, : drawn.shape[1] // 2]
    dark = np.argwhere(panel < 120)
    assert len(dark) and np.abs(dark.mean(0) - np.array(panel.shape) / 2).max() < 60  # all but that corner is veiled
    with pytest.raises(ValueError, match="queries: found 7, expected some of 0 to 4"):
        bvl.plot_attention(np.zeros((4, 4, 3), np.uint8), maps, queries=[7])
    with pytest.raises(ValueError, match="maps: found shape"):
        bvl.plot_attention(np.zeros((4, 4, 3), np.uint8), maps[None])


def test_generate_and_stream_agree(model):
    pixels = model.image_processor(PICTURES)["pixel_values"]
    ids = model.generate(pixel_values=pixels, max_new_tokens=5)
    assert set(ids.reshape(-1).tolist()) <= set(VOCABULARY) and (ids[:, 0] == 101).all()
    streamed = np.stack(list(model.stream(pixel_values=pixels, max_new_tokens=5)), 1)
    np.testing.assert_array_equal(ids[:, 1:], streamed)
    text = model.texts(["w30", "w9 w7", "w40"])
    answers = model.generate(**text, pixel_values=pixels, max_new_tokens=5)
    assert model._decoded(answers) == model.answer(PICTURES, ["w30", "w9 w7", "w40"], max_new_tokens=5)


def test_match_and_rerank(model):
    photos = model.encode_image(PICTURES)
    scores = model.match(photos, ["w1", "w2 w3", "w4"])
    np.testing.assert_allclose(scores[1], model.match(PICTURES[1], "w2 w3"), atol=2e-6)
    assert model.match(SOUNDS[0], ["w1", "w2"]).shape == (2,)
    best = model.rerank("w5", photos, top_k=2)
    assert (
        best[0]["score"] >= best[1]["score"] == pytest.approx(model.match(photos[best[1]["corpus_id"]], "w5")[0], 1e-5)
    )


def test_encode_takes_all_four(model):
    rows = model.encode([{"text": "w1 w2"}, PICTURES[0], {"video": CLIP}, {"audio": SOUNDS[1]}])
    processor = model.processor
    made = processor(text=["w1 w2"], images=[PICTURES[0]], videos=[CLIP], audio=[SOUNDS[1]], return_tensors="np")
    outputs = model(**made)
    units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    for i, name in enumerate(SIDES):
        np.testing.assert_allclose(units[i], outputs[f"{name}_embeds"][0], atol=1e-6)
    assert model.modalities == list(SIDES)
    np.testing.assert_allclose(model.get_audio_features(made["input_features"], made["feature_attention_mask"]),
                               outputs.audio_embeds, atol=1e-6)  # fmt: skip


def test_a_text_beside_one_picture_and_sizes_that_do_not_fit(model):
    pixels = model.image_processor(PICTURES)["pixel_values"]
    text = model.texts(["w1", "w2"])
    outputs = model(**text, pixel_values=pixels[:1])
    assert outputs.match_logits.shape == (2, 2) and outputs.logits_per_image.shape == (1, 2)
    outputs = model(**text, pixel_values=pixels)
    assert outputs.logits_per_image.shape == (3, 2) and "match_logits" not in outputs
    with pytest.raises(ValueError, match="decoder_input_ids"):
        model(**text, pixel_values=pixels, decoder_input_ids=[[1]])


def test_hidden_states_of_a_text(model):
    text = model.texts(["w1 w2", "w3"])
    outputs = model(**text, output_hidden_states=True).text_model_output
    assert [state.shape for state in outputs.hidden_states] == [(2, 4, 40)] * 3
    np.testing.assert_array_equal(outputs.hidden_states[-1], outputs.last_hidden_state)
    with pytest.raises(ValueError, match="layers of the vision tower differ"):
        model(pixel_values=model.image_processor(PICTURES)["pixel_values"], output_hidden_states=True)
    with pytest.raises(ValueError, match="output_hidden_states: found 3"):
        model(**text, output_hidden_states=3)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "found no input"),
        ({"pixel_values_videos": np.zeros((1, 2, 3, 96, 96), np.float32)}, r"\(1, 2, 3, 96, 96\), expected \(B, 3"),
        ({"input_features": np.zeros((1, 12, 150), np.float32)}, "a multiple of 100"),
        ({"input_features": np.zeros((1, 12, 100), np.float32), "feature_attention_mask": np.ones((1, 99), int)},
         r"feature_attention_mask: found shape \(1, 99\)"),
    ],
)  # fmt: skip
def test_bad_inputs_are_named(model, given, words):
    with pytest.raises(ValueError, match=words):
        model(**given)


@pytest.mark.parametrize("seconds", [0.01, 0.3, 1, 2.5])
def test_silence_and_sounds_of_any_length(model, seconds):
    row = model.encode({"audio": (np.zeros(int(16_000 * seconds), np.float32), 16_000)})
    assert np.isfinite(row).all() and np.linalg.norm(row) == pytest.approx(1, 1e-5)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_every_precision_and_saved_again(model, dtype, tmp_path):
    if dtype != "float32" and _C.config()["isa"] == "base":
        pytest.skip("plain C has no kernels for it")
    half = bvl.AutoModel.from_pretrained(model.folder, dtype=dtype)
    items = [PICTURES[0], {"audio": SOUNDS[0]}, {"text": "w1"}]
    close = model.similarity(half.encode(items), model.encode(items)).diagonal()
    assert (close > 0.98).all()
    half.save_packed(tmp_path / "packed")
    packed = bvl.AutoModel.from_pretrained(tmp_path / "packed")
    np.testing.assert_array_equal(packed.encode(items), half.encode(items))
    assert packed.caption(PICTURES, max_new_tokens=4) == half.caption(PICTURES, max_new_tokens=4)


def test_a_class_that_compares_alone(model):
    light = bvl.BeyondVLModel.from_pretrained(model.folder)
    np.testing.assert_array_equal(light.encode(PICTURES), model.encode(PICTURES))
    assert light.modalities == ["text", "image"]
