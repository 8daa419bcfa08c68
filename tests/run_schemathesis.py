"""Requests that nobody would think of: does the server answer each with what it says it answers, and never with 5xx?

    pip install schemathesis
    python tests/run_schemathesis.py [--cases 10000] [--seed 0]

A server of the shipped model and an index of the photographs of examples/ is called by what schemathesis makes of its
/openapi.json: requests as described (the schema's examples among them) and requests that are not. Where the schema says
that a string is a picture, half of them are one; of questions half get a picture, of thumbnails half a key of the index.
Prints how many cases of each endpoint had which status; exits with 1 for 5xx, for a status that the schema lacks, or
where an endpoint never answered with 2xx.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import random
import sys
from collections import Counter, defaultdict

import hypothesis
import schemathesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from schemathesis.generation.modes import GenerationMode
from test_serve import NAME, Running

import beyondvl as bvl
import pictures
from beyondvl.serve.app import create_app

KEYS = sorted(path.name for path in pictures.EXAMPLES.glob("*.jpg"))
PICTURES = [base64.b64encode((pictures.EXAMPLES / key).read_bytes()).decode() for key in KEYS[:4]]
URIS = [f"data:image/jpeg;base64,{data}" for data in PICTURES]
SHARE = {
    "/v1/embeddings": 4,
    "/v1/similarity": 3,
    "/v1/chat/completions": 2,
    "/search": 3,
    "/vectorize": 3,
    "/thumbnail": 1,
}  # fmt: skip  of the cases; others take nothing, and have one


def with_picture(body: object, rng: random.Random) -> object:
    """A question about something, at every other time."""
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list) or rng.random() < 0.5:
        return body
    parts = [{"type": "text", "text": "what is this?"}, {"type": "image_url", "image_url": {"url": rng.choice(URIS)}}]
    return body | {"messages": [*body["messages"][:4], {"role": "user", "content": parts}], "max_tokens": 4}


def call(operation, mode: GenerationMode, count: int, rng: random.Random, counts: Counter) -> list[str]:
    """Statuses of that many generated cases; what is wrong."""
    wrong: list[str] = []

    @hypothesis.seed(rng.randrange(1 << 30))
    @hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
    def run(case) -> None:
        if operation.path == "/thumbnail" and rng.random() < 0.5:
            case.query = {"key": rng.choice(KEYS)}
        if operation.path == "/v1/chat/completions":
            case.body = with_picture(case.body, rng)
        answer = case.call()
        counts[answer.status_code] += 1
        described = {str(status) for status in operation.definition.raw["responses"]}
        if (answer.status_code >= 500 and answer.status_code != 503) or str(answer.status_code) not in described:
            wrong.append(f"{operation.method} {operation.path}: {answer.status_code}: {case.as_curl_command()[:2000]}")

    with contextlib.suppress(hypothesis.errors.Unsatisfiable):  # nothing can be wrong with a request without parts
        run()
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    schemathesis.openapi.format("data-uri", st.sampled_from(URIS) | st.from_regex(r"\Adata:image/[a-z]{1,5};base64,"))
    schemathesis.openapi.format("byte", st.sampled_from(PICTURES) | st.text())
    model, rng = bvl.AutoModel.from_pretrained(NAME, dtype="fastest"), random.Random(options.seed)
    index = bvl.Index.for_model(model)
    index.update(model, pictures.EXAMPLES)
    running = Running(create_app(model, NAME, index=index, root=str(pictures.EXAMPLES)))
    counts: dict[str, Counter] = defaultdict(Counter)
    wrong: list[str] = []
    try:
        schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{running.port}/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations()]
        for operation in operations:
            share = options.cases * SHARE.get(operation.path, 0) // sum(SHARE.values())
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                wrong += call(operation, mode, share // 2 + 1, rng, counts[f"{operation.method} {operation.path}"])
    finally:
        running.stop()
    for name, statuses in counts.items():
        print(f"{name:<28}", ", ".join(f"{status}: {count}" for status, count in sorted(statuses.items())))
    good = {name: sum(n for status, n in each.items() if status < 300) for name, each in counts.items()}
    print(f"{sum(map(Counter.total, counts.values()))} cases, {sum(good.values())} of them answered with 2xx")
    for line in [*wrong, *(f"{name}: never 2xx" for name, count in good.items() if not count)]:
        print(line, file=sys.stderr)
    sys.exit(bool(wrong) or not all(good.values()))


if __name__ == "__main__":
    main()
