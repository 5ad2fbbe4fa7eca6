/* y = x W^T + b for rows x: (n, in), (out, in), (n, out), float32, W kept in bfloat16.

   At the widths of a draft a product's time is that of reading W, so W is read once, in its
   order, at two bytes a number, and widened in registers. W lies in panels of 16 outputs (the
   last may stand for less; b is there for all 16): for each input 8 words, whose lower halves are
   the panel's outputs 0..7 and whose upper halves are its outputs 8..15.

   An output is one sum over the inputs in their order, whatever n and the number of threads:
   a row comes out the same to the bit in passes of all widths. */

#include "kernels.h"
#include "lanes.h"

typedef uint32_t words __attribute__((vector_size(32)));

enum {
    PANEL = 16,
    ROWS = 6,      /* 12 sums, two halves of W and a number of x are all 16 registers */
    AHEAD = 4096,  /* numbers of W asked for in advance; processors stop at pages by themselves */
    EACH = 2,      /* pieces a thread */
    MANY = 48      /* rows for which one group of panels is work enough */
};

static inline __attribute__((always_inline)) void
block(const uint16_t *w, const float *bias, const float *x, float *y, long in, long out, long width,
      int rows, int panels)
{
    lanes low[ROWS], high[ROWS];
    for (int i = 0; i < rows * panels; i++)
        low[i] = high[i] = (lanes){0};
    for (long k = 0; k < in; k++)
        for (int p = 0; p < panels; p++) {
            const uint16_t *at = w + (p * in + k) * PANEL;
            words both;
            __builtin_prefetch(at + AHEAD);
            memcpy(&both, at, sizeof both);
            lanes a = (lanes)(both << 16), b = (lanes)(both & 0xffff0000u);
            for (int r = 0; r < rows; r++) {
                low[p * rows + r] += a * x[r * in + k];
                high[p * rows + r] += b * x[r * in + k];
            }
        }
    for (int p = 0; p < panels; p++)
        for (int r = 0; r < rows; r++) {
            lanes found[2] = {low[p * rows + r], high[p * rows + r]};
            for (int h = 0; bias && h < 2; h++)
                found[h] += load(bias + p * PANEL + h * LANES);
            long count = width - p * PANEL < PANEL ? width - p * PANEL : PANEL;
            memcpy(y + r * out + p * PANEL, found, count * sizeof(float));
        }
}

typedef struct {
    const uint16_t *w;
    const float *bias, *x;
    float *y;
    long n, in, out, panels, beside, pieces;
} job;

/* What is known when this is compiled stays in registers: a loop for each number of rows. One or two
   rows have too few sums to keep the multipliers busy; several panels run beside each other. */
#define RUN(R, P) block(w, bias, x, y, in, out, width, R, P)

static void run(const job *j, long panel, long row, int rows, int panels)
{
    long in = j->in, out = j->out, first = panel * PANEL, width = out - first;
    const uint16_t *w = j->w + first * in;
    const float *bias = j->bias ? j->bias + first : NULL, *x = j->x + row * in;
    float *y = j->y + row * out + first;
    switch (rows * 8 + panels) {
    case 1 * 8 + 1: RUN(1, 1); break;
    case 1 * 8 + 4: RUN(1, 4); break;
    case 2 * 8 + 1: RUN(2, 1); break;
    case 2 * 8 + 2: RUN(2, 2); break;
    case 3 * 8 + 1: RUN(3, 1); break;
    case 4 * 8 + 1: RUN(4, 1); break;
    case 5 * 8 + 1: RUN(5, 1); break;
    case 6 * 8 + 1: RUN(6, 1); break;
    }
}

/* One of `pieces` about equal parts of the panels, of which `beside` go together. */
static void piece(const void *what, long item, int thread)
{
    const job *j = what;
    long rest = j->n % ROWS, groups = (j->panels + j->beside - 1) / j->beside;
    long panel = groups * item / j->pieces * j->beside, end = groups * (item + 1) / j->pieces * j->beside;
    end = end < j->panels ? end : j->panels;
    while (panel < end) {
        long panels = panel + j->beside <= end ? j->beside : 1;
        for (long p = panel; p < panel + panels; p++)
            for (long row = 0; row + ROWS <= j->n; row += ROWS)
                run(j, p, row, ROWS, 1);
        if (rest)
            run(j, panel, j->n - rest, rest, panels);
        panel += panels;
    }
}

void product(const matrix *w, const float *x, float *y, long n, long in, long out, int threads)
{
    if (w->scales) {
        rounded_product(w, x, y, n, in, out, threads);
        return;
    }
    long panels = (out + PANEL - 1) / PANEL, rest = n % ROWS, beside = rest == 1 ? 4 : rest == 2 ? 2 : 1;
    long groups = (panels + beside - 1) / beside, most = n > MANY ? groups : EACH * threads;
    job all = {w->panels, w->bias, x, y, n, in, out, panels, beside, groups < most ? groups : most};
    together(piece, &all, all.pieces, threads);
}
