/* A product with a frozen weight, and every slot's adapter on it as some more steps along K.
 *
 *     out[N, O] = x[N, K] W (+ bias)  +  for the rows of each adapter  s[N, R] P
 *
 * N rows, a multiple of 16; K, O multiples of 32. W is [O, K] (`by_rows`) or [K, O]. `owner` says
 * for each 16 rows which adapter they belong to (-1: none); P is that adapter's panels (see
 * `adapters.c`) of `steps` steps. The adapter's part joins the sums before they are rounded.
 *
 * Rows are brought into tiles first: tiles of rows far apart load at half the speed. A task is some
 * rows times a few panels; K is cut so that a block of rows and its panels stay in the first cache,
 * and the rows of a task in the second.
 */
#include "amx.h"

#ifndef DEPTH
#define DEPTH 160 /* K at once */
#define ROWS 544  /* rows of a task */
#define PANELS 4  /* of a task, 32 columns each */
#endif

/* 32 columns of one block, rounded, on their way out while the next block is summed. */
typedef struct {
    float *from;
    bf16 *to;
    long rows, ld;
    const float *bias;
} Due;

static void finish(const Due *due) {
    __m512 left = due->bias ? _mm512_loadu_ps(due->bias) : _mm512_setzero_ps();
    __m512 right = due->bias ? _mm512_loadu_ps(due->bias + 16) : _mm512_setzero_ps();
    for (long i = 0; i < due->rows; i++) {
        __m512 a = _mm512_load_ps(due->from + i * 32), b = _mm512_load_ps(due->from + i * 32 + 16);
        store32(due->to + i * due->ld, _mm512_add_ps(a, left), _mm512_add_ps(b, right));
    }
}

/* The adapters of the two tiles of rows: s times their panels, as further steps. */
static void adapt(const bf16 *s, long lds, long row, long other, long p, const int32_t *owner,
                  const bf16 *const *panels, const int32_t *steps) {
    int one = owner[row / 16], two = owner[other / 16];
    for (int k = 0; one >= 0 && k < steps[one]; k++) {
        const bf16 *q = panels[one] + (p * steps[one] + k) * 2 * TILE;
        LOAD(4, s + row * lds + k * 32, lds * 2);
        LOAD(6, q, 64);
        LOAD(7, q + TILE, 64);
        DOT(0, 4, 6);
        DOT(1, 4, 7);
    }
    for (int k = 0; two >= 0 && k < steps[two]; k++) {
        const bf16 *q = panels[two] + (p * steps[two] + k) * 2 * TILE;
        LOAD(5, s + other * lds + k * 32, lds * 2);
        LOAD(6, q, 64);
        LOAD(7, q + TILE, 64);
        DOT(2, 5, 6);
        DOT(3, 5, 7);
    }
}

/* Returns 0, or 1 where memory is out. */
int product(long n, long depth, long width, const bf16 *x, long ldx, const bf16 *w, long ldw,
            int by_rows, const float *bias, bf16 *out, long ldo, const bf16 *s, long lds,
            const int32_t *owner, const bf16 *const *panels, const int32_t *steps) {
    long cuts = depth ? (depth + DEPTH - 1) / DEPTH : 1;
    long share = (depth / 32 + cuts - 1) / cuts * 32;
    long chunks = (n + ROWS - 1) / ROWS, height = (n / 16 + chunks - 1) / chunks * 16;
    long count = width / 32, groups = (count + PANELS - 1) / PANELS;
    bf16 *tiles = aligned_alloc(4096, (size_t)(n * depth * 2 + 4095) / 4096 * 4096 + 4096);
    if (!tiles) return 1;
#pragma omp parallel
    {
        tiles_on();
        /* [cut][16 rows][step][16, 32] */
#pragma omp for schedule(dynamic, 4)
        for (long row = 0; row < n; row += 16)
            for (long from = 0; from < depth; from += share)
                to_tiles(x + row * ldx + from, ldx, MIN(share, depth - from),
                         tiles + from * n + row * MIN(share, depth - from));
#pragma omp for schedule(dynamic) collapse(2)
        for (long chunk = 0; chunk < chunks; chunk++)
            for (long group = 0; group < groups; group++) {
                long top = chunk * height, bottom = MIN(n, top + height);
                long first = group * PANELS, last = MIN(count, first + PANELS);
                long tall = (bottom - top + 31) / 32 * 32;
                bf16 *panel = scratch(0, (size_t)PANELS * DEPTH * 64);
                float *kept = scratch(1, (size_t)PANELS * tall * 128);
                Due due = {0};
                for (long cut = 0; cut < cuts; cut++) {
                    long from = cut * share, size = MIN(share, depth - from);
                    int ends = cut + 1 == cuts;
                    for (long p = first; by_rows && p < last && size > 0; p++)
                        pack_rows(w + p * 32 * ldw + from, ldw, 32, size,
                                  panel + (p - first) * DEPTH * 32);
                    if (!by_rows && size > 0)
                        pack_columns(w + from * ldw + first * 32, ldw, width - first * 32, size,
                                     panel, last - first, DEPTH * 32);
                    for (long row = top; row < bottom; row += 32) {
                        /* of an odd number of tiles the last is taken twice */
                        long other = row + 16 < bottom ? row + 16 : row;
                        const bf16 *a = tiles + from * n + row * size;
                        for (long p = first; p < last; p++) {
                            float *sums = kept + ((p - first) * tall + row - top) * 32;
                            if (cut)
                                sums_from(sums, 32);
                            else
                                zeros();
                            dots_by(a, a + (other - row) * size, 64, TILE,
                                    panel + (p - first) * DEPTH * 32, size / 32);
                            if (ends && owner) adapt(s, lds, row, other, p, owner, panels, steps);
                            if (due.rows) finish(&due);
                            sums_to(sums, 32);
                            if (ends)
                                due = (Due){sums, out + row * ldo + p * 32, other == row ? 16 : 32,
                                            ldo, bias ? bias + p * 32 : NULL};
                        }
                    }
                }
                finish(&due);
            }
        tiles_off();
    }
    free(tiles);
    return 0;
}
