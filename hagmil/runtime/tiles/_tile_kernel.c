/*
 * The compiled tile kernel: reads, decodes and hands out the JPEG tiles of a chunk of patches in one call.
 *
 * hagmil/runtime/tiles/kernel_numpy.py is its plain twin: same pixels, same errors, and but for resampling the same arguments;
 * that module says what they are. One contract test holds both.
 *
 * 1. Arguments are checked and turned into plain C while the interpreter is held. It is let go for all that follows
 *    (_tile_decoder.h, _tile_work.h).
 * 2. Tile after tile that is not decoded yet is read by pread. The tables that tiles share are read once: the decoder
 *    keeps them.
 * 3. It is decoded into the memory that the caller holds for it. Where nothing is held, no other chunk needs it: then
 *    it is decoded into the scratch tile, and only those pixels are made that patches need; or, where all of it goes to
 *    one place, right there.
 * 4. Its parts are copied to the patches at once, or the means of their squares are, while the processor's cache still
 *    holds it.
 *
 * Two facts about memory make up most of the speed; docs/decisions/0012-tile-engine.md has the figures. libjpeg-turbo
 * writes past the cache where rows are aligned to its vectors, so a tile that is copied from must NOT be aligned: the
 * caller sees to that. Patches are not read again soon and are many, so they are written past the cache, in lines, but
 * for means, of which there are fewer.
 *
 * Pixels that were put together otherwise are reduced by whole numbers here (_reduction.h) or resampled
 * (_resampling.h): several times as fast as by Pillow, which keeps four bytes a pixel.
 *
 * There is no state beyond a call but the library's functions (_libjpeg.h), which are set before the first, so any
 * number of threads may be in here at once.
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000 /* buffers are part of it since Python 3.11: one binary for all later ones */
#include <Python.h>

#include "_resampling.h"
#include "_tile_work.h"

/* ---- before the first call ---- */

static PyObject *open_library(PyObject *module, PyObject *argument)
{
    char message[512];
    PyObject *path;

    (void)module;
    if (!PyUnicode_FSConverter(argument, &path))
        return NULL;
    if (open_libjpeg(PyBytes_AsString(path), message, sizeof message) < 0)
        PyErr_SetString(PyExc_OSError, message);
    Py_DECREF(path);
    return PyErr_Occurred() ? NULL : Py_NewRef(Py_None);
}

/* ---- step 1 ---- */

static int64_t tiles_of(const Work *work)
{
    const int64_t down = (work->height + work->tile_height - 1) / work->tile_height;

    return tiles_across(work) * down;
}

/* The tiles as plain C, their memory held by `buffers`; how many of those are held, all is well only if `*fine`. */
static Py_ssize_t take_tiles(Work *work, PyObject *indices, PyObject *memories, Py_ssize_t decoded, Py_buffer *buffers,
                             int *fine)
{
    const int64_t level_tiles = tiles_of(work);
    const Py_ssize_t bytes = (Py_ssize_t)(work->tile_width * work->tile_height * CHANNELS);
    Py_ssize_t held = 0;

    *fine = 0;
    for (Py_ssize_t place = 0; place < work->tile_count; place++) {
        Tile *tile = &work->tiles[place];
        PyObject *memory = PyList_GetItem(memories, place);
        tile->index = PyLong_AsLongLong(PyList_GetItem(indices, place));
        tile->decoded = place < decoded;
        tile->pixels = NULL;
        if (PyErr_Occurred())
            return held;
        if (tile->index < 0 || tile->index >= level_tiles || (memory == Py_None && tile->decoded)) {
            PyErr_Format(PyExc_TypeError, "tile %lld is not there", (long long)tile->index);
            return held;
        }
        if (memory == Py_None)
            continue;
        if (PyObject_GetBuffer(memory, &buffers[held], PyBUF_WRITABLE) < 0)
            return held;
        tile->pixels = buffers[held].buf;
        if (buffers[held++].len != bytes) {
            PyErr_SetString(PyExc_TypeError, "memory of a tile has another size");
            return held;
        }
    }
    *fine = 1;
    return held;
}

/* Take the patches and where they lie; whether their sizes belong together. */
static int take_patches(Work *work, const Py_buffer *corners, const Py_buffer *patches)
{
    if (patches->ndim != 4 || patches->itemsize != 1 || patches->shape[3] != CHANNELS)
        return 0;
    work->corners = corners->buf, work->patches = patches->buf;
    work->patch_count = patches->shape[0];
    work->patch_height = patches->shape[1], work->patch_width = patches->shape[2];
    return corners->len == 16 * work->patch_count && work->patch_height > 0 && work->patch_width > 0 &&
           work->shrink >= 1 && work->shrink <= MAX_REDUCTION;
}

