/*
 * The compiled tile kernel: reads and decodes the JPEG tiles of a chunk of patches and copies them, in one call.
 *
 * hagmil/runtime/tiles/kernel_numpy.py is its NumPy equivalent. It gives the same pixels and errors, and takes the same
 * arguments except for resampling; its docstrings describe them. One contract test covers both.
 *
 * 1. The arguments are checked and converted to C structures while the GIL is held. It is released for the other steps
 *    (_tile_decoder.h, _tile_work.h).
 * 2. Each tile that is not decoded yet is read with pread. The tables that the tiles share are parsed once; the decoder
 *    keeps them.
 * 3. The tile is decoded into its buffer. A tile without a buffer is needed by no other chunk: it is decoded into the
 *    scratch tile, and only the pixels that patches need; or directly into the patch, if the whole tile belongs there.
 * 4. The parts of the tile, or the means of their squares, are written to the patches while the tile is still in the
 *    processor's cache.
 *
 * Two properties of the memory give most of the speed; docs/decisions/0012-tile-engine.md has the figures.
 * libjpeg-turbo bypasses the cache for rows that are aligned to its vectors, so the caller must pass unaligned buffers
 * for tiles that are copied from. Patches are large in total and not read again soon, so they are written with
 * streaming stores, in whole cache lines. Means are fewer and are written normally.
 *
 * The module also reduces (_reduction.h) and resamples (_resampling.h) pixels that were assembled in other ways. This
 * is several times as fast as Pillow, which stores four bytes per pixel.
 *
 * The only state between calls is the table of library functions (_libjpeg.h), which is set before the first call. Any
 * number of threads may call the module at the same time.
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000 /* includes buffers since Python 3.11; one binary for all later versions */
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

/* Convert the tiles to C structures, and acquire their buffers. Return the number of acquired buffers; an exception is
 * set unless `*valid`. */
static Py_ssize_t take_tiles(Work *work, PyObject *indices, PyObject *tile_buffers, Py_ssize_t decoded,
                             Py_buffer *buffers, int *valid)
{
    const int64_t level_tiles = tiles_of(work);
    const Py_ssize_t bytes = (Py_ssize_t)(work->tile_width * work->tile_height * CHANNELS);
    Py_ssize_t held = 0;

    *valid = 0;
    for (Py_ssize_t place = 0; place < work->tile_count; place++) {
        Tile *tile = &work->tiles[place];
        PyObject *buffer = PyList_GetItem(tile_buffers, place);
        tile->index = PyLong_AsLongLong(PyList_GetItem(indices, place));
        tile->decoded = place < decoded;
        tile->pixels = NULL;
        if (PyErr_Occurred())
            return held;
        if (tile->index < 0 || tile->index >= level_tiles || (buffer == Py_None && tile->decoded)) {
            PyErr_Format(PyExc_TypeError, "tile %lld does not exist", (long long)tile->index);
            return held;
        }
        if (buffer == Py_None)
            continue;
        if (PyObject_GetBuffer(buffer, &buffers[held], PyBUF_WRITABLE) < 0)
            return held;
        tile->pixels = buffers[held].buf;
        if (buffers[held++].len != bytes) {
            PyErr_SetString(PyExc_TypeError, "the buffer of a tile has the wrong size");
            return held;
        }
    }
    *valid = 1;
    return held;
}

/* Set the patches and their corners, and return whether their shapes match. */
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

/* Return whether no square of `shrink` x `shrink` pixels crosses a tile border. */
static int squares_fit(const Work *work)
{
    for (Py_ssize_t patch = 0; patch < work->patch_count; patch++)
        if (work->corners[2 * patch] % work->shrink || work->corners[2 * patch + 1] % work->shrink)
            return 0;
    return work->tile_width % work->shrink == 0 && work->tile_height % work->shrink == 0;
}

/* Return whether the shapes of all other arrays match. */
static int sizes_fit(const Work *work, Py_ssize_t tile_buffers, const Py_buffer *offsets, const Py_buffer *sizes,
                     const Py_buffer *scratch)
{
    if (work->width < 1 || work->height < 1 || work->tile_width < 1 || work->tile_height < 1 || work->head_bytes < 2)
        return 0;
    return work->tile_count == tile_buffers && offsets->len == sizes->len && offsets->len / 8 >= tiles_of(work) &&
           scratch->len == work->tile_width * work->tile_height * CHANNELS;
}

static PyObject *read_tiles(PyObject *module, PyObject *arguments)
{
    Py_buffer head, offsets, sizes, corners, scratch, patches = {0}, *buffers = NULL;
    PyObject *indices, *tile_buffers, *out, *result = NULL;
    Py_ssize_t width, height, tile_width, tile_height, shrink, decoded, done, held = 0;
    Work work = {0};
    Decoder *decoder = NULL;
    int valid = 0;

    (void)module;
    if (libjpeg.jpeg_std_error == NULL) {
        PyErr_SetString(PyExc_RuntimeError, "open_library was not called");
        return NULL;
    }
    if (!PyArg_ParseTuple(arguments, "iy*y*y*(nn)(nn)O!O!ny*nOw*p:read_tiles", &work.descriptor, &head, &offsets,
                          &sizes, &width, &height, &tile_width, &tile_height, &PyList_Type, &indices, &PyList_Type,
                          &tile_buffers, &decoded, &corners, &shrink, &out, &scratch, &work.bypass_cache))
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
        !sizes_fit(&work, PyList_Size(tile_buffers), &offsets, &sizes, &scratch)) {
        PyErr_SetString(PyExc_TypeError, "the shapes of the arrays do not match");
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
    held = take_tiles(&work, indices, tile_buffers, decoded, buffers, &valid);
    if (!valid)
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
    PyBuffer_Release(&patches); /* no effect if there is none */
    return result;
}

/* ---- before a chunk is read: white padding and the needed tiles ---- */

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

/* Fill a patch that extends beyond the level with white, and count the tiles that it touches. */
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
        PyErr_SetString(PyExc_TypeError, "the shapes of the arrays do not match");
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
        PyErr_SetString(PyExc_TypeError, "the shapes of the arrays do not match");
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

/* Set the filter of one axis, and return whether it is valid for `count` pixels from `there` pixels. The caller
 * allocates `pairs`. */
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
        if (sum > (1 << WEIGHT_BITS) + taps) /* each weight may have been rounded up */
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
        PyErr_SetString(PyExc_TypeError, "the shapes of the arrays do not match");
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
    {"open_library", open_library, METH_O, "Use the libjpeg-turbo of this file in all later calls."},
    {"reduce_pixels", reduce_pixels, METH_VARARGS, "Means of squares of pixels."},
    {"resample_pixels", resample_pixels, METH_VARARGS, "Pixels as weighted means of other pixels."},
    {"start_patches", start_patches, METH_VARARGS, "Count the tiles that patches need, and fill padding with white."},
    {"read_tiles", read_tiles, METH_VARARGS, "Read and decode tiles, and copy them to patches; see kernel_numpy.py."},
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
