/* Cross-entropy through a frozen head without logits in memory, with its slope and its hits.
 *
 *     z = cap(scale h W^T)     loss = log sum_v e^z_v - z_label     hit: no z_v above z_label
 *     dh = scale (softmax(z) cap'(z)) W - scale cap'(z_label) W_label
 *
 * M rows, a multiple of 32; D width, a multiple of 32; V vocabulary; W [V, D]. cap(z) is
 * c tanh(z / c), or z where c is 0. As attention with keys and values W: a chunk of W is packed
 * once for both products; each row keeps its sum relative to a reference that only moves when a
 * logit lies far above it. The vocabulary is cut into RANGES parts, always the same, so that a few
 * rows find work for several threads; a row's bits are its own.
 */
#include "amx.h"

#define RANGES 8
#define CHUNK 256   /* vocabulary entries at once */
#define BLOCK 256   /* rows of one task */
#define FAR 16.0f   /* how far a logit may rise over the reference */

typedef struct {
    float reference, sum, top;
} Running;

/* Logits [32, CHUNK] of a block's rows to what the second product takes, p [32, CHUNK]. */
static void weigh(float *z, bf16 *p, long valid, float scale, float cap, Running *state,
                  const int64_t *labels, long first, float *own, float *bend, float *sums,
                  long width) {
    for (long i = 0; i < 32; i++) {
        float *row = z + i * CHUNK, slope[CHUNK] __attribute__((aligned(64)));
        Running *mine = state + i;
        __m512 top = _mm512_set1_ps(-INFINITY), by = _mm512_set1_ps(scale);
        for (long j = 0; j < CHUNK; j += 16) {
            __mmask16 some = (__mmask16)first32(valid - j);
            __m512 x = _mm512_mul_ps(_mm512_load_ps(row + j), by);
            if (cap > 0) {
                /* tanh x = 1 - 2 / (e^2x + 1) */
                __m512 e = exp16(_mm512_mul_ps(x, _mm512_set1_ps(2.0f / cap)));
                __m512 one = _mm512_set1_ps(1.0f);
                __m512 t = _mm512_sub_ps(
                    one, _mm512_div_ps(_mm512_set1_ps(2.0f), _mm512_add_ps(e, one)));
                x = _mm512_mul_ps(t, _mm512_set1_ps(cap));
                _mm512_store_ps(slope + j, _mm512_fnmadd_ps(t, t, one));
            }
            _mm512_store_ps(row + j, x);
            top = _mm512_mask_max_ps(top, some, top, x);
        }
        float high = _mm512_reduce_max_ps(top);
        mine->top = mine->top > high ? mine->top : high;
        long at = labels[i] - first;
        if (at >= 0 && at < valid) own[i] = row[at], bend[i] = cap > 0 ? slope[at] : 1.0f;
        if (high > mine->reference + FAR) {
            float shrink = expf(mine->reference - high);
            __m512 s = _mm512_set1_ps(shrink);
            mine->sum *= shrink;
            mine->reference = high;
            for (long d = 0; sums && d < width; d += 16)
                _mm512_storeu_ps(sums + i * width + d,
                                 _mm512_mul_ps(s, _mm512_loadu_ps(sums + i * width + d)));
        }
        __m512 base = _mm512_set1_ps(mine->reference), total = _mm512_setzero_ps();
        for (long j = 0; j < CHUNK; j += 32) {
            __m512 e[2];
            for (long k = 0; k < 2; k++) {
                __mmask16 some = (__mmask16)first32(valid - j - k * 16);
                __m512 x = _mm512_sub_ps(_mm512_load_ps(row + j + k * 16), base);
                e[k] = _mm512_maskz_mov_ps(some, exp16(x));
                total = _mm512_add_ps(total, e[k]);
                if (cap > 0) e[k] = _mm512_mul_ps(e[k], _mm512_load_ps(slope + j + k * 16));
            }
            store32(p + i * CHUNK + j, e[0], e[1]);
        }
        mine->sum += _mm512_reduce_add_ps(total);
    }
}

