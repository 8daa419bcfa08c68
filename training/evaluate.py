"""The shipped default as users run it, in every precision: retrieval on the split, and whether precisions agree.

    python training/evaluate.py --work training/work [--test]

WORK is what data.py wrote. Pictures lie on white squares; `encode` does the rest. Prints R@1/5/10 and median ranks of the
validation part (and the test part), their ratios to the thumbnail baseline of split.json, and for bfloat16 and int8 how
often the best match is float32's where float32 prefers it by more than 0.02.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from PIL import Image

import beyondvl as bvl
from data import on_white, one_per_caption, ranks_metrics

SIZE = 260
MARGIN = 0.02


def agreement(exact: np.ndarray, found: np.ndarray) -> float:
    """Share of rows with float32's best column, of those whose best leads by more than MARGIN."""
    ordered = np.sort(exact, 1)
    clear = ordered[:, -1] - ordered[:, -2] > MARGIN
    return float((exact.argmax(1) == found.argmax(1))[clear].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--test", action="store_true", help="the test part too")
    options = parser.parse_args()
    items = json.loads((options.work / "items.json").read_text())
    split = json.loads(Path(__file__).with_name("split.json").read_text())
    for part in ("validation", "test") if options.test else ("validation",):
        gallery = [items[i] for i in one_per_caption(items, part)]
        if [item["id"] for item in gallery] != split[part]["ids"]:
            raise SystemExit(f"{options.work}: the {part} part is not that of split.json")
        pictures = [on_white(Image.open(options.work / "pictures" / item["picture"]), SIZE) for item in gallery]
        texts, exact = [{"text": item["captions"][0]} for item in gallery], None
        for dtype in ("float32", "bfloat16", "int8"):
            model = bvl.AutoModel.from_pretrained("beyond-vl-model", dtype=dtype)
            scores = model.similarity(model.encode(pictures), model.encode(texts))
            exact = scores if exact is None else exact
            for way, row in ((w, r) for w, r in ranks_metrics(scores).items() if w != "gallery"):
                base = split[part]["thumbnail_baseline"][way]
                ratios = ", ".join(f"{row[k] / base[k]:.2f}x" for k in ("R@1", "R@10"))
                print(f"{part} {dtype} {way}: {row}, {ratios} the baseline at R@1 and R@10")
            if dtype != "float32":
                same = 100 * agreement(exact, scores), 100 * agreement(exact.T, scores.T)
                print(f"{part} {dtype}: float32's best match in {same[0]:.2f} and {same[1]:.2f} % of the clear cases")


if __name__ == "__main__":
    main()
