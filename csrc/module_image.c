/* module_image.c: pictures between Python and image/: NumPy arrays, and PIL images through the Arrow C
 * interface. */
#include "module.h"

#include <string.h>

#include "image/resize.h"
#include "image/stb.h"

typedef struct {
    bvl_picture picture;
    bvl_geometry geometry;
} picture_job;

/* (image, height, width, filter, top, left) */
static bool parse_picture(PyObject *item, picture_job *job) {
    PyObject *object;
    long long h, w, top, left;
    int filter;
    if (!PyArg_ParseTuple(item, "OLLiLL", &object, &h, &w, &filter, &top, &left)) return false;
    PyArrayObject *a = bvl_borrow(object, "image", NPY_UINT8, 3);
    if (!a) return false;
    bvl_picture *p = &job->picture;
    *p = (bvl_picture){PyArray_DATA(a), PyArray_DIM(a, 0), PyArray_DIM(a, 1), PyArray_DIM(a, 2),
                       PyArray_DIM(a, 1) * PyArray_DIM(a, 2)};
    const int64_t most = 1 << 20;
    if (p->height < 1 || p->width < 1 || p->channels < 1 || p->channels > 4 || p->height > most ||
        p->width > most || h < 1 || w < 1 || h > most || w > most || top < -most || top > most ||
        left < -most || left > most || filter < BVL_LANCZOS || filter > BVL_HAMMING) {
        PyErr_Format(PyExc_ValueError,
                     "image: %zd x %zd x %zd to %zd x %zd, filter %d: expected 1 to 4 channels, "
                     "sizes of 1 to 2^20, filter 1 to 5",
                     (Py_ssize_t)p->height, (Py_ssize_t)p->width, (Py_ssize_t)p->channels, (Py_ssize_t)h,
                     (Py_ssize_t)w, filter);
        return false;
    }
    job->geometry.height = h;
    job->geometry.width = w;
    job->geometry.filter = (bvl_filter)filter;
    job->geometry.top = top;
    job->geometry.left = left;
    return true;
}

PyObject *bvl_py_preprocess(PyObject *module, PyObject *args) {
    PyObject *target, *item, *table_object;
    picture_job job = {0};
    bvl_error err;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOO", &target, &item, &table_object) || !parse_picture(item, &job))
        return NULL;
    PyArrayObject *table = bvl_borrow(table_object, "table", NPY_FLOAT32, 2);
    PyArrayObject *out = table ? bvl_borrow(target, "out", NPY_FLOAT32, 3) : NULL;
    if (!out) return NULL;
    const int64_t channels = PyArray_DIM(table, 0), height = PyArray_DIM(out, 1), width = PyArray_DIM(out, 2);
    if (PyArray_DIM(table, 1) != 256 || PyArray_DIM(out, 0) != channels || !PyArray_ISWRITEABLE(out) ||
        channels < 1 || channels > job.picture.channels || height < 1 || width < 1)
        return PyErr_Format(
            PyExc_ValueError,
            "preprocess: found %zd channels, expected a (C, 256) table and a writable (C, height, "
            "width) array with C from 1 to the picture's %zd",
            (Py_ssize_t)channels, (Py_ssize_t)job.picture.channels);
    job.geometry.out_height = height;
    job.geometry.out_width = width;
    float *pixels = PyArray_DATA(out);
    const float *values = PyArray_DATA(table);
    PyThreadState *state = PyEval_SaveThread();
    const bvl_status status = bvl_preprocess(pixels, &job.picture, &job.geometry, values, channels, &err);
    PyEval_RestoreThread(state);
    if (status != BVL_OK) return bvl_raise(&err);
    Py_RETURN_NONE;
}

PyObject *bvl_py_resize(PyObject *module, PyObject *args) {
    picture_job job = {0};
    uint8_t *out;
    bvl_error err;
    (void)module;
    if (!parse_picture(args, &job)) return NULL;
    const int64_t shape[3] = {job.geometry.height, job.geometry.width, job.picture.channels};
    PyObject *result = bvl_new_array(3, shape, NPY_UINT8, (void **)&out);
    if (!result) return NULL;
    job.geometry.out_height = job.geometry.height;
    job.geometry.out_width = job.geometry.width;
    PyThreadState *state = PyEval_SaveThread();
    const bvl_status status = bvl_resize(out, &job.picture, &job.geometry, &err);
    PyEval_RestoreThread(state);
    if (status == BVL_OK) return result;
    Py_DECREF(result);
    return bvl_raise(&err);
}

