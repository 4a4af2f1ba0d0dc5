/*
 * Reduction by whole numbers: what Pillow's Image.reduce gives, to the last bit.
 */

#ifndef HAGMIL_REDUCTION_H
#define HAGMIL_REDUCTION_H

#include <stddef.h>
#include <stdint.h>

#define REDUCED_CHANNELS 3
#define MOST_REDUCED 256 /* above, sums do not fit into 16 and 32 bits */

typedef struct {
    const unsigned char *pixels; /* (height * factor, width * factor, 3) */
    unsigned char *means;        /* (height, width, 3) */
    size_t height, width, factor;
    uint16_t *sums; /* of the columns of `factor` rows: 257 rows of 255 fit */
} Reduction;

/* The means of one row; `factor` is a constant wherever it is small, for the compiler's sake. */
static inline void row_of_means(const Reduction *work, size_t row, size_t factor)
{
    const size_t values = work->width * factor * REDUCED_CHANNELS;
    const unsigned char *pixels = work->pixels + row * factor * values;
    unsigned char *means = work->means + row * work->width * REDUCED_CHANNELS;
    const uint32_t count = (uint32_t)(factor * factor);
    const uint32_t share = (1u << 24) / count; /* Pillow's arithmetic: 24 bits behind the point, rounded down */

    for (size_t value = 0; value < values; value++)
        work->sums[value] = pixels[value];
    for (size_t line = 1; line < factor; line++)
        for (size_t value = 0; value < values; value++)
            work->sums[value] = (uint16_t)(work->sums[value] + pixels[line * values + value]);
    for (size_t column = 0; column < work->width; column++) {
        const uint16_t *sums = work->sums + column * factor * REDUCED_CHANNELS;
        for (size_t channel = 0; channel < REDUCED_CHANNELS; channel++) {
            uint32_t sum = count / 2;
            for (size_t pixel = 0; pixel < factor; pixel++)
                sum += sums[pixel * REDUCED_CHANNELS + channel];
            means[column * REDUCED_CHANNELS + channel] = (unsigned char)(sum * share >> 24);
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

#endif
