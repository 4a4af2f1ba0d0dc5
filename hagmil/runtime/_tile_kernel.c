/*
 * The compiled tile kernel: reads, decodes and hands out the JPEG tiles of a chunk of patches in one call.
 *
 * hagmil/runtime/plain_tiles.py is its plain twin: same arguments, same pixels, same errors; that module says what
 * the arguments are. One contract test holds both.
 *
 * 1. Arguments are checked and turned into plain C while the interpreter is held. It is let go for all that follows.
 * 2. Tile after tile that is not decoded yet is read by pread, behind the head that makes a JPEG stream of it.
 * 3. It is decoded into the memory that the caller holds for it. Where nothing is held, no other chunk needs it: then it is
 *    decoded into the scratch tile, or, where all of it goes to one place, right there.
 * 4. Its parts are copied to the patches at once, while the processor's cache still holds it.
 *
 * Two facts about memory make up most of the speed; docs/decisions/0012-tile-engine.md has the figures. libjpeg-turbo writes
 * past the cache where rows are aligned to its vectors, so a tile that is copied from must NOT be aligned: the caller sees
 * to that. Patches are not read again soon and are many, so they are written past the cache, in whole lines.
 *
 * Besides, pixels are reduced by whole numbers here, several times as fast as by Pillow, which keeps four bytes a pixel.
 *
 * There is no state beyond a call, so any number of threads may be in here at once.
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000 /* buffers are part of it since Python 3.11: one binary for all later ones */
#include <Python.h>

#include <errno.h>
#include <setjmp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include <jpeglib.h>

#ifndef LIBJPEG_TURBO_VERSION
#error "hagmil's tile kernel needs libjpeg-turbo: pixels of other libjpegs differ, and they are several times slower"
#endif

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define TEXT_OF(value) #value
#define VALUE_TEXT(macro) TEXT_OF(macro)

#define CHANNELS 3
#define WHITE 255
#define MOST_REDUCED 256 /* above, sums do not fit into 16 and 32 bits */
#define LINE_BYTES 64 /* of the processor's cache */

/* ---- what a call works on ---- */

typedef struct {
    int64_t index;         /* row after row of the level's tiles */
    unsigned char *pixels; /* memory held for it; NULL where none is */
    int decoded;           /* whether its pixels are there already */
} Tile;

typedef struct {
    int descriptor;
    const unsigned char *head; /* the start of every tile's JPEG stream */
    size_t head_bytes;
    const int64_t *offsets, *sizes; /* of the encoded tiles */
    int64_t width, height;          /* of the level */
    int64_t tile_width, tile_height;
    Tile *tiles;
    Py_ssize_t tile_count;
    const int64_t *corners; /* (patch_count, 2): x, y in the level's pixels */
    unsigned char *patches; /* (patch_count, patch_height, patch_width, 3) */
    Py_ssize_t patch_count;
    int64_t patch_width, patch_height;
    unsigned char *scratch; /* one tile */
    int past_cache;         /* whether patches are written past the cache */
} Work;

/* A part of a patch that a tile covers, in the level's pixels. */
typedef struct {
    int64_t left, upper, right, lower;
    Py_ssize_t patch;
} Part;

typedef struct {
    struct jpeg_error_mgr errors; /* first, so that libjpeg's pointer to it is a pointer to all of this */
    jmp_buf failed;
    char message[JMSG_LENGTH_MAX];
    struct jpeg_decompress_struct jpeg;
    unsigned char *stream; /* the encoded tile, its head included */
    size_t stream_bytes;   /* that there is room for */
    JSAMPROW *rows;        /* one pointer for each row of a tile */
} Decoder;

/* ---- libjpeg's errors: its warnings are errors here, for a damaged tile is no tile ---- */

static void on_error(j_common_ptr common)
{
    Decoder *decoder = (Decoder *)common->err;
    decoder->errors.format_message(common, decoder->message);
    longjmp(decoder->failed, 1);
}

static void on_message(j_common_ptr common, int level)
{
    if (level < 0) /* a warning; the rest are traces */
        on_error(common);
}

static void say_nothing(j_common_ptr common)
{
    (void)common;
}

