"""Every kernel at every instruction set against NumPy float64: awkward sizes, unaligned and guarded buffers, inf, nan."""

from __future__ import annotations

import ctypes
import mmap

import numpy as np
import pytest

import reference
from beyondvl import _C

pytestmark = pytest.mark.skipif(
    not hasattr(_C, "_test_kernel"),
    reason="single kernels are reached in builds for tests alone: BEYONDVL_TESTS=1 pip install .",
)
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


FLOAT32, BFLOAT16, INT8, BFLOAT16X3 = range(4)


@pytest.fixture(params=range(4), ids=_C.PRECISIONS)
def precision(isa, request):
    """Every precision the level has."""
    if request.param == BFLOAT16X3 and isa != "amx":
        pytest.skip(f"{isa} has no {_C.PRECISIONS[request.param]}")
    return request.param


def product(a, w, bias=None, residual=None, activation="none", precision=FLOAT32, guard=np.ascontiguousarray,
            transposed=False, out=None, bounds=None):  # fmt: skip
    """C = epilogue(A W^T) by the kernel of one precision, a new array or `out`."""
    (m, k), n = a.shape, w.shape[0]
    sizes = _C._test_scratch(n, k, precision)
    packed = np.zeros(sizes["packed"], np.float32)
    operand = np.zeros((m, sizes["operand"]), np.float32)
    given = [
        guard(x) if x is not None else None
        for x in (a, w.T if transposed else w, bias, residual, packed, operand, bounds)
    ]
    name = "gemm_transposed" if transposed else "gemm"
    return run(name, guard(np.zeros((m, n), np.float32)) if out is None else out, given,
               (m, n, k, _C.ACTIVATIONS.index(activation), precision))  # fmt: skip


def test_gemm(isa, rng, guarded, precision):
    """Every shape around the tile's, with bias and residual, in guarded memory; W also given transposed."""
    tile = _C._test_scratch(1, 1)
    rows = {0, 1, tile["mr"] - 1, tile["mr"], tile["mr"] + 1, 3 * tile["mr"] + 2, 16, 17, 33}
    for m in sorted(rows):
        for n in (1, tile["nr"] - 1, tile["nr"], tile["nr"] + 1, 100):
            for k in (1, 2, 15, 16, 17, 70, 130):
                a, w = (rng.normal(size=s).astype(np.float32) for s in ((m, k), (n, k)))
                bias, residual = (rng.normal(size=s).astype(np.float32) for s in (n, (m, n)))
                out = product(a, w, bias, residual, precision=precision, guard=guarded)
                if precision == FLOAT32:
                    np.testing.assert_allclose(out, reference.gemm(a, w, bias, residual), atol=2e-6 * k + 1e-5)
                else:
                    given = reference.OPERANDS[precision](a, w, _C._test_scratch(n, k)["bf16_rows"])
                    np.testing.assert_allclose(out, reference.gemm(*given, bias, residual), atol=1e-5 * k + 5e-5)
                again = product(a, w, bias, residual, precision=precision, guard=guarded, transposed=True)
                np.testing.assert_array_equal(again, out)


@pytest.mark.parametrize("activation", _C.ACTIVATIONS)
def test_gemm_activation(isa, rng, activation, precision):
    a, w, bias = (rng.normal(size=s).astype(np.float32) for s in ((19, 33), (45, 33), (45,)))
    out = product(a, w, bias, activation=activation, precision=precision)
    given = a, w
    if precision != FLOAT32:
        given = reference.OPERANDS[precision](a, w, _C._test_scratch(1, 1)["bf16_rows"])
    # these are rougher where results are rounded to bfloat16 or int8 next
    rough = precision in (INT8, BFLOAT16) and ("gelu" in activation or activation == "silu")
    rtol = 3e-4 if rough else 1e-7
    atol = 2e-4 if precision else 3e-5
    np.testing.assert_allclose(out, reference.gemm(*given, bias, None, activation), rtol=rtol, atol=atol)


@pytest.mark.parametrize("activation", ["none", "gelu", "relu6"])
def test_gemm_clipped(isa, rng, guarded, activation, precision):
    """Between bounds of each column, before the activation; infinite ones leave all as it is."""
    for n in (45, 96):
        a, w, bias = (rng.normal(size=s).astype(np.float32) for s in ((35, 33), (n, 33), (n,)))
        low, high = -np.abs(rng.normal(size=n)), np.abs(rng.normal(size=n))
        bounds = np.stack([low, high]).astype(np.float32)
        free = product(a, w, bias, precision=precision)
        found = product(a, w, bias, activation=activation, precision=precision, guard=guarded, bounds=bounds)
        clipped = np.clip(free, *bounds)
        assert 0.2 < (clipped != free).mean() < 0.99
        np.testing.assert_allclose(found, reference.ACTIVATIONS[activation](clipped.astype(np.float64)), atol=1e-3)
        open_ended = np.repeat(np.array([[-np.inf], [np.inf]], np.float32), n, 1)
        np.testing.assert_array_equal(product(a, w, bias, precision=precision, bounds=open_ended), free)


