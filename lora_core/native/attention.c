/* Causal attention over the sequences of a flat axis, forward and backward, nothing of [T, T] kept.
 *
 *     p = softmax(scale q k^T), o = p v     over keys at most `window` back (0: all)
 *
 * T tokens of a sequence, E width of a head, a multiple of 32; H query heads share K key-value
 * heads. Row i, head h of q lies at q + i * ldq + h * E; k, v and o alike. lse float [N, H] is each
 * row's log-sum-exp. After FlashAttention (Dao et al., 2022): the backward makes p anew. One task is
 * one sequence and one key-value head, so a sequence's bits are its own.
 */
#include "amx.h"

/* `rows` rows as [tall, E] in a row, zeros below. */
static void copy(const bf16 *from, long ld, long rows, long tall, long width, bf16 *to) {
    for (long i = 0; i < rows; i++) memcpy(to + i * width, from + i * ld, width * 2);
    memset(to + rows * width, 0, (tall - rows) * width * 2);
}

/* Which of 16 columns from `first` on lie in [low, high]. */
static inline __mmask16 within(long first, long low, long high) {
    long from = low - first, to = high - first + 1;
    if (to <= 0 || from >= 16) return 0;
    uint32_t upper = to >= 16 ? 0xffffu : (1u << to) - 1, lower = from <= 0 ? 0 : (1u << from) - 1;
    return (__mmask16)(upper & ~lower);
}

/* One row of scores [from, to) to weights; returns its log-sum-exp. */
static float soften(const float *z, bf16 *p, long from, long to, long low, long high, float scale) {
    __m512 top = _mm512_set1_ps(-INFINITY), by = _mm512_set1_ps(scale), sum = _mm512_setzero_ps();
    for (long j = from; j < to; j += 16)
        top = _mm512_mask_max_ps(top, within(j, low, high), top,
                                 _mm512_mul_ps(_mm512_load_ps(z + j), by));
    float high_z = _mm512_reduce_max_ps(top);
    __m512 base = _mm512_set1_ps(high_z);
    for (long j = from; j < to; j += 16)
        sum = _mm512_mask_add_ps(
            sum, within(j, low, high), sum,
            exp16(_mm512_fmsub_ps(_mm512_load_ps(z + j), by, base)));
    float total = _mm512_reduce_add_ps(sum);
    __m512 share = _mm512_set1_ps(1.0f / total);
    for (long j = from; j < to; j += 16) {
        __m512 e = exp16(_mm512_fmsub_ps(_mm512_load_ps(z + j), by, base));
        store16(p + j, _mm512_maskz_mul_ps(within(j, low, high), e, share));
    }
    return high_z + logf(total);
}

void attend(long n, const int64_t *start, const int64_t *length, long heads, long groups, long width,
            const bf16 *q, long ldq, const bf16 *k, long ldk, const bf16 *v, long ldv, float scale,
            long window, bf16 *o, long ldo, float *lse) {
    long share = heads / groups, steps = width / 32;
#pragma omp parallel
    {
        tiles_on();
#pragma omp for schedule(dynamic) collapse(2)
        for (long s = 0; s < n; s++)
            for (long g = 0; g < groups; g++) {
                long t = length[s], blocks = (t + 31) / 32, tall = blocks * 32, at = start[s];
                bf16 *keys = scratch(0, (size_t)tall * width * 2);
                bf16 *values = scratch(1, (size_t)tall * width * 2);
                float *z = scratch(2, (size_t)tall * 128 + 4096);
                float *c = z + tall * 32;
                bf16 *mine = scratch(3, (size_t)64 * width + (size_t)tall * 64);
                bf16 *p = mine + 32 * width;
                for (long b = 0; b < blocks; b++)
                    pack_rows(k + (at + b * 32) * ldk + g * width, ldk, t - b * 32, width,
                              keys + b * 32 * width);
                for (long e = 0; e < width; e += 32)
                    pack_columns(v + at * ldv + g * width + e, ldv, 32, t, values + e * tall, 1, 0);
                for (long h = g * share; h < (g + 1) * share; h++)
                    for (long b = 0; b < blocks; b++) {
                        long rows = MIN(32, t - b * 32), first = at + b * 32;
                        long back = window > 0 && b * 32 - window + 1 > 0
                                        ? (b * 32 - window + 1) / 32 : 0;
                        copy(q + first * ldq + h * width, ldq, rows, 32, width, mine);
                        for (long kb = back; kb <= b; kb++) {
                            zeros();
                            dots(mine, mine + 16 * width, width * 2, keys + kb * 32 * width, steps);
                            sums_to(z + kb * 32, tall);
                        }
                        for (long i = 0; i < 32; i++) {
                            long row = b * 32 + i;
                            long low = window > 0 && row - window + 1 > 0 ? row - window + 1 : 0;
                            if (i >= rows)
                                memset(p + i * tall + back * 32, 0, (b + 1 - back) * 64);
                            else
                                lse[(first + i) * heads + h] =
                                    soften(z + i * tall, p + i * tall, back * 32, (b + 1) * 32, low,
                                           row, scale);
                        }
                        for (long e = 0; e < width; e += 32) {
                            zeros();
                            dots(p + back * 32, p + 16 * tall + back * 32, tall * 2,
                                 values + e * tall + back * 1024, b + 1 - back);
                            sums_to(c, 32);
                            for (long i = 0; i < rows; i++)
                                store32(o + (first + i) * ldo + h * width + e,
                                        _mm512_load_ps(c + i * 32), _mm512_load_ps(c + i * 32 + 16));
                        }
                    }
            }
        tiles_off();
    }
}

