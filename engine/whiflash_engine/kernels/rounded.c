/* y = x W^T + b for rows x: (n, in), (out, in), (n, out), float32, with W in eight bits and a scale for
   each output, and x rounded to as many bits, with a scale for each 32 numbers of a row.

   Half the bytes of bfloat16, and one instruction multiplies 32 numbers instead of eight. W lies in
   panels of 8 outputs (the last may stand for less; scales and b are there for all 8), for each four
   inputs 32 bytes: an output's four beside each other. Inputs are filled up with zeros to what 32
   divides.

   32 products are added as whole numbers, exactly, and such sums in their order, whatever n and the
   number of threads: a row comes out the same to the bit in passes of all widths. */

#include <stdlib.h>

#include "kernels.h"
#include "lanes.h"

enum {
    PANEL = 8,
    ROWS = 8,
    SCALED = 32,   /* numbers of x with one scale */
    FOUR = 4,      /* inputs that are added to one number at once */
    MOST = 127,
    AHEAD = 8192,  /* bytes of W asked for in advance */
    EACH = 2,      /* pieces a thread */
    MANY = 48      /* rows for which one panel is work enough */
};

typedef struct {
    matrix w;
    const int8_t *x;     /* (n, filled) */
    const float *scales; /* (n, filled / SCALED), of x */
    float *y;
    long n, filled, out, panels, pieces;
} job;

/* What is no number makes the scale none. */
static void round_block(const float *x, int8_t *to, float *scale)
{
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const __m256 sign = _mm256_set1_ps(-0.0f);
    __m256 most = _mm256_setzero_ps(), seen = _mm256_setzero_ps();
    __m256i whole[SCALED / LANES];
    for (int i = 0; i < SCALED / LANES; i++) {
        __m256 some = _mm256_loadu_ps(x + i * LANES);
        most = _mm256_max_ps(most, _mm256_andnot_ps(sign, some));
        seen = _mm256_add_ps(seen, _mm256_mul_ps(some, _mm256_setzero_ps()));
    }
    float largest = 0.0f;
    for (int i = 0; i < LANES; i++)
        largest = ((lanes)most)[i] > largest ? ((lanes)most)[i] : largest;
    *scale = largest / MOST + sum((lanes)seen);
    __m256 back = _mm256_set1_ps(largest > 0.0f ? MOST / largest : 0.0f);
    for (int i = 0; i < SCALED / LANES; i++)
        whole[i] = _mm256_cvtps_epi32(_mm256_mul_ps(_mm256_loadu_ps(x + i * LANES), back));
    __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(whole[0], whole[1]), _mm256_packs_epi32(whole[2], whole[3]));
    _mm256_storeu_si256((__m256i *)to, _mm256_permutevar8x32_epi32(bytes, order));
}

static void round_row(const float *x, int8_t *to, float *scales, long in, long filled)
{
    long first = 0;
    for (; first + SCALED <= in; first += SCALED)
        round_block(x + first, to + first, scales + first / SCALED);
    if (first < filled) {
        float last[SCALED] = {0};
        memcpy(last, x + first, (in - first) * sizeof(float));
        round_block(last, to + first, scales + first / SCALED);
    }
}

/* Four products to each of eight sums; a is not negative. */
static inline __m256i add_products(__m256i sums, __m256i a, __m256i b)
{
#if defined(__AVX512VNNI__) && defined(__AVX512VL__)
    return _mm256_dpbusd_epi32(sums, a, b);
#elif defined(__AVXVNNI__)
    return _mm256_dpbusd_avx_epi32(sums, a, b);
#else
    /* pairs of products are at most 2 * 127 * 127: they fit into 16 bits */
    return _mm256_add_epi32(sums, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)));
#endif
}

/* One panel, `rows` rows. */
static inline __attribute__((always_inline)) void block(const job *j, long panel, long row, int rows)
{
    const int8_t *w = (const int8_t *)j->w.panels + panel * PANEL * j->filled, *x = j->x + row * j->filled;
    const float *scales = j->scales + row * (j->filled / SCALED);
    __m256 found[ROWS];
    for (int r = 0; r < rows; r++)
        found[r] = _mm256_setzero_ps();
    for (long first = 0; first < j->filled; first += SCALED) {
        __m256i total[ROWS];
        for (int r = 0; r < rows; r++)
            total[r] = _mm256_setzero_si256();
        for (long k = first; k < first + SCALED; k += FOUR) {
            const int8_t *at = w + k * PANEL;
            __builtin_prefetch(at + AHEAD);
            __m256i weights = _mm256_loadu_si256((const __m256i *)at), sizes = _mm256_abs_epi8(weights);
            for (int r = 0; r < rows; r++) {
                int32_t four;
                memcpy(&four, x + r * j->filled + k, sizeof four);
                total[r] = add_products(total[r], sizes, _mm256_sign_epi8(_mm256_set1_epi32(four), weights));
            }
        }
        for (int r = 0; r < rows; r++) {
            __m256 scale = _mm256_set1_ps(scales[r * (j->filled / SCALED) + first / SCALED]);
            found[r] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(total[r]), scale, found[r]);
        }
    }
    long place = panel * PANEL, count = j->out - place < PANEL ? j->out - place : PANEL;
    __m256 bias = j->w.bias ? _mm256_loadu_ps(j->w.bias + place) : _mm256_setzero_ps();
    for (int r = 0; r < rows; r++) {
        lanes y = (lanes)_mm256_fmadd_ps(found[r], _mm256_loadu_ps(j->w.scales + place), bias);
        memcpy(j->y + (row + r) * j->out + place, &y, count * sizeof(float));
    }
}

/* What is known when this is compiled stays in registers. */
static void run(const job *j, long panel, long row, int rows)
{
    switch (rows) {
    case 1: block(j, panel, row, 1); break;
    case 2: block(j, panel, row, 2); break;
    case 3: block(j, panel, row, 3); break;
    case 4: block(j, panel, row, 4); break;
    case 5: block(j, panel, row, 5); break;
    case 6: block(j, panel, row, 6); break;
    case 7: block(j, panel, row, 7); break;
    case 8: block(j, panel, row, 8); break;
    }
}

/* One of `pieces` about equal parts of the panels. */
static void piece(const void *what, long item, int thread)
{
    const job *j = what;
    long end = j->panels * (item + 1) / j->pieces;
    for (long panel = j->panels * item / j->pieces; panel < end; panel++)
        for (long row = 0; row < j->n; row += ROWS)
            run(j, panel, row, j->n - row < ROWS ? (int)(j->n - row) : ROWS);
}

void rounded_product(const matrix *w, const float *x, float *y, long n, long in, long out, int threads)
{
    long filled = (in + SCALED - 1) / SCALED * SCALED, panels = (out + PANEL - 1) / PANEL;
    long most = n > MANY ? panels : EACH * threads;
    float *scales = malloc(n * (filled / SCALED * sizeof(float) + filled) + 1);
    if (!scales)
        abort(); /* a megabyte for 512 rows: nothing else would work either */
    int8_t *narrow = (int8_t *)(scales + n * (filled / SCALED));
    for (long r = 0; r < n; r++)
        round_row(x + r * in, narrow + r * filled, scales + r * (filled / SCALED), in, filled);
    job all = {*w, narrow, scales, y, n, filled, out, panels, panels < most ? panels : most};
    together(piece, &all, all.pieces, threads);
    free(scales);
}
