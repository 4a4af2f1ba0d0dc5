/*
 * Steps 2 and 3 of _tile_kernel.c: read and decode a tile.
 */

#ifndef HAGMIL_TILE_DECODER_H
#define HAGMIL_TILE_DECODER_H

#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "_libjpeg.h"
#include "_tile_types.h"

#define ADOBE_YCBCR 1 /* value of the transform in an Adobe marker */
#define BESIDE 4      /* extra columns on each side of the needed ones; see read_box */
#define FROM_LEFT 16  /* the number of omitted columns on the left is a multiple of this */

/* Markers of a JPEG stream; each follows the byte MARKER. */
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

typedef struct {
    Failure failure;
    struct jpeg_decompress_struct jpeg;
    int has_head;          /* whether it has the tables of the head, and no others */
    J_COLOR_SPACE colours; /* of all tiles, from the TIFF tags */
    unsigned char *stream; /* buffer for the encoded tile */
    size_t stream_bytes;   /* size of the buffer */
    JSAMPROW *rows;        /* one pointer per row of a tile */
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
    libjpeg.jpeg_destroy_decompress(&decoder->jpeg); /* no effect if it was not created */
    free(decoder->rows);
    free(decoder->stream);
}

/* Read the JPEG stream of a tile. Return its length, or 0 and a message. */
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
            snprintf(decoder->failure.message, sizeof decoder->failure.message, "cannot be read (errno %d)",
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
    strcpy(decoder->failure.message, "not a JPEG stream");
    return 0;
}

/* Load the tables of the head into the decoder, and no others. Jumps on errors. */
static void read_head(Decoder *decoder, const Work *work)
{
    struct jpeg_decompress_struct *jpeg = &decoder->jpeg;

    for (int table = 0; table < NUM_QUANT_TBLS; table++)
        jpeg->quant_tbl_ptrs[table] = NULL;
    for (int table = 0; table < NUM_HUFF_TBLS; table++)
        jpeg->dc_huff_tbl_ptrs[table] = jpeg->ac_huff_tbl_ptrs[table] = NULL;
    libjpeg.jpeg_mem_src(jpeg, work->head, (unsigned long)work->head_bytes);
    if (libjpeg.jpeg_read_header(jpeg, FALSE) != JPEG_HEADER_TABLES_ONLY) {
        strcpy(decoder->failure.message, "the JPEG tables that the tiles share contain an image");
        longjmp(decoder->failure.failed, 1);
    }
    decoder->colours = jpeg->Adobe_transform == ADOBE_YCBCR ? JCS_YCbCr : JCS_RGB;
}

/*
 * Return whether a tile certainly does not change the tables of the decoder: the only markers before its only scan are
 * those whose effect ends with the tile. Any other marker is assumed to define tables.
 */
static int leaves_tables(const unsigned char *stream, size_t length)
{
    size_t at = 2;

    while (at + 5 <= length && stream[at] == MARKER) {
        const int kind = stream[at + 1];
        if (kind == SCAN)
            return stream[at + 4] == CHANNELS; /* one scan with all channels, so there is no other */
        const int harmless = kind == BASELINE || kind == COMMENT || kind == RESTARTS ||
                             (kind >= FIRST_APPLICATION && kind <= LAST_APPLICATION);
        if (!harmless)
            return 0;
        at += 2 + (size_t)(stream[at + 2] << 8 | stream[at + 3]);
    }
    return 0;
}

static void read_rows(Decoder *decoder, JDIMENSION end)
{
    struct jpeg_decompress_struct *jpeg = &decoder->jpeg;

    while (jpeg->output_scanline < end)
        libjpeg.jpeg_read_scanlines(jpeg, decoder->rows + jpeg->output_scanline, end - jpeg->output_scanline);
}

/*
 * Write the pixels of a box, and possibly others, to the rows of the decoder. The rest of the tile is parsed but not
 * decoded to pixels, so that damage is found regardless of the box. (libjpeg does not parse rows that are skipped at
 * the end, so the very last row is always decoded.)
 *
 * Smooth chroma upsampling reads two columns on each side, and is replaced by simple upsampling if very few columns are
 * requested in total. Rows that start at another column must be as unaligned to vectors as those that start at the
 * first. A lossless tile cannot be decoded in part, and an incomplete progressive tile is smoothed over a larger
 * distance; only sequential tiles are therefore decoded in part.
 */
