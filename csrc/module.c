/* module.c: the CPython face of the core: parse, borrow arrays, release the GIL, map errors.
 *
 * The only file that includes Python.h. Every computation is a call into model/, image/ or kernels/; what is
 * here is translation. The functions named _test_* exist so that tests reach single kernels.
 */
#define PY_SSIZE_T_CLEAN
#define NPY_NO_DEPRECATED_API NPY_2_0_API_VERSION
#define NPY_TARGET_VERSION NPY_1_25_API_VERSION
#include <Python.h>
#include <numpy/arrayobject.h>
#include <string.h>
#include <time.h>

#include "arena.h"
#include "cpu.h"
#include "image/resize.h"
#include "image/stb.h"
#include "kernels/kernels.h"
#include "kernels/openblas.h"
#include "model/program.h"
#include "ops/attention.h"
#include "parallel.h"

extern const char *const bvl_pool_names[];

static PyObject *raise_error(const bvl_error *err) {
    if (err->status == BVL_NO_MEMORY)
        PyErr_SetString(PyExc_MemoryError, err->message);
    else if (err->status == BVL_MISSING)
        PyErr_SetString(PyExc_RuntimeError, err->message);
    else if (err->status == BVL_INVALID)
        PyErr_SetString(PyExc_ValueError, err->message);
    /* CANCELLED: the signal handler has set its own exception */
    return NULL;
}

