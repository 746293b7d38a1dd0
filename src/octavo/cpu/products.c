/* The matrix products (GEMMs) of linear layers and groups of experts on CPUs: BF16 operands, FP32 sums, rounded once.

   A product of two BF16 numbers is exact in FP32, so it does not matter whether a processor multiplies and adds in one
   instruction or in two; and each sum runs over its terms one after the other, in pairs, the second of a pair first, which
   is how VDPBF16PS adds. So every processor gives the same bits (subnormal numbers aside, which VDPBF16PS takes for zero),
   whatever the sizes and the number of experts.

   Panels of both operands are packed so that a tile's inner loop reads memory in order (Goto and van de Geijn, "Anatomy of
   High-Performance Matrix Multiplication", 2008). */

#include <stdlib.h>

#include "bf16.h"

#if defined(__x86_64__) && defined(__linux__)
#define X86 1
#include <immintrin.h>
#endif

#define MOST_ROWS 8
#define MOST_COLUMNS 48
#define BLOCK 32 /* rows of the left operand that are packed at a time: of BF16, a cache line's worth; even */

typedef void tile_function(const void *, int, const void *, int64_t, int64_t, float *);

#ifdef X86
#define TILE tile_avx512_bf16
#define TARGET __attribute__((target("avx512f,avx512bf16")))
#define LANES 16
#define ROWS 8
#define ELEMENT uint32_t
#define VECTOR __m512
#define LOAD(place) ((__m512bh)_mm512_loadu_si512(place))
#define BROADCAST(place) ((__m512bh)_mm512_set1_epi32((int)*(place)))
#define MULTIPLY_ADD(a, b, sum) _mm512_dpbf16_ps(sum, a, b)
#include "tile.h"

#define TILE tile_avx512
#define TARGET __attribute__((target("avx512f")))
#define LANES 16
#define ROWS 8
#define ELEMENT float
#define VECTOR __m512
#define LOAD(place) _mm512_loadu_ps(place)
#define BROADCAST(place) _mm512_set1_ps(*(place))
#define MULTIPLY_ADD(a, b, sum) _mm512_fmadd_ps(a, b, sum)
#include "tile.h"

#define TILE tile_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define ROWS 4
#define ELEMENT float
#define VECTOR __m256
#define LOAD(place) _mm256_loadu_ps(place)
#define BROADCAST(place) _mm256_set1_ps(*(place))
#define MULTIPLY_ADD(a, b, sum) _mm256_fmadd_ps(a, b, sum)
#include "tile.h"
#endif

typedef float four __attribute__((vector_size(16)));
static inline four load_four(const float *place) { four value; memcpy(&value, place, sizeof value); return value; }
#define TILE tile_any
#define TARGET
#define LANES 4
#define ROWS 4
#define ELEMENT float
#define VECTOR four
#define LOAD(place) load_four(place)
#define BROADCAST(place) ((four){*(place), *(place), *(place), *(place)})
#define MULTIPLY_ADD(a, b, sum) ((sum) + (a) * (b))
#include "tile.h"

typedef struct {
    tile_function *tile;
    int64_t lanes, rows;
    int paired; /* whether panels hold pairs of BF16 numbers, or FP32 numbers */
} instructions;

/* What this processor has: the fastest, or the `which`-th fastest; the last for all beyond. */
static instructions instructions_of(int32_t which)
{
#ifdef X86
    __builtin_cpu_init();
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bf16") && which-- <= 0)
        return (instructions){tile_avx512_bf16, 16, 8, 1};
    if (__builtin_cpu_supports("avx512f") && which-- <= 0)
        return (instructions){tile_avx512, 16, 8, 0};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && which-- <= 0)
        return (instructions){tile_avx2, 8, 4, 0};
#endif
    (void)which;
    return (instructions){tile_any, 4, 4, 0};
}

