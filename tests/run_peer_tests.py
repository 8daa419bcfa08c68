"""How many of the peers' own tests of processors, tokenizers, extractors and `encode` does beyondvl pass?

    python tests/run_peer_tests.py --transformers DIR --sentence-transformers DIR --out peer_tests.tsv

Each DIR is a checkout of an installed library: its `tests/`, and transformers' `utils/`. The test files run unmodified
under pytest, each three times, in processes of their own:

1. with the peer alone: a test that fails or skips there says nothing about us and is not applicable;
2. with a shim: where the test makes or loads an object of the peer, the peer builds it and saves it to a folder, as a
   repository would hold it, and the peer's own class loads that folder and answers every call afterwards. What fails
   here cannot be asked of a folder, and is not applicable;
3. with beyondvl in that place, and functions of beyondvl in place of the peer's of the same name.

What `setUp` and fixtures prepare is built by the peer and handed over when the test itself begins. Nothing touches the
network: some names on the hub stand for folders made of published files. Tests of the peer's insides are listed in
INTERNAL; those that read a private attribute or call nothing that is replaced are recognised. Rows: library, version,
test id, pass | fail | not_applicable, reason.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.metadata
import importlib.util
import inspect
import io
import json
import multiprocessing
import os
import re
import shutil
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any
from unittest import mock

import beyondvl
import published

FAMILIES = ("clip", "siglip", "chinese_clip", "blip", "blip_2", "instructblip", "flava", "clap", "whisper",
            "audio_spectrogram_transformer", "bert")  # fmt: skip
FILES = {
    "transformers": ["tests/test_tokenization_common.py"]
    + [f"tests/models/{family}/test_{kind}_*.py" for family in FAMILIES
       for kind in ("processing", "tokenization", "image_processing", "feature_extraction")],
    "sentence-transformers": [f"tests/util/test_{n}.py" for n in ("similarity", "retrieval", "tensor", "quantization")]
    + [f"tests/sentence_transformer/test_{name}.py" for name in
       ("compute_embeddings", "image_embeddings", "model", "multi_process", "pretrained")],
}  # fmt: skip
MODEL_TYPES = {"blip_2": "blip-2", "audio_spectrogram_transformer": "audio-spectrogram-transformer"}
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "RUN_SLOW": "1", "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}

# why no user could call it: pattern searched for in a test's id
INTERNAL = {
    "chat templates": r"chat_template|jinja|continue_final_message",
    "the peer's torchvision backend": r"test_backends_eq|test_save_load_backends|explicit_none_pres|test_can_compile",
    "training": r"test_training_new_tokenizer|subword_regularization|survives_the_losses",
    "the constructor's signature in init_kwargs": r"store_full_signature",
    "the words of the peer's warnings and errors": r"test_maximum_encoding_length|rejects_multi_vector_names|"
    r"test_prompts$|test_encode_quantization\[error",
    "catches every exception, cannot fail": r"test_local_files_only",
    "push_to_hub": r"test_push_to_hub",
    "T5, which beyondvl does not offer": r"SentencePieceBackendCommonTest",
    "multi-vector models, which beyondvl does not offer": r"maxsim|multi_vector_handles",
    "sparse models, which beyondvl does not offer": r"_sparse|select_max_active",
    "the peer's private functions": r"test_combine_tokens_into_words|test_using_audio_utils|contiguous_magnitudes",
    "saves or builds torch modules": r"test_safe_serialization|test_safetensors|without_normalize_directory|"
    r"routes_through_module_call|no_data_dependent_branch|transformers_model_property|test_get_model_kwargs",
    "spies on the peer's own calls": r"test_encode_(query|document|document_prompt_priority|advanced_parameters)(\[|$)",
}

# name on the hub: (published folder, files of it or all, fields of its JSON files over its own)
CLIP, WHISPER = ("openai--clip-vit-base-patch32@4.57", None, {}), ("openai--whisper-base", None, {})
BERT = ("sentence-transformers--all-MiniLM-L6-v2", ["vocab.txt"], {"config": {"model_type": "bert"}, "tokenizer_config":
        {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": 512}})  # fmt: skip
GPT2 = ("Salesforce--blip2-opt-2.7b", ["vocab.json", "merges.txt"], {"config": {"model_type": "gpt2"},
        "tokenizer_config": {"tokenizer_class": "GPT2Tokenizer", "eos_token": "</s>"}})  # fmt: skip
VIT = ("", [], {"config": {"model_type": "vit"}, "preprocessor_config": {"image_processor_type": "ViTImageProcessor"}})
CLAP = ("laion--clap-htsat-fused", None, {"preprocessor_config": {"truncation": "rand_trunc"}})
SUBSTITUTES: dict[str, tuple[str, list[str] | None, dict[str, Any]]] = {
    **dict.fromkeys(("openai/clip-vit-base-patch32", "hf-internal-testing/tiny-processor-clip"), CLIP),
    **dict.fromkeys(("openai/whisper-tiny", "openai/whisper-small.en"), WHISPER),
    **dict.fromkeys(("hf-internal-testing/tiny-random-bert", "hf-internal-testing/tiny-random-BertModel"), BERT),
    "google-bert/bert-base-uncased": BERT,
    "sentence-transformers-testing/stsb-bert-tiny-safetensors": BERT,
    "hf-internal-testing/tiny-random-GPT2Model": GPT2,
    "hf-internal-testing/tiny-random-ViTModel": VIT,
    "google/siglip-base-patch16-224": ("google--siglip-so400m-patch14-384", None, {}),
    "laion/clap-htsat-unfused": CLAP,
}


class Worker:
    folder, files = Path(), Path()  # for temporary folders; published ones
    family = ""  # of the test file
    again = False  # whether the peer's own class loads the folders in beyondvl's place
    shimming = False  # whether classes of the peer are replaced at this moment
    used = 0  # times something that is replaced was asked in this test
    kinds: tuple[tuple[type, str], ...] = ()  # the peer's base classes, and the beyondvl class that loads their folder


peer_alone = functools.partial(mock.patch.object, Worker, "shimming", False)


def local(name: Any) -> Any:
    """The folder that stands for a name on the hub; other names as they are."""
    if not isinstance(name, str) or name not in SUBSTITUTES:
        return name
    out = Worker.folder / "hub" / name.replace("/", "--")
    if out.exists():
        return str(out)
    out.mkdir(parents=True)
    source, files, settings = SUBSTITUTES[name]
    for file in os.listdir(Worker.files / source) if files is None else files:
        shutil.copy(Worker.files / source / file, out)
    for file, fields in settings.items():
        path = out / f"{file}.json"
        path.write_text(json.dumps((json.loads(path.read_text()) if path.exists() else {}) | fields))
    if name.startswith("sentence-transformers"):  # random weights, the mean of the tokens
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
        from transformers import BertConfig, BertModel

        torch.manual_seed(6)  # of which the peer passes its own tests of what is similar
        sizes = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 512}
        with peer_alone(), torch.inference_mode():
            model = BertModel(BertConfig(vocab_size=30522, **sizes))
            for weights in model.parameters():
                weights += 0.05 * torch.randn_like(weights)
            model.save_pretrained(out)
            SentenceTransformer(modules=[Transformer(str(out)), Pooling(128)], device="cpu").save(str(out))
    return str(out)


class Shim:
    """beyondvl's object under the name of the peer's class, with the peer's twin for building others of it."""

    __slots__ = ("_ours", "_peer")

    def __init__(self, peer: Any, ours: Any):
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_ours", ours)

    __class__ = property(lambda self: type(half(self, "_peer")))

    @property
    def __call__(self) -> Any:
        """Ours, under the peer's signature: tests look there for what a call may be given."""
        call, Worker.used = functools.partial(half(self, "_ours")), Worker.used + 1
        call.__signature__ = inspect.signature(half(self, "_peer").__call__)
        return call

    def __getattr__(self, name: str) -> Any:
        peer, ours, Worker.used = half(self, "_peer"), half(self, "_ours"), Worker.used + 1
        if (name.startswith("_") and not name.endswith("__")) or name == "sp_model":
            raise AttributeError(f"private attribute {name}")
        value = getattr(ours, name)
        if name in ("tokenizer", "image_processor", "feature_extractor", "qformer_tokenizer") and value is not None:
            return Shim(getattr(peer, name, None), value)
        return value

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise AttributeError(f"private attribute {name}")
        with peer_alone(), contextlib.suppress(Exception):
            setattr(half(self, "_peer"), name, half(value, "_peer"))
        setattr(half(self, "_ours"), name, half(value, "_ours"))

    def __len__(self) -> int:
        return len(half(self, "_ours"))

    def __repr__(self) -> str:
        return repr(half(self, "_ours"))


