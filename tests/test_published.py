"""Every folder of published small files beside transformers: ids, texts, pixels, features, parameters, usage.

Each walk fails below the number of folders it is known to compare, so that a file that is no longer found is noticed.
"""

from __future__ import annotations

import json
import re
import shutil

import numpy as np
import pytest
from parity import compare_parameters
from PIL import Image
from test_tokenizers import TEXTS

import beyondvl as bvl
import pictures
import published
from beyondvl.families.registry import find_family, load_config
from beyondvl.folder import Folder
from beyondvl.models.classes import class_for

torch = pytest.importorskip("torch", reason="parity needs torch and transformers: pip install 'beyondvl[test]'")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install 'beyondvl[test]'")
from transformers.core_model_loading import revert_weight_conversion  # noqa: E402

pytestmark = [
    pytest.mark.skipif(published.archive() is None, reason="no published files: BEYONDVL_PUBLISHED names their folder"),
    pytest.mark.filterwarnings("ignore"),
]

MORE = ["a man ' s hat", "a cat ", " a cat", "wow! great", "24/7 <b>", "it 's done , do n't ?", "in </s> the middle",
        "ends with </s>", "<image> a cat", "<|en|> hi", "[MASK] x", "!!", "a  b   c", "a man 's hat ."]  # fmt: skip
IDS = ("bos", "eos", "unk", "sep", "pad", "cls", "mask")


def expected_tokenizer(path):
    try:
        return transformers.AutoTokenizer.from_pretrained(path)
    except (ImportError, ValueError):  # a file that is missing, a program that is
        return None


def test_tokenizers():
    """Ids, masks and decoded texts; kinds of special tokens; sizes."""
    compared, texts, problems = [], 0, []
    for name in published.names(*published.TOKENIZER_FILES):
        path = published.folder() / name
        if name in published.LACKING or name in published.REFUSED:
            missing = published.LACKING.get(name) or published.REFUSED[name]
            with pytest.raises(bvl.ConfigError, match=rf"no tokenizer files|{missing}"):
                bvl.AutoTokenizer.from_pretrained(path)
            continue
        reference, ours = transformers.AutoTokenizer.from_pretrained(path), bvl.AutoTokenizer.from_pretrained(path)
        for text in TEXTS + MORE:
            expected, found = reference(text), ours(text)
            if dict(expected) != dict(found):
                problems.append((name, text, dict(expected), dict(found)))
            for skip in (False, True):
                a, b = (t.decode(expected["input_ids"], skip_special_tokens=skip) for t in (reference, ours))
                if a != b:
                    problems.append((name, "decoded", a, b))
            texts += 1
        facts = [(len(t), t.vocab_size, t.padding_side, t.truncation_side, tuple(t.model_input_names),
                  *(getattr(t, f"{kind}_token_id") for kind in IDS)) for t in (reference, ours)]  # fmt: skip
        if facts[0] != facts[1]:
            problems.append((name, *facts))
        compared.append(name)
    print(f"tokenizers of {len(compared)} folders, {texts} texts; {len(published.LACKING)} copies lack a file")
    assert not problems, f"{len(problems)}: {problems[:3]}"
    assert len(compared) >= 77 and texts >= 3700


def seen():
    """Pictures of several shapes and modes."""
    photos = [Image.open(path) for path in sorted(pictures.EXAMPLES.glob("*.jpg"))[:4]]
    modes = [image for name, image in pictures.modes().items() if name in ("L", "RGBA", "P", "CMYK")]
    return [*photos, pictures.photo(600, 120), pictures.photo(131, 277), *modes]


def image_reference(path):
    """transformers' processor on Pillow; where AutoImageProcessor does not know a file's older form, the class itself."""
    config = published_config(path)
    kind = str(config.get("image_processor_type"))
    if kind.endswith("FeatureExtractor"):
        return getattr(transformers, kind.replace("FeatureExtractor", "ImageProcessorPil")).from_pretrained(path)
    return transformers.AutoImageProcessor.from_pretrained(path, backend="pil")


