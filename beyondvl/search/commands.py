"""The commands `index`, `search` and `dedupe`: a folder is indexed in its own `.beyondvl`, and found from within it."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from ..hub import DEFAULT_MODEL

__all__ = ["add_options", "dedupe", "index", "open_index", "search"]

PLACE = ".beyondvl"


def index(options: argparse.Namespace) -> None:
    """Makes or brings up to date the index of a folder's pictures, clips and sounds; only what is new is read."""
    from ..models.auto import AutoModel
    from .index import Index

    root = Path(options.folder)
    place = Path(options.index) if options.index else root / PLACE
    if not root.is_dir():
        raise FileNotFoundError(f"{root}: no such folder")
    there = Index.open(place) if (place / "index.db").exists() else None
    name = options.model or (DEFAULT_MODEL if there is None else there.facts["model"]["name"])
    model = AutoModel.from_pretrained(name, dtype=options.dtype)
    made = {"dtype": options.rows or "float32", "approximate": options.approximate, "path": place}
    opened = Index.for_model(model, **made) if there is None else there
    if options.rows not in (None, opened.dtype):
        raise ValueError(f"{place}: an index of {opened.dtype} rows, expected {options.rows}: remove it first")
    if options.approximate and not opened.approximate:
        raise ValueError(f"{place}: an index without graphs, expected an approximate one: remove it first")
    done = opened.update(model, root, options.progress)
    for failure in done.failures:
        print(f"{failure.source}: {failure.error}", file=sys.stderr)
    if options.json:
        errors = {failure.source: str(failure.error) for failure in done.failures}
        print(json.dumps(done._asdict() | {"failures": errors, "count": len(opened), "index": str(place)}))
    else:
        bad = f", {len(done.failures)} not read" if done.failures else ""
        changes = f"{done.new} new, {done.changed} changed, {done.gone} gone, {done.same} as before{bad}"
        print(f"{changes}; {len(opened)} in {place}")


def search(options: argparse.Namespace) -> None:
    """The nearest files of an indexed folder to a text, a picture, a clip or a sound."""
    from ..models.auto import AutoModel

    opened, root = open_index(options)
    model = AutoModel.from_pretrained(options.model or opened.facts["model"]["name"], dtype=options.dtype)
    keys, scores = opened.search_items(model, options.query, options.top, rerank=options.rerank, root=root)
    results = [(str(key), os.path.join(root, str(key)), float(score)) for key, score in zip(keys, scores, strict=True)]
    for _, path, score in results:
        print(json.dumps({"file": path, "score": score}) if options.json else f"{score:.3f}  {path}")
    if options.html:
        from .page import write_page

        write_page(Path(options.html), options.query, results)
        print(f"{len(results)} results in {options.html}", file=sys.stderr)


def dedupe(options: argparse.Namespace) -> None:
    """Groups of nearly equal files of an indexed folder, a blank line between them."""
    opened, root = open_index(options)
    groups = [[os.path.join(root, str(key)) for key in group] for group in opened.duplicates(options.threshold)]
    if options.json:
        for group in groups:
            print(json.dumps(group))
    else:
        print("\n\n".join("\n".join(group) for group in groups))


def open_index(options: argparse.Namespace) -> tuple[Any, str]:
    """The index of a folder, or of the first one above it that has one; and where its keys begin."""
    from .index import Index

    folder = Path(options.folder)
    if options.index:
        return Index.open(options.index), str(folder)
    above = folder.resolve()
    for root in (folder, *above.parents):
        if (root / PLACE / "index.db").is_file():
            return Index.open(root / PLACE), "" if str(root) == "." else str(root)
    raise FileNotFoundError(f"{folder}: not indexed, nor is a folder above it: beyondvl index {folder}")


def add_options(sub: argparse.ArgumentParser, function: Any) -> None:
    """The options of a command."""
    if function is search:
        sub.add_argument("query", help="a text, or a picture, clip or sound file")
    sub.add_argument(
        "folder", nargs=None if function is index else "?", default=".", help="the folder (default: this one)"
    )
    sub.add_argument("--index", help=f"where the index is (default: {PLACE} in the folder)")
    if function is not dedupe:
        sub.add_argument("--model", help="folder, hub id, or the shipped default; that of the index where there is one")
        sub.add_argument("--dtype", help="float32 (default), bfloat16, int8, fastest or auto")
    if function is index:
        sub.add_argument("--rows", help="what vectors are kept as: float32 (default), bfloat16, int8 or binary")
        sub.add_argument("--approximate", action="store_true", help="of a new index: graphs of near rows, by usearch")
        sub.add_argument("--progress", action="store_true", default=None, help="show a progress bar on stderr")
    if function is search:
        sub.add_argument("-k", "--top", type=int, default=10, help="how many (default 10)")
        sub.add_argument("--rerank", type=int, default=0, metavar="N", help="match the text with the N nearest")
        sub.add_argument("--html", metavar="FILE", help="write a page with thumbnails, too")
    if function is dedupe:
        sub.add_argument("--threshold", type=float, default=0.95, help="cosine from which two are equal (default 0.95)")
