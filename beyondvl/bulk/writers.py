"""Where embeddings go: a folder of files that others read.

parquet         part-00000.parquet, ...: columns key, vector (a list of one size) and error
arrow           part-00000.arrow, ...: the same, in Arrow's own format, to be mapped
npy             embeddings.npy and, of each row, its key in keys.jsonl
clip-retrieval  img_emb/img_emb_0.npy (or text_emb/), metadata/metadata_0.parquet, as that program's index reads them
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..files import write_aside
from ..modalities import IMAGE, TEXT
from .tables import import_arrow, lists_of

__all__ = ["WRITERS", "Writer"]


class Writer:
    """Writes one part after another into a folder; `facts` are what a reader is to know of the whole."""

    def __init__(self, folder: Path, facts: dict[str, Any]):
        self.folder, self.facts = folder, facts

    def write(self, number: int, keys: Sequence[str], rows: np.ndarray, errors: Sequence[str | None]) -> None:
        """A part: all of its files are there, or none is."""
        with write_aside(self.folder, ()) as aside:
            self.part(aside, number, keys, rows, errors)

    def part(self, folder: Path, number: int, keys: Sequence[str], rows: np.ndarray, errors: Sequence[Any]) -> None:
        """Writes the files of a part."""
        raise NotImplementedError

    def finish(self, parts: int) -> None:
        """Does what is left when all parts are written; done twice it changes nothing."""

    def files(self) -> list[Path]:
        """What was written, in order."""
        return sorted(self.folder.glob("part-*"))


class TableWriter(Writer):
    """Tables of Arrow."""

    def table(self, keys: Sequence[str], rows: np.ndarray, errors: Sequence[Any]) -> Any:
        arrow = import_arrow("tables")
        columns = {
            "key": arrow.array(keys, arrow.string()),
            "vector": lists_of(rows),
            "error": arrow.array(errors, arrow.string()),
        }
        return arrow.table(columns).replace_schema_metadata({"beyondvl": json.dumps(self.facts)})


class ParquetWriter(TableWriter):
    """Of Parquet files."""

    def part(self, folder: Path, number: int, keys: Sequence[str], rows: np.ndarray, errors: Sequence[Any]) -> None:
        table = self.table(keys, rows, errors)
        from pyarrow import parquet

        parquet.write_table(table, folder / f"part-{number:05d}.parquet", use_dictionary=False)


class ArrowWriter(TableWriter):
    """Of Arrow's files."""

    def part(self, folder: Path, number: int, keys: Sequence[str], rows: np.ndarray, errors: Sequence[Any]) -> None:
        table = self.table(keys, rows, errors)
        from pyarrow import ipc

        with ipc.new_file(str(folder / f"part-{number:05d}.arrow"), table.schema) as file:
            file.write_table(table)


class NumpyWriter(Writer):
    """Parts of their own until all are there: then one array, and the keys of its rows."""

    WHOLE = ("embeddings.npy", "keys.jsonl")

    def part(self, folder: Path, number: int, keys: Sequence[str], rows: np.ndarray, errors: Sequence[Any]) -> None:
        np.save(folder / f"part-{number:05d}.npy", rows)
        (folder / f"part-{number:05d}.jsonl").write_text("".join(json.dumps(key) + "\n" for key in keys))

    def finish(self, parts: int) -> None:
        stems = [self.folder / f"part-{number:05d}" for number in range(parts)]
        if not self.whole():
            arrays = [np.load(stem.with_suffix(".npy"), mmap_mode="r") for stem in stems]
            shape = (sum(map(len, arrays)), arrays[0].shape[1])
            with write_aside(self.folder, ()) as aside:
                with open(aside / self.WHOLE[0], "wb") as file:
                    header = {"descr": self.facts["stored"], "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, header)
                    for array in arrays:
                        array.tofile(file)
                with open(aside / self.WHOLE[1], "wb") as file:
                    for stem in stems:
                        with open(stem.with_suffix(".jsonl"), "rb") as part:
                            shutil.copyfileobj(part, file)
        for path in self.folder.glob("part-*"):
            os.unlink(path)

    def whole(self) -> bool:
        return all((self.folder / name).exists() for name in self.WHOLE)

    def files(self) -> list[Path]:
        return [self.folder / name for name in self.WHOLE]


class ClipRetrievalWriter(Writer):
    """That program's folders: rows that failed are left out of them."""

    FOLDERS: ClassVar = {IMAGE.name: ("img_emb", "image_path"), TEXT.name: ("text_emb", "caption")}

    def part(self, folder: Path, number: int, keys: Sequence[str], rows: np.ndarray, errors: Sequence[Any]) -> None:
        name, column = self.FOLDERS[self.facts["modality"]]
        arrow = import_arrow("clip-retrieval's metadata")
        from pyarrow import parquet

        for one in (name, "metadata"):
            (folder / one).mkdir()
        np.save(folder / name / f"{name}_{number}.npy", rows)
        parquet.write_table(arrow.table({column: keys}), folder / "metadata" / f"metadata_{number}.parquet")

    def files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*_[0-9]*.*") if path.is_file())


WRITERS: dict[str, type[Writer]] = {
    "parquet": ParquetWriter,
    "arrow": ArrowWriter,
    "npy": NumpyWriter,
    "clip-retrieval": ClipRetrievalWriter,
}
