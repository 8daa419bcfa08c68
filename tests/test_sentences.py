"""`encode` and its options beside sentence-transformers, on one folder."""

import copy
import json
import pickle
import shutil

import numpy as np
import pytest
import tokenizers
from PIL import Image
from test_callers import sentence_encoder

import beyondvl as bvl
import pictures
import published
from beyondvl.weights import save_safetensors

torch = pytest.importorskip("torch", reason="parity needs torch")
peer = pytest.importorskip("sentence_transformers", reason="parity needs sentence-transformers")
from test_published import cut  # noqa: E402  (it needs torch)


@pytest.fixture(scope="module")
def twins(tmp_path_factory):
    """A sentence encoder with prompts, and the same one of sentence-transformers."""
    files = {"config_sentence_transformers": {"prompts": {"query": "what is ", "passage": "the "}}}
    folder = sentence_encoder(
        tmp_path_factory.mktemp("twins") / "model", {"pooling_mode": "mean", "embedding_dimension": 48}, **files
    )
    return bvl.SentenceTransformer(str(folder)), peer.SentenceTransformer(str(folder), device="cpu")


TEXTS = ["a cat", "a big red dog on the sofa", ""]


@pytest.mark.parametrize("options", [{}, {"prompt_name": "passage"}, {"prompt": "a b ", "normalize_embeddings": True},
                                     {"truncate_dim": 8}, {"truncate_dim": 800}, {"precision": None}, {"precision": "uint8"},
                                     {"convert_to_numpy": False}, {"convert_to_tensor": True, "precision": "binary"},
                                     {"device": ["cpu"]}], ids=str)  # fmt: skip
@pytest.mark.parametrize("texts", [TEXTS, TEXTS[1], []], ids=["three", "one", "none"])
def test_encode_beside_sentence_transformers(twins, options, texts):
    """Values, and the kind of what holds them."""
    ours, theirs = twins
    if texts == TEXTS[1] and "precision" in options:
        options = options | {"precision": None}  # one row says nothing of ranges
    expected = theirs.encode(texts, **options | ({"device": "cpu"} if "device" in options else {}))
    found = ours.encode(texts, **options)
    assert type(found) is type(expected) and len(found) == len(expected)
    if len(expected):
        tolerance = 1 if options.get("precision") == "uint8" else 2e-6
        rows = [np.asarray(rows if isinstance(rows, np.ndarray) else torch.as_tensor(np.stack([np.asarray(r) for r in rows])))
                for rows in (found, expected)]  # fmt: skip
        assert rows[0].dtype == rows[1].dtype
        np.testing.assert_allclose(rows[0].astype(float), rows[1].astype(float), atol=tolerance)


def test_values_of_texts_beside_sentence_transformers(twins):
    ours, theirs = twins
    for prompt in (None, "what is a "):
        for text in TEXTS[:2]:
            expected = theirs.encode(text, output_value=None, prompt=prompt, truncate_dim=8)
            found = ours.encode(text, output_value=None, prompt=prompt, truncate_dim=8, convert_to_numpy=False)
            assert found.keys() == expected.keys()
            for name, value in expected.items():
                if isinstance(value, torch.Tensor):
                    torch.testing.assert_close(found[name], value, atol=2e-6, rtol=0, check_dtype=False)
                else:
                    assert found[name] == value, name
    tokens = ours.encode(TEXTS[:2], output_value="token_embeddings")
    for row, value in zip(tokens, ours.encode(TEXTS[:2], output_value=None), strict=True):
        assert isinstance(row, np.ndarray) and np.array_equal(row, value["token_embeddings"])


def test_options_of_a_model_beside_sentence_transformers(twins):
    ours, theirs = copy.copy(twins[0]), copy.deepcopy(twins[1])
    assert ours.device == theirs.device == ours.device and ours.device.type == "cpu"
    assert ours.prompts == theirs.prompts and ours.max_seq_length == theirs.max_seq_length == ours.get_max_seq_length()
    with pytest.raises(ValueError, match="similarity_fn_name: found 'maxsim', expected one of cosine, dot"):
        ours.similarity_fn_name = "maxsim"
    for model in (ours, theirs):
        model.similarity_fn_name, model.truncate_dim, model.default_prompt_name = "euclidean", 8, "passage"
        model.prompts = model.prompts | {"document": "of "}
    rows = [model.encode(TEXTS) for model in (ours, theirs)]
    np.testing.assert_allclose(*rows, atol=2e-6)
    np.testing.assert_allclose(
        ours.similarity(rows[0], rows[0][:2]), theirs.similarity(rows[1], rows[1][:2]), atol=1e-5
    )
    np.testing.assert_allclose(ours.encode_document(TEXTS), theirs.encode_document(TEXTS), atol=2e-6)
    again = pickle.loads(pickle.dumps(ours))
    assert again.options == ours.options and again.get_embedding_dimension() == theirs.get_embedding_dimension() == 8
    with ours.truncate_embeddings(4), theirs.truncate_embeddings(4):
        assert ours.encode("a cat").shape == theirs.encode("a cat").shape == (4,)
    assert again.truncate_dim == ours.truncate_dim == 8
    for model in (ours, theirs):
        model.max_seq_length = 4
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=2e-6)
    assert ours.max_seq_length == 4


