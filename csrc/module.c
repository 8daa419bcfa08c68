/* module.c: the CPython face of the core: parse, borrow arrays, release the GIL, map errors.
 *
 * Every computation is a call into model/, image/ or kernels/; what is here, in module_image.c and in
 * module_test.c is translation.
 */
#define BVL_IMPORTS_NUMPY
#include "module.h"

#include <string.h>
#include <time.h>

#include "arena.h"
#include "cpu.h"
#include "image/stb.h"
#include "kernels/kernels.h"
#include "kernels/openblas.h"
#include "model/program.h"
#include "parallel.h"

extern const char *const bvl_pool_names[];

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

PyObject *bvl_new_array(int rank, const int64_t *shape, int type, void **data) {
    npy_intp dims[BVL_MAX_RANK];
    for (int i = 0; i < rank; i++) dims[i] = (npy_intp)shape[i];
    PyObject *array = PyArray_SimpleNew(rank, dims, type);
    if (array) *data = PyArray_DATA((PyArrayObject *)array);
    return array;
}

/* ---- Program ---- */

typedef struct {
    PyObject_HEAD bvl_program *program;
    Py_buffer mapping; /* the file its weights lie in, when they were not packed here; obj NULL otherwise */
} ProgramObject;

static PyObject *program_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"gemm", "precision", NULL};
    const char *gemm = NULL, *precision = bvl_precision_names[BVL_FLOAT32];
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|zs", names, &gemm, &precision)) return NULL;
    const bvl_kernels *kernels = bvl_kernels_active();
    int p = 0;
    while (p < BVL_PRECISION_COUNT && strcmp(precision, bvl_precision_names[p]) != 0) p++;
    if (gemm && strcmp(gemm, "openblas") == 0) {
        bvl_error err;
        if (bvl_openblas_open(1, &err) != BVL_OK) return bvl_raise(&err);
        kernels = bvl_openblas_kernels(kernels);
    } else if (gemm && strcmp(gemm, "own") != 0) {
        PyErr_Format(PyExc_ValueError, "gemm: found '%s', expected 'own' or 'openblas'", gemm);
        return NULL;
    }
    if (p == BVL_PRECISION_COUNT || !kernels->product[p].gemm) {
        PyErr_Format(PyExc_ValueError, "precision: found '%s', expected %s", precision,
                     p == BVL_PRECISION_COUNT ? "float32, bfloat16, int8 or bfloat16x3"
                     : p == BVL_BFLOAT16X3    ? "one that runs without AMX"
                                              : "float32 on OpenBLAS");
        return NULL;
    }
    const allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    ProgramObject *self = (ProgramObject *)alloc(type, 0);
    if (self && !(self->program = bvl_program_new(kernels, (bvl_precision)p))) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void program_dealloc(PyObject *self) {
    PyTypeObject *type = Py_TYPE(self);
    bvl_program_free(((ProgramObject *)self)->program);
    PyBuffer_Release(&((ProgramObject *)self)->mapping);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static PyObject *program_slot(PyObject *self, PyObject *args) {
    const char *name;
    long long rows, cols;
    bvl_error err;
    if (!PyArg_ParseTuple(args, "sLL", &name, &rows, &cols)) return NULL;
    const int slot = bvl_program_slot(((ProgramObject *)self)->program, name, rows, cols, &err);
    return slot < 0 ? bvl_raise(&err) : PyLong_FromLong(slot);
}

/* params and weights by the operation's own names; unknown names are refused. */
static bool parse_params(const bvl_op *op, PyObject *dict, double *params) {
    int known = 0;
    for (int i = 0; op->params[i]; i++, known++) {
        PyObject *value = PyDict_GetItemString(dict, op->params[i]);
        if (!value) {
            PyErr_Format(PyExc_ValueError, "%s: parameter %s is missing", op->name, op->params[i]);
            return false;
        }
        params[i] = PyFloat_AsDouble(value);
        if (params[i] == -1.0 && PyErr_Occurred()) return false;
        if (!(params[i] >= -1e9 && params[i] <= 1e9)) {
            PyErr_Format(PyExc_ValueError, "%s: parameter %s: found %R, expected at most 1e9 in size",
                         op->name, op->params[i], value);
            return false;
        }
    }
    if (PyDict_Size(dict) == known) return true;
    PyErr_Format(PyExc_ValueError, "%s: found parameters %R, expected %d of other names", op->name, dict,
                 known);
    return false;
}

/* A shape instead of an array: its contents are in the mapping already. */
static bool parse_shape(PyObject *value, const char *name, const bvl_store *store, bvl_array *weight) {
    int64_t count = 1; /* an element takes a byte or more, which bounds every product of sizes */
    weight->data = (const float *)(const void *)store->mapped; /* there, and never read */
    weight->rank = PyList_Check(value) ? (int)PyList_Size(value) : 0;
    if (weight->rank < 1 || weight->rank > BVL_MAX_RANK) {
        PyErr_Format(PyExc_ValueError, "%s: found %R, expected a shape of 1 to %d sizes", name, value,
                     BVL_MAX_RANK);
        return false;
    }
    for (int d = 0; d < weight->rank; d++) {
        const int64_t size = weight->shape[d] = PyLong_AsLongLong(PyList_GetItem(value, d));
        if (size == -1 && PyErr_Occurred()) return false;
        if (size < 1 || __builtin_mul_overflow(count, size, &count) || count > (int64_t)store->mapped_bytes) {
            PyErr_Format(PyExc_ValueError, "%s: found shape %R, expected at most the %zd elements packed",
                         name, value, (Py_ssize_t)store->mapped_bytes);
            return false;
        }
    }
    return true;
}

static bool parse_weights(const bvl_op *op, PyObject *dict, const bvl_store *store, bvl_array *weights) {
    Py_ssize_t found = 0;
    for (int i = 0; op->weights[i]; i++) {
        PyObject *value = PyDict_GetItemString(dict, op->weights[i]);
        if (!value) continue;
        found++;
        if (store->mapped) {
            if (!parse_shape(value, op->weights[i], store, &weights[i])) return false;
            continue;
        }
        PyArrayObject *a = bvl_borrow(value, op->weights[i], NPY_FLOAT32, -1);
        if (!a) return false;
        weights[i].data = PyArray_DATA(a);
        weights[i].rank = PyArray_NDIM(a);
        for (int d = 0; d < weights[i].rank; d++) weights[i].shape[d] = PyArray_DIM(a, d);
    }
    if (PyDict_Size(dict) == found) return true;
    PyErr_Format(PyExc_ValueError, "%s: weights have a name it does not know", op->name);
    return false;
}

static PyObject *program_add(PyObject *self, PyObject *args) {
    const char *name;
    int src, dst, threads;
    PyObject *params, *weights;
    if (!PyArg_ParseTuple(args, "siiO!O!i", &name, &src, &dst, &PyDict_Type, &params, &PyDict_Type, &weights,
                          &threads))
        return NULL;
    bvl_program *program = ((ProgramObject *)self)->program;
    threads = BVL_MAX(1, BVL_MIN(threads, 1024));
    const bvl_op *op = bvl_find_op(name);
    if (!op || src < 0 || dst < 0 || src >= program->slot_count || dst >= program->slot_count) {
        PyErr_Format(PyExc_ValueError, "operation '%s' on slots %d, %d: expected a known one on known slots",
                     name, src, dst);
        return NULL;
    }
    double values[BVL_MAX_PARAMS] = {0};
    bvl_array arrays[BVL_MAX_WEIGHTS] = {{0}};
    if (!parse_params(op, params, values) || !parse_weights(op, weights, &program->store, arrays))
        return NULL;
    const bvl_build build = {arrays, values, threads};
    bvl_error err;
    if (bvl_program_add(program, op, src, dst, &build, &err) != BVL_OK) return bvl_raise(&err);
    Py_RETURN_NONE;
}

/* One integer input [B, L]; the first one sets L and, without a picture, B (-1 until then). */
static bool parse_ids(PyObject *dict, const char *name, bvl_inputs *in, const int64_t **out) {
    PyObject *value = PyDict_GetItemString(dict, name);
    if (!value || value == Py_None) return true;
    PyArrayObject *a = bvl_borrow(value, name, NPY_INT64, 2);
    if (!a) return false;
    if (in->L < 0) in->L = PyArray_DIM(a, 1);
    if (in->B < 0) in->B = PyArray_DIM(a, 0);
    if (PyArray_DIM(a, 0) != in->B || PyArray_DIM(a, 1) != in->L) {
        PyErr_Format(PyExc_ValueError, "%s: found shape (%zd, %zd), expected (%zd, %zd)", name,
                     (Py_ssize_t)PyArray_DIM(a, 0), (Py_ssize_t)PyArray_DIM(a, 1), (Py_ssize_t)in->B,
                     (Py_ssize_t)in->L);
        return false;
    }
    *out = PyArray_DATA(a);
    return true;
}

static bool parse_inputs(const bvl_program *p, PyObject *dict, bvl_inputs *in) {
    PyObject *pixels = p->channels ? PyDict_GetItemString(dict, "pixel_values") : NULL;
    if (pixels && pixels != Py_None) {
        if (PyArray_Check(pixels)) {
            PyArrayObject *a = (PyArrayObject *)pixels;
            if (PyArray_TYPE(a) != NPY_FLOAT32 || PyArray_NDIM(a) != 4 || PyArray_DIM(a, 1) != p->channels ||
                PyArray_DIM(a, 2) != p->height || PyArray_DIM(a, 3) != p->width) {
                PyObject *shape = PyObject_GetAttrString(pixels, "shape");
                PyErr_Format(PyExc_ValueError,
                             "pixel_values: found %R %S, expected (B, %zd, %zd, %zd) float32",
                             shape ? shape : Py_None, PyArray_DESCR(a), (Py_ssize_t)p->channels,
                             (Py_ssize_t)p->height, (Py_ssize_t)p->width);
                Py_XDECREF(shape);
                return false;
            }
        }
        PyArrayObject *a = bvl_borrow(pixels, "pixel_values", NPY_FLOAT32, 4);
        if (!a) return false;
        in->B = PyArray_DIM(a, 0);
        in->pixel_values = PyArray_DATA(a);
    }
    if (!p->vocab) return true;
    return parse_ids(dict, "input_ids", in, &in->input_ids) &&
           parse_ids(dict, "attention_mask", in, &in->attention_mask) &&
           (!p->types || parse_ids(dict, "token_type_ids", in, &in->token_type_ids));
}

/* Ctrl-C: the calling thread takes the GIL every 50 ms to let signal handlers run. */
typedef struct {
    PyThreadState *state;
    struct timespec last;
} poll_state;

static bool poll_signals(void *context) {
    poll_state *poll = context;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if ((now.tv_sec - poll->last.tv_sec) * 1000 + (now.tv_nsec - poll->last.tv_nsec) / 1000000 < 50)
        return false;
    poll->last = now;
    PyEval_RestoreThread(poll->state);
    const bool stop = PyErr_CheckSignals() != 0;
    poll->state = PyEval_SaveThread();
    return stop;
}

/* Allocates the wanted outputs; a new dict name -> array. */
static PyObject *new_outputs(const bvl_program *p, PyObject *names, const bvl_inputs *in, bvl_call *call) {
    PyObject *result = PyDict_New();
    const Py_ssize_t count = result ? PySequence_Size(names) : -1;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *name = PySequence_GetItem(names, i);
        const char *text = name ? PyUnicode_AsUTF8AndSize(name, NULL) : NULL;
        const int s = text ? bvl_program_find_slot(p, text) : -1;
        if (text && s < 0) PyErr_Format(PyExc_ValueError, "output '%s': the program has no such slot", text);
        PyObject *array = NULL;
        if (s >= 0) {
            const bvl_slot *slot = &p->slots[s];
            const int64_t shape[3] = {in->B, slot->rows == 1 ? slot->cols : bvl_slot_rows(slot, in->L),
                                      slot->cols};
            array = bvl_new_array(slot->rows == 1 ? 2 : 3, shape, NPY_FLOAT32, (void **)&call->outputs[s]);
        }
        const bool ok = array && PyDict_SetItem(result, name, array) == 0;
        Py_XDECREF(array);
        Py_XDECREF(name);
        if (!ok) {
            Py_DECREF(result);
            return NULL;
        }
    }
    if (count < 0) Py_CLEAR(result);
    return result;
}

