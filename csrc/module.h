/* module.h: what the files of the CPython face share; each includes Python.h through here. */
#ifndef BVL_MODULE_H
#define BVL_MODULE_H

#define PY_SSIZE_T_CLEAN
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_1_25_API_VERSION
#define PY_ARRAY_UNIQUE_SYMBOL bvl_numpy_api
#if !defined(BVL_IMPORTS_NUMPY)
#define NO_IMPORT_ARRAY
#endif
#include <Python.h>
#include <numpy/arrayobject.h>

#include "core.h"
#include "model/program.h"

/* module_objects.c: sets the Python exception of a status; returns NULL. */
PyObject *bvl_raise(const bvl_error *err);
/* A C-contiguous array of the given type and rank (-1: any up to 4), borrowed; NULL and ValueError. */
PyArrayObject *bvl_borrow(PyObject *object, const char *name, int type, int rank);
/* A new array and its memory. */
PyObject *bvl_new_array(int rank, const int64_t *shape, int type, void **data);

/* Types of the module; of each, an object begins with what it holds. */
typedef enum { BVL_PROGRAM, BVL_CONTEXT, BVL_CACHE, BVL_TYPE_COUNT } bvl_type;
typedef struct {
    PyObject_HEAD void *held;
} bvl_object;

/* A type, made once and kept for good: a module that is imported anew shares it. */
PyObject *bvl_new_type(PyObject *module, PyType_Spec *spec, bvl_type type);
PyTypeObject *bvl_type_of(bvl_type type);
/* What an object of that type holds; NULL and TypeError, which begins with `name`, for another object. */
void *bvl_held(PyObject *object, bvl_type type, const char *name);
/* A zeroed object of such a type, and the end of its deallocation. */
PyObject *bvl_allocate(PyTypeObject *type);
void bvl_release(PyObject *self);

/* module_program.c */
PyObject *bvl_program_type(PyObject *module);
/* module_state.c */
PyObject *bvl_context_type(PyObject *module);
PyObject *bvl_cache_type(PyObject *module);
PyObject *bvl_context_wrap(bvl_context *context); /* takes it over, also when it fails */
/* module_image.c */
PyObject *bvl_py_preprocess(PyObject *module, PyObject *args);
PyObject *bvl_py_resize(PyObject *module, PyObject *args);
PyObject *bvl_py_resize_floats(PyObject *module, PyObject *args);
PyObject *bvl_py_arrow_pixels(PyObject *module, PyObject *args);
PyObject *bvl_py_stb_decode(PyObject *module, PyObject *args);
/* module_audio.c */
PyObject *bvl_py_log_mel(PyObject *module, PyObject *args);
/* module_search.c */
PyObject *bvl_py_search(PyObject *module, PyObject *args);
/* module_test.c, in builds for tests: reach single kernels */
#ifdef BVL_TESTS
PyObject *bvl_py_test_kernel(PyObject *module, PyObject *args);
PyObject *bvl_py_test_scratch(PyObject *module, PyObject *args);
#endif

#endif