static void read_box(Decoder *decoder, const Box *box)
{
    struct jpeg_decompress_struct *jpeg = &decoder->jpeg;
    const JDIMENSION height = jpeg->output_height, lower = (JDIMENSION)box->lower;
    JDIMENSION left = (JDIMENSION)most(box->left - BESIDE, 0) / FROM_LEFT * FROM_LEFT;
    JDIMENSION width = (JDIMENSION)least(box->right + BESIDE, jpeg->output_width) - left;

    if (jpeg->Ss != 0 || jpeg->Se != DCTSIZE2 - 1) { /* no scan of a progressive or lossless tile has both */
        read_rows(decoder, height);
        return;
    }
    if (width < jpeg->output_width) {
        libjpeg.jpeg_crop_scanline(jpeg, &left, &width); /* rounds to whole blocks */
        for (JDIMENSION row = 0; row < height; row++)
            decoder->rows[row] += left * CHANNELS;
    }
    if (box->upper > 0)
        libjpeg.jpeg_skip_scanlines(jpeg, (JDIMENSION)box->upper);
    read_rows(decoder, lower);
    if (lower + 1 < height)
        libjpeg.jpeg_skip_scanlines(jpeg, height - 1 - lower);
    read_rows(decoder, height);
}

/* Return whether the markers of a tile contradict the colours in the TIFF tags; see jpeg_colours.py. */
static int contradicts(const Decoder *decoder)
{
    const struct jpeg_decompress_struct *jpeg = &decoder->jpeg;
    const jpeg_component_info *parts = jpeg->comp_info;

    if (decoder->colours == JCS_RGB)
        return jpeg->saw_JFIF_marker || (jpeg->saw_Adobe_marker && jpeg->Adobe_transform != 0);
    return (jpeg->saw_Adobe_marker && jpeg->Adobe_transform == 0) ||
           (parts[0].component_id == 'R' && parts[1].component_id == 'G' && parts[2].component_id == 'B');
}

/* Decode a box of a tile, in pixels of the tile, to rows `pitch` bytes apart. Return 0, or -1 and a message. */
static int decode(Decoder *decoder, const Work *work, int64_t tile, const Box *box, unsigned char *to, size_t pitch)
{
    struct jpeg_decompress_struct *jpeg = &decoder->jpeg;
    size_t length = read_stream(decoder, work, tile);

    if (length == 0)
        return -1;
    for (int64_t row = 0; row < work->tile_height; row++)
        decoder->rows[row] = to + (size_t)row * pitch;
    if (setjmp(decoder->failure.failed)) {
        libjpeg.jpeg_abort_decompress(jpeg); /* afterwards it can only be destroyed, which is possible in any state */
        return -1;
    }
    if (!decoder->has_head)
        read_head(decoder, work);
    decoder->has_head = leaves_tables(decoder->stream, length);
    libjpeg.jpeg_mem_src(jpeg, decoder->stream, (unsigned long)length);
    libjpeg.jpeg_read_header(jpeg, TRUE);
    if (jpeg->image_width != work->tile_width || jpeg->image_height != work->tile_height) {
        snprintf(decoder->failure.message, sizeof decoder->failure.message, "the JPEG image is %u x %u px",
                 jpeg->image_width, jpeg->image_height);
        longjmp(decoder->failure.failed, 1);
    }
    if (jpeg->num_components != CHANNELS) {
        strcpy(decoder->failure.message, "the JPEG image does not have three channels");
        longjmp(decoder->failure.failed, 1);
    }
    if (contradicts(decoder)) {
        strcpy(decoder->failure.message, "the JPEG stream and the TIFF tags give different colours");
        longjmp(decoder->failure.failed, 1);
    }
    jpeg->jpeg_color_space = decoder->colours;
    jpeg->out_color_space = JCS_RGB; /* the other defaults are kept: accurate transform, smooth chroma upsampling */
    libjpeg.jpeg_start_decompress(jpeg);
    read_box(decoder, box);
    libjpeg.jpeg_finish_decompress(jpeg);
    return 0;
}

#endif