/* Whether no square of `shrink` x `shrink` pixels lies in two tiles. */
static int squares_fit(const Work *work)
{
    for (Py_ssize_t patch = 0; patch < work->patch_count; patch++)
        if (work->corners[2 * patch] % work->shrink || work->corners[2 * patch + 1] % work->shrink)
            return 0;
    return work->tile_width % work->shrink == 0 && work->tile_height % work->shrink == 0;
}

/* Whether the sizes of all other arrays belong together. */
static int sizes_fit(const Work *work, Py_ssize_t memories, const Py_buffer *offsets, const Py_buffer *sizes,
                     const Py_buffer *scratch)
{
    if (work->width < 1 || work->height < 1 || work->tile_width < 1 || work->tile_height < 1 || work->head_bytes < 2)
        return 0;
    return work->tile_count == memories && offsets->len == sizes->len && offsets->len / 8 >= tiles_of(work) &&
           scratch->len == work->tile_width * work->tile_height * CHANNELS;
}

static PyObject *read_tiles(PyObject *module, PyObject *arguments)
{
    Py_buffer head, offsets, sizes, corners, scratch, patches = {0}, *buffers = NULL;
    PyObject *indices, *memories, *out, *result = NULL;
    Py_ssize_t width, height, tile_width, tile_height, shrink, decoded, done, held = 0;
    Work work = {0};
    Decoder *decoder = NULL;
    int fine = 0;

    (void)module;
    if (libjpeg.jpeg_std_error == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "no library is open");
        return NULL;
    }
    if (!PyArg_ParseTuple(arguments, "iy*y*y*(nn)(nn)O!O!ny*nOw*p:read_tiles", &work.descriptor, &head, &offsets,
                          &sizes, &width, &height, &tile_width, &tile_height, &PyList_Type, &indices, &PyList_Type,
                          &memories, &decoded, &corners, &shrink, &out, &scratch, &work.bypass_cache))
        return NULL;
    if (PyObject_GetBuffer(out, &patches, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS) < 0)
        goto end;
    work.head = head.buf, work.head_bytes = (size_t)head.len;
    work.offsets = offsets.buf, work.sizes = sizes.buf;
    work.width = width, work.height = height;
    work.tile_width = tile_width, work.tile_height = tile_height;
    work.tile_count = PyList_Size(indices);
    work.scratch = scratch.buf;
    work.shrink = shrink;
    if (!take_patches(&work, &corners, &patches) || !squares_fit(&work) ||
        !sizes_fit(&work, PyList_Size(memories), &offsets, &sizes, &scratch)) {
        PyErr_SetString(PyExc_TypeError, "the arrays' sizes do not belong together");
        goto end;
    }
    work.right = (width + shrink - 1) / shrink * shrink, work.lower = (height + shrink - 1) / shrink * shrink;
    work.sums = malloc((size_t)(tile_width * CHANNELS) * sizeof *work.sums);
    work.parts = malloc(((size_t)work.patch_count + 1) * sizeof *work.parts);
    decoder = malloc(sizeof *decoder);
    work.tiles = malloc(((size_t)work.tile_count + 1) * sizeof *work.tiles);
    buffers = malloc(((size_t)work.tile_count + 1) * sizeof *buffers);
    if (work.sums == NULL || work.parts == NULL || decoder == NULL || work.tiles == NULL || buffers == NULL) {
        PyErr_NoMemory();
        goto end;
    }
    held = take_tiles(&work, indices, memories, decoded, buffers, &fine);
    if (!fine)
        goto end;

    Py_BEGIN_ALLOW_THREADS
    done = do_all(decoder, &work);
    Py_END_ALLOW_THREADS

    if (done == work.tile_count) {
        result = Py_NewRef(Py_None);
    } else {
        const char *message = decoder->failure.message;
        PyObject *text = PyUnicode_DecodeUTF8(message, (Py_ssize_t)strlen(message), "replace");
        PyObject *error = text == NULL ? NULL : Py_BuildValue("(LN)", (long long)work.tiles[done].index, text);
        if (error != NULL) {
            PyErr_SetObject(PyExc_ValueError, error);
            Py_DECREF(error);
        }
    }

end:
    while (held > 0)
        PyBuffer_Release(&buffers[--held]);
    free(buffers);
    free(work.tiles);
    free(work.parts);
    free(work.sums);
    free(decoder);
    PyBuffer_Release(&head);
    PyBuffer_Release(&offsets);
    PyBuffer_Release(&sizes);
    PyBuffer_Release(&corners);
    PyBuffer_Release(&scratch);
    PyBuffer_Release(&patches); /* nothing happens where there is none */
    return result;
}

/* ---- before a chunk is read: what is white, and which tiles are needed ---- */

