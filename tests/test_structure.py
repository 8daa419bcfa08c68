"""The house rules that a machine can check: include order, file and function lengths, one place for Python.h."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CSRC = ROOT / "csrc"
pytestmark = pytest.mark.skipif(not CSRC.exists(), reason="needs the source tree")

# who may include whom: a file of a layer includes its own layer and those listed
LAYERS = {
    "module": {"model", "image", "audio", "ops", "kernels", "store", "parallel", "arena", "cpu", "core"},
    "model": {"ops", "kernels", "store", "parallel", "arena", "cpu", "core"},
    "ops": {"kernels", "store", "parallel", "arena", "cpu", "core"},
    "image": {"kernels", "parallel", "arena", "cpu", "core"},
    "audio": {"kernels", "parallel", "arena", "cpu", "core"},
    "kernels": {"cpu", "core"},
    "store": {"parallel", "arena", "core"},
    "parallel": {"cpu", "core"},
    "arena": {"core"},
    "cpu": {"core"},
    "core": set(),
}


def layer(path: Path) -> str:
    relative = path.relative_to(CSRC)
    return relative.parts[0] if len(relative.parts) > 1 else relative.stem.split("_")[0]  # module_image.c is module's


def sources(*suffixes: str) -> list[Path]:
    return sorted(p for p in CSRC.rglob("*") if p.suffix in suffixes)


@pytest.mark.parametrize("path", sources(".c", ".h"), ids=lambda p: str(p.relative_to(CSRC)))
def test_include_order(path):
    own = layer(path)
    for name in re.findall(r'#include "([^"]+)"', path.read_text()):
        target = layer((path.parent / name).resolve())
        assert target == own or target in LAYERS[own], f"{path.name} ({own}) includes {name} ({target})"


def test_only_module_knows_python():
    for path in sources(".c", ".h"):
        text = path.read_text()
        assert ("Python.h" in text or "numpy/" in text) == (path.name == "module.h"), path.name


def test_only_parallel_knows_openmp_and_only_arena_allocates():
    for path in sources(".c"):
        text = path.read_text()
        if path.name != "parallel.c":
            assert not re.search(r"#pragma omp|omp_\w+\(", text), path.name
        if path.name != "arena.c":
            assert not re.search(r"\b(malloc|calloc|realloc|free)\(", text), path.name
        assert not re.search(r"\b(exit|abort|printf|fprintf)\(", text), path.name


def test_families_are_python_and_c_knows_none():
    names = {p.stem for p in (ROOT / "beyondvl" / "families").glob("*.py")} - {"__init__", "registry", "blocks"}
    assert len(names) >= 6
    for path in sources(".c", ".h"):
        code = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.S)
        for name in names:
            assert not re.search(rf"\b{name}\b", code, re.I), f"{path.name} mentions {name}"


def test_lengths():
    for path in [*sources(".c", ".h"), *(ROOT / "beyondvl").rglob("*.py")]:
        lines = path.read_text().count("\n")
        assert lines <= 650, f"{path.name}: {lines} lines"
    for path in (ROOT / "beyondvl").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef):
                assert node.end_lineno - node.lineno < 70, f"{path.name}: {node.name}"


def test_public_names_have_docstrings():
    for path in (ROOT / "beyondvl").rglob("*.py"):
        tree = ast.parse(path.read_text())
        assert ast.get_docstring(tree), path.name
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                assert ast.get_docstring(node), f"{path.name}: {node.name}"


def test_stub_is_complete():
    from beyondvl import _C

    stub = (ROOT / "beyondvl" / "_C.pyi").read_text()
    for name in dir(_C):
        if not name.startswith("__"):
            assert re.search(rf"(def|class) {name}\b|^{name}:", stub, re.M), name


def test_no_path_or_host_of_a_machine():
    tracked = [
        p
        for folder in ("beyondvl", "csrc", "docs", "tests", "training", "benchmarks")
        for p in (ROOT / folder).rglob("*")
    ]
    for path in [*tracked, ROOT / "README.md"]:
        if (
            path.suffix in (".py", ".c", ".h", ".md")
            and path != Path(__file__)
            and "work" not in path.relative_to(ROOT).parts
        ):
            assert not re.search(r"/work/|/root/|/opt/", path.read_text()), path
