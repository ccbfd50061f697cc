/* AdamW over one slot's numbers, and the norm of their gradient, in chunks that no thread count
 * changes. P numbers; see `optim.py`.
 */
#include "amx.h"

#define CHUNK 16384

static inline __mmask16 first16(long n) { return (__mmask16)first32(n < 16 ? n : 16); }

/* The 2-norm of x [P]: chunks in float, their sum in double, in order. -1 where memory is out. */
double length(long p, const float *x) {
    long chunks = (p + CHUNK - 1) / CHUNK;
    double *part = malloc(sizeof(double) * (chunks + 1)), total = 0.0;
    if (!part) return -1.0;
#pragma omp parallel for schedule(dynamic)
    for (long c = 0; c < chunks; c++) {
        long from = c * CHUNK, to = MIN(p, from + CHUNK);
        __m512 sum = _mm512_setzero_ps();
        for (long i = from; i < to; i += 16) {
            __m512 a = _mm512_maskz_loadu_ps(first16(to - i), x + i);
            sum = _mm512_fmadd_ps(a, a, sum);
        }
        part[c] = _mm512_reduce_add_ps(sum);
    }
    for (long c = 0; c < chunks; c++) total += part[c];
    free(part);
    return sqrt(total);
}

/* One update of w [P] and its moments by `scale` times g; low bf16 [P] (or NULL) gets a copy. */
void adamw(long p, float *w, const float *g, float *mean, float *square, float scale, float keep_mean,
           float keep_square, float decay, float rate, float correction, float eps, bf16 *low) {
    long chunks = (p + CHUNK - 1) / CHUNK;
    __m512 s = _mm512_set1_ps(scale), a = _mm512_set1_ps(1.0f - keep_mean);
    __m512 b = _mm512_set1_ps(keep_square), c = _mm512_set1_ps(1.0f - keep_square);
    __m512 shrink = _mm512_set1_ps(decay), move = _mm512_set1_ps(rate);
    __m512 correct = _mm512_set1_ps(correction), small = _mm512_set1_ps(eps);
#pragma omp parallel for schedule(dynamic)
    for (long k = 0; k < chunks; k++)
        for (long i = k * CHUNK; i < MIN(p, (k + 1) * CHUNK); i += 16) {
            __mmask16 some = first16(p - i);
            __m512 x = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, g + i), s);
            __m512 m = _mm512_maskz_loadu_ps(some, mean + i);
            __m512 v = _mm512_maskz_loadu_ps(some, square + i);
            __m512 y = _mm512_mul_ps(_mm512_maskz_loadu_ps(some, w + i), shrink);
            m = _mm512_fmadd_ps(_mm512_sub_ps(x, m), a, m);
            v = _mm512_fmadd_ps(_mm512_mul_ps(x, x), c, _mm512_mul_ps(v, b));
            __m512 below = _mm512_add_ps(_mm512_mul_ps(_mm512_sqrt_ps(v), correct), small);
            y = _mm512_fnmadd_ps(_mm512_div_ps(m, below), move, y);
            _mm512_mask_storeu_ps(mean + i, some, m);
            _mm512_mask_storeu_ps(square + i, some, v);
            _mm512_mask_storeu_ps(w + i, some, y);
            if (low)
                _mm256_mask_storeu_epi16(low + i, some, (__m256i)_mm512_cvtneps_pbh(y));
        }
}
