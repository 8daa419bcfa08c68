"""Rows by the million, as they are promised: time, memory, bad files, kills.

    python benchmarks/bulk.py [--only stages memory bad kills] [--json results.json]

stages: pictures of 1080p in a folder to Parquet, beside the sum of what each stage takes alone on all processors: reading
    and decoding to the model's pixels, the tower over pixels, writing rows.
memory: resident memory at row 100,000 less that at row 2,000, writing Parquet: a tiny CLIP over shards of small pictures.
bad: 10,000 pictures, 7 % of them bad in a dozen ways: those that are reported, and whether good rows are bitwise those of
    a run without the bad ones.
kills: a job killed (SIGKILL) 50 times at random moments: whether what it leaves is bitwise what one leaves that was not.
"""

from __future__ import annotations

import argparse
import io
import json
import random
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import beyondvl as bvl

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
from test_outcomes import bad_items, jpeg

import models

NAME = "beyond-vl-model"


def photographs(folder: Path, count: int) -> None:
    """Smooth pictures of 1080p as JPEG."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for at in range(count):
        small = Image.fromarray(rng.integers(0, 256, (27, 48, 3), np.uint8))
        small.resize((1920, 1080), Image.Resampling.BICUBIC).save(folder / f"{at:05}.jpg", quality=90)


def write_rows(path: Path, keys: list[str], rows: np.ndarray) -> None:
    """A Parquet file of keys and rows."""
    import pyarrow as pa
    from pyarrow import parquet

    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), rows.shape[1])
    parquet.write_table(pa.table({"key": keys, "vector": vectors}), path)


def stages(work: Path) -> dict[str, Any]:
    folder, model = work / "photographs", bvl.AutoModel.from_pretrained(NAME, dtype="fastest")
    photographs(folder, 400)
    paths = sorted(map(str, folder.iterdir()))
    batches = [paths[at : at + 32] for at in range(0, len(paths), 32)]
    rounds: list[tuple[float, ...]] = []
    for number in range(3):
        clock = [time.perf_counter()]
        pixels = [model.image_processor(batch)["pixel_values"] for batch in batches]
        clock.append(time.perf_counter())
        rows = np.concatenate([model._embed("vision", {"pixel_values": batch}) for batch in pixels])
        clock.append(time.perf_counter())
        write_rows(work / f"alone-{number}.parquet", paths, rows)
        clock.append(time.perf_counter())
        model.encode_to(work / f"out-{number}", folder)
        clock.append(time.perf_counter())
        rounds.append(tuple(np.diff(clock)))
    decode, tower, write, whole = np.median(rounds, 0)
    return {"pictures": len(paths), "decode_s": decode, "tower_s": tower, "write_s": write, "whole_s": whole,
            "whole_of_the_sum": float(np.median([r[3] / sum(r[:3]) for r in rounds]))}  # fmt: skip


def shard(path: Path, pictures: list[bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for at, data in enumerate(pictures):
            member = tarfile.TarInfo(f"{path.stem}-{at:05}.jpg")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


MEMORY = """
import sys
import beyondvl as bvl
from beyondvl.bulk import writers
def resident():
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmRSS")).split()[1]) / 1e3
write, rows = writers.ParquetWriter.part, [0]
def part(self, folder, number, keys, *rest):
    write(self, folder, number, keys, *rest)
    rows[0] += len(keys)
    if rows[0] in (2000, 100000):
        print(resident(), flush=True)
writers.ParquetWriter.part = part
bvl.AutoModel.from_pretrained(sys.argv[1]).encode_to(sys.argv[2], sys.argv[3], column="jpg")
"""


def memory(work: Path) -> dict[str, Any]:
    folder = models.write(work / "clip")
    some = [jpeg(seed) for seed in range(100)]
    for number in range(10):
        shard(work / f"shard-{number:03}.tar", some * 100)
    (work / "clip" / "preprocessor_config.json").write_text(json.dumps(
        {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 48}, "crop_size": {"height": 48, "width": 48}}
    ))  # fmt: skip
    command = [sys.executable, "-P", "-c", MEMORY, str(folder), str(work / "rows"), str(work / "shard-{000..009}.tar")]
    first, last = map(float, subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    return {"at_2000_mb": first, "at_100000_mb": last, "grown_mb": last - first}


def bad(work: Path) -> dict[str, Any]:
    rng, model = np.random.default_rng(0), bvl.AutoModel.from_pretrained(NAME, dtype="fastest")
    kinds = [item for name, item in bad_items(work).items() if name not in ("text", "no text")]
    places = set(rng.choice(10_000, 700, replace=False).tolist())
    some = [jpeg(seed) for seed in range(200)]
    items = [kinds[at % len(kinds)] if at in places else some[at % 200] for at in range(10_000)]
    start = time.perf_counter()
    chunks = list(model.encode_stream(items))
    seconds, rows = time.perf_counter() - start, np.concatenate(chunks)
    good = [at for at in range(10_000) if at not in places]
    clean = np.concatenate(list(model.encode_stream([items[at] for at in good], on_error="raise")))
    reported = [failure.index for chunk in chunks for failure in chunk.failures]
    return {"reported_exactly": reported == sorted(places), "bitwise": bool((rows[good] == clean).all()),
            "bad_rows_are_nan": bool(np.isnan(rows[sorted(places)]).all()), "kinds": len(kinds), "seconds": seconds}  # fmt: skip


JOB = """
import sys
import beyondvl as bvl
bvl.AutoModel.from_pretrained("beyond-vl-model", dtype="fastest").encode_to(sys.argv[1], sys.argv[2], rows_per_file=20)
"""


def kills(work: Path) -> dict[str, Any]:
    source, rng, done = work / "s.tar", random.Random(0), 0
    shard(source, [jpeg(seed) if seed % 15 else b"bad" for seed in range(4000)])
    folder, longest = work / "killed", 0.0
    while True:
        job = subprocess.Popen([sys.executable, "-P", "-c", JOB, folder, source])
        begin = time.perf_counter()
        while job.poll() is None and time.perf_counter() - begin < (0.4 + rng.uniform(0, 1.2) if done < 50 else 1e9):
            time.sleep(0.005)
        if job.poll() is not None:
            break
        job.send_signal(signal.SIGKILL)
        job.wait()
        done += 1
        longest = max(longest, time.perf_counter() - begin)
    subprocess.run([sys.executable, "-P", "-c", JOB, work / "whole", source], check=True)
    contents = [{path.name: path.read_bytes() for path in one.iterdir()} for one in (folder, work / "whole")]
    return {
        "kills": done,
        "finished": job.returncode == 0,
        "files": len(contents[0]),
        "bitwise": contents[0] == contents[1],
    }


def main() -> None:
    parts = {"stages": stages, "memory": memory, "bad": bad, "kills": kills}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    parser.add_argument("--json", type=Path, help="results are added to this file")
    options = parser.parse_args()
    results: dict[str, Any] = {}
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            results[name] = parts[name](Path(folder))
        print(name, results[name], flush=True)
    if options.json:
        known = json.loads(options.json.read_text()) if options.json.exists() else {}
        options.json.write_text(json.dumps(known | {"bulk": results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
