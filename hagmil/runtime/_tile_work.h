/*
 * What the tile kernel does without the interpreter: steps 2 to 4 of _tile_kernel.c, in plain C.
 */

#ifndef HAGMIL_TILE_WORK_H
#define HAGMIL_TILE_WORK_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "_libjpeg.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define CHANNELS 3
#define LINE_BYTES 64 /* of the processor's cache */
#define ROWS_AHEAD 8
#define ADOBE_YCBCR 1 /* the transform that an Adobe marker names */

/* Markers of a JPEG stream, each behind the byte MARKER. */
enum {
    MARKER = 0xff,
    BASELINE = 0xc0,
    START = 0xd8,
    SCAN = 0xda,
    RESTARTS = 0xdd,
    FIRST_APPLICATION = 0xe0,
    LAST_APPLICATION = 0xef,
    COMMENT = 0xfe
};

#ifdef __GNUC__
#define PREFETCH(address) __builtin_prefetch(address, 1)
#else
#define PREFETCH(address) ((void)(address))
#endif

/* ---- what a call works on ---- */

typedef struct {
    int64_t index;         /* row after row of the level's tiles */
    unsigned char *pixels; /* memory held for it; NULL where none is */
    int decoded;           /* whether its pixels are there already */
} Tile;

typedef struct {
    int descriptor;
    const unsigned char *head; /* a JPEG stream of what all tiles share: tables, and an Adobe marker for colours */
    size_t head_bytes;
    const int64_t *offsets, *sizes; /* of the encoded tiles */
    int64_t width, height;          /* of the level */
    int64_t tile_width, tile_height;
    Tile *tiles;
    ptrdiff_t tile_count;
    const int64_t *corners; /* (patch_count, 2): x, y in the level's pixels */
    unsigned char *patches; /* (patch_count, patch_height, patch_width, 3) */
    ptrdiff_t patch_count;
    int64_t patch_width, patch_height;
    unsigned char *scratch; /* one tile */
    int past_cache;         /* whether patches are written past the cache */
} Work;

/* A part of a patch that a tile covers, in the level's pixels. */
typedef struct {
    int64_t left, upper, right, lower;
    ptrdiff_t patch;
} Part;

typedef struct {
    Failure failure;
    struct jpeg_decompress_struct jpeg;
    int has_head;          /* whether it holds the tables of the head, and no others */
    J_COLOR_SPACE colours; /* of tiles that do not say it themselves */
    unsigned char *stream; /* the encoded tile */
    size_t stream_bytes;   /* that there is room for */
    JSAMPROW *rows;        /* one pointer for each row of a tile */
} Decoder;

static int decoder_open(Decoder *decoder, int64_t tile_height)
{
    memset(decoder, 0, sizeof *decoder);
    decoder->jpeg.err = report_to(&libjpeg, &decoder->failure);
    decoder->rows = malloc((size_t)tile_height * sizeof *decoder->rows);
    if (decoder->rows == NULL) {
        strcpy(decoder->failure.message, "out of memory");
        return -1;
    }
    if (setjmp(decoder->failure.failed))
        return -1;
    libjpeg.jpeg_CreateDecompress(&decoder->jpeg, JPEG_LIB_VERSION, sizeof decoder->jpeg);
    return 0;
}

static void decoder_close(Decoder *decoder)
{
    libjpeg.jpeg_destroy_decompress(&decoder->jpeg); /* nothing happens where it was never created */
    free(decoder->rows);
    free(decoder->stream);
}

/* ---- steps 2 and 3 ---- */

/* Read the tile's JPEG stream; its length, or 0 and a message. */
static size_t read_stream(Decoder *decoder, const Work *work, int64_t tile)
{
    const size_t size = (size_t)work->sizes[tile];
    size_t had = 0;

    if (work->sizes[tile] < 2)
        goto no_stream;
    if (size > decoder->stream_bytes) {
        unsigned char *larger = realloc(decoder->stream, size);
        if (larger == NULL) {
            strcpy(decoder->failure.message, "out of memory");
            return 0;
        }
        decoder->stream = larger;
        decoder->stream_bytes = size;
    }
    while (had < size) {
        ssize_t got = pread(work->descriptor, decoder->stream + had, size - had,
                            (off_t)(work->offsets[tile] + (int64_t)had));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0) {
            snprintf(decoder->failure.message, sizeof decoder->failure.message, "its bytes cannot be read (errno %d)",
                     errno);
            return 0;
        }
        if (got == 0)
            goto no_stream;
        had += (size_t)got;
    }
    if (decoder->stream[0] == MARKER && decoder->stream[1] == START)
        return size;

no_stream:
    strcpy(decoder->failure.message, "its bytes are no JPEG stream");
    return 0;
}