def test_gemm_rows_do_not_depend_on_their_number(isa, rng, precision):
    """Row i is bitwise the same whatever M is: a tile's height never changes the order of the sum."""
    n, most = 100, 140
    for k, more in ((768, False), (40, True)):
        a, w, bias = (rng.normal(size=s).astype(np.float32) for s in ((most, k), (n, k), (n,)))
        residual = rng.normal(size=(most, n)).astype(np.float32)
        whole = product(a, w, *((bias, residual) if more else ()), precision=precision)
        for m in (*range(1, 61), 64, 65, 96, 97, 129):
            given = (bias, residual[:m]) if more else ()
            np.testing.assert_array_equal(product(a[:m], w, *given, precision=precision), whole[:m])


def test_gemm_of_long_rows(isa, rng, precision):
    """Rows so long that few of them fit a block of the cache: blocks of rows, and steps along each."""
    a, w = (rng.normal(size=s).astype(np.float32) for s in ((70, 17000), (40, 17000)))
    given = (a, w) if precision == FLOAT32 else reference.OPERANDS[precision](a, w, _C._test_scratch(1, 1)["bf16_rows"])
    out = product(a, w, precision=precision)
    np.testing.assert_allclose(out, reference.gemm(*given), atol=5e-3)
    for rows in (slice(1), slice(31, 66)):
        np.testing.assert_array_equal(product(a[rows], w, precision=precision), out[rows])


def test_gemm_adds_to_its_residual_in_place(isa, rng, precision):
    a, w, residual = (rng.normal(size=s).astype(np.float32) for s in ((40, 70), (75, 70), (40, 75)))
    expected = product(a, w, None, residual, precision=precision)
    np.testing.assert_array_equal(product(a, w, None, residual, precision=precision, out=residual), expected)


@pytest.mark.parametrize("activation", _C.ACTIVATIONS)
def test_gemm_activation_of_extremes(isa, activation, precision):
    """NaN stays in its row; far from zero an activation is its limit."""
    a, w = np.full((5, 64), 1.0, np.float32), np.ones((70, 64), np.float32)
    a[1], a[3] = np.nan, -1.0
    out = product(np.float32(1e6) * a, w, activation=activation, precision=precision)
    assert np.isnan(out[1]).all()
    given = np.array([64e6, -64e6])
    with np.errstate(over="ignore"):
        limits = reference.ACTIVATIONS[activation](given)
    np.testing.assert_allclose(out[[0, 2, 4]], limits[0], rtol=1e-2)
    np.testing.assert_allclose(out[3], limits[1], rtol=1e-2, atol=1e-5)


def test_int8_keeps_outliers_apart(isa, rng):
    """Up to six elements of a row, however large, cost the others nothing; more of them set the scale."""
    for k in (64, 768, 771):
        a, w = (rng.normal(size=s).astype(np.float32) for s in ((8, k), (50, k)))
        clean = np.abs(product(a, w, precision=INT8) - reference.gemm(a, w)).max()
        for row in range(8):
            a[row, rng.choice(k, 6, replace=False)] *= 10.0 ** rng.integers(1, 4)
        weights = reference.int8_weights(w)
        np.testing.assert_allclose(product(a, w, precision=INT8), reference.gemm(a, weights), atol=2 * clean + 1e-2)
        a[0, rng.choice(k, 7, replace=False)] = 3000.0
        wrong = np.abs(product(a, w, precision=INT8) - reference.gemm(a, weights)).max(1)
        assert wrong[0] > 20 * wrong[1:].max()


def test_int8_edge_rows(isa, rng):
    """Zeros give zeros, a row of one value is exact up to the weights, NaN and inf stay in their rows."""
    a, w = np.zeros((5, 40), np.float32), rng.normal(size=(33, 40)).astype(np.float32)
    a[1], a[2, 7], a[3, 5], a[4] = 1.5, 2.0, np.nan, rng.normal(size=40)
    a[2, 8] = np.inf
    with np.errstate(invalid="ignore"):
        out = product(a, w, precision=INT8)
    weights = reference.int8_weights(w)
    np.testing.assert_array_equal(out[0], 0)
    np.testing.assert_allclose(out[1], reference.gemm(a[1:2], weights)[0], atol=1e-4)
    assert np.isnan(out[2:4]).all() and np.isfinite(out[4]).all()


