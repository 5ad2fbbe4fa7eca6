/* The router's network, of what comes in two pieces: y = second gelu(first (x, more) + first_bias) +
   second_bias, gelu by tanh. It is read from memory once a round and done before a thread would have
   woken up. Sizes of any kind. */

#include <math.h>

#include "lanes.h"

/* x (in), more (rest), first (inner, in + rest), first_bias (inner), second (out, inner), second_bias
   (out). y (out), and behind it room for inner others. */
void perceptron(const float *x, const float *more, const float *first, const float *first_bias,
                const float *second, const float *second_bias, float *y, long in, long rest,
                long inner, long out)
{
    float *between = y + out;
    for (long r = 0; r < inner; r++, first += in + rest) {
        float h = dot(first, x, in) + dot(first + in, more, rest) + first_bias[r];
        between[r] = h * (0.5f + 0.5f * tanhf(h * (0.7978845608f + 0.0356774081f * h * h)));
    }
    for (long r = 0; r < out; r++)
        y[r] = dot(second + r * inner, between, inner) + second_bias[r];
}
