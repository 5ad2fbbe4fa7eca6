/* The router's network, of what comes in two pieces: y = second gelu(first (x, more) + first_bias) +
   second_bias, gelu by tanh. It is read from memory once a round and done before a thread would have
   woken up. Sizes of any kind. */

#include "lanes.h"

enum { ROWS = 4 };

/* y[k] = w_k (x, more), of `rows` rows, at most four: sums that do not wait for each other. */
static void products(const float *x, const float *more, const float *w, float *y, long in, long rest,
                     int rows)
{
    lanes all[ROWS] = {0};
    const float *row[ROWS];
    for (int k = 0; k < ROWS; k++) /* the last one again, where there are less */
        row[k] = w + (k < rows ? k : rows - 1) * (in + rest);
    long whole = in - in % LANES;
    for (long i = 0; i < whole; i += LANES)
        for (int k = 0; k < ROWS; k++)
            all[k] += load(x + i) * load(row[k] + i);
    float found[ROWS];
    _mm_storeu_ps(found, sums(all[0], all[1], all[2], all[3]));
    for (int k = 0; k < rows; k++) {
        for (long i = whole; i < in; i++)
            found[k] += x[i] * row[k][i];
        for (long i = 0; i < rest; i++)
            found[k] += more[i] * row[k][in + i];
        y[k] = found[k];
    }
}

/* x (in), more (rest), first (inner, in + rest), first_bias (inner), second (out, inner), second_bias
   (out). y (out), and behind it room for inner others and seven more. */
void perceptron(const float *x, const float *more, const float *first, const float *first_bias,
                const float *second, const float *second_bias, float *y, long in, long rest,
                long inner, long out)
{
    float *between = y + out;
    for (long r = 0; r < inner; r += ROWS)
        products(x, more, first + r * (in + rest), between + r, in, rest,
                 inner - r < ROWS ? inner - r : ROWS);
    for (long r = 0; r < inner; r++)
        between[r] += first_bias[r];
    for (long r = 0; r < inner; r += LANES) { /* 1 + tanh(a) = 2 / (1 + e^-2a) */
        lanes h = load(between + r), a = h * (0.7978845608f + 0.0356774081f * h * h);
        store(between + r, h / (1.0f + exponential(-2.0f * a)));
    }
    for (long r = 0; r < out; r++)
        y[r] = dot(second + r * inner, between, inner) + second_bias[r];
}