def test_bfloat16_rows_out(isa, rng):
    """An epilogue that writes bfloat16 rounds what it would have written as float32."""
    if not _C._test_scratch(1, 1)["bf16_rows"]:
        pytest.skip(f"{isa} has no native bfloat16")
    for m, n, k in ((1, 1, 4), (17, 45, 33), (40, 96, 64)):
        a, w, bias = (rng.normal(size=s).astype(np.float32) for s in ((m, k), (n, k), (n,)))
        sizes = _C._test_scratch(n, k, BFLOAT16)
        packed, operand = np.zeros(sizes["packed"], np.float32), np.zeros((m, sizes["operand"]), np.float32)
        given = [a, w, bias, None, packed, operand]
        plain = run("gemm", np.zeros((m, n), np.float32), given, (m, n, k, 0, BFLOAT16))
        out = run("gemm", np.zeros((m, n), np.float32), given, (m, n, k, 0, BFLOAT16, 1))
        rounded = reference.to_bfloat16(plain)
        np.testing.assert_array_equal(out.view(np.uint16)[:, :n], rounded.view(np.uint32) >> 16)


def test_layer_norm(isa, rng, guarded):
    for d in (*sizes_around(16), 768):
        x, gamma, beta = rng.normal(3, 2, size=(9, d)), rng.normal(size=d), rng.normal(size=d)
        buffers = [guarded(v, shift) for v, shift in ((x, 0), (gamma, 0), (beta, 1))]
        out = run("norm", guarded(np.zeros((9, d))), buffers, (9, d, 1e-5, 0))
        np.testing.assert_allclose(out, reference.layer_norm(*buffers, 1e-5), atol=2e-5)


def test_rms_norm(isa, rng, guarded):
    for d in (*sizes_around(16), 768):
        x, gamma = guarded(rng.normal(1, 2, size=(9, d)), 0), guarded(rng.normal(size=d), 1)
        out = run("norm", guarded(np.zeros((9, d))), [x, gamma, None], (9, d, 1e-6, 0))
        np.testing.assert_allclose(out, reference.rms_norm(x, gamma, 1e-6), atol=2e-5)
        np.testing.assert_array_equal(run("norm", x.copy(), [x, gamma, None], (9, d, 1e-6, 0)), out)