static PyObject *program_run(PyObject *self, PyObject *args) {
    PyObject *dict, *names;
    int threads;
    if (!PyArg_ParseTuple(args, "O!Oi", &PyDict_Type, &dict, &names, &threads)) return NULL;
    bvl_program *program = ((ProgramObject *)self)->program;
    bvl_inputs in = {.B = -1, .L = -1};
    bvl_call call = {.threads = BVL_MAX(1, BVL_MIN(threads, 1024))};
    bvl_error err;
    if (!parse_inputs(program, dict, &in)) return NULL;
    in.B = BVL_MAX(0, in.B);
    in.L = BVL_MAX(0, in.L);
    program->sealed = true; /* the GIL is held: nothing is being added now, and nothing will be */
    PyObject *result = new_outputs(program, names, &in, &call);
    if (!result) return NULL;
    poll_state poll = {.state = NULL};
    clock_gettime(CLOCK_MONOTONIC, &poll.last);
    call.poll = poll_signals;
    call.poll_context = &poll;
    poll.state = PyEval_SaveThread();
    const bvl_status status = bvl_program_run(program, &in, &call, &err);
    PyEval_RestoreThread(poll.state);
    if (status == BVL_OK) return result;
    Py_DECREF(result);
    return bvl_raise(&err);
}

