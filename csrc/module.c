/* module.c: the CPython face of the core: parse, borrow arrays, release the GIL, map errors.
 *
 * Every computation is a call into model/, image/ or kernels/; what is here and in the module_*.c beside it
 * is translation.
 */
#define BVL_IMPORTS_NUMPY
#include "module.h"

#include "arena.h"
#include "cpu.h"
#include "image/stb.h"
#include "kernels/kernels.h"
#include "kernels/openblas.h"
#include "model/program.h"
#include "parallel.h"

extern const char *const bvl_pool_names[], *const bvl_part_names[], *const bvl_row_kind_names[];
extern const char *const bvl_filter_names[];

/* A tuple of strings. */
static PyObject *name_tuple(const char *const *names, int count) {
    PyObject *tuple = PyTuple_New(count);
    for (int i = 0; tuple && i < count; i++)
        if (PyTuple_SetItem(tuple, i, PyUnicode_FromString(names[i])) < 0) Py_CLEAR(tuple);
    return tuple;
}

static PyObject *config(PyObject *module, PyObject *unused) {
    const char *stb = bvl_stb_version(), *blas = bvl_openblas_config();
    bvl_error err;
    int threads;
    (void)module, (void)unused;
    if (bvl_default_threads(&threads, &err) != BVL_OK) return bvl_raise(&err);
    return Py_BuildValue("{s:s,s:s,s:s,s:s,s:i,s:i,s:L,s:z,s:z}", "cpu", bvl_cpu_name(), "isa",
                         bvl_isa_names[bvl_kernels_active()->isa], "isa_detected",
                         bvl_isa_names[bvl_kernels_best()], "isa_reason", bvl_kernels_reason(), "cpus",
                         bvl_cpu_count(), "num_threads", threads, "l2_bytes", (long long)bvl_cpu_l2_bytes(),
                         "stb", stb, "openblas", blas);
}

static PyObject *usable_isas(PyObject *module, PyObject *unused) {
    const char *names[BVL_ISA_COUNT];
    int count = 0;
    (void)module, (void)unused;
    for (int isa = 0; isa < BVL_ISA_COUNT; isa++)
        if (bvl_kernels_usable((bvl_isa)isa)) names[count++] = bvl_isa_names[isa];
    return name_tuple(names, count);
}

static PyObject *set_isa(PyObject *module, PyObject *args) {
    const char *name = NULL;
    bvl_error err;
    (void)module;
    if (!PyArg_ParseTuple(args, "|z", &name)) return NULL;
    if (bvl_kernels_select(name, &err) != BVL_OK) return bvl_raise(&err);
    Py_RETURN_NONE;
}

static PyObject *checksum(PyObject *module, PyObject *args) {
    Py_buffer buffer;
    int threads;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*i", &buffer, &threads)) return NULL;
    if (buffer.len % BVL_ALIGNMENT) {
        PyBuffer_Release(&buffer);
        return PyErr_Format(PyExc_ValueError, "checksum: expected a multiple of %d bytes", BVL_ALIGNMENT);
    }
    PyThreadState *state = PyEval_SaveThread();
    const uint64_t sum = bvl_checksum(buffer.buf, (size_t)buffer.len, BVL_MAX(1, BVL_MIN(threads, 256)));
    PyEval_RestoreThread(state);
    PyBuffer_Release(&buffer);
    return PyLong_FromUnsignedLongLong(sum);
}

static PyObject *trim(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    PyThreadState *state = PyEval_SaveThread();
    bvl_trim();
    PyEval_RestoreThread(state);
    Py_RETURN_NONE;
}

static PyObject *alloc_fail_at(PyObject *module, PyObject *args) {
    long n;
    (void)module;
    if (!PyArg_ParseTuple(args, "l", &n)) return NULL;
    bvl_alloc_fail_at(n);
    Py_RETURN_NONE;
}

static PyObject *alloc_live(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return PyLong_FromLong(bvl_alloc_live());
}

static PyObject *default_threads(PyObject *module, PyObject *unused) {
    bvl_error err;
    int threads;
    (void)module, (void)unused;
    if (bvl_default_threads(&threads, &err) != BVL_OK) return bvl_raise(&err);
    return PyLong_FromLong(threads);
}

static PyObject *set_openblas_path(PyObject *module, PyObject *args) {
    const char *path;
    (void)module;
    if (!PyArg_ParseTuple(args, "s", &path)) return NULL;
    bvl_openblas_set_path(path);
    Py_RETURN_NONE;
}

static PyObject *matmul_nt(PyObject *module, PyObject *args) {
    PyObject *ao, *bo;
    int threads;
    float *out;
    bvl_error err;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOi", &ao, &bo, &threads)) return NULL;
    PyArrayObject *a = bvl_borrow(ao, "a", NPY_FLOAT32, 2),
                  *b = a ? bvl_borrow(bo, "b", NPY_FLOAT32, 2) : NULL;
    if (!b) return NULL;
    const int64_t M = PyArray_DIM(a, 0), N = PyArray_DIM(b, 0), K = PyArray_DIM(a, 1);
    if (PyArray_DIM(b, 1) != K || K < 1 || BVL_MAX(BVL_MAX(M, N), K) > INT32_MAX)
        return PyErr_Format(PyExc_ValueError, "matmul_nt: (%zd, %zd) and (%zd, %zd): expected equal columns",
                            (Py_ssize_t)M, (Py_ssize_t)K, (Py_ssize_t)N, (Py_ssize_t)PyArray_DIM(b, 1));
    if (bvl_openblas_open(threads, &err) != BVL_OK) return bvl_raise(&err);
    const int64_t shape[2] = {M, N};
    PyObject *result = bvl_new_array(2, shape, NPY_FLOAT32, (void **)&out);
    if (!result || M < 1 || N < 1) return result;
    PyThreadState *state = PyEval_SaveThread();
    bvl_openblas_gemm_nt(out, N, PyArray_DATA(a), K, PyArray_DATA(b), K, M, N, K);
    bvl_openblas_open(1, &err); /* models on OpenBLAS split their own work */
    PyEval_RestoreThread(state);
    return result;
}