def test_norm_rows_do_not_depend_on_their_number(isa, rng, guarded):
    for d in (*sizes_around(16), 96, 768):
        x, gamma, beta = rng.normal(3, 2, size=(7, d)), rng.normal(size=d), guarded(rng.normal(size=d))
        x[2, d // 2], x[5] = np.nan, 0.0
        x, gamma = guarded(x), guarded(gamma)
        for offset in (beta, None):
            given = [x, gamma, offset]
            together = run("norm", np.zeros((7, d), np.float32), given, (7, d, 1e-5, 0))
            assert np.isnan(together[2]).all() and np.isfinite(np.delete(together, 2, axis=0)).all()
            for r in range(7):
                alone = run("norm", guarded(np.zeros(d)), [guarded(x[r]), *given[1:]], (1, d, 1e-5, 0))
                np.testing.assert_array_equal(alone.view(np.uint32), together[r].view(np.uint32), err_msg=f"{r} of {d}")
            if not _C._test_scratch(1, 1)["bf16_rows"]:
                continue
            words = guarded(np.full((7, -(-d // 32) * 16), np.nan))
            half = run("norm", words, given, (7, d, 1e-5, 1)).view(np.uint16).reshape(7, -1)
            rows = [0, 1, 3, 4, 5, 6]
            rounded = reference.to_bfloat16(together[rows]).view(np.uint32) >> 16
            np.testing.assert_array_equal(half[rows, :d], rounded)
            assert not half[rows, d:].any()


def test_softmax(isa, rng, guarded):
    for n in (*sizes_around(16), 577):
        x, bias = rng.normal(0, 8, size=n), np.where(rng.random(n) < 0.3, -np.inf, 0.0)
        for b in (None, bias, np.full(n, -np.inf)):
            scores = guarded(x)
            expected = reference.softmax(scores, 0.3, b)
            out = run("softmax", scores, [scores, guarded(b)], (n, 0.3, 1, 0, 0))
            np.testing.assert_allclose(out, expected, atol=3e-7)


def test_softmax_of_rows(isa, rng, guarded):
    """Rows with a bias each; where bfloat16 is native also as bfloat16, with zeros up to whole vectors."""
    for n in (1, 15, 16, 33, 64, 129, 300):
        x, bias = (rng.normal(0, 4, (5, n)).astype(np.float32) for _ in range(2))
        expected = np.stack([reference.softmax(row, 0.5, b) for row, b in zip(x, bias, strict=True)])
        out = run("softmax", guarded(np.zeros((5, n))), [guarded(x), guarded(bias)], (n, 0.5, 5, n, 0))
        np.testing.assert_allclose(out, expected, atol=3e-7)
        if _C._test_scratch(1, 1)["bf16_rows"]:
            whole = -(-n // 16) * 16
            words = guarded(np.full((5, whole // 2), np.nan))
            run("softmax", words, [guarded(x), guarded(bias)], (n, 0.5, 5, n, 1))
            shares = (words.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            np.testing.assert_allclose(shares[:, :n], expected, atol=1e-7, rtol=2**-8)
            np.testing.assert_array_equal(shares[:, n:], 0)


def test_softmax_rows_do_not_depend_on_their_number(isa, rng, guarded):
    """Several rows go through the registers at once; among them masked ones and such as are not finite, next to each
    other and apart."""
    for n in (1, 5, 15, 16, 33, 50, 64, 129, 300):
        x, bias = (rng.normal(0, 4, (19, n)).astype(np.float32) for _ in range(2))
        bias[[2, 4, 13]], x[[5, 9, 14], n // 2], x[17, 0] = -np.inf, np.nan, np.inf
        x[10, 0], bias[10, 1 : n - 1] = np.nan, -np.inf
        for half in range(1 + bool(_C._test_scratch(1, 1)["bf16_rows"])):
            width = -(-n // 16) * 8 if half else n

            def softmax(rows, n=n, half=half, width=width, x=x, bias=bias):
                out = guarded(np.zeros((len(rows), width)))
                given = [guarded(x[rows]), guarded(bias[rows])]
                return run("softmax", out, given, (n, 0.5, len(rows), n, half)).view(np.uint32)

            together = softmax(list(range(19)))
            for r in range(19):
                np.testing.assert_array_equal(together[r], softmax([r])[0], err_msg=f"row {r} of {n}")
            assert not together[[2, 4, 13]].any() and together[[5, 9, 14, 17]].any(axis=1).all()
            rows = np.zeros((19, 16 * (-(-n // 16) | 1)), np.float32)
            rows[:, :n] = x
            run("softmax", rows, [None, guarded(bias)], (n, 0.5, 19, n, half))
            np.testing.assert_array_equal(rows[:, :width].view(np.uint32), together, err_msg=f"in place, {n}")


@pytest.mark.parametrize("activation", _C.ACTIVATIONS)
def test_activate(isa, guarded, activation):
    x = np.concatenate([np.linspace(-100, 100, 4003), np.linspace(-6, 6, 4003), [0.0, -0.0, 1e-30, -1e-30]])
    for n in (1, 15, 16, 17, x.size):
        buffer = guarded(x[:n])
        out = run("activate", guarded(np.zeros(n)), [buffer, None], (_C.ACTIVATIONS.index(activation), n))
        expected = reference.ACTIVATIONS[activation](buffer.astype(np.float64))
        np.testing.assert_allclose(out, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("activation", _C.ACTIVATIONS)
def test_gate(isa, rng, guarded, activation):
    for n in (1, 15, 16, 17, 100):
        y, x = guarded(rng.normal(0, 3, size=n)), guarded(rng.normal(size=n))
        expected = reference.ACTIVATIONS[activation](y.astype(np.float64)) * x
        out = run("gate", y, [x], (_C.ACTIVATIONS.index(activation), n))
        np.testing.assert_allclose(out, expected, atol=2e-6, rtol=2e-6)


@pytest.mark.parametrize("activation", _C.ACTIVATIONS)
def test_activate_passes_nan_and_inf(isa, activation):
    x = np.array([np.nan, np.inf] * 16, np.float32)
    out = run("activate", np.zeros(32, np.float32), [x, None], (_C.ACTIVATIONS.index(activation), 32))
    limit = {"relu6": 6.0, "tanh": 1.0}.get(activation, np.inf)
    assert np.isnan(out[::2]).all()
    np.testing.assert_array_equal(out[1::2], limit)


def test_softmax_keeps_nan(isa):
    for n in (1, 3, 10, 17, 40):
        scores = np.full(n, np.nan, np.float32)
        out = run("softmax", scores, [scores, None], (n, 1.0, 1, 0, 0))
        assert np.isnan(out).all()


def test_nan_stays_in_its_row(isa, rng):
    a, w = (rng.normal(size=s).astype(np.float32) for s in ((9, 40), (20, 40)))
    clean = product(a, w)
    a[4, 3] = np.nan
    out = product(a, w)
    assert np.isnan(out[4]).all()
    np.testing.assert_array_equal(np.delete(out, 4, 0), np.delete(clean, 4, 0))


def test_rows(isa, rng, guarded):
    for n in sizes_around(16):
        x, y = guarded(rng.normal(size=n)), guarded(rng.normal(size=n))
        np.testing.assert_allclose(run("l2_normalize", guarded(x), [x], (n,)), reference.l2_normalize(x), atol=1e-6)
        broken = x.copy()
        broken[n // 2] = np.nan
        assert np.isnan(run("l2_normalize", guarded(broken), [broken], (n,))).all()
        np.testing.assert_allclose(run("add", guarded(y), [x], (n,)), y + x, atol=1e-6)
        np.testing.assert_allclose(run("scale", guarded(y), [], (n, 0.7)), y * np.float32(0.7), atol=1e-6)
        low, high = guarded(-np.abs(rng.normal(size=n))), guarded(np.abs(rng.normal(size=n)))
        np.testing.assert_array_equal(run("clamp", guarded(x), [low, high], (n,)), np.clip(x, low, high))
        assert np.isnan(run("clamp", guarded(broken), [low, high], (n,))).sum() == 1
        rows = rng.normal(size=(7, n)).astype(np.float32)
        shares = rng.normal(size=7).astype(np.float32)
        found = run("dots", guarded(np.zeros(7)), [x, guarded(rows[::-1])], (7, n))
        np.testing.assert_allclose(found, rows.astype(np.float64) @ x, atol=1e-5 * n)
        found = run("mix", guarded(np.zeros(n)), [guarded(shares), guarded(rows[::-1])], (7, n))
        np.testing.assert_allclose(found, shares.astype(np.float64) @ rows, atol=1e-5)
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


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("reach", [0, 1, 5, 40, 200])
def test_attention_with_a_bias_by_distance(isa, rng, guarded, reach, causal):
    """Queries in the middle of the keys, a table that ends before the furthest key or after it."""
    for tq, tk, first in ((1, 1, 0), (1, 60, 59), (7, 7, 0), (60, 77, 17), (77, 77, 0)):
        q, k, v = (guarded(rng.normal(size=(t, 16))) for t in (tq, tk, tk))
        relative = guarded(rng.normal(0, 2, size=2 * reach + 1))
        bias = guarded(np.where(np.arange(tk) < max(1, tk - 3), 0.0, -np.inf))
        scratch = guarded(np.zeros(_C._test_scratch(tk, 16)["attention"]))
        for b in (None, bias):
            out = run("attention", guarded(np.zeros((tq, 16))), [q, k, v, b, scratch, relative],
                      (tq, tk, 16, causal, 1.0, 0, reach, first))  # fmt: skip
            expected = reference.attention(q, k, v, 1.0, causal, b, relative, first)
            np.testing.assert_allclose(out, expected, atol=3e-5)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("hd", [2, 16, 40, 64, 72, 80, 88, 104])
def test_attention_in_bfloat16(isa, rng, hd, causal):
    if not _C._test_scratch(1, 1)["bf16_rows"]:
        pytest.skip(f"{isa} has no native bfloat16")
    for t in (1, 7, 50, 57, 77, 150, 300):
        q, k, v = (reference.to_bfloat16(rng.normal(size=(t, hd)).astype(np.float32)) for _ in range(3))
        # rows of bfloat16 in memory that a product may read past: zeros there
        rows = [np.zeros((t * hd + 64,), np.uint16) for _ in range(3)]
        for row, x in zip(rows, (q, k, v), strict=True):
            row[: t * hd] = (x.view(np.uint32) >> 16).reshape(-1)
        bias = np.where(np.arange(t) < max(1, t - 3), 0.0, -np.inf).astype(np.float32)
        scratch = np.zeros(_C._test_scratch(t, hd)["attention"] + 64, np.float32)
        for b in (None, bias):
            out = run("attention", np.zeros((t, hd), np.float32), [*rows, b, scratch], (t, t, hd, causal, hd**-0.5, 1))
            np.testing.assert_allclose(out, reference.attention(q, k, v, hd**-0.5, causal, b), atol=2e-2)
