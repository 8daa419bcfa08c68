"""What is asked for, and how an item of it is read. A string is a text and nothing else: no path, no URL."""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from ..modalities import AUDIO, IMAGE, TEXT, VIDEO

__all__ = ["PICTURE", "Compare", "Data", "Embed", "Item", "ItemError", "Name", "Search", "Text", "Vectorize", "content",
           "examples", "listed"]  # fmt: skip

KINDS = (TEXT.name, IMAGE.name, AUDIO.name, VIDEO.name)
MOST_TEXT, MOST_ITEMS = 1 << 20, 2048  # characters; items of any request

PICTURE = (  # of one pixel
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAIAAACQd1PeAAAADElEQVR4nGOoqKgAAALUAWneSzH7AAAAAElFTkSuQmCC"
)

Text = Annotated[str, Field(max_length=MOST_TEXT)]
Data = Annotated[  # what follows the comma is checked when it is read
    str,
    Field(pattern=r"^data:[a-z]+/[A-Za-z0-9.+-]+;base64,", json_schema_extra={"format": "data-uri"},
          examples=[f"data:image/png;base64,{PICTURE}"]),
]  # fmt: skip
Base64 = Annotated[str, Field(json_schema_extra={"format": "byte"}, examples=[PICTURE])]
Name = Annotated[str, Field(max_length=200)]


def examples(*bodies: dict[str, Any]) -> ConfigDict:
    """The settings of a request that is described with examples."""
    return ConfigDict(json_schema_extra={"examples": list(bodies)})


class Item(BaseModel):
    """One of a text, and a picture, a sound or a clip as a data: URI of base64."""

    model_config = ConfigDict(extra="forbid")
    text: Text | None = None
    image: Data | None = None
    audio: Data | None = None
    video: Data | None = None

    @model_validator(mode="after")
    def holds_one(self) -> Item:
        """Refuses none and several."""
        if sum(getattr(self, kind) is not None for kind in KINDS) != 1:
            raise ValueError(f"expected one of {', '.join(KINDS)}")
        return self


Items = Text | Item | Annotated[list[Text | Item], Field(min_length=1, max_length=MOST_ITEMS)]


class Embed(BaseModel):
    """Embeddings are asked for."""

    model_config = examples({"input": ["a cat", {"image": f"data:image/png;base64,{PICTURE}"}]})
    input: Items
    model: Name | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1, le=1 << 16)] | None = None
    user: Name | None = None


class Vectorize(BaseModel):
    """Vectors are asked for as Weaviate asks a container of multi2vec-clip; pictures are plain base64."""

    model_config = examples({"texts": ["a cat"], "images": [PICTURE]})
    texts: Annotated[list[Text], Field(max_length=MOST_ITEMS)] | None = None
    images: Annotated[list[Base64], Field(max_length=MOST_ITEMS)] | None = None


class Compare(BaseModel):
    """Similarities of all of one side with all of the other are asked for."""

    model_config = examples({"a": ["a cat", "a dog"], "b": {"image": f"data:image/png;base64,{PICTURE}"}})
    a: Items
    b: Items
    model: Name | None = None


class Search(BaseModel):
    """The nearest of the index are asked for."""

    model_config = examples({"query": "a cat", "k": 3})
    query: Text | Item
    k: Annotated[int, Field(ge=1, le=1000)] = 10
    model: Name | None = None


class ItemError(Exception):
    """Something of a request that cannot be read or done; `param` names it ("input[3]")."""

    def __init__(self, param: str | None, message: str, status: int = 400):
        super().__init__(message)
        self.param, self.status = param, status


def listed(items: Any, param: str) -> list[tuple[str, Any]]:
    """Items with what names each."""
    return [(f"{param}[{at}]", item) for at, item in enumerate(items)] if isinstance(items, list) else [(param, items)]


def content(item: str | Item, param: str, readable: tuple[str, ...]) -> dict[str, Any]:
    """An item as `encode` takes it. ItemError where it is of no modality that the model reads, or not base64."""
    kind = TEXT.name if isinstance(item, str) else next(k for k in KINDS if getattr(item, k) is not None)
    if kind not in readable:
        raise ItemError(param, f"{param}: found {kind}, expected one of {', '.join(readable)}")
    value = item if isinstance(item, str) else getattr(item, kind)
    if kind == TEXT.name:
        return {kind: value}
    try:
        return {kind: base64.b64decode(value.partition(",")[2], validate=True)}
    except ValueError as error:  # not of its alphabet, not even ASCII
        raise ItemError(param, f"{param}: not base64: {error}") from error