/* Scores and slopes of 32 keys x 32 queries, both transposed: to p^T, ds^T [keys, queries] and
 * ds [queries, keys]. Query row j is `row + j` of the sequence, key row r is `key + r`. */
static void slopes(float *z, float *d, const float *lse, const float *delta, long row, long key,
                   long rows, long window, float scale, bf16 *pt, bf16 *dt, bf16 *ds) {
    for (long half = 0; half < 32; half += 16) {
        __m512 norm = _mm512_load_ps(lse + half), mean = _mm512_load_ps(delta + half);
        __m512 by = _mm512_set1_ps(scale);
        for (long r = 0; r < 32; r++) {
            long at = key + r, last = row + rows - 1;
            long until = window > 0 && at + window - 1 < last ? at + window - 1 : last;
            __mmask16 some = within(row + half, at, until);
            __m512 p = _mm512_maskz_mov_ps(
                some, exp16(_mm512_fmsub_ps(_mm512_load_ps(z + r * 32 + half), by, norm)));
            __m512 s = _mm512_sub_ps(_mm512_load_ps(d + r * 32 + half), mean);
            s = _mm512_maskz_mul_ps(some, _mm512_mul_ps(s, p), by);
            store16(pt + r * 32 + half, p);
            store16(dt + r * 32 + half, s);
            _mm512_store_ps(d + r * 32 + half, s);
        }
        for (long r = 0; r < 32; r += 16) {
            __m512i block[16];
            for (int i = 0; i < 16; i++) block[i] = _mm512_load_si512(d + (r + i) * 32 + half);
            transpose(block);
            for (int i = 0; i < 16; i++)
                store16(ds + (half + i) * 32 + r, _mm512_castsi512_ps(block[i]));
        }
    }
}

/* sums [32, E] += a [32, 32] times E / 32 panels of one step, `apart` numbers from each other. */
static void gather(float *sums, const bf16 *a, const bf16 *panels, long apart, long width) {
    for (long e = 0; e < width; e += 32) {
        sums_from(sums + e, width);
        dots(a, a + 512, 64, panels + e / 32 * apart, 1);
        sums_to(sums + e, width);
    }
}

static void round_to(const float *sums, long rows, long width, bf16 *out, long ld) {
    for (long i = 0; i < rows; i++)
        for (long e = 0; e < width; e += 32)
            store32(out + i * ld + e, _mm512_loadu_ps(sums + i * width + e),
                    _mm512_loadu_ps(sums + i * width + e + 16));
}

