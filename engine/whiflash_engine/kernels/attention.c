/* softmax(q k^T / sqrt(width)) v, float32.

   q (n, heads, width), rows `q_step` apart; k, v (kv_heads, length, width), heads `step` apart; a
   width that 16 divides. The rows are the last of the positions: row r is at length - n + r. causal: it
   sees no later key. window: it sees so many keys back, itself included; 0 for all. y (n, heads,
   width). weights: room for (threads, length + 1, 4).

   Four queries share what they read of a key head. What one comes out as does not depend on the
   others, to the bit: so a row is the same in passes of all widths. */

#include <math.h>

#include "kernels.h"
#include "lanes.h"

enum { QUERIES = 4, HELD = 2 }; /* lanes of a value that are mixed at once, for four queries */

typedef struct {
    const float *at[QUERIES];
    float *to[QUERIES];
    long first[QUERIES], end[QUERIES]; /* the keys that each sees */
} queries;

/* weights (keys, 4): of each query's products with the keys first..end-1 */
static inline __attribute__((always_inline)) void
scores(const queries *q, const float *k, float *weights, long first, long end, long width)
{
    float scale = 1.0f / sqrtf((float)width);
    for (long j = first; j < end; j++) {
        lanes dot[QUERIES] = {{0}, {0}, {0}, {0}};
        for (long i = 0; i < width; i += LANES) {
            lanes key = load(k + j * width + i);
            for (int c = 0; c < QUERIES; c++)
                dot[c] += load(q->at[c] + i) * key;
        }
        __m128 found = _mm_mul_ps(sums(dot[0], dot[1], dot[2], dot[3]), _mm_set1_ps(scale));
        memcpy(weights + (j - first) * QUERIES, &found, sizeof found);
    }
}

static void hide(const queries *q, float *weights, long first, long end)
{
    for (int c = 0; c < QUERIES; c++) {
        for (long j = first; j < q->first[c]; j++)
            weights[(j - first) * QUERIES + c] = -INFINITY;
        for (long j = q->end[c]; j < end; j++)
            weights[(j - first) * QUERIES + c] = -INFINITY;
        if ((end - first) & 1) /* two keys are taken at once */
            weights[(end - first) * QUERIES + c] = -INFINITY;
    }
}

/* weights <- e^(weights - the largest of their query); their totals. */
static void exponentials(float *weights, long keys, float *totals)
{
    lanes most = (lanes){0} - INFINITY, total = {0};
    for (long j = 0; j < keys; j += 2) {
        lanes two = load(weights + j * QUERIES);
        most = choose(two > most, two, most);
    }
    lanes other = {most[4], most[5], most[6], most[7], most[0], most[1], most[2], most[3]};
    most = choose(other > most, other, most);
    for (long j = 0; j < keys; j += 2) {
        lanes two = exponential(load(weights + j * QUERIES) - most);
        store(weights + j * QUERIES, two);
        total += two;
    }
    for (int c = 0; c < QUERIES; c++)
        totals[c] = total[c] + total[c + QUERIES];
}

static void mix(const queries *q, const float *v, const float *weights, long keys, long width, const float *totals)
{
    for (long i = 0; i < width; i += HELD * LANES) {
        lanes out[QUERIES][HELD] = {{{0}}};
        for (long j = 0; j < keys; j++)
            for (int h = 0; h < HELD; h++) {
                lanes value = load(v + j * width + i + h * LANES);
                for (int c = 0; c < QUERIES; c++)
                    out[c][h] += weights[j * QUERIES + c] * value;
            }
        for (int c = 0; c < QUERIES; c++)
            for (int h = 0; h < HELD; h++)
                store(q->to[c] + i + h * LANES, out[c][h] / totals[c]);
    }
}

static void attend(const queries *q, const float *k, const float *v, float *weights, long width)
{
    long first = q->first[0], end = q->end[0];
    for (int c = 1; c < QUERIES; c++) {
        first = q->first[c] < first ? q->first[c] : first;
        end = q->end[c] > end ? q->end[c] : end;
    }
    first &= ~1L; /* keys are taken in twos: the same ones for all compositions of four queries */
    float totals[QUERIES];
    if (width == 64) /* known when this is compiled, the queries stay in registers */
        scores(q, k, weights, first, end, 64);
    else
        scores(q, k, weights, first, end, width);
    hide(q, weights, first, end);
    exponentials(weights, end - first, totals);
    mix(q, v + first * width, weights, end - first, width, totals);
}

typedef struct {
    const float *q, *k, *v;
    float *y, *weights;
    long q_step, step, n, group, kv_heads, width, length, window, blocks;
    int causal;
} job;

/* Four queries of a key head. */
static void block(const void *what, long item, int thread)
{
    const job *j = what;
    long kv_head = item / j->blocks, all = j->n * j->group, width = j->width;
    queries four;
    for (int c = 0; c < QUERIES; c++) {
        long query = item % j->blocks * QUERIES + c; /* where there are less, one is done twice */
        query = query < all ? query : all - 1;
        long row = query / j->group, head = kv_head * j->group + query % j->group;
        long own = j->length - j->n + row;
        four.at[c] = j->q + row * j->q_step + head * width;
        four.to[c] = j->y + (row * j->group * j->kv_heads + head) * width;
        four.end[c] = j->causal ? own + 1 : j->length;
        four.first[c] = j->window && own + 1 > j->window ? own + 1 - j->window : 0;
    }
    attend(&four, j->k + kv_head * j->step, j->v + kv_head * j->step,
           j->weights + thread * (j->length + 1) * QUERIES, width);
}

void attention(const float *q, const float *k, const float *v, float *y, float *weights,
               long q_step, long step, long n, long heads, long kv_heads, long width, long length,
               long window, int causal, int threads)
{
    long group = heads / kv_heads, blocks = (n * group + QUERIES - 1) / QUERIES;
    job all = {q, k, v, y, weights, q_step, step, n, group, kv_heads, width, length, window, blocks, causal};
    together(block, &all, kv_heads * blocks, threads);
}
