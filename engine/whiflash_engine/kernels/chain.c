/* EAGLE-3's chain of draft tokens, greedy, in one call: each is the likeliest after the state that the
   one before left, and makes the next state by `layers`. Called from a program, what lies between
   the products takes as long as they do. */

#include <string.h>

#include <math.h>

#include "kernels.h"
#include "lanes.h"

/* Of one drafter. ids: what each output of the head stands for. */
typedef struct {
    const layer *layer;
    const shape *shape;
    const float *embeddings, *embed_norm, *state_norm, *out_norm;
    matrix head;
    const long *ids;
    long outputs, feeds_normed, adds_normed; /* the state fed back, and what the layer adds to */
} drafter;

/* The words that a text adds to the head's: rows (count, hidden). */
typedef struct {
    const float *rows;
    const long *ids;
    long count;
} words;

/* The sum of e^(x - most). */
static float mass(const float *x, long n, float most)
{
    lanes total = {0};
    long i = 0;
    for (; i + LANES <= n; i += LANES)
        total += exponential(load(x + i) - most);
    float found = sum(total);
    for (; i < n; i++)
        found += expf(x[i] - most);
    return found;
}

/* chance: of the likeliest, asked for where it is not none. */
static long likeliest(const drafter *d, const words *more, const float *state, float *logits,
                      float *chance, int threads)
{
    product(&d->head, state, logits, 1, d->shape->hidden, d->outputs, threads);
    long best = 0;
    for (long i = 1; i < d->outputs; i++)
        best = logits[i] > logits[best] ? i : best;
    float most = logits[best], inside = most;
    float total = chance ? mass(logits, d->outputs, most) : 0.0f;
    best = d->ids[best];
    dots(more->rows, state, logits, 1, d->shape->hidden, more->count, threads);
    for (long i = 0; i < more->count; i++)
        if (logits[i] > most) {
            most = logits[i];
            best = more->ids[i];
        }
    if (chance) {
        float largest = 1.0f / (total * expf(inside - most) + mass(logits, more->count, most));
        *chance = largest * largest;
    }
    return best;
}

/* tokens: `count`, of which the first `known` are given, the others found. Where floor is above 0 the
   chain ends before the first token with which the product of the found ones' chances would fall below
   that, but not before the first; doubt is that token's chance, where it was looked at. Returns how many
   there are. state (hidden): before the first of them; it is overwritten. cos, sin (count, width): of
   the places behind m's length, which has room for them. room: what `layers` wants for one row, 3
   hidden, and as many as the largest of hidden, outputs and the words' number. */
long chain(const drafter *d, const words *more, const memory *m, float *state, const float *cos,
           const float *sin, float *room, long *tokens, long known, long count, float floor,
           float *doubt, int threads)
{
    const shape *s = d->shape;
    const long untapped[2] = {-1, -1};
    memory behind = *m;
    float *normed = room, *given = normed + s->hidden, *fed = given + 2 * s->hidden;
    long most = d->outputs > more->count ? d->outputs : more->count;
    float *logits = fed, *rest = logits + (most > s->hidden ? most : s->hidden), passes = 1.0f;

    for (long i = 0; i < count; i++, behind.length++) {
        rms_norm(state, d->out_norm, normed, 1, s->hidden, s->eps);
        if (i >= known) {
            float chance = 1.0f;
            tokens[i] = likeliest(d, more, normed, logits, floor > 0 ? &chance : NULL, threads);
            passes *= chance;
            if (i > known && passes < floor) {
                *doubt = chance;
                return i;
            }
        }
        if (i + 1 == count || (i >= known && passes < floor))
            return i + 1;
        memcpy(fed, d->feeds_normed ? normed : state, s->hidden * sizeof(float));
        rms_norm(d->embeddings + tokens[i] * s->hidden, d->embed_norm, given, 1, s->hidden, s->eps);
        rms_norm(fed, d->state_norm, given + s->hidden, 1, s->hidden, s->eps);
        memcpy(state, d->adds_normed ? given + s->hidden : fed, s->hidden * sizeof(float));
        layers(d->layer, s, &behind, state, given, cos + i * s->width, sin + i * s->width, rest,
               untapped, NULL, 0, 1, 1, threads);
    }
    return 0;
}
