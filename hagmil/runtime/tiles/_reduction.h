/*
 * Reduction by an integer factor, identical to Pillow's Image.reduce.
 */

#ifndef HAGMIL_REDUCTION_H
#define HAGMIL_REDUCTION_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "_tile_types.h"

#define MAX_REDUCTION 256 /* larger sums do not fit into 16 and 32 bits */

typedef struct {
    const unsigned char *pixels; /* height * factor rows of width * factor pixels */
    unsigned char *means;        /* height rows of width pixels */
    size_t pixels_pitch, means_pitch; /* bytes from one row to the next */
    size_t height, width, factor;
    uint16_t *sums; /* space for width * factor pixels; the type holds the sum of 257 values of 255 */
} Reduction;

/*
 * Means of one row of squares of 2 x 2. The mean of each pixel and its neighbours to the right and below is computed at
 * every column, because the compiler can vectorise that; every second mean is the one of a square.
 */
static void row_of_four(const Reduction *work, size_t row)
{
    const size_t values = work->width * 2 * CHANNELS;
    const unsigned char *upper = work->pixels + 2 * row * work->pixels_pitch, *lower = upper + work->pixels_pitch;
    unsigned char *means = work->means + row * work->means_pitch, *near = (unsigned char *)work->sums;

    for (size_t value = 0; value < values - CHANNELS; value++)
        near[value] =
            (unsigned char)((upper[value] + upper[value + CHANNELS] + lower[value] + lower[value + CHANNELS] + 2) >> 2);
    for (size_t column = 0; column + 1 < work->width; column++) /* one extra byte, which the next copy overwrites */
        memcpy(means + column * CHANNELS, near + column * 2 * CHANNELS, CHANNELS + 1);
    memcpy(means + (work->width - 1) * CHANNELS, near + (work->width - 1) * 2 * CHANNELS, CHANNELS);
}

/* Means of one row. A constant `factor` lets the compiler unroll the loops; see all_means. */
static inline void row_of_means(const Reduction *work, size_t row, size_t factor)
{
    const size_t values = work->width * factor * CHANNELS;
    const unsigned char *pixels = work->pixels + row * factor * work->pixels_pitch;
    unsigned char *means = work->means + row * work->means_pitch;
    const uint32_t count = (uint32_t)(factor * factor);
    const uint32_t share = (1u << 24) / count; /* Pillow's arithmetic: 24 fractional bits, rounded down */

    for (size_t value = 0; value < values; value++)
        work->sums[value] = pixels[value];
    for (size_t line = 1; line < factor; line++)
        for (size_t value = 0; value < values; value++)
            work->sums[value] = (uint16_t)(work->sums[value] + pixels[line * work->pixels_pitch + value]);
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
    for (size_t row = 0; row < work->height && work->width > 0; row++) {
        switch (work->factor) {
        case 2:
            row_of_four(work, row);
            break;
        case 3:
            row_of_means(work, row, 3);
            break;
        case 4:
            row_of_means(work, row, 4);
            break;
        default:
            row_of_means(work, row, work->factor);
        }
    }
}

#endif