static int decoder_open(Decoder *decoder, int64_t tile_height)
{
    memset(decoder, 0, sizeof *decoder);
    decoder->jpeg.err = jpeg_std_error(&decoder->errors);
    decoder->errors.error_exit = on_error;
    decoder->errors.emit_message = on_message;
    decoder->errors.output_message = say_nothing;
    decoder->rows = malloc((size_t)tile_height * sizeof *decoder->rows);
    if (decoder->rows == NULL) {
        strcpy(decoder->message, "out of memory");
        return -1;
    }
    if (setjmp(decoder->failed))
        return -1;
    jpeg_create_decompress(&decoder->jpeg);
    return 0;
}

static void decoder_close(Decoder *decoder)
{
    jpeg_destroy_decompress(&decoder->jpeg); /* nothing happens where it was never created */
    free(decoder->rows);
    free(decoder->stream);
}

/* ---- steps 2 and 3 ---- */

/* Put the tile's JPEG stream together; its length, or 0 and a message. */
static size_t read_stream(Decoder *decoder, const Work *work, int64_t tile)
{
    const size_t size = (size_t)work->sizes[tile];
    const size_t length = work->head_bytes + size - 2; /* the head has a start of its own */
    unsigned char *data;
    size_t had = 0;

    if (work->sizes[tile] < 2)
        goto no_stream;
    if (length > decoder->stream_bytes) {
        unsigned char *larger = realloc(decoder->stream, length);
        if (larger == NULL) {
            strcpy(decoder->message, "out of memory");
            return 0;
        }
        decoder->stream = larger;
        decoder->stream_bytes = length;
    }
    data = decoder->stream + work->head_bytes - 2;
    while (had < size) {
        ssize_t got = pread(work->descriptor, data + had, size - had, (off_t)(work->offsets[tile] + (int64_t)had));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            snprintf(decoder->message, sizeof decoder->message, "its bytes cannot be read (errno %d)", errno);
            return 0;
        }
        if (got == 0)
            goto no_stream;
        had += (size_t)got;
    }
    if (data[0] != 0xff || data[1] != 0xd8)
        goto no_stream;
    memcpy(decoder->stream, work->head, work->head_bytes); /* its last two bytes take the place of the tile's start */
    return length;

no_stream:
    strcpy(decoder->message, "its bytes are no JPEG stream");
    return 0;
}

/* Decode a tile to rows that lie `pitch` bytes apart; 0, or -1 and a message. */
static int decode(Decoder *decoder, const Work *work, int64_t tile, unsigned char *to, size_t pitch)
{
    struct jpeg_decompress_struct *jpeg = &decoder->jpeg;
    size_t length = read_stream(decoder, work, tile);

    if (length == 0)
        return -1;
    for (int64_t row = 0; row < work->tile_height; row++)
        decoder->rows[row] = to + (size_t)row * pitch;
    if (setjmp(decoder->failed)) {
        jpeg_abort_decompress(jpeg); /* ready for nothing but being destroyed, and for that in any state */
        return -1;
    }
    jpeg_mem_src(jpeg, decoder->stream, (unsigned long)length);
    jpeg_read_header(jpeg, TRUE);
    if (jpeg->image_width != work->tile_width || jpeg->image_height != work->tile_height) {
        snprintf(decoder->message, sizeof decoder->message, "it holds %u x %u px", jpeg->image_width,
                 jpeg->image_height);
        longjmp(decoder->failed, 1);
    }
    if (jpeg->num_components != CHANNELS) {
        strcpy(decoder->message, "it does not hold three channels");
        longjmp(decoder->failed, 1);
    }
    jpeg->out_color_space = JCS_RGB; /* all else stays at the defaults: the accurate transform, smooth chroma */
    jpeg_start_decompress(jpeg);
    while (jpeg->output_scanline < jpeg->output_height)
        jpeg_read_scanlines(jpeg, decoder->rows + jpeg->output_scanline, jpeg->output_height - jpeg->output_scanline);
    jpeg_finish_decompress(jpeg);
    return 0;
}

/* ---- step 4 ---- */

