"""The server under load, by wrk (Debian's package): a thousand callers at once, on loopback.

    python benchmarks/serving.py [--dtype fastest] [--seconds 10] [--connections 1000] [--json results.json]

pictures: requests of one photograph of 480 pixels each, beside `encode` over the same bytes in the server's batches;
texts: short ones, beside a server that encodes one at a time. What a request costs the server itself is the time between
two answers less that which `encode` takes for it. Rounds are interleaved; wrk runs on the same processors.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import numpy as np

import beyondvl as bvl

PHOTOS = sorted((Path(__file__).parent.parent / "examples" / "photos").glob("*.jpg"))
NAME = "beyond-vl-model"
LUA = """
wrk.method = "POST"
wrk.headers["Content-Type"] = "application/json"
local bodies, at = {}, 0
for line in io.lines(os.getenv("BODIES")) do bodies[#bodies + 1] = line end
request = function() at = at % #bodies + 1; return wrk.format(nil, nil, nil, bodies[at]) end
done = function(summary, latency, requests)
  local e = summary.errors
  print(string.format("RESULT %d %f %f %f %d", summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3,
        latency:percentile(99) / 1e3, e.connect + e.read + e.write + e.status + e.timeout))
end
"""


class Server:
    """`beyondvl serve` on a free port."""

    def __init__(self, dtype: str, *options: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [sys.executable, "-m", "beyondvl", "serve", "--port", str(self.port), "--dtype", dtype, *options]
        self.process = subprocess.Popen(command)
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                if self.process.poll() is not None:
                    raise SystemExit("the server ended") from None
                time.sleep(0.1)

    def load(self, work: Path, bodies: list[str], connections: int, seconds: int) -> dict[str, float]:
        """Requests a second, milliseconds of the median and of the slowest hundredth, errors."""
        while json.load(urlopen(f"http://127.0.0.1:{self.port}/health"))["waiting"]:  # of a load before
            time.sleep(0.1)
        (work / "bodies").write_text("\n".join(bodies) + "\n")
        (work / "post.lua").write_text(LUA)
        url = f"http://127.0.0.1:{self.port}/v1/embeddings"
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "100s", "-s", work / "post.lua", url]
        env = {"BODIES": str(work / "bodies"), "PATH": "/usr/bin"}
        said = subprocess.run(command, capture_output=True, text=True, check=True, env=env).stdout
        count, duration, median, slow, errors = map(float, re.search(r"RESULT (.*)", said).group(1).split())
        return {"requests_s": count / duration, "p50_ms": median, "p99_ms": slow, "errors": errors}

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()


def rate(model: Any, items: list[Any], seconds: float = 3.0) -> float:
    """Items a second by `encode`, 64 at a time."""
    model.encode(items[:64], batch_size=64)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        model.encode(items, batch_size=64, normalize_embeddings=True, show_progress_bar=False)
        count += len(items)
    return count / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", default="fastest")
    parser.add_argument("--seconds", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--connections", type=int, default=1000)
    parser.add_argument("--json", type=Path, help="results are added to this file")
    options = parser.parse_args()
    model = bvl.AutoModel.from_pretrained(NAME, dtype=options.dtype)
    photos = [path.read_bytes() for path in PHOTOS]
    texts = [f"a photo of {number} dogs by the sea" for number in range(100)]
    encoded = [base64.b64encode(data).decode() for data in photos]
    bodies = {
        "pictures": [
            json.dumps({"input": {"image": f"data:image/jpeg;base64,{data}"}, "encoding_format": "base64"})
            for data in encoded
        ],
        "texts": [json.dumps({"input": text, "encoding_format": "base64"}) for text in texts],
    }
    items = {"pictures": photos * 16, "texts": [{"text": text} for text in texts] * 8}
    rounds: dict[str, list[dict[str, float]]] = {}
    together, single = Server(options.dtype), Server(options.dtype, "--max-batch", "1")
    try:
        with tempfile.TemporaryDirectory() as folder:
            for number in range(2 * options.rounds):
                kind = ("pictures", "texts")[number % 2]
                alone = rate(model, items[kind])
                done = together.load(Path(folder), bodies[kind], options.connections, options.seconds)
                done |= {"encode_s": alone, "of_encode": done["requests_s"] / alone}
                done |= {"own_us": 1e6 / done["requests_s"] - 1e6 / alone}
                if kind == "texts":
                    one = single.load(Path(folder), bodies[kind], options.connections, options.seconds)
                    done |= {"of_max_batch_1": done["requests_s"] / one["requests_s"]}
                    done["errors"] += one["errors"]
                rounds.setdefault(kind, []).append(done)
    finally:
        together.close(), single.close()
    results = {kind: {name: float(np.median([r[name] for r in some])) for name in some[0]} | {"errors": sum(r["errors"] for r in some)}
               for kind, some in rounds.items()}  # fmt: skip
    for kind, values in results.items():
        print(kind, {name: round(value, 3) for name, value in values.items()}, flush=True)
    if options.json:
        known = json.loads(options.json.read_text()) if options.json.exists() else {}
        options.json.write_text(json.dumps(known | {"serving": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
