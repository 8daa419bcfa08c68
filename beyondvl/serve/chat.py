"""`/v1/chat/completions`: a picture (a sound, a clip) and a question in OpenAI's shape, for a model that writes.

What is asked is the last thing a user says: the last picture of all messages, and the words of the last one; without
words a caption is written. The answer comes whole, or as a stream of its words.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from ..tasks.confidence import ConfidentMixin
from .guard import error_body
from .requests import PICTURE, Data, Item, ItemError, Name, Text, content, examples

__all__ = ["Chat", "completion", "pieces", "say", "write"]

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

    model_config = examples({"messages": [{"role": "user", "content": [
        {"type": "text", "text": "what is this?"},
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PICTURE}"}}]}]})  # fmt: skip
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


def write(model: Any, chat: Chat, readable: tuple[str, ...], streamer: Any = None) -> str:
    """The answer, or a caption where nothing is asked; `streamer`: see GenerationSettings. ItemError where the model
    does not write, or a picture cannot be read."""
    seen, question = asked(chat, readable)
    task = "answer" if question else "caption"
    if not hasattr(model, task):
        raise ItemError("messages", f"model: found one that writes no {task}, expected one that does")
    most = chat.max_completion_tokens or chat.max_tokens
    settings = {} if most is None else {"max_new_tokens": most}
    settings |= {} if streamer is None else {"streamer": streamer}
    try:
        photo = model.encode_image([next(iter(seen.values())) if "image" in seen else seen])
        return str((model.answer(photo, [question], **settings) if question else model.caption(photo, **settings))[0])
    except (ValueError, OSError) as error:
        raise ItemError("messages", f"messages: {error}") from error


class Left(Exception):
    """Nobody waits for the answer any more."""


class Spoken:
    """A streamer that passes on the words of one sequence as they come, but for the last few, whose spaces may yet
    change ("do n't"); raises Left once it is told that nobody listens."""

    HELD = 3

    def __init__(self, tokenizer: Any, pass_on: Callable[[str], None]):
        self.tokenizer, self.pass_on = tokenizer, pass_on
        self.ids: list[int] | None = None
        self.text, self.left = "", False

    def put(self, ids: Any) -> None:
        """Takes the prompt, which is not passed on, then each token."""
        if self.left:
            raise Left
        if self.ids is None:
            self.ids = []
            return
        self.ids += [int(token) for token in ids]
        words = self.tokenizer.decode(self.ids, skip_special_tokens=True).strip().split(" ")[: -self.HELD]
        text = " ".join(words)
        if text.startswith(self.text) and len(text) > len(self.text):
            self.pass_on(text[len(self.text) :])
            self.text = text

    def end(self) -> None:
        """The last words come with the whole answer."""


async def say(run: Callable[..., Any], model: Any, chat: Chat, readable: tuple[str, ...]) -> AsyncGenerator[str]:
    """Parts of an answer as they are written; `run` has the event loop's executor run a function. Where a model thinks
    twice (a caption that it is not sure of gives way to a name) they come at the end. Closed, it stops writing."""
    loop, parts = asyncio.get_running_loop(), asyncio.Queue()

    def pass_on(part: str | None) -> None:
        loop.call_soon_threadsafe(parts.put_nowait, part)

    spoken = None if isinstance(model, ConfidentMixin) else Spoken(model.tokenizer, pass_on)

    def work() -> str:
        try:
            return write(model, chat, readable, spoken)
        finally:
            pass_on(None)

    task = run(work)
    task.add_done_callback(lambda done: done.cancelled() or done.exception())  # of an answer that nobody waits for
    try:
        while (part := await parts.get()) is not None:
            yield part
        text = await task
    finally:
        task.cancel()
        if spoken is not None:
            spoken.left = True
    said = "" if spoken is None else spoken.text
    while not text.startswith(said):  # spaces that changed after all: nothing is left out
        said = said[:-1]
    for at, word in enumerate(text[len(said) :].split(" ")):
        yield (" " if at else "") + word


def completion(name: str, text: str) -> dict[str, Any]:
    """A whole answer."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 0, "completion_tokens": len(text.split()), "total_tokens": len(text.split())}
    return {"id": f"chat-{time.time_ns():x}", "object": "chat.completion", "created": int(time.time()), "model": name,
            "choices": [choice], "usage": usage}  # fmt: skip


async def pieces(name: str, first: str, parts: AsyncGenerator[str]) -> AsyncIterator[str]:
    """The events of a stream."""
    about = {
        "id": f"chat-{time.time_ns():x}",
        "object": "chat.completion.chunk",
        "created": int(time.time()),
        "model": name,
    }

    def event(delta: dict[str, str]) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": None if delta else "stop"}
        return f"data: {json.dumps(about | {'choices': [choice]})}\n\n"

    yield event({"role": "assistant", "content": first})
    try:
        async for part in parts:
            yield event({"content": part})
    except Exception as error:  # the status is sent: the stream itself says what went wrong
        yield f"data: {json.dumps(error_body(str(error), 500))}\n\n"
        return
    finally:
        await parts.aclose()
    yield event({})
    yield "data: [DONE]\n\n"
