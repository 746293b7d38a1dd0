/* What the project's C has in common: BF16 numbers, and functions that are compiled for several processors. */

#include <stdint.h>
#include <string.h>

#if defined(FAST) /* by whoever compiles it */
#elif defined(__x86_64__) && defined(__linux__) && __GNUC__ >= 12
#define FAST __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#elif defined(__x86_64__) && defined(__linux__)
#define FAST __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FAST
#endif
#define INLINE static inline __attribute__((always_inline))

typedef uint16_t bf16;

INLINE float from_bits(uint32_t bits) { float value; memcpy(&value, &bits, 4); return value; }
INLINE uint32_t to_bits(float value) { uint32_t bits; memcpy(&bits, &value, 4); return bits; }
INLINE float bf16_to_f32(bf16 value) { return from_bits((uint32_t)value << 16); }

/* To the nearest BF16 number, ties to even; NaN stays NaN. */
INLINE bf16 f32_to_bf16(float value)
{
    uint32_t bits = to_bits(value);
    uint32_t rounded = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
    return value == value ? (bf16)rounded : (bf16)0x7FC0;
}
