/* module_state.c: _C.Context and _C.Cache, the keys and values that outlive a call (model/state.h). */
#include "module.h"

#include "model/program.h"

/* ---- Context ---- */

typedef struct {
    PyObject_HEAD bvl_context *context;
} ContextObject;

PyObject *bvl_context_wrap(bvl_context *context) {
    ContextObject *self = (ContextObject *)bvl_allocate(bvl_type_of(BVL_CONTEXT));
    if (self)
        self->context = context;
    else
        bvl_context_free(context);
    return (PyObject *)self;
}

static void context_dealloc(PyObject *self) {
    bvl_context_free(((ContextObject *)self)->context);
    bvl_release(self);
}

static PyObject *context_rows(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(((ContextObject *)self)->context->rows);
}

static PyObject *context_nbytes(PyObject *self, void *unused) {
    const bvl_context *c = ((ContextObject *)self)->context;
    (void)unused;
    return PyLong_FromLongLong(c->shape.layers * c->words * (int64_t)sizeof(float));
}

static PyGetSetDef context_fields[] = {{"rows", context_rows, NULL, "tokens attended to", NULL},
                                       {"nbytes", context_nbytes, NULL, "memory of keys and values", NULL},
                                       {NULL, NULL, NULL, NULL, NULL}};
static PyType_Slot context_slots[] = {
    {Py_tp_dealloc, context_dealloc},
    {Py_tp_getset, context_fields},
    {Py_tp_doc, "Keys and values of one item for cross-attention; immutable."},
    {0, NULL}};
static PyType_Spec context_spec = {"beyondvl._C.Context", sizeof(ContextObject), 0,
                                   Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, context_slots};

PyObject *bvl_context_type(PyObject *module) {
    return bvl_new_type(module, &context_spec, BVL_CONTEXT);
}

/* ---- Cache ---- */

typedef struct {
    PyObject_HEAD bvl_cache *cache;
    PyObject *program; /* kept alive: the cache is compared to it by address */
} CacheObject;

static PyObject *cache_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    PyObject *object;
    long long B, capacity;
    bvl_error err;
    bvl_program *program;
    (void)kwargs;
    if (!PyArg_ParseTuple(args, "OLL", &object, &B, &capacity) ||
        !(program = bvl_held(object, BVL_PROGRAM, "program")))
        return NULL;
    program->sealed = true; /* its layers are counted now */
    CacheObject *self = (CacheObject *)bvl_allocate(type);
    if (!self) return NULL;
    self->cache = bvl_cache_new(program, program->cached_layers, program->cached_words, B, capacity, &err);
    if (!self->cache) {
        Py_DECREF(self);
        return bvl_raise(&err);
    }
    Py_INCREF(object);
    self->program = object;
    return (PyObject *)self;
}

static void cache_dealloc(PyObject *self) {
    bvl_cache_free(((CacheObject *)self)->cache);
    Py_XDECREF(((CacheObject *)self)->program);
    bvl_release(self);
}

static PyObject *cache_reorder(PyObject *self, PyObject *args) {
    PyObject *object;
    bvl_cache *cache = ((CacheObject *)self)->cache;
    bvl_error err;
    if (!PyArg_ParseTuple(args, "O", &object)) return NULL;
    PyArrayObject *from = bvl_borrow(object, "reorder", NPY_INT64, 1);
    if (!from) return NULL;
    if (PyArray_DIM(from, 0) != cache->B)
        return PyErr_Format(PyExc_ValueError, "reorder: found %zd items, expected %zd",
                            (Py_ssize_t)PyArray_DIM(from, 0), (Py_ssize_t)cache->B);
    if (atomic_flag_test_and_set(&cache->busy))
        return PyErr_Format(PyExc_ValueError, "cache: in use by another call");
    const bvl_status status = bvl_cache_reorder(cache, PyArray_DATA(from), &err);
    atomic_flag_clear(&cache->busy);
    if (status != BVL_OK) return bvl_raise(&err);
    Py_RETURN_NONE;
}

static PyObject *cache_length(PyObject *self, void *unused) {
    (void)unused;
    return PyLong_FromLongLong(((CacheObject *)self)->cache->length);
}

static PyMethodDef cache_methods[] = {
    {"reorder", cache_reorder, METH_VARARGS, "reorder(from): item i becomes what item from[i] was"},
    {NULL, NULL, 0, NULL}};
static PyGetSetDef cache_fields[] = {{"length", cache_length, NULL, "tokens so far", NULL},
                                     {NULL, NULL, NULL, NULL, NULL}};
static PyType_Slot cache_slots[] = {
    {Py_tp_new, cache_new},
    {Py_tp_dealloc, cache_dealloc},
    {Py_tp_methods, cache_methods},
    {Py_tp_getset, cache_fields},
    {Py_tp_doc, "Cache(program, items, capacity): a decoder's keys and values."},
    {0, NULL}};
static PyType_Spec cache_spec = {"beyondvl._C.Cache", sizeof(CacheObject), 0, Py_TPFLAGS_DEFAULT,
                                 cache_slots};

PyObject *bvl_cache_type(PyObject *module) {
    return bvl_new_type(module, &cache_spec, BVL_CACHE);
}