/* Have the decoder hold the head's tables and no others; errors jump. */
static void read_head(Decoder *decoder, const Work *work)
{
    struct jpeg_decompress_struct *jpeg = &decoder->jpeg;

    for (int table = 0; table < NUM_QUANT_TBLS; table++)
        jpeg->quant_tbl_ptrs[table] = NULL;
    for (int table = 0; table < NUM_HUFF_TBLS; table++)
        jpeg->dc_huff_tbl_ptrs[table] = jpeg->ac_huff_tbl_ptrs[table] = NULL;
    libjpeg.jpeg_mem_src(jpeg, work->head, (unsigned long)work->head_bytes);
    if (libjpeg.jpeg_read_header(jpeg, FALSE) != JPEG_HEADER_TABLES_ONLY) {
        strcpy(decoder->failure.message, "the tables that it shares with others hold an image");
        longjmp(decoder->failure.failed, 1);
    }
    decoder->colours = jpeg->Adobe_transform == ADOBE_YCBCR ? JCS_YCbCr : JCS_RGB;
}

/*
 * Whether a tile surely leaves the decoder's tables as they are: nothing comes before its only scan but what ends with
 * the tile. Where another marker is met, it is taken to bring tables.
 */
static int leaves_tables(const unsigned char *stream, size_t length)
{
    size_t at = 2;

    while (at + 5 <= length && stream[at] == MARKER) {
        const int kind = stream[at + 1];
        if (kind == SCAN)
            return stream[at + 4] == CHANNELS; /* all of them in one scan, so no other follows */
        const int harmless = kind == BASELINE || kind == COMMENT || kind == RESTARTS ||
                             (kind >= FIRST_APPLICATION && kind <= LAST_APPLICATION);
        if (!harmless)
            return 0;
        at += 2 + (size_t)(stream[at + 2] << 8 | stream[at + 3]);
    }
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
    if (setjmp(decoder->failure.failed)) {
        libjpeg.jpeg_abort_decompress(jpeg); /* ready for nothing but being destroyed, and for that in any state */
        return -1;
    }
    if (!decoder->has_head)
        read_head(decoder, work);
    decoder->has_head = leaves_tables(decoder->stream, length);
    libjpeg.jpeg_mem_src(jpeg, decoder->stream, (unsigned long)length);
    libjpeg.jpeg_read_header(jpeg, TRUE);
    if (jpeg->image_width != work->tile_width || jpeg->image_height != work->tile_height) {
        snprintf(decoder->failure.message, sizeof decoder->failure.message, "it holds %u x %u px", jpeg->image_width,
                 jpeg->image_height);
        longjmp(decoder->failure.failed, 1);
    }
    if (jpeg->num_components != CHANNELS) {
        strcpy(decoder->failure.message, "it does not hold three channels");
        longjmp(decoder->failure.failed, 1);
    }
    if (!jpeg->saw_JFIF_marker && !jpeg->saw_Adobe_marker)
        jpeg->jpeg_color_space = decoder->colours;
    jpeg->out_color_space = JCS_RGB; /* all else stays at the defaults: the accurate transform, smooth chroma */
    libjpeg.jpeg_start_decompress(jpeg);
    while (jpeg->output_scanline < jpeg->output_height)
        libjpeg.jpeg_read_scanlines(jpeg, decoder->rows + jpeg->output_scanline,
                                    jpeg->output_height - jpeg->output_scanline);
    libjpeg.jpeg_finish_decompress(jpeg);
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
static int part_of(const Work *work, int64_t tile_x, int64_t tile_y, ptrdiff_t patch, Part *part)
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
        if (row + ROWS_AHEAD < part->lower) { /* the lines at both ends are there when their turn comes */
            PREFETCH(to + ROWS_AHEAD * to_pitch);
            PREFETCH(to + ROWS_AHEAD * to_pitch + bytes - 1);
        }
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

    for (ptrdiff_t patch = 0; patch < work->patch_count; patch++) {
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
    for (ptrdiff_t patch = 0; patch < work->patch_count; patch++)
        if (part_of(work, tile_x, tile_y, patch, &part))
            copy_part(work, tile_x, tile_y, pixels, &part);
    return 0;
}

/* All tiles in order: how many were done before the first that failed. */
static ptrdiff_t do_all(Decoder *decoder, const Work *work)
{
    ptrdiff_t done = 0;

    if (decoder_open(decoder, work->tile_height) == 0)
        while (done < work->tile_count && do_tile(decoder, work, &work->tiles[done]) == 0)
            done++;
    decoder_close(decoder);
#ifdef __SSE2__
    _mm_sfence(); /* what went past the cache is there before another thread is told so */
#endif
    return done;
}

#endif