/* How many elements of a panel lie along `terms` numbers. */
static int64_t depth_of(int64_t terms, int paired) { return paired ? (terms + 1) / 2 : (terms + 1) / 2 * 2; }

/* A strip of `width` lines, each `terms` contiguous numbers: to [line][depth] elements, `room` lines, the rest zeros. */
FAST static void pack_rows(const bf16 *restrict from, int64_t stride, int64_t width, int64_t terms, int64_t room,
                           int paired, void *restrict to)
{
    int64_t padded = (terms + 1) / 2 * 2;
    for (int64_t line = 0; line < room; line++) {
        const bf16 *row = from + line * stride;
        if (paired) {
            bf16 *out = (bf16 *)to + line * padded;
            int64_t here = line < width ? terms : 0;
            memcpy(out, row, (size_t)here * sizeof *out);
            memset(out + here, 0, (size_t)(padded - here) * sizeof *out);
            continue;
        }
        float *out = (float *)to + line * padded;
        int64_t even = line < width ? terms - terms % 2 : 0;
        for (int64_t k = 0; k < even; k += 2) {
            out[k] = bf16_to_f32(row[k + 1]);
            out[k + 1] = bf16_to_f32(row[k]);
        }
        for (int64_t k = even; k < padded; k++)
            out[k] = 0.0f;
        if (line < width && terms % 2)
            out[terms] = bf16_to_f32(row[terms - 1]);
    }
}

/* The same strip to [depth][room] elements. */
FAST static void pack_rows_transposed(const bf16 *restrict from, int64_t stride, int64_t width, int64_t terms,
                                      int64_t room, int paired, void *restrict to)
{
    int64_t pairs = (terms + 1) / 2;
    uint32_t *out = to;
    for (int64_t pair = 0; pair < pairs; pair++) {
        int both = 2 * pair + 1 < terms;
        uint32_t *second = out + (paired ? 0 : room);
        for (int64_t line = 0; line < width; line++) {
            const bf16 *place = from + line * stride + 2 * pair;
            uint32_t low = place[0], high = both ? place[1] : 0;
            if (paired)
                out[line] = low | high << 16;
            else {
                out[line] = high << 16;
                second[line] = low << 16;
            }
        }
        for (int64_t line = width; line < room; line++)
            out[line] = second[line] = 0;
        out += paired ? room : 2 * room;
    }
}

/* Numbers of two rows side by side: as pairs, or one after the other in FP32, the second row first. */
INLINE void join_rows(const bf16 *restrict low, const bf16 *restrict high, int64_t n, int64_t room, int paired,
                      uint32_t *restrict out)
{
    if (paired)
        for (int64_t i = 0; i < n; i++)
            out[i] = (uint32_t)low[i] | (uint32_t)high[i] << 16;
    else {
        for (int64_t i = 0; i < n; i++)
            out[i] = (uint32_t)high[i] << 16;
        for (int64_t i = 0; i < n; i++)
            out[room + i] = (uint32_t)low[i] << 16;
    }
}

/* `width` columns of a matrix whose rows are the terms, in strips of `room`: to [strip][depth][room] elements, the rest
   zeros. All strips of a row are read at once: they share cache lines. */
FAST static void pack_columns(const bf16 *restrict from, int64_t stride, int64_t width, int64_t terms, int64_t room,
                              int paired, void *restrict to)
{
    static const bf16 none[MOST_COLUMNS];
    int64_t strips = (width + room - 1) / room, size = depth_of(terms, paired) * room, step = paired ? room : 2 * room;
    if (width % room)
        memset((uint32_t *)to + (strips - 1) * size, 0, (size_t)size * sizeof(uint32_t));
    for (int64_t k = 0; k < terms; k += 2)
        for (int64_t strip = 0; strip < strips; strip++) {
            const bf16 *low = from + k * stride + strip * room, *high = k + 1 < terms ? low + stride : none;
            uint32_t *out = (uint32_t *)to + strip * size + k / 2 * step;
            int64_t here = width - strip * room < room ? width - strip * room : room;
            switch (here) { /* lengths that the compiler knows give loops without ends to look after */
            case 8: join_rows(low, high, 8, room, paired, out); break;
            case 16: join_rows(low, high, 16, room, paired, out); break;
            case 32: join_rows(low, high, 32, room, paired, out); break;
            case 48: join_rows(low, high, 48, room, paired, out); break;
            default: join_rows(low, high, here, room, paired, out);
            }
        }
}

