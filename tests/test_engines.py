"""Embeddings in Ray, Daft and Spark, as they are on PyPI: two workers, one of which is killed while it works."""

from __future__ import annotations

import builtins
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import beyondvl as bvl
import pictures

PHOTOS = [str(path) for path in sorted(pictures.EXAMPLES.glob("*.jpg"))[:6]]
ITEMS = [*PHOTOS, "/none.jpg"] * 60

os.environ["BEYONDVL_KILLED_BY"] = f"{os.getpid()}-{time.time_ns()}"  # the workers of this run have it

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def vectors():
    """Of each path the vector that it is to have; None of the one that is not there."""
    rows = bvl.AutoModel.from_pretrained("beyond-vl-model").encode(PHOTOS, normalize_embeddings=True)
    return dict(zip(PHOTOS, rows, strict=True)) | {"/none.jpg": None}


@pytest.fixture(scope="module", autouse=True)
def elsewhere(tmp_path_factory):
    """Workers import the package from the folder that they are started in, if it is there: not from the sources."""
    before = os.getcwd()
    os.chdir(tmp_path_factory.mktemp("engines"))
    yield
    os.chdir(before)


@pytest.fixture(scope="module")
def daft():
    """Daft by its own runner, which a process chooses once."""
    daft = pytest.importorskip("daft", reason="daft is not installed: test-engines")
    daft.set_runner_native()
    return daft


@pytest.fixture(scope="module")
def ray():
    """Ray with two processors."""
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    before = builtins.print  # which Ray's datasets replace
    ray = pytest.importorskip("ray", reason="ray is not installed: test-engines")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield ray
    ray.shutdown()
    builtins.print = before


class Killer(threading.Thread):
    """Kills the first other process of this run that embeds."""

    MARK = "BEYONDVL_KILLED_BY"

    def __init__(self, title: bytes):
        super().__init__(daemon=True)
        self.title = title  # a part of its command line: others, that only plan, have the core too
        self.killed = None
        self.ended = threading.Event()

    def run(self):
        while not self.ended.wait(0.02):
            for pid in (int(folder.name) for folder in Path("/proc").glob("[0-9]*")):
                if pid != os.getpid() and self.embeds(pid):
                    time.sleep(1.5)  # loaded by then, and in the middle of its rows
                    os.kill(pid, signal.SIGKILL)
                    self.killed = pid
                    return

    def embeds(self, pid: int) -> bool:
        try:
            if os.environ[self.MARK].encode() not in Path(f"/proc/{pid}/environ").read_bytes():
                return False
            if self.title not in Path(f"/proc/{pid}/cmdline").read_bytes():
                return False
            return b"_C.abi3.so" in Path(f"/proc/{pid}/maps").read_bytes()
        except OSError:
            return False

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.ended.set()
        self.join()


def check(rows, vectors):
    """Rows (number, path, vector, error): each is there once, with the vector of its path or an error."""
    assert sorted(number for number, *_ in rows) == list(range(len(ITEMS)))
    for number, path, vector, error in rows:
        assert path == ITEMS[number]
        if vectors[path] is None:
            assert np.isnan(vector).all() and error == "/none.jpg: cannot be read: No such file or directory"
        else:
            assert error is None
            np.testing.assert_allclose(vector, vectors[path], atol=2e-6)


def test_daft(daft, vectors):
    """A worker that dies ends the query, which says so; it is whole when it is asked for again."""
    from beyondvl.integrations.daft import embed

    frame = daft.from_pydict({"path": ITEMS, "number": list(range(len(ITEMS)))})
    column = embed(daft.col("path"), max_concurrency=2, use_process=True, batch_size=4)
    query = frame.with_column("embedding", column)
    with Killer(b"udf_worker") as killer, pytest.raises(RuntimeError, match="UDF process closed"):
        query.collect()
    assert killer.killed
    rows = frame.with_column("embedding", column).collect().to_pylist()
    check([(r["number"], r["path"], r["embedding"]["vector"], r["embedding"]["error"]) for r in rows], vectors)


def test_daft_lists_a_folder(daft, vectors):
    """Its paths are URLs."""
    from beyondvl.integrations.daft import embed

    frame = daft.from_glob_path(str(pictures.EXAMPLES / "*.jpg"))
    rows = frame.with_column("embedding", embed(daft.col("path"))).collect().to_pylist()
    known = {path: vector for path, vector in vectors.items() if vector is not None}
    there = {row["path"].removeprefix("file://"): row["embedding"] for row in rows}
    assert len(there) >= 12 and all(row["error"] is None for row in there.values())
    for path, vector in known.items():
        np.testing.assert_allclose(there[path]["vector"], vector, atol=2e-6)


def test_ray(ray, vectors):
    from beyondvl.integrations.ray import embed

    dataset = ray.data.from_items([{"number": at, "path": path} for at, path in enumerate(ITEMS)])
    with Killer(b"ray::") as killer:
        rows = embed(dataset, "path", concurrency=2, batch_size=4).take_all()
    assert killer.killed
    check([(row["number"], row["path"], row["vector"], row["error"]) for row in rows], vectors)
    with pytest.raises(Exception, match="dataset: has a column 'error', expected none"):
        embed(dataset.add_column("error", lambda _: "x", batch_format="pandas"), "path").take_all()


def test_daft_on_ray(ray, vectors, tmp_path):
    """In a process of its own: a process has one runner."""
    pytest.importorskip("daft", reason="daft is not installed: test-engines")
    out = tmp_path / "out"
    program = (
        "import daft, sys\nfrom beyondvl.integrations.daft import embed\n"
        "daft.set_runner_ray(sys.argv[1])\n"
        "items = sys.argv[3:]\n"
        "frame = daft.from_pydict({'path': items, 'number': list(range(len(items)))}).repartition(6)\n"
        "column = embed(daft.col('path'), max_concurrency=2, batch_size=4)\n"
        "frame.with_column('embedding', column).write_parquet(sys.argv[2])\n"
    )
    with Killer(b"UDFActor") as killer:
        subprocess.run([sys.executable, "-c", program, ray.get_runtime_context().gcs_address, out, *ITEMS], check=True)  # fmt: skip
    assert killer.killed
    from pyarrow import parquet

    rows = [row for path in out.glob("*.parquet") for row in parquet.read_table(path).to_pylist()]
    check([(r["number"], r["path"], r["embedding"]["vector"], r["embedding"]["error"]) for r in rows], vectors)


def test_spark(vectors):
    sql = pytest.importorskip("pyspark.sql", reason="pyspark is not installed: test-engines")
    if shutil.which("java") is None:
        pytest.skip("no Java, which Spark runs on")
    from beyondvl.integrations.spark import embed

    settings = {"spark.ui.enabled": "false", "spark.sql.execution.arrow.maxRecordsPerBatch": "8"}
    builder = sql.SparkSession.builder.master("local-cluster[2,1,1024]")
    spark = builder.config(map=settings).getOrCreate()
    try:
        spark.sparkContext.setLogLevel("OFF")
        frame = spark.createDataFrame(list(enumerate(ITEMS)), ["number", "path"]).repartition(6)
        with Killer(b"pyspark") as killer:
            rows = embed(frame, "path").collect()
        assert killer.killed
        check([tuple(row) for row in rows], vectors)
        with pytest.raises(ValueError, match="column: found 'text', expected one of number, path"):
            embed(frame, "text")
        with pytest.raises(ValueError, match="has a column 'error', expected none"):
            embed(frame.withColumnRenamed("number", "error"), "path")
    finally:
        spark.stop()
