/* What the C files do for each other. */

#include <stdint.h>

/* One item of a kernel's work; thread: below the number of threads, another one's for each that
   works at the same time. */
typedef void work(const void *what, long item, int thread);
void together(work *each, const void *what, long items, int threads);

void product(const uint16_t *w, const float *x, float *y, long n, long in, long out, int threads);
void attention(const float *q, const float *k, const float *v, float *y, float *weights,
               long q_step, long step, long n, long heads, long kv_heads, long width, long length,
               long window, int causal, int threads);
void rms_norm(const float *x, const float *w, float *y, long n, long size, float eps);
void swiglu(const float *gate_up, float *y, long n, long size, int threads);
void rotate(const float *x, const float *cos, const float *sin, float *y, long step, long n,
            long heads, long width);
