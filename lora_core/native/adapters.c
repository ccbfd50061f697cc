/* The adapters' own small products, each over one adapter's rows and nothing else.
 *
 *     panels    an adapter's B or A as panels, to be further steps of `product`
 *     low       s[rows, R]   = scale x[rows, K] A          (A^T forward, B backward)
 *     gradient  g[R, W]     += s[rows, R]^T x[rows, W]     (dA, dB)
 *     drop      x with some numbers taken out, as `rng.py` draws them
 *
 * R ranks; an adapter's rows are a multiple of 16. n counts the pieces (adapter, its rows).
 */
#include "amx.h"

#define TOGETHER 4 /* panels of a gradient at once: rows are read in longer pieces */

/* w[i] is [width, rank] (`by_rows`) or [rank, width]; out[i] gets width / 32 panels. */
void panels(long n, long width, const bf16 *const *w, const int64_t *ld, const int32_t *rank,
            int by_rows, bf16 *const *out) {
    long count = width / 32;
#pragma omp parallel for schedule(dynamic, 8) collapse(2)
    for (long i = 0; i < n; i++)
        for (long p = 0; p < count; p++) {
            bf16 *to = out[i] + p * ((rank[i] + 31) / 32) * 2 * TILE;
            if (by_rows)
                pack_rows(w[i] + p * 32 * ld[i], ld[i], 32, rank[i], to);
            else
                pack_columns(w[i] + p * 32, ld[i], 32, rank[i], to, 1, 0);
        }
}

/* w[i] is [rank, depth] (`by_rows`) or [depth, rank]. Columns `column[i]` and following of s are
 * written, `rank[i]` of them, and zeros up to `fill` in all. */
void low(long n, long depth, const bf16 *x, long ldx, const int64_t *start, const int64_t *stop,
         const bf16 *const *w, const int64_t *ld, const int32_t *rank, const float *scale,
         int by_rows, bf16 *s, long lds, const int32_t *column, long fill) {
    long most = 0;
    for (long i = 0; i < n; i++) most = most > stop[i] - start[i] ? most : stop[i] - start[i];
    long chunks = (most + 127) / 128;
#pragma omp parallel
    {
        tiles_on();
#pragma omp for schedule(dynamic) collapse(2)
        for (long i = 0; i < n; i++)
            for (long chunk = 0; chunk < chunks; chunk++) {
                long top = start[i] + chunk * 128, bottom = MIN(stop[i], top + 128);
                if (top >= bottom) continue;
                bf16 *panel = scratch(0, (size_t)(depth + 32) * 64);
                float *c = scratch(2, 4096);
                long wide = fill > rank[i] ? fill : rank[i];
                for (long r = 0; r < wide; r += 32) {
                    if (r < rank[i] && by_rows)
                        pack_rows(w[i] + r * ld[i], ld[i], MIN(32, rank[i] - r), depth, panel);
                    else if (r < rank[i])
                        pack_columns(w[i] + r, ld[i], rank[i] - r, depth, panel, 1, 0);
                    for (long row = top; row < bottom; row += 32) {
                        long other = row + 16 < bottom ? row + 16 : row;
                        zeros();
                        if (r < rank[i])
                            dots(x + row * ldx, x + other * ldx, ldx * 2, panel, (depth + 31) / 32);
                        sums_to(c, 32);
                        __m512 by = _mm512_set1_ps(scale[i]);
                        for (long k = 0; k < (other == row ? 16 : 32); k++) {
                            __m512 a = _mm512_mul_ps(_mm512_load_ps(c + k * 32), by);
                            __m512 b = _mm512_mul_ps(_mm512_load_ps(c + k * 32 + 16), by);
                            _mm512_mask_storeu_epi16(s + (row + k) * lds + column[i] + r,
                                                     first32(wide - r),
                                                     (__m512i)_mm512_cvtne2ps_pbh(b, a));
                        }
                    }
                }
            }
        tiles_off();
    }
}

/* Tiles of s^T for the rows of one piece: [ranks / 16][rows / 32][16, 32]. */
static void turn(const bf16 *s, long lds, long rows, long ranks, bf16 *out) {
    for (long r = 0; r < ranks; r += 16)
        for (long k = 0; k < rows; k += 32)
            for (long i = 0; i < 16; i++)
                for (long j = 0; j < 32; j++)
                    *out++ = r + i < ranks && k + j < rows ? s[(k + j) * lds + r + i] : 0;
}

/* g += 32 ranks times a panel: a holds their tiles, those of the second 16 ranks after the first. */
static void piece(const bf16 *a, const bf16 *panel, long steps, long ranks, int turned, float *g,
                  long ld) {
    float *c = scratch(2, 4096);
    zeros();
    dots_by(a, ranks > 16 ? a + steps * TILE : a, 64, TILE, panel, steps);
    sums_to(c, 32);
    if (!turned) {
        for (long k = 0; k < ranks; k++)
            for (long j = 0; j < 32; j += 16) {
                float *to = g + k * ld + j;
                _mm512_storeu_ps(to, _mm512_add_ps(_mm512_loadu_ps(to),
                                                   _mm512_load_ps(c + k * 32 + j)));
            }
        return;
    }
    for (long k = 0; k < ranks; k += 16)
        for (long j = 0; j < 32; j += 16) {
            __m512i block[16];
            for (int l = 0; l < 16; l++) block[l] = _mm512_load_si512(c + (k + l) * 32 + j);
            transpose(block);
            __mmask16 held = (__mmask16)first32(ranks - k);
            for (int l = 0; l < 16; l++) {
                float *to = g + (j + l) * ld + k;
                __m512 sum = _mm512_add_ps(_mm512_maskz_loadu_ps(held, to),
                                           _mm512_castsi512_ps(block[l]));
                _mm512_mask_storeu_ps(to, held, sum);
            }
        }
}

