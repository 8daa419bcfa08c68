"""The server: embeddings in OpenAI's shape, who may ask, and a thousand at once."""

from __future__ import annotations

import asyncio
import base64
import json
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from test_tasks import CAPTION, folders  # noqa: F401

import beyondvl as bvl
import models
import pictures

httpx = pytest.importorskip("httpx", reason="the server needs httpx: pip install 'beyondvl[test]'")
uvicorn = pytest.importorskip("uvicorn", reason="the server needs uvicorn: pip install 'beyondvl[serve]'")

from beyondvl.serve.app import create_app  # noqa: E402
from beyondvl.serve.batching import Batcher, Busy  # noqa: E402
from beyondvl.serve.chat import Chat, Spoken, pieces, say  # noqa: E402
from beyondvl.serve.commands import KEEP_ALIVE  # noqa: E402
from beyondvl.serve.guard import Guard  # noqa: E402
from beyondvl.serve.settings import Settings  # noqa: E402

NAME = "beyond-vl-model"
CAT, COFFEE = ((pictures.EXAMPLES / f"{name}.jpg").read_bytes() for name in ("cat", "coffee"))
SOUND = (pictures.EXAMPLES.parent / "sounds" / "query.flac").read_bytes()


def uri(data: bytes, kind: str = "image/jpeg") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.fixture(scope="module")
def model():
    return bvl.AutoModel.from_pretrained(NAME)


@pytest.fixture(scope="module")
def index(model):
    index = bvl.Index.for_model(model)
    index.add_items(model, [str(path) for path in sorted(pictures.EXAMPLES.glob("*.jpg"))])
    return index


class Running:
    """A server on a free port of loopback, in a thread."""

    def __init__(self, app):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        config = uvicorn.Config(app, port=self.port, log_level="error", backlog=4096, timeout_keep_alive=KEEP_ALIVE)
        self.server = uvicorn.Server(config)
        self.thread = threading.Thread(target=self.server.run)
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        # httpx closes what it takes for idle where it keeps few connections: one that a thread has just been given, too
        limits = httpx.Limits(max_keepalive_connections=None)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=120, limits=limits)

    def stop(self):
        self.client.close()
        self.server.should_exit = True
        self.thread.join()


@pytest.fixture(scope="module")
def client(model, index):
    running = Running(create_app(model, NAME, Settings(max_body=1 << 20, max_items=20), index))
    yield running.client
    running.stop()


def test_every_example_of_the_schema_is_answered(client, model):
    described = client.get("/openapi.json").json()
    schemas, count = described["components"]["schemas"], 0
    for path, operations in described["paths"].items():
        for operation in (operations[name] for name in operations if name == "post"):
            reference = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
            schema = schemas[reference.rpartition("/")[2]]
            if "model" in schema["properties"]:
                assert schema["properties"]["model"]["anyOf"][0] == {"type": "string", "enum": [NAME]}
            for example in schema["examples"]:
                answer = client.post(path, json=example)
                assert answer.status_code == 200, (path, answer.text)
                count += 1
    assert count >= 5
    assert schemas["Embed"]["properties"]["dimensions"]["anyOf"][0]["maximum"] == model.get_embedding_dimension()
    assert all(client.get(path).status_code == 204 for path in ("/.well-known/live", "/.well-known/ready"))
    assert set(described["paths"]["/.well-known/live"]["get"]["responses"]) >= {"204", "401"}


def test_embeddings_are_those_of_encode(client, model):
    items = ["a cat", {"text": "a dog"}, {"image": uri(CAT)}, {"audio": uri(SOUND, "audio/flac")}]
    wanted = model.encode(["a cat", "a dog", CAT, SOUND], normalize_embeddings=True)
    for form in ("float", "base64"):
        answer = client.post("/v1/embeddings", json={"input": items, "encoding_format": form, "model": NAME})
        assert answer.status_code == 200
        said = answer.json()
        rows = [one["embedding"] for one in said["data"]]
        rows = [
            np.frombuffer(base64.b64decode(row), np.float32) if form == "base64" else np.float32(row) for row in rows
        ]
        np.testing.assert_array_equal(rows, wanted)
        assert [one["index"] for one in said["data"]] == [0, 1, 2, 3] and said["model"] == NAME
        assert said["usage"]["prompt_tokens"] == 8  # [CLS] a cat [SEP], twice
    short = client.post("/v1/embeddings", json={"input": "a cat", "dimensions": 16}).json()["data"][0]["embedding"]
    np.testing.assert_allclose(short, wanted[0, :16] / np.linalg.norm(wanted[0, :16]), atol=1e-6)
    scores = client.post("/v1/similarity", json={"a": ["a cat", "a dog"], "b": {"image": uri(CAT)}}).json()[
        "similarity"
    ]
    np.testing.assert_allclose(scores, wanted[:2] @ wanted[2:3].T, atol=1e-6)