def published_config(path):
    nested = (
        json.loads((path / "processor_config.json").read_text()) if (path / "processor_config.json").exists() else {}
    )
    if "image_processor" in nested:
        return nested["image_processor"]
    file = path / "preprocessor_config.json"
    return json.loads(file.read_text()) if file.exists() else nested


def test_pictures():
    """pixel_values, bit by bit."""
    given, compared, count = seen(), [], 0
    for name in published.names("preprocessor_config.json", "processor_config.json"):
        path = published.folder() / name
        config = published_config(path)
        if str(config.get("feature_extractor_type")).startswith(("Whisper", "AST", "Clap")) or not config:
            continue
        kind = str(config.get("image_processor_type") or config.get("feature_extractor_type") or "")
        if kind.startswith(published.OTHERS):
            with pytest.raises(bvl.ConfigError, match=f"found '{kind}'"):
                bvl.AutoImageProcessor.from_pretrained(path)
            continue
        if not (kind or "size" in config):
            continue  # a processor's file that holds no pictures' fields
        reference, ours = image_reference(path), bvl.AutoImageProcessor.from_pretrained(path)
        for picture in given:
            try:
                expected = np.asarray(reference(picture, return_tensors="np")["pixel_values"])
            except ValueError:  # it does not convert to RGB, and takes no other
                assert picture.mode != "RGB"
                continue
            np.testing.assert_array_equal(ours(picture)["pixel_values"], expected, err_msg=f"{name} {picture}")
            count += 1
        compared.append(name)
    print(f"image processors of {len(compared)} folders, {count} pictures")
    assert len(compared) >= 40 and count >= 384


def test_sounds():
    """Features within 1e-3 of the reference's scale, of short, whole and long sounds."""
    rng, compared, count = np.random.default_rng(0), [], 0
    for name in published.names("preprocessor_config.json", "processor_config.json"):
        path = published.folder() / name
        kind = str(published_config(path).get("feature_extractor_type"))
        nested = path / "processor_config.json"
        if nested.exists():
            kind = json.loads(nested.read_text()).get("feature_extractor", {}).get("feature_extractor_type", kind)
        if not kind.startswith(("Whisper", "AST", "Clap")):
            continue
        reference, ours = (
            transformers.AutoFeatureExtractor.from_pretrained(path),
            bvl.AutoFeatureExtractor.from_pretrained(path),
        )
        assert type(ours).__name__ == type(reference).__name__
        for samples in (8000, 160_000, 700_000):
            sound = (0.3 * np.sin(0.05 * np.arange(samples)) + 0.01 * rng.normal(size=samples)).astype(np.float32)
            np.random.seed(3)
            expected = reference(sound, sampling_rate=reference.sampling_rate, return_tensors="np")
            seed = {"seed": 3} if kind.startswith("Clap") else {}
            found = ours(sound, sampling_rate=ours.sampling_rate, return_tensors="np", **seed)
            for field, values in expected.items():
                np.testing.assert_allclose(found[field], values, atol=1e-3, rtol=0, err_msg=f"{name} {field}")
            count += 1
        compared.append(name)
    print(f"feature extractors of {len(compared)} folders, {count} sounds")
    assert len(compared) >= 9 and count >= 27


# ---- parameters


def known(config):
    """The family of a config and its class, where it is one of ours."""
    try:
        family = find_family(config)
    except bvl.ConfigError:
        return None
    return class_for(config, family)


# what a class of transformers holds and its call does not use, by name
UNUSED = ("pooler.dense.", "itm_head", "language_model.lm_head", "proj_out.weight", "cls.", "lm_head.weight", "shared.weight",
          "text_decoder.cls.predictions.decoder.bias", "embed_tokens.weight")  # fmt: skip