PyObject *bvl_py_resize_floats(PyObject *module, PyObject *args) {
    PyObject *object;
    long long height, width;
    int filter;
    float *out;
    bvl_error err;
    (void)module;
    if (!PyArg_ParseTuple(args, "OLLi", &object, &height, &width, &filter)) return NULL;
    PyArrayObject *a = bvl_borrow(object, "image", NPY_FLOAT32, 3);
    if (!a) return NULL;
    const int64_t *from = (const int64_t *)PyArray_DIMS(a), most = 1 << 20;
    if (from[0] < 1 || from[1] < 1 || from[2] < 1 || from[2] > 4 || height < 1 || width < 1 ||
        height > most || width > most || filter < BVL_LANCZOS || filter > BVL_HAMMING)
        return PyErr_Format(
            PyExc_ValueError,
            "image: %zd x %zd x %zd to %lld x %lld, filter %d: expected 1 to 4 channels, sizes "
            "of 1 to 2^20, filter 1 to 5",
            (Py_ssize_t)from[0], (Py_ssize_t)from[1], (Py_ssize_t)from[2], height, width, filter);
    const int64_t shape[3] = {height, width, from[2]};
    PyObject *result = bvl_new_array(3, shape, NPY_FLOAT32, (void **)&out);
    if (!result) return NULL;
    const float *pixels = PyArray_DATA(a);
    PyThreadState *state = PyEval_SaveThread();
    const bvl_status status =
        bvl_resize_floats(out, height, width, pixels, from[0], from[1], from[2], (bvl_filter)filter, &err);
    PyEval_RestoreThread(state);
    if (status == BVL_OK) return result;
    Py_DECREF(result);
    return bvl_raise(&err);
}

/* https://arrow.apache.org/docs/format/CDataInterface.html: the fields read here, in their order. */
typedef struct arrow_array {
    int64_t length, null_count, offset, buffer_count, child_count;
    const void **buffers;
    struct arrow_array **children;
    struct arrow_array *dictionary;
    void (*release)(struct arrow_array *);
    void *private_data;
} arrow_array;

/* The memory of a PIL image with four bytes a pixel, which the capsule keeps alive. */
PyObject *bvl_py_arrow_pixels(PyObject *module, PyObject *args) {
    PyObject *capsule;
    long long height, width;
    (void)module;
    if (!PyArg_ParseTuple(args, "OLL", &capsule, &height, &width)) return NULL;
    arrow_array *a = PyCapsule_GetPointer(capsule, "arrow_array");
    if (!a) return NULL;
    if (height < 1 || width < 1 || height > 1 << 20 || width > 1 << 20 || !a->release || a->offset ||
        a->length != height * width || a->child_count != 1 || a->children[0]->offset ||
        a->children[0]->length != 4 * a->length || a->children[0]->buffer_count != 2)
        return PyErr_Format(PyExc_ValueError, "arrow_pixels: expected %lld pixels of four bytes",
                            height * width);
    npy_intp dims[3] = {(npy_intp)height, (npy_intp)width, 4};
    PyObject *array = PyArray_SimpleNewFromData(3, dims, NPY_UINT8, (void *)a->children[0]->buffers[1]);
    if (!array) return NULL;
    PyArray_CLEARFLAGS((PyArrayObject *)array, NPY_ARRAY_WRITEABLE);
    Py_INCREF(capsule);
    if (PyArray_SetBaseObject((PyArrayObject *)array, capsule) < 0) Py_CLEAR(array);
    return array;
}

PyObject *bvl_py_stb_decode(PyObject *module, PyObject *args) {
    const char *bytes;
    Py_ssize_t length;
    long long max_pixels;
    int64_t height, width;
    uint8_t *out;
    bvl_error err;
    (void)module;
    if (!PyArg_ParseTuple(args, "y#L", &bytes, &length, &max_pixels)) return NULL;
    if (bvl_stb_info((const uint8_t *)bytes, length, max_pixels, &height, &width, &err) != BVL_OK)
        return bvl_raise(&err);
    const int64_t shape[3] = {height, width, 3};
    PyObject *result = bvl_new_array(3, shape, NPY_UINT8, (void **)&out);
    if (!result) return NULL;
    PyThreadState *state = PyEval_SaveThread();
    const bvl_status status = bvl_stb_decode(out, (const uint8_t *)bytes, length, height, width, &err);
    PyEval_RestoreThread(state);
    if (status == BVL_OK) return result;
    Py_DECREF(result);
    return bvl_raise(&err);
}
