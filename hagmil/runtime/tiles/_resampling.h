/*
 * Resampling with given weights. With the weights of filter_weights.py it is identical to Pillow's Image.resize.
 *
 * 1. Horizontally: each row is resampled once, when a row of the result first needs it, into a ring buffer with as many
 *    rows as the filter has taps.
 * 2. Vertically: a row of the result is a weighted sum of the rows in the ring buffer.
 *
 * Weights have 22 fractional bits, more than a 16-bit vector multiplication supports. Each weight is split into its low
 * 11 bits and the rest, and both are stored for pairs of pixels; the two sums are combined at the end.
 */

#ifndef HAGMIL_RESAMPLING_H
#define HAGMIL_RESAMPLING_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "_tile_types.h"

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#define WEIGHT_BITS 22
#define LOW_BITS 11
#define HALF (1 << (WEIGHT_BITS - 1)) /* added to round the sums */
#define VECTOR 16

/* The filter of one axis. */
typedef struct {
    const int32_t *first;   /* (count,), index of the first input pixel of each output pixel */
    const int32_t *weights; /* (count, taps) */
    size_t count, taps;     /* the number of taps is even */
    int32_t *pairs;         /* (count, taps): low bits of two weights, then the rest of both; allocated by the caller */
} Axis;

typedef struct {
    const unsigned char *pixels; /* rows of `width` pixels */
    unsigned char *out;          /* down.count rows of across.count pixels */
    size_t width;
    Axis across, down;
    unsigned char *ring; /* space for down.taps rows of across.count pixels and one byte each */
} Resampling;

static void split_weights(Axis *axis)
{
    for (size_t at = 0; at < axis->count * axis->taps; at += 2) {
        const uint32_t one = (uint32_t)axis->weights[at], other = (uint32_t)axis->weights[at + 1];
        const uint32_t low = (1u << LOW_BITS) - 1;
        axis->pairs[at] = (int32_t)((one & low) | (other & low) << 16);
        axis->pairs[at + 1] = (int32_t)(one >> LOW_BITS | other >> LOW_BITS << 16);
    }
}

#ifdef __SSE2__

/* Add two weighted pixels: `values` are 8 numbers of 16 bits, alternately of the first and the second pixel. */
static inline void add_pair(__m128i *low, __m128i *rest, __m128i values, const int32_t *pair)
{
    *low = _mm_add_epi32(*low, _mm_madd_epi16(values, _mm_set1_epi32(pair[0])));
    *rest = _mm_add_epi32(*rest, _mm_madd_epi16(values, _mm_set1_epi32(pair[1])));
}

static inline __m128i sum_of(__m128i low, __m128i rest)
{
    return _mm_srli_epi32(_mm_add_epi32(low, _mm_slli_epi32(rest, LOW_BITS)), WEIGHT_BITS);
}

static void resample_across(const Axis *axis, const unsigned char *row, unsigned char *out)
{
    const __m128i zero = _mm_setzero_si128(), half = _mm_set1_epi32(HALF);

    for (size_t column = 0; column < axis->count; column++) {
        const unsigned char *pixel = row + CHANNELS * (size_t)axis->first[column];
        const int32_t *pair = axis->pairs + column * axis->taps, *end = pair + axis->taps;
        __m128i low = half, rest = zero;
        for (; pair < end; pair += 2, pixel += 2 * CHANNELS) {
            int32_t one, other;
            memcpy(&one, pixel, 4);
            memcpy(&other, pixel + CHANNELS - 1, 4); /* reads no byte beyond the pair */
            const __m128i left = _mm_cvtsi32_si128(one), right = _mm_srli_si128(_mm_cvtsi32_si128(other), 1);
            add_pair(&low, &rest, _mm_unpacklo_epi8(_mm_unpacklo_epi8(left, right), zero), pair);
        }
        const __m128i sums = _mm_packs_epi32(sum_of(low, rest), zero);
        const int32_t means = _mm_cvtsi128_si32(_mm_packus_epi16(sums, zero));
        memcpy(out + CHANNELS * column, &means, 4); /* one extra byte, which the next copy overwrites */
    }
}

