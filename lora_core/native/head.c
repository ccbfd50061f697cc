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
 *
 * Everything a block of 32 rows touches lies in tiles: h as [2][D / 32][16, 32], logits as
 * [CHUNK / 32][32, 32], weights p as [2][CHUNK / 32][16, 32], sums as [D / 32][32, 32].
 */
#include "amx.h"

#define RANGES 8
#define CHUNK 256   /* vocabulary entries at once */
#define BLOCK 1024  /* rows of one task */
#define FAR 16.0f   /* how far a logit may rise over the reference */

typedef struct {
    float reference, sum, top;
} Running;

typedef struct {
    long width, vocabulary, ldw;
    const bf16 *h, *w; /* h in tiles */
    const int64_t *labels;
    float scale, cap;
    float *own, *bend; /* [M]: the label's logit, and cap' there */
} Job;

/* cap(x), and its slope. */
static inline __m512 bent(__m512 x, float cap, __m512 *slope) {
    __m512 one = _mm512_set1_ps(1.0f);
    /* tanh x = 1 - 2 / (e^2x + 1) */
    __m512 e = exp16(_mm512_mul_ps(x, _mm512_set1_ps(2.0f / cap)));
    __m512 t = _mm512_sub_ps(one, _mm512_div_ps(_mm512_set1_ps(2.0f), _mm512_add_ps(e, one)));
    *slope = _mm512_fnmadd_ps(t, t, one);
    return _mm512_mul_ps(t, _mm512_set1_ps(cap));
}

/* Logits of a block's rows to what the second product takes; `row` is the block's first. */
static void weigh(const Job *job, float *z, bf16 *p, long valid, long row, long first,
                  Running *state, float *sums) {
    __m512 scale = _mm512_set1_ps(job->scale);
    for (long i = 0; i < 32; i++) {
        float slope[CHUNK] __attribute__((aligned(64))), *mine = z + i * 32;
        Running *now = state + i;
        __m512 top = _mm512_set1_ps(-INFINITY);
        for (long j = 0; j < CHUNK; j += 16) {
            __mmask16 some = (__mmask16)first32(valid - j);
            float *at = mine + j / 32 * 1024 + j % 32;
            __m512 x = _mm512_mul_ps(_mm512_load_ps(at), scale), bend;
            if (job->cap > 0) {
                x = bent(x, job->cap, &bend);
                _mm512_store_ps(slope + j, bend);
            }
            if (job->cap > 0 || job->scale != 1.0f) _mm512_store_ps(at, x);
            top = _mm512_mask_max_ps(top, some, top, x);
        }
        float high = _mm512_reduce_max_ps(top);
        now->top = now->top > high ? now->top : high;
        long at = job->labels[row + i] - first;
        if (at >= 0 && at < valid) {
            job->own[row + i] = mine[at / 32 * 1024 + at % 32];
            job->bend[row + i] = job->cap > 0 ? slope[at] : 1.0f;
        }
        if (high > now->reference + FAR) {
            float shrink = expf(now->reference - high);
            __m512 s = _mm512_set1_ps(shrink);
            now->sum *= shrink;
            now->reference = high;
            for (long d = 0; sums && d < job->width; d += 16) {
                float *to = sums + d / 32 * 1024 + i * 32 + d % 32;
                _mm512_store_ps(to, _mm512_mul_ps(s, _mm512_load_ps(to)));
            }
        }
        __m512 base = _mm512_set1_ps(now->reference), total = _mm512_setzero_ps();
        bf16 *out = p + i / 16 * CHUNK * 16 + i % 16 * 32;
        for (long j = 0; j < CHUNK; j += 32) {
            __m512 e[2];
            for (long k = 0; k < 2; k++) {
                __mmask16 some = (__mmask16)first32(valid - j - k * 16);
                __m512 x = _mm512_sub_ps(_mm512_load_ps(mine + j * 32 + k * 16), base);
                e[k] = _mm512_maskz_mov_ps(some, exp16(x));
                total = _mm512_add_ps(total, e[k]);
                if (job->cap > 0) e[k] = _mm512_mul_ps(e[k], _mm512_load_ps(slope + j + k * 16));
            }
            store32(out + j * 16, e[0], e[1]);
        }
        now->sum += _mm512_reduce_add_ps(total);
    }
}