def test_the_client_of_openai_reads_it(client):
    openai = pytest.importorskip("openai", reason="openai is not installed")
    answer = openai.OpenAI(base_url=f"{client.base_url}/v1", api_key="x").embeddings.create(model=NAME, input=["a cat"])
    assert len(answer.data[0].embedding) == 384


def test_words_come_as_they_are_written(folders):  # noqa: F811
    """Of a model whose answer is what its decoder says: each part is sent before the next token is asked for."""
    model = bvl.AutoModel.from_pretrained(folders[CAPTION])
    photo = {"type": "image_url", "image_url": {"url": uri(COFFEE)}}
    chat = Chat(messages=[{"role": "user", "content": [photo]}], max_tokens=20, stream=True)
    steps, parts = [], []

    async def listen():
        def run(work):
            return asyncio.get_running_loop().run_in_executor(None, work)

        original = Spoken.put

        def put(self, ids):
            steps.append(len(parts))
            original(self, ids)
            time.sleep(0.02)

        Spoken.put = put
        try:
            async for part in say(run, model, chat, ("image",)):
                parts.append(part)
        finally:
            Spoken.put = original

    asyncio.run(listen())
    assert "".join(parts) == model.caption(COFFEE, max_new_tokens=20) and len(parts) > 3
    assert sorted(steps) == steps and steps[-1] >= 2  # some were sent while it wrote


def test_a_caller_who_leaves_stops_the_writing(folders, monkeypatch):  # noqa: F811
    model = bvl.AutoModel.from_pretrained(folders[CAPTION])
    photo = {"type": "image_url", "image_url": {"url": uri(COFFEE)}}
    chat = Chat(messages=[{"role": "user", "content": [photo]}], max_tokens=30, stream=True)
    steps, original = [], Spoken.put

    def put(self, ids):
        original(self, ids)
        steps.append(ids)
        time.sleep(0.02)

    monkeypatch.setattr(Spoken, "put", put)

    async def listen():
        pool = ThreadPoolExecutor(1)
        parts = say(lambda work: asyncio.get_running_loop().run_in_executor(pool, work), model, chat, ("image",))
        await anext(parts)
        await parts.aclose()
        await asyncio.to_thread(pool.shutdown)

    asyncio.run(listen())
    assert 2 < len(steps) < 20


def test_an_answer_that_fails_late_says_so_in_its_stream():
    async def parts():
        yield "one"
        raise RuntimeError("no memory")

    async def read():
        some = parts()
        return [event async for event in pieces("m", await anext(some), some)]

    events = asyncio.run(read())
    assert json.loads(events[-1].removeprefix("data: "))["error"]["message"] == "no memory"
    assert not any("DONE" in event for event in events)


def test_answers_that_wait_are_counted(model, monkeypatch):
    """The limit of chats: beyond it callers are told to come again, and none is lost."""
    from beyondvl.serve import app as module

    monkeypatch.setattr(module, "write", lambda *_: time.sleep(0.3) or "x")
    photo = {"type": "image_url", "image_url": {"url": uri(COFFEE)}}
    body = {"messages": [{"role": "user", "content": [photo]}]}
    running = Running(create_app(model, NAME, Settings(max_chats=2)))
    try:
        with ThreadPoolExecutor(5) as pool:
            asked = [pool.submit(running.client.post, "/v1/chat/completions", json=body) for _ in range(5)]
            assert sorted(one.result().status_code for one in asked) == [200, 200, 503, 503, 503]
        assert running.client.post("/v1/chat/completions", json=body).status_code == 200
    finally:
        running.stop()


