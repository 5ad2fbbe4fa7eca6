/* y = x W^T for rows x: (n, in), (out, in), (n, out), float32, W kept in bfloat16.

   At the widths of a draft a product's time is that of reading W, so W is read once, in its
   order, at two bytes a number, and widened in registers. W lies in panels of 16 outputs (the
   last may stand for less): for each input 8 words, whose lower halves are the panel's outputs
   0..7 and whose upper halves are its outputs 8..15.

   An output is one sum over the inputs in their order, whatever n and the number of threads:
   a row comes out the same to the bit in passes of all widths. */

#include <omp.h>

#include "kernels.h"
#include "lanes.h"

typedef uint32_t words __attribute__((vector_size(32)));

enum {
    PANEL = 16,
    ROWS = 6,      /* 12 sums, two halves of W and a number of x are all 16 registers */
    AHEAD = 4096   /* numbers of W asked for in advance; processors stop at pages by themselves */
};

static inline __attribute__((always_inline)) void
block(const uint16_t *w, const float *x, float *y, long in, long out, long width, int rows, int panels)
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
            long count = width - p * PANEL < PANEL ? width - p * PANEL : PANEL;
            memcpy(y + r * out + p * PANEL, found, count * sizeof(float));
        }
}

/* What is known when this is compiled stays in registers: a loop for each number of rows. One or two
   rows have too few sums to keep the multipliers busy; several panels run beside each other. */
#define RUN(R, P) block(w, x, y, in, out, width, R, P)

static void run(const uint16_t *w, const float *x, float *y, long in, long out, long width, int rows, int panels)
{
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

void product(const uint16_t *w, const float *x, float *y, long n, long in, long out, int threads)
{
    long count = (out + PANEL - 1) / PANEL, rest = n % ROWS;
    int beside = rest == 1 ? 4 : rest == 2 ? 2 : 1;
#pragma omp parallel num_threads(threads)
    {
        long thread = omp_get_thread_num(), of = omp_get_num_threads();
        long panel = count * thread / of, end = count * (thread + 1) / of;
        while (panel < end) {
            int panels = panel + beside <= end ? beside : 1;
            for (long p = panel; p < panel + panels; p++)
                for (long row = 0; row + ROWS <= n; row += ROWS)
                    run(w + p * in * PANEL, x + row * in, y + row * out + p * PANEL,
                        in, out, out - p * PANEL, ROWS, 1);
            if (rest)
                run(w + panel * in * PANEL, x + (n - rest) * in, y + (n - rest) * out + panel * PANEL,
                    in, out, out - panel * PANEL, rest, panels);
            panel += panels;
        }
    }
}