/* Rows `top` to `bottom` against vocabulary `first` to `last`; sums [M, D] or NULL. */
static void range(long top, long bottom, long first, long last, long width, const bf16 *h, long ldh,
                  const bf16 *w, long ldw, const int64_t *labels, float scale, float cap,
                  Running *state, float *own, float *bend, float *sums) {
    long steps = width / 32;
    bf16 *keys = scratch(0, (size_t)CHUNK * width * 2);
    bf16 *values = scratch(1, (size_t)CHUNK * width * 2);
    float *z = scratch(2, 32 * CHUNK * 4);
    bf16 *p = scratch(3, 32 * CHUNK * 2);
    for (long v = first; v < last; v += CHUNK) {
        long valid = MIN(CHUNK, last - v);
        for (long c = 0; c < CHUNK; c += 32)
            pack_rows(w + (v + c) * ldw, ldw, valid - c, width, keys + c * width);
        for (long d = 0; sums && d < width; d += 32)
            pack_columns(w + v * ldw + d, ldw, 32, valid, values + d * CHUNK);
        /* what lies behind `valid` in `values` meets zeros in p; it must be a number itself */
        for (long d = 0; sums && valid <= CHUNK - 32 && d < width; d += 32) {
            long whole = (valid + 31) / 32 * 32;
            memset(values + d * CHUNK + whole * 32, 0, (CHUNK - whole) * 64);
        }
        for (long row = top; row < bottom; row += 32) {
            const bf16 *a = h + row * ldh;
            for (long c = 0; c < CHUNK; c += 32) {
                zeros();
                dots(a, a + 16 * ldh, ldh * 2, keys + c * width, steps);
                sums_to(z + c, CHUNK);
            }
            float *mine = sums ? sums + row * width : NULL;
            weigh(z, p, valid, scale, cap, state + row, labels + row, v, own + row, bend + row,
                  mine, width);
            for (long d = 0; sums && d < width; d += 32) {
                sums_from(mine + d, width);
                dots(p, p + 16 * CHUNK, CHUNK * 2, values + d * CHUNK, CHUNK / 32);
                sums_to(mine + d, width);
            }
        }
    }
}

/* loss float [M], hit 0 or 1 [M], dh [M, D] or NULL. Returns 0, or 1 where memory is out. */
int head(long rows, long width, long vocabulary, const bf16 *h, long ldh, const bf16 *w, long ldw,
         const int64_t *labels, float scale, float cap, float *loss, uint8_t *hit, bf16 *dh) {
    long share = (vocabulary + RANGES - 1) / RANGES;
    share = (share + CHUNK - 1) / CHUNK * CHUNK;
    long blocks = (rows + BLOCK - 1) / BLOCK;
    Running *state = malloc(sizeof(Running) * RANGES * rows);
    float *own = malloc(sizeof(float) * rows), *bend = malloc(sizeof(float) * rows);
    float *sums = dh ? aligned_alloc(64, sizeof(float) * RANGES * rows * width) : NULL;
    int poor = !state || !own || !bend || (dh && !sums);
    for (long i = 0; !poor && i < RANGES * rows; i++)
        state[i] = (Running){-INFINITY, 0.0f, -INFINITY};
#pragma omp parallel if (!poor)
    {
        if (!poor) tiles_on();
#pragma omp for schedule(dynamic) collapse(2)
        for (long r = 0; r < RANGES; r++)
            for (long b = 0; b < blocks; b++) {
                if (poor) continue;
                long top = b * BLOCK, bottom = MIN(rows, top + BLOCK);
                float *mine = sums ? sums + r * rows * width : NULL;
                if (mine) memset(mine + top * width, 0, sizeof(float) * (bottom - top) * width);
                range(top, bottom, r * share, MIN(vocabulary, (r + 1) * share), width, h, ldh, w,
                      ldw, labels, scale, cap, state + r * rows, own, bend, mine);
            }
        if (!poor) tiles_off();
#pragma omp for schedule(dynamic, 16)
        for (long i = 0; i < rows; i++) {
            if (poor) continue;
            float base = -INFINITY, top = -INFINITY, total = 0.0f;
            for (long r = 0; r < RANGES; r++) {
                Running *mine = state + r * rows + i;
                base = mine->reference > base ? mine->reference : base;
                top = mine->top > top ? mine->top : top;
            }
            for (long r = 0; r < RANGES; r++) {
                Running *mine = state + r * rows + i;
                if (r * share < vocabulary) total += mine->sum * expf(mine->reference - base);
            }
            float norm = base + logf(total);
            loss[i] = norm - own[i];
            hit[i] = own[i] >= top;
            if (!dh) continue;
            const bf16 *mine = w + labels[i] * ldw;
            __m512 away = _mm512_set1_ps(-bend[i]), by = _mm512_set1_ps(scale);
            for (long d = 0; d < width; d += 16) {
                __m512 y = _mm512_mul_ps(load16(mine + d), away);
                for (long r = 0; r < RANGES && r * share < vocabulary; r++) {
                    __m512 f = _mm512_set1_ps(expf(state[r * rows + i].reference - norm));
                    y = _mm512_fmadd_ps(_mm512_loadu_ps(sums + (r * rows + i) * width + d), f, y);
                }
                store16(dh + i * width + d, _mm512_mul_ps(y, by));
            }
        }
    }
    free(state);
    free(own);
    free(bend);
    free(sums);
    return poor;
}
