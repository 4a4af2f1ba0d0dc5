/*
 * Step 4 of _tile_kernel.c, and the loop over tiles that performs steps 2 to 4, without the GIL.
 */

#ifndef HAGMIL_TILE_WORK_H
#define HAGMIL_TILE_WORK_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "_reduction.h"
#include "_tile_decoder.h"
#include "_tile_types.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define WHITE 255
#define LINE_BYTES 64 /* a line of the processor's cache */
#define ROWS_AHEAD 8

#ifdef __GNUC__
#define PREFETCH(address) __builtin_prefetch(address, 1)
#else
#define PREFETCH(address) ((void)(address))
#endif

static void copy_bypassing_cache(unsigned char *to, const unsigned char *from, size_t count)
{
#ifdef __SSE2__
    /* Whole lines only: streaming a part of a line costs more than it saves. */
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

/* Find the part of each patch that a tile covers, and return the number of parts. */
static ptrdiff_t find_parts(const Work *work, const Box *tile)
{
    ptrdiff_t count = 0;

    for (ptrdiff_t patch = 0; patch < work->patch_count; patch++) {
        const int64_t x = work->corners[2 * patch], y = work->corners[2 * patch + 1];
        const Box box = {
            .left = most(tile->left, x),
            .upper = most(tile->upper, y),
            .right = least(least(tile->right, work->right), x + work->patch_width * work->shrink),
            .lower = least(least(tile->lower, work->lower), y + work->patch_height * work->shrink),
        };
        if (box.left < box.right && box.upper < box.lower)
            work->parts[count++] = (Part){box, patch};
    }
    return count;
}

/* Bounding box of all parts in pixels of the tile; the whole tile if there are no parts. */
static Box box_of_parts(const Work *work, const Box *tile, ptrdiff_t count)
{
    Box box = count == 0 ? *tile : work->parts[0].box;

    for (ptrdiff_t part = 1; part < count; part++) {
        const Box *other = &work->parts[part].box;
        box.left = least(box.left, other->left), box.upper = least(box.upper, other->upper);
        box.right = most(box.right, other->right), box.lower = most(box.lower, other->lower);
    }
    return (Box){box.left - tile->left, box.upper - tile->upper, box.right - tile->left, box.lower - tile->upper};
}

static unsigned char *destination_of(const Work *work, const Part *part)
{
    const int64_t column = (part->box.left - work->corners[2 * part->patch]) / work->shrink;
    const int64_t row = (part->box.upper - work->corners[2 * part->patch + 1]) / work->shrink;

    return work->patches +
           CHANNELS * ((part->patch * work->patch_height + row) * work->patch_width + column);
}

/* Copy a part of a tile to its patch. */
static void copy_part(const Work *work, const unsigned char *from, const Part *part)
{
    const size_t bytes = (size_t)(part->box.right - part->box.left) * CHANNELS;
    const size_t from_pitch = (size_t)work->tile_width * CHANNELS, to_pitch = (size_t)work->patch_width * CHANNELS;
    const int64_t rows = part->box.lower - part->box.upper;
    unsigned char *to = destination_of(work, part);

    for (int64_t row = 0; row < rows; row++, from += from_pitch, to += to_pitch) {
        if (row + ROWS_AHEAD < rows) { /* so that the lines at both ends are in the cache in time */
            PREFETCH(to + ROWS_AHEAD * to_pitch);
            PREFETCH(to + ROWS_AHEAD * to_pitch + bytes - 1);
        }
        if (work->bypass_cache)
            copy_bypassing_cache(to, from, bytes);
        else
            memcpy(to, from, bytes);
    }
}

/* Write the means of the squares of a part to its patch. */
static void shrink_part(const Work *work, const unsigned char *from, const Part *part)
{
    const Reduction reduction = {
        .pixels = from,
        .means = destination_of(work, part),
        .pixels_pitch = (size_t)work->tile_width * CHANNELS,
        .means_pitch = (size_t)work->patch_width * CHANNELS,
        .height = (size_t)((part->box.lower - part->box.upper) / work->shrink),
        .width = (size_t)((part->box.right - part->box.left) / work->shrink),
        .factor = (size_t)work->shrink,
        .sums = work->sums,
    };

    all_means(&reduction);
}

/* Fill the part of a tile beyond the level with white, which counts in the means of squares at the edge. */
static void whiten_beyond(const Work *work, const Box *tile, unsigned char *pixels)
{
    const size_t pitch = (size_t)work->tile_width * CHANNELS;
    const int64_t width = least(work->tile_width, work->width - tile->left);
    const int64_t height = least(work->tile_height, work->height - tile->upper);

    for (int64_t row = 0; row < height && width < work->tile_width; row++)
        memset(pixels + (size_t)row * pitch + width * CHANNELS, WHITE, pitch - (size_t)width * CHANNELS);
    memset(pixels + (size_t)height * pitch, WHITE, (size_t)(work->tile_height - height) * pitch);
}

/* Return whether the only part is the whole tile, unreduced. */
static int is_whole(const Work *work, const Box *tile, ptrdiff_t count)
{
    const Box *box = &work->parts[0].box;

    return count == 1 && work->shrink == 1 && box->left == tile->left && box->upper == tile->upper &&
           box->right == tile->right && box->lower == tile->lower;
}

static int do_tile(Decoder *decoder, const Work *work, const Tile *tile)
{
    const int64_t across = tiles_across(work);
    const int64_t x = tile->index % across * work->tile_width, y = tile->index / across * work->tile_height;
    const Box whole = {0, 0, work->tile_width, work->tile_height};
    const Box place = {x, y, x + work->tile_width, y + work->tile_height};
    const ptrdiff_t count = find_parts(work, &place);
    const size_t pitch = (size_t)work->tile_width * CHANNELS;
    unsigned char *pixels = tile->pixels == NULL ? work->scratch : tile->pixels;

    if (tile->pixels == NULL && is_whole(work, &place, count))
        return decode(decoder, work, tile->index, &whole, destination_of(work, work->parts),
                      (size_t)work->patch_width * CHANNELS);
    if (!tile->decoded) {
        const Box needed = tile->pixels == NULL ? box_of_parts(work, &place, count) : whole;
        if (decode(decoder, work, tile->index, &needed, pixels, pitch) < 0)
            return -1;
        whiten_beyond(work, &place, pixels);
    }
    for (const Part *part = work->parts; part < work->parts + count; part++) {
        const unsigned char *from = pixels + (part->box.upper - y) * (int64_t)pitch + (part->box.left - x) * CHANNELS;
        if (work->shrink > 1)
            shrink_part(work, from, part);
        else
            copy_part(work, from, part);
    }
    return 0;
}

/* Process all tiles in order, and return the number of tiles before the first that failed. */
static ptrdiff_t do_all(Decoder *decoder, const Work *work)
{
    ptrdiff_t done = 0;

    if (decoder_open(decoder, work->tile_height) == 0)
        while (done < work->tile_count && do_tile(decoder, work, &work->tiles[done]) == 0)
            done++;
    decoder_close(decoder);
#ifdef __SSE2__
    _mm_sfence(); /* makes streamed data visible before another thread is notified */
#endif
    return done;
}

#endif
