/* NF4 weights made whole (lora_core/quantize/nf4.py): blocks of 64 numbers, two codes to a byte, the
 * high half first. Level times scale in float, one rounding. */
#include "amx.h"

/* n numbers, a multiple of 64, into out; levels float [16], scales float [n / 64]. */
void nf4(long n, const uint8_t *codes, const float *levels, const float *scales, bf16 *out) {
    __m512 table = _mm512_loadu_ps(levels);
    __m256i half = _mm256_set1_epi8(15);
#pragma omp parallel for schedule(static)
    for (long b = 0; b < n / 64; b++) {
        __m512 scale = _mm512_set1_ps(scales[b]);
        __m256i both = _mm256_loadu_si256((const void *)(codes + b * 32));
        __m256i high = _mm256_and_si256(_mm256_srli_epi16(both, 4), half);
        __m256i low = _mm256_and_si256(both, half);
        /* each 128 bits by themselves: numbers 0-15 and 32-47, then 16-31 and 48-63 */
        __m256i first = _mm256_unpacklo_epi8(high, low), then = _mm256_unpackhi_epi8(high, low);
        __m128i quarters[4] = {
            _mm256_castsi256_si128(first),
            _mm256_castsi256_si128(then),
            _mm256_extracti128_si256(first, 1),
            _mm256_extracti128_si256(then, 1),
        };
        __m512 whole[4];
        for (int i = 0; i < 4; i++) {
            __m512i code = _mm512_cvtepu8_epi32(quarters[i]);
            whole[i] = _mm512_mul_ps(_mm512_permutexvar_ps(code, table), scale);
        }
        store32(out + b * 64, whole[0], whole[1]);
        store32(out + b * 64 + 32, whole[2], whole[3]);
    }
}
