"""Every kernel at every instruction set against NumPy float64: awkward sizes, unaligned and guarded buffers, inf, nan."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import pytest

import reference
from beyondvl import _C

PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


class Guarded:
    """Memory that ends (and begins, up to alignment) at pages nobody may touch: an overrun ends the process."""

    def __init__(self):
        self.maps = []

    def __call__(self, array: np.ndarray | None, shift: int = 0) -> np.ndarray | None:
        """A copy of `array` whose last byte is the last one readable, `shift` floats earlier."""
        if array is None:
            return None
        array = np.ascontiguousarray(array, np.float32)
        pages = (array.nbytes + 4 * shift + PAGE - 1) // PAGE + 2
        area = mmap.mmap(-1, pages * PAGE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(area))
        for page in (0, pages - 1):
            assert _libc.mprotect(address + page * PAGE, PAGE, 0) == 0
        self.maps.append((area, address, pages))
        begin = (pages - 1) * PAGE - array.nbytes - 4 * shift
        copy = np.frombuffer(area, np.float32, array.size, begin).reshape(array.shape)
        copy[...] = array
        return copy


@pytest.fixture
def guarded():
    guard = Guarded()
    yield guard
    for _, address, pages in guard.maps:
        _libc.mprotect(address, pages * PAGE, 3)


def run(name, out, arrays, numbers):
    _C._test_kernel(name, out, tuple(arrays), tuple(float(n) for n in numbers))
    return out


def sizes_around(width):
    return sorted({1, 2, 3, width - 1, width, width + 1, 2 * width + 3, 5 * width})


def test_gemm(isa, rng, guarded):
    tile = _C._test_scratch(1, 1)
    for m in (0, 1, tile["mr"] - 1, tile["mr"], tile["mr"] + 1, 3 * tile["mr"] + 2):
        for n in (1, tile["nr"] - 1, tile["nr"], tile["nr"] + 1, 100):
            for k in (1, 2, 15, 16, 17, 70):
                a, w = rng.normal(size=(m, k)), rng.normal(size=(n, k))
                bias, residual = rng.normal(size=n), rng.normal(size=(m, n))
                packed = np.zeros(_C._test_scratch(n, k)["packed"], np.float32)
                buffers = [guarded(x) for x in (a, w, bias, residual, packed)]
                out = run("gemm", guarded(np.zeros((m, n))), buffers, (m, n, k, 0))
                expected = reference.gemm(*buffers[:4])
                np.testing.assert_allclose(out, expected, atol=2e-6 * k + 1e-5)
                buffers[1] = guarded(w.T)
                np.testing.assert_array_equal(run("gemm_transposed", guarded(out), buffers, (m, n, k, 0)), out)


@pytest.mark.parametrize("activation", _C.ACTIVATIONS)
def test_gemm_activation(isa, rng, activation):
    a, w, bias = (rng.normal(size=s).astype(np.float32) for s in ((19, 33), (45, 33), (45,)))
    packed = np.zeros(_C._test_scratch(45, 33)["packed"], np.float32)
    out = run("gemm", np.zeros((19, 45), np.float32), [a, w, bias, None, packed],
              (19, 45, 33, _C.ACTIVATIONS.index(activation)))  # fmt: skip
    np.testing.assert_allclose(out, reference.gemm(a, w, bias, None, activation), atol=3e-5)


def test_gemm_rows_do_not_depend_on_their_number(isa, rng):
    """Row i is bitwise the same whatever M is: a tile's height never changes the order of the sum."""
    k, n = 768, 100
    a, w = (rng.normal(size=s).astype(np.float32) for s in ((61, k), (n, k)))
    packed = np.zeros(_C._test_scratch(n, k)["packed"], np.float32)
    whole = run("gemm", np.zeros((61, n), np.float32), [a, w, None, None, packed], (61, n, k, 0))
    for m in range(1, 61):
        part = run("gemm", np.zeros((m, n), np.float32), [a[:m], w, None, None, packed], (m, n, k, 0))
        np.testing.assert_array_equal(part, whole[:m])


def test_layer_norm(isa, rng, guarded):
    for d in (*sizes_around(16), 768):
        x, gamma, beta = rng.normal(3, 2, size=(5, d)), rng.normal(size=d), rng.normal(size=d)
        buffers = [guarded(v, shift) for v, shift in ((x, 0), (gamma, 0), (beta, 1))]
        out = run("layer_norm", guarded(np.zeros((5, d))), buffers, (5, d, 1e-5))
        np.testing.assert_allclose(out, reference.layer_norm(*buffers, 1e-5), atol=2e-5)


def test_softmax(isa, rng, guarded):
    for n in (*sizes_around(16), 577):
        x, bias = rng.normal(0, 8, size=n), np.where(rng.random(n) < 0.3, -np.inf, 0.0)
        for b in (None, bias, np.full(n, -np.inf)):
            out = guarded(x)
            expected = reference.softmax(out, 0.3, b)
            run("softmax", out, [guarded(b)], (n, 0.3))
            np.testing.assert_allclose(out, expected, atol=3e-7)