/* From now on weights are taken from `buffer`, in the order an earlier program took them. */
static PyObject *program_map(PyObject *self, PyObject *args) {
    ProgramObject *object = (ProgramObject *)self;
    PyObject *buffer;
    if (!PyArg_ParseTuple(args, "O", &buffer)) return NULL;
    if (object->program->store.count || object->mapping.obj)
        return PyErr_Format(PyExc_ValueError, "map: the program has weights already");
    if (PyObject_GetBuffer(buffer, &object->mapping, PyBUF_SIMPLE) < 0) return NULL;
    if ((uintptr_t)object->mapping.buf % BVL_ALIGNMENT || object->mapping.len < BVL_ALIGNMENT) {
        PyBuffer_Release(&object->mapping);
        return PyErr_Format(PyExc_ValueError, "map: expected memory aligned to %d bytes", BVL_ALIGNMENT);
    }
    object->program->store.mapped = object->mapping.buf;
    object->program->store.mapped_bytes = (size_t)object->mapping.len;
    Py_RETURN_NONE;
}

/* The weights as read-only arrays of bytes, in order; each keeps the program alive. */
static PyObject *program_blocks(PyObject *self, PyObject *unused) {
    const bvl_store *store = &((ProgramObject *)self)->program->store;
    PyObject *list = PyList_New(store->count);
    (void)unused;
    for (int i = 0; list && i < store->count; i++) {
        npy_intp bytes = (npy_intp)store->blocks[i].bytes;
        PyObject *array = PyArray_SimpleNewFromData(1, &bytes, NPY_UINT8, store->blocks[i].memory);
        if (!array) {
            Py_CLEAR(list);
            break;
        }
        PyArray_CLEARFLAGS((PyArrayObject *)array, NPY_ARRAY_WRITEABLE);
        Py_INCREF(self);
        if (PyArray_SetBaseObject((PyArrayObject *)array, self) < 0) {
            Py_DECREF(array);
            Py_CLEAR(list);
        } else if (PyList_SetItem(list, i, array) < 0) {
            Py_CLEAR(list);
        }
    }
    return list;
}