static PyMethodDef functions[] = {
    {"config", config, METH_NOARGS,
     "config() -> dict: processor, level in use and why, threads, optional parts"},
    {"usable_isas", usable_isas, METH_NOARGS, "usable_isas() -> names of the levels this machine runs"},
    {"set_isa", set_isa, METH_VARARGS, "set_isa(name=None): level of programs built from now on"},
    {"checksum", checksum, METH_VARARGS, "checksum(buffer, num_threads) -> 64 bits"},
    {"trim", trim, METH_NOARGS, "trim(): give memory that nobody uses back to the system"},
    {"default_threads", default_threads, METH_NOARGS, "default_threads() -> int"},
    {"preprocess", bvl_py_preprocess, METH_VARARGS,
     "preprocess(out, (image, height, width, filter, top, left), table): on this thread, without the GIL"},
    {"arrow_pixels", bvl_py_arrow_pixels, METH_VARARGS,
     "arrow_pixels(capsule, height, width) -> uint8 (H, W, 4)"},
    {"resize_floats", bvl_py_resize_floats, METH_VARARGS,
     "resize_floats(image, height, width, filter) -> float32 array"},
    {"resize", bvl_py_resize, METH_VARARGS, "resize(image, height, width, filter, 0, 0) -> uint8 array"},
    {"stb_decode", bvl_py_stb_decode, METH_VARARGS, "stb_decode(bytes, max_pixels) -> uint8 (H, W, 3)"},
    {"log_mel", bvl_py_log_mel, METH_VARARGS,
     "log_mel(sound, window, filters, length, hop, center, mels_first, remove_mean, emphasis, floor, scale, "
     "num_threads) -> scale * log(max(mel energies, floor)), (frames, mels) or (mels, frames) float32"},
    {"search", bvl_py_search, METH_VARARGS,
     "search(rows, scales, mask, queries, k, num_threads) -> scores, numbers of the k best rows of each "
     "query"},
    {"set_openblas_path", set_openblas_path, METH_VARARGS, "set_openblas_path(path)"},
    {"matmul_nt", matmul_nt, METH_VARARGS, "matmul_nt(a, b, num_threads) -> a @ b.T by OpenBLAS"},
    {"alloc_fail_at", alloc_fail_at, METH_VARARGS,
     "alloc_fail_at(n): the n-th allocation from now fails once"},
    {"alloc_live", alloc_live, METH_NOARGS, "alloc_live() -> allocations of the core that are live"},
#ifdef BVL_TESTS
    {"_test_kernel", bvl_py_test_kernel, METH_VARARGS, NULL},
    {"_test_scratch", bvl_py_test_scratch, METH_VARARGS, NULL},
#endif
    {NULL, NULL, 0, NULL}};

static int count_names(const char *const *names) {
    int count = 0;
    while (names[count]) count++;
    return count;
}

static PyObject *describe_ops(void) {
    PyObject *ops = PyDict_New();
    for (int i = 0; ops && bvl_ops[i]; i++) {
        const bvl_op *op = bvl_ops[i];
        PyObject *entry = Py_BuildValue("(NN)", name_tuple(op->params, count_names(op->params)),
                                        name_tuple(op->weights, count_names(op->weights)));
        if (!entry || PyDict_SetItemString(ops, op->name, entry) < 0) Py_CLEAR(ops);
        Py_XDECREF(entry);
    }
    return ops;
}

static int add_object(PyObject *module, const char *name, PyObject *object) {
    const int status = object ? PyModule_AddObjectRef(module, name, object) : -1;
    Py_XDECREF(object);
    return status;
}

static int module_exec(PyObject *module) {
    bvl_error err;
    if (PyArray_ImportNumPyAPI() < 0) return -1;
    bvl_parallel_init();
    if (bvl_kernels_select(NULL, &err) != BVL_OK) {
        bvl_raise(&err);
        return -1;
    }
    if (add_object(module, "Program", bvl_program_type(module)) < 0 ||
        add_object(module, "Context", bvl_context_type(module)) < 0 ||
        add_object(module, "Cache", bvl_cache_type(module)) < 0 ||
        add_object(module, "OPS", describe_ops()) < 0 ||
        add_object(module, "ROWS", name_tuple(bvl_part_names, count_names(bvl_part_names))) < 0 ||
        add_object(module, "ROW_KINDS", name_tuple(bvl_row_kind_names, count_names(bvl_row_kind_names))) <
            0 ||
        add_object(module, "FILTERS", name_tuple(bvl_filter_names, count_names(bvl_filter_names))) < 0 ||
        add_object(module, "ACTIVATIONS", name_tuple(bvl_activation_names, BVL_ACT_COUNT)) < 0 ||
        add_object(module, "ISAS", name_tuple(bvl_isa_names, BVL_ISA_COUNT)) < 0 ||
        add_object(module, "PRECISIONS", name_tuple(bvl_precision_names, BVL_PRECISION_COUNT)) < 0)
        return -1;
    return add_object(module, "POOLS", name_tuple(bvl_pool_names, count_names(bvl_pool_names)));
}

static PyModuleDef_Slot module_slots[] = {{Py_mod_exec, module_exec}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_C", "The core of beyondvl.", 0, functions, module_slots, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__C(void);
PyMODINIT_FUNC PyInit__C(void) {
    return PyModuleDef_Init(&definition);
}