static void copy_past_cache(unsigned char *to, const unsigned char *from, size_t count)
{
#ifdef __SSE2__
    /* Only whole lines: a line that is written past the cache in parts costs more than it saves. */
    size_t before = (size_t)(-(uintptr_t)to) % LINE_BYTES;
    before = before < count ? before : count;
    memcpy(to, from, before);
    to += before, from += before, count -= before;
    for (; count >= LINE_BYTES; to += LINE_BYTES, from += LINE_BYTES, count -= LINE_BYTES)
        for (int part = 0; part < LINE_BYTES; part += 16)
            _mm_stream_si128((__m128i *)(to + part), _mm_loadu_si128((const __m128i *)(from + part)));
#endif
    memcpy(to, from, count);
}

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* The part of a patch that a tile covers; whether there is any. */
static int part_of(const Work *work, int64_t tile_x, int64_t tile_y, Py_ssize_t patch, Part *part)
{
    const int64_t x = work->corners[2 * patch], y = work->corners[2 * patch + 1];

    part->patch = patch;
    part->left = most(tile_x, x);
    part->upper = most(tile_y, y);
    part->right = least(least(tile_x + work->tile_width, work->width), x + work->patch_width);
    part->lower = least(least(tile_y + work->tile_height, work->height), y + work->patch_height);
    return part->left < part->right && part->upper < part->lower;
}

static unsigned char *place_of(const Work *work, const Part *part)
{
    const int64_t column = part->left - work->corners[2 * part->patch];
    const int64_t row = part->upper - work->corners[2 * part->patch + 1];

    return work->patches +
           CHANNELS * ((part->patch * work->patch_height + row) * work->patch_width + column);
}

static void copy_part(const Work *work, int64_t tile_x, int64_t tile_y, const unsigned char *pixels, const Part *part)
{
    const size_t bytes = (size_t)(part->right - part->left) * CHANNELS;
    const size_t from_pitch = (size_t)work->tile_width * CHANNELS, to_pitch = (size_t)work->patch_width * CHANNELS;
    const unsigned char *from =
        pixels + CHANNELS * ((part->upper - tile_y) * work->tile_width + part->left - tile_x);
    unsigned char *to = place_of(work, part);

    for (int64_t row = part->upper; row < part->lower; row++, from += from_pitch, to += to_pitch) {
        if (work->past_cache)
            copy_past_cache(to, from, bytes);
        else
            memcpy(to, from, bytes);
    }
}

/* Where all of a tile goes to one patch, its place there; else NULL. */
static unsigned char *whole_place(const Work *work, int64_t tile_x, int64_t tile_y)
{
    unsigned char *place = NULL;
    Part part;

    for (Py_ssize_t patch = 0; patch < work->patch_count; patch++) {
        if (!part_of(work, tile_x, tile_y, patch, &part))
            continue;
        if (place != NULL || part.right - part.left < work->tile_width || part.lower - part.upper < work->tile_height)
            return NULL;
        place = place_of(work, &part);
    }
    return place;
}

static int do_tile(Decoder *decoder, const Work *work, const Tile *tile)
{
    const int64_t across = (work->width + work->tile_width - 1) / work->tile_width;
    const int64_t tile_x = tile->index % across * work->tile_width, tile_y = tile->index / across * work->tile_height;
    unsigned char *pixels = tile->pixels;
    Part part;

    if (pixels == NULL) {
        unsigned char *place = whole_place(work, tile_x, tile_y);
        if (place != NULL)
            return decode(decoder, work, tile->index, place, (size_t)work->patch_width * CHANNELS);
        pixels = work->scratch;
    }
    if (!tile->decoded && decode(decoder, work, tile->index, pixels, (size_t)work->tile_width * CHANNELS) < 0)
        return -1;
    for (Py_ssize_t patch = 0; patch < work->patch_count; patch++)
        if (part_of(work, tile_x, tile_y, patch, &part))
            copy_part(work, tile_x, tile_y, pixels, &part);
    return 0;
}

/* All tiles in order: how many were done before the first that failed. */
static Py_ssize_t do_all(Decoder *decoder, const Work *work)
{
    Py_ssize_t done = 0;

    if (decoder_open(decoder, work->tile_height) == 0)
        while (done < work->tile_count && do_tile(decoder, work, &work->tiles[done]) == 0)
            done++;
    decoder_close(decoder);
#ifdef __SSE2__
    _mm_sfence(); /* what went past the cache is there before another thread is told so */
#endif
    return done;
}