def half(value: Any, name: str) -> Any:
    return object.__getattribute__(value, name) if type(value) is Shim else value


def shimmed(value: Any) -> Any:
    """What beyondvl makes of the folder the peer saves, in place of each object of the peer, also in lists."""
    if type(value) in (list, tuple):
        return type(value)(map(shimmed, value))
    kind = next((name for base, name in Worker.kinds if isinstance(value, base)), None)
    if type(value) is Shim or kind is None:
        return value
    Worker.used += 1
    folder = Path(tempfile.mkdtemp(dir=Worker.folder))
    with peer_alone():
        value.save_pretrained(str(folder))
        if not (folder / "config.json").exists():
            (folder / "config.json").write_text(json.dumps({"model_type": Worker.family}))
        if Worker.again:
            load = type(value) if kind == "AutoModel" else type(value).from_pretrained
            return Shim(value, load(str(folder)))
    named = getattr(beyondvl, type(value).__name__, None)  # a class of ours by that name, else the one that looks
    load = (named if hasattr(named, "from_pretrained") else getattr(beyondvl, kind)).from_pretrained
    return Shim(value, load(str(folder)))


def made(make: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What the peer makes of these arguments, through the shim while it is on."""
    args = tuple(local(half(value, "_peer")) for value in args)
    with peer_alone():
        found = make(*args, **{name: local(half(value, "_peer")) for name, value in kwargs.items()})
    return shimmed(found) if Worker.shimming else found


def _new(cls: type, *args: Any, **kwargs: Any) -> Any:
    """`Class(...)`."""
    if not Worker.shimming or not cls.__module__.startswith(("transformers.", "sentence_transformers.")):
        return object.__new__(cls)
    return made(cls, args, kwargs)


def install_transformers() -> None:
    import transformers as peer
    from transformers import feature_extraction_utils, image_processing_base, tokenization_utils_base

    Worker.kinds = (
        (peer.ProcessorMixin, "AutoProcessor"),
        (tokenization_utils_base.PreTrainedTokenizerBase, "AutoTokenizer"),
        (image_processing_base.ImageProcessingMixin, "AutoImageProcessor"),
        (feature_extraction_utils.FeatureExtractionMixin, "AutoFeatureExtractor"),
    )

    def replace(cls: type, name: str, original: Any) -> None:
        setattr(cls, name, classmethod(lambda cls, *a, **k: made(original.__get__(None, cls), a, k)))

    for base, auto in Worker.kinds:
        base.__new__ = staticmethod(_new)
        for cls in (base, getattr(peer, auto)):
            for name in {"from_pretrained", "from_dict", "from_args_and_dict", "from_json_file"} & set(vars(cls)):
                replace(cls, name, vars(cls)[name])
    if importlib.util.find_spec("datasets") is None:  # test files import it for what lies on the hub
        absent = mock.Mock(side_effect=OSError("offline: a data set on the hub"))
        sys.modules["datasets"] = mock.MagicMock(__spec__=ModuleSpec("datasets", None), load_dataset=absent)
    for cls in (peer.BatchFeature, peer.BatchEncoding):  # so that isinstance knows ours
        cls.register(beyondvl.BatchFeature)


def install_sentence_transformers() -> None:
    import sentence_transformers as peer

    Worker.kinds = ((peer.SentenceTransformer, "AutoModel"),)
    init = peer.SentenceTransformer.__init__
    peer.SentenceTransformer.__init__ = functools.wraps(init)(
        lambda self, name=None, *args, **kwargs: init(self, local(name), *args, **kwargs)
    )
    peer.SentenceTransformer.__new__ = staticmethod(_new)

    @functools.cache
    def replacement(original: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(original)
        def call(*args: Any, **kwargs: Any) -> Any:
            Worker.used += 1
            if not Worker.shimming or Worker.again:
                return original(*args, **kwargs)
            return getattr(beyondvl, original.__name__)(*args, **kwargs)

        return call

    for module in [m for name, m in sys.modules.items() if name.startswith("sentence_transformers.util")]:
        for name, value in list(vars(module).items()):
            if inspect.isfunction(value) and not name.startswith("_") and value.__module__.startswith(peer.__name__):
                setattr(module, name, replacement(value))


class Plugin:
    """Puts the shim around each test's own code, and keeps what came of it."""

    def __init__(self, shim: bool, wanted: list[str]):
        self.shim, self.wanted = shim, set(wanted)
        self.found = defaultdict({"outcome": "passed", "reason": "", "skips": 0, "used": 0, "details": ""}.copy)

    def pytest_collection_modifyitems(self, items: list[Any]) -> None:
        items[:] = [item for item in items if not self.wanted or item.nodeid in self.wanted]

    def pytest_runtest_call(self, item: Any) -> None:
        test, instance = item.obj, getattr(item, "instance", None)

        @functools.wraps(getattr(test, "__func__", test))
        def shimming(*args: Any, **kwargs: Any) -> Any:
            if instance is not None:
                for name, value in inspect.getmembers_static(instance):
                    if (changed := shimmed(value)) is not value and changed != value:
                        setattr(instance, name, changed)
            kwargs = {name: shimmed(value) for name, value in kwargs.items()}
            Worker.used = 0
            with mock.patch.object(Worker, "shimming", True):
                test(*args, **kwargs)
            self.found[item.nodeid]["used"] = Worker.used

        importlib.import_module("transformers").set_seed(0)
        if self.shim:
            item._obj = shimming

    def pytest_runtest_logreport(self, report: Any) -> None:
        row = self.found[report.nodeid]
        if report.failed and row["outcome"] != "failed":
            crash = getattr(report.longrepr, "reprcrash", None)
            lines = str(crash.message if crash else report.longrepr).strip().splitlines() or [""]
            row |= {"outcome": "failed", "reason": lines[0], "details": str(report.longrepr)}
        elif report.skipped and type(report).__name__ == "SubtestReport":
            row["skips"] += 1
        elif report.skipped and row["outcome"] == "passed":
            row |= {"outcome": "skipped", "reason": str(report.longrepr[2])}


def work(library: str, root: Path, file: str, files: Path, who: str, wanted: list[str]) -> dict[str, dict[str, Any]]:
    """What comes of the tests of a file, of those wanted or all: {test id: {outcome, reason, ...}}."""
    import pytest
    import torch

    torch.set_num_threads(1)
    Worker.files, Worker.again, family = files, who == "again", Path(file).parent.name
    Worker.family = MODEL_TYPES.get(family, family if "/models/" in file else "bert")
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()) as said:
        Worker.folder = Path(folder)
        {"transformers": install_transformers, "sentence-transformers": install_sentence_transformers}[library]()
        os.chdir(root)
        plugin = Plugin(who != "peer", wanted)
        options = f"-q -p no:cacheprovider -c {os.devnull} --rootdir={root} --tb=short -W ignore"
        pytest.main([*options.split(), file], plugins=[plugin])
    if not plugin.found:
        raise RuntimeError(f"{file}: no tests ran:\n{said.getvalue()[-4000:]}")
    return {**plugin.found}


