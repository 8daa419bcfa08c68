"""The house rules that a machine can check: include order, file and function lengths, one place for Python.h."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from beyondvl.families import registry

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
    names = set(registry.MODULES)
    assert len(names) >= 15
    for path in sources(".c", ".h"):
        code = re.sub(r"/\*.*?\*/", "", path.read_text(), flags=re.S)
        for name in names:
            assert not re.search(rf"\b{name}\b", code, re.I), f"{path.name} mentions {name}"


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of nodes that reach each other (Tarjan, 1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in graph[node]:
            if other not in order:
                visit(other)
            if other in stack:
                low[node] = min(low[node], low[other])
        if low[node] == order[node]:
            group = stack[stack.index(node) :]
            del stack[stack.index(node) :]
            if len(group) > 1:
                found.append(sorted(group))

    for node in graph:
        if node not in order:
            visit(node)
    return found


def imports(root: Path) -> dict[str, set[str]]:
    """Module -> modules under the same root that it imports anywhere: in functions and under TYPE_CHECKING too."""
    modules: dict[str, Path] = {}
    for path in root.rglob("*.py"):
        parts = path.relative_to(root.parent).with_suffix("").parts
        modules[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    compiled = {".".join(path.relative_to(root.parent).with_suffix("").parts) for path in root.rglob("_*.pyi")}
    graph: dict[str, set[str]] = {name: set() for name in compiled}
    known = compiled | set(modules)
    for name, path in modules.items():
        package = name if path.name == "__init__.py" else name.rpartition(".")[0]
        graph[name] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                graph[name] |= {alias.name for alias in node.names} & known
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")[: package.count(".") + 2 - node.level] if node.level else []
                base = ".".join([*above, *([node.module] if node.module else [])])
                whole = {f"{base}.{alias.name}" for alias in node.names}
                graph[name] |= {full if full in known else base for full in whole} & known
        graph[name].discard(name)
    return graph


def uses(folder: Path) -> dict[str, set[str]]:
    """C file -> files whose functions and tables it names."""
    texts = {
        str(path.relative_to(folder)): re.sub(r'/\*.*?\*/|"(?:\\.|[^"\\])*"', " ", path.read_text(), flags=re.S)
        for path in folder.rglob("*.c")
    }
    owners: dict[str, set[str]] = {}
    for name, text in texts.items():
        for pattern in (r"^(?!static|typedef)\w[\w *]*?\b(\w+)\s*\([^;{]*\)\s*\{",
                        r"^(?!static|typedef|extern)\w[\w *]*?\b(\w+)(?:\[[^\]]*\])*\s*=\s"):  # fmt: skip
            for match in re.finditer(pattern, text, re.M):
                owners.setdefault(match[1], set()).add(name)
    return {
        name: {owner for word in set(re.findall(r"\w+", text)) & set(owners)
               if name not in owners[word] for owner in owners[word]}
        for name, text in texts.items()
    }  # fmt: skip


def test_no_circles():
    graph = imports(ROOT / "beyondvl")
    assert len(graph) > 50 and graph["beyondvl.models.model"] >= {"beyondvl.folder", "beyondvl.encode"}
    assert not circles(graph)
    for folder in ("benchmarks", "training", "tests"):
        flat = {name.removeprefix(f"{folder}."): others for name, others in imports(ROOT / folder).items()}
        for name, others in flat.items():
            text = (ROOT / folder / f"{name}.py").read_text() if "." not in name and name != folder else ""
            others |= set(re.findall(r"^\s*(?:import|from) (\w+)", text, re.M)) & set(flat)
        assert not circles(
            {n: {o.removeprefix(f"{folder}.") for o in others} & set(flat) for n, others in flat.items()}
        )
    graph = uses(CSRC)
    assert len(graph) > 30 and "model/operations.c" in graph["model/program.c"]
    assert not circles(graph)


def test_planted_circles(tmp_path):
    """The test above would see one: an import in a function, one for types alone, two files of C."""
    package = tmp_path / "package"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("from .a import x\n")
    (package / "a.py").write_text("def x():\n    from .inner import b\n    return b\n")
    (package / "inner" / "__init__.py").write_text("")
    (package / "inner" / "b.py").write_text(
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..a import x\n"
    )
    assert circles(imports(package)) == [["package.a", "package.inner.b"]]
    (tmp_path / "one.c").write_text("int two(void);\nint one(int n) {\n    return n + two();\n}\n")
    (tmp_path / "two.c").write_text(
        "extern const int table[];\nint one(int n);\nint two(void) {\n    return one(1);\n}\n"
    )
    assert circles(uses(tmp_path)) == [["one.c", "two.c"]]


def family_words() -> set[str]:
    """Types of models, and classes of models and of what makes their inputs."""
    words: set[str] = set()
    for family in registry.families().values():
        words |= {family.model_type, *family.aliases, *family.variants, *family.classes, *family.heads}
        for way in family.ways:
            words |= {*way.tokenizers, *way.tokenizer_classes, *way.image_processors, *way.feature_extractors}
            words |= {
                name for name in (way.processor, way.tokenizer, way.image_processor, way.feature_extractor) if name
            }
    return words


def test_only_families_know_families():
    """No string or name outside families/ is a family's, but for the names of the package's own default."""
    words, wrong = family_words(), set()
    assert {"clip", "CLIPModel", "WhisperFeatureExtractor", "BertTokenizer", "blip-2"} <= words
    for path in (ROOT / "beyondvl").rglob("*.py"):
        if path.parent.name == "families":
            continue
        tree = ast.parse(path.read_text())
        documents = {id(node.body[0].value) for node in ast.walk(tree)
                     if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node)}  # fmt: skip
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documents:
                wrong |= {(path.name, node.value)} if node.value in words else set()
            name = getattr(node, "id", getattr(node, "attr", getattr(node, "name", None)))
            if isinstance(name, str) and name not in {word for word in words if word.islower()}:
                wrong |= {(path.name, name)} if name in words else set()
    # sentence-transformers' name of a module of its own; and a clip, which is a film
    assert wrong == {("sentences.py", "CLIPModel"), ("video.py", "clip")}


def test_lengths():
    for path in [*sources(".c", ".h"), *(ROOT / "beyondvl").rglob("*.py")]:
        lines, most = path.read_text().count("\n"), 500 if path.suffix == ".py" else 600
        assert lines <= most, f"{path.name}: {lines} lines"
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


def test_links_lead_somewhere():
    """What a page links to beside it is there."""
    pages = [
        *ROOT.glob("*.md"),
        *(page for name in ("docs", "examples", "training", "beyondvl") for page in (ROOT / name).rglob("*.md")),
    ]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)\s#]+)[^)]*\)", page.read_text("utf-8"))]
    links = [(page, link) for page, link in links if "://" not in link and not link.startswith("mailto:")]
    assert len(links) > 10
    for page, link in links:
        assert (page.parent / link).exists(), f"{page.name}: {link}"
