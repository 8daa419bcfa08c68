"""Processors of models that read a picture as tiles within a text (Idefics3; Laurençon et al., 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate, pairwise
from typing import Any

from ..config import Config
from ..folder import Folder
from .interleaved import InterleavedProcessor

__all__ = ["TileProcessor"]

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