def test_options_of_the_constructor_beside_sentence_transformers(twins):
    options = {
        "prompts": {"query": "q "},
        "default_prompt_name": "query",
        "similarity_fn_name": "dot",
        "truncate_dim": 8,
    }
    ours, theirs = (
        cls(twins[0].name_or_path, device="cpu", **options)
        for cls in (bvl.SentenceTransformer, peer.SentenceTransformer)
    )
    names = ("prompts", "default_prompt_name", "similarity_fn_name", "truncate_dim")
    assert [getattr(ours, name) for name in names] == [getattr(theirs, name) for name in names]
    np.testing.assert_allclose(ours.encode(TEXTS), theirs.encode(TEXTS), atol=2e-6)
    with pytest.raises(ValueError, match="default_prompt_name: found 'x', expected one of query, document, passage"):
        bvl.SentenceTransformer(twins[0].name_or_path, default_prompt_name="x")
    for prompts in (["q "], {"query": 5}):
        with pytest.raises(ValueError, match="prompts: found"):
            bvl.SentenceTransformer(twins[0].name_or_path, prompts=prompts)
    with pytest.raises(FileNotFoundError, match="sentence-transformers/no-such-model"):
        bvl.SentenceTransformer("no-such-model", local_files_only=True)


def test_a_model_is_written_again(twins, tmp_path):
    """With its options; both libraries read it. What is packed stays so, and nothing else is mixed in."""
    ours = copy.copy(twins[0])
    ours.prompts = ours.prompts | {"query": "where is "}
    ours.default_prompt_name, ours.similarity_fn_name, ours.truncate_dim, ours.max_seq_length = "query", "dot", 8, 6
    ours.save(tmp_path / "new")
    again, theirs = (
        bvl.SentenceTransformer(tmp_path / "new"),
        peer.SentenceTransformer(str(tmp_path / "new"), device="cpu"),
    )
    assert again.options == ours.options and theirs.prompts == ours.prompts and theirs.similarity_fn_name == "dot"
    assert theirs.max_seq_length == 6 and theirs.truncate_dim == 8
    expected = ours.encode(TEXTS)
    np.testing.assert_array_equal(again.encode(TEXTS), expected)
    np.testing.assert_allclose(theirs.encode(TEXTS), expected, atol=2e-6)
    plain = bvl.AutoModel.from_pretrained("beyond-vl-model")
    plain.save_pretrained(tmp_path / "default", safe_serialization=True)
    copied = bvl.AutoModel.from_pretrained(tmp_path / "default")
    np.testing.assert_array_equal(copied.encode(TEXTS[:2]), plain.encode(TEXTS[:2]))
    copied.save_packed(tmp_path / "packed")
    bvl.AutoModel.from_pretrained(tmp_path / "packed").save_pretrained(tmp_path / "again")
    packed = bvl.AutoModel.from_pretrained(tmp_path / "again")
    np.testing.assert_array_equal(packed.encode(TEXTS[:2]), plain.encode(TEXTS[:2]))
    with pytest.raises(ValueError, match="the checkpoint's own folder"):
        copied.save_pretrained(tmp_path / "default")
    with pytest.raises(ValueError, match="found another checkpoint's"):
        copied.save_pretrained(tmp_path / "packed")
    with pytest.raises(ValueError, match="push_to_hub: found True"):
        copied.save_pretrained(tmp_path / "x", push_to_hub=True)
    for path in (tmp_path / "default").glob("*.safetensors"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="its weights are gone"):
        copied.save_pretrained(tmp_path / "x")