def test_parameters():
    """Names and shapes beside transformers' model of the same config, which holds no memory, and beside the published
    index where there is one."""
    compared, indexed = [], []
    for name in published.names("config.json"):
        path = published.folder() / name
        folder = Folder(path)
        config = load_config(folder)
        architectures = config.get("architectures") or [""]
        reference = getattr(transformers, str(architectures[0]), None)
        cls = known(config)
        if cls is None or reference is None:
            continue
        with torch.device("meta"):
            model = reference(transformers.AutoConfig.from_pretrained(path))
        state = revert_weight_conversion(model, model.state_dict())  # the names that files have
        shapes = {key: tuple(value.shape) for key, value in state.items()}
        left = [n for n in compare_parameters(name, cls, config, shapes) if not any(part in n for part in UNUSED)]
        assert not left, f"{name}: {left[:5]} of {len(left)} are not read"
        compared.append(name)
        for file in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
            if file in folder:
                keys = dict.fromkeys(folder.json(file)["weight_map"])
                left = [n for n in compare_parameters(name, cls, config, keys) if not any(part in n for part in UNUSED)]
                assert not left, f"{name}: {file}: {left[:5]} of {len(left)} are not read"
                indexed.append(name)
    print(f"parameters of {len(compared)} configs, {len(indexed)} published indices")
    assert len(compared) >= 84 and len(indexed) >= 5


def test_the_table_of_what_was_walked():
    """docs/MODELS.md says which families have published files, and how many folders of them."""
    page = (published.ROOT / "docs" / "MODELS.md").read_text("utf-8")
    part = page.partition("## Published files")[2].partition("\n## ")[0]
    stated = {name: int(count) for name, count in re.findall(r"^\| `([\w-]+)` \| (\d+) \|", part, re.M)}
    assert stated == {family: len(folders) for family, folders in published.by_family().items()}


# ---- usage


def cut(name, folder, layers=2):
    """A published folder with random weights of its config, cut to two layers; the model of transformers."""
    shutil.copytree(published.folder() / name, folder)
    config = json.loads((folder / "config.json").read_text())
    for section in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key in ("num_hidden_layers", "encoder_layers", "decoder_layers"):
            if key in section:
                section[key] = layers
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    made = transformers.AutoConfig.from_pretrained(folder)
    model = getattr(transformers, config["architectures"][0])(made).eval()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed" not in key:
                parameter.normal_(0, 1.5 / parameter[0].numel() ** 0.5)
    settings = (
        (folder / "generation_config.json").read_bytes() if (folder / "generation_config.json").exists() else None
    )
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))  # as it was published
    if settings:
        (folder / "generation_config.json").write_bytes(settings)
    return folder


PHOTOS = [str(pictures.EXAMPLES / f"{name}.jpg") for name in ("cat", "coffee")]


@pytest.mark.parametrize("name", ["openai--clip-vit-large-patch14", "OFA-Sys--chinese-clip-vit-base-patch16",
                                  "google--siglip-so400m-patch14-384"])  # fmt: skip
def test_cards_of_two_towers(name, tmp_path):
    """The card's pipeline: labels and scores."""
    folder = cut(name, tmp_path / "model")
    labels = ["a photo of a cat", "two dogs", "一杯咖啡"]
    ours = bvl.pipeline("zero-shot-image-classification", str(folder))(PHOTOS, candidate_labels=labels)
    model = transformers.AutoModel.from_pretrained(folder)
    reference = transformers.pipeline(
        "zero-shot-image-classification", model=model, tokenizer=transformers.AutoTokenizer.from_pretrained(folder),
        image_processor=image_reference(folder),
    )  # fmt: skip
    expected = reference(PHOTOS, candidate_labels=labels)
    for a, b in zip(ours, expected, strict=True):
        scores = ({row["label"]: row["score"] for row in rows} for rows in (a, b))
        mine, theirs = scores
        assert mine.keys() == theirs.keys() and max(abs(mine[label] - theirs[label]) for label in mine) < 2e-3


