/* The loops of kernels.py: each reads its BF16 operands once, computes in FP32 and rounds once.

   Every operation rounds as it is written (sources.py has the flags), and sums run over LANES partial sums in a fixed
   order, so vectors of any width give the same bits. Rows are contiguous; strides, where given, are in elements. */

#include <math.h>

#include "bf16.h"

#define LANES 16

#ifndef OCTAVO_SOURCES /* by setup.py: the hash of the C files */
#define OCTAVO_SOURCES ""
#endif

/* What the library was compiled from. */
const char *octavo_sources(void) { return OCTAVO_SOURCES; }

/* e^x by Cody and Waite's reduction and a polynomial (Cephes' expf): within 2 units in the last place; 0 and infinity are
   not reached (x is held within the exponents of normal numbers), NaN stays NaN. */
INLINE float exponential(float x)
{
    float held = x < -87.0f ? -87.0f : x;
    held = held > 88.0f ? 88.0f : held;
    float shift = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer */
    float n = (held * 1.44269504088896341f + shift) - shift;
    float r = (held - n * 0.693359375f) - n * -2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = (p * (r * r) + r) + 1.0f;
    uint32_t power = (uint32_t)((int32_t)n + 127) << 23;
    return p * from_bits(x == x ? power : 0x7FC00000u);
}

INLINE float sigmoid(float x) { return 1.0f / (1.0f + exponential(-x)); }

INLINE float total_of(const float *lane)
{
    float part[LANES];
    memcpy(part, lane, sizeof part);
    for (int width = LANES / 2; width; width /= 2)
        for (int i = 0; i < width; i++)
            part[i] += part[i + width];
    return part[0];
}

/* RMSNorm: out = x / sqrt(mean(x^2) + eps) * weight; the factor of each row is kept in `scale`. */
FAST void octavo_rms_norm(const bf16 *restrict x, const bf16 *restrict weight, bf16 *restrict out, float *restrict scale,
                          int64_t rows, int64_t columns, float eps)
{
    for (int64_t row = 0; row < rows; row++, x += columns, out += columns) {
        float lane[LANES] = {0};
        int64_t whole = columns - columns % LANES;
        for (int64_t i = 0; i < whole; i += LANES)
            for (int j = 0; j < LANES; j++)
                lane[j] += bf16_to_f32(x[i + j]) * bf16_to_f32(x[i + j]);
        for (int64_t i = whole; i < columns; i++)
            lane[i - whole] += bf16_to_f32(x[i]) * bf16_to_f32(x[i]);
        float factor = scale[row] = 1.0f / sqrtf(total_of(lane) / (float)columns + eps);
        for (int64_t i = 0; i < columns; i++)
            out[i] = f32_to_bf16(bf16_to_f32(x[i]) * factor * bf16_to_f32(weight[i]));
    }
}

/* With n = x * scale and h = gradient * weight: to_x = scale * (h - n * mean(h * n)), to_weight += gradient * n. */
FAST void octavo_rms_norm_gradient(const bf16 *restrict gradient, const bf16 *restrict x, const bf16 *restrict weight,
                                   const float *restrict scale, bf16 *restrict to_x, float *restrict to_weight,
                                   int64_t rows, int64_t columns)
{
    for (int64_t row = 0; row < rows; row++, gradient += columns, x += columns, to_x += columns) {
        float lane[LANES] = {0}, factor = scale[row];
        int64_t whole = columns - columns % LANES;
        for (int64_t i = 0; i < whole; i += LANES)
            for (int j = 0; j < LANES; j++)
                lane[j] += bf16_to_f32(gradient[i + j]) * bf16_to_f32(weight[i + j]) * (bf16_to_f32(x[i + j]) * factor);
        for (int64_t i = whole; i < columns; i++)
            lane[i - whole] += bf16_to_f32(gradient[i]) * bf16_to_f32(weight[i]) * (bf16_to_f32(x[i]) * factor);
        float mean = total_of(lane) / (float)columns;
        for (int64_t i = 0; i < columns; i++) {
            float normed = bf16_to_f32(x[i]) * factor, slope = bf16_to_f32(gradient[i]);
            to_weight[i] += slope * normed;
            to_x[i] = f32_to_bf16(factor * (slope * bf16_to_f32(weight[i]) - normed * mean));
        }
    }
}

INLINE void swiglu_run(const bf16 *restrict gate, const bf16 *restrict up, float factor, bf16 *restrict out, int64_t n)
{
    for (int64_t i = 0; i < n; i++) {
        float z = bf16_to_f32(gate[i]);
        out[i] = f32_to_bf16(z * sigmoid(z) * bf16_to_f32(up[i]) * factor);
    }
}