def test_pairs_beside_sentence_transformers():
    rows = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float32)
    rows[7], rows[30] = rows[3] + 0.01, rows[3] - 0.02
    for options in ({}, {"top_k": 2}, {"top_k": 3, "max_pairs": 10, "query_chunk_size": 7, "corpus_chunk_size": 9}):
        expected = peer.util.paraphrase_mining_embeddings(torch.from_numpy(rows), **options)
        found = bvl.paraphrase_mining_embeddings(rows, **options)
        assert [pair[1:] for pair in found] == [pair[1:] for pair in expected] and found[0][1:] == [3, 7]
        np.testing.assert_allclose([pair[0] for pair in found], [pair[0] for pair in expected], atol=1e-5)
    with pytest.raises(ValueError, match="max_pairs: found 0"):
        bvl.paraphrase_mining_embeddings(rows, max_pairs=0)


@pytest.mark.skipif(published.archive() is None, reason="no published files: BEYONDVL_PUBLISHED names their folder")
def test_image_search_as_its_page_writes_it(tmp_path):
    """Pictures and texts in one space, search by either, near duplicates, groups."""
    folder = cut("openai--clip-vit-base-patch32@4.57", tmp_path / "model")
    models = bvl.SentenceTransformer(str(folder)), peer.SentenceTransformer(str(folder), device="cpu")
    names = ["cat", "coffee", "rocket", "cat"]
    texts = ["a cat on a wall", "a cup of coffee", "a rocket that starts"]
    results = []
    for model, util in zip(models, (bvl, peer.util), strict=True):
        seen = model.encode([Image.open(pictures.EXAMPLES / f"{name}.jpg") for name in names], batch_size=2)
        asked = model.encode(texts)
        scores = np.asarray(util.cos_sim(asked, seen))
        hits = util.semantic_search(model.encode([texts[0]]), seen, top_k=2)[0]
        again = util.semantic_search(model.encode(Image.open(pictures.EXAMPLES / "rocket.jpg")), seen, top_k=1)[0]
        pairs = util.paraphrase_mining_embeddings(torch.from_numpy(seen))
        groups = util.community_detection(torch.from_numpy(seen), threshold=0.999, min_community_size=2)
        results.append((scores, [hit["corpus_id"] for hit in hits], again[0]["corpus_id"], pairs[0][1:], groups))
    (scores, *found), (wanted, *expected) = results
    np.testing.assert_allclose(scores, wanted, atol=2e-4)
    assert found == expected and found[1:] == [2, [0, 3], [[0, 3]]]
    assert np.ptp(scores, axis=1).min() > 1e-3, "all pictures look alike"


def test_communities_beside_sentence_transformers():
    centres = np.random.default_rng(0).standard_normal((6, 16))
    rows = np.concatenate([centre + 0.3 * np.random.default_rng(i).standard_normal((4 + 3 * i, 16))
                           for i, centre in enumerate(centres)]).astype(np.float32)  # fmt: skip
    for options in ({}, {"threshold": 0.9, "min_community_size": 3}, {"min_community_size": 5, "batch_size": 7}):
        expected = peer.util.community_detection(torch.from_numpy(rows), **options)
        assert len(expected) > 1 and bvl.community_detection(rows, **options) == expected
    assert bvl.community_detection(rows[:0]) == bvl.community_detection(rows[:3]) == []
    with pytest.raises(ValueError, match="min_community_size: found 0"):
        bvl.community_detection(rows, min_community_size=0)
    assert bvl.truncate_embeddings(rows, 4).shape == (len(rows), 4) and bvl.quantize_embeddings([], "int8") == []
    assert bvl.quantize_embeddings(rows[:0], "ubinary").shape == (0, 2)


