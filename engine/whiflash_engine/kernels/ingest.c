/* EAGLE-3's slots in one call, from the target's features and the tokens behind them: the taps that it
   listens to are fused, an embedding is put before them, and the layer keeps what it makes of both.
   Called from a program, what lies between the products takes longer than they do. */

#include <string.h>

#include "kernels.h"

/* Of one drafter. columns (taps): where in a row of features each tap begins, of `width` numbers.
   tap_norms (taps, width) and input_norm (taps * width) may be none. */
typedef struct {
    matrix fc;
    const long *columns;
    const float *tap_norms, *input_norm, *embeddings, *embed_norm, *state_norm;
    long taps, width, adds_normed; /* what the layer adds to */
} fusing;

/* features: n rows, `step` apart. tokens (n). rows: of `layers`. cos, sin (n, width of a head): of the places behind m's
   length, which has room for them. state (hidden): becomes that of the last slot. room: what `layers`
   wants for n rows, and n (taps * width + 4 hidden). */
void ingest(const layer *l, const shape *s, const fusing *f, const memory *m, const float *features,
            long step, const long *tokens, const float *cos, const float *sin, float *state, float *room,
            long n, long rows, int threads)
{
    const long untapped[2] = {-1, -1};
    long hidden = s->hidden, row = f->taps * f->width;
    float *fused = room, *g = fused + n * row, *normed = g + n * hidden;
    float *given = normed + n * hidden, *rest = given + 2 * n * hidden;

    for (long r = 0; r < n; r++)
        for (long t = 0; t < f->taps; t++) {
            float *to = fused + r * row + t * f->width;
            memcpy(to, features + r * step + f->columns[t], f->width * sizeof(float));
            if (f->tap_norms)
                rms_norm(to, f->tap_norms + t * f->width, to, 1, f->width, s->eps);
        }
    if (f->input_norm)
        rms_norm(fused, f->input_norm, fused, n, row, s->eps);
    product(&f->fc, fused, g, n, row, hidden, threads);
    rms_norm(g, f->state_norm, normed, n, hidden, s->eps);
    for (long r = 0; r < n; r++) {
        float *to = given + 2 * r * hidden;
        rms_norm(f->embeddings + tokens[r] * hidden, f->embed_norm, to, 1, hidden, s->eps);
        memcpy(to + hidden, normed + r * hidden, hidden * sizeof(float));
    }
    float *x = f->adds_normed ? normed : g;
    layers(l, s, m, x, given, cos, sin, rest, untapped, NULL, 0, n, rows, threads);
    memcpy(state, x + (n - 1) * hidden, hidden * sizeof(float));
}
