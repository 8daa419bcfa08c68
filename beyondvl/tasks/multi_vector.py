"""Models that give an embedding for each token of a text, or of a page that stands in one as tiles."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..encode import listed
from ..modalities import IMAGE, TEXT
from ..models.model import check_neutral
from ..outputs import ModelOutput, check_count, from_numpy, kind_of
from ..processing.items import content_of, modality_of
from ..similarity import maxsim
from .base import TaskModel, text_inputs
from .tiles import TilesMixin

__all__ = ["MultiVectorModel"]


class MultiVectorModel(TilesMixin, TaskModel):
    """Texts, and texts in which tiles of pictures stand, to an embedding for each of their tokens, which `maxsim`
    compares."""

    def __call__(
        self,
        input_ids: Any = None,
        attention_mask: Any = None,
        pixel_values: Any = None,
        pixel_attention_mask: Any = None,
        **kwargs: Any,
    ) -> ModelOutput:
        """transformers' ColModernVBertForRetrieval: `embeddings` (B, L, D) of unit length, zeros where the mask is 0;
        of a ModernVBertModel `last_hidden_state` (B, L, hidden_size). With `pixel_values` (B, n, 3, S, S), tiles of the
        pictures of each text, zeros after them, also `image_hidden_states` (rows of all, hidden_size).

        Raises ValueError where texts have other numbers of placeholders than there are rows.
        """
        check_neutral(kwargs)
        text, kind = text_inputs(input_ids, attention_mask), kind_of(input_ids, pixel_values)
        each = [] if pixel_values is None else self._rows_of(pixel_values, pixel_attention_mask)
        rows = self._read(text, each)
        if self._output == "embeddings" and "attention_mask" in text:
            rows = np.where(text["attention_mask"][..., None] != 0, rows, np.float32(0))
        output = ModelOutput({self._output: from_numpy(rows, kind)})
        if each:
            output["image_hidden_states"] = from_numpy(np.concatenate(each), kind)
        return output

    @property
    def _output(self) -> str:
        """What a call gives."""
        return "embeddings" if "embeddings" in self.tower(TEXT.tower).outputs else "last_hidden_state"

    def _read(self, text: dict[str, np.ndarray], each: list[np.ndarray]) -> np.ndarray:
        """(B, L, D) of texts whose pictures have these rows."""
        if each:
            self._check_places(text["input_ids"], each)
            text = text | {"features": np.concatenate(each)}
        return self.tower(TEXT.tower).run(text, [self._output], self.num_threads)[self._output]

    def encode(
        self,
        inputs: Any,
        batch_size: int = 32,
        *,
        modality: str | None = None,
        convert_to_tensor: bool = False,
        **options: Any,
    ) -> Any:
        """Embeddings of pages and texts, as documents: pictures (`load_image`) in the text that the processor has for
        pages, other strings as they are. A list of (tokens, D) float32, each of unit length; of a single item its
        array.

        Args:
            inputs: an item, a list, an iterator or a column of a table (see PreTrainedModel.encode).
            batch_size: texts per call of the model; a page is one.
            modality: "text" or "image" for all items; None tells them apart by what they look like.
            convert_to_tensor: torch tensors instead of arrays.

        Raises ImageError where a picture cannot be read; ValueError naming the place of an item that is neither, and
        for further options, which are of models with one embedding an item: indices, tables and servers of those.
        """
        if options:
            raise ValueError(
                f"{next(iter(options))}: given to a {type(self).__name__}, whose items have several embeddings each, "
                "expected batch_size, modality, convert_to_tensor alone"
            )
        items, single = listed(inputs, modality)
        kinds = [modality or modality_of(item, (TEXT.name, IMAGE.name), at) for at, item in enumerate(items)]
        out: list[Any] = [None] * len(items)
        for at in (at for at, kind in enumerate(kinds) if kind == IMAGE.name):
            out[at] = self._page(content_of(items[at], IMAGE.name), at)
        texts = [at for at, kind in enumerate(kinds) if kind == TEXT.name]
        self._embed_texts(texts, items, out, batch_size)
        return self._returned(out, single, convert_to_tensor)

    def encode_document(self, inputs: Any, batch_size: int = 32, **options: Any) -> Any:
        """As `encode`."""
        return self.encode(inputs, batch_size, **options)

    def encode_query(self, inputs: Any, batch_size: int = 32, *, convert_to_tensor: bool = False) -> Any:
        """As `encode`, of texts as questions: with what the processor puts before and after them."""
        items, single = listed(inputs, TEXT.name)
        texts = [{TEXT.name: self.processor.query(content_of(item, TEXT.name))} for item in items]
        out: list[Any] = [None] * len(items)
        self._embed_texts(list(range(len(items))), texts, out, batch_size)
        return self._returned(out, single, convert_to_tensor)

    def _returned(self, out: list[Any], single: bool, as_tensors: bool) -> Any:
        rows = [from_numpy(each, "pt") if as_tensors else each for each in out]
        return rows[0] if single else rows

    def _page(self, picture: Any, at: int) -> np.ndarray:
        """(tokens, D) of one page."""
        made = self.image_processor([picture], positions=[at], return_row_col_info=True)
        text = self.processor.page(made["rows"][0][0], made["cols"][0][0])
        ids = np.array([self.tokenizer(text)["input_ids"]], np.int64)
        return self._read({"input_ids": ids}, self._rows_of(made["pixel_values"]))[0]

    def _embed_texts(self, indices: list[int], items: list[Any], out: list[Any], batch_size: int) -> None:
        """Fills `out` at these indices."""
        check_count("batch_size", batch_size)
        for places, inputs in self._text_batches(indices, items, batch_size) if indices else ():
            for place, row in zip(places, self._read(inputs, []), strict=True):
                out[place] = row

    @property
    def similarity_fn_name(self) -> str:
        """How `similarity` compares."""
        return "maxsim"

    def similarity(self, a: Any, b: Any) -> Any:
        """Scores (n, m) of two lists of embeddings (rows, D): `maxsim`."""
        return maxsim(a, b, self.num_threads)

    def similarity_pairwise(self, a: Any, b: Any) -> Any:
        """Score (n,) of item i of a with item i of b, as `similarity`. ValueError where they are not as many."""
        if len(a) != len(b):
            raise ValueError(f"embeddings: found {len(a)} and {len(b)} items, expected pairs")
        return np.array([maxsim([one], [other], self.num_threads)[0, 0] for one, other in zip(a, b, strict=True)])

    def get_embedding_dimension(self) -> int:
        """Numbers of each embedding."""
        return self.tower(TEXT.tower).sizes[self._output]
