"""Search by any modality: a text, a picture or a spoken query finds pictures, all by one space of embeddings.

python examples/search.py [QUERY ...]        a query is a text, or a file of a picture, a clip or a sound
"""

import sys
from pathlib import Path

import beyondvl as bvl

HERE = Path(__file__).parent
QUERIES = ["a cat", "a cup of coffee", str(HERE / "photos" / "galaxies.jpg"), str(HERE / "sounds" / "query.flac")]


def main(queries: list[str]) -> None:
    queries = queries or QUERIES
    model = bvl.AutoModel.from_pretrained("beyond-vl-model")
    pictures = sorted((HERE / "photos").glob("*.jpg"))
    index = model.encode([str(path) for path in pictures], normalize_embeddings=True)
    rows = model.encode(queries, normalize_embeddings=True)
    for query, hits in zip(queries, bvl.semantic_search(rows, index, top_k=3), strict=True):
        best = ", ".join(f"{pictures[hit['corpus_id']].name} {hit['score']:.2f}" for hit in hits)
        print(f"{Path(query).name}: {best}")


if __name__ == "__main__":
    main(sys.argv[1:])
