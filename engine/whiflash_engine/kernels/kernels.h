/* What the C files do for each other. */

#include <stdint.h>

/* One item of a kernel's work; thread: below the number of threads, another one's for each that
   works at the same time. */
typedef void work(const void *what, long item, int thread);
void together(work *each, const void *what, long items, int threads);

/* From now on helpers wait awake for more, for as long as a program takes between two passes. Not so
   where what lies between the kernels is another library's, whose threads want the processors. */
void stay(void);

/* W and b, as `product` reads them, or with scales `rounded_product`; what is not there is none. */
typedef struct {
    const void *panels;
    const float *scales, *bias;
} matrix;

void product(const matrix *w, const float *x, float *y, long n, long in, long out, int threads);
void rounded_product(const matrix *w, const float *x, float *y, long n, long in, long out, int threads);
void dots(const float *w, const float *x, float *y, long n, long in, long out, int threads);
void attention(const float *q, const float *k, const float *v, float *y, float *weights,
               long q_step, long step, long n, long heads, long kv_heads, long width, long length,
               long window, int causal, int threads);
void rms_norm(const float *x, const float *w, float *y, long n, long size, float eps);
void swiglu(const float *gate_up, float *y, long n, long size, int threads);
void rotate(const float *x, const float *cos, const float *sin, float *y, long step, long n,
            long heads, long width);

/* Of `layers`. */
typedef struct {
    const float *norm_in, *norm_mlp, *q_norm, *k_norm; /* the latter two may be none */
    matrix qkv, o, gate_up, down;
    long window, causal;                               /* of `attention` */
} layer;

typedef struct {
    long layers, hidden, inner, heads, kv_heads, width, into; /* of the first qkv */
    float eps;
} shape;

/* The cache: kv (layers, 2, kv_heads, capacity, width), of which `length` positions are filled. */
typedef struct {
    float *kv;
    long capacity, length;
} memory;

void layers(const layer *all, const shape *s, const memory *m, float *x, const float *given,
            const float *cos, const float *sin, float *room, const long *taps, float *features,
            long features_step, long n, long rows, int threads);
