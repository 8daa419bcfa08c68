/* module_audio.c: sounds between Python and audio/. */
#include "module.h"

#include "audio/mel.h"

PyObject *bvl_py_log_mel(PyObject *module, PyObject *args) {
    PyObject *sound, *window, *filters;
    long long length, hop;
    int center, mels_first, remove_mean, amplitudes, threads;
    bvl_mel_settings s = {0};
    float *out;
    bvl_error err;
    (void)module;
    if (!PyArg_ParseTuple(args, "OOOLLppppdddi", &sound, &window, &filters, &length, &hop, &center,
                          &mels_first, &remove_mean, &amplitudes, &s.emphasis, &s.floor, &s.scale, &threads))
        return NULL;
    PyArrayObject *x = bvl_borrow(sound, "sound", NPY_FLOAT32, 1);
    PyArrayObject *w = x ? bvl_borrow(window, "window", NPY_FLOAT64, 1) : NULL;
    PyArrayObject *f = w ? bvl_borrow(filters, "filters", NPY_FLOAT64, 2) : NULL;
    if (!f) return NULL;
    if (PyArray_DIM(f, 0) != length / 2 + 1)
        return PyErr_Format(PyExc_ValueError,
                            "filters: found %zd bins, expected %lld, of a transform of %lld",
                            (Py_ssize_t)PyArray_DIM(f, 0), length / 2 + 1, length);
    s.window = PyArray_DATA(w);
    s.filters = PyArray_DATA(f);
    s.frame = PyArray_DIM(w, 0);
    s.length = length;
    s.hop = hop;
    s.mels = PyArray_DIM(f, 1);
    s.center = center != 0;
    s.mels_first = mels_first != 0;
    s.remove_mean = remove_mean != 0;
    s.amplitudes = amplitudes != 0;
    threads = BVL_MAX(1, BVL_MIN(threads, 1024));
    const int64_t samples = PyArray_DIM(x, 0);
    if (bvl_mel_check(&s, samples, &err) != BVL_OK) return bvl_raise(&err);
    const int64_t frames = bvl_mel_frame_count(&s, samples);
    const int64_t shape[2] = {s.mels_first ? s.mels : frames, s.mels_first ? frames : s.mels};
    PyObject *result = bvl_new_array(2, shape, NPY_FLOAT32, (void **)&out);
    if (!result) return NULL;
    PyThreadState *state = PyEval_SaveThread();
    const bvl_status status = bvl_mel_spectrogram(out, PyArray_DATA(x), samples, &s, threads, &err);
    PyEval_RestoreThread(state);
    if (status == BVL_OK) return result;
    Py_DECREF(result);
    return bvl_raise(&err);
}