/* g[i] is float [rank, width], rows ld[i] apart; or, `turned`, [width, rank], rows ld[i] apart.
 * Ranks are columns `column[i]` and following of s; x's columns are `from[i]` to `to[i]`, which
 * are multiples of 32. Returns 0, or 1 where memory is out. */
int gradient(long n, const bf16 *s, long lds, const bf16 *x, long ldx, const int64_t *start,
              const int64_t *stop, const int32_t *column, const int32_t *rank, const int64_t *from,
              const int64_t *to, float *const *g, const int64_t *ld, int turned) {
    long most = 0, total = 0, *at = malloc(sizeof(long) * (n + 1));
    for (long i = 0; i < n; i++) {
        long panels = (to[i] - from[i]) / 32, rows = (stop[i] - start[i] + 31) / 32 * 32;
        most = most > panels ? most : panels;
        at[i] = total;
        total += rows * ((rank[i] + 15) / 16 * 16 + 16);
    }
    bf16 *left = aligned_alloc(64, total * 2 + 64);
    if (!at || !left) {
        free(left);
        free(at);
        return 1;
    }
#pragma omp parallel
    {
        tiles_on();
#pragma omp for schedule(dynamic)
        for (long i = 0; i < n; i++)
            turn(s + start[i] * lds + column[i], lds, stop[i] - start[i], rank[i], left + at[i]);
        /* An adapter may have several pieces: they are added up in their order. */
#pragma omp for schedule(dynamic)
        for (long first = 0; first < most; first += TOGETHER)
            for (long i = 0; i < n; i++) {
                long rows = stop[i] - start[i], steps = (rows + 31) / 32;
                long count = MIN(TOGETHER, (to[i] - from[i]) / 32 - first);
                if (count <= 0) continue;
                bf16 *panel = scratch(0, (size_t)TOGETHER * steps * 2048);
                const bf16 *own = x + start[i] * ldx + from[i] + first * 32;
                pack_columns(own, ldx, count * 32, rows, panel, count, steps * 2 * TILE);
                for (long p = 0; p < count; p++)
                    for (long r = 0; r < rank[i]; r += 32)
                        piece(left + at[i] + r * steps * 32, panel + p * steps * 2 * TILE, steps,
                              MIN(32, rank[i] - r), turned,
                              turned ? g[i] + (first + p) * 32 * ld[i] + r
                                     : g[i] + r * ld[i] + (first + p) * 32,
                              ld[i]);
            }
        tiles_off();
    }
    free(left);
    free(at);
    return 0;
}

static inline __m512i mix(__m512i z) {
    z = _mm512_mullo_epi64(_mm512_xor_si512(z, _mm512_srli_epi64(z, 30)),
                           _mm512_set1_epi64((long long)0xBF58476D1CE4E5B9ull));
    z = _mm512_mullo_epi64(_mm512_xor_si512(z, _mm512_srli_epi64(z, 27)),
                           _mm512_set1_epi64((long long)0x94D049BB133111EBull));
    return _mm512_xor_si512(z, _mm512_srli_epi64(z, 31));
}

/* out[row] = x[row] where the row's number at a place is at least rate[row], over 1 - rate; zero
 * elsewhere. With `add` the same of x is added to what out holds. Rows with rate 0 are copied, or
 * with `add` left alone. `width` is a multiple of 16. */
void drop(long n, long width, const bf16 *x, long ldx, const int64_t *keys, const int64_t *positions,
          int64_t layer, const float *rate, int add, bf16 *out, long ldo) {
    const uint64_t golden = 0x9E3779B97F4A7C15ull;
#pragma omp parallel for schedule(dynamic, 16)
    for (long i = 0; i < n; i++) {
        const bf16 *from = x + i * ldx;
        bf16 *to = out + i * ldo;
        if (rate[i] <= 0) {
            if (!add) memcpy(to, from, width * 2);
            continue;
        }
        uint64_t seed[8] __attribute__((aligned(64)));
        _mm512_store_si512(seed, mix(_mm512_set1_epi64(keys[i] ^ layer)));
        uint64_t base = seed[0] + (uint64_t)(positions[i] * width + 1) * golden;
        __m512i step = _mm512_mullo_epi64(_mm512_set_epi64(7, 6, 5, 4, 3, 2, 1, 0),
                                          _mm512_set1_epi64((long long)golden));
        __m512i bar = _mm512_set1_epi64((long long)ceilf(rate[i] * 16777216.0f));
        __m512 by = _mm512_set1_ps(1.0f / (1.0f - rate[i]));
        for (long j = 0; j < width; j += 16) {
            __m512i a = _mm512_add_epi64(_mm512_set1_epi64((long long)(base + j * golden)), step);
            __m512i b = _mm512_add_epi64(_mm512_set1_epi64((long long)(base + (j + 8) * golden)), step);
            __mmask16 keep =
                _mm512_cmpge_epi64_mask(_mm512_srli_epi64(mix(a), 40), bar) |
                (__mmask16)_mm512_cmpge_epi64_mask(_mm512_srli_epi64(mix(b), 40), bar) << 8;
            __m512 y = _mm512_maskz_mul_ps(keep, load16(from + j), by);
            store16(to + j, add ? _mm512_add_ps(load16(to + j), y) : y);
        }
    }
}