/* Resample the bytes that fill whole vectors, and return their number. */
static size_t resample_down(const Axis *axis, size_t row, const unsigned char *const *rows, size_t bytes,
                            unsigned char *out)
{
    const __m128i zero = _mm_setzero_si128(), half = _mm_set1_epi32(HALF);
    const int32_t *pairs = axis->pairs + row * axis->taps;
    size_t at = 0;

    for (; at + VECTOR <= bytes; at += VECTOR) {
        __m128i low[4] = {half, half, half, half}, rest[4] = {zero, zero, zero, zero};
        for (size_t tap = 0; tap < axis->taps; tap += 2) {
            const __m128i one = _mm_loadu_si128((const __m128i *)(rows[tap] + at));
            const __m128i other = _mm_loadu_si128((const __m128i *)(rows[tap + 1] + at));
            const __m128i begin = _mm_unpacklo_epi8(one, other), end = _mm_unpackhi_epi8(one, other);
            add_pair(&low[0], &rest[0], _mm_unpacklo_epi8(begin, zero), pairs + tap);
            add_pair(&low[1], &rest[1], _mm_unpackhi_epi8(begin, zero), pairs + tap);
            add_pair(&low[2], &rest[2], _mm_unpacklo_epi8(end, zero), pairs + tap);
            add_pair(&low[3], &rest[3], _mm_unpackhi_epi8(end, zero), pairs + tap);
        }
        const __m128i begin = _mm_packs_epi32(sum_of(low[0], rest[0]), sum_of(low[1], rest[1]));
        const __m128i end = _mm_packs_epi32(sum_of(low[2], rest[2]), sum_of(low[3], rest[3]));
        _mm_storeu_si128((__m128i *)(out + at), _mm_packus_epi16(begin, end));
    }
    return at;
}

#else

static void resample_across(const Axis *axis, const unsigned char *row, unsigned char *out)
{
    for (size_t column = 0; column < axis->count; column++) {
        const unsigned char *pixel = row + CHANNELS * (size_t)axis->first[column];
        const int32_t *weights = axis->weights + column * axis->taps;
        for (size_t channel = 0; channel < CHANNELS; channel++) {
            int32_t sum = HALF;
            for (size_t tap = 0; tap < axis->taps; tap++)
                sum += weights[tap] * pixel[tap * CHANNELS + channel];
            out[column * CHANNELS + channel] = (unsigned char)(sum >> WEIGHT_BITS);
        }
    }
}

static size_t resample_down(const Axis *axis, size_t row, const unsigned char *const *rows, size_t bytes,
                            unsigned char *out)
{
    (void)axis, (void)row, (void)rows, (void)bytes, (void)out;
    return 0;
}

#endif

/* `rows` has space for down.taps pointers. */
static void resample_all(Resampling *work, const unsigned char **rows)
{
    const Axis *down = &work->down;
    const size_t bytes = work->across.count * CHANNELS, pitch = bytes + 1;
    size_t done = (size_t)down->first[0]; /* rows before it are in the ring buffer, or not needed */

    split_weights(&work->across);
    split_weights(&work->down);
    for (size_t row = 0; row < down->count; row++) {
        const size_t first = (size_t)down->first[row];
        const int32_t *weights = down->weights + row * down->taps;
        unsigned char *out = work->out + row * bytes;

        for (done = done < first ? first : done; done < first + down->taps; done++)
            resample_across(&work->across, work->pixels + done * work->width * CHANNELS,
                            work->ring + done % down->taps * pitch);
        for (size_t tap = 0; tap < down->taps; tap++)
            rows[tap] = work->ring + (first + tap) % down->taps * pitch;
        for (size_t at = resample_down(down, row, rows, bytes, out); at < bytes; at++) {
            int32_t sum = HALF;
            for (size_t tap = 0; tap < down->taps; tap++)
                sum += weights[tap] * rows[tap][at];
            out[at] = (unsigned char)(sum >> WEIGHT_BITS);
        }
    }
}

#endif
