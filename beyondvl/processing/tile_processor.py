"""Processors of models that read a picture as tiles within a text (Idefics3; Laurençon et al., 2024), or search for it
so (ColModernVBERT; Teiletche et al., 2025)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

from ..config import Config
from ..errors import ConfigError
from ..folder import Folder
from ..outputs import BatchFeature, check_device
from ..similarity import maxsim
from .interleaved import InterleavedProcessor
from .items import grouped

__all__ = ["PageProcessor", "TileProcessor"]

IMAGE, AROUND, WHOLE, END = "<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>"


class TileProcessor(InterleavedProcessor):
    """`processor(images=..., text=...)` -> `input_ids`, `attention_mask`, `pixel_values` (B, n, 3, S, S) and
    `pixel_attention_mask` (B, n, S, S), n tiles of the pictures of a text. Where a text says "<image>" a picture goes:
    `image_seq_len` placeholders for each of its tiles, and between them tokens that tell which tile it is."""

    def _placeholder(self) -> str:
        self.image_seq_len = self.kind.image_seq_len
        if self.tokenizer:
            known = self.tokenizer.get_vocab()
            self.tokenizer.add_tokens([t for t in (AROUND, IMAGE, END) if t not in known], special_tokens=True)
        return IMAGE

    def read_files(self, folder: Folder, stated: Config) -> None:
        super().read_files(folder, stated)
        self.image_seq_len = stated.integer("image_seq_len", self.image_seq_len, 1, 1 << 14)

    def token(self, name: str) -> str:
        return IMAGE

    def tiles(self, rows: int, cols: int) -> str:
        """What stands in a text for a picture of so many tiles down and across, 0 where it is whole."""
        rest, whole = IMAGE * self.image_seq_len, f"{AROUND}{WHOLE}{IMAGE * self.image_seq_len}{AROUND}"
        lines = ["".join(f"{AROUND}<row_{y}_col_{x}>{rest}" for x in range(1, cols + 1)) for y in range(1, rows + 1)]
        return "".join(f"{line}\n" for line in lines) + ("\n" if lines else "") + whole

    def _check_given(self, images: Any, text: Any, videos: Any, audio: Any) -> None:
        if videos is not None or audio is not None:
            raise ValueError("videos, audio: given to a processor of pictures, expected images, and none of these")
        super()._check_given(images, text, videos, audio)

    def _alone(self, counts: dict[str, list[int]]) -> None:
        """Pictures by themselves make no text."""

    def _pictures(
        self, groups: list[list[Any]], text: Any, settings: dict[str, Any]
    ) -> tuple[dict[str, Any], Iterator[str]]:
        if isinstance(text, list | tuple) and len(groups) == 1 < len(text):  # one list for all texts
            ends = [*accumulate((str(one).count(IMAGE) for one in text), initial=0)]
            if ends[-1] == len(groups[0]):  # else it is refused once it is compared with the texts
                groups = [groups[0][begin:end] for begin, end in pairwise(ends)]
        places = None if text is None else [one.count(IMAGE) for one in ([text] if isinstance(text, str) else text)]
        if places is not None and len(groups) > 1 and places != [len(group) for group in groups]:
            counts = [len(group) for group in groups]
            raise ValueError(f"images: found {counts}, and texts with places ({IMAGE}) for {places}: expected as many")
        settings = {name: value for name, value in settings.items() if name != "return_row_col_info"}
        arrays = dict(self.image_processor(groups, return_tensors="np", return_row_col_info=True, **settings))
        rows, cols = ([one for group in arrays.pop(name) for one in group] for name in ("rows", "cols"))
        return arrays, (self.tiles(*grid) for grid in zip(rows, cols, strict=True))

    def to_dict(self) -> dict[str, Any]:
        return super().to_dict() | {"image_seq_len": self.image_seq_len}


class PageProcessor(TileProcessor):
    """A TileProcessor whose pictures are pages to be searched for: `process_images(pages)` and `process_queries(texts)`
    make inputs of a model that gives an embedding for each token, `score_retrieval` compares these."""

    def _placeholder(self) -> str:
        self.visual_prompt_prefix, self.query_prefix = self.kind.page_prompt, ""
        return super()._placeholder()

    def read_files(self, folder: Folder, stated: Config) -> None:
        super().read_files(folder, stated)
        for name in ("visual_prompt_prefix", "query_prefix"):
            value = stated.get(name) or getattr(self, name)
            if not isinstance(value, str):
                raise ConfigError(f"processor_config.json: {name}: found {value!r}, expected a text")
            setattr(self, name, value)

    def page(self, rows: int, cols: int) -> str:
        """The text in which a page of so many tiles stands (see `tiles`)."""
        return self.visual_prompt_prefix.replace(IMAGE, self.tiles(rows, cols))

    def query(self, text: str, suffix: str | None = None) -> str:
        """What a question is read as."""
        return f"{self.query_prefix}{text}{self.kind.query_suffix if suffix is None else suffix}"

    def process_images(self, images: Any, return_tensors: str | None = "np", **kwargs: Any) -> BatchFeature:
        """Inputs of pages, each a text by itself: `input_ids`, `attention_mask` (B, L), `pixel_values` (B, n, 3, S, S)
        and `pixel_attention_mask` of their tiles. A picture or a list; options as of the processor's call."""
        pages = [[one] for group in grouped(images) for one in group]
        texts = [self.visual_prompt_prefix] * len(pages)
        return self(images=pages, text=texts, return_tensors=return_tensors, **kwargs)

    def process_queries(
        self, text: str | list[str], suffix: str | None = None, return_tensors: str | None = "np", **kwargs: Any
    ) -> BatchFeature:
        """Inputs of questions, a text or a list, each with the folder's `query_prefix` before it and `suffix` after it
        (None: ten tokens more, which search along). ValueError for what is no text."""
        texts = [text] if isinstance(text, str) else list(text)
        if not texts or not all(isinstance(one, str) for one in texts):
            raise ValueError(f"text: found {text!r}, expected a text or a list of texts")
        return self(text=[self.query(one, suffix) for one in texts], return_tensors=return_tensors, **kwargs)

    def score_retrieval(
        self,
        query_embeddings: Any,
        passage_embeddings: Any,
        batch_size: int = 128,
        output_dtype: Any = None,
        output_device: Any = "cpu",
    ) -> Any:
        """Scores (questions, pages) float32: `maxsim`, in portions of its own whatever `batch_size`. ValueError for
        another dtype or device."""
        check_device(output_device)
        if output_dtype is not None and str(output_dtype).removeprefix("torch.") != "float32":
            raise ValueError(f"output_dtype: found {output_dtype}, expected float32 or None")
        return maxsim(query_embeddings, passage_embeddings)

    def to_dict(self) -> dict[str, Any]:
        own = {"visual_prompt_prefix": self.visual_prompt_prefix, "query_prefix": self.query_prefix}
        return super().to_dict() | own