def save_tokenizer(folder, words: str) -> None:
    """Of these words, a beginning and an end."""
    known = ["<pad>", "<eos>", "<bos>", "<unk>", *words.split()]
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(known)}, "<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 2), ("<eos>", 1)]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "pad_token": "<pad>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_modernbert_of_its_first_configs(tmp_path, pooling):
    """Which say every how many layers see all, and the bases of both kinds of frequencies; texts reach past windows."""
    transformers = pytest.importorskip("transformers", reason="parity needs transformers")
    folder = tmp_path / "model"
    config = {"model_type": "modernbert", "architectures": ["ModernBertForMaskedLM"], "hidden_size": 48, "intermediate_size": 64,
              "num_hidden_layers": 5, "num_attention_heads": 3, "vocab_size": 90, "local_attention": 8, "norm_eps": 1e-5,
              "global_attn_every_n_layers": 4, "global_rope_theta": 70_000.0, "local_rope_theta": 900.0, "pad_token_id": 0,
              "bos_token_id": 2, "eos_token_id": 1, "cls_token_id": 2, "sep_token_id": 1, "layer_norm_eps": 1e-5,
              "position_embedding_type": "absolute", "reference_compile": False, "torch_dtype": "float32"}  # fmt: skip
    torch.manual_seed(0)
    model = transformers.ModernBertForMaskedLM(transformers.ModernBertConfig(**config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(1 if "norm" in name else 0, 0.2 if "norm" in name else 0.15)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))  # as it was published
    save_tokenizer(folder, "a cat dog on the sofa")
    modules = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
               {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}]  # fmt: skip
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir()
    modes = {f"pooling_mode_{kind}": kind.startswith(pooling) for kind in ("cls_token", "mean_tokens", "max_tokens")}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 48, **modes}))
    ours, theirs = bvl.SentenceTransformer(str(folder)), peer.SentenceTransformer(str(folder), device="cpu")
    texts = ["a cat", "the dog is on the sofa", " ".join(["a cat on the sofa"] * 9), "dog"]
    found = ours.encode(texts)
    np.testing.assert_allclose(found, theirs.encode(texts), atol=2e-5)
    assert np.corrcoef(found)[np.triu_indices(4, 1)].max() < 0.98  # they are told apart
    ours.save_packed(tmp_path / "packed")
    assert np.array_equal(bvl.SentenceTransformer(str(tmp_path / "packed")).encode(texts), found)
    norms = np.linalg.norm(found, axis=1)
    for dtype, least in (("bfloat16", 0.9995), ("int8", 0.99)):
        lower = bvl.SentenceTransformer(str(folder), dtype=dtype).encode(texts)
        assert ((lower * found).sum(1) / norms / np.linalg.norm(lower, axis=1)).min() > least


@pytest.mark.skipif(published.archive() is None, reason="no published files: BEYONDVL_PUBLISHED names their folder")
def test_embedding_gemma_as_it_was_published(tmp_path):
    """Its config (cut to seven layers, a small vocabulary, a window that texts reach past), modules and prompts; queries
    and documents, Matryoshka sizes, and texts of several lengths in one call."""
    transformers = pytest.importorskip("transformers", reason="parity needs transformers")
    folder = tmp_path / "model"
    shutil.copytree(published.folder() / "google--embeddinggemma-300m", folder)
    config = json.loads((folder / "config.json").read_text())
    kinds = config["layer_types"][:7]
    config |= {"num_hidden_layers": 7, "layer_types": kinds, "vocab_size": 90, "sliding_window": 6}
    (folder / "config.json").write_text(json.dumps(config))
    torch.manual_seed(0)
    model = transformers.Gemma3TextModel(transformers.AutoConfig.from_pretrained(folder)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(-0.6 if "q_norm" in name or "k_norm" in name else 0, 0.1 if "norm" in name else 0.05)
    model.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(config))  # as it was published
    for place in ("2_Dense", "3_Dense"):
        sizes = json.loads((folder / place / "config.json").read_text())
        weight = torch.randn(sizes["out_features"], sizes["in_features"]) / sizes["in_features"] ** 0.5
        save_safetensors(folder / place / "model.safetensors", {"linear.weight": weight.numpy()})
    save_tokenizer(folder, "a cat dog on the sofa task search result query title none text is")
    for name in ("added_tokens.json", "special_tokens_map.json"):
        (folder / name).unlink()
    ours, theirs = bvl.SentenceTransformer(str(folder)), peer.SentenceTransformer(str(folder), device="cpu")
    texts = ["a cat", "the dog is on the sofa", " ".join(["a cat on the sofa"] * 9), "dog"]
    for name in ("encode_query", "encode_document", "encode"):
        for size in (None, 128):
            found, expected = (getattr(each, name)(texts, truncate_dim=size) for each in (ours, theirs))
            np.testing.assert_allclose(found, expected, atol=2e-6)
    assert np.sort(ours.similarity(found, found)[np.triu_indices(4, 1)])[1] < 0.9  # they are told apart
    packed = ours.encode(texts)
    ours.save_packed(tmp_path / "packed")
    assert np.array_equal(bvl.SentenceTransformer(str(tmp_path / "packed")).encode(texts), packed)
    for dtype, least in (("bfloat16", 0.9995), ("int8", 0.99)):
        lower = bvl.SentenceTransformer(str(folder), dtype=dtype).encode(texts)
        assert (lower * packed).sum(1).min() > least
