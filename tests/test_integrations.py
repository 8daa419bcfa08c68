"""beyondvl inside other libraries, as they are on PyPI."""

from __future__ import annotations

import json
import pickle

import calls
import numpy as np
import pytest

import beyondvl as bvl
import models
import pictures
import published
from beyondvl.integrations.embedder import Embedder

PHOTOS = [str(path) for path in sorted(pictures.EXAMPLES.glob("*.jpg"))[:4]]


def test_an_embedder_loads_where_it_is_used(tmp_path, monkeypatch):
    models.write(tmp_path / "clip")
    monkeypatch.chdir(tmp_path)
    embedder = Embedder("clip", dtype="int8", num_threads=1, modality="image")
    assert embedder.ndims == embedder.model.get_embedding_dimension()
    data = pickle.dumps(embedder)
    assert len(data) < 1000
    monkeypatch.chdir("/")
    other = pickle.loads(data)
    assert other._model is None and other.model.dtype == "int8" and other.model.num_threads == 1
    rows, errors = Embedder()([*PHOTOS[:2], b"none", "a text"])
    assert errors[:2] == [None, None] and errors[3] is None and errors[2].startswith("image bytes: cannot be decoded")
    assert np.isnan(rows[2]).all()
    wanted = bvl.AutoModel.from_pretrained("beyond-vl-model").encode([*PHOTOS[:2], "a text"], normalize_embeddings=True)
    np.testing.assert_array_equal(rows[[0, 1, 3]], wanted)


@pytest.mark.filterwarnings("ignore")
def test_lancedb(tmp_path):
    lancedb = pytest.importorskip("lancedb", reason="lancedb is not installed")
    from lancedb.embeddings import get_registry
    from lancedb.pydantic import LanceModel, Vector

    import beyondvl.integrations.lancedb  # noqa: F401

    embed = get_registry().get("beyondvl").create(truncate_dim=200)

    class Photo(LanceModel):
        path: str = embed.SourceField()
        vector: Vector(embed.ndims()) | None = embed.VectorField(default=None)

    (tmp_path / "bad.jpg").write_bytes(b"none")
    base = lancedb.connect(tmp_path / "base")
    table = base.create_table("photos", schema=Photo)
    table.add([{"path": path} for path in [*PHOTOS, str(tmp_path / "bad.jpg")]], on_bad_vectors="null")
    assert table.count_rows() == 5
    rows = {row["path"]: row["vector"] for row in table.to_arrow().to_pylist()}
    assert rows[str(tmp_path / "bad.jpg")] is None
    wanted = bvl.AutoModel.from_pretrained("beyond-vl-model").encode(
        PHOTOS, normalize_embeddings=True, truncate_dim=200
    )
    np.testing.assert_allclose([rows[path] for path in PHOTOS], wanted, atol=1e-6)
    found = (
        base.open_table("photos").search("a close-up of a cat").limit(1).to_list()
    )  # the function comes with the table
    assert found[0]["path"].endswith("cat.jpg")
    assert table.search(PHOTOS[1]).limit(1).to_list()[0]["path"] == PHOTOS[1]


def test_fastembed(tmp_path):
    fastembed = pytest.importorskip("fastembed", reason="fastembed is not installed")
    from beyondvl.integrations.fastembed import add_model

    name = "beyondvl/beyond-vl-model"
    model = bvl.AutoModel.from_pretrained("beyond-vl-model")
    pictures_of = fastembed.ImageEmbedding(name, threads=1)
    rows = list(pictures_of.embed(iter(PHOTOS), batch_size=3, parallel=2))
    np.testing.assert_array_equal(rows, model.encode(PHOTOS, normalize_embeddings=True))
    np.testing.assert_array_equal(list(pictures_of.embed(PHOTOS[0])), rows[:1])
    assert pictures_of.embedding_size == fastembed.ImageEmbedding.get_embedding_size(name) == 384
    texts = fastembed.TextEmbedding(name, lazy_load=True)
    words = ["a cat", "/etc/passwd", "a wall"]
    wanted = model.encode([{"text": word} for word in words], normalize_embeddings=True)
    np.testing.assert_array_equal(list(texts.embed(words)), wanted)
    np.testing.assert_array_equal(list(texts.query_embed("a cat")), wanted[:1])
    assert texts.token_count("a cat") == 4
    folder = models.write(tmp_path / "clip")
    about = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 48}, "crop_size": 48}
    (folder / "preprocessor_config.json").write_text(json.dumps(about))
    other = bvl.AutoModel.from_pretrained(folder)
    add_model("mine", folder, other.get_embedding_dimension())
    mine = fastembed.ImageEmbedding("Mine")
    np.testing.assert_array_equal(list(mine.embed(PHOTOS)), other.encode(PHOTOS, normalize_embeddings=True))
    assert mine.embedding_size == other.get_embedding_dimension()
    listed = {one["model"]: one["dim"] for one in fastembed.ImageEmbedding.list_supported_models()}
    assert listed[name] == 384 and "Qdrant/clip-ViT-B-32-vision" in listed


@pytest.mark.skipif(published.archive() is None, reason="no published files: BEYONDVL_PUBLISHED names their folder")
def test_evaluators_of_sentence_transformers(tmp_path):
    """They find of a checkpoint here what they find of it there."""
    peer = pytest.importorskip("sentence_transformers", reason="sentence-transformers is not installed")
    from sentence_transformers import evaluation, util

    encoder = calls.sentence_encoder(tmp_path)
    queries = {"1": "a cat on a mat", "2": "the red car"}
    texts = {"1": "cats sit on mats", "2": "a car is red", "3": "houses by the sea", "4": "a mat"}
    pairs = (["a cat", "a red car", "the sea"], ["cats", "cars that are red", "a house"])
    rank = {"query": "a cat", "positive": [texts["1"]], "negative": [texts["3"], texts["2"]]}
    evaluators = {
        "retrieval": evaluation.InformationRetrievalEvaluator(queries, texts, {"1": {"1", "4"}, "2": {"2"}}),
        "similarity": evaluation.EmbeddingSimilarityEvaluator(*pairs, [0.9, 0.7, 0.1]),
        "pairs": evaluation.BinaryClassificationEvaluator(*pairs, [1, 1, 0]),
        "triplets": evaluation.TripletEvaluator(pairs[0], pairs[1], list(reversed(pairs[1]))),
        "rerank": evaluation.RerankingEvaluator([rank]),
        "translation": evaluation.TranslationEvaluator(*pairs, show_progress_bar=False),
    }
    for name, evaluator in evaluators.items():
        ours, theirs = evaluator(encoder.ours), evaluator(encoder.theirs)
        assert ours.keys() == theirs.keys() and len(ours) >= 1, name
        np.testing.assert_allclose(list(ours.values()), list(theirs.values()), atol=1e-5, err_msg=name)
        assert encoder.ours.model_card_data.eval_results_dict[evaluator] == ours
    rows = [model.encode(list(texts.values()), convert_to_tensor=True) for model in (encoder.ours, encoder.theirs)]
    hits = [util.semantic_search(some[:2], some, top_k=3) for some in rows]
    assert [[hit["corpus_id"] for hit in some] for some in hits[0]] == [
        [hit["corpus_id"] for hit in some] for some in hits[1]
    ]
    mined = [util.paraphrase_mining(model, list(texts.values())) for model in (encoder.ours, encoder.theirs)]
    assert [tuple(pair[1:]) for pair in mined[0]] == [tuple(pair[1:]) for pair in mined[1]]
    assert peer.__version__