static int count_tile(PyObject *counts, int64_t index)
{
    PyObject *key = PyLong_FromLongLong((long long)index), *before, *after = NULL;
    int failed = -1;

    if (key == NULL)
        return -1;
    before = PyDict_GetItemWithError(counts, key);
    if (before != NULL || !PyErr_Occurred())
        after = PyLong_FromLong(before == NULL ? 1 : PyLong_AsLong(before) + 1);
    if (after != NULL)
        failed = PyDict_SetItem(counts, key, after);
    Py_XDECREF(after);
    Py_DECREF(key);
    return failed;
}

/* Whiten a patch that reaches beyond the level, and count the tiles that it touches. */
static int start_patch(const Work *work, Py_ssize_t patch, PyObject *counts)
{
    const int64_t x = work->corners[2 * patch], y = work->corners[2 * patch + 1];
    const int64_t patch_width = work->patch_width * work->shrink, patch_height = work->patch_height * work->shrink;
    const int64_t left = most(x, 0), right = least(x + patch_width, work->width);
    const int64_t upper = most(y, 0), lower = least(y + patch_height, work->height);
    const int64_t across = tiles_across(work);
    const size_t bytes = (size_t)(work->patch_height * work->patch_width * CHANNELS);

    if (right - left < patch_width || lower - upper < patch_height)
        memset(work->patches + (size_t)patch * bytes, WHITE, bytes);
    if (left >= right || upper >= lower)
        return 0;
    for (int64_t row = upper / work->tile_height; row <= (lower - 1) / work->tile_height; row++)
        for (int64_t column = left / work->tile_width; column <= (right - 1) / work->tile_width; column++)
            if (count_tile(counts, row * across + column) < 0)
                return -1;
    return 0;
}

static PyObject *start_patches(PyObject *module, PyObject *arguments)
{
    Py_buffer corners, patches;
    PyObject *out, *counts = NULL;
    Py_ssize_t width, height, tile_width, tile_height, shrink;
    Work work = {0};

    (void)module;
    if (!PyArg_ParseTuple(arguments, "(nn)(nn)y*nO:start_patches", &width, &height, &tile_width, &tile_height, &corners,
                          &shrink, &out))
        return NULL;
    if (PyObject_GetBuffer(out, &patches, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS) < 0)
        goto end;
    work.width = width, work.height = height;
    work.tile_width = tile_width, work.tile_height = tile_height;
    work.shrink = shrink;
    if (take_patches(&work, &corners, &patches) && tile_width > 0 && tile_height > 0)
        counts = PyDict_New();
    else
        PyErr_SetString(PyExc_TypeError, "the arrays' sizes do not belong together");
    for (Py_ssize_t patch = 0; counts != NULL && patch < work.patch_count; patch++)
        if (start_patch(&work, patch, counts) < 0)
            Py_CLEAR(counts);
    PyBuffer_Release(&patches);

end:
    PyBuffer_Release(&corners);
    return counts;
}

/* ---- reduction ---- */

static PyObject *reduce_pixels(PyObject *module, PyObject *arguments)
{
    Py_buffer pixels, means;
    PyObject *from, *to, *result = NULL;
    Py_ssize_t factor;
    Reduction work;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "OnO:reduce_pixels", &from, &factor, &to))
        return NULL;
    if (PyObject_GetBuffer(from, &pixels, PyBUF_C_CONTIGUOUS) < 0)
        return NULL;
    if (PyObject_GetBuffer(to, &means, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS) < 0)
        goto end;
    if (factor < 1 || factor > MAX_REDUCTION || pixels.ndim != 3 || means.ndim != 3 || pixels.itemsize != 1 ||
        means.itemsize != 1 || pixels.shape[2] != CHANNELS || means.shape[2] != CHANNELS ||
        pixels.shape[0] != means.shape[0] * factor || pixels.shape[1] != means.shape[1] * factor) {
        PyErr_SetString(PyExc_TypeError, "the arrays' sizes do not belong together");
        goto close;
    }
    work = (Reduction){.pixels = pixels.buf,
                       .means = means.buf,
                       .pixels_pitch = (size_t)pixels.shape[1] * CHANNELS,
                       .means_pitch = (size_t)means.shape[1] * CHANNELS,
                       .height = (size_t)means.shape[0],
                       .width = (size_t)means.shape[1],
                       .factor = (size_t)factor};
    work.sums = malloc((work.width * work.factor * CHANNELS + 1) * sizeof *work.sums);
    if (work.sums == NULL) {
        PyErr_NoMemory();
        goto close;
    }

    Py_BEGIN_ALLOW_THREADS
    all_means(&work);
    Py_END_ALLOW_THREADS

    free(work.sums);
    result = Py_NewRef(Py_None);

