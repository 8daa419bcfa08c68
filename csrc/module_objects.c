/* module_objects.c: exceptions, arrays and types, which every other file of the face needs. */
#include "module.h"

PyObject *bvl_raise(const bvl_error *err) {
    if (err->status == BVL_NO_MEMORY)
        PyErr_SetString(PyExc_MemoryError, err->message);
    else if (err->status == BVL_MISSING)
        PyErr_SetString(PyExc_RuntimeError, err->message);
    else if (err->status == BVL_INVALID)
        PyErr_SetString(PyExc_ValueError, err->message);
    /* CANCELLED: the signal handler has set its own exception */
    return NULL;
}

PyArrayObject *bvl_borrow(PyObject *object, const char *name, int type, int rank) {
    if (!PyArray_Check(object)) {
        PyErr_Format(PyExc_TypeError, "%s: found %R, expected a NumPy array", name, Py_TYPE(object));
        return NULL;
    }
    PyArrayObject *a = (PyArrayObject *)object;
    PyArray_Descr *wanted = PyArray_DescrFromType(type);
    const bool same = PyArray_TYPE(a) == type && PyArray_ISNBO(PyArray_DESCR(a)->byteorder);
    if (!same)
        PyErr_Format(PyExc_ValueError, "%s: found dtype %S, expected %S", name, PyArray_DESCR(a), wanted);
    Py_DECREF(wanted);
    if (!same) return NULL;
    if (rank >= 0 ? PyArray_NDIM(a) != rank : PyArray_NDIM(a) > BVL_MAX_RANK) {
        PyErr_Format(PyExc_ValueError, "%s: found %d dimensions, expected %d", name, PyArray_NDIM(a),
                     rank >= 0 ? rank : BVL_MAX_RANK);
        return NULL;
    }
    if (!PyArray_IS_C_CONTIGUOUS(a) || !PyArray_ISALIGNED(a)) {
        PyErr_Format(PyExc_ValueError, "%s: expected a C-contiguous, aligned array", name);
        return NULL;
    }
    return a;
}

static PyTypeObject *types[BVL_TYPE_COUNT]; /* made once, when the module is imported first */

PyObject *bvl_new_type(PyObject *module, PyType_Spec *spec, bvl_type type) {
    if (!types[type]) types[type] = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    return Py_XNewRef((PyObject *)types[type]);
}

PyTypeObject *bvl_type_of(bvl_type type) {
    return types[type];
}

void *bvl_held(PyObject *object, bvl_type type, const char *name) {
    static const char *const names[] = {"Program", "Context", "Cache"};
    if (Py_TYPE(object) == types[type]) return ((bvl_object *)object)->held;
    PyErr_Format(PyExc_TypeError, "%s: found %R, expected a %s", name, Py_TYPE(object), names[type]);
    return NULL;
}

PyObject *bvl_allocate(PyTypeObject *type) {
    return ((allocfunc)PyType_GetSlot(type, Py_tp_alloc))(type, 0);
}

void bvl_release(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

PyObject *bvl_new_array(int rank, const int64_t *shape, int type, void **data) {
    npy_intp dims[BVL_MAX_RANK];
    for (int i = 0; i < rank; i++) dims[i] = (npy_intp)shape[i];
    PyObject *array = PyArray_SimpleNew(rank, dims, type);
    if (array) *data = PyArray_DATA((PyArrayObject *)array);
    return array;
}