/* SwiGLU: out = silu(gate) * up (* weight of the row), from rows of gate then up. */
FAST void octavo_swiglu(const bf16 *restrict both, const float *restrict weight, bf16 *restrict out, int64_t rows,
                        int64_t width)
{
    for (int64_t row = 0; row < rows; row++, both += 2 * width, out += width) {
        const bf16 *gate = both, *up = both + width;
        float factor = weight ? weight[row] : 1.0f;
        int64_t i = 0;
        for (; i + LANES <= width; i += LANES)
            swiglu_run(gate + i, up + i, factor, out + i, LANES);
        for (; i + LANES / 2 <= width; i += LANES / 2) /* experts are narrow: half a vector is a tenth of their width */
            swiglu_run(gate + i, up + i, factor, out + i, LANES / 2);
        swiglu_run(gate + i, up + i, factor, out + i, width - i);
    }
}

/* The gradients of `both` and, where there is one, of the row's weight. d silu(z)/dz = s + silu(z) (1 - s). */
FAST void octavo_swiglu_gradient(const bf16 *restrict gradient, const bf16 *restrict both, const float *restrict weight,
                                 bf16 *restrict to_both, float *restrict to_weight, int64_t rows, int64_t width)
{
    for (int64_t row = 0; row < rows; row++, gradient += width, both += 2 * width, to_both += 2 * width) {
        const bf16 *gate = both, *up = both + width;
        bf16 *restrict to_gate = to_both, *restrict to_up = to_both + width;
        float factor = weight ? weight[row] : 1.0f, lane[LANES] = {0};
        int64_t whole = width - width % LANES;
        for (int64_t i = 0; i < whole; i += LANES)
            for (int j = 0; j < LANES; j++) {
                float z = bf16_to_f32(gate[i + j]), s = sigmoid(z), silu = z * s, slope = bf16_to_f32(gradient[i + j]);
                lane[j] += slope * silu * bf16_to_f32(up[i + j]);
                to_up[i + j] = f32_to_bf16(slope * factor * silu);
                to_gate[i + j] = f32_to_bf16((s + silu * (1.0f - s)) * bf16_to_f32(up[i + j]) * (slope * factor));
            }
        for (int64_t i = whole; i < width; i++) {
            float z = bf16_to_f32(gate[i]), s = sigmoid(z), silu = z * s, slope = bf16_to_f32(gradient[i]);
            lane[i - whole] += slope * silu * bf16_to_f32(up[i]);
            to_up[i] = f32_to_bf16(slope * factor * silu);
            to_gate[i] = f32_to_bf16((s + silu * (1.0f - s)) * bf16_to_f32(up[i]) * (slope * factor));
        }
        if (to_weight)
            to_weight[row] = total_of(lane);
    }
}

/* Cross-entropy of each row of logits: loss = (largest - logit of the label) + log(total), total = sum e^(x - largest). */
FAST void octavo_cross_entropy(const bf16 *restrict logits, const int64_t *restrict labels, float *restrict loss,
                               float *restrict largest, float *restrict total, int64_t rows, int64_t columns)
{
    for (int64_t row = 0; row < rows; row++, logits += columns) {
        float most[LANES], lane[LANES] = {0};
        int64_t whole = columns - columns % LANES;
        for (int j = 0; j < LANES; j++)
            most[j] = -INFINITY;
        for (int64_t i = 0; i < whole; i += LANES)
            for (int j = 0; j < LANES; j++)
                most[j] = bf16_to_f32(logits[i + j]) > most[j] ? bf16_to_f32(logits[i + j]) : most[j];
        for (int64_t i = whole; i < columns; i++)
            most[i - whole] = bf16_to_f32(logits[i]) > most[i - whole] ? bf16_to_f32(logits[i]) : most[i - whole];
        float top = most[0];
        for (int j = 1; j < LANES; j++)
            top = most[j] > top ? most[j] : top;
        for (int64_t i = 0; i < whole; i += LANES)
            for (int j = 0; j < LANES; j++)
                lane[j] += exponential(bf16_to_f32(logits[i + j]) - top);
        for (int64_t i = whole; i < columns; i++)
            lane[i - whole] += exponential(bf16_to_f32(logits[i]) - top);
        largest[row] = top;
        total[row] = total_of(lane);
        loss[row] = (top - bf16_to_f32(logits[labels[row]])) + logf(total[row]);
    }
}

