/* The loops of rounding.py in C: one pass over memory where torch's operators make eight. The same bits come out.

   Every operation rounds as it is written (sources.py has the flags). Tensors are BF16 and contiguous: BF16 has all the
   numbers that the formats have times a power of two. */

#include "bf16.h"

#define EXPONENT 0x7F800000u

INLINE float power_of_two(float value) { return from_bits(to_bits(value) & EXPONENT); }
INLINE uint16_t exact(float value) { return (uint16_t)(to_bits(value) >> 16); } /* of numbers that BF16 has */
INLINE float larger(float a, float b) { return a > b ? a : b; }
INLINE float round_at(float value, float power, float shift)
{
    float lift = shift * power;
    return (value + lift) - lift;
}

INLINE uint16_t largest_of(const uint16_t *restrict in, int64_t n)
{
    uint16_t most = 0;
    for (int64_t i = 0; i < n; i++) {
        uint16_t magnitude = in[i] & 0x7FFF;
        most = magnitude > most ? magnitude : most;
    }
    return most;
}

/* Of each group of sizes[i] BF16 values the largest magnitude; NaN if there is one. */
FAST void octavo_amax(const uint16_t *in, int64_t groups, const int64_t *sizes, float *most)
{
    for (int64_t group = 0; group < groups; in += sizes[group++])
        most[group] = bf16_to_f32(largest_of(in, sizes[group]));
}

/* in * its group's scale, saturated and rounded to codes of a format. */
FAST void octavo_quantise(const uint16_t *restrict in, uint16_t *restrict out, int64_t groups, const int64_t *sizes,
                          const float *scales, float largest, float smallest_normal, float shift)
{
    for (int64_t group = 0; group < groups; group++) {
        float scale = scales[group];
        int64_t n = sizes[group];
        for (int64_t i = 0; i < n; i++) {
            float value = bf16_to_f32(in[i]) * scale;
            value = value > largest ? largest : value;
            value = value < -largest ? -largest : value;
            out[i] = exact(round_at(value, larger(power_of_two(value), smallest_normal), shift));
        }
        in += n, out += n;
    }
}

/* The blocks of one row, in passes over a few of them: magnitudes, scales, values. */
#define AT_ONCE 32

INLINE void round_run(const uint16_t *restrict in, uint16_t *restrict out, int64_t n,
                                                            float floor, float shift)
{
    for (int64_t i = 0; i < n; i++) {
        float value = bf16_to_f32(in[i]);
        out[i] = exact(round_at(value, larger(power_of_two(value), floor), shift));
    }
}

INLINE void round_row(const uint16_t *restrict in, uint16_t *restrict out,
                                                            int64_t columns, int64_t block, float largest,
                                                            float smallest_normal, float shift)
{
    uint16_t most[AT_ONCE] = {0};
    float floor[AT_ONCE];
    while (columns > 0) {
        int64_t blocks = columns / block < AT_ONCE ? columns / block : AT_ONCE;
        for (int64_t i = 0; i < blocks; i++)
            most[i] = largest_of(in + i * block, block);
        int64_t done = blocks * block;
        if (blocks < AT_ONCE && done < columns) /* a shorter block at the end */
            most[blocks] = largest_of(in + done, columns - done);
        for (int64_t i = 0; i < AT_ONCE; i++)
            floor[i] = smallest_normal / power_of_two(largest / bf16_to_f32(most[i]));
        for (int64_t i = 0; i < blocks; i++)
            round_run(in + i * block, out + i * block, block, floor[i], shift);
        if (blocks < AT_ONCE && done < columns) {
            round_run(in + done, out + done, columns - done, floor[blocks], shift);
            done = columns;
        }
        in += done, out += done, columns -= done;
    }
}

/* Each run of `block` values of a row with its own power-of-two scale, de-scaled. */
FAST void octavo_quantise_rows(const uint16_t *restrict in, uint16_t *restrict out, int64_t rows, int64_t columns,
                            int64_t block, float largest, float smallest_normal, float shift)
{
    for (int64_t row = 0; row < rows; row++, in += columns, out += columns)
        switch (block) { /* lengths that the compiler knows give loops without ends to look after */
        case 32: round_row(in, out, columns, 32, largest, smallest_normal, shift); break;
        case 128: round_row(in, out, columns, 128, largest, smallest_normal, shift); break;
        default: round_row(in, out, columns, block, largest, smallest_normal, shift);
        }
}

/* Each block of rows x columns with its own power-of-two scale, de-scaled. */
INLINE void round_blocks(const uint16_t *restrict in, uint16_t *restrict out, int64_t rows, int64_t columns,
                         int64_t block_rows, int64_t block_columns, float largest, float smallest_normal, float shift,
                         uint16_t *restrict most, float *restrict floor)
{
    for (int64_t top = 0; top < rows; top += block_rows) {
        int64_t bottom = top + block_rows < rows ? top + block_rows : rows;
        memset(most, 0, (size_t)columns * sizeof *most);
        for (int64_t row = top; row < bottom; row++)
            for (int64_t column = 0; column < columns; column++) {
                uint16_t magnitude = in[row * columns + column] & 0x7FFF;
                most[column] = magnitude > most[column] ? magnitude : most[column];
            }
        for (int64_t left = 0; block_columns > 1 && left < columns; left += block_columns) {
            int64_t right = left + block_columns < columns ? left + block_columns : columns;
            uint16_t shared = 0;
            for (int64_t column = left; column < right; column++)
                shared = most[column] > shared ? most[column] : shared;
            for (int64_t column = left; column < right; column++)
                most[column] = shared;
        }
        for (int64_t column = 0; column < columns; column++)
            floor[column] = smallest_normal / power_of_two(largest / bf16_to_f32(most[column]));
        for (int64_t row = top; row < bottom; row++)
            for (int64_t column = 0; column < columns; column++) {
                float value = bf16_to_f32(in[row * columns + column]);
                out[row * columns + column] = exact(round_at(value, larger(power_of_two(value), floor[column]), shift));
            }
    }
}

/* The same of each group of rows[i] rows: no block has rows of two. most and floor hold `columns` values. */
FAST void octavo_quantise_blocks(const uint16_t *restrict in, uint16_t *restrict out, int64_t groups,
                                 const int64_t *rows, int64_t columns, int64_t block_rows, int64_t block_columns,
                                 float largest, float smallest_normal, float shift, uint16_t *restrict most,
                                 float *restrict floor)
{
    for (int64_t group = 0; group < groups; group++) {
        round_blocks(in, out, rows[group], columns, block_rows, block_columns, largest, smallest_normal, shift, most,
                     floor);
        in += rows[group] * columns, out += rows[group] * columns;
    }
}
