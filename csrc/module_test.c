/* module_test.c: single kernels of the active level, for tests; left out of builds that are not for tests. */
#include "module.h"

#include <string.h>

#include "kernels/kernels.h"
#include "ops/attention.h"

#ifdef BVL_TESTS

/* x: a, w ([K, N] when transposed), bias, residual, packed, operand rows or NULL, bounds [2, N]; n: M N K act
 * precision bf16 times lda ldc. Operand rows are lda apart, or as far as they are long; rows of `out` and
 * residual ldc, or N words, also where `out` is bfloat16. The product alone runs `times` times (benchmarks),
 * or once. */
static void run_gemm(const bvl_kernels *k, bool transposed, float *out, float *const *x, const double *n) {
    const int64_t M = (int64_t)n[0], N = (int64_t)n[1], K = (int64_t)n[2], panels = bvl_panels(k, N);
    const bvl_product *product = &k->product[(int)n[4]];
    const int64_t ldc = n[8] > 0 ? (int64_t)n[8] : N;
    const bvl_epilogue e = {x[2], x[3], ldc, (bvl_activation)n[3], n[5] != 0, x[6], x[6] ? x[6] + N : NULL};
    const int64_t times = BVL_MAX((int64_t)n[6], 1);
    const int64_t words = n[7] > 0 ? (int64_t)n[7] : product->load ? product->operand_words(K) : K;
    product->pack(x[4], x[1], transposed ? N : K, N, K, transposed, 0, panels);
    if (product->load) product->load(x[5], words, x[0], K, M, K);
    for (int64_t i = 0; i < times; i++)
        product->gemm(out, ldc, product->load ? x[5] : x[0], words, x[4], M, N, K, 0, panels, &e);
}

/* _test_kernel(name, out, arrays, numbers): runs one kernel of the active table in place on flat buffers;
 * tests/test_kernels.py calls each beside its NumPy reference. */
static bool run_kernel(const char *name, float *out, float *const *x, const double *n) {
    const bvl_kernels *k = bvl_kernels_active();
    const int64_t i0 = (int64_t)n[0], i1 = (int64_t)n[1], i2 = (int64_t)n[2];
    if (strncmp(name, "gemm", 4) == 0) {
        run_gemm(k, strcmp(name, "gemm_transposed") == 0, out, x, n);
    } else if (strcmp(name, "norm") == 0) { /* x: x, gamma, beta; n: rows D eps bf16 */
        const int64_t ldy = n[3] != 0 ? bvl_round_up(i1, 32) / 2 : i1;
        k->norm(out, ldy, x[0], i1, x[1], x[2], (float)n[2], i0, i1, n[3] != 0);
    } else if (strcmp(name, "softmax") == 0) { /* out [rows, n]; x: scores, bias; n: n scale rows ldb bf16;
                                                * scores NULL: in place, rows of a slot apart */
        const int64_t ldx = x[0] ? i0 : bvl_padded(i0);
        const int64_t ldy = n[4] != 0 && x[0] ? bvl_round_up(i0, 16) / 2 : ldx;
        k->softmax(out, ldy, x[0] ? x[0] : out, ldx, i2, i0, (float)n[1], x[1], (int64_t)n[3], n[4] != 0);
    } else if (strcmp(name, "activate") == 0) { /* x: x, bias; n: act n */
        k->activate(out, x[0], x[1], (bvl_activation)i0, i1);
    } else if (strcmp(name, "gate") == 0) { /* out in place; x: x; n: act n */
        k->gate(out, x[0], (bvl_activation)i0, i1);
    } else if (strcmp(name, "l2_normalize") == 0) {
        k->l2_normalize(out, x[0], i0);
    } else if (strcmp(name, "add") == 0) {
        k->add(out, x[0], i0);
    } else if (strcmp(name, "clamp") == 0) { /* out in place; x: low, high */
        k->clamp(out, x[0], x[1], i0);
    } else if (strcmp(name, "dots") == 0) { /* x: q, rows, the last of which comes first; n: n D */
        k->dots(out, x[0], x[1] + (i0 - 1) * i1, -i1, i0, i1);
    } else if (strcmp(name, "mix") == 0) { /* x: weights, rows, as of dots */
        k->mix(out, x[0], x[1] + (i0 - 1) * i1, -i1, i0, i1);
    } else if (strcmp(name, "scale") == 0) { /* n: n s */
        k->scale(out, (float)n[1], i0);
    } else if (strcmp(name, "depthwise") ==
               0) { /* x: x, w, bias; n: C H W kernel stride pad out_h out_w act */
        const bvl_conv_shape s = {i0,
                                  i1,
                                  i2,
                                  (int64_t)n[6],
                                  (int64_t)n[7],
                                  (int64_t)n[3],
                                  (int64_t)n[4],
                                  (int64_t)n[5],
                                  (int64_t)n[5],
                                  i0,
                                  i0};
        k->depthwise(out, x[0], x[1], x[2], (bvl_activation)n[8], &s, 0, s.out_height);
    } else if (strcmp(name, "attention") ==
               0) { /* x: q k v bias scratch relative; n: Tq Tk hd causal scale bf16 reach first */
        const bool bf16 = n[5] != 0; /* q, k and v are rows of bfloat16 */
        const int64_t ld = bf16 ? i2 / 2 : i2;
        const bvl_attention_shape s = {.Tq = i0,
                                       .Tk = i1,
                                       .hd = i2,
                                       .ldq = ld,
                                       .ldkv = ld,
                                       .ldo = i2,
                                       .scale = (float)n[4],
                                       .causal = n[3] != 0,
                                       .bias = x[3],
                                       .relative = x[5],
                                       .reach = (int64_t)n[6],
                                       .first = (int64_t)n[7],
                                       .bf16 = bf16};
        bvl_attention(k, out, x[0], x[1], x[2], &s, x[4]);
    } else {
        return false;
    }
    return true;
}