/* (softmax(logits) - one at the label) * the row's gradient. */
FAST void octavo_cross_entropy_gradient(const float *restrict gradient, const bf16 *restrict logits,
                                        const int64_t *restrict labels, const float *restrict largest,
                                        const float *restrict total, bf16 *restrict out, int64_t rows, int64_t columns)
{
    for (int64_t row = 0; row < rows; row++, logits += columns, out += columns) {
        float top = largest[row], factor = gradient[row] / total[row];
        for (int64_t i = 0; i < columns; i++)
            out[i] = f32_to_bf16(exponential(bf16_to_f32(logits[i]) - top) * factor);
        int64_t label = labels[row];
        out[label] = f32_to_bf16(exponential(bf16_to_f32(logits[label]) - top) * factor - gradient[row]);
    }
}

INLINE void turn_row(const bf16 *restrict in, const float *restrict cosine, const float *restrict sine,
                     bf16 *restrict out, int64_t half, int32_t back)
{
    if (back)
        for (int64_t i = 0; i < half; i++) {
            float x = bf16_to_f32(in[i]), y = bf16_to_f32(in[i + half]);
            out[i] = f32_to_bf16(x * cosine[i] + y * sine[i + half]);
            out[i + half] = f32_to_bf16(y * cosine[i + half] - x * sine[i]);
        }
    else
        for (int64_t i = 0; i < half; i++) {
            float x = bf16_to_f32(in[i]), y = bf16_to_f32(in[i + half]);
            out[i] = f32_to_bf16(x * cosine[i] - y * sine[i]);
            out[i + half] = f32_to_bf16(y * cosine[i + half] + x * sine[i + half]);
        }
}

/* Rotary embedding (arXiv 2104.09864), halves rotated against each other: of [sequence, batch, heads, size] with strides
   for the first three, cosines and sines [sequence, size]. `back` rotates a gradient back. */
FAST void octavo_rotate(const bf16 *restrict in, const int64_t *restrict stride, const float *restrict cosine,
                        const float *restrict sine, bf16 *restrict out, int64_t sequence, int64_t batch, int64_t heads,
                        int64_t size, int32_t back)
{
    for (int64_t s = 0; s < sequence; s++, cosine += size, sine += size)
        for (int64_t b = 0; b < batch; b++)
            for (int64_t h = 0; h < heads; h++, out += size) {
                const bf16 *row = in + s * stride[0] + b * stride[1] + h * stride[2];
                switch (size) { /* lengths that the compiler knows give loops without ends to look after */
                case 32: turn_row(row, cosine, sine, out, 16, back); break;
                case 64: turn_row(row, cosine, sine, out, 32, back); break;
                case 128: turn_row(row, cosine, sine, out, 64, back); break;
                default: turn_row(row, cosine, sine, out, size / 2, back);
                }
            }
}

/* Softmax over the keys that a query attends to: itself and the earlier ones, `window` at most. Of FP32 scores [matrices,
   length, length], which are multiplied by `scale` (positive) and lost; the weights of other keys are 0. */
FAST void octavo_attention_weights(float *restrict scores, bf16 *restrict out, int64_t matrices, int64_t length,
                                   int64_t window, float scale)
{
    for (int64_t matrix = 0; matrix < matrices; matrix++)
        for (int64_t query = 0; query < length; query++, scores += length, out += length) {
            int64_t begin = query + 1 > window ? query + 1 - window : 0, end = query + 1;
            int64_t whole = end - (end - begin) % LANES;
            float most[LANES], lane[LANES] = {0};
            for (int j = 0; j < LANES; j++)
                most[j] = -INFINITY;
            for (int64_t i = begin; i < whole; i += LANES)
                for (int j = 0; j < LANES; j++)
                    most[j] = scores[i + j] > most[j] ? scores[i + j] : most[j];
            for (int64_t i = whole; i < end; i++)
                most[i - whole] = scores[i] > most[i - whole] ? scores[i] : most[i - whole];
            float top = most[0];
            for (int j = 1; j < LANES; j++)
                top = most[j] > top ? most[j] : top;
            for (int64_t i = begin; i < end; i++)
                scores[i] = exponential((scores[i] - top) * scale);
            for (int64_t i = begin; i < whole; i += LANES)
                for (int j = 0; j < LANES; j++)
                    lane[j] += scores[i + j];
            for (int64_t i = whole; i < end; i++)
                lane[i - whole] += scores[i];
            float factor = 1.0f / total_of(lane);
            memset(out, 0, (size_t)begin * sizeof *out);
            for (int64_t i = begin; i < end; i++)
                out[i] = f32_to_bf16(scores[i] * factor);
            memset(out + end, 0, (size_t)(length - end) * sizeof *out);
        }
}