close:
    PyBuffer_Release(&means);
end:
    PyBuffer_Release(&pixels);
    return result;
}

/* ---- resampling ---- */

/* Take one axis; whether it makes `count` pixels of those that are there. Room for its pairs is the caller's. */
static int take_axis(Axis *axis, const Py_buffer *first, const Py_buffer *weights, Py_ssize_t count, Py_ssize_t there)
{
    const Py_ssize_t taps = count < 1 ? 0 : weights->len / ((Py_ssize_t)sizeof(int32_t) * count);

    *axis = (Axis){first->buf, weights->buf, (size_t)count, (size_t)taps, NULL};
    if (taps < 2 || taps % 2 != 0 || weights->len != taps * count * (Py_ssize_t)sizeof(int32_t) ||
        first->len != count * (Py_ssize_t)sizeof(int32_t))
        return 0;
    for (Py_ssize_t at = 0; at < count; at++)
        if (axis->first[at] < (at == 0 ? 0 : axis->first[at - 1]) || axis->first[at] > there - taps)
            return 0;
    for (Py_ssize_t at = 0; at < count; at++) {
        int64_t sum = 0;
        for (const int32_t *weight = axis->weights + at * taps; weight < axis->weights + (at + 1) * taps; weight++) {
            if (*weight < 0 || *weight > 1 << WEIGHT_BITS)
                return 0;
            sum += *weight;
        }
        if (sum > (1 << WEIGHT_BITS) + taps) /* each may have been rounded up */
            return 0;
    }
    return 1;
}

static PyObject *resample_pixels(PyObject *module, PyObject *arguments)
{
    Py_buffer pixels, out, columns, column_weights, rows, row_weights;
    PyObject *from, *to, *result = NULL;
    const unsigned char **ring_rows = NULL;
    Resampling work = {0};

    (void)module;
    if (!PyArg_ParseTuple(arguments, "Oy*y*y*y*O:resample_pixels", &from, &columns, &column_weights, &rows,
                          &row_weights, &to))
        return NULL;
    if (PyObject_GetBuffer(from, &pixels, PyBUF_C_CONTIGUOUS) < 0)
        goto end;
    if (PyObject_GetBuffer(to, &out, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS) < 0)
        goto close_pixels;
    if (pixels.ndim != 3 || out.ndim != 3 || pixels.itemsize != 1 || out.itemsize != 1 ||
        pixels.shape[2] != CHANNELS || out.shape[2] != CHANNELS ||
        !take_axis(&work.across, &columns, &column_weights, out.shape[1], pixels.shape[1]) ||
        !take_axis(&work.down, &rows, &row_weights, out.shape[0], pixels.shape[0])) {
        PyErr_SetString(PyExc_TypeError, "the arrays' sizes do not belong together");
        goto close;
    }
    work.pixels = pixels.buf, work.out = out.buf, work.width = (size_t)pixels.shape[1];
    work.across.pairs = malloc((size_t)column_weights.len);
    work.down.pairs = malloc((size_t)row_weights.len);
    work.ring = malloc(work.down.taps * (work.across.count * CHANNELS + 1));
    ring_rows = malloc(work.down.taps * sizeof *ring_rows);
    if (work.across.pairs == NULL || work.down.pairs == NULL || work.ring == NULL || ring_rows == NULL) {
        PyErr_NoMemory();
    } else {
        Py_BEGIN_ALLOW_THREADS
        resample_all(&work, ring_rows);
        Py_END_ALLOW_THREADS
        result = Py_NewRef(Py_None);
    }
    free(ring_rows);
    free(work.ring);
    free(work.down.pairs);
    free(work.across.pairs);

close:
    PyBuffer_Release(&out);
close_pixels:
    PyBuffer_Release(&pixels);
end:
    PyBuffer_Release(&columns);
    PyBuffer_Release(&column_weights);
    PyBuffer_Release(&rows);
    PyBuffer_Release(&row_weights);
    return result;
}

static PyMethodDef methods[] = {
    {"open_library", open_library, METH_O, "Decode with the libjpeg-turbo of this file, from now on."},
    {"reduce_pixels", reduce_pixels, METH_VARARGS, "Means of squares of pixels."},
    {"resample_pixels", resample_pixels, METH_VARARGS, "Pixels as weighted means of others."},
    {"start_patches", start_patches, METH_VARARGS, "What some patches need, and white where there is nothing."},
    {"read_tiles", read_tiles, METH_VARARGS, "Read, decode and hand out tiles; see plain_tiles.py."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "hagmil.runtime.tiles._tile_kernel",
    .m_doc = "The compiled tile kernel, with libjpeg-turbo.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__tile_kernel(void)
{
    return PyModuleDef_Init(&definition);
}