/* ---- step 1 ---- */

/* The tiles as plain C, their memory held by `buffers`; how many of those are held, all is well only if `*fine`. */
static Py_ssize_t take_tiles(Work *work, PyObject *indices, PyObject *memories, Py_ssize_t decoded, Py_ssize_t level_tiles,
                             Py_buffer *buffers, int *fine)
{
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
    work->patch_count = patches->shape[0], work->patch_height = patches->shape[1], work->patch_width = patches->shape[2];
    return corners->len == 16 * work->patch_count && work->patch_height > 0 && work->patch_width > 0;
}

/* Whether the sizes of all other arrays belong together. */
static int sizes_fit(const Work *work, Py_ssize_t memories, const Py_buffer *offsets, const Py_buffer *sizes,
                     const Py_buffer *scratch)
{
    if (work->width < 1 || work->height < 1 || work->tile_width < 1 || work->tile_height < 1 || work->head_bytes < 2)
        return 0;
    const int64_t across = (work->width + work->tile_width - 1) / work->tile_width;
    const int64_t down = (work->height + work->tile_height - 1) / work->tile_height;
    return work->tile_count == memories && offsets->len == sizes->len && offsets->len / 8 >= across * down &&
           scratch->len == work->tile_width * work->tile_height * CHANNELS;
}

