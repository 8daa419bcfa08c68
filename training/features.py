"""Step 2 of the first default's recipe: picture features of the frozen tower, one clean view and several augmented ones.

    python training/features.py --work training/work --views 11

Writes WORK/features.npy, float16 [views, items, 1280], of the views of drawings that views.py makes. Views already in the
file are kept. Tower: EfficientNet-Lite2 (ImageNet), input (x - 127) / 128.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from views import drawn, tower


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--views", type=int, default=11)
    parser.add_argument("--batch-size", type=int, default=32)
    options = parser.parse_args()
    items = json.loads((options.work / "items.json").read_text())
    paths = [options.work / "pictures" / item["picture"] for item in items]
    model = tower(options.work / "tower")
    path = options.work / "features.npy"
    done = np.load(path) if path.exists() else np.zeros((0, len(items), 1280), np.float16)
    out = np.lib.format.open_memmap(path, "w+", np.float16, (options.views, len(items), 1280))
    out[: len(done)] = done
    with ThreadPoolExecutor(2) as pool:
        for number in range(len(done), options.views):
            for start in range(0, len(paths), options.batch_size):
                batch = paths[start : start + options.batch_size]
                pixels = np.stack(list(pool.map(drawn, batch, [number] * len(batch))))
                out[number, start : start + len(batch)] = model.get_image_features(pixels)
            print("view", number, flush=True)
            out.flush()


if __name__ == "__main__":
    main()