def test_it_takes_the_place_of_weaviates_container(client, model):
    """multi2vec-clip's requests: texts and plain base64 pictures, in one."""
    images = [base64.b64encode(data).decode() for data in (CAT, COFFEE)]
    answer = client.post("/vectorize", json={"texts": ["a cat"], "images": images}).json()
    rows = model.encode([{"text": "a cat"}, CAT, COFFEE], normalize_embeddings=True)
    np.testing.assert_allclose(answer["textVectors"], rows[:1], atol=1e-6)
    np.testing.assert_allclose(answer["imageVectors"], rows[1:], atol=1e-6)
    assert client.post("/vectorize", json={}).json() == {"textVectors": [], "imageVectors": []}
    assert client.get("/.well-known/ready").status_code == client.get("/.well-known/live").status_code == 204
    assert client.get("/meta").json()["data"][0]["id"] == NAME
    bad = client.post("/vectorize", json={"images": [images[0], base64.b64encode(b"none").decode()]})
    assert bad.status_code == 400 and bad.json()["error"].startswith("images[1]: ")
    assert client.post("/vectorize", json={"texts": None, "images": images[:1]}).status_code == 200
    for text in ("data:,", "\u00e4\u00f6", "===="):
        assert client.post("/vectorize", json={"images": [text]}).status_code == 400
    assert client.post("/search", json={"query": {"image": "data:image/png;base64,\u00e4"}}).status_code == 400


def spoken(client, parts, **more):
    body = {"messages": [{"role": "system", "content": "be brief"}, {"role": "user", "content": parts}], **more}
    return client.post("/v1/chat/completions", json=body)


def test_captions_and_answers(client, model):
    photo = {"type": "image_url", "image_url": {"url": uri(COFFEE)}}
    wanted, other = (str(one) for one in model.caption(model.encode_image([COFFEE, CAT])))
    said = spoken(client, [photo]).json()
    assert said["choices"][0]["message"] == {"role": "assistant", "content": wanted} and wanted != other
    assert said["object"] == "chat.completion"
    question = {"type": "text", "text": "what is in the picture?"}
    answers = [str(model.answer(picture, [question["text"]])[0]) for picture in (CAT, COFFEE)]
    assert answers[0] != answers[1]
    for picture, answer in zip((CAT, COFFEE), answers, strict=True):
        seen = {"type": "image_url", "image_url": {"url": uri(picture)}}
        assert spoken(client, [question, seen]).json()["choices"][0]["message"]["content"] == answer
    lines = spoken(client, [photo], stream=True).text.split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    chunks = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines[:-2]]
    assert "".join(chunk["delta"].get("content", "") for chunk in chunks) == wanted
    assert chunks[0]["delta"]["role"] == "assistant" and chunks[-1]["finish_reason"] == "stop"
    sound = {"type": "image_url", "image_url": {"url": uri(SOUND, "audio/flac")}}
    assert spoken(client, [sound]).status_code == 200
    before = [{"role": "user", "content": [photo]}, {"role": "assistant", "content": "a cup"}]
    asked = {"messages": [*before, {"role": "user", "content": question["text"]}]}
    assert client.post("/v1/chat/completions", json=asked).json()["choices"][0]["message"]["content"] == answers[1]
    bad = {"type": "image_url", "image_url": {"url": uri(b"none")}}
    assert spoken(client, [bad]).status_code == 400 and spoken(client, "only words").status_code == 400
    assert spoken(client, [{"type": "image_url", "image_url": {"url": "http://127.0.0.1/x.png"}}]).status_code == 422
    assert (
        client.post("/v1/chat/completions", json={"messages": [{"role": "system", "content": "x"}]}).status_code == 400
    )


def test_thumbnails_are_of_the_index_alone(model, tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "cat.jpg").write_bytes(CAT)
    (tmp_path / "in" / "sound.flac").write_bytes(SOUND)
    (tmp_path / "secret.jpg").write_bytes(COFFEE)
    index = bvl.Index.for_model(model)
    index.update(model, tmp_path / "in")
    (tmp_path / "in" / "later.jpg").write_bytes(COFFEE)
    running = Running(create_app(model, NAME, None, index, str(tmp_path / "in")))
    try:
        shown = running.client.get("/thumbnail", params={"key": "cat.jpg"})
        assert shown.headers["content-type"] == "image/jpeg" and max(bvl.load_image(shown.content).shape) <= 320
        for key in ("../secret.jpg", str(tmp_path / "secret.jpg"), "later.jpg", "sound.flac", "", "no"):
            assert running.client.get("/thumbnail", params={"key": key}).status_code == 404, key
        page = running.client.get("/")
        assert page.status_code == 200 and "default-src 'none'" in page.headers["content-security-policy"]
        assert "http://" not in page.text.replace("http://www.w3.org", "") and "https://" not in page.text
    finally:
        running.stop()


