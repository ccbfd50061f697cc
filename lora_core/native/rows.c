/* What happens to each row by itself: norms, rotary positions, gated activations, sums.
 *
 * N rows, D width, a multiple of 32; H heads of E numbers, E a multiple of 32. Arithmetic in float,
 * one rounding at the end. `ld*` are the numbers from one row to the next.
 */
#include "amx.h"

#define FOR_ROWS _Pragma("omp parallel for schedule(dynamic, 16)") for (long i = 0; i < n; i++)

static inline float squares(const bf16 *x, long width) {
    __m512 total = _mm512_setzero_ps();
    for (long j = 0; j < width; j += 16) {
        __m512 a = load16(x + j);
        total = _mm512_fmadd_ps(a, a, total);
    }
    return _mm512_reduce_add_ps(total);
}

/* out = (left +) x w / sqrt(mean x^2 + eps); r float [N] is that root's inverse. */
void norm(long n, long width, const bf16 *x, long ldx, const float *w, float eps, const bf16 *left,
          long ldl, bf16 *out, long ldo, float *r) {
    FOR_ROWS {
        const bf16 *from = x + i * ldx;
        r[i] = 1.0f / sqrtf(squares(from, width) / width + eps);
        __m512 by = _mm512_set1_ps(r[i]);
        for (long j = 0; j < width; j += 16) {
            __m512 y = _mm512_mul_ps(_mm512_mul_ps(load16(from + j), by), _mm512_loadu_ps(w + j));
            if (left) y = _mm512_add_ps(y, load16(left + i * ldl + j));
            store16(out + i * ldo + j, y);
        }
    }
}

/* out = (left +) the slope of x for that of `norm`'s output, dy. */
void norm_back(long n, long width, const bf16 *dy, long ldy, const bf16 *x, long ldx, const float *w,
               const float *r, const bf16 *left, long ldl, bf16 *out, long ldo) {
    FOR_ROWS {
        const bf16 *from = x + i * ldx, *given = dy + i * ldy;
        __m512 dot = _mm512_setzero_ps();
        for (long j = 0; j < width; j += 16)
            dot = _mm512_fmadd_ps(_mm512_mul_ps(load16(given + j), _mm512_loadu_ps(w + j)),
                                  load16(from + j), dot);
        float pull = -_mm512_reduce_add_ps(dot) * r[i] * r[i] * r[i] / width;
        __m512 by = _mm512_set1_ps(r[i]), back = _mm512_set1_ps(pull);
        for (long j = 0; j < width; j += 16) {
            __m512 g = _mm512_mul_ps(load16(given + j), _mm512_loadu_ps(w + j));
            __m512 y = _mm512_fmadd_ps(g, by, _mm512_mul_ps(load16(from + j), back));
            if (left) y = _mm512_add_ps(y, load16(left + i * ldl + j));
            store16(out + i * ldo + j, y);
        }
    }
}

/* Heads with rotary positions, normed before where w [E] is given (r float [N, H]). cos and sin
 * are float [N, E]; halves are rotated against each other. */
void rotate(long n, long heads, long width, const bf16 *x, long ldx, const float *w, float eps,
            const float *cosine, const float *sine, bf16 *out, long ldo, float *r) {
    long half = width / 2;
    FOR_ROWS for (long h = 0; h < heads; h++) {
        const bf16 *from = x + i * ldx + h * width;
        const float *c = cosine + i * width, *s = sine + i * width;
        bf16 *to = out + i * ldo + h * width;
        float f = w ? 1.0f / sqrtf(squares(from, width) / width + eps) : 1.0f;
        if (w) r[i * heads + h] = f;
        __m512 by = _mm512_set1_ps(f);
        for (long j = 0; j < half; j += 16) {
            __m512 a = _mm512_mul_ps(load16(from + j), by);
            __m512 b = _mm512_mul_ps(load16(from + half + j), by);
            if (w) {
                a = _mm512_mul_ps(a, _mm512_loadu_ps(w + j));
                b = _mm512_mul_ps(b, _mm512_loadu_ps(w + half + j));
            }
            store16(to + j, _mm512_fnmadd_ps(b, _mm512_loadu_ps(s + j),
                                             _mm512_mul_ps(a, _mm512_loadu_ps(c + j))));
            store16(to + half + j,
                    _mm512_fmadd_ps(a, _mm512_loadu_ps(s + half + j),
                                    _mm512_mul_ps(b, _mm512_loadu_ps(c + half + j))));
        }
    }
}