static PyObject *program_info(PyObject *self, PyObject *unused) {
    const bvl_program *p = ((ProgramObject *)self)->program;
    (void)unused;
    return Py_BuildValue("{s:L,s:i,s:L,s:L,s:(LLL)}", "packed_bytes", (long long)bvl_store_bytes(&p->store),
                         "records", p->record_count, "vocab_size", (long long)p->vocab, "max_positions",
                         (long long)p->max_positions, "image", (long long)p->channels, (long long)p->height,
                         (long long)p->width);
}

static PyMethodDef program_methods[] = {
    {"slot", program_slot, METH_VARARGS, "slot(name, rows, cols) -> index; rows 0 means the text's length"},
    {"add", program_add, METH_VARARGS, "add(op, src, dst, params, weights, num_threads): append a record"},
    {"run", program_run, METH_VARARGS, "run(inputs, outputs, num_threads) -> dict of float32 arrays"},
    {"map", program_map, METH_VARARGS,
     "map(buffer): weights lie there; add() then takes shapes (lists) for arrays"},
    {"blocks", program_blocks, METH_NOARGS, "blocks() -> the weights as read-only arrays of bytes"},
    {"info", program_info, METH_NOARGS, "info() -> dict of what was built"},
    {NULL, NULL, 0, NULL}};

