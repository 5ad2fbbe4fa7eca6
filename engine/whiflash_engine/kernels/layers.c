/* All decoder layers of a pass in one call, float32:

       x += o(attention(rotate(qkv(norm(x)))))      x += down(swiglu(gate_up(norm(x))))

   What the first qkv reads may be given instead.

   Each step is a kernel of the other files, so that the rows come out as those do, to the bit. A
   program that calls them one by one spends a third of a pass between them. */

#include <string.h>

#include "kernels.h"

static void add(float *x, const float *y, long count)
{
    for (long i = 0; i < count; i++)
        x[i] += y[i];
}

/* Keys, rotated, and values of the new rows to where the cache has them. k (n, 2 kv_heads, width),
   rows `step` apart: keys, then values. */
static void keep(const float *k, const float *cos, const float *sin, float *keys, float *values,
                 long step, long n, const shape *s, const memory *m)
{
    for (long h = 0; h < s->kv_heads; h++) {
        long at = (h * m->capacity + m->length) * s->width;
        const float *v = k + (s->kv_heads + h) * s->width;
        rotate(k + h * s->width, cos, sin, keys + at, step, n, 1, s->width);
        for (long r = 0; r < n; r++)
            memcpy(values + at + r * s->width, v + r * step, s->width * sizeof(float));
    }
}

/* x (n, hidden) becomes what the last layer makes of it. given (n, into), or none: norm(x), and
   `into` is hidden, then. cos, sin (n, width), of the rows' positions.
   room: n (3 inner + 2 hidden + (3 heads + 2 kv_heads) width) + 4 threads (length + n + 1) numbers.
   taps (layers + 1): where in a row of features (n, step) the stream before each layer, and behind
   the last, is copied to; below 0 nowhere.
   rows: how many of the last ones are wanted. In the last layer the others give keys and values
   and no more, unless what is behind it is copied. */
void layers(const layer *all, const shape *s, const memory *m, float *x, const float *given,
            const float *cos, const float *sin, float *room, const long *taps, float *features,
            long features_step, long n, long rows, int threads)
{
    long q_size = s->heads * s->width, step = q_size + 2 * s->kv_heads * s->width;
    long head_step = m->capacity * s->width, half = s->kv_heads * head_step;
    float *normed = room, *qkv = normed + n * s->hidden, *q = qkv + n * step;
    float *mixed = q + n * q_size, *both = mixed + n * q_size, *inner = both + 2 * n * s->inner;
    float *out = inner + n * s->inner, *weights = out + n * s->hidden;

    for (long i = 0; i <= s->layers; i++) {
        for (long r = 0; taps[i] >= 0 && r < n; r++)
            memcpy(features + r * features_step + taps[i], x + r * s->hidden, s->hidden * sizeof(float));
        if (i == s->layers)
            break;
        const layer *l = all + i;
        long spared = i + 1 < s->layers || taps[i + 1] >= 0 ? 0 : n - rows, wanted = n - spared;
        float *mine = x + spared * s->hidden;
        float *keys = m->kv + 2 * i * half, *values = keys + half;
        if (i == 0 && given)
            product(&l->qkv, given, qkv, n, s->into, step, threads);
        else {
            rms_norm(x, l->norm_in, normed, n, s->hidden, s->eps);
            product(&l->qkv, normed, qkv, n, s->hidden, step, threads);
        }
        for (long r = 0; l->q_norm && r < n; r++) {
            rms_norm(qkv + r * step, l->q_norm, qkv + r * step, s->heads, s->width, s->eps);
            rms_norm(qkv + r * step + q_size, l->k_norm, qkv + r * step + q_size, s->kv_heads, s->width, s->eps);
        }
        rotate(qkv, cos, sin, q, step, n, s->heads, s->width);
        keep(qkv + q_size, cos, sin, keys, values, step, n, s, m);
        attention(q + spared * q_size, keys, values, mixed, weights, q_size, head_step, wanted, s->heads,
                  s->kv_heads, s->width, m->length + n, l->window, l->causal, threads);
        product(&l->o, mixed, out, wanted, q_size, s->hidden, threads);
        add(mine, out, wanted * s->hidden);
        rms_norm(mine, l->norm_mlp, normed, wanted, s->hidden, s->eps);
        product(&l->gate_up, normed, both, wanted, s->hidden, 2 * s->inner, threads);
        swiglu(both, inner, wanted, s->inner, threads);
        product(&l->down, inner, out, wanted, s->inner, s->hidden, threads);
        add(mine, out, wanted * s->hidden);
    }
}
