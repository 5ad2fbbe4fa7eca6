/* What stands between the products of a layer, float32; sizes that 8 divides. Each row
   by itself. */

#include <math.h>

#include "kernels.h"
#include "lanes.h"

/* y = x w / sqrt(mean(x^2) + eps). x, y (n, size), w (size,). */
void rms_norm(const float *x, const float *w, float *y, long n, long size, float eps)
{
    for (long r = 0; r < n; r++, x += size, y += size) {
        lanes squares = {0};
        for (long i = 0; i < size; i += LANES)
            squares += load(x + i) * load(x + i);
        float scale = 1.0f / sqrtf(sum(squares) / size + eps);
        for (long i = 0; i < size; i += LANES)
            store(y + i, load(x + i) * scale * load(w + i));
    }
}

typedef struct {
    const float *gate_up;
    float *y;
    long size;
} job;

static void row(const void *what, long r, int thread)
{
    const job *j = what;
    const float *gate = j->gate_up + 2 * r * j->size, *up = gate + j->size;
    for (long i = 0; i < j->size; i += LANES) {
        lanes g = load(gate + i);
        store(j->y + r * j->size + i, g / (1.0f + exponential(-g)) * load(up + i));
    }
}

/* y = silu(gate) up. gate_up (n, 2 size), gate first; y (n, size). */
void swiglu(const float *gate_up, float *y, long n, long size, int threads)
{
    job all = {gate_up, y, size};
    together(row, &all, n, threads);
}

/* y = x cos + (x2, x1) sin, where x1 and x2 are the halves of a head, which 8 divides; the sign is in
   sin. x (n, heads, width), rows `step` apart; cos, sin (n, width); y (n, heads, width). */
void rotate(const float *x, const float *cos, const float *sin, float *y, long step, long n,
            long heads, long width)
{
    long half = width / 2;
    for (long r = 0; r < n; r++, cos += width, sin += width)
        for (long h = 0; h < heads; h++, y += width) {
            const float *from = x + r * step + h * width;
            for (long i = 0; i < half; i += LANES) {
                lanes a = load(from + i), b = load(from + half + i);
                store(y + i, a * load(cos + i) + b * load(sin + i));
                store(y + half + i, b * load(cos + half + i) + a * load(sin + half + i));
            }
        }
}

/* The entropy of softmax(x), in nats: ln t - (sum of e^(x - max) (x - max)) / t, t the sum of
   e^(x - max). Where that is 0 the distance counts as 200, for 0 times infinity would be no number. */
float entropy(const float *x, long size)
{
    lanes most = (lanes){0} - INFINITY, total = {0}, mixed = {0};
    for (long i = 0; i < size; i += LANES) {
        lanes here = load(x + i);
        most = choose(here > most, here, most);
    }
    float top = most[0];
    for (int i = 1; i < LANES; i++)
        top = most[i] > top ? most[i] : top;
    for (long i = 0; i < size; i += LANES) {
        lanes below = load(x + i) - top, floor = (lanes){0} - 200.0f;
        below = choose(below < floor, floor, below);
        lanes weight = exponential(below);
        total += weight;
        mixed += weight * below;
    }
    float all = sum(total), found = logf(all) - sum(mixed) / all;
    return found < 0 ? 0 : found; /* what is no number stays none */
}
