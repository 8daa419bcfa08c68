"""Pictures as tiles within a text, beside transformers' Idefics3 and SmolVLM: what a processor makes of pictures and of
conversations, and the model of it."""

from __future__ import annotations

import json
import pickle
import re

import numpy as np
import pytest
from PIL import Image

import beyondvl as bvl
from beyondvl import _C
from beyondvl.processing.chat import rendered
from beyondvl.verify import verify_model

torch = pytest.importorskip("torch", reason="parity needs torch: pip install 'beyondvl[test]'")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install 'beyondvl[test]'")

TAGS = ["<fake_token_around_image>", "<image>", "<global-img>", "<end_of_utterance>",
        *(f"<row_{y}_col_{x}>" for y in range(1, 7) for x in range(1, 7))]  # fmt: skip
VOCAB, SIDE = 300 + len(TAGS), 48
TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message['role'] | capitalize }}:"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image>{% else %} {{ part['text'] }}{% endif %}"
    "{% endfor %}<end_of_utterance>\n{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
KINDS = {  # patch_size, scale_factor, whether words and logits share a table
    "idefics3": (8, 3, False), "smolvlm": (8, 2, False), "tied": (16, 1, True)
}  # fmt: skip


def reference(kind: str):
    """transformers' model with weights by which pictures and tokens tell."""
    torch.manual_seed(3)
    patch, scale, tied = KINDS[kind]
    name = "SmolVLM" if kind == "smolvlm" else "Idefics3"
    text = {"model_type": "llama", "hidden_size": 72, "intermediate_size": 100, "num_hidden_layers": 2,
            "num_attention_heads": 6, "num_key_value_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": 4096,
            "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}  # fmt: skip
    vision = {"hidden_size": 60, "intermediate_size": 88, "num_hidden_layers": 2, "num_attention_heads": 5,
              "image_size": SIDE, "patch_size": patch}  # fmt: skip
    config = getattr(transformers, f"{name}Config")(
        text_config=text, vision_config=vision, scale_factor=scale, image_token_id=tokenizer().convert_tokens_to_ids("<image>"),
        tie_word_embeddings=tied,
    )  # fmt: skip
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.uniform_(0.6, 1.4) if "norm" in name and "bias" not in name else parameter.normal_(0, 0.2)
            else:
                wide = 1.0 if "embed" in name else 2.5 if "proj.weight" in name else 1.5
                parameter.normal_(0, wide * (1.0 if "embed" in name else parameter[0].numel() ** -0.5))
    model.generation_config.eos_token_id = 7
    return model


def tokenizer():
    """Bytes and the tags of tiles."""
    from tokenizers.pre_tokenizers import ByteLevel

    words = ["<unk>", "<|im_start|>", "<|im_end|>", *sorted(ByteLevel.alphabet())]
    made = transformers.GPT2Tokenizer(
        vocab={word: i for i, word in enumerate(words)}, merges=[], unk_token="<unk>", bos_token="<|im_start|>",
        eos_token="<|im_end|>", pad_token="<|im_end|>",
    )  # fmt: skip
    made.add_special_tokens({"additional_special_tokens": TAGS[:4]})
    made.add_tokens(TAGS[4:])
    return made


def peer_processor(kind: str):
    """transformers' own; SmolVLM's wants torchvision for its clips, and makes of pictures what Idefics3's does."""
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
    from transformers.models.idefics3.processing_idefics3 import Idefics3Processor

    patch, scale, _ = KINDS[kind]
    pictures = Idefics3ImageProcessorPil(size={"longest_edge": 3 * SIDE}, max_image_size={"longest_edge": SIDE},
                                         image_mean=[0.5] * 3, image_std=[0.5] * 3)  # fmt: skip
    return Idefics3Processor(pictures, tokenizer(), (SIDE // patch // scale) ** 2, chat_template=TEMPLATE)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder of each kind of model, with the files of a processor."""
    folders = {}

    def build(kind: str = "idefics3"):
        if kind not in folders:
            folder = tmp_path_factory.mktemp("model") / kind
            reference(kind).save_pretrained(folder)
            peer_processor(kind).save_pretrained(folder)
            if kind == "smolvlm":
                file = folder / "processor_config.json"
                fields = json.loads(file.read_text().replace("Idefics3", "SmolVLM"))
                file.write_text(json.dumps(fields))
            folders[kind] = folder
        return folders[kind]

    return build


def picture(height: int, width: int, seed: int = 0, mode: str = "RGB") -> Image.Image:
    """Stripes and spots, so that pictures differ in more than noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    waves = [np.sin(y / rng.uniform(3, 20) + x / rng.uniform(3, 20) + rng.uniform(0, 6)) for _ in range(3)]
    noise = rng.uniform(-20, 20, (height, width, 3))
    return Image.fromarray((np.stack(waves, 2) * 100 + 127 + noise).astype(np.uint8)).convert(mode)


A, B, C = picture(90, 130), picture(200, 90, 1), picture(40, 40, 2)
CALLS = {
    "a picture": {"images": A, "text": "<image> what is it?"},
    "a picture alone": {"images": A},
    "pictures of one text": {"images": [A, B], "text": "<image> and <image>"},
    "pictures of several texts": {"images": [[A, B], [C]], "text": ["ab <image> cd <image>", "<image> e"], "padding": True},
    "one list for all": {"images": [A, B, C], "text": ["ab <image> cd <image>", "<image> e"], "padding": True},
    "some without": {"images": [[A], []], "text": ["<image>", "abc def"], "padding": True},
    "texts": {"text": ["abc", "d"], "padding": True},
    "whole": {"images": A, "text": "<image>", "images_kwargs": {"do_image_splitting": False}},
    "as it is": {"images": A, "text": "<image>", "do_resize": False},
    "larger": {"images": A, "text": "<image>", "size": {"longest_edge": 230}, "resample": 3},
    "padded on the left": {"images": [[A], [C]], "text": ["<image>", "<image> e"], "padding": True, "padding_side": "left"},
    "grey": {"images": picture(70, 90, 3, "L"), "text": "<image>"},
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_processor(made, call):
    """Ids, pixels and masks, bit by bit."""
    ours, theirs = bvl.AutoProcessor.from_pretrained(made()), peer_processor("idefics3")
    assert type(ours).__name__ == "Idefics3Processor"
    if call in ("as it is", "larger"):  # transformers takes such options by their group alone
        own = {name: CALLS[call][name] for name in ("do_resize", "size", "resample") if name in CALLS[call]}
        expected = theirs(images=A, text="<image>", images_kwargs=own, return_tensors="np")
    else:
        expected = theirs(**CALLS[call], return_tensors="np")
    found = ours(**CALLS[call], return_tensors="np")
    assert dict(found).keys() == dict(expected).keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)
    tensors = ours(**CALLS[call], return_tensors="pt")
    assert all(torch.equal(tensors[name], torch.from_numpy(np.asarray(found[name]))) for name in found)


@pytest.mark.parametrize(
    "size", [(1, 1), (392, 1), (7, 2000), (2000, 7), (48, 48), (49, 47), (480, 640), (97, 96), (144, 145)]
)
@pytest.mark.parametrize("edge", [48, 100, 145, 500])
def test_sizes(size, edge):
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    fields = {"size": {"longest_edge": edge}, "max_image_size": {"longest_edge": SIDE}}
    ours, theirs = (
        bvl.Idefics3ImageProcessor(**fields),
        Idefics3ImageProcessorPil(**fields, image_mean=[0.5] * 3, image_std=[0.5] * 3),
    )
    found, expected = (made(picture(*size), return_tensors="np", return_row_col_info=True) for made in (ours, theirs))
    for name in ("pixel_values", "pixel_attention_mask", "rows", "cols"):
        np.testing.assert_array_equal(found[name], expected[name])


SAID = {
    r"images: found 1, and texts with places \(<image>\) for \[2\]": {"images": A, "text": "<image><image>"},
    r"images: found 2, and texts with places \(<image>\) for \[1, 0\]": {"images": [A, B], "text": ["<image>", "a"]},
    r"images: found \[2, 1\], and texts": {"images": [[A, B], [C]], "text": ["<image>", "<image><image>"]},
    "videos, audio: given to a processor of pictures": {"videos": [[A, A]], "text": "abc"},
    "found neither text nor images": {},
    "images, videos, audio: a list is empty": {"images": []},
    "max_image_size: found {.longest_edge.: 0}, expected longest_edge, from 1 to 4096": {"images": A, "images_kwargs": {"max_image_size": 0}},
    "size: found {'height': 9}, expected longest_edge": {"images": A, "size": {"height": 9}},
    "do_pad: found False": {"images": A, "images_kwargs": {"do_pad": False}},
    r"images: found \[1, 1\], and texts with places": {"images": [[A], [B]], "text": "<image><image>"},
    "2048 x 2048 pixels in tiles of 2 x 2": {"images": C, "size": 2048, "images_kwargs": {"max_image_size": 2}},
    "image 1: ": {"images": [A, b"no picture"], "text": "<image><image>"},
}  # fmt: skip


@pytest.mark.parametrize("said", SAID)
def test_what_does_not_fit_is_named(made, said):
    processor = bvl.AutoProcessor.from_pretrained(made())
    with pytest.raises(ValueError, match=said):
        processor(**SAID[said])
    assert len(processor(text="abc")["input_ids"]) == 1


# ---- conversations


def asking(*parts) -> list[dict]:
    """A conversation of one message: pictures, and texts."""
    made = [{"type": "text", "text": p} if isinstance(p, str) else {"type": "image", "image": p} for p in parts]
    return [{"role": "user", "content": made}]


def test_conversations(made):
    """Texts, and all inputs of a conversation that holds its pictures, as transformers makes them."""
    ours, theirs = bvl.AutoProcessor.from_pretrained(made()), peer_processor("idefics3")
    one, two = asking(A, "what?"), asking(A, B, "compare")
    for conversation in (one, [one, two]):
        for ends in (True, False):
            expected = theirs.apply_chat_template(conversation, add_generation_prompt=ends)
            assert ours.apply_chat_template(conversation, add_generation_prompt=ends) == expected
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "np"}
    for conversation in (one, [two, one]):
        extra = {"processor_kwargs": {"padding": True}}
        found, expected = (p.apply_chat_template(conversation, **options, **extra) for p in (ours, theirs))
        for name, array in expected.items():
            np.testing.assert_array_equal(found[name], array, err_msg=name)
    ids = ours.apply_chat_template(one, tokenize=True)
    assert ids == ours(text=[ours.apply_chat_template(one)], images=[[A]])["input_ids"]
    assert ours.apply_chat_template(one, chat_template="{{ bos_token }}{{ more }}", more="x") == "<|im_start|>x"


def test_a_text_that_begins_itself(made, tmp_path):
    """Where the tokenizer adds a bos_token of its own, a template's text has one all the same, in answers too."""
    from tokenizers.processors import TemplateProcessing

    theirs = peer_processor("idefics3")
    theirs.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    reference("idefics3").save_pretrained(tmp_path)
    theirs.save_pretrained(tmp_path)
    model = bvl.AutoModel.from_pretrained(tmp_path)
    options = {"add_generation_prompt": True, "tokenize": True, "return_dict": True, "return_tensors": "np"}
    for template in (TEMPLATE, TEMPLATE.removeprefix("<|im_start|>")):
        extra = options | {"chat_template": template}
        found, expected = (p.apply_chat_template(asking(A, "who?"), **extra) for p in (model.processor, theirs))
        np.testing.assert_array_equal(found["input_ids"], expected["input_ids"])
        ids = found["input_ids"][0].tolist()
        assert ids[0] == 1 and ids.count(1) == 1
        model.processor.chat_template = template
        made_ids = model.generate(**found, max_new_tokens=9)[0, len(ids) :]
        assert (
            model.answer(A, "who?", max_new_tokens=9)
            == model.processor.decode(made_ids, skip_special_tokens=True).strip()
        )


def test_where_templates_lie(made, tmp_path):
    """A file of its own, the older one, a field of the tokenizer's; several by name; none."""
    processor = bvl.AutoProcessor.from_pretrained(made())
    processor.save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    named = [{"name": "default", "template": "{{ messages|length }}"}, {"name": "other", "template": "b"}]
    for file, fields, wanted in (
        ("chat_template.json", {"chat_template": "{{ messages|length }} j"}, "1 j"),
        ("tokenizer_config.json", {"chat_template": "{{ messages|length }} t"}, "1 t"),
        ("tokenizer_config.json", {"chat_template": named}, "1"),
        ("tokenizer_config.json", {"chat_template": None}, None),
    ):
        path = tmp_path / file
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(before | fields))
        again = bvl.AutoProcessor.from_pretrained(tmp_path)
        if wanted is None:
            with pytest.raises(ValueError, match="chat_template: found none among the files"):
                again.apply_chat_template(asking("a"))
        else:
            assert again.apply_chat_template(asking("a")) == wanted
            if fields["chat_template"] is named:
                assert again.apply_chat_template(asking("a"), chat_template="other") == "b"
        if file == "chat_template.json":
            path.unlink()
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(before | {"chat_template": 5}))
    with pytest.raises(bvl.ConfigError, match="chat_template: found int, expected a text"):
        bvl.AutoProcessor.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    "template,message",
    [
        ("{{ ''.__class__.__mro__ }}", "access to attribute '__class__'"),
        ("{% for x in range(999999999) %}{% endfor %}", "range too big|Range too big"),
        ("{{ messages.append(1) }}", "attribute 'append' of 'list' object is unsafe"),
        ("{% for %}", "expected Jinja's language"),
        ("{{ 1 / 0 }}", "division by zero .ZeroDivisionError"),
        ("{{ 'a' + messages }}", "can only concatenate str"),
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
    ],
)
def test_templates_are_run_in_a_sandbox(template, message):
    with pytest.raises((ValueError, OverflowError), match=message):
        rendered(template, messages=[])


