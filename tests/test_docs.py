"""The pages of docs/: their blocks are programs that run, in order, from a checkout's root; what they link to is there."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

import pytest

import beyondvl as bvl

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
NEEDS = {"scale.md": ["pyarrow"], "recipes.md": ["faiss", "usearch", "psycopg"], "serve.md": ["fastapi", "uvicorn"]}
PROGRAMS = sorted(page.name for page in DOCS.glob("*.md") if "```python\n" in page.read_text("utf-8"))
BIN = Path("/usr/lib/postgresql")


def pages(nav: list) -> list[str]:
    """Files that the site's navigation names."""
    values = [value for entry in nav for value in entry.values()]
    return [page for value in values for page in (pages(value) if isinstance(value, list) else [value])]


def test_every_page_is_in_the_navigation():
    site = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]
    named = pages(site["nav"])
    assert sorted(named) == sorted(page.name for page in DOCS.glob("*.md") if page.name != "speed-log.md")
    assert len(PROGRAMS) >= 7


@pytest.mark.parametrize("page", sorted(page.name for page in DOCS.glob("*.md")))
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", (DOCS / page).read_text("utf-8")):
        assert "://" in target or (DOCS / target).exists(), target


@pytest.fixture
def postgres():
    """The environment of a server of its own, as another user where this one is root: in a folder that this user may
    enter, wherever tests write, and short enough for a socket's name."""
    versions = sorted(BIN.glob("*/bin/initdb"))
    if not versions:
        pytest.skip(f"no PostgreSQL in {BIN}")
    tools = versions[-1].parent
    with tempfile.TemporaryDirectory(dir="/tmp") as place:
        user = []
        if os.geteuid() == 0:
            shutil.chown(place, "postgres")
            user = ["runuser", "-u", "postgres", "--"]

        def run(tool: str, *options: str) -> None:
            subprocess.run(
                [*user, tools / tool, "-D", f"{place}/data", *options], check=True, capture_output=True, cwd="/"
            )

        run("initdb", "-A", "trust", "-U", "tester", "-E", "UTF8")
        options = f"-c listen_addresses='' -c unix_socket_directories='{place}'"
        run("pg_ctl", "-w", "-l", f"{place}/log", "-o", options, "start")
        yield {"PGHOST": place, "PGUSER": "tester", "PGDATABASE": "postgres"}
        run("pg_ctl", "-w", "-m", "immediate", "stop")


@pytest.mark.parametrize("page", PROGRAMS)
def test_page_runs(page, tmp_path, request):
    for module in NEEDS.get(page, ()):
        pytest.importorskip(module, reason=f"{page} needs {module}")
    env = {**os.environ, "PYTHONPATH": str(Path(bvl.__file__).parent.parent)}
    if page == "recipes.md":
        env |= request.getfixturevalue("postgres")
    place = tmp_path / "checkout"
    shutil.copytree(ROOT / "examples", place / "examples")
    program = "\n".join(re.findall(r"```python\n(.*?)```", (DOCS / page).read_text("utf-8"), re.S))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], cwd=place, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_gallery_says_what_the_model_says():
    """Of nine of the twelve at least to the word: instruction sets round differently."""
    rows = re.findall(r"^\| !\[\w+\]\((photos/\w+\.jpg)\)[^|]*\| ([^|]+) \| ([\d.]+) \|$",
                      (DOCS / "gallery.md").read_text(), re.M)  # fmt: skip
    assert sorted(path for path, *_ in rows) == sorted(f"photos/{path.name}" for path in (DOCS / "photos").iterdir())
    said = bvl.AutoModel.from_pretrained("beyond-vl-model").caption([str(DOCS / path) for path, *_ in rows])
    same = [text == mine for (_, text, _), mine in zip(rows, said, strict=True)]
    assert len(rows) == 12 and sum(same) >= 9
    for (_, _, sure), mine, alike in zip(rows, said, same, strict=True):
        assert not alike or abs(float(sure) - mine.confidence) < 0.05