@pytest.mark.parametrize("activation", _C.ACTIVATIONS)
def test_activate(isa, guarded, activation):
    x = np.concatenate([np.linspace(-100, 100, 4003), np.linspace(-6, 6, 4003), [0.0, -0.0, 1e-30, -1e-30]])
    for n in (1, 15, 16, 17, x.size):
        buffer = guarded(x[:n])
        out = run("activate", guarded(np.zeros(n)), [buffer, None], (_C.ACTIVATIONS.index(activation), n))
        expected = reference.ACTIVATIONS[activation](buffer.astype(np.float64))
        np.testing.assert_allclose(out, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("activation", _C.ACTIVATIONS)
def test_activate_passes_nan_and_inf(isa, activation):
    x = np.array([np.nan, np.inf] * 16, np.float32)
    out = run("activate", np.zeros(32, np.float32), [x, None], (_C.ACTIVATIONS.index(activation), 32))
    limit = {"relu6": 6.0, "tanh": 1.0}.get(activation, np.inf)
    assert np.isnan(out[::2]).all()
    np.testing.assert_array_equal(out[1::2], limit)


def test_softmax_keeps_nan(isa):
    for n in (1, 3, 10, 17, 40):
        out = run("softmax", np.full(n, np.nan, np.float32), [None], (n, 1.0))
        assert np.isnan(out).all()


def test_nan_stays_in_its_row(isa, rng):
    a, w = (rng.normal(size=s).astype(np.float32) for s in ((9, 40), (20, 40)))
    packed = np.zeros(_C._test_scratch(20, 40)["packed"], np.float32)
    clean = run("gemm", np.zeros((9, 20), np.float32), [a, w, None, None, packed], (9, 20, 40, 0))
    a[4, 3] = np.nan
    out = run("gemm", np.zeros((9, 20), np.float32), [a, w, None, None, packed], (9, 20, 40, 0))
    assert np.isnan(out[4]).all()
    np.testing.assert_array_equal(np.delete(out, 4, 0), np.delete(clean, 4, 0))


def test_rows(isa, rng, guarded):
    for n in sizes_around(16):
        x, y = guarded(rng.normal(size=n)), guarded(rng.normal(size=n))
        np.testing.assert_allclose(run("l2_normalize", guarded(x), [x], (n,)), reference.l2_normalize(x), atol=1e-6)
        np.testing.assert_allclose(run("add", guarded(y), [x], (n,)), y + x, atol=1e-6)
        np.testing.assert_allclose(run("scale", guarded(y), [], (n, 0.7)), y * np.float32(0.7), atol=1e-6)
    zeros = np.zeros(5, np.float32)
    np.testing.assert_array_equal(run("l2_normalize", np.ones(5, np.float32), [zeros], (5,)), zeros)


@pytest.mark.parametrize("kernel,stride", [(3, 1), (3, 2), (5, 1), (5, 2)])
@pytest.mark.parametrize("activation", ["none", "relu6", "silu"])
def test_depthwise(isa, rng, guarded, kernel, stride, activation):
    for channels, height, width in ((1, 5, 5), (16, 7, 6), (17, 1, 9), (40, 4, 3)):
        x, w = guarded(rng.normal(size=(height, width, channels))), guarded(rng.normal(size=(kernel**2, channels)))
        bias, pad = guarded(rng.normal(size=channels)), kernel // 2
        out = -(-height // stride), -(-width // stride)
        y = run("depthwise", guarded(np.zeros((*out, channels))), [x, w, bias],
                (channels, height, width, kernel, stride, pad, *out, _C.ACTIVATIONS.index(activation)))  # fmt: skip
        expected = reference.depthwise(x, w, bias, kernel, stride, pad, *out, activation)
        np.testing.assert_allclose(y, expected, atol=2e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("hd", [1, 16, 40, 64, 72, 80, 88, 104])
def test_attention(isa, rng, guarded, hd, causal):
    for tq, tk in ((1, 1), (7, 7), (1, 50), (57, 57), (77, 77)):
        if causal and tq != tk:
            continue
        q, k, v = (guarded(rng.normal(size=(t, hd))) for t in (tq, tk, tk))
        bias = np.where(np.arange(tk) < max(1, tk - 3), 0.0, -np.inf)
        scratch = np.zeros(_C._test_scratch(tk, hd)["attention"], np.float32)
        for b in (None, bias):
            out = run("attention", guarded(np.zeros((tq, hd))), [q, k, v, guarded(b), scratch],
                      (tq, tk, hd, causal, hd**-0.5))  # fmt: skip
            np.testing.assert_allclose(out, reference.attention(q, k, v, hd**-0.5, causal, b), atol=2e-5)