def test_templates_have_what_others_expect():
    assert rendered("{% generation %}a{{ x }}{% endgeneration %}{{ [1, 'ä']|tojson }}", x=2) == 'a2[1, "ä"]'
    assert re.fullmatch(r"\d{4}", rendered("{{ strftime_now('%Y') }}"))
    assert rendered("{% for m in messages %}\n  {{ m }}\n{% break %}\n{% endfor %}\n", messages=[1, 2]) == "  1\n"


@pytest.mark.parametrize(
    "conversation", [[], {"role": "user", "content": "a"}, 5, "hello", [{"content": "a"}], [["a"]], [None]]
)
def test_what_is_no_conversation(made, conversation):
    processor = bvl.AutoProcessor.from_pretrained(made())
    with pytest.raises(ValueError, match="conversation: found"):
        processor.apply_chat_template(conversation)


# ---- rows side by side


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("bias", [True, False])
def test_rows_side_by_side(isa, precision, bias):
    """Squares of rows into one, without a norm: against NumPy."""
    rng, (rows, count, D, N) = np.random.default_rng(0), (24, 4, 20, 37)
    weight = rng.standard_normal((N, count * D)).astype(np.float32)
    order = rng.permutation(rows).astype(np.float32)
    more = {"bias": rng.standard_normal(N).astype(np.float32)} if bias else {}
    program = _C.Program(precision=precision)
    fixed = _C.ROW_KINDS.index("fixed")
    src, dst = program.slot("x", rows, D, fixed), program.slot("y", rows // count, N, fixed)
    program.add("patch_embed", src, src, PATCHES, {"weight": np.eye(D, dtype=np.float32).reshape(D, 1, 4, 5)}, 1)
    program.add(
        "merge_rows", src, dst, {"layer_norm_eps": 0, "activation": 0}, {"weight": weight, "order": order} | more, 1
    )
    pixels = rng.standard_normal((5, 1, 4 * 4, 5 * 6)).astype(np.float32)
    for threads in (1, 2, 3):
        found = program.run({"pixel_values": pixels}, ["x", "y"], threads)
        side = found["x"][:, order.astype(int)].reshape(5, rows // count, count * D).astype(np.float64)
        wanted = side @ weight.T + more.get("bias", 0)
        assert np.abs(found["y"] - wanted).max() <= {"float32": 2e-6}.get(precision, 1e-2) * np.abs(wanted).max()


PATCHES = {"channels": 1, "height": 16, "width": 30, "stride_down": 4, "stride_right": 5, "pad_top": 0, "pad_left": 0,
           "out_height": 4, "out_width": 6, "activation": 0, "pictures": 1, "spare": 0, "channels_last": 0}  # fmt: skip


def test_norms_of_rows_come_whole():
    arrays = {"weight": np.ones((6, 16), np.float32), "order": np.arange(8, dtype=np.float32)}
    for more, message in (({"norm_weight": np.ones(16, np.float32)}, "norm_bias: found nothing"),
                          ({"norm_bias": np.ones(16, np.float32)}, "norm_weight: found nothing"),
                          ({"bias": np.ones(5, np.float32)}, r"bias: found \(5\), expected shape \(6\)")):  # fmt: skip
        program = _C.Program()
        slots = [program.slot("a", 8, 4), program.slot("b", 2, 6)]
        with pytest.raises(ValueError, match=message):
            program.add("merge_rows", *slots, {"layer_norm_eps": 1e-5, "activation": 0}, arrays | more, 1)


# ---- the model


def agree(found: np.ndarray, expected: np.ndarray, most: float = 1e-4) -> None:
    """To 1e-4 of the largest number."""
    np.testing.assert_allclose(found, expected, atol=most * max(1, np.abs(expected).max()))


@torch.no_grad()
def expected_of(model, inputs) -> dict[str, np.ndarray]:
    out = model(**{name: torch.as_tensor(np.asarray(value)) for name, value in inputs.items()})
    rows = out.get("image_hidden_states")
    if hasattr(rows, "pooler_output"):  # SmolVLM's
        rows = torch.cat(rows.pooler_output)
    return {"logits": out.logits.numpy()} | ({} if rows is None else {"image_hidden_states": rows.numpy()})


@pytest.mark.parametrize("kind", KINDS)
def test_model(isa, made, kind):
    """Texts with pictures of several tiles, padded on the left; every picture and every position tells."""
    ours, theirs = bvl.AutoModelForImageTextToText.from_pretrained(made(kind), strict=True), reference(kind)
    assert type(ours).__name__ == type(theirs).__name__
    inputs = ours.processor(**CALLS["pictures of several texts"], padding_side="left", return_tensors="np")
    expected, keep = expected_of(theirs, inputs), inputs["attention_mask"].astype(bool)
    for threads in (1, 2, 3):
        found = bvl.AutoModel.from_pretrained(made(kind), num_threads=threads)(**inputs)
        agree(found.logits[keep], expected["logits"][keep])
        agree(found.image_hidden_states, expected["image_hidden_states"])
    rows = expected["image_hidden_states"]
    assert np.abs(np.corrcoef(rows)[np.triu_indices(len(rows), 1)]).mean() < 0.9
    for change in ("pictures", "positions", "rope", "squares"):
        changed, other = reference(kind), dict(inputs)
        vision = changed.model.vision_model
        with torch.no_grad():
            if change == "pictures":
                other["pixel_values"] = inputs["pixel_values"][:, ::-1].copy()
                other["pixel_values"][1] = inputs["pixel_values"][1]
            elif change == "positions":
                vision.embeddings.position_embedding.weight.copy_(vision.embeddings.position_embedding.weight.flip(0))
            elif change == "rope":
                changed.model.text_model.rotary_emb.inv_freq.mul_(0.9)
            else:
                weight = changed.model.connector.modality_projection.proj.weight
                weight.copy_(weight.reshape(72, -1, 60).flip(1).reshape(weight.shape))
        if change == "squares" and KINDS[kind][1] == 1:
            continue  # of one row each
        assert np.abs(expected_of(changed, other)["logits"][keep] - expected["logits"][keep]).max() > 1e-2, change


@pytest.mark.parametrize("kind", KINDS)
def test_generate(made, kind):
    """Forty tokens, greedy, beams and samples of texts in one batch; streams; a text without pictures."""
    ours, theirs = bvl.AutoModel.from_pretrained(made(kind)), reference(kind)
    inputs = ours.processor(**CALLS["pictures of several texts"], padding_side="left", return_tensors="pt")
    with torch.no_grad():
        greedy = theirs.generate(**inputs, max_new_tokens=40, do_sample=False)
        beams = theirs.generate(**inputs, max_new_tokens=12, num_beams=3, do_sample=False)
    found = ours.generate(**inputs, max_new_tokens=40)
    assert torch.equal(found, greedy) and torch.equal(ours.generate(**inputs, max_new_tokens=12, num_beams=3), beams)
    new = found[:, inputs["input_ids"].shape[1] :]
    assert len(set(new[0].tolist())) >= 15 and not torch.equal(new[0], new[1])
    steps = np.stack([step.copy() for step in ours.stream(**inputs, max_new_tokens=40)], 1)
    np.testing.assert_array_equal(steps, new.numpy())
    text = ours.processor(text="abc def", return_tensors="pt")
    with torch.no_grad():
        expected = theirs.generate(**text, max_new_tokens=9, do_sample=False)
    assert torch.equal(ours.generate(**text, max_new_tokens=9), expected)
    assert ours.generation_settings.eos_token_id == 7  # of generation_config.json, not of the config


def test_answers(made):
    """In the form of the chat template: each as it is generated from the processor's inputs."""
    model = bvl.AutoModel.from_pretrained(made())
    pictures, questions = [A, B, C], ["what is it?", "who?", "who?"]
    answers = model.answer(pictures, questions, max_new_tokens=9)
    for image, question, answer in zip(pictures, questions, answers, strict=True):
        inputs = model.processor.apply_chat_template(
            asking(image, question), add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="np"
        )
        ids = model.generate(**inputs, max_new_tokens=9)[:, inputs["input_ids"].shape[1] :]
        assert answer == model.processor.batch_decode(ids, skip_special_tokens=True)[0].strip()
        assert model.answer(image, question, max_new_tokens=9) == answer
    encoded = model.encode_image(pictures)
    assert model.answer(encoded, questions, max_new_tokens=9) == answers
    assert model.answer(encoded[1], questions[:2], max_new_tokens=9)[1] == answers[1]
    assert encoded.nbytes == sum(rows.nbytes for rows in encoded.rows_of) and len(encoded[1:]) == 2
    assert model.caption(A, max_new_tokens=5) == model.answer(A, "Can you describe this image?", max_new_tokens=5)
    assert model.caption([A, B], "who?", max_new_tokens=5)[1] == model.answer(B, "who?", max_new_tokens=5)
    said = bvl.pipeline("image-text-to-text", str(made()))(A, text="who?", max_new_tokens=5)
    assert said[0]["generated_text"] == model.answer(A, "who?", max_new_tokens=5)


@pytest.mark.parametrize("kind", ["idefics3", "tied"])
def test_kept_in_every_form(made, kind, tmp_path):
    """Packed, pickled, written again; in bfloat16 and int8."""
    ours = bvl.AutoModel.from_pretrained(made(kind))
    inputs = ours.processor(**CALLS["pictures of one text"], return_tensors="np")
    found = ours(**inputs).logits
    for dtype, least in (("float32", 1 - 1e-6), ("bfloat16", 0.998), ("int8", 0.98)):
        model = bvl.AutoModel.from_pretrained(made(kind), dtype=dtype)
        logits = model(**inputs).logits
        cosines = (logits * found).sum(2) / np.linalg.norm(logits, axis=2) / np.linalg.norm(found, axis=2)
        assert np.mean(cosines) > least, (dtype, cosines.mean(), cosines.min())
        model.save_packed(tmp_path / dtype)
        packed = bvl.AutoModel.from_pretrained(tmp_path / dtype)
        assert np.array_equal(packed(**inputs).logits, logits)
        assert packed.answer(A, "who?", max_new_tokens=4) == model.answer(A, "who?", max_new_tokens=4)
    ours.save_pretrained(tmp_path / "again")
    assert np.array_equal(bvl.AutoModel.from_pretrained(tmp_path / "again")(**inputs).logits, found)
    assert np.array_equal(pickle.loads(pickle.dumps(ours))(**inputs).logits, found)
    ours.processor.save_pretrained(tmp_path / "processor")
    again = bvl.AutoProcessor.from_pretrained(tmp_path / "processor")
    assert again.chat_template == TEMPLATE and again.image_seq_len == ours.processor.image_seq_len
    np.testing.assert_array_equal(
        again(**CALLS["a picture"])["input_ids"], ours.processor(**CALLS["a picture"])["input_ids"]
    )


def test_rows_alone(made):
    """get_image_features: of each text; tiles of zeros fill up."""
    ours, theirs = bvl.AutoModel.from_pretrained(made()), reference("idefics3")
    inputs = ours.processor(images=[[A, B], [], [C]], return_tensors="pt")
    found = ours.get_image_features(**inputs).pooler_output
    with torch.no_grad():
        expected = theirs.get_image_features(**inputs).pooler_output
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        if len(b):
            agree(a.numpy(), b.numpy())


def test_verify(made, capsys):
    assert verify_model(str(made()))
    said = capsys.readouterr().out
    assert "image_hidden_states" in said and "pixel_values (input)" in said and said.rstrip().endswith("agrees")


def test_bad_inputs_are_named(made):
    model = bvl.AutoModel.from_pretrained(made())
    good = model.processor(**CALLS["pictures of several texts"], return_tensors="np")
    ids, cut = good["input_ids"].copy(), good["pixel_attention_mask"].copy()
    ids[ids == model.tokens["image_token_id"]] = 5
    cut[0, 0, 9] = 0
    for change, match in (
        ({"input_ids": ids}, r"input_ids: text 0 has 0 placeholders \(id \d+\), expected \d+, one for each row"),
        ({"input_ids": good["input_ids"][::-1]}, r"input_ids: text 0 has \d+ placeholders"),
        ({"pixel_values": good["pixel_values"] * 0}, r"text 0 has \d+ placeholders \(id \d+\), expected 0"),
        (
            {"pixel_values": good["pixel_values"][:, :2]},
            r"pixel_attention_mask: found shape \(2, \d+, 48, 48\), expected",
        ),
        ({"pixel_values": good["pixel_values"][..., 1:]}, r"pixel_values: found shape .* expected \(B, n, 3, 48, 48\)"),
        ({"pixel_attention_mask": cut}, "pixel_attention_mask: found zeros within a tile"),
        ({"input_ids": None}, "input_ids: not given"),
    ):
        with pytest.raises(ValueError, match=match):
            model(**good | change)
    with pytest.raises(ValueError, match="pixel_values: found tiles for 1 texts, expected 2"):
        model.generate(**good | {name: good[name][:1] for name in ("pixel_values", "pixel_attention_mask")})
    with pytest.raises(ValueError, match="pixel_values: found without the text they stand in"):
        model.encode_image(pixel_values=good["pixel_values"])
    with pytest.raises(bvl.ImageError, match="image 1"):
        model.encode_image([A, b"no picture"])
    with pytest.raises(ValueError, match="found 2 prompts and 3 pictures"):
        model.answer([A, B, C], ["a", "b"])
    with pytest.raises(ValueError, match="the list is empty"):
        model.encode_image([])
    assert model(**good).logits.shape[0] == 2


@pytest.mark.parametrize(
    "change,message",
    [
        ({"scale_factor": 4}, "scale_factor: found 4, expected a divisor of 6 patches a side"),
        ({"scale_factor": 0}, "scale_factor: found 0"),
        ({"image_token_id": 10_000}, "image_token_id: found 10000"),
        ({"text_config": {"model_type": "qwen2"}}, "model_type: found 'qwen2', expected one of llama"),
        ({"vision_config": {"image_size": 4, "patch_size": 8}}, "patch_size 8 is larger than image_size 4"),
    ],
)
def test_bad_configs_are_named(made, change, message, tmp_path):
    config = json.loads((made() / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(bvl.ConfigError, match=re.escape(message)):
        bvl.AutoModel.from_pretrained(tmp_path)