/* The gradient of the scores, from that of the weights: scale * weight * (gradient - sum weight * gradient). */
FAST void octavo_attention_weights_gradient(const float *restrict gradient, const bf16 *restrict weights,
                                            bf16 *restrict out, int64_t matrices, int64_t length, int64_t window,
                                            float scale)
{
    for (int64_t row = 0; row < matrices * length; row++, gradient += length, weights += length, out += length) {
        int64_t end = row % length + 1, begin = end > window ? end - window : 0;
        int64_t whole = end - (end - begin) % LANES;
        float lane[LANES] = {0};
        for (int64_t i = begin; i < whole; i += LANES)
            for (int j = 0; j < LANES; j++)
                lane[j] += bf16_to_f32(weights[i + j]) * gradient[i + j];
        for (int64_t i = whole; i < end; i++)
            lane[i - whole] += bf16_to_f32(weights[i]) * gradient[i];
        float sum = total_of(lane);
        memset(out, 0, (size_t)begin * sizeof *out);
        for (int64_t i = begin; i < end; i++)
            out[i] = f32_to_bf16(scale * (bf16_to_f32(weights[i]) * (gradient[i] - sum)));
        memset(out + end, 0, (size_t)(length - end) * sizeof *out);
    }
}

/* e^x as torch's vectors compute it (SLEEF's expf, within one unit in the last place, with fused products and sums), of
   numbers up to 0. Not `exponential`, whose last bits are others: routers have torch's where those are the same on every
   processor. */
INLINE float fused_exponential(float x)
{
    float held = x < -104.0f ? -104.0f : x;
    float n = rintf(held * 1.442695040888963407f);
    float r = fmaf(n, -1.428606765330187045e-06f, fmaf(n, -0.693145751953125f, held));
    float p = 0.000198527617612853646278381f;
    p = fmaf(p, r, 0.00139304355252534151077271f);
    p = fmaf(p, r, 0.00833336077630519866943359f);
    p = fmaf(p, r, 0.0416664853692054748535156f);
    p = fmaf(p, r, 0.166666671633720397949219f);
    p = fmaf(p, r, 0.5f);
    p = 1.0f + fmaf(r * r, p, r);
    int32_t power = (int32_t)n, half = power >> 1;
    p = p * from_bits((uint32_t)(half + 127) << 23) * from_bits((uint32_t)(power - half + 127) << 23);
    return x < -104.0f ? 0.0f : p;
}

/* The sum of a row: LANES partial sums where it has as many numbers, one after the other where it has not. */
INLINE float sum_of_row(const float *x, int64_t columns)
{
    float lane[LANES] = {0};
    if (columns < LANES) {
        float sum = x[0];
        for (int64_t i = 1; i < columns; i++)
            sum += x[i];
        return sum;
    }
    int64_t whole = columns - columns % LANES;
    for (int64_t i = 0; i < whole; i += LANES)
        for (int j = 0; j < LANES; j++)
            lane[j] += x[i + j];
    for (int64_t i = whole; i < columns; i++)
        lane[i - whole] += x[i];
    return total_of(lane);
}

/* Softmax of rows: a router's scores. A row with NaN or infinity is NaN; minus infinity has no weight. */
FAST void octavo_softmax(const float *restrict x, float *restrict out, int64_t rows, int64_t columns)
{
    for (int64_t row = 0; row < rows; row++, x += columns, out += columns) {
        float top = x[0];
        for (int64_t i = 1; i < columns; i++)
            top = x[i] > top ? x[i] : top;
        for (int64_t i = 0; i < columns; i++) {
            float below = x[i] - top;
            out[i] = below == below ? fused_exponential(below) : below;
        }
        float factor = 1.0f / sum_of_row(out, columns);
        for (int64_t i = 0; i < columns; i++)
            out[i] = out[i] * factor;
    }
}

/* The gradient of softmax's rows: (gradient - sum(gradient * weights)) * weights; `out` holds the products in between. */
FAST void octavo_softmax_gradient(const float *restrict gradient, const float *restrict weights, float *restrict out,
                                  int64_t rows, int64_t columns)
{
    for (int64_t row = 0; row < rows; row++, gradient += columns, weights += columns, out += columns) {
        for (int64_t i = 0; i < columns; i++)
            out[i] = gradient[i] * weights[i];
        float sum = sum_of_row(out, columns);
        for (int64_t i = 0; i < columns; i++)
            out[i] = (gradient[i] - sum) * weights[i];
    }
}