static PyObject *read_tiles(PyObject *module, PyObject *arguments)
{
    Py_buffer head, offsets, sizes, corners, scratch, patches = {0}, *buffers = NULL;
    PyObject *indices, *memories, *out, *result = NULL;
    Py_ssize_t width, height, tile_width, tile_height, decoded, done, held = 0;
    Work work = {0};
    Decoder *decoder = NULL;
    int fine = 0;

    (void)module;
    if (!PyArg_ParseTuple(arguments, "iy*y*y*(nn)(nn)O!O!ny*Ow*p:read_tiles", &work.descriptor, &head, &offsets,
                          &sizes, &width, &height, &tile_width, &tile_height, &PyList_Type, &indices, &PyList_Type,
                          &memories, &decoded, &corners, &out, &scratch, &work.past_cache))
        return NULL;
    if (PyObject_GetBuffer(out, &patches, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS) < 0)
        goto end;
    work.head = head.buf, work.head_bytes = (size_t)head.len;
    work.offsets = offsets.buf, work.sizes = sizes.buf;
    work.width = width, work.height = height;
    work.tile_width = tile_width, work.tile_height = tile_height;
    work.tile_count = PyList_Size(indices);
    work.scratch = scratch.buf;
    if (!take_patches(&work, &corners, &patches) ||
        !sizes_fit(&work, PyList_Size(memories), &offsets, &sizes, &scratch)) {
        PyErr_SetString(PyExc_TypeError, "the arrays' sizes do not belong together");
        goto end;
    }
    decoder = malloc(sizeof *decoder);
    work.tiles = malloc(((size_t)work.tile_count + 1) * sizeof *work.tiles);
    buffers = malloc(((size_t)work.tile_count + 1) * sizeof *buffers);
    if (decoder == NULL || work.tiles == NULL || buffers == NULL) {
        PyErr_NoMemory();
        goto end;
    }
    held = take_tiles(&work, indices, memories, decoded, offsets.len / 8, buffers, &fine);
    if (!fine)
        goto end;

    Py_BEGIN_ALLOW_THREADS
    done = do_all(decoder, &work);
    Py_END_ALLOW_THREADS

    if (done == work.tile_count) {
        result = Py_NewRef(Py_None);
    } else {
        PyObject *text = PyUnicode_DecodeUTF8(decoder->message, (Py_ssize_t)strlen(decoder->message), "replace");
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
    const int64_t left = most(x, 0), right = least(x + work->patch_width, work->width);
    const int64_t upper = most(y, 0), lower = least(y + work->patch_height, work->height);
    const int64_t across = (work->width + work->tile_width - 1) / work->tile_width;
    const size_t bytes = (size_t)(work->patch_height * work->patch_width * CHANNELS);

    if (right - left < work->patch_width || lower - upper < work->patch_height)
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
    Py_ssize_t width, height, tile_width, tile_height;
    Work work = {0};

    (void)module;
    if (!PyArg_ParseTuple(arguments, "(nn)(nn)y*O:start_patches", &width, &height, &tile_width, &tile_height, &corners,
                          &out))
        return NULL;
    if (PyObject_GetBuffer(out, &patches, PyBUF_WRITABLE | PyBUF_C_CONTIGUOUS) < 0)
        goto end;
    work.width = width, work.height = height;
    work.tile_width = tile_width, work.tile_height = tile_height;
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

/* ---- reduction: what Pillow's Image.reduce gives, to the last bit ---- */

typedef struct {
    const unsigned char *pixels; /* (height * factor, width * factor, 3) */
    unsigned char *means;        /* (height, width, 3) */
    size_t height, width, factor;
    uint16_t *sums; /* of the columns of `factor` rows: 257 rows of 255 fit */
} Reduction;

/* The means of one row; `factor` is a constant wherever it is small, for the compiler's sake. */
static inline void row_of_means(const Reduction *work, size_t row, size_t factor)
{
    const size_t values = work->width * factor * CHANNELS;
    const unsigned char *pixels = work->pixels + row * factor * values;
    unsigned char *means = work->means + row * work->width * CHANNELS;
    const uint32_t count = (uint32_t)(factor * factor);
    const uint32_t share = (1u << 24) / count; /* Pillow's arithmetic: 24 bits behind the point, rounded down */

    for (size_t value = 0; value < values; value++)
        work->sums[value] = pixels[value];
    for (size_t line = 1; line < factor; line++)
        for (size_t value = 0; value < values; value++)
            work->sums[value] = (uint16_t)(work->sums[value] + pixels[line * values + value]);
    for (size_t column = 0; column < work->width; column++) {
        const uint16_t *sums = work->sums + column * factor * CHANNELS;
        for (size_t channel = 0; channel < CHANNELS; channel++) {
            uint32_t sum = count / 2;
            for (size_t pixel = 0; pixel < factor; pixel++)
                sum += sums[pixel * CHANNELS + channel];
            means[column * CHANNELS + channel] = (unsigned char)(sum * share >> 24);
        }
    }
}

static void all_means(const Reduction *work)
{
    for (size_t row = 0; row < work->height; row++) {
        if (work->factor == 2)
            row_of_means(work, row, 2);
        else if (work->factor == 4)
            row_of_means(work, row, 4);
        else
            row_of_means(work, row, work->factor);
    }
}

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
    if (factor < 1 || factor > MOST_REDUCED || pixels.ndim != 3 || means.ndim != 3 || pixels.itemsize != 1 ||
        means.itemsize != 1 || pixels.shape[2] != CHANNELS || means.shape[2] != CHANNELS ||
        pixels.shape[0] != means.shape[0] * factor || pixels.shape[1] != means.shape[1] * factor) {
        PyErr_SetString(PyExc_TypeError, "the arrays' sizes do not belong together");
        goto close;
    }
    work = (Reduction){pixels.buf, means.buf, (size_t)means.shape[0], (size_t)means.shape[1], (size_t)factor, NULL};
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

static PyMethodDef methods[] = {
    {"reduce_pixels", reduce_pixels, METH_VARARGS, "Means of squares of pixels."},
    {"start_patches", start_patches, METH_VARARGS, "What some patches need, and white where there is nothing."},
    {"read_tiles", read_tiles, METH_VARARGS, "Read, decode and hand out the tiles of some patches; see plain_tiles.py."},
    {NULL, NULL, 0, NULL},
};

static int add_version(PyObject *module)
{
    return PyModule_AddStringConstant(module, "LIBJPEG_TURBO", VALUE_TEXT(LIBJPEG_TURBO_VERSION));
}

static PyModuleDef_Slot slots[] = {{Py_mod_exec, add_version}, {0, NULL}};

static struct PyModuleDef definition = {
    .m_base = PyModuleDef_HEAD_INIT,
    .m_name = "hagmil.runtime._tile_kernel",
    .m_doc = "The compiled tile kernel, with libjpeg-turbo.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__tile_kernel(void)
{
    return PyModuleDef_Init(&definition);
}