def test_card_of_captions(tmp_path):
    folder = cut("Salesforce--blip-image-captioning@livingtonds", tmp_path / "model")
    model, processor = bvl.AutoModel.from_pretrained(folder), bvl.AutoProcessor.from_pretrained(folder)
    reference = transformers.BlipForConditionalGeneration.from_pretrained(folder)
    inputs = processor(PHOTOS, ["a photography of"] * 2, return_tensors="pt")
    with torch.no_grad():
        expected = reference.generate(**inputs, max_new_tokens=6)
    np.testing.assert_array_equal(np.asarray(model.generate(**inputs, max_new_tokens=6)), expected.numpy())


@pytest.mark.parametrize("name", ["HuggingFaceTB--SmolVLM-256M-Instruct", "ibm-granite--granite-docling-258M"])
def test_cards_of_pictures_in_texts(name, tmp_path):
    """A conversation about two pictures, cut into tiles, by the folder's own template: inputs, and ids generated."""
    folder = cut(name, tmp_path / "model")
    model, processor = (
        bvl.AutoModelForImageTextToText.from_pretrained(folder),
        bvl.AutoProcessor.from_pretrained(folder),
    )
    peer = transformers.AutoProcessor.from_pretrained(folder, backend="pil")
    parts = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Can you describe the two images?"}]
    messages = [{"role": "user", "content": parts}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True)
    assert prompt == peer.apply_chat_template(messages, add_generation_prompt=True)
    given = {"text": prompt, "images": [Image.open(path) for path in PHOTOS], "return_tensors": "pt"}
    for options in ({}, {"size": {"longest_edge": 512}}):
        inputs, expected = processor(**given, images_kwargs=options), peer(**given, images_kwargs=options)
        assert inputs.keys() == expected.keys()
        assert all(torch.equal(inputs[field], expected[field]) for field in inputs)
    reference = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        ids = reference.generate(**inputs, do_sample=False, max_new_tokens=8)
    found = model.generate(**inputs, max_new_tokens=8)
    assert torch.equal(found, ids)
    assert processor.batch_decode(found, skip_special_tokens=True) == peer.batch_decode(ids, skip_special_tokens=True)


def test_card_of_speech(tmp_path):
    """With the settings of the published generation_config.json."""
    folder = cut("openai--whisper-base", tmp_path / "model")
    model, processor = bvl.AutoModel.from_pretrained(folder), bvl.AutoProcessor.from_pretrained(folder)
    reference = transformers.WhisperForConditionalGeneration.from_pretrained(folder)
    sound = 0.1 * np.random.default_rng(0).normal(size=32_000).astype(np.float32)
    inputs = processor(sound, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        expected = reference.generate(inputs.input_features, language="en", max_new_tokens=8)
    found = np.asarray(model.generate(inputs.input_features, language="en", max_new_tokens=8))
    begun = expected.numpy()[0].tolist()
    assert found[0].tolist()[:8] == [token for token in begun if token < 50257][: len(found[0])][:8]


def test_card_of_sound_classes(tmp_path):
    folder = cut("MIT--ast-finetuned-audioset-10-10-0.4593", tmp_path / "model")
    sound = 0.1 * np.random.default_rng(0).normal(size=48_000).astype(np.float32)
    ours = bvl.pipeline("audio-classification", str(folder))((sound, 16_000))
    expected = transformers.pipeline("audio-classification", str(folder))(sound, top_k=5)
    assert [row["label"] for row in ours] == [row["label"] for row in expected]
    np.testing.assert_allclose([r["score"] for r in ours], [r["score"] for r in expected], atol=1e-4)


@pytest.mark.parametrize("name", ["sentence-transformers--all-MiniLM-L6-v2", "BAAI--bge-small-zh-v1.5"])
def test_cards_of_sentence_encoders(name, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers", reason="parity needs sentence-transformers")
    folder = cut(name, tmp_path / "model")
    texts = ["This is an example sentence", "一杯咖啡", "Each sentence is converted"]
    expected = sentence_transformers.SentenceTransformer(str(folder), device="cpu").encode(texts)
    np.testing.assert_allclose(bvl.AutoModel.from_pretrained(folder).encode(texts), expected, atol=2e-5)
