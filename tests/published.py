"""Small files of published checkpoints: where they lie, and what of them is compared.

They are other people's files, read where they are: the folder that BEYONDVL_PUBLISHED names, or shared/published beside
the checkout, holds them in files.tar.xz. Nothing of them is in this repository.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
from functools import cache
from pathlib import Path

ARCHIVE = "files.tar.xz"
ROOT = Path(__file__).parent.parent
PLACES = [ROOT.parent / "shared" / "published", ROOT.parent.parent / "shared" / "published"]
TOKENIZER_FILES = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer_config.json")

# folders whose copy lacks a file, and which: those over 4 MB were not kept
LACKING = {
    "LiquidAI--LFM2-1.2B": "tokenizer.json",
    "Qwen--Qwen2.5-VL-3B-Instruct@sophgo": "merges.txt",
    "Qwen--Qwen3.5@sophgo": "vocab.json",
    "google--embeddinggemma-300m": "tokenizer.json",
    "google--gemma-3-4b-it": "tokenizer.json",
    "google--gemma-4-E2B-it": "tokenizer.json",
    "google--gemma-4@ort": "tokenizer.json",
    "google--gemma-4@sophgo": "tokenizer.json",
    "intfloat--multilingual-e5-large-instruct": "tokenizer.json",
    "sentence-transformers--LaBSE": "vocab.txt",
    "sentence-transformers--paraphrase-multilingual-MiniLM-L12-v2": "tokenizer.json",
    "sentence-transformers--paraphrase-multilingual-MiniLM-L12-v2@5.6": "tokenizer.json",
    "tencent--Hunyuan3D-2.1-paintpbr/tokenizer": "merges.txt",
    "thenlper--gte-base": "vocab.txt",
    "vidore--colpali": "tokenizer.json",
}
# a tokenizer that is refused by its name: its words come from another program (MeCab)
REFUSED = {"cl-tohoku--bert-base-japanese-v3": "BertJapaneseTokenizer"}
# image processors of families that are none here: each is refused by its name
OTHERS = ("Qwen2VL", "Sam3", "Gemma3")


def archive() -> Path | None:
    """Where the files are; None where they are not."""
    named = os.environ.get("BEYONDVL_PUBLISHED")
    for place in [Path(named)] if named else PLACES:
        if (place / ARCHIVE).is_file():
            return place / ARCHIVE
    return None


@cache
def folder() -> Path:
    """All of them, unpacked for as long as the process lives."""
    place = tempfile.TemporaryDirectory(prefix="published.")
    folder.kept = place  # removed with the process
    with tarfile.open(archive()) as files:
        safely = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}  # Python 3.11.4 on
        files.extractall(place.name, **safely)
    return Path(place.name)


def names(*files: str) -> list[str]:
    """Folders within it that hold one of those files."""
    found = {path.parent for file in files for path in folder().rglob(file)}
    return sorted(str(path.relative_to(folder())) for path in found)


def by_family() -> dict[str, list[str]]:
    """Folders that hold a config, by the family it is of."""
    from beyondvl.errors import ConfigError
    from beyondvl.families.registry import find_family, load_config
    from beyondvl.folder import Folder

    found: dict[str, list[str]] = {}
    for name in names("config.json", "open_clip_config.json"):
        try:
            family = find_family(load_config(Folder(folder() / name))).model_type
        except ConfigError:
            continue
        found.setdefault(family, []).append(name)
    return found
