"""README's examples of published ids, against a hub on this machine that serves the published small files and random
weights under those ids; then without it, from the cache."""

from __future__ import annotations

import doctest
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import hub_server
import pytest

import published

torch = pytest.importorskip("torch", reason="parity needs torch")
transformers = pytest.importorskip("transformers", reason="parity needs transformers")

TESTS = Path(__file__).parent
from_archive = pytest.mark.skipif(
    published.archive() is None, reason=f"{published.ARCHIVE} of published checkpoints is not here (BEYONDVL_PUBLISHED)"
)
# which published folders a repository's small files are taken from: the copies of one lack what another has
SOURCES = {
    "clip": ("openai/clip-vit-base-patch32", transformers.CLIPModel,
             ("openai--clip-vit-base-patch32@4.57", "openai--clip-vit-large-patch14")),
    "blip": ("Salesforce/blip-image-captioning-base", transformers.BlipForConditionalGeneration,
             ("Salesforce--blip-image-captioning@livingtonds", "Salesforce--blip-image-captioning-base")),
}  # fmt: skip
CHANGED = ("generation_config.json",)  # not part of the repository that is named
KEPT = {"clip": "openai--clip-vit-base-patch32@4.57", "blip": "Salesforce--blip-image-captioning-base"}  # whose config
GAIN = {"clip": 1.5, "blip": 3.0}  # of random weights: enough that inputs are told apart


def test_first_lines(monkeypatch):
    """The block with its output, as it stands, from the checkout's root."""
    monkeypatch.chdir(TESTS.parent)
    text = (TESTS.parent / "README.md").read_text("utf-8")
    block = text.partition("```python\n")[2].partition("```")[0]
    test = doctest.DocTestParser().get_doctest(block, {}, "README", "README.md", 0)
    assert len(test.examples) == 5
    assert doctest.DocTestRunner().run(test).failed == 0


def repository(target: Path, kind: str) -> Path:
    """Small files as published, config.json among them, and random weights of that config, told apart by their gain."""
    _, made, sources = SOURCES[kind]
    target.mkdir()
    for source in sources:  # the later ones replace
        for file in (published.folder() / source).iterdir():
            if file.is_file() and file.name not in CHANGED:
                shutil.copy(file, target / file.name)
    shutil.copy(published.folder() / KEPT[kind] / "config.json", target)
    config = made.config_class.from_pretrained(target)
    torch.manual_seed(0)
    model = made(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and "embed" not in name:
                parameter.normal_(0, GAIN[kind] / parameter[0].numel() ** 0.5)
    published_config = (target / "config.json").read_bytes()
    model.save_pretrained(target)
    (target / "config.json").write_bytes(published_config)
    (target / "generation_config.json").unlink(missing_ok=True)
    return target


def run(kind: str, endpoint: str, home: Path) -> dict:
    environment = {n: v for n, v in os.environ.items() if not n.startswith(("HF_", "HUGGING", "TRANSFORMERS_"))}
    environment |= {"HF_ENDPOINT": endpoint, "HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1",
                    "HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_OFFLINE": "0"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, TESTS / "readme_program.py", kind], cwd=TESTS.parent, env=environment, capture_output=True,
        text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@from_archive
@pytest.mark.parametrize("kind", SOURCES)
def test_readme_from_a_hub(kind, tmp_path):
    folder = repository(tmp_path / kind, kind)
    with hub_server.serve({SOURCES[kind][0]: folder}) as (endpoint, requests):
        first = run(kind, endpoint, tmp_path / "home")
        assert any("model.safetensors" in request for request in requests)
    assert first["ids"] and first["pixels"]
    if kind == "clip":
        assert max(first["distances"].values()) < 2e-4, first
        assert first["readme"] < 2e-5 and first["apart"] > 0.01, first
    else:
        assert first["texts"] and first["apart"], first
        assert all(first["captions"]), first
    assert run(kind, endpoint, tmp_path / "home") == first  # the server is gone: the cache answers
