/*
 * What a call of the tile kernel works on, as plain C.
 */

#ifndef HAGMIL_TILE_TYPES_H
#define HAGMIL_TILE_TYPES_H

#include <stddef.h>
#include <stdint.h>

#define CHANNELS 3

typedef struct {
    int64_t left, upper, right, lower;
} Box;

/* What a tile covers of a patch. */
typedef struct {
    Box box; /* in the level's pixels */
    ptrdiff_t patch;
} Part;

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
    int64_t right, lower;           /* the same, with squares that are there in part */
    int64_t tile_width, tile_height;
    Tile *tiles;
    ptrdiff_t tile_count;
    const int64_t *corners; /* (patch_count, 2): x, y in the level's pixels; whole numbers of shrink, as tiles' sides */
    unsigned char *patches; /* (patch_count, patch_height, patch_width, 3) */
    ptrdiff_t patch_count;
    int64_t patch_width, patch_height;
    int64_t shrink;         /* a pixel of a patch is the mean of shrink x shrink of the level's */
    uint16_t *sums;         /* room for a row of a tile */
    Part *parts;            /* room for one of each patch */
    unsigned char *scratch; /* one tile */
    int bypass_cache;         /* whether patches are written past the cache */
} Work;

static int64_t least(int64_t a, int64_t b)
{
    return a < b ? a : b;
}

static int64_t most(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

/* Tiles in a row of the level. */
static int64_t tiles_across(const Work *work)
{
    return (work->width + work->tile_width - 1) / work->tile_width;
}

#endif
