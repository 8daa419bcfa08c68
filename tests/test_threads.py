"""Promises about numbers: rows do not depend on the batch, on threads, on other callers, or on a fork."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import beyondvl as bvl
import models
from beyondvl import _C

ROOT, HERE = Path(bvl.__file__).parent.parent, Path(__file__).parent
SIGLIP = {
    "model_type": "siglip", "architectures": ["SiglipModel"],
    "text_config": {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 3,
                    "vocab_size": 500, "max_position_embeddings": 16, "projection_size": 72},
    "vision_config": {"hidden_size": 72, "intermediate_size": 100, "num_hidden_layers": 2, "num_attention_heads": 1,
                      "image_size": 50, "patch_size": 7},
}  # fmt: skip
CHINESE = {**models.TINY_CLIP, "model_type": "chinese_clip", "architectures": ["ChineseCLIPModel"],
           "vision_config": {**models.TINY_CLIP["vision_config"], "image_size": 33, "patch_size": 16}}  # fmt: skip
LITE = {"model_type": "efficientnet_lite", "variant": "efficientnet-lite0", "image_size": 64, "num_labels": 10}
OPEN_CLIP = {"model_type": "open_clip", "model_cfg": {"embed_dim": 24,
             "vision_cfg": {"image_size": 32, "layers": 2, "width": 48, "patch_size": 8, "head_width": 16},
             "text_cfg": {"context_length": 12, "vocab_size": 500, "width": 32, "heads": 2, "layers": 2}}}  # fmt: skip
CONFIGS = {
    "clip": models.TINY_CLIP,
    "siglip": SIGLIP,
    "chinese_clip": CHINESE,
    "efficientnet_lite": LITE,
    "open_clip": OPEN_CLIP,
}


def given(name: str, batch: int) -> dict[str, np.ndarray]:
    config = CONFIGS[name]
    rng = np.random.default_rng(0)
    if name == "efficientnet_lite":
        return {"pixel_values": rng.normal(size=(batch, 3, 64, 64)).astype(np.float32)}
    if name == "open_clip":
        return {"pixel_values": rng.normal(size=(batch, 3, 32, 32)).astype(np.float32),
                "input_ids": rng.integers(0, 500, (batch, 9))}  # fmt: skip
    inputs = models.inputs(config, batch)
    inputs["attention_mask"][1::3, 6:] = 0
    return inputs


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {name: models.write(tmp_path_factory.mktemp(name), config) for name, config in CONFIGS.items()}


def arrays(output) -> dict[str, np.ndarray]:
    """Every array with one row per item, nested ones too; logits depend on the other items by their meaning."""
    found = {}
    for name, value in output.items():
        if isinstance(value, dict):
            found |= {f"{name}.{k}": v for k, v in arrays(value).items()}
        elif not name.startswith("logits_per"):
            found[name] = value
    return found


def same(a, b):
    assert set(a) == set(b)
    for name in a:
        np.testing.assert_array_equal(a[name], b[name], err_msg=name)


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_do_not_depend_on_the_batch(isa, folders, name):
    """Row i of a batch is bitwise the same row alone."""
    model = bvl.AutoModel.from_pretrained(folders[name], num_threads=2)
    inputs = given(name, 7)
    whole = arrays(model(**inputs))
    for i in range(7):
        alone = arrays(model(**{k: v[i : i + 1] for k, v in inputs.items()}))
        same(alone, {k: v[i : i + 1] for k, v in whole.items()})


@pytest.mark.parametrize("name", CONFIGS)
def test_threads_do_not_change_a_bit(isa, folders, name):
    inputs = given(name, 5)
    expected = None
    for threads in (1, 2, 3, 4):
        found = arrays(bvl.AutoModel.from_pretrained(folders[name], num_threads=threads)(**inputs))
        same(found, expected or found)
        expected = found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "int8"])
@pytest.mark.parametrize("name", CONFIGS)
def test_leaving_rows_out_changes_no_bit(isa, folders, name, dtype):
    """Outputs are the same whatever else is asked for: alone, the last block computes the pooled row only."""
    model = bvl.AutoModel.from_pretrained(folders[name], dtype=dtype, num_threads=2)
    inputs = given(name, 5)
    for modality, tower in model.towers.items():
        given_here = {k: v for k, v in inputs.items() if (k == "pixel_values") == (modality == "vision")}
        outputs = [n for n in tower.outputs if n != "hidden"]
        together = tower.run(given_here, outputs, 2)
        for output in outputs:
            np.testing.assert_array_equal(tower.run(given_here, [output], 2)[output], together[output], err_msg=output)


def test_a_program_that_has_run_is_immutable(folders):
    model = bvl.AutoModel.from_pretrained(folders["clip"])
    model(**models.inputs())
    with pytest.raises(ValueError, match="no run yet"):
        model.towers["text"].program.slot("more", 1, 1)
    with pytest.raises(ValueError, match="immutable"):
        model.towers["text"].program.add("l2_normalize", 0, 0, {}, {}, 1)


def test_nothing_follows_a_record_that_failed():
    """What it took of the store and set of the program stays, so that whatever came after would not match a file."""
    program = _C.Program()
    slots = [program.slot("a", 4, 8), program.slot("b", 4, 8)]
    weight = {"weight": np.ones((8, 8), np.float32)}
    settings = {"activation": 0, "accumulate": 0, "as_blocks": 0}
    with pytest.raises(ValueError, match="activation: found 99, expected a whole number from 0"):
        program.add("linear", *slots, settings | {"activation": 99}, weight, 1)
    with pytest.raises(ValueError, match="a record before this one failed"):
        program.add("linear", *slots, settings, weight, 1)


def test_ids_are_read_once(folders):
    """Who changes an array while another thread runs on it changes nothing: the core has its own copy."""
    model = bvl.AutoModel.from_pretrained(folders["clip"], num_threads=1)
    program = model.tower("text").program
    ids, name = np.ones((2000, 20), np.int64), model.tower("text").outputs["unit_embeds"]
    expected = program.run({"input_ids": ids}, [name], 1)[name]
    found = {}
    thread = threading.Thread(target=lambda: found.update(program.run({"input_ids": ids}, [name], 1)))
    thread.start()
    time.sleep(0.01)
    ids[-1000:] = 1 << 40  # beyond every table
    thread.join()
    np.testing.assert_array_equal(found[name], expected)


def test_a_core_that_is_imported_anew_shares_its_types():
    code = (
        "import sys, importlib; import beyondvl; from beyondvl import _C; del sys.modules['beyondvl._C']; "
        "again = importlib.import_module('beyondvl._C'); assert again is not _C and again.Program is _C.Program; "
        "sys.modules['beyondvl._C'] = _C; del again; import gc; gc.collect(); assert len(_C.Program().blocks()) == 0"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=HERE)
    assert done.returncode == 0


@pytest.mark.parametrize("processors", ["all", "one"])
def test_workers_may_run_wherever_their_caller_may(processors):
    """Also those of a new team that were moved off their caller's processor."""
    code = (
        "import os, threading\n"
        f"if {processors == 'one'}: os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})\n"
        "from beyondvl import _C\n"
        "own, data = os.sched_getaffinity(0), bytes(1 << 22)\n"
        "def call(): assert _C.checksum(data, 4) == _C.checksum(data, 1); masks.extend(\n"
        "    os.sched_getaffinity(int(task)) for task in os.listdir('/proc/self/task'))\n"
        "masks = []\n"
        "for _ in range(10): thread = threading.Thread(target=call); thread.start(); thread.join()\n"
        "assert len(masks) >= 50 and all(mask == own for mask in masks), masks"
    )
    done = subprocess.run([sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": str(ROOT)}, cwd=HERE)
    assert done.returncode == 0


def test_levels_agree_closely(folders):
    """Across instruction sets: at most 2e-6 on unit-norm embeddings."""
    found = []
    for isa in _C.usable_isas():
        _C.set_isa(isa)
        found.append(bvl.AutoModel.from_pretrained(folders["clip"])(**given("clip", 4)))
    _C.set_isa()
    for other in found[1:]:
        np.testing.assert_allclose(other.image_embeds, found[0].image_embeds, atol=2e-6)
        np.testing.assert_allclose(other.text_embeds, found[0].text_embeds, atol=2e-6)


def test_sixteen_threads_on_one_model(folders):
    model = bvl.AutoModel.from_pretrained(folders["clip"])
    inputs = [models.inputs(batch=1 + n % 4, seed=n) for n in range(16)]
    expected = [arrays(model(**i)) for i in inputs]
    failures = []

    def work(n):
        try:
            for _ in range(30):
                same(arrays(model(**inputs[n])), expected[n])
        except BaseException as error:
            failures.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    sys.setswitchinterval(interval)
    assert not failures


def in_child(work) -> int:
    """Exit status of a forked child that runs `work` within 30 seconds."""
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)
        try:
            work()
            os._exit(0)
        except BaseException:
            os._exit(1)
    return os.waitpid(pid, 0)[1]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_forked_child_gives_the_same(folders):
    model = bvl.AutoModel.from_pretrained(folders["clip"], num_threads=2)
    inputs = models.inputs(batch=4)
    expected = arrays(model(**inputs))
    for _ in range(10):
        assert in_child(lambda: same(arrays(model(**inputs)), expected)) == 0
    same(arrays(model(**inputs)), expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_fork_while_another_thread_computes(folders):
    """No hang: the child then runs every team with one thread."""
    model = bvl.AutoModel.from_pretrained(folders["efficientnet_lite"], num_threads=2)
    inputs = given("efficientnet_lite", 8)
    expected = arrays(model(**inputs))
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            model(**inputs)

    thread = threading.Thread(target=busy)
    thread.start()
    try:
        statuses = [in_child(lambda: same(arrays(model(**inputs)), expected)) for _ in range(10)]
    finally:
        stop.set()
        thread.join()
    assert statuses == [0] * 10


def test_gil_is_released(folders):
    """Another Python thread keeps counting while a long call runs."""
    model = bvl.AutoModel.from_pretrained(folders["efficientnet_lite"], num_threads=1)
    inputs = given("efficientnet_lite", 200)
    ticks = []
    stop = threading.Event()

    def tick():
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    thread = threading.Thread(target=tick)
    thread.start()
    start = time.perf_counter()
    model(**inputs)
    end = time.perf_counter()
    stop.set()
    thread.join()
    assert sum(start < t < end for t in ticks) > 20 * (end - start)


def test_interrupt(folders):
    """Ctrl-C stops a long batch with KeyboardInterrupt, and the model works afterwards."""
    model = bvl.AutoModel.from_pretrained(folders["efficientnet_lite"], num_threads=2)
    small = given("efficientnet_lite", 2)
    expected = arrays(model(**small))
    large = given("efficientnet_lite", 3000)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in jobs of a shell's background
    timer = threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    start = time.perf_counter()
    try:
        with pytest.raises(KeyboardInterrupt):
            while time.perf_counter() - start < 5:
                model(**large)
    finally:
        timer.join()
        signal.signal(signal.SIGINT, before)
    assert time.perf_counter() - start < 5
    same(arrays(model(**small)), expected)
