"""The default on photographs it never saw the like of: top-1 of the committed sentence.

    python training/photographs.py FOLDER...

The folders hold the photographs named in photographs.json: data of scikit-image 0.19 (Debian: python3-skimage), of
matplotlib (python-matplotlib-data) and of scikit-learn's wheel. The sentences were committed before any was scored.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import beyondvl as bvl


def main() -> None:
    rows = json.loads(Path(__file__).with_name("photographs.json").read_text())
    sentences = {name: row["sentence"] for name, row in rows.items()}
    found = {p.name: p for folder in sys.argv[1:] for p in Path(folder).rglob("*") if p.name in sentences}
    names = sorted(found)
    model = bvl.AutoModel.from_pretrained("beyond-vl-model")
    images = model.encode([str(found[n]) for n in names], normalize_embeddings=True)
    texts = model.encode([{"text": sentences[n]} for n in names], normalize_embeddings=True)
    scores = model.similarity(images, texts)
    hits = 0
    for i, name in enumerate(names):
        best = int(scores[i].argmax())
        hits += best == i
        print(f"{'ok ' if best == i else '-- '} {name:<24} {sentences[names[best]]}")
    print(f"top-1: {hits} of {len(names)}")


if __name__ == "__main__":
    main()