/* A finished tile [rows of `width` sums] times `factor`, of which `height` x `columns` are wanted: rounded, kept in FP32,
   or added. */
FAST static void epilogue_bf16(const float *restrict tile, int64_t width, int64_t height, int64_t columns, float factor,
                               bf16 *restrict out, int64_t stride)
{
    for (int64_t i = 0; i < height; i++)
        for (int64_t j = 0; j < columns; j++)
            out[i * stride + j] = f32_to_bf16(tile[i * width + j] * factor);
}

FAST static void epilogue_f32(const float *restrict tile, int64_t width, int64_t height, int64_t columns, float factor,
                              float *restrict out, int64_t stride)
{
    for (int64_t i = 0; i < height; i++)
        for (int64_t j = 0; j < columns; j++)
            out[i * stride + j] = tile[i * width + j] * factor;
}

FAST static void epilogue_add(const float *restrict tile, int64_t width, int64_t height, int64_t columns, float factor,
                              float *restrict out, int64_t stride)
{
    for (int64_t i = 0; i < height; i++)
        for (int64_t j = 0; j < columns; j++)
            out[i * stride + j] += tile[i * width + j] * factor;
}

typedef struct {
    const bf16 *values;
    int64_t stride;
    int terms_contiguous; /* whether the terms of one sum lie beside each other, or `stride` apart */
} operand;

typedef enum { ROUNDED, KEPT, ADDED } epilogue; /* written in BF16, written in FP32, added in FP32 */

/* What of a product of causal attention's is zero, or not wanted: columns, or terms of a sum, after or before the row. */
typedef enum { NOTHING, LATER_COLUMNS, LATER_TERMS, EARLIER_TERMS } triangle;

/* out [m, n] = factor * sum over k of left [m, k] * right [k, n]; of a triangle of it, or over one, where that is asked:
   what is left out is not written, or 0. `panels` and `block` are room for the packed operands. */
static void gemm(instructions have, operand left, operand right, int64_t m, int64_t n, int64_t k, float factor,
                 epilogue write_as, void *out, triangle skipped, char *panels, char *block)
{
    int64_t depth = depth_of(k, have.paired), most = 3 * have.lanes;
    float tile[MOST_ROWS * MOST_COLUMNS];
    for (int64_t column = 0; column < n; column += most) {
        int64_t width = n - column < most ? n - column : most;
        int64_t room = (width + have.lanes - 1) / have.lanes * have.lanes;
        const bf16 *from = right.values + column * (right.terms_contiguous ? right.stride : 1);
        (right.terms_contiguous ? pack_rows_transposed : pack_columns)(from, right.stride, width, k, room, have.paired,
                                                                       panels + column * depth * 4);
    }
    for (int64_t top = 0; top < m; top += BLOCK) {
        int64_t bottom = m - top < BLOCK ? m : top + BLOCK, end = skipped == LATER_COLUMNS && bottom < n ? bottom : n;
        int64_t first = skipped == EARLIER_TERMS ? top : 0, last = skipped == LATER_TERMS && bottom < k ? bottom : k;
        int64_t before = depth_of(first, have.paired), here = depth_of(last - first, have.paired);
        int64_t lines = (bottom - top + have.rows - 1) / have.rows * have.rows;
        const bf16 *from = left.values + (left.terms_contiguous ? top * left.stride + first : top + first * left.stride);
        if (left.terms_contiguous)
            pack_rows(from, left.stride, bottom - top, last - first, lines, have.paired, block);
        else
            pack_columns(from, left.stride, bottom - top, last - first, have.rows, have.paired, block);
        for (int64_t column = 0; column < end; column += most) {
            int64_t width = n - column < most ? n - column : most;
            int64_t vectors = (width + have.lanes - 1) / have.lanes;
            const char *panel = panels + (column * depth + before * vectors * have.lanes) * 4;
            for (int64_t row = top; row < bottom; row += have.rows) {
                int64_t height = bottom - row < have.rows ? bottom - row : have.rows;
                have.tile(block + (row - top) * here * 4, left.terms_contiguous, panel, here, vectors, tile);
                int64_t place = row * n + column;
                if (write_as == ROUNDED)
                    epilogue_bf16(tile, vectors * have.lanes, height, width, factor, (bf16 *)out + place, n);
                else
                    (write_as == KEPT ? epilogue_f32 : epilogue_add)(tile, vectors * have.lanes, height, width, factor,
                                                                     (float *)out + place, n);
            }
        }
    }
}