/* A C-contiguous array of the given type and rank (-1: any up to 4), borrowed; NULL and ValueError. */
static PyArrayObject *borrow(PyObject *object, const char *name, int type, int rank) {
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

static PyObject *new_array(int rank, const int64_t *shape, int type, void **data) {
    npy_intp dims[BVL_MAX_RANK];
    for (int i = 0; i < rank; i++) dims[i] = (npy_intp)shape[i];
    PyObject *array = PyArray_SimpleNew(rank, dims, type);
    if (array) *data = PyArray_DATA((PyArrayObject *)array);
    return array;
}

/* ---- Program ---- */

typedef struct {
    PyObject_HEAD bvl_program *program;
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
        if (bvl_openblas_open(1, &err) != BVL_OK) return raise_error(&err);
        kernels = bvl_openblas_kernels(kernels);
    } else if (gemm && strcmp(gemm, "own") != 0) {
        PyErr_Format(PyExc_ValueError, "gemm: found '%s', expected 'own' or 'openblas'", gemm);
        return NULL;
    }
    if (p == BVL_PRECISION_COUNT || !kernels->product[p].gemm) {
        PyErr_Format(PyExc_ValueError, "precision: found '%s', expected %s", precision,
                     p == BVL_PRECISION_COUNT ? "float32, bfloat16 or int8" : "float32 on OpenBLAS");
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
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(self);
    Py_DECREF(type);
}

static PyObject *program_slot(PyObject *self, PyObject *args) {
    const char *name;
    long long rows, cols;
    bvl_error err;
    if (!PyArg_ParseTuple(args, "sLL", &name, &rows, &cols)) return NULL;
    const int slot = bvl_program_slot(((ProgramObject *)self)->program, name, rows, cols, &err);
    return slot < 0 ? raise_error(&err) : PyLong_FromLong(slot);
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

static bool parse_weights(const bvl_op *op, PyObject *dict, bvl_array *weights) {
    Py_ssize_t found = 0;
    for (int i = 0; op->weights[i]; i++) {
        PyObject *value = PyDict_GetItemString(dict, op->weights[i]);
        if (!value) continue;
        found++;
        PyArrayObject *a = borrow(value, op->weights[i], NPY_FLOAT32, -1);
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
    if (!parse_params(op, params, values) || !parse_weights(op, weights, arrays)) return NULL;
    const bvl_build build = {arrays, values, threads};
    bvl_error err;
    if (bvl_program_add(program, op, src, dst, &build, &err) != BVL_OK) return raise_error(&err);
    Py_RETURN_NONE;
}

/* One integer input [B, L]; the first one sets L and, without a picture, B (-1 until then). */
static bool parse_ids(PyObject *dict, const char *name, bvl_inputs *in, const int64_t **out) {
    PyObject *value = PyDict_GetItemString(dict, name);
    if (!value || value == Py_None) return true;
    PyArrayObject *a = borrow(value, name, NPY_INT64, 2);
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
        PyArrayObject *a = borrow(pixels, "pixel_values", NPY_FLOAT32, 4);
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
            array = new_array(slot->rows == 1 ? 2 : 3, shape, NPY_FLOAT32, (void **)&call->outputs[s]);
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
    return raise_error(&err);
}

static PyObject *program_info(PyObject *self, PyObject *unused) {
    const bvl_program *p = ((ProgramObject *)self)->program;
    (void)unused;
    return Py_BuildValue("{s:L,s:i,s:L,s:L,s:(LLL)}", "packed_bytes", (long long)p->packed_bytes, "records",
                         p->record_count, "vocab_size", (long long)p->vocab, "max_positions",
                         (long long)p->max_positions, "image", (long long)p->channels, (long long)p->height,
                         (long long)p->width);
}

static PyMethodDef program_methods[] = {
    {"slot", program_slot, METH_VARARGS, "slot(name, rows, cols) -> index; rows 0 means the text's length"},
    {"add", program_add, METH_VARARGS, "add(op, src, dst, params, weights, num_threads): append a record"},
    {"run", program_run, METH_VARARGS, "run(inputs, outputs, num_threads) -> dict of float32 arrays"},
    {"info", program_info, METH_NOARGS, "info() -> dict of what was built"},
    {NULL, NULL, 0, NULL}};

static PyType_Slot program_slots[] = {{Py_tp_new, program_new},
                                      {Py_tp_dealloc, program_dealloc},
                                      {Py_tp_methods, program_methods},
                                      {Py_tp_doc, "An immutable list of operations over packed weights."},
                                      {0, NULL}};

static PyType_Spec program_spec = {"beyondvl._C.Program", sizeof(ProgramObject), 0, Py_TPFLAGS_DEFAULT,
                                   program_slots};

/* ---- Pictures ---- */

typedef struct {
    bvl_picture picture;
    bvl_geometry geometry;
    uint8_t *bytes;
    float *floats;
} picture_job;

typedef struct {
    picture_job *jobs;
    int64_t count;
    const float *table;
    bvl_error *errors; /* one per worker */
} picture_batch;

static void picture_worker(void *context, bvl_team team) {
    picture_batch *batch = context;
    bvl_error *err = &batch->errors[team.tid];
    for (int64_t i = team.tid; i < batch->count && err->status == BVL_OK; i += team.nt) {
        picture_job *j = &batch->jobs[i];
        if (j->bytes)
            bvl_resize(j->bytes, &j->picture, &j->geometry, err);
        else
            bvl_preprocess(j->floats, &j->picture, &j->geometry, batch->table, err);
    }
}

static bool parse_picture(PyObject *item, Py_ssize_t index, picture_job *job) {
    PyObject *object;
    long long h, w, top, left;
    int filter;
    if (!PyArg_ParseTuple(item, "OLLiLL", &object, &h, &w, &filter, &top, &left)) return false;
    PyArrayObject *a = borrow(object, "image", NPY_UINT8, 3);
    if (!a) return false;
    bvl_picture *p = &job->picture;
    *p = (bvl_picture){PyArray_DATA(a), PyArray_DIM(a, 0), PyArray_DIM(a, 1), PyArray_DIM(a, 2),
                       PyArray_DIM(a, 1) * PyArray_DIM(a, 2)};
    const int64_t most = 1 << 20;
    if (p->height < 1 || p->width < 1 || p->channels < 1 || p->channels > 4 || p->height > most ||
        p->width > most || h < 1 || w < 1 || h > most || w > most || top < -most || top > most ||
        left < -most || left > most || filter < BVL_LANCZOS || filter > BVL_HAMMING) {
        PyErr_Format(PyExc_ValueError,
                     "image %zd: %zd x %zd x %zd to %zd x %zd, filter %d: expected 1 to 4 channels, "
                     "sizes of 1 to 2^20, filter 1 to 5",
                     index, (Py_ssize_t)p->height, (Py_ssize_t)p->width, (Py_ssize_t)p->channels,
                     (Py_ssize_t)h, (Py_ssize_t)w, filter);
        return false;
    }
    job->geometry.height = h;
    job->geometry.width = w;
    job->geometry.filter = (bvl_filter)filter;
    job->geometry.top = top;
    job->geometry.left = left;
    return true;
}

/* Runs the jobs on `threads` workers without the GIL. */
static bool run_pictures(picture_batch *batch, int threads) {
    threads = (int)BVL_MAX(1, BVL_MIN(BVL_MIN((int64_t)threads, batch->count), 256));
    bvl_error errors[256];
    for (int i = 0; i < threads; i++) errors[i].status = BVL_OK;
    batch->errors = errors;
    PyThreadState *state = PyEval_SaveThread();
    bvl_parallel(threads, picture_worker, batch);
    PyEval_RestoreThread(state);
    for (int i = 0; i < threads; i++)
        if (errors[i].status != BVL_OK) return raise_error(&errors[i]) != NULL;
    return true;
}

static PyObject *preprocess(PyObject *module, PyObject *args) {
    PyObject *items, *table_object;
    int height, width, threads;
    (void)module;
    if (!PyArg_ParseTuple(args, "O!iiOi", &PyList_Type, &items, &height, &width, &table_object, &threads))
        return NULL;
    PyArrayObject *table = borrow(table_object, "table", NPY_FLOAT32, 2);
    if (!table) return NULL;
    const Py_ssize_t count = PyList_Size(items);
    const int64_t channels = PyArray_DIM(table, 0);
    if (PyArray_DIM(table, 1) != 256 || height < 1 || width < 1 || height > 1 << 15 || width > 1 << 15 ||
        count < 1)
        return PyErr_Format(PyExc_ValueError,
                            "preprocess: expected images, a size up to 2^15 and a (C, 256) table");
    picture_job *jobs = bvl_alloc_array((size_t)count, sizeof *jobs);
    if (!jobs) return PyErr_NoMemory();
    float *out = NULL;
    const int64_t shape[4] = {count, channels, height, width};
    PyObject *result = new_array(4, shape, NPY_FLOAT32, (void **)&out);
    bool ok = result != NULL;
    for (Py_ssize_t i = 0; ok && i < count; i++) {
        ok = parse_picture(PyList_GetItem(items, i), i, &jobs[i]);
        if (ok && jobs[i].picture.channels != channels) {
            PyErr_Format(PyExc_ValueError, "image %zd: %zd channels, expected %zd", i,
                         (Py_ssize_t)jobs[i].picture.channels, (Py_ssize_t)channels);
            ok = false;
        }
        jobs[i].geometry.out_height = height;
        jobs[i].geometry.out_width = width;
        jobs[i].floats = out + i * channels * height * width;
    }
    picture_batch batch = {jobs, count, PyArray_DATA(table), NULL};
    ok = ok && run_pictures(&batch, threads);
    bvl_free(jobs);
    if (!ok) Py_CLEAR(result);
    return result;
}

static PyObject *resize(PyObject *module, PyObject *args) {
    picture_job job = {0};
    uint8_t *out;
    (void)module;
    if (!parse_picture(args, 0, &job)) return NULL;
    const int64_t shape[3] = {job.geometry.height, job.geometry.width, job.picture.channels};
    PyObject *result = new_array(3, shape, NPY_UINT8, (void **)&out);
    if (!result) return NULL;
    job.bytes = out;
    job.geometry.out_height = job.geometry.height;
    job.geometry.out_width = job.geometry.width;
    picture_batch batch = {&job, 1, NULL, NULL};
    if (!run_pictures(&batch, 1)) Py_CLEAR(result);
    return result;
}

static PyObject *stb_decode(PyObject *module, PyObject *args) {
    const char *bytes;
    Py_ssize_t length;
    long long max_pixels;
    int64_t height, width;
    uint8_t *out;
    bvl_error err;
    (void)module;
    if (!PyArg_ParseTuple(args, "y#L", &bytes, &length, &max_pixels)) return NULL;
    if (bvl_stb_info((const uint8_t *)bytes, length, max_pixels, &height, &width, &err) != BVL_OK)
        return raise_error(&err);
    const int64_t shape[3] = {height, width, 3};
    PyObject *result = new_array(3, shape, NPY_UINT8, (void **)&out);
    if (!result) return NULL;
    PyThreadState *state = PyEval_SaveThread();
    const bvl_status status = bvl_stb_decode(out, (const uint8_t *)bytes, length, height, width, &err);
    PyEval_RestoreThread(state);
    if (status == BVL_OK) return result;
    Py_DECREF(result);
    return raise_error(&err);
}

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
    if (bvl_kernels_select(name, &err) != BVL_OK) return raise_error(&err);
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
    PyArrayObject *a = borrow(ao, "a", NPY_FLOAT32, 2), *b = a ? borrow(bo, "b", NPY_FLOAT32, 2) : NULL;
    if (!b) return NULL;
    const int64_t M = PyArray_DIM(a, 0), N = PyArray_DIM(b, 0), K = PyArray_DIM(a, 1);
    if (PyArray_DIM(b, 1) != K || K < 1 || BVL_MAX(BVL_MAX(M, N), K) > INT32_MAX)
        return PyErr_Format(PyExc_ValueError, "matmul_nt: (%zd, %zd) and (%zd, %zd): expected equal columns",
                            (Py_ssize_t)M, (Py_ssize_t)K, (Py_ssize_t)N, (Py_ssize_t)PyArray_DIM(b, 1));
    if (bvl_openblas_open(threads, &err) != BVL_OK) return raise_error(&err);
    const int64_t shape[2] = {M, N};
    PyObject *result = new_array(2, shape, NPY_FLOAT32, (void **)&out);
    if (!result || M < 1 || N < 1) return result;
    PyThreadState *state = PyEval_SaveThread();
    bvl_openblas_gemm_nt(out, N, PyArray_DATA(a), K, PyArray_DATA(b), K, M, N, K);
    bvl_openblas_open(1, &err); /* models on OpenBLAS split their own work */
    PyEval_RestoreThread(state);
    return result;
}

/* ---- Test hooks ---- */

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

/* x: a, w ([K, N] when transposed), bias, residual, packed, operand rows or NULL; n: M N K act precision
 * bf16. Operand rows are as far apart as they are long; with bf16 set, rows of `out` hold N bfloat16 in N
 * words. */
static void run_gemm(const bvl_kernels *k, bool transposed, float *out, float *const *x, const double *n) {
    const int64_t M = (int64_t)n[0], N = (int64_t)n[1], K = (int64_t)n[2], panels = bvl_panels(k, N);
    const bvl_product *product = &k->product[(int)n[4]];
    const bvl_epilogue e = {x[2], x[3], N, (bvl_activation)n[3], n[5] != 0};
    const int64_t words = product->load ? product->operand_words(K) : K;
    product->pack(x[4], x[1], transposed ? N : K, N, K, transposed, 0, panels);
    if (product->load) product->load(x[5], words, x[0], K, M, K);
    product->gemm(out, N, product->load ? x[5] : x[0], words, x[4], M, N, K, 0, panels, &e);
}

/* _test_kernel(name, out, arrays, numbers): runs one kernel of the active table in place on flat buffers;
 * tests/kernels.py holds the argument order beside each NumPy reference. */
static bool run_kernel(const char *name, float *out, float *const *x, const double *n) {
    const bvl_kernels *k = bvl_kernels_active();
    const int64_t i0 = (int64_t)n[0], i1 = (int64_t)n[1], i2 = (int64_t)n[2];
    if (strncmp(name, "gemm", 4) == 0) {
        run_gemm(k, strcmp(name, "gemm_transposed") == 0, out, x, n);
    } else if (strcmp(name, "layer_norm") == 0) { /* x: x, gamma, beta; n: rows D eps */
        k->layer_norm(out, i1, x[0], i1, x[1], x[2], (float)n[2], i0, i1);
    } else if (strcmp(name, "softmax") == 0) { /* out in place; x: bias; n: n scale */
        k->softmax(out, i0, (float)n[1], x[0]);
    } else if (strcmp(name, "activate") == 0) { /* x: x, bias; n: act n */
        k->activate(out, x[0], x[1], (bvl_activation)i0, i1);
    } else if (strcmp(name, "l2_normalize") == 0) {
        k->l2_normalize(out, x[0], i0);
    } else if (strcmp(name, "add") == 0) {
        k->add(out, x[0], i0);
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
    } else if (strcmp(name, "attention") == 0) { /* x: q k v bias scratch; n: Tq Tk hd causal scale bf16 */
        const bool bf16 = n[5] != 0;             /* q, k and v are rows of bfloat16 */
        const int64_t ld = bf16 ? i2 / 2 : i2;
        const bvl_attention_shape s = {i0, i1, i2, ld, ld, i2, (float)n[4], n[3] != 0, x[3], bf16, false};
        bvl_attention(k, out, x[0], x[1], x[2], &s, x[4]);
    } else {
        return false;
    }
    return true;
}

static PyObject *test_kernel(PyObject *module, PyObject *args) {
    const char *name;
    PyObject *out, *arrays, *numbers;
    float *x[6] = {NULL};
    double n[9] = {0};
    (void)module;
    if (!PyArg_ParseTuple(args, "sOO!O!", &name, &out, &PyTuple_Type, &arrays, &PyTuple_Type, &numbers))
        return NULL;
    for (Py_ssize_t i = 0; i < PyTuple_Size(arrays) && i < 6; i++)
        if (PyTuple_GetItem(arrays, i) != Py_None)
            x[i] = PyArray_DATA((PyArrayObject *)PyTuple_GetItem(arrays, i));
    for (Py_ssize_t i = 0; i < PyTuple_Size(numbers) && i < 9; i++)
        n[i] = PyFloat_AsDouble(PyTuple_GetItem(numbers, i));
    if (PyErr_Occurred()) return NULL;
    if (!run_kernel(name, PyArray_DATA((PyArrayObject *)out), x, n))
        return PyErr_Format(PyExc_ValueError, "no kernel '%s'", name);
    Py_RETURN_NONE;
}

static PyObject *test_scratch(PyObject *module, PyObject *args) {
    const bvl_kernels *k = bvl_kernels_active();
    long long N, K;
    int p = 0;
    (void)module;
    if (!PyArg_ParseTuple(args, "LL|i", &N, &K, &p)) return NULL;
    const bvl_product *product = &k->product[p];
    return Py_BuildValue("{s:L,s:L,s:L,s:i,s:i,s:O}", "packed", (long long)product->packed_words(N, K),
                         "operand", (long long)product->operand_words(K), "attention",
                         (long long)bvl_attention_scratch(k, N, K), "mr", k->mr, "nr", k->nr, "bf16_rows",
                         k->bf16_rows ? Py_True : Py_False);
}

static PyMethodDef functions[] = {
    {"config", config, METH_NOARGS,
     "config() -> dict: processor, level in use and why, threads, optional parts"},
    {"usable_isas", usable_isas, METH_NOARGS, "usable_isas() -> names of the levels this machine runs"},
    {"set_isa", set_isa, METH_VARARGS, "set_isa(name=None): level of programs built from now on"},
    {"default_threads", default_threads, METH_NOARGS, "default_threads() -> int"},
    {"preprocess", preprocess, METH_VARARGS,
     "preprocess([(image, height, width, filter, top, left)], out_height, out_width, table, num_threads)"},
    {"resize", resize, METH_VARARGS, "resize(image, height, width, filter, 0, 0) -> uint8 array"},
    {"stb_decode", stb_decode, METH_VARARGS, "stb_decode(bytes, max_pixels) -> uint8 (H, W, 3)"},
    {"set_openblas_path", set_openblas_path, METH_VARARGS, "set_openblas_path(path)"},
    {"matmul_nt", matmul_nt, METH_VARARGS, "matmul_nt(a, b, num_threads) -> a @ b.T by OpenBLAS"},
    {"alloc_fail_at", alloc_fail_at, METH_VARARGS,
     "alloc_fail_at(n): the n-th allocation from now fails once"},
    {"alloc_live", alloc_live, METH_NOARGS, "alloc_live() -> allocations of the core that are live"},
    {"_test_kernel", test_kernel, METH_VARARGS, NULL},
    {"_test_scratch", test_scratch, METH_VARARGS, NULL},
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
        raise_error(&err);
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