/* Rows `top` to `bottom` against vocabulary `first` to `last`; sums or NULL. */
static void range(const Job *job, long top, long bottom, long first, long last, Running *state,
                  float *sums) {
    long width = job->width, steps = width / 32, ld = job->ldw;
    bf16 *keys = scratch(0, (size_t)CHUNK * width * 2);
    bf16 *values = scratch(1, (size_t)CHUNK * width * 2);
    float *z = scratch(2, 32 * CHUNK * 4);
    bf16 *p = scratch(3, 32 * CHUNK * 2);
    for (long v = first; v < last; v += CHUNK) {
        const bf16 *w = job->w + v * ld, *next = w + CHUNK * ld;
        long valid = MIN(CHUNK, last - v), whole = (valid + 31) / 32 * 32;
        /* the next chunk is fetched bit by bit while this one is at work */
        long ahead = MIN(CHUNK, job->vocabulary - v - CHUNK) * ld * 2, fetched = 0;
        long portion = (CHUNK * ld * 2 / ((bottom - top) / 32) / (CHUNK / 32) + 63) / 64 * 64;
        for (long c = 0; c < CHUNK; c += 32)
            pack_rows(w + c * ld, ld, valid - c, width, keys + c * width);
        for (long d = 0; sums && d < width; d += 128)
            pack_columns(w + d, ld, width - d, valid, values + d * CHUNK, MIN(4, (width - d) / 32),
                         32 * CHUNK);
        /* what lies behind meets zeros in p; it must be a number itself */
        for (long d = 0; sums && d < width; d += 32)
            memset(values + d * CHUNK + whole * 32, 0, (CHUNK - whole) * 64);
        for (long row = top; row < bottom; row += 32) {
            const bf16 *a = job->h + row * width;
            for (long c = 0; c < CHUNK; c += 32) {
                zeros();
                dots_by(a, a + 16 * width, 64, TILE, keys + c * width, steps);
                for (long end = MIN(ahead, fetched + portion); fetched < end; fetched += 64)
                    _mm_prefetch((const char *)next + fetched, _MM_HINT_T1);
                sums_to(z + c * 32, 32);
            }
            float *mine = sums ? sums + row * width : NULL;
            weigh(job, z, p, valid, row, v, state + row, mine);
            for (long d = 0; sums && d < width; d += 32) {
                sums_from(mine + d * 32, 32);
                dots_by(p, p + 16 * CHUNK, 64, TILE, values + d * CHUNK, CHUNK / 32);
                sums_to(mine + d * 32, 32);
            }
        }
    }
}

/* One row's loss, hit and slope from what the ranges found. */
static void merge(const Job *job, long rows, long row, long share, const Running *state,
                  const float *sums, float *loss, uint8_t *hit, bf16 *dh) {
    float base = -INFINITY, top = -INFINITY, total = 0.0f, part[RANGES];
    long ranges = (job->vocabulary + share - 1) / share;
    for (long r = 0; r < ranges; r++) {
        const Running *now = state + r * rows + row;
        base = now->reference > base ? now->reference : base;
        top = now->top > top ? now->top : top;
    }
    for (long r = 0; r < ranges; r++) {
        const Running *now = state + r * rows + row;
        total += now->sum * expf(now->reference - base);
    }
    float norm = base + logf(total);
    loss[row] = norm - job->own[row];
    hit[row] = job->own[row] >= top;
    if (!dh) return;
    for (long r = 0; r < ranges; r++) part[r] = expf(state[r * rows + row].reference - norm);
    const bf16 *label = job->w + job->labels[row] * job->ldw;
    __m512 away = _mm512_set1_ps(-job->bend[row]), scale = _mm512_set1_ps(job->scale);
    for (long d = 0; d < job->width; d += 16) {
        __m512 y = _mm512_mul_ps(load16(label + d), away);
        long at = row / 32 * 32 * job->width + d / 32 * 1024 + row % 32 * 32 + d % 32;
        for (long r = 0; r < ranges; r++)
            y = _mm512_fmadd_ps(_mm512_load_ps(sums + r * rows * job->width + at),
                                _mm512_set1_ps(part[r]), y);
        store16(dh + row * job->width + d, _mm512_mul_ps(y, scale));
    }
}

/* loss float [M], hit 0 or 1 [M], dh [M, D] or NULL. Returns 0, or 1 where memory is out. */
int head(long rows, long width, long vocabulary, const bf16 *h, long ldh, const bf16 *w, long ldw,
         const int64_t *labels, float scale, float cap, float *loss, uint8_t *hit, bf16 *dh) {
    long share = ((vocabulary + RANGES - 1) / RANGES + CHUNK - 1) / CHUNK * CHUNK;
    long blocks = (rows + BLOCK - 1) / BLOCK, count = rows * width;
    Running *state = malloc(sizeof(Running) * RANGES * rows);
    float *own = malloc(sizeof(float) * 2 * rows);
    bf16 *tiles = aligned_alloc(64, sizeof(bf16) * count);
    float *sums = dh ? aligned_alloc(64, sizeof(float) * RANGES * count) : NULL;
    int poor = !state || !own || !tiles || (dh && !sums);
    Job job = {width, vocabulary, ldw, tiles, w, labels, scale, cap, own, own + rows};
    for (long i = 0; !poor && i < RANGES * rows; i++)
        state[i] = (Running){-INFINITY, 0.0f, -INFINITY};
    for (long row = 0; !poor && row < rows; row += 16)
        to_tiles(h + row * ldh, ldh, width, tiles + row * width);
#pragma omp parallel if (!poor)
    {
        if (!poor) tiles_on();
#pragma omp for schedule(dynamic) collapse(2)
        for (long r = 0; r < RANGES; r++)
            for (long b = 0; b < blocks; b++) {
                long top = b * BLOCK, bottom = MIN(rows, top + BLOCK);
                float *mine = sums ? sums + r * count : NULL;
                if (poor) continue;
                if (mine) memset(mine + top * width, 0, sizeof(float) * (bottom - top) * width);
                range(&job, top, bottom, r * share, MIN(vocabulary, (r + 1) * share),
                      state + r * rows, mine);
            }
        if (!poor) tiles_off();
#pragma omp for schedule(dynamic, 16)
        for (long i = 0; i < rows; i++)
            if (!poor) merge(&job, rows, i, share, state, sums, loss, hit, dh);
    }
    free(state);
    free(own);
    free(tiles);
    free(sums);
    return poor;
}
