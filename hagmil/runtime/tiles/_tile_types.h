/*
 * The arguments of a call of the tile kernel as C structures.
 */

#ifndef HAGMIL_TILE_TYPES_H
#define HAGMIL_TILE_TYPES_H

#include <stddef.h>
#include <stdint.h>

#define CHANNELS 3

typedef struct {
    int64_t left, upper, right, lower;
} Box;

/* The part of a patch that a tile covers. */
typedef struct {
    Box box; /* in pixels of the level */
    ptrdiff_t patch;
} Part;

typedef struct {
    int64_t index;         /* number of the tile, row by row */
    unsigned char *pixels; /* its buffer; NULL if it has none */
    int decoded;           /* whether the buffer contains the decoded tile already */
} Tile;

typedef struct {
    int descriptor;
    const unsigned char *head; /* JPEG stream that all tiles share: tables, and an Adobe marker for the colour space */
    size_t head_bytes;
    const int64_t *offsets, *sizes; /* of the encoded tiles */
    int64_t width, height;          /* of the level */
    int64_t right, lower;           /* the same, rounded up to whole squares */
    int64_t tile_width, tile_height;
    Tile *tiles;
    ptrdiff_t tile_count;
    const int64_t *corners; /* (patch_count, 2): x, y in pixels of the level; multiples of shrink, like tile sides */
    unsigned char *patches; /* (patch_count, patch_height, patch_width, 3) */
    ptrdiff_t patch_count;
    int64_t patch_width, patch_height;
    int64_t shrink;         /* a pixel of a patch is the mean of shrink x shrink pixels of the level */
    uint16_t *sums;         /* space for one row of a tile */
    Part *parts;            /* space for one part per patch */
    unsigned char *scratch; /* buffer for one tile */
    int bypass_cache;         /* whether to write patches with streaming stores */
} Work;

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* Number of tiles in a row of the level. */
static int64_t tiles_across(const Work *work)
{
    return (work->width + work->tile_width - 1) / work->tile_width;
}

#endif