PyObject *bvl_py_test_kernel(PyObject *module, PyObject *args) {
    const char *name;
    PyObject *out, *arrays, *numbers;
    float *x[7] = {NULL};
    double n[9] = {0};
    (void)module;
    if (!PyArg_ParseTuple(args, "sOO!O!", &name, &out, &PyTuple_Type, &arrays, &PyTuple_Type, &numbers))
        return NULL;
    for (Py_ssize_t i = 0; i < PyTuple_Size(arrays) && i < 7; i++)
        if (PyTuple_GetItem(arrays, i) != Py_None)
            x[i] = PyArray_DATA((PyArrayObject *)PyTuple_GetItem(arrays, i));
    for (Py_ssize_t i = 0; i < PyTuple_Size(numbers) && i < 9; i++)
        n[i] = PyFloat_AsDouble(PyTuple_GetItem(numbers, i));
    if (PyErr_Occurred()) return NULL;
    PyThreadState *state = PyEval_SaveThread();
    const bool known = run_kernel(name, PyArray_DATA((PyArrayObject *)out), x, n);
    PyEval_RestoreThread(state);
    if (!known) return PyErr_Format(PyExc_ValueError, "no kernel '%s'", name);
    Py_RETURN_NONE;
}

PyObject *bvl_py_test_scratch(PyObject *module, PyObject *args) {
    const bvl_kernels *k = bvl_kernels_active();
    long long N, K;
    int p = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "LL|i", &N, &K, &p)) return NULL;
    p = BVL_MAX(0, BVL_MIN(p, BVL_PRECISION_COUNT - 1));
    const bvl_product *product = &k->product[p];
    if (!product->gemm)
        return PyErr_Format(PyExc_ValueError, "%s: not at this level", bvl_precision_names[p]);
    return Py_BuildValue("{s:L,s:L,s:L,s:i,s:i,s:O}", "packed", (long long)product->packed_words(N, K),
                         "operand", (long long)product->operand_words(K), "attention",
                         (long long)bvl_attention_scratch(k, N, K), "mr", k->mr, "nr", k->nr, "bf16_rows",
                         k->bf16_rows ? Py_True : Py_False);
}

#endif