/* The slope of x for that of `rotate`'s output, dy. */
void rotate_back(long n, long heads, long width, const bf16 *dy, long ldy, const bf16 *x, long ldx,
                 const float *w, const float *r, const float *cosine, const float *sine, bf16 *out,
                 long ldo) {
    long half = width / 2;
    FOR_ROWS for (long h = 0; h < heads; h++) {
        const bf16 *given = dy + i * ldy + h * width, *from = x + i * ldx + h * width;
        const float *c = cosine + i * width, *s = sine + i * width;
        bf16 *to = out + i * ldo + h * width;
        float *g = scratch(0, width * 4);
        __m512 dot = _mm512_setzero_ps();
        for (long j = 0; j < half; j += 16) {
            __m512 a = load16(given + j), b = load16(given + half + j);
            __m512 u = _mm512_fmadd_ps(b, _mm512_loadu_ps(s + half + j),
                                       _mm512_mul_ps(a, _mm512_loadu_ps(c + j)));
            __m512 v = _mm512_fnmadd_ps(a, _mm512_loadu_ps(s + j),
                                        _mm512_mul_ps(b, _mm512_loadu_ps(c + half + j)));
            if (w) {
                u = _mm512_mul_ps(u, _mm512_loadu_ps(w + j));
                v = _mm512_mul_ps(v, _mm512_loadu_ps(w + half + j));
                dot = _mm512_fmadd_ps(u, load16(from + j), dot);
                dot = _mm512_fmadd_ps(v, load16(from + half + j), dot);
            }
            _mm512_storeu_ps(g + j, u);
            _mm512_storeu_ps(g + half + j, v);
        }
        float f = w ? r[i * heads + h] : 1.0f;
        float pull = w ? -_mm512_reduce_add_ps(dot) * f * f * f / width : 0.0f;
        __m512 by = _mm512_set1_ps(f), back = _mm512_set1_ps(pull);
        for (long j = 0; j < width; j += 16) {
            __m512 y = _mm512_mul_ps(_mm512_loadu_ps(g + j), by);
            if (w) y = _mm512_fmadd_ps(load16(from + j), back, y);
            store16(to + j, y);
        }
    }
}

/* An activation and its slope at x: SiLU (kind 0) or GELU by its tanh formula (kind 1). */
static inline void activate(__m512 x, int kind, __m512 *y, __m512 *slope) {
    __m512 one = _mm512_set1_ps(1.0f);
    if (kind == 0) {
        __m512 s = _mm512_div_ps(one, _mm512_add_ps(one, exp16(_mm512_sub_ps(_mm512_setzero_ps(), x))));
        *y = _mm512_mul_ps(x, s);
        *slope = _mm512_fmadd_ps(*y, _mm512_sub_ps(one, s), s);
        return;
    }
    __m512 k = _mm512_set1_ps(0.7978845608f), cube = _mm512_set1_ps(0.044715f);
    __m512 square = _mm512_mul_ps(x, x);
    __m512 inner = _mm512_mul_ps(_mm512_mul_ps(k, x), _mm512_fmadd_ps(cube, square, one));
    __m512 e = exp16(_mm512_add_ps(inner, inner));
    __m512 t = _mm512_sub_ps(one, _mm512_div_ps(_mm512_set1_ps(2.0f), _mm512_add_ps(e, one)));
    __m512 half = _mm512_mul_ps(_mm512_set1_ps(0.5f), _mm512_add_ps(one, t));
    *y = _mm512_mul_ps(x, half);
    __m512 rise = _mm512_mul_ps(k, _mm512_fmadd_ps(_mm512_set1_ps(3.0f * 0.044715f), square, one));
    __m512 bend = _mm512_mul_ps(_mm512_fnmadd_ps(t, t, one), rise);
    *slope = _mm512_fmadd_ps(_mm512_mul_ps(_mm512_set1_ps(0.5f), x), bend, half);
}

/* out = act(gate) up; gate and up are the halves of each row of x [N, 2 D]. */
void gate(long n, long width, const bf16 *x, long ldx, int kind, bf16 *out, long ldo) {
    FOR_ROWS {
        const bf16 *from = x + i * ldx;
        for (long j = 0; j < width; j += 16) {
            __m512 y, slope;
            activate(load16(from + j), kind, &y, &slope);
            store16(out + i * ldo + j, _mm512_mul_ps(y, load16(from + width + j)));
        }
    }
}

/* The slope [N, 2 D] of `gate`'s x for that of its output, dy; and its output once more. */
void gate_back(long n, long width, const bf16 *dy, long ldy, const bf16 *x, long ldx, int kind,
               bf16 *out, long ldo) {
    FOR_ROWS {
        const bf16 *from = x + i * ldx, *given = dy + i * ldy;
        bf16 *to = out + i * ldo;
        for (long j = 0; j < width; j += 16) {
            __m512 y, slope, d = load16(given + j);
            activate(load16(from + j), kind, &y, &slope);
            store16(to + j, _mm512_mul_ps(_mm512_mul_ps(d, slope), load16(from + width + j)));
            store16(to + width + j, _mm512_mul_ps(d, y));
        }
    }
}

/* out = a + b. */
void add(long n, long width, const bf16 *a, long lda, const bf16 *b, long ldb, bf16 *out, long ldo) {
    FOR_ROWS for (long j = 0; j < width; j += 16)
        store16(out + i * ldo + j, _mm512_add_ps(load16(a + i * lda + j), load16(b + i * ldb + j)));
}
