"""From pictures and words to inputs with placeholders, and back to words, for BLIP-2 and InstructBLIP: the processors beside
transformers', then methods, pipelines and the command line."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from language import CASES, IMAGE, QUERIES, seeing
from PIL import Image

import beyondvl as bvl
from beyondvl.cli import main

torch = pytest.importorskip("torch", reason="parity needs torch and transformers: pip install 'beyondvl[test]'")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install 'beyondvl[test]'")

PHOTOS = sorted(str(p) for p in (Path(__file__).parent.parent / "examples").rglob("*.jpg"))[:2]
WORDS = (
    "a the of in on man woman cat dog picture photo what is this how many red cup old wall Question Answer : ?".split()
)
SIZE = {"height": 45, "width": 45}
pytestmark = pytest.mark.skipif(not PHOTOS, reason="needs the examples folder")


def tokenizer():
    """Ids as the small language models of tests/language.py have them: [bos] 2, pad 1, end 50, placeholder 180."""
    from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

    names = ["<0>", "<pad>", "<s>", "<unk>", *WORDS]
    names += [f"word{i}" for i in range(len(names), 190)]
    names[50], names[IMAGE] = "</s>", "<image>"
    backend = Tokenizer(models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 2)])
    backend.add_special_tokens(
        [AddedToken(t, special=True, normalized=False) for t in ("<image>", "<s>", "</s>", "<0>")]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder for each case: random weights and the processor that transformers writes."""
    found = {}
    for case in CASES:
        folder = tmp_path_factory.mktemp("case")
        seeing(*case)[0].save_pretrained(folder)
        (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
        second = [transformers.BertTokenizer(vocab=str(folder / "vocab.txt"))] if case[0] == "InstructBlip" else []
        (folder / "vocab.txt").unlink()
        pictures = transformers.BlipImageProcessor(size=SIZE)
        cls = getattr(transformers, f"{case[0]}Processor")
        cls(pictures, tokenizer(), *second, num_query_tokens=QUERIES).save_pretrained(folder)
        found[case] = folder
    return found


CALLS = {
    "pairs": {"text": ["a red cup", "what is this old wall ?"], "images": PHOTOS, "padding": True},
    "one": {"text": "a red cup", "images": PHOTOS[:1]},
    "cut": {"text": ["a red cup", "what is this old wall ?"], "images": PHOTOS, "padding": "max_length",
            "max_length": 10, "truncation": True},
    "words alone": {"text": ["a red cup"]},
    "pictures alone": {"images": PHOTOS},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_verify(folders, case, capsys):
    """The user's own check knows these models too."""
    assert main(["verify", str(folders[case])]) == 0, capsys.readouterr().out
    assert "logits" in capsys.readouterr().out


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("cls", ["Blip2", "InstructBlip"])
def test_processors(folders, cls, call):
    folder = folders[cls, "llama"]
    reference, ours = transformers.AutoProcessor.from_pretrained(folder), bvl.AutoProcessor.from_pretrained(folder)
    given = dict(CALLS[call])
    if "images" in given:
        given["images"] = [Image.open(p).convert("RGB") for p in given["images"]]
    expected, found = reference(return_tensors="np", **given), ours(return_tensors="np", **given)
    assert sorted(found) == sorted(expected)
    assert set(expected) <= set(ours.model_input_names)
    for name in (n for n in expected if n != "pixel_values"):
        assert np.array_equal(found[name], expected[name]), name
    if "text" in given and "images" in given:
        assert (found["input_ids"][:, :QUERIES] == IMAGE).all() and (found["input_ids"][:, QUERIES:] != IMAGE).all()


@pytest.mark.parametrize("cls", ["Blip2", "InstructBlip"])
def test_lists_and_sides(folders, tmp_path, cls):
    """Lists of lists without tensors; texts cut on the left where the tokenizers say so."""
    folder = shutil.copytree(folders[cls, "llama"], tmp_path / "folder")
    for path in (folder / "tokenizer_config.json", folder / "qformer_tokenizer" / "tokenizer_config.json"):
        if path.exists():
            path.write_text(json.dumps(json.loads(path.read_text()) | {"truncation_side": "left"}))
    reference, ours = transformers.AutoProcessor.from_pretrained(folder), bvl.AutoProcessor.from_pretrained(folder)
    given = {"text": "what is this old wall ?", "images": Image.open(PHOTOS[0])}
    for options in ({}, {"max_length": 9, "truncation": True}):
        expected, found = reference(**given, **options), ours(**given, **options)
        for name in (n for n in expected if n != "pixel_values"):
            assert [list(row) for row in found[name]] == [list(row) for row in expected[name]], name
    with pytest.raises(ValueError, match="max_length: found 3, expected more than 5 placeholders"):
        ours(**given, max_length=3, truncation=True)


def test_halves_of_tokenizers_are_refused(folders, tmp_path):
    """Their files look like CLIP's and SigLIP's, and would be read as those."""
    for name, cls, message in (("merges.txt", "GPT2Tokenizer", "vocab.json is missing, or a tokenizer.json"),
                               ("spiece.model", "T5Tokenizer", "found 'T5Tokenizer' and spiece.model, expected")):  # fmt: skip
        folder = tmp_path / name
        folder.mkdir()
        shutil.copy(folders["Blip2", "opt"] / "config.json", folder)
        (folder / name).write_text("")
        (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": cls}))
        with pytest.raises(bvl.ConfigError, match=message):
            bvl.AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("case", CASES, ids=" ".join)
def test_words_out(folders, case, capsys):
    """`processor` then `generate` is what `caption` does; an answer is what comes after the question."""
    model = bvl.AutoModel.from_pretrained(folders[case])
    prompts = ["a red cup", "what is this old wall ?"]
    both = model.caption(PHOTOS, prompts, max_new_tokens=6)
    for photo, prompt, text in zip(PHOTOS, prompts, both, strict=True):
        inputs = model.processor(images=photo, text=prompt, return_tensors="np")
        ids = model.generate(**inputs, max_new_tokens=6)
        assert model.processor.batch_decode(ids, skip_special_tokens=True)[0].strip() == text
        assert text.startswith(prompt) == (case[1] != "t5")
    encoded = model.encode_image(PHOTOS[0])
    assert model.caption(encoded, [prompts[0]], max_new_tokens=6) == both[:1]
    form = "Question: {} Answer:" if case[0] == "Blip2" else "{}"
    asked = form.format("what is this")
    whole = model.caption(encoded, [asked], max_new_tokens=6)[0]
    answer = model.answer(PHOTOS[0], "what is this", max_new_tokens=6)
    plain = " ".join(model.tokenizer.tokenize(asked))
    assert answer and answer == (whole if case[1] == "t5" else whole.removeprefix(plain).strip())
    assert model.answer(encoded, ["what is this", "how many"], max_new_tokens=6)[0] == answer
    for write in (model.caption, model.answer):
        with pytest.raises(ValueError, match="num_return_sequences: found 2, expected 1 here"):
            write(encoded, "what is this", num_beams=2, num_return_sequences=2)
    ask = bvl.pipeline("visual-question-answering", model=model)
    assert ask(PHOTOS[0], "what is this", max_new_tokens=6) == [{"answer": answer}]
    read = bvl.pipeline("image-text-to-text", model=model)
    assert read(PHOTOS[0], prompts[0], max_new_tokens=6)[0]["generated_text"] == both[0]
    command = ["ask", PHOTOS[0], "what is this", "--model", str(folders[case]), "--max-new-tokens", "6", "--json"]
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["generated_text"] == answer


def test_clips(folders, tmp_path):
    """InstructBlipVideo takes four frames of a clip, and puts a placeholder for each query of each frame."""
    seeing("InstructBlipVideo", "llama")[0].save_pretrained(tmp_path)
    source = folders["InstructBlip", "llama"]
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(source / name, tmp_path)
    shutil.copytree(source / "qformer_tokenizer", tmp_path / "qformer_tokenizer")
    fields = json.loads((source / "processor_config.json").read_text())
    fields["video_processor"] = fields.pop("image_processor") | {
        "video_processor_type": "InstructBlipVideoVideoProcessor"
    }
    del fields["video_processor"]["image_processor_type"]
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text()) | {"video_token": "<image>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "processor_config.json").write_text(json.dumps(fields))
    model = bvl.AutoModel.from_pretrained(tmp_path)
    frames = np.random.default_rng(0).integers(0, 256, (16, 40, 60, 3), dtype=np.uint8)
    inputs = model.processor(text="what is this", videos=frames, return_tensors="np")
    assert inputs["pixel_values"].shape == (1, 4, 3, 45, 45)
    assert (inputs["input_ids"][0, : 4 * QUERIES] == IMAGE).all() and inputs["input_ids"][0, 4 * QUERIES] == 2
    expected = model.processor.image_processor(list(frames[::4]))["pixel_values"]
    assert np.array_equal(inputs["pixel_values"][0], expected)
    text = model.answer(frames, "what is this", max_new_tokens=6)
    ids = model.generate(**inputs, max_new_tokens=6)[:, inputs["input_ids"].shape[1] :]
    assert model.processor.batch_decode(ids, skip_special_tokens=True)[0].strip() == text
    for clip in (list(frames), [Image.fromarray(frame) for frame in frames], [frames], frames[None]):
        assert model.answer(clip, "what is this", max_new_tokens=6) in (text, [text])
    assert len(model.encode_image([frames, frames[::-1]])) == 2 and len(model.encode_image(list(frames))) == 1
    with pytest.raises(ValueError, match="videos: given to a processor of pictures"):
        bvl.AutoProcessor.from_pretrained(source)(videos=frames)


def test_packed(folders, tmp_path):
    """Both tokenizers go with the weights."""
    model = bvl.AutoModel.from_pretrained(folders["InstructBlip", "t5"], dtype="int8")
    model.save_packed(tmp_path)
    packed = bvl.AutoModel.from_pretrained(tmp_path)
    assert packed.caption(PHOTOS[0], "a red cup") == model.caption(PHOTOS[0], "a red cup")
