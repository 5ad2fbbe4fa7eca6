/* y = x W^T for rows x: (n, in), (out, in), (n, out), float32, for a W that is used as it comes, because
   it changes with the text. Sizes of any kind. */

#include "kernels.h"
#include "lanes.h"

enum { TOGETHER = 16 }; /* outputs */

typedef struct {
    const float *w, *x;
    float *y;
    long n, in, out;
} job;

static void some(const void *what, long item, int thread)
{
    const job *j = what;
    long end = (item + 1) * TOGETHER < j->out ? (item + 1) * TOGETHER : j->out;
    for (long i = item * TOGETHER; i < end; i++)
        for (long r = 0; r < j->n; r++)
            j->y[r * j->out + i] = dot(j->w + i * j->in, j->x + r * j->in, j->in);
}

void dots(const float *w, const float *x, float *y, long n, long in, long out, int threads)
{
    job all = {w, x, y, n, in, out};
    together(some, &all, (out + TOGETHER - 1) / TOGETHER, threads);
}