/* How many instruction sets `octavo_multiply` can use here. */
int32_t octavo_instruction_sets(void)
{
    int32_t count = 1;
    while (instructions_of(count - 1).tile != tile_any)
        count++;
    return count;
}

/* One of a layer's three products for every expert: `counts` tokens each, `factors` [experts] times the sums.

   0 forward:          y [tokens, out] = x [tokens, in] w [experts, out, in]^T     left x, right w
   1 input gradient:   gx [tokens, in] = g [tokens, out] w                         left g, right w
   2 weight gradient:  gw [experts, out, in] = g^T x                               left g, right x

   `set`: which of the instruction sets, 0 the fastest. `write_as`: 0 a BF16 result is written, 1 an FP32 one, 2 it is added
   to an FP32 one. `causal`: of attention's, where x are queries, w keys (or values) and g weights (or gradients of
   scores), which are 0 where a key comes after its query; scores of those are not written. Returns 0, or 1 if there is no
   memory for the packed operands. */
int32_t octavo_multiply(int32_t product, int32_t set, int32_t write_as, int32_t causal, const bf16 *left,
                        const bf16 *right, void *out, const int64_t *counts, const float *factors, int64_t experts,
                        int64_t in, int64_t out_features)
{
    instructions have = instructions_of(set);
    int64_t tokens = 0, weight = in * out_features;
    for (int64_t expert = 0; expert < experts; expert++)
        tokens = counts[expert] > tokens ? counts[expert] : tokens;
    int64_t widest = product == 0 ? out_features : in;
    int64_t deepest = depth_of(product == 0 ? in : product == 1 ? out_features : tokens, have.paired);
    char *panels = malloc((size_t)((widest + MOST_COLUMNS) * deepest * 4));
    char *block = malloc((size_t)((BLOCK + MOST_ROWS) * deepest * 4));
    int32_t failed = !panels || !block;
    for (int64_t expert = 0; expert < experts && !failed; expert++) {
        tokens = counts[expert];
        int64_t m = product == 2 ? out_features : tokens, n = product == 0 ? out_features : in;
        int64_t k = product == 0 ? in : product == 1 ? out_features : tokens;
        operand a = {left, product == 0 ? in : out_features, product != 2}, b = {right, in, product == 0};
        triangle skipped = !causal ? NOTHING : product == 0 ? LATER_COLUMNS : product == 1 ? LATER_TERMS : EARLIER_TERMS;
        gemm(have, a, b, m, n, k, factors[expert], (epilogue)write_as, out, skipped, panels, block);
        left += tokens * a.stride;
        right += product == 2 ? tokens * in : weight;
        out = (char *)out + m * n * (write_as == ROUNDED ? sizeof(bf16) : sizeof(float));
    }
    free(panels);
    free(block);
    return failed;
}
