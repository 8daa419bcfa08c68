"""An index of what a model encodes: folders that change, queries that are texts, pictures, sounds or clips."""

from __future__ import annotations

import os
from typing import Any, NamedTuple

import numpy as np

from ..ahead import progress
from ..bulk.identity import fingerprint
from ..bulk.stores import Here
from ..hub import shipped_name
from ..modalities import TEXT
from ..outcomes import Failure, counted
from ..outputs import check_count
from ..processing.items import extension_of, modality_of
from .catalog import Key

__all__ = ["ItemsMixin", "Updated"]

TOGETHER = 256  # files encoded and written at a time


class Updated(NamedTuple):
    """What became of a folder's files: counts of those that are new, changed, gone and as before, and failures."""

    new: int
    changed: int
    gone: int
    same: int
    failures: tuple[Failure, ...]


class ItemsMixin:
    """What `Index` does with a model."""

    @classmethod
    def for_model(
        cls,
        model: Any,
        dtype: str = "float32",
        *,
        rescore: bool | None = None,
        approximate: bool = False,
        path: str | os.PathLike | None = None,
    ) -> Any:
        """An empty index of a model's embeddings, compared by cosine; those of another checkpoint are refused."""
        name = shipped_name(model.folder) or str(model.folder)
        facts = {"name": name, "fingerprint": fingerprint(model), "dtype": model.dtype}
        options = {"rescore": rescore, "approximate": approximate, "path": path, "model": facts}
        return cls(model.get_embedding_dimension(), dtype, "cosine", **options)

    def check_model(self, model: Any) -> None:
        """ValueError unless these are the model's embeddings: of the same configuration, processor and weights."""
        known = self.facts["model"]
        if known is None:
            raise ValueError("index: found one of no model, expected one that Index.for_model made")
        if (ours := fingerprint(model)) != known["fingerprint"]:
            raise ValueError(
                f"model: found {model.name_or_path} ({ours}), the index is of {known['name']} ({known['fingerprint']})"
            )

    def add_items(
        self, model: Any, inputs: Any, *, column: str | None = None, key: str | None = None, **options: Any
    ) -> tuple[Failure, ...]:
        """Encodes and adds rows by their keys; those that cannot be read are returned.

        `inputs`, `column`, `key` and options: as of `PreTrainedModel.encode_stream`. Rows are added some hundreds at a
        time. Raises ValueError for another model than the index's, and as `add`.
        """
        self.check_model(model)
        failures: list[Failure] = []
        first = 0
        options = {"column": column, "key": key, "on_error": "skip", "normalize_embeddings": True, **options}
        for rows in model.encode_stream(inputs, chunk_size=TOGETHER, **options):
            self.add([rows.keys[i - first] for i in rows.indices], np.asarray(rows))
            first += len(rows.keys)
            failures += rows.failures
        return tuple(failures)

    def update(self, model: Any, folder: str | os.PathLike, show_progress_bar: bool | None = None) -> Updated:
        """Makes the index that of a folder's pictures, clips and sounds, as far as the model reads them, at any depth.
        Files are known by their size and time of change: only what is new or changed is encoded, what is gone is
        removed; keys are paths within the folder. Stopped at any moment, the next call goes on.

        Raises ValueError for another model than the index's, FileNotFoundError where there is no folder.
        """
        self.check_model(model)
        root = os.fspath(folder)
        present: dict[Key, tuple[int, int]] = {}
        store = Here()
        if not store.is_folder(root):
            raise FileNotFoundError(f"{root}: no such folder")
        for name in store.names(root):
            if extension_of(name.lower()) in model.readable:
                about = os.stat(name)
                present[store.short(name, root)] = about.st_size, about.st_mtime_ns
        with self._read():
            known = self.catalog.files()
        gone = [key for key in known if key not in present]
        if gone:
            with self._change():
                self.catalog.remove(gone)
                self.catalog.forget_files(gone)
        todo = [key for key, about in present.items() if known.get(key) != about]
        failures = self._encode_files(model, root, todo, present, show_progress_bar)
        changed = sum(key in known for key in todo)
        return Updated(len(todo) - changed, changed, len(gone), len(present) - len(todo), failures)

    def _encode_files(
        self, model: Any, root: str, todo: list[Key], present: dict[Key, tuple[int, int]], show: bool | None
    ) -> tuple[Failure, ...]:
        failures: list[Failure] = []
        with progress(len(todo), show) as bar:
            for start in range(0, len(todo), TOGETHER):
                keys = todo[start : start + TOGETHER]
                paths = [os.path.join(root, key) for key in keys]
                rows = model.encode(paths, on_error="skip", normalize_embeddings=True, show_progress_bar=False)
                errors = {failure.index - start: failure for failure in counted(rows.failures, start)}
                told = [
                    (key, *present[key], str(errors[i].error) if i in errors else None) for i, key in enumerate(keys)
                ]
                self._add([keys[i] for i in rows.indices], np.asarray(rows), keys, told)
                failures += (failure._replace(source=keys[i]) for i, failure in errors.items())
                bar.update(len(keys))
        return tuple(failures)

    def search_items(
        self,
        model: Any,
        items: Any,
        k: int = 10,
        *,
        filter: Any = None,
        rerank: int = 0,
        root: str | os.PathLike = "",
        **options: Any,
    ) -> tuple[list, np.ndarray]:
        """As `search`, of a text, a path or picture, a sound, a clip, or a list of them (see `PreTrainedModel.encode`,
        which takes the options).

        Args:
            rerank: of one text, how many of the nearest (k at least) are read again and matched, by a model that
                has `match`: scores are probabilities then. 0: none.
            root: the folder that keys are paths within, to read them.

        Raises ValueError for another model than the index's, and for a query or model that cannot be matched.
        """
        self.check_model(model)
        if rerank:
            check_count("rerank", rerank)
            if not hasattr(model, "match"):
                raise ValueError(f"rerank: found a {type(model).__name__}, expected a model that matches")
            if not isinstance(items, str) or modality_of(items) != TEXT.name:
                raise ValueError(f"rerank: found a query {items!r:.100}, expected one text")
        rows = model.encode_query(items, normalize_embeddings=True, **options)
        keys, scores = self.search(rows, max(k, rerank), filter=filter)
        if rerank:
            scores = _probabilities(model, items, [os.path.join(root, str(key)) for key in keys])
            best = np.argsort(-scores, kind="stable")[:k]
            keys, scores = [keys[at] for at in best], scores[best]
        return keys, scores

    def duplicates(self, threshold: float = 0.95, k: int = 50) -> list[list[Key]]:
        """Groups of keys that are nearly the same: joined by scores of `threshold` and more, the k nearest of each key
        looked at. The largest group first, each in the index's order."""
        keys = self.keys()
        places = {key: at for at, key in enumerate(keys)}
        root = list(range(len(keys)))

        def find(at: int) -> int:
            while root[at] != at:
                root[at] = root[root[at]]
                at = root[at]
            return at

        for start in range(0, len(keys), TOGETHER):
            some = keys[start : start + TOGETHER]
            for key, near, scores in zip(some, *self.search(self.vectors(some), k, exact=True), strict=True):
                for other, score in zip(near, scores, strict=True):
                    if score >= threshold:
                        one, two = sorted((find(places[key]), find(places[other])))
                        root[two] = one
        groups: dict[int, list[Key]] = {}
        for at, key in enumerate(keys):
            groups.setdefault(find(at), []).append(key)
        return sorted((group for group in groups.values() if len(group) > 1), key=len, reverse=True)


def _probabilities(model: Any, text: str, paths: list[str]) -> np.ndarray:
    """Of each file [n] float32 how probably a text fits it."""
    kinds = [modality_of(path) for path in paths]
    scores = np.zeros(len(paths), np.float32)
    for kind in set(kinds):  # a call takes items of one kind
        some = [at for at, other in enumerate(kinds) if other == kind]
        scores[some] = model.match([paths[at] for at in some], [text] * len(some))
    return scores