def set_aside(test: str, peer: dict[str, Any]) -> str:
    """Why a test says nothing about us, as far as its name and its run with the peer alone tell; else empty."""
    if peer["outcome"] != "passed":
        if re.search(r"offline|couldn't connect|LocalEntryNotFound|ConnectError", peer["reason"]):
            return f"needs the hub: {peer['reason']}"
        return f"{'skips' if peer['outcome'] == 'skipped' else 'fails'} with the peer itself: {peer['reason']}"
    return next((f"internal, {why}" for why, pattern in INTERNAL.items() if re.search(pattern, test)), "")


def verdict(peer: dict[str, Any], again: dict[str, Any], ours: dict[str, Any]) -> tuple[str, str]:
    """(pass | fail | not_applicable, reason) of what came of a test with the peer, its own reload, and ours."""
    if private := re.search(": (private attribute .*)", again["reason"] + "\n" + ours["reason"]):
        return "not_applicable", f"internal, {private[1]}"
    if again["outcome"] != "passed" or again["skips"] > peer["skips"]:
        return "not_applicable", f"fails with the peer itself once saved and loaded: {again['reason']}"
    if not again["used"]:
        return "not_applicable", "internal, calls nothing that is replaced"
    if ours["outcome"] == "skipped" or (ours["outcome"] == "passed" and ours["skips"] > peer["skips"]):
        return "fail", f"skips with ours: {ours['reason']}"
    return ("pass", "") if ours["outcome"] == "passed" else ("fail", ours["reason"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for library in FILES:
        parser.add_argument(f"--{library}", type=Path, metavar="DIR")
    parser.add_argument("--out", type=Path, required=True, metavar="TSV")
    parser.add_argument("--files", type=Path, metavar="DIR", help="folders named owner--name; default: the published")
    parser.add_argument("--details", type=Path, metavar="JSON", help="keeps the tracebacks")
    parser.add_argument("--only", default="", metavar="TEXT", help="test files whose path holds it")
    options = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    options.files = options.files or published.folder()
    rows, details = [], {}
    pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    for library, patterns in FILES.items():
        if (root := getattr(options, library.replace("-", "_"))) is None:
            continue
        root, version = root.resolve(), importlib.metadata.version(library)
        files = [str(path.relative_to(root)) for pattern in patterns for path in sorted(root.glob(pattern))]
        for file in (file for file in files if options.only in file):
            run = functools.partial(pool.submit, work, library, root, file, options.files.resolve())
            peer = run("peer", []).result()
            why = {test: set_aside(test, found) for test, found in peer.items()}
            wanted = [test for test in peer if not why[test]]
            again, ours = (run(who, wanted).result() if wanted else {} for who in ("again", "ours"))
            counts: Counter[str] = Counter()
            for test, found in peer.items():
                aside = why[test]
                result, reason = ("not_applicable", aside) if aside else verdict(found, again[test], ours[test])
                rows.append((library, version, test, result, " ".join(reason.split())[:160]))
                details[test] = {"peer": found, "again": again.get(test), "ours": ours.get(test)}
                counts[result] += 1
            options.out.write_text("".join("\t".join(row) + "\n" for row in rows))
            print(f"{file}: " + ", ".join(f"{n} {result}" for result, n in sorted(counts.items())), flush=True)
    if options.details:
        options.details.write_text(json.dumps(details))
    for library in dict.fromkeys(row[0] for row in rows):
        counts = Counter(row[3] for row in rows if row[0] == library)
        total = counts["pass"] + counts["fail"]
        print(f"{library}: {counts['pass']} of {total} applicable pass, {counts['not_applicable']} not applicable")


if __name__ == "__main__":
    main()
