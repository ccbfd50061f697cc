/* What every kernel here is made of: AMX tiles of 16 rows x 64 bytes, and the packing of a matrix
 * into tiles. x86-64 with AMX bf16 and AVX-512; `native.py` looks before it compiles.
 *
 * A tile product C[16, 16] += A[16, 32] B[32, 16] sums 32 products in one fixed order. A kernel that
 * walks K in steps of 32 from the first to the last gives a row the same bits whatever rows lie
 * beside it, however many threads there are, and in whichever order they come.
 *
 * A matrix on the right-hand side is packed into panels of 32 columns: for each step of 32 along K
 * two tiles, each 16 pairs of K x 16 columns x 2. Edges are filled up with zeros, never with what
 * happens to lie there: it may be a neighbour's, and not finite.
 */
#pragma once
#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;

#define TILE 512 /* numbers of a bf16 tile */
#define MIN(a, b) ((a) < (b) ? (a) : (b))

/* The compiler's own intrinsics do not say that they touch memory. */
#define LOAD(t, p, stride) \
    __asm__ volatile("tileloadd (%0,%1,1), %%tmm" #t ::"r"(p), "r"((long)(stride)) : "memory")
#define STORE(t, p, stride) \
    __asm__ volatile("tilestored %%tmm" #t ", (%0,%1,1)" ::"r"(p), "r"((long)(stride)) : "memory")
#define ZERO(t) __asm__ volatile("tilezero %%tmm" #t ::)
#define DOT(c, a, b) __asm__ volatile("tdpbf16ps %%tmm" #b ", %%tmm" #a ", %%tmm" #c ::)

static inline void tiles_on(void) {
    struct {
        uint8_t palette, start, none[14];
        uint16_t bytes[16];
        uint8_t rows[16];
    } config __attribute__((aligned(64)));
    memset(&config, 0, sizeof config);
    config.palette = 1;
    for (int i = 0; i < 8; i++) config.bytes[i] = 64, config.rows[i] = 16;
    __asm__ volatile("ldtilecfg %0" ::"m"(config) : "memory");
}

static inline void tiles_off(void) { __asm__ volatile("tilerelease" ::); }

/* Scratch memory of this thread, `which` of 4 areas; it grows and stays. */
static inline void *scratch(int which, size_t bytes) {
    static __thread struct {
        void *at;
        size_t size;
    } held[4];
    if (held[which].size < bytes) {
        free(held[which].at);
        held[which].size = (bytes + 4095) / 4096 * 4096;
        held[which].at = aligned_alloc(4096, held[which].size);
        if (!held[which].at) abort(); /* a few MiB: as hopeless as no stack */
    }
    return held[which].at;
}

static inline __m512 widen(__m256i x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
static inline __m512 load16(const bf16 *p) { return widen(_mm256_loadu_si256((const void *)p)); }
static inline void store16(bf16 *p, __m512 x) {
    _mm256_storeu_si256((void *)p, (__m256i)_mm512_cvtneps_pbh(x));
}
static inline void store32(bf16 *p, __m512 low, __m512 high) {
    _mm512_storeu_si512(p, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}

/* 16 x 16 numbers of 32 bits, transposed in place. */
static inline void transpose(__m512i r[16]) {
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int i = 0; i < 4; i++) {
        t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
        t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
        t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
        t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
    }
    for (int i = 0; i < 4; i++) {
        r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
        r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
        r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
        r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
    }
}

static inline __mmask32 first32(long n) {
    return n >= 32 ? 0xffffffffu : n <= 0 ? 0 : (1u << n) - 1;
}

/* A panel from w [columns, depth]: column c of the panel is row c of w. `columns` <= 32. */
static inline void pack_rows(const bf16 *w, long ld, long columns, long depth, bf16 *out) {
    for (long k = 0; k < depth; k += 32) {
        __mmask32 some = first32(depth - k);
        for (int tile = 0; tile < 2; tile++, out += TILE) {
            __m512i r[16];
            for (int i = 0; i < 16; i++) {
                long c = tile * 16 + i;
                r[i] = c < columns ? _mm512_maskz_loadu_epi16(some, w + c * ld + k)
                                   : _mm512_setzero_si512();
            }
            transpose(r);
            for (int i = 0; i < 16; i++) _mm512_store_si512(out + i * 32, r[i]);
        }
    }
}

/* `count` panels, `apart` numbers from each other, from w [depth, columns]; `columns` is what is left
 * of w from the first panel on. Rows are read once for all of them. */
static inline void pack_columns(const bf16 *w, long ld, long columns, long depth, bf16 *out,
                                long count, long apart) {
    static const int16_t order[64] __attribute__((aligned(64))) = {
        0,  32, 1,  33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
        8,  40, 9,  41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47,
        16, 48, 17, 49, 18, 50, 19, 51, 20, 52, 21, 53, 22, 54, 23, 55,
        24, 56, 25, 57, 26, 58, 27, 59, 28, 60, 29, 61, 30, 62, 31, 63};
    __m512i left = _mm512_load_si512(order), right = _mm512_load_si512(order + 32);
    __m512i none = _mm512_setzero_si512();
    for (long k = 0; k < depth; k += 32, out += 2 * TILE)
        for (int i = 0; i < 16; i++) {
            long row = k + 2 * i;
            for (long p = 0; p < count; p++) {
                __mmask32 some = first32(columns - p * 32);
                const bf16 *from = w + row * ld + p * 32;
                bf16 *to = out + p * apart + i * 32;
                __m512i a = row < depth ? _mm512_maskz_loadu_epi16(some, from) : none;
                __m512i b = row + 1 < depth ? _mm512_maskz_loadu_epi16(some, from + ld) : none;
                _mm512_store_si512(to, _mm512_permutex2var_epi16(a, left, b));
                _mm512_store_si512(to + TILE, _mm512_permutex2var_epi16(a, right, b));
            }
        }
}

/* Tiles 0 to 3 += the 16 rows at a and the 16 at b, times a panel, over `steps` of 32. `stride` is
 * bytes from row to row and `next` numbers from step to step: rows in memory, or tiles in a row. */
static inline void dots_by(const bf16 *a, const bf16 *b, long stride, long next, const bf16 *panel,
                           long steps) {
    for (long s = 0; s < steps; s++, panel += 2 * TILE, a += next, b += next) {
        LOAD(4, a, stride);
        LOAD(6, panel, 64);
        LOAD(7, panel + TILE, 64);
        LOAD(5, b, stride);
        DOT(0, 4, 6);
        DOT(1, 4, 7);
        DOT(2, 5, 6);
        DOT(3, 5, 7);
    }
}
static inline void dots(const bf16 *a, const bf16 *b, long stride, const bf16 *panel, long steps) {
    dots_by(a, b, stride, 32, panel, steps);
}

/* 16 rows of x as tiles one after the other. */
static inline void to_tiles(const bf16 *x, long ld, long depth, bf16 *out) {
    for (long k = 0; k < depth; k += 32)
        for (long i = 0; i < 16; i++, out += 32)
            _mm512_store_si512(out, _mm512_loadu_si512(x + i * ld + k));
}

static inline void zeros(void) {
    ZERO(0);
    ZERO(1);
    ZERO(2);
    ZERO(3);
}
/* Tiles 0 to 3 as float [32, 32], rows `ld` numbers apart. */
static inline void sums_to(float *c, long ld) {
    STORE(0, c, ld * 4);
    STORE(1, c + 16, ld * 4);
    STORE(2, c + 16 * ld, ld * 4);
    STORE(3, c + 16 * ld + 16, ld * 4);
}
static inline void sums_from(const float *c, long ld) {
    LOAD(0, c, ld * 4);
    LOAD(1, c + 16, ld * 4);
    LOAD(2, c + 16 * ld, ld * 4);
    LOAD(3, c + 16 * ld + 16, ld * 4);
}

/* e^x: 2^n times a polynomial of degree 6 in what is left; not a number stays so. */
static inline __m512 exp16(__m512 x) {
    x = _mm512_max_ps(_mm512_set1_ps(-104.0f), x);
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(1.44269504f)), 0);
    __m512 f = _mm512_fnmadd_ps(n, _mm512_set1_ps(0.693359375f), x);
    f = _mm512_fnmadd_ps(n, _mm512_set1_ps(-2.12194440e-4f), f);
    __m512 p = _mm512_set1_ps(1.3888889e-3f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(8.3333333e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(4.1666667e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.6666667e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(0.5f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, n);
}
