"""Pages and questions as an embedding for each of their tokens, beside transformers' ColModernVBERT and
sentence-transformers' scores."""

from __future__ import annotations

import json
import pickle
import re

import numpy as np
import pytest
from test_tiles import SIDE, TAGS, A, B, C, picture

import beyondvl as bvl
from beyondvl.verify import verify_model

torch = pytest.importorskip("torch", reason="parity needs torch: pip install 'beyondvl[test]'")
transformers = pytest.importorskip("transformers", reason="parity needs transformers: pip install 'beyondvl[test]'")

PATCH, SQUARE = 8, 3
PROMPT = "User:<image>Describe the image.<end_of_utterance>\nAssistant:"


def tokenizer():
    """Bytes and the tags of tiles, and as of ModernBERT a beginning and an end."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    made = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, [], unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    fast = PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]",
        model_input_names=["input_ids", "attention_mask"],
    )  # fmt: skip
    fast.add_special_tokens({"additional_special_tokens": TAGS[:4]})
    fast.add_tokens(TAGS[4:])
    return fast


def peer_processor():
    from transformers.models.colmodernvbert.processing_colmodernvbert import ColModernVBertProcessor
    from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil

    pictures = Idefics3ImageProcessorPil(size={"longest_edge": 3 * SIDE}, max_image_size={"longest_edge": SIDE},
                                         image_mean=[0.5] * 3, image_std=[0.5] * 3)  # fmt: skip
    rows = (SIDE // PATCH // SQUARE) ** 2
    return ColModernVBertProcessor(
        pictures, tokenizer(), image_seq_len=rows, visual_prompt_prefix=PROMPT, query_prefix="q: "
    )


def reference():
    """transformers' model with weights by which pages, places and tokens tell."""
    torch.manual_seed(3)
    words = tokenizer()
    text = {"model_type": "modernbert", "hidden_size": 72, "intermediate_size": 100, "num_hidden_layers": 4,
            "num_attention_heads": 6, "vocab_size": len(words), "local_attention": 20, "pad_token_id": 0, "bos_token_id": 1,
            "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}  # fmt: skip
    vision = {"model_type": "siglip_vision_model", "hidden_size": 60, "intermediate_size": 88, "num_hidden_layers": 2,
              "num_attention_heads": 5, "image_size": SIDE, "patch_size": PATCH}  # fmt: skip
    config = transformers.ColModernVBertConfig(
        vlm_config={"model_type": "modernvbert", "text_config": text, "vision_config": vision, "pixel_shuffle_factor": SQUARE,
                    "image_token_id": words.convert_tokens_to_ids("<image>")}, embedding_dim=24,
    )  # fmt: skip
    model = transformers.ColModernVBertForRetrieval(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim < 2:
                parameter.uniform_(0.6, 1.4) if "norm" in name and "bias" not in name else parameter.normal_(0, 0.2)
            else:
                parameter.normal_(0, 1.0 if "embedding" in name else 1.6 * parameter[0].numel() ** -0.5)
    return model


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """(folder, transformers' model)."""
    folder, model = tmp_path_factory.mktemp("pages") / "model", reference()
    model.save_pretrained(folder)
    peer_processor().save_pretrained(folder)
    return folder, model


CALLS = {
    "a page": ("process_images", A),
    "pages of several sizes": ("process_images", [A, B, C, picture(1, 300, 4)]),
    "a question": ("process_queries", "where is it?"),
    "questions": ("process_queries", ["where is it?", "", "a much longer question than the others"]),
}


@pytest.mark.parametrize("call", CALLS)
def test_processor(made, call):
    """Ids, pixels and masks, bit by bit."""
    ours, theirs = bvl.AutoProcessor.from_pretrained(made[0]), peer_processor()
    assert type(ours).__name__ == "ColModernVBertProcessor"
    name, given = CALLS[call]
    expected, found = (getattr(each, name)(given) for each in (theirs, ours))
    assert dict(found).keys() == dict(expected).keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_parts_of_the_processor(made, tmp_path):
    """A suffix of one's own, options of a call, files written again."""
    ours, theirs = bvl.AutoProcessor.from_pretrained(made[0]), peer_processor()
    for options in ({"suffix": ""}, {"suffix": "!!"}):
        found, expected = (each.process_queries(["a", "bcd"], **options)["input_ids"] for each in (ours, theirs))
        np.testing.assert_array_equal(found, expected)
    whole = {"images_kwargs": {"do_image_splitting": False}}
    found, expected = (each.process_images([A, B], **whole) for each in (ours, theirs))
    np.testing.assert_array_equal(found["pixel_values"], expected["pixel_values"])
    assert isinstance(ours.process_images(A, return_tensors="pt")["input_ids"], torch.Tensor)
    ours.save_pretrained(tmp_path)
    again = bvl.AutoProcessor.from_pretrained(tmp_path)
    assert again.to_dict() == ours.to_dict() and again.visual_prompt_prefix == PROMPT and again.query_prefix == "q: "
    rows = [np.ones((2, 3), np.float32)]
    assert ours.score_retrieval(rows, rows, batch_size=1, output_dtype=torch.float32).tolist() == [[6.0]]
    for options, message in (
        ({"output_device": "cuda"}, "cuda"),
        ({"output_dtype": "float16"}, "output_dtype: found float16"),
    ):
        with pytest.raises(ValueError, match=message):
            ours.score_retrieval(rows, rows, **options)
    with pytest.raises(ValueError, match=r"text: found \[\], expected a text or a list of texts"):
        ours.process_queries([])
    with pytest.raises(ValueError, match=r"text: found \[3\], expected a text"):
        ours.process_queries([3])
    fields = json.loads((tmp_path / "processor_config.json").read_text()) | {"query_prefix": 3}
    (tmp_path / "processor_config.json").write_text(json.dumps(fields))
    with pytest.raises(bvl.ConfigError, match="query_prefix: found 3, expected a text"):
        bvl.AutoProcessor.from_pretrained(tmp_path)


def test_model(isa, made):
    """Embeddings of pages and questions, padded, as transformers has them, and the scores of both."""
    folder, reference = made
    model, theirs = bvl.AutoModel.from_pretrained(folder, strict=True, num_threads=2), peer_processor()
    assert type(model).__name__ == "ColModernVBertForRetrieval"
    pages, questions = theirs.process_images([A, B, C]), theirs.process_queries(["where?", "a longer question"])
    with torch.no_grad():
        expected = [reference(**given) for given in (pages, questions)]
    found = [model(**given) for given in (pages, questions)]
    for ours, peers in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.embeddings, peers.embeddings, atol=2e-5)
    np.testing.assert_allclose(found[0].image_hidden_states, expected[0].image_hidden_states, atol=2e-4)
    assert "image_hidden_states" not in found[1]
    rows = found[0].embeddings.numpy()
    assert np.abs(rows[0, -5:] - rows[1, -5:]).max() > 0.1, "it does not tell pages apart"
    scores = bvl.AutoProcessor.from_pretrained(folder).score_retrieval(found[1].embeddings, found[0].embeddings)
    wanted = theirs.score_retrieval(expected[1].embeddings, expected[0].embeddings)
    torch.testing.assert_close(scores, wanted, atol=1e-4, rtol=0)


def test_inner_model(made, tmp_path):
    """ModernVBERT by itself: rows before the projection."""
    folder, model = tmp_path / "inner", made[1]
    model.vlm.save_pretrained(folder)
    ours, pages = bvl.AutoModel.from_pretrained(folder, strict=True), peer_processor().process_images([A, C])
    assert type(ours).__name__ == "ModernVBertModel"
    with torch.no_grad():
        expected = model.vlm(**pages).last_hidden_state
    keep = pages["attention_mask"].bool()
    np.testing.assert_allclose(ours(**pages).last_hidden_state[keep], expected[keep], atol=1e-4)


def test_parts_tell(made):
    """Another picture, swapped tiles, places, squares, windows, the projection: each changes the embeddings."""
    _, model = made
    given = peer_processor().process_images([A])
    with torch.no_grad():
        expected = model(**given).embeddings
        swapped = dict(given) | {"pixel_values": given["pixel_values"].flip(1)}
        assert (model(**swapped).embeddings - expected).abs().max() > 0.05
        for part in ("position_embedding", "modality_projection", "layers.0.attn.Wqkv", "embeddings.norm", "final_norm",
                     "embedding_proj_layer.bias"):  # fmt: skip
            changed = [parameter for name, parameter in model.named_parameters() if part in name]
            assert changed, part
            kept = [parameter.clone() for parameter in changed]
            for parameter in changed:
                parameter.copy_(parameter.flip(0))
            other = model(**given).embeddings
            for parameter, value in zip(changed, kept, strict=True):
                parameter.copy_(value)
            assert (other - expected).abs().max() > 0.01, part


@pytest.mark.parametrize("dtype,least", [("float32", 0.999999), ("bfloat16", 0.999), ("int8", 0.99)])
def test_encode(made, tmp_path, dtype, least):
    """Pages and texts of one list, questions; alone and beside others bitwise the same; packed, pickled, copied."""
    folder, reference = made
    model, theirs = bvl.AutoModel.from_pretrained(folder, dtype=dtype, num_threads=2), peer_processor()
    pages = model.encode_document([A, B, "a text", C])
    questions = model.encode_query(["where?", "a longer question", "which"])
    with torch.no_grad():
        given = theirs.process_images([A, B, C])
        wanted = [
            rows[mask.bool()].numpy()
            for rows, mask in zip(reference(**given).embeddings, given["attention_mask"], strict=True)
        ]
        text = reference(**theirs(text=["a text"], return_tensors="pt")).embeddings[0].numpy()
        asked = reference(**theirs.process_queries(["a longer question"])).embeddings[0].numpy()
    for rows, expected in zip(
        (pages[0], pages[1], pages[3], pages[2], questions[1]), (*wanted, text, asked), strict=True
    ):
        assert rows.shape == expected.shape and rows.dtype == np.float32
        assert (rows * expected).sum(1).mean() > least
    for at, item in enumerate([A, B, "a text", C]):
        np.testing.assert_array_equal(model.encode(item), pages[at])
    np.testing.assert_array_equal(model.encode_query("which", batch_size=1), questions[2])
    scores = model.similarity(questions, pages)
    assert scores.shape == (3, 4) and model.similarity_fn_name == "maxsim"
    np.testing.assert_allclose(scores[1, 3], (questions[1] @ pages[3].T).max(1).sum(), rtol=1e-5)
    np.testing.assert_allclose(model.similarity_pairwise(questions, pages[:3]), np.diag(scores[:, :3]), rtol=1e-5)
    model.save_packed(tmp_path / "packed")
    for other in (bvl.AutoModel.from_pretrained(tmp_path / "packed"), pickle.loads(pickle.dumps(model))):
        np.testing.assert_array_equal(other.encode(B), pages[1])
    tensors = model.encode([A, "x"], convert_to_tensor=True)
    assert all(isinstance(rows, torch.Tensor) for rows in tensors) and model.get_embedding_dimension() == 24


def test_saved_and_verified(made, tmp_path):
    folder, _ = made
    model = bvl.AutoModel.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(bvl.AutoModel.from_pretrained(tmp_path / "again").encode(C), model.encode(C))
    assert verify_model(str(folder))


def test_what_does_not_fit_is_named(made, tmp_path):
    model = bvl.AutoModel.from_pretrained(made[0])
    pages = dict(model.processor.process_images([A, B]))
    with pytest.raises(ValueError, match=r"input_ids: text 0 has \d+ placeholders \(id \d+\), expected \d+"):
        model(**pages | {"pixel_values": pages["pixel_values"][::-1].copy(), "pixel_attention_mask": None})
    with pytest.raises(ValueError, match="pixel_values: found shape"):
        model(**pages | {"pixel_values": pages["pixel_values"][0]})
    with pytest.raises(bvl.ImageError, match="image 1"):
        model.encode([A, b"no picture"], modality="image")
    with pytest.raises(ValueError, match="batch_size: found 0"):
        model.encode_query(["a"], batch_size=0)
    with pytest.raises(ValueError, match="embeddings: found 2 and 1 items, expected pairs"):
        model.similarity_pairwise([np.ones((2, 24))] * 2, [np.ones((2, 24))])
    for use in (lambda: model.encode("a", on_error="null"), lambda: next(iter(model.encode_stream(["a"]))),
                lambda: model.encode_to(tmp_path / "rows", ["a"])):  # fmt: skip
        with pytest.raises(
            ValueError, match="given to a ColModernVBertForRetrieval, whose items have several embeddings"
        ):
            use()
    with pytest.raises(ValueError, match="output_hidden_states: found True"):
        model(**pages, output_hidden_states=True)
    for change, message in (
        ({"pixel_shuffle_factor": 4}, "pixel_shuffle_factor: found 4, expected a divisor of 6 patches a side"),
        ({"image_token_id": 10_000}, "image_token_id: found 10000"),
    ):
        folder = tmp_path / next(iter(change))
        folder.mkdir()
        config = json.loads((made[0] / "config.json").read_text())
        config["vlm_config"] |= change
        (folder / "config.json").write_text(json.dumps(config))
        with pytest.raises(bvl.ConfigError, match=re.escape(message)):
            bvl.AutoModel.from_pretrained(folder)


def test_maxsim():
    """Beside sentence-transformers, of lists and arrays, tensors and one item; in more than one portion."""
    util = pytest.importorskip("sentence_transformers.util", reason="scores beside sentence-transformers")
    rng = np.random.default_rng(0)
    a, b = (
        [rng.standard_normal((int(n), 16)).astype(np.float32) for n in rng.integers(1, 900, count)] for count in (7, 40)
    )
    found = bvl.maxsim(a, b)
    assert found.dtype == np.float32 and sum(map(len, b)) > 8192 and sum(map(len, a)) > 2048
    np.testing.assert_allclose(found, util.maxsim(a, b), rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(bvl.maxsim(a[0], b[0]), found[:1, :1], rtol=1e-5)
    stacked = rng.standard_normal((3, 5, 16)).astype(np.float32)
    tensors = bvl.maxsim(torch.from_numpy(stacked), [torch.from_numpy(rows) for rows in b])
    assert isinstance(tensors, torch.Tensor)
    np.testing.assert_allclose(tensors, util.maxsim(stacked, b), rtol=1e-4, atol=1e-3)
    assert bvl.maxsim([], b).shape == (0, 40) and bvl.maxsim(a, []).shape == (7, 0)
    with pytest.raises(ValueError, match=r"embeddings: item 1 has shape \(0, 16\), expected rows of one width"):
        bvl.maxsim([a[0], a[0][:0]], b)
    with pytest.raises(ValueError, match=r"found \(2, 3\) and \(\d+, 16\), expected rows of one width"):
        bvl.maxsim([np.ones((2, 3))], b)
