/* module_program.c: _C.Program, a model's encoder or decoder: built record by record, then run. */
#include "module.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "arena.h"
#include "kernels/openblas.h"
#include "model/program.h"
#include "parallel.h"

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
    ProgramObject *self = (ProgramObject *)bvl_allocate(type);
    if (self && !(self->program = bvl_program_new(kernels, (bvl_precision)p))) {
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    return (PyObject *)self;
}

static void program_dealloc(PyObject *self) {
    bvl_program_free(((ProgramObject *)self)->program);
    PyBuffer_Release(&((ProgramObject *)self)->mapping);
    bvl_release(self);
}

static PyObject *program_slot(PyObject *self, PyObject *args) {
    const char *name;
    long long rows, cols;
    int kind = BVL_FIXED_ROWS;
    bvl_error err;
    if (!PyArg_ParseTuple(args, "sLL|i", &name, &rows, &cols, &kind)) return NULL;
    if (kind < 0 || kind >= BVL_ROW_KINDS)
        return PyErr_Format(PyExc_ValueError, "slot '%s': kind: found %d, expected 0 to %d", name, kind,
                            BVL_ROW_KINDS - 1);
    const int slot =
        bvl_program_slot(((ProgramObject *)self)->program, name, rows, cols, (bvl_row_kind)kind, &err);
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

/* A copy that takes an input's place in the dictionary: it is checked once, then read without the GIL. */
static const int64_t *own_integers(PyObject *dict, const char *name, PyArrayObject *a) {
    PyObject *copy = PyArray_NewCopy(a, NPY_CORDER);
    const int64_t *data =
        copy && PyDict_SetItemString(dict, name, copy) == 0 ? PyArray_DATA((PyArrayObject *)copy) : NULL;
    Py_XDECREF(copy);
    return data;
}

/* What a call gives of the inputs that the program takes. */
static bool parse_arguments(const bvl_program *p, PyObject *dict, bvl_argument *arguments) {
    for (int i = 0; i < BVL_INPUT_COUNT; i++) {
        const bvl_declared *d = &p->declared[i];
        PyObject *value = d->rank ? PyDict_GetItemString(dict, d->name) : NULL;
        if (!value || value == Py_None) continue;
        PyArrayObject *a = bvl_borrow(value, d->name, d->integers ? NPY_INT64 : NPY_FLOAT32, d->rank);
        if (!a) return false;
        arguments[i].rank = d->rank;
        for (int k = 0; k < d->rank; k++) arguments[i].shape[k] = PyArray_DIM(a, k);
        arguments[i].data = d->integers ? (const void *)own_integers(dict, d->name, a) : PyArray_DATA(a);
        if (!arguments[i].data) return false;
    }
    PyObject *features = p->declared[BVL_FEATURES].rank ? NULL : PyDict_GetItemString(dict, "features");
    if (!features || features == Py_None) return true;
    PyErr_Format(PyExc_ValueError, "features: given to a program that takes none");
    return false;
}

/* "contexts": a list of Context, one an item; *list is memory for PyMem_Free. In the dictionary a tuple takes
 * the list's place, so that nobody empties it while the program runs. */
static bool parse_contexts(PyObject *dict, bvl_inputs *in, const bvl_context ***list) {
    PyObject *value = PyDict_GetItemString(dict, "contexts");
    if (!value || value == Py_None) return true;
    const Py_ssize_t count = PyList_Check(value) ? PyList_Size(value) : -1;
    if (in->B < 0 && count >= 0) in->B = count;
    if (count != in->B || count < 1) {
        PyErr_Format(PyExc_ValueError, "contexts: found %R, expected a list of %zd", Py_TYPE(value),
                     (Py_ssize_t)in->B);
        return false;
    }
    PyObject *kept = PyList_AsTuple(value);
    const bool stored = kept && PyDict_SetItemString(dict, "contexts", kept) == 0;
    Py_XDECREF(kept);
    if (!stored) return false;
    if (!(*list = PyMem_Malloc((size_t)count * sizeof **list))) {
        PyErr_NoMemory();
        return false;
    }
    for (Py_ssize_t i = 0; i < count; i++) {
        const bvl_context *c = (*list)[i] = bvl_held(PyTuple_GetItem(kept, i), BVL_CONTEXT, "contexts");
        if (!c) return false;
        in->context_rows = BVL_MAX(in->context_rows, c->rows);
    }
    in->contexts = *list;
    return true;
}

static bool parse_inputs(const bvl_program *p, PyObject *dict, bvl_inputs *in,
                         const bvl_context ***contexts) {
    bvl_argument arguments[BVL_INPUT_COUNT] = {{0}};
    bvl_error err;
    PyObject *cache = PyDict_GetItemString(dict, "cache");
    if (cache && cache != Py_None) {
        if (!(in->cache = bvl_held(cache, BVL_CACHE, "cache"))) return false;
        in->past = in->cache->length;
    }
    if (!parse_arguments(p, dict, arguments)) return false;
    if (bvl_inputs_take(in, p->declared, arguments, &err) != BVL_OK) {
        bvl_raise(&err);
        return false;
    }
    return parse_contexts(dict, in, contexts);
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

/* One wanted slot, or "@12" for what record 12 leaves in its own: a new array; NULL with an exception set. */
static PyObject *new_output(const bvl_program *p, const char *name, const bvl_inputs *in, bvl_call *call) {
    char *end = NULL;
    const long record = name[0] == '@' ? strtol(name + 1, &end, 10) : -1;
    const bool is_state = end && end > name + 1 && *end == 0 && record >= 0 && record < p->record_count;
    const int s = is_state ? p->records[record].dst : bvl_program_find_slot(p, name);
    if (s < 0) return PyErr_Format(PyExc_ValueError, "output '%s': the program has no such slot", name);
    if (is_state ? call->states[record] : call->outputs[s])
        return PyErr_Format(PyExc_ValueError, "output '%s': asked for twice", name);
    const bvl_slot *slot = &p->slots[s];
    const bool single = slot->rows == 1 && slot->kind == BVL_FIXED_ROWS;
    const int64_t shape[3] = {in->B, single ? slot->cols : bvl_slot_rows(slot, in), slot->cols};
    call->any_state = call->any_state || is_state;
    return bvl_new_array(single ? 2 : 3, shape, NPY_FLOAT32,
                         (void **)(is_state ? &call->states[record] : &call->outputs[s]));
}

/* The contexts of a call as a list of Context; call->contexts is memory for PyMem_Free. */
static PyObject *new_contexts(const bvl_program *p, const bvl_inputs *in, bvl_call *call) {
    bvl_error err;
    if (!p->makes.layers) return PyErr_Format(PyExc_ValueError, "context: the program makes none");
    call->contexts = PyMem_Calloc((size_t)BVL_MAX(1, in->B), sizeof *call->contexts);
    PyObject *list = call->contexts ? PyList_New(in->B) : PyErr_NoMemory();
    for (int64_t i = 0; list && i < in->B; i++) {
        const int64_t rows = bvl_context_rows(p, in, call->padded_contexts, i);
        if (rows < 1 && in->attention_mask) {
            PyErr_Format(PyExc_ValueError,
                         "attention_mask: row %zd keeps no token, expected one to attend to", (Py_ssize_t)i);
            Py_CLEAR(list);
            break;
        }
        call->contexts[i] = bvl_context_new(&p->makes, p->kernels, rows, &err);
        PyObject *item = call->contexts[i] ? bvl_context_wrap(call->contexts[i]) : bvl_raise(&err);
        if (!item || PyList_SetItem(list, (Py_ssize_t)i, item) < 0) Py_CLEAR(list);
    }
    return list;
}

/* What the wanted outputs are written to; a new dict name -> array, "context" or "padded_context" -> list. */
static PyObject *new_outputs(const bvl_program *p, PyObject *names, const bvl_inputs *in, bvl_call *call) {
    PyObject *result = PyDict_New();
    const Py_ssize_t count = result ? PySequence_Size(names) : -1;
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *name = PySequence_GetItem(names, i), *output = NULL;
        const char *text = name ? PyUnicode_AsUTF8AndSize(name, NULL) : NULL;
        call->padded_contexts = call->padded_contexts || (text && strcmp(text, "padded_context") == 0);
        if (text && (strcmp(text, "context") == 0 || strcmp(text, "padded_context") == 0))
            output = call->contexts ? PyErr_Format(PyExc_ValueError, "%s: asked for twice", text)
                                    : new_contexts(p, in, call);
        else if (text)
            output = new_output(p, text, in, call);
        const bool ok = output && PyDict_SetItem(result, name, output) == 0;
        Py_XDECREF(output);
        Py_XDECREF(name);
        if (!ok) {
            Py_DECREF(result);
            return NULL;
        }
    }
    if (count < 0) Py_CLEAR(result);
    return result;
}

/* Runs a call; or, with a plan, says what it would do. */
static PyObject *run_or_plan(PyObject *self, PyObject *args, bvl_plan *plan) {
    PyObject *dict, *names, *result = NULL;
    int threads;
    if (!PyArg_ParseTuple(args, "O!Oi", &PyDict_Type, &dict, &names, &threads)) return NULL;
    bvl_program *program = ((ProgramObject *)self)->program;
    bvl_inputs in = {.B = -1, .L = -1};
    bvl_call call = {.threads = BVL_MAX(1, BVL_MIN(threads, 1024)), .plan = plan};
    bvl_error err = {.status = BVL_OK};
    const bvl_context **contexts = NULL;
    dict = PyDict_Copy(dict); /* holds on to what the program reads without the GIL */
    if (dict && parse_inputs(program, dict, &in, &contexts)) {
        in.B = BVL_MAX(0, in.B);
        in.L = BVL_MAX(0, in.L);
        program->sealed = true; /* the GIL is held: nothing is being added now, and nothing will be */
        result = new_outputs(program, names, &in, &call);
    }
    if (result) {
        poll_state poll = {.state = NULL};
        clock_gettime(CLOCK_MONOTONIC, &poll.last);
        call.poll = poll_signals;
        call.poll_context = &poll;
        poll.state = PyEval_SaveThread();
        const bvl_status status = bvl_program_run(program, &in, &call, &err);
        PyEval_RestoreThread(poll.state);
        if (status != BVL_OK) {
            Py_CLEAR(result);
            bvl_raise(&err);
        }
    }
    PyMem_Free(contexts);
    PyMem_Free(call.contexts);
    Py_XDECREF(dict);
    return result;
}

static PyObject *program_run(PyObject *self, PyObject *args) {
    return run_or_plan(self, args, NULL);
}

/* The lines of a plan. */
static PyObject *program_plan(PyObject *self, PyObject *args) {
    bvl_plan plan = {.text = NULL};
    PyObject *outputs = run_or_plan(self, args, &plan), *text = NULL, *lines = NULL;
    if (outputs) text = PyUnicode_FromString(plan.text ? plan.text : "");
    if (text) lines = PyUnicode_Splitlines(text, 0);
    Py_XDECREF(outputs);
    Py_XDECREF(text);
    bvl_free(plan.text);
    return lines;
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
    const bvl_size *picture = p->declared[BVL_PIXEL_VALUES].sizes;
    PyObject *names = PyList_New(0);
    (void)unused;
    for (int i = 0; names && i < BVL_INPUT_COUNT; i++) {
        PyObject *name = p->declared[i].rank ? PyUnicode_FromString(p->declared[i].name) : NULL;
        if (p->declared[i].rank && (!name || PyList_Append(names, name) < 0)) Py_CLEAR(names);
        Py_XDECREF(name);
    }
    if (!names) return NULL;
    const bvl_declared *features = &p->declared[BVL_FEATURES];
    const int64_t columns = features->rank ? features->sizes[features->rank - 1].count : 0;
    return Py_BuildValue("{s:L,s:i,s:L,s:L,s:(LLL),s:L,s:L,s:N}", "packed_bytes",
                         (long long)bvl_store_bytes(&p->store), "records", p->record_count, "vocab_size",
                         (long long)p->declared[BVL_INPUT_IDS].below, "max_positions",
                         (long long)p->declared[BVL_POSITION_IDS].below, "image", (long long)picture[1].count,
                         (long long)picture[2].count, (long long)picture[3].count, "context_layers",
                         (long long)p->takes.layers, "feature_size", (long long)columns, "inputs", names);
}

static PyMethodDef program_methods[] = {
    {"slot", program_slot, METH_VARARGS,
     "slot(name, rows, cols, kind=0) -> index; kind: a place in ROW_KINDS, what an item's rows are"},
    {"add", program_add, METH_VARARGS, "add(op, src, dst, params, weights, num_threads): append a record"},
    {"run", program_run, METH_VARARGS, "run(inputs, outputs, num_threads) -> dict of float32 arrays"},
    {"plan", program_plan, METH_VARARGS,
     "plan(inputs, outputs, num_threads) -> list of what run() would do, a line a phase"},
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

PyObject *bvl_program_type(PyObject *module) {
    return bvl_new_type(module, &program_spec, BVL_PROGRAM);
}
