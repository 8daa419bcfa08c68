"""The server, as an ASGI application.

    POST /v1/embeddings   OpenAI's shape: texts, and pictures, sounds and clips as data: URIs
    POST /v1/similarity   cosines of items with items
    POST /vectorize       texts and pictures as Weaviate's multi2vec-clip asks; GET /meta, /.well-known/live, ready
    POST /search          the nearest of an index; GET /thumbnail of one
    POST /v1/chat/completions   captions and answers about a picture, where the model writes
    GET  /                a page to search, to caption and to ask
    GET  /v1/models, /health, /metrics (Prometheus)

Errors have OpenAI's shape, and name what of the request they are about.
"""

from __future__ import annotations

import asyncio
import base64
import os
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException

from .. import __version__
from ..modalities import TEXT
from ..search.page import thumbnail
from ..similarity import unit_rows
from .batching import Batcher, Busy
from .chat import Chat, completion, pieces, say, write
from .guard import LOOPBACK, Guard, error_body
from .requests import Compare, Embed, Item, ItemError, Search, Vectorize, content, listed
from .settings import Settings

__all__ = ["create_app"]

PAGE = Path(__file__).with_name("page.html")
POLICY = (
    "default-src 'none'; img-src 'self' blob: data:; connect-src 'self'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; media-src blob:; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)
SHORT = 2000  # characters
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
ERRORS = {status: {"description": text} for status, text in (
    (400, "something of the request cannot be read"), (401, "no key, or another one"), (403, "another site's page"),
    (404, "no such model"), (408, "the body did not come in time"), (413, "the body is too large"),
    (421, "called by another name"), (422, "not the shape of a request"), (503, "too many wait"))}  # fmt: skip
BRANCHES = ("string_type", "model_type", "model_attributes_type", "list_type")  # complaints of another form of a value


class Server:
    """The model, what waits for it, and what is counted."""

    def __init__(self, model: Any, name: str, settings: Settings, index: Any, root: str | None):
        self.model, self.name, self.settings, self.index, self.root = model, name, settings, index, root
        self.writer, self.chats = ThreadPoolExecutor(1, "beyondvl-answers"), 0
        self.readable = model.readable
        self.registry = CollectorRegistry()
        about = {"registry": self.registry}
        self.requests = Counter("beyondvl_requests", "Requests by path and status", ["path", "status"], **about)
        self.seconds = Histogram("beyondvl_request_seconds", "Seconds of a request", ["path"], **about)
        self.batches = Histogram("beyondvl_batch_items", "Items encoded at once", buckets=BATCHES, **about)
        waiting = Gauge("beyondvl_waiting_items", "Items that wait or are being encoded", **about)
        self.batcher = Batcher(model, settings.max_batch, settings.max_waiting, self.batches.observe)
        waiting.set_function(lambda: self.batcher.waiting)

    @asynccontextmanager
    async def lifespan(self, app: FastAPI) -> AsyncIterator[None]:
        """Ends when what waits is done."""
        yield
        await asyncio.to_thread(self.batcher.close)
        self.writer.shutdown()

    def check(self, model: str | None, items: list[tuple[str, Any]]) -> None:
        """ItemError for another model's name, and for too many items."""
        if model is not None and model != self.name:
            raise ItemError("model", f"model: found {model!r}, expected {self.name!r}", 404)
        if len(items) > self.settings.max_items:
            param = items[0][0].partition("[")[0]
            raise ItemError(param, f"{param}: found {len(items)} items, expected at most {self.settings.max_items}")

    async def encode(self, items: list[tuple[str, str | Item]]) -> np.ndarray:
        """Unit embeddings [n, D] of named items. ItemError for one that cannot be read, or while too many wait."""
        try:
            future = self.batcher.submit([content(item, param, self.readable) for param, item in items])
        except Busy as error:
            raise ItemError(None, str(error), 503) from error
        try:
            rows, errors = await asyncio.wait_for(asyncio.wrap_future(future), self.settings.timeout)
        except TimeoutError as error:
            raise ItemError(None, f"not done in {self.settings.timeout:g} s", 503) from error
        for at, error in sorted(errors.items()):
            raise ItemError(items[at][0], f"{items[at][0]}: {error}")
        return rows

    # requests

    async def embed(self, asked: Embed) -> Response:
        """Embeddings in order, as lists of numbers or base64 of float32."""
        items = listed(asked.input, "input")
        self.check(asked.model, items)
        width = self.model.get_embedding_dimension()
        if asked.dimensions is not None and asked.dimensions > width:
            raise ItemError("dimensions", f"dimensions: found {asked.dimensions}, expected at most {width}")
        rows = await self.encode(items)
        if asked.dimensions is not None:
            rows = unit_rows(rows[:, : asked.dimensions])
        vectors = [
            base64.b64encode(row.tobytes()).decode() if asked.encoding_format == "base64" else row.tolist()
            for row in rows
        ]
        data = [{"object": "embedding", "index": at, "embedding": vector} for at, vector in enumerate(vectors)]
        texts = [text for _, item in items if (text := item if isinstance(item, str) else item.text) is not None]
        short = sum(map(len, texts)) < SHORT  # quicker counted than handed to another thread
        tokens = self.count_tokens(texts) if short else await asyncio.to_thread(self.count_tokens, texts)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens}
        return JSONResponse({"object": "list", "data": data, "model": self.name, "usage": usage})

    async def compare(self, asked: Compare) -> Response:
        """Cosines [a, b]."""
        a, b = listed(asked.a, "a"), listed(asked.b, "b")
        self.check(asked.model, a)
        self.check(None, b)
        rows = await self.encode([*a, *b])
        return JSONResponse({"similarity": (rows[: len(a)] @ rows[len(a) :].T).tolist(), "model": self.name})

    async def vectorize(self, asked: Vectorize) -> Response:
        """Vectors of texts and of pictures."""
        images = [Item(image=f"data:image/any;base64,{data}") for data in asked.images or []]
        texts = asked.texts or []
        items = [*listed(texts, "texts"), *listed(images, "images")]
        try:
            self.check(None, items)
            rows = (await self.encode(items)).tolist() if items else []
        except ItemError as error:  # who asks so reads a string
            return JSONResponse({"error": str(error)}, error.status)
        return JSONResponse({"textVectors": rows[: len(texts)], "imageVectors": rows[len(texts) :]})

    async def search(self, asked: Search) -> Response:
        """Keys and scores of the index, the nearest first."""
        self.check(asked.model, [])
        if self.index is None:
            raise ItemError(None, "no index is served, expected: beyondvl serve FOLDER", 404)
        rows = await self.encode([("query", asked.query)])
        keys, scores = await asyncio.to_thread(self.index.search, rows[0], asked.k)
        return JSONResponse(
            {"data": [{"key": key, "score": score} for key, score in zip(keys, scores.tolist(), strict=True)]}
        )

    async def chat(self, asked: Chat) -> Response:
        """A caption or an answer, whole or as events."""
        self.check(asked.model, [])
        if self.chats >= self.settings.max_chats:
            raise ItemError(None, f"{self.chats} answers wait, expected at most {self.settings.max_chats}", 503)

        def run(work: Callable[..., str], *arguments: Any) -> Any:
            self.chats += 1
            task = asyncio.get_running_loop().run_in_executor(self.writer, work, *arguments)
            task.add_done_callback(self.chat_done)
            return task

        try:
            if not asked.stream:
                work = run(write, self.model, asked, self.readable)
                return JSONResponse(completion(self.name, await asyncio.wait_for(work, self.settings.timeout)))
            parts = say(run, self.model, asked, self.readable)
            # what is wrong with a request is said before the stream begins
            first = await asyncio.wait_for(anext(parts), self.settings.timeout)
        except TimeoutError as error:
            raise ItemError(None, f"not done in {self.settings.timeout:g} s", 503) from error
        return StreamingResponse(pieces(self.name, first, parts), media_type="text/event-stream")

    def chat_done(self, _: Any) -> None:
        self.chats -= 1

    async def thumbnail(self, key: Annotated[str, Query(max_length=4096)]) -> Response:
        """A small JPEG of a picture that the index has; nothing else of this machine is shown."""
        if self.index is None or self.root is None or not await asyncio.to_thread(self.index.__contains__, key):
            raise ItemError("key", f"key: found {key!r:.200}, which is not in the index", 404)
        data = await asyncio.to_thread(thumbnail, os.path.join(self.root, key))
        if data is None:
            raise ItemError("key", f"key: {key!r:.200} is no picture that can be read", 404)
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": "private, max-age=3600"})

    async def page(self) -> Response:
        """The page."""
        return Response(PAGE.read_bytes(), media_type="text/html", headers={"Content-Security-Policy": POLICY})

    async def models(self) -> dict[str, Any]:
        """The model that is served."""
        facts = {"modalities": list(self.readable), "dimensions": self.model.get_embedding_dimension()}
        return {"object": "list", "data": [{"id": self.name, "object": "model", "owned_by": "beyondvl", **facts}]}

    async def health(self) -> dict[str, Any]:
        """Whether it works, and how much waits."""
        return {"status": "ok", "model": self.name, "waiting": self.batcher.waiting}

    async def ready(self) -> Response:
        """Nothing, where it works."""
        return Response(status_code=204)

    async def metrics(self) -> Response:
        """What was counted, for Prometheus."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    def count_tokens(self, texts: list[str]) -> int:
        if not texts or TEXT.name not in self.readable:
            return 0
        return sum(
            map(len, self.model.tokenizer(texts, truncation=True, max_length=self.model.max_seq_length)["input_ids"])
        )


class Watch:
    """Counts requests by path and status, and their seconds; paths that are none go by "other"."""

    def __init__(self, app: Callable, server: Server, paths: frozenset[str]):
        self.app, self.server, self.paths = app, server, paths

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.paths else "other"
        start = time.perf_counter()

        async def write(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self.server.requests.labels(path, str(message["status"])).inc()
            await send(message)

        try:
            await self.app(scope, receive, write)
        finally:
            self.server.seconds.labels(path).observe(time.perf_counter() - start)


async def _unreadable(_: Request, error: Any) -> JSONResponse:
    headers = {"Retry-After": "1"} if error.status == 503 else None
    return JSONResponse(error_body(str(error), error.status, error.param), error.status, headers)


async def _refused(_: Request, error: Any) -> JSONResponse:
    """The error that lies deepest: of a union the other branches complain too."""

    def depth(one: Any) -> tuple[int, bool]:
        return sum(isinstance(part, int) for part in one["loc"]), one["type"] not in BRANCHES

    best = max(error.errors(), key=depth)
    places = "".join(f"[{part}]" for part in best["loc"][2:] if isinstance(part, int))
    param = f"{best['loc'][1]}{places}" if isinstance(best["loc"][-1], str) and len(best["loc"]) > 1 else None
    return JSONResponse(error_body(f"{param or 'body'}: {best['msg']}", 422, param), 422)


async def _plain(_: Request, error: Any) -> JSONResponse:
    return JSONResponse(error_body(str(error.detail), error.status_code), error.status_code, error.headers)


def _describe(app: FastAPI, name: str, width: int) -> None:
    """Says in /openapi.json by which name the model is served, and how many numbers its vectors have."""
    for schema in app.openapi()["components"]["schemas"].values():
        properties = schema.get("properties", {})
        if "model" in properties:
            properties["model"]["anyOf"][0] = {"type": "string", "enum": [name]}
        if "dimensions" in properties:
            properties["dimensions"]["anyOf"][0]["maximum"] = width


def create_app(
    model: Any, name: str, settings: Settings | None = None, index: Any = None, root: str | None = None
) -> Callable:
    """The application that serves a model by a name, and an index of its embeddings where one is given; `root`: the
    folder that its keys are files of, to show them. ValueError for another model's index."""
    settings = settings or Settings()
    if index is not None:
        index.check_model(model)
    server = Server(model, name, settings, index, root)
    app = FastAPI(title="beyondvl", version=__version__, docs_url=None, redoc_url=None, lifespan=server.lifespan)
    routes: dict[str, Callable] = {
        "/v1/embeddings": server.embed,
        "/v1/similarity": server.compare,
        "/v1/chat/completions": server.chat,
        "/search": server.search,
        "/vectorize": server.vectorize,
    }
    for path, endpoint in routes.items():
        app.post(path, responses=ERRORS, response_model=None)(endpoint)
    others: dict[str, Callable] = {
        "/v1/models": server.models,
        "/health": server.health,
        "/meta": server.models,
        "/.well-known/live": server.ready,
        "/.well-known/ready": server.ready,
        "/metrics": server.metrics,
        "/thumbnail": server.thumbnail,
        "/": server.page,
    }
    for path, endpoint in others.items():
        status = 204 if endpoint == server.ready else 200
        app.get(path, response_model=None, status_code=status, responses=ERRORS)(endpoint)
    _describe(app, name, model.get_embedding_dimension())
    app.add_exception_handler(RequestValidationError, _refused)
    app.add_exception_handler(HTTPException, _plain)
    app.add_exception_handler(ItemError, _unreadable)
    hosts = () if settings.any_host else (*LOOPBACK, *settings.hosts)
    guard = Guard(app, hosts, settings.api_key, settings.max_body, settings.body_timeout)
    return Watch(guard, server, frozenset((*routes, *others)))
