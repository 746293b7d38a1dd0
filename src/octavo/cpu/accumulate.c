/* Sums in the accumulator of a tensor core: products aligned to the largest exponent and cut before they are added.

   octavo.precision.accumulators says which accumulators there are and where that is known from. */

#include "bf16.h"

#define WIDTH 64 /* columns at once; their number is a multiple of it */

INLINE int32_t clamp(int32_t value, int32_t low, int32_t high)
{
    return value < low ? low : value > high ? high : value;
}

/* total [rows, columns] of a [rows, depth] and b [depth, columns] (FP32, contiguous; exponents: the exponent fields of
   b). `products` are added at once, of which and of the accumulator `fraction` bits below the largest exponent count;
   the accumulator keeps the `mask` bits of FP32 and, where promotion > 0, is added to the total and begins anew after
   that many products. */
FAST void octavo_accumulate(const float *restrict a, const float *restrict b, const int16_t *restrict exponents,
                            float *restrict total, int64_t rows, int64_t columns, int64_t depth, int64_t products,
                            int32_t fraction, uint32_t mask, int64_t promotion)
{
    for (int64_t left = 0; left < columns; left += WIDTH)
        for (int64_t row = 0; row < rows; row++) {
            float sum[WIDTH] = {0}, kept[WIDTH] = {0}, scale[WIDTH], back[WIDTH];
            int32_t added[WIDTH];
            int16_t most[WIDTH];
            for (int64_t start = 0; start < depth; start += products) {
                int64_t end = start + products < depth ? start + products : depth;
                for (int64_t j = 0; j < WIDTH; j++)
                    most[j] = (int16_t)((to_bits(kept[j]) >> 23 & 0xFF) + 127);
                for (int64_t k = start; k < end; k++) {
                    int16_t own = (int16_t)(to_bits(a[row * depth + k]) >> 23 & 0xFF);
                    const int16_t *restrict fields = exponents + k * columns + left;
                    for (int64_t j = 0; j < WIDTH; j++) {
                        int16_t both = (int16_t)(own + fields[j]);
                        most[j] = both > most[j] ? both : most[j];
                    }
                }
                for (int64_t j = 0; j < WIDTH; j++) {
                    int32_t up = clamp(127 + fraction - (most[j] - 254), 1, 253);
                    scale[j] = from_bits((uint32_t)up << 23);
                    back[j] = from_bits((uint32_t)(254 - up) << 23);
                    added[j] = (int32_t)(kept[j] * scale[j]);
                }
                for (int64_t k = start; k < end; k++) {
                    float own = a[row * depth + k];
                    const float *restrict values = b + k * columns + left;
                    for (int64_t j = 0; j < WIDTH; j++)
                        added[j] += (int32_t)(own * values[j] * scale[j]);
                }
                for (int64_t j = 0; j < WIDTH; j++)
                    kept[j] = from_bits(to_bits((float)added[j] * back[j]) & mask);
                if (promotion > 0 && end % promotion == 0)
                    for (int64_t j = 0; j < WIDTH; j++)
                        sum[j] += kept[j], kept[j] = 0.0f;
            }
            for (int64_t j = 0; j < WIDTH; j++)
                total[row * columns + left + j] = sum[j] + kept[j];
        }
}
