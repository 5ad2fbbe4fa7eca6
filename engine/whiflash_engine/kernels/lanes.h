/* Eight numbers beside each other, and what the kernels do to them. */

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

typedef float lanes __attribute__((vector_size(32)));
typedef int32_t ints __attribute__((vector_size(32)));

enum { LANES = 8 };

static inline lanes load(const float *at)
{
    lanes found;
    memcpy(&found, at, sizeof found);
    return found;
}

static inline void store(float *at, lanes value) { memcpy(at, &value, sizeof value); }

/* The sums of four times eight numbers. */
static inline __m128 sums(lanes a, lanes b, lanes c, lanes d)
{
    __m256 all = _mm256_hadd_ps(_mm256_hadd_ps((__m256)a, (__m256)b), _mm256_hadd_ps((__m256)c, (__m256)d));
    return _mm_add_ps(_mm256_castps256_ps128(all), _mm256_extractf128_ps(all, 1));
}

static inline float sum(lanes v) { return _mm_cvtss_f32(sums(v, v, v, v)); }

static inline lanes choose(ints where, lanes a, lanes b)
{
    return (lanes)(((ints)a & where) | ((ints)b & ~where));
}

/* e^x: 2^n e^r, |r| <= ln 2 / 2, and Taylor's series for e^r, whose next term is below 2e-8.
   Below -87 zero, above 88 what it is there. */
static inline lanes exponential(lanes x)
{
    const lanes zero = {0};
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to whole numbers */
    ints tiny = x <= zero - 87.0f; /* not so what is no number: that stays none */
    x = choose(x > zero + 88.0f, zero + 88.0f, x);
    lanes n = x * 1.44269504f + magic - magic;
    lanes r = x - n * 0.693359375f + n * 2.12194440e-4f;
    lanes p = 1.0f / 5040 * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 0.5f;
    p = p * r + 1.0f;
    p = p * r + 1.0f;
    ints power = (__builtin_convertvector(n, ints) + 127) << 23;
    return choose(tiny, zero, p * (lanes)power);
}

static inline float dot(const float *a, const float *b, long n)
{
    lanes even = {0}, odd = {0};
    long i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        even += load(a + i) * load(b + i);
        odd += load(a + i + LANES) * load(b + i + LANES);
    }
    float total = sum(even + odd);
    for (; i < n; i++)
        total += a[i] * b[i];
    return total;
}