def test_search(client, model):
    for query in ("a cup of coffee", {"image": uri(COFFEE)}):
        first, second = client.post("/search", json={"query": query, "k": 2}).json()["data"]
        assert first["key"].endswith("coffee.jpg") and first["score"] > second["score"]
    bare = Running(create_app(model, NAME))
    try:
        assert bare.client.post("/search", json={"query": "x"}).status_code == 404
    finally:
        bare.stop()


def test_a_string_is_a_text_and_no_file(client, model):
    """No path is read, no URL fetched."""
    for text in (
        str(pictures.EXAMPLES / "cat.jpg"),
        "/etc/passwd",
        "http://127.0.0.1:9/x.jpg",
        uri(CAT),
        "file:///etc/passwd",
    ):
        row = client.post("/v1/embeddings", json={"input": text}).json()["data"][0]["embedding"]
        np.testing.assert_array_equal(np.float32(row), model.encode({"text": text}, normalize_embeddings=True))
    for value in ("/etc/passwd", "http://127.0.0.1:9/x.jpg", "file:///etc/passwd"):
        for kind in ("image", "audio", "video"):
            answer = client.post("/v1/embeddings", json={"input": {kind: value}})
            assert answer.status_code == 422 and "pattern" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status", "param", "words"),
    [
        ({"input": ["a", {"image": uri(b"none")}]}, 400, "input[1]", "cannot be decoded"),
        ({"input": [{"image": uri(CAT)}, {"audio": uri(b"none", "audio/wav")}]}, 400, "input[1]", "input[1]: "),
        ({"input": [{"image": "data:image/png;base64,AAA"}]}, 400, "input[0]", "not base64"),
        ({"input": ["a"] * 21}, 400, "input", "found 21 items, expected at most 20"),
        ({"input": "a", "dimensions": 385}, 400, "dimensions", "found 385, expected at most 384"),
        ({"input": "a", "model": "other"}, 404, "model", "found 'other', expected 'beyond-vl-model'"),
        ({"input": []}, 422, "input", "at least 1 item"),
        ({"input": ["a", 5]}, 422, "input[1]", "valid"),
        ({"input": {"image": uri(CAT), "text": "both"}}, 422, "input", "expected one of text, image, audio, video"),
        ({"input": {"picture": "x"}}, 422, "input", "not permitted"),
        ({}, 422, "input", "required"),
        ({"input": "a", "encoding_format": "hex"}, 422, "encoding_format", "'float' or 'base64'"),
        ({"input": [[1, 2, 3]]}, 422, "input[0]", "valid"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(client, body, status, param, words):
    answer = client.post("/v1/embeddings", json=body)
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (status, param), error
    assert words in error["message"] and error["type"] == "invalid_request_error"
    assert client.post("/v1/embeddings", json={"input": "a cat"}).status_code == 200


def test_who_may_ask(client, model):
    assert client.get("/health", headers={"host": "evil.example"}).status_code == 421
    assert client.get("/health", headers={"host": f"localhost:{client.base_url.port}"}).status_code == 200
    assert client.get("/health", headers={"origin": "http://evil.example"}).status_code == 403
    assert client.get("/health", headers={"origin": "null"}).status_code == 403
    own = f"http://127.0.0.1:{client.base_url.port}"
    assert client.get("/health", headers={"origin": own}).status_code == 200
    assert client.post("/v1/embeddings", content=b"x" * (2 << 20)).status_code == 413
    assert (
        client.post("/v1/embeddings", content=(b"x" * 65536 for _ in range(32))).status_code == 413
    )  # of no stated length
    assert client.post("/v1/embeddings", content=b"{").status_code == 422
    assert client.get("/v1/embeddings").status_code == 405 and client.get("/none").status_code == 404
    locked = Running(create_app(model, NAME, Settings(api_key="secret", hosts=("my.host",))))
    try:
        ask = locked.client.post
        assert ask("/v1/embeddings", json={"input": "a"}).status_code == 401
        for key, status in (("wrong", 401), ("secret", 200), ("secret2", 401)):
            headers = {"authorization": f"Bearer {key}", "host": "my.host"}
            assert ask("/v1/embeddings", json={"input": "a"}, headers=headers).status_code == status
        assert locked.client.get("/health").status_code == 200
    finally:
        locked.stop()


def test_a_body_that_does_not_come():
    async def app(scope, receive, send):
        raise AssertionError("it was let in")

    async def ask(receive):
        sent = []

        async def send(message):
            sent.append(message)

        scope = {"type": "http", "path": "/search", "headers": [(b"host", b"localhost")]}
        await Guard(app, ("localhost",), None, 100, 0.05)(scope, receive, send)
        return sent[0]["status"]

    async def slow():
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def large():
        return {"type": "http.request", "body": b"x" * 60, "more_body": True}

    assert asyncio.run(ask(slow)) == 408 and asyncio.run(ask(large)) == 413


def test_a_thousand_at_once(model, client, tmp_path):
    """They are encoded together, each gets its own, and bad ones fail alone."""
    texts = [f"a text of number {number}" for number in range(1000)]
    wanted = model.encode(texts, normalize_embeddings=True)

    def ask(number: int):
        item = texts[number] if number % 50 else {"image": uri(b"none")}
        answer = client.post("/v1/embeddings", json={"input": item, "encoding_format": "base64"})
        if number % 50 == 0:
            return answer.status_code == 400
        row = np.frombuffer(base64.b64decode(answer.json()["data"][0]["embedding"]), np.float32)
        return answer.status_code == 200 and np.array_equal(row, wanted[number])

    with ThreadPoolExecutor(64) as pool:
        assert all(pool.map(ask, range(1000)))
    lines = dict(line.rsplit(" ", 1) for line in client.get("/metrics").text.splitlines() if not line.startswith("#"))
    assert float(lines["beyondvl_waiting_items"]) == 0
    assert float(lines["beyondvl_batch_items_count"]) < 0.7 * float(lines["beyondvl_batch_items_sum"])
    assert float(lines['beyondvl_requests_total{path="/v1/embeddings",status="200"}']) >= 980


def test_too_many_wait():
    started, go_on = threading.Event(), threading.Event()

    class Slow:
        def encode(self, items, **options):
            started.set()
            go_on.wait()
            if "break" in items:
                raise RuntimeError("the model broke")
            rows = np.zeros((len(items), 2), np.float32).view(bvl.Embeddings)
            return rows

    runs: list[int] = []
    batcher = Batcher(Slow(), 4, 10, runs.append)
    first = batcher.submit(["a"])
    started.wait()
    waiting = [batcher.submit(["b"] * 3) for _ in range(3)]
    with pytest.raises(Busy, match="10 items wait, expected at most 10"):
        batcher.submit(["c"])
    assert waiting[1].cancel()
    go_on.set()
    assert first.result()[0].shape == (1, 2) and waiting[2].result()[0].shape == (3, 2)
    broken, fine = batcher.submit(["break"]), None
    with pytest.raises(RuntimeError, match="the model broke"):
        broken.result()
    fine = batcher.submit(["x"])
    assert fine.result()[1] == {} and batcher.waiting == 0
    batcher.close()
    with pytest.raises(Busy, match="closing"):
        batcher.submit(["x"])
    assert max(runs) <= 4


def test_command(tmp_path):
    (tmp_path / "cat.jpg").write_bytes(CAT)
    run = [sys.executable, "-P", "-m", "beyondvl"]
    subprocess.run([*run, "index", tmp_path], check=True, capture_output=True)
    done = subprocess.run([*run, "serve", "--host", "0.0.0.0"], capture_output=True, text=True)
    assert done.returncode == 1 and "others may call, expected --api-key or BEYONDVL_API_KEY" in done.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    job = subprocess.Popen([*run, "serve", tmp_path, "--port", str(port)])
    try:
        for _ in range(600):
            try:
                answer = httpx.post(f"http://127.0.0.1:{port}/search", json={"query": "a cat"})
                break
            except httpx.ConnectError:
                time.sleep(0.1)
        assert answer.json()["data"][0]["key"] == "cat.jpg"
    finally:
        job.terminate()
        assert job.wait(30) in (0, -15)


def test_another_models_index_is_refused(model, index, tmp_path):
    other = bvl.AutoModel.from_pretrained(models.write(tmp_path / "clip"))
    with pytest.raises(ValueError, match="the index is of beyond-vl-model"):
        create_app(other, "clip", index=index)
    assert not any(Path(tmp_path).glob("*.db"))