void attend_back(long n, const int64_t *start, const int64_t *length, long heads, long groups,
                 long width, const bf16 *given, long ldg, const bf16 *o, long ldo, const bf16 *q,
                 long ldq, const bf16 *k, long ldk, const bf16 *v, long ldv, const float *lse,
                 float scale, long window, bf16 *dq, long lddq, bf16 *dk, long lddk, bf16 *dv,
                 long lddv) {
    long share = heads / groups, steps = width / 32;
#pragma omp parallel
    {
        tiles_on();
#pragma omp for schedule(dynamic) collapse(2)
        for (long s = 0; s < n; s++)
            for (long g = 0; g < groups; g++) {
                long t = length[s], blocks = (t + 31) / 32, tall = blocks * 32, at = start[s];
                bf16 *keys = scratch(0, (size_t)tall * width * 6);
                bf16 *values = keys + tall * width, *panels = values + tall * width;
                float *sums = scratch(1, (size_t)(2 * tall + 32) * width * 4);
                float *sums_v = sums + tall * width, *sums_q = sums_v + tall * width;
                float *z = scratch(2, 2 * 4096 + 256), *d = z + 1024;
                float *norms = d + 1024, *deltas = norms + 32;
                bf16 *query = scratch(3, (size_t)32 * width * 12 + 3 * 2048);
                bf16 *slope = query + 32 * width, *query_rows = slope + 32 * width;
                bf16 *slope_rows = query_rows + 32 * width, *query_cols = slope_rows + 32 * width;
                bf16 *slope_cols = query_cols + 32 * width, *pt = slope_cols + 32 * width;
                bf16 *dt = pt + 1024, *ds = dt + 1024;
                copy(k + at * ldk + g * width, ldk, t, tall, width, keys);
                copy(v + at * ldv + g * width, ldv, t, tall, width, values);
                for (long e = 0; e < width; e += 32)
                    pack_columns(keys + e, width, 32, tall, panels + e * tall, 1, 0);
                memset(sums, 0, (size_t)2 * tall * width * 4);
                for (long h = g * share; h < (g + 1) * share; h++)
                    for (long b = 0; b < blocks; b++) {
                        long rows = MIN(32, t - b * 32), first = at + b * 32;
                        long back = window > 0 && b * 32 - window + 1 > 0
                                        ? (b * 32 - window + 1) / 32 : 0;
                        copy(q + first * ldq + h * width, ldq, rows, 32, width, query);
                        copy(given + first * ldg + h * width, ldg, rows, 32, width, slope);
                        pack_rows(query, width, 32, width, query_rows);
                        pack_rows(slope, width, 32, width, slope_rows);
                        pack_columns(query, width, width, 32, query_cols, width / 32, 1024);
                        pack_columns(slope, width, width, 32, slope_cols, width / 32, 1024);
                        for (long i = 0; i < 32; i++) {
                            __m512 total = _mm512_setzero_ps();
                            for (long e = 0; i < rows && e < width; e += 16)
                                total = _mm512_fmadd_ps(
                                    load16(slope + i * width + e),
                                    load16(o + (first + i) * ldo + h * width + e), total);
                            deltas[i] = _mm512_reduce_add_ps(total);
                            norms[i] = i < rows ? lse[(first + i) * heads + h] : 0.0f;
                        }
                        memset(sums_q, 0, 32 * width * 4);
                        for (long kb = back; kb <= b; kb++) {
                            bf16 *key = keys + kb * 32 * width, *value = values + kb * 32 * width;
                            zeros();
                            dots(key, key + 16 * width, width * 2, query_rows, steps);
                            sums_to(z, 32);
                            zeros();
                            dots(value, value + 16 * width, width * 2, slope_rows, steps);
                            sums_to(d, 32);
                            slopes(z, d, norms, deltas, b * 32, kb * 32, rows, window, scale, pt, dt,
                                   ds);
                            gather(sums_v + kb * 32 * width, pt, slope_cols, 1024, width);
                            gather(sums + kb * 32 * width, dt, query_cols, 1024, width);
                            gather(sums_q, ds, panels + kb * 1024, tall * 32, width);
                        }
                        round_to(sums_q, rows, width, dq + first * lddq + h * width, lddq);
                    }
                round_to(sums, t, width, dk + at * lddk + g * width, lddk);
                round_to(sums_v, t, width, dv + at * lddv + g * width, lddv);
            }
        tiles_off();
    }
}
