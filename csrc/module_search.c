/* module_search.c: rows and queries between Python and ops/search.c. */
#include "module.h"

#include "ops/search.h"

/* The form of a row's numbers by the array's type; NULL and ValueError for another type. */
static PyArrayObject *borrow_rows(PyObject *object, bvl_row_form *form) {
    const int type = PyArray_Check(object) ? PyArray_TYPE((PyArrayObject *)object) : NPY_FLOAT32;
    *form = type == NPY_UINT16  ? BVL_ROWS_BFLOAT16
            : type == NPY_INT8  ? BVL_ROWS_INT8
            : type == NPY_UINT8 ? BVL_ROWS_BINARY
                                : BVL_ROWS_FLOAT32;
    return bvl_borrow(object, "rows", *form == BVL_ROWS_FLOAT32 ? NPY_FLOAT32 : type, 2);
}

/* One number for each row, or NULL for None; *data is left as it is then. */
static bool borrow_each(PyObject *object, const char *name, int type, int64_t count, const void **data) {
    if (object == Py_None) return true;
    PyArrayObject *each = bvl_borrow(object, name, type, 1);
    if (each && PyArray_DIM(each, 0) != count) {
        PyErr_Format(PyExc_ValueError, "%s: found %zd, expected %lld, one of each row", name,
                     (Py_ssize_t)PyArray_DIM(each, 0), (long long)count);
        return false;
    }
    if (each) *data = PyArray_DATA(each);
    return each != NULL;
}

PyObject *bvl_py_search(PyObject *module, PyObject *args) {
    PyObject *rows, *scales, *mask, *queries;
    long long k;
    int threads;
    bvl_corpus corpus = {0};
    bvl_error err;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOOOLi", &rows, &scales, &mask, &queries, &k, &threads)) return NULL;
    PyArrayObject *x = borrow_rows(rows, &corpus.form);
    PyArrayObject *q = x ? bvl_borrow(queries, "queries", NPY_FLOAT32, 2) : NULL;
    if (!q) return NULL;
    corpus.rows = PyArray_DATA(x);
    corpus.count = PyArray_DIM(x, 0);
    corpus.D = corpus.form == BVL_ROWS_BINARY ? PyArray_DIM(q, 1) : PyArray_DIM(x, 1);
    if (PyArray_DIM(q, 1) != corpus.D)
        return PyErr_Format(PyExc_ValueError, "queries: found %zd numbers, expected %lld, as rows have",
                            (Py_ssize_t)PyArray_DIM(q, 1), (long long)corpus.D);
    if (corpus.form == BVL_ROWS_BINARY && PyArray_DIM(x, 1) != (corpus.D + 7) / 8)
        return PyErr_Format(
            PyExc_ValueError, "rows: found %zd bytes, expected %lld, a bit of each of %lld numbers",
            (Py_ssize_t)PyArray_DIM(x, 1), (long long)(corpus.D + 7) / 8, (long long)corpus.D);
    if ((corpus.form == BVL_ROWS_INT8) != (scales != Py_None))
        return PyErr_Format(PyExc_ValueError, "scales: expected them of int8 rows, and of no others");
    if (!borrow_each(scales, "scales", NPY_FLOAT32, corpus.count, (const void **)&corpus.scales) ||
        !borrow_each(mask, "mask", NPY_BOOL, corpus.count, (const void **)&corpus.mask))
        return NULL;
    if (k < 1 || k > BVL_SEARCH_MOST_K)
        return PyErr_Format(PyExc_ValueError, "k: found %lld, expected 1 to %d", k, BVL_SEARCH_MOST_K);
    const int64_t Q = PyArray_DIM(q, 0), shape[2] = {Q, k};
    float *scores;
    int64_t *hits;
    PyObject *first = bvl_new_array(2, shape, NPY_FLOAT32, (void **)&scores);
    PyObject *second = first ? bvl_new_array(2, shape, NPY_INT64, (void **)&hits) : NULL;
    if (second) {
        threads = BVL_MAX(1, BVL_MIN(threads, 1024));
        PyThreadState *state = PyEval_SaveThread();
        const bvl_status status = bvl_search(scores, hits, &corpus, PyArray_DATA(q), Q, k, threads, &err);
        PyEval_RestoreThread(state);
        PyObject *result = status == BVL_OK ? PyTuple_Pack(2, first, second) : bvl_raise(&err);
        Py_DECREF(first);
        Py_DECREF(second);
        return result;
    }
    Py_XDECREF(first);
    return NULL;
}