static PyType_Slot program_slots[] = {{Py_tp_new, program_new},
                                      {Py_tp_dealloc, program_dealloc},
                                      {Py_tp_methods, program_methods},
                                      {Py_tp_doc, "An immutable list of operations over packed weights."},
                                      {0, NULL}};

static PyType_Spec program_spec = {"beyondvl._C.Program", sizeof(ProgramObject), 0, Py_TPFLAGS_DEFAULT,
                                   program_slots};

/* ---- Machine ---- */

/* A tuple of strings. */
static PyObject *name_tuple(const char *const *names, int count) {
    PyObject *tuple = PyTuple_New(count);
    for (int i = 0; tuple && i < count; i++)
        if (PyTuple_SetItem(tuple, i, PyUnicode_FromString(names[i])) < 0) Py_CLEAR(tuple);
    return tuple;
}

static PyObject *config(PyObject *module, PyObject *unused) {
    const char *stb = bvl_stb_version(), *blas = bvl_openblas_config();
    (void)module, (void)unused;
    return Py_BuildValue("{s:s,s:s,s:s,s:s,s:i,s:i,s:L,s:z,s:z}", "cpu", bvl_cpu_name(), "isa",
                         bvl_isa_names[bvl_kernels_active()->isa], "isa_detected",
                         bvl_isa_names[bvl_kernels_best()], "isa_reason", bvl_kernels_reason(), "cpus",
                         bvl_cpu_count(), "num_threads", bvl_default_threads(), "l2_bytes",
                         (long long)bvl_cpu_l2_bytes(), "stb", stb, "openblas", blas);
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

static PyObject *default_threads(PyObject *module, PyObject *unused) {
    (void)module, (void)unused;
    return PyLong_FromLong(bvl_default_threads());
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
    {"resize", bvl_py_resize, METH_VARARGS, "resize(image, height, width, filter, 0, 0) -> uint8 array"},
    {"stb_decode", bvl_py_stb_decode, METH_VARARGS, "stb_decode(bytes, max_pixels) -> uint8 (H, W, 3)"},
    {"set_openblas_path", set_openblas_path, METH_VARARGS, "set_openblas_path(path)"},
    {"matmul_nt", matmul_nt, METH_VARARGS, "matmul_nt(a, b, num_threads) -> a @ b.T by OpenBLAS"},
    {"alloc_fail_at", bvl_py_alloc_fail_at, METH_VARARGS,
     "alloc_fail_at(n): the n-th allocation from now fails once"},
    {"alloc_live", bvl_py_alloc_live, METH_NOARGS, "alloc_live() -> allocations of the core that are live"},
    {"_test_kernel", bvl_py_test_kernel, METH_VARARGS, NULL},
    {"_test_scratch", bvl_py_test_scratch, METH_VARARGS, NULL},
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
    if (add_object(module, "Program", PyType_FromModuleAndSpec(module, &program_spec, NULL)) < 0 ||
        add_object(module, "OPS", describe_ops()) < 0 ||
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
