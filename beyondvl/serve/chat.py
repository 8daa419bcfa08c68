"""`/v1/chat/completions`: a picture (a sound, a clip) and a question in OpenAI's shape, for a model that writes.

What is asked is the last thing a user says: the last picture of all messages, and the words of the last one; without
words a caption is written. The answer comes whole, or as a stream of its words.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from .requests import Data, Item, ItemError, Name, Text, content

__all__ = ["Chat", "completion", "pieces", "write"]

MOST_TOKENS = 512


class Url(BaseModel):
    """A picture, a sound or a clip as a data: URI."""

    url: Data


class TextPart(BaseModel):
    """Words of a message."""

    type: Literal["text"]
    text: Text


class ImagePart(BaseModel):
    """A picture of a message; sounds and clips come in the same way."""

    type: Literal["image_url"]
    image_url: Url


class Message(BaseModel):
    """What somebody said."""

    model_config = ConfigDict(extra="ignore")
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart | ImagePart], Field(max_length=64)]


class Chat(BaseModel):
    """An answer is asked for."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=256)]
    model: Name | None = None
    stream: bool = False
    max_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None


def asked(chat: Chat, readable: tuple[str, ...]) -> tuple[Any, str]:
    """What is to be seen or heard, and the question. ItemError without either."""
    users = [(at, message) for at, message in enumerate(chat.messages) if message.role == "user"]
    if not users:
        raise ItemError("messages", "messages: found none of a user, expected one")
    parts = users[-1][1].content
    words = parts if isinstance(parts, str) else " ".join(part.text for part in parts if part.type == "text")
    for at, message in reversed(users):
        urls = (
            [p.image_url.url for p in message.content if p.type == "image_url"]
            if isinstance(message.content, list)
            else []
        )
        if urls:
            kind = urls[-1][len("data:") :].partition("/")[0]
            param = f"messages[{at}]"
            if kind not in ("image", "audio", "video"):
                raise ItemError(param, f"{param}: found data of {kind}, expected image, audio or video")
            return content(Item(**{kind: urls[-1]}), param, readable), words.strip()
    raise ItemError("messages", "messages: found no picture, expected one: this model answers about pictures")


def write(model: Any, chat: Chat, readable: tuple[str, ...]) -> str:
    """The answer, or a caption where nothing is asked. ItemError where the model does not write, or a picture cannot be
    read."""
    seen, question = asked(chat, readable)
    task = "answer" if question else "caption"
    if not hasattr(model, task):
        raise ItemError("messages", f"model: found one that writes no {task}, expected one that does")
    most = chat.max_completion_tokens or chat.max_tokens
    settings = {} if most is None else {"max_new_tokens": most}
    try:
        photo = model.encode_image([next(iter(seen.values())) if "image" in seen else seen])
        return str((model.answer(photo, [question], **settings) if question else model.caption(photo, **settings))[0])
    except (ValueError, OSError) as error:
        raise ItemError("messages", f"messages: {error}") from error


def completion(name: str, text: str) -> dict[str, Any]:
    """A whole answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 0, "completion_tokens": len(text.split()), "total_tokens": len(text.split())}
    return {"id": f"chat-{time.time_ns():x}", "object": "chat.completion", "created": int(time.time()), "model": name,
            "choices": [choice], "usage": usage}  # fmt: skip


def pieces(name: str, text: str) -> Iterator[str]:
    """The events of a stream."""
    about = {
        "id": f"chat-{time.time_ns():x}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": name,
    }
    words = [(" " if at else "") + word for at, word in enumerate(text.split(" "))]
    for delta in ({"role": "assistant", "content": ""}, *({"content": word} for word in words), {}):
        choice = {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
        yield f"data: {json.dumps(about | {'choices': [choice]})}\n\n"
    yield "data: [DONE]\n\n"
