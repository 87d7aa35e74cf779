/* Scores many items against many queries: the inner loop of gallery search.
 *
 * An item is a set of rows, a query a set of lanes; both are vectors of one space. Every cosine of
 * a row and a lane is computed in registers, sixteen lanes at a time, reduced at once to the best
 * row of each lane and the best lane of each row, and never written to memory. Which cosines are
 * summed is the caller's choice, so that one loop serves sentences against images and images
 * against sentences in every pooling.
 *
 * Rows come as int8 (stored with an offset of 128), bf16 or fp16. The arithmetic is chosen by the
 * processor: AVX-512 VNNI and BF16 dot products, or AVX2 on rows widened to int16 or fp32. Integer
 * dot products are exact, so that every path gives the same scores.
 */

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define LANES 16
#define MAX_TILE 12
#define MAX_WIDE_TILE 6
#define WIDE_TILE 4    /* rows at a time; more of them would not leave a register free */
#define WIDE_BLOCK 1024 /* bytes of a widened row at a time */
#define INLINE static inline __attribute__((always_inline))
#define AVX2 __attribute__((target("avx2,fma,f16c")))
#define VNNI __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")))
#define BF16 __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512bf16")))

enum row_type { ROWS_INT8, ROWS_BF16, ROWS_FP16 };

/* How a query's lanes are packed: SINGLES [dim][16] fp32, PAIRS [dim/2][16][2] of 16 bits,
 * QUADS [dim/4][16][4] of 8 bits, after 16 sums to start from: as VNNI takes the rows with their
 * offset, minus 128 times the sum of each lane. */
enum layout { SINGLES, PAIRS, QUADS };

enum level { LEVEL_NONE, LEVEL_AVX2, LEVEL_AVX512 };

/* What is summed: the best row of each lane, the best lane of each row, or both. */
enum side { BEST_ROW = 1, BEST_LANE = 2 };

typedef struct {
    const void *rows;          /* [items][rows_per_item][dim] */
    const float *row_scale;    /* [items][rows_per_item], or NULL for 1 */
    const float *row_residual; /* the same shape; bounds: norm of what the rows leave out */
    const float *row_slack;    /* the same shape; bounds: norm of the rows' rounding error */
    int64_t rows_per_item;
    int64_t dim; /* a multiple of 64 */
    int32_t row_type;
    int32_t level;
    const void *panels;         /* lanes in panels of sixteen, packed in this level's layout */
    const float *lane_scale;    /* [panels][16] */
    const float *lane_residual; /* [panels][16] */
    const float *lane_slack;    /* [panels][16] */
    const int32_t *query_start; /* [queries + 1], in lanes */
    const uint8_t *clamp_lanes; /* [queries]: whether the best lane of a row counts as at least 0 */
    int32_t queries;
    int32_t sides;
    int32_t clamp_rows; /* whether the best row of a lane counts as at least 0 */
} scan;

int teran_level(void) {
    __builtin_cpu_init();
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
          __builtin_cpu_supports("f16c")))
        return LEVEL_NONE;
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni") &&
        __builtin_cpu_supports("avx512bf16"))
        return LEVEL_AVX512;
    return LEVEL_AVX2;
}

int teran_layout(int row_type, int level) {
    if (row_type == ROWS_FP16 || (row_type == ROWS_BF16 && level < LEVEL_AVX512)) return SINGLES;
    return row_type == ROWS_INT8 && level == LEVEL_AVX512 ? QUADS : PAIRS;
}

/* ---- Tiles: dot products of `count` rows with the sixteen lanes of one panel ------------------ */

/* Adds the dot products over `dim` values to out[count][16]. Rows lie `stride` bytes apart. `ahead`
 * is how far away the rows needed next are; they are prefetched line by line, as the hardware
 * doesn't follow a dozen short streams. */
typedef void tile_function(const uint8_t *rows, int64_t stride, int64_t ahead, const void *panel,
                           int64_t dim, float *out, int64_t out_stride);

AVX2 INLINE void tile_fp32(int count, const uint8_t *rows, int64_t stride, const float *panel,
                           int64_t dim, float *out, int64_t out_stride) {
    __m256 sum[MAX_WIDE_TILE][2];
#pragma GCC unroll 6
    for (int m = 0; m < count; m++) {
        sum[m][0] = _mm256_loadu_ps(out + m * out_stride);
        sum[m][1] = _mm256_loadu_ps(out + m * out_stride + 8);
    }
    for (int64_t e = 0; e < dim; e++, panel += LANES) {
        const __m256 a = _mm256_loadu_ps(panel);
        const __m256 b = _mm256_loadu_ps(panel + 8);
#pragma GCC unroll 6
        for (int m = 0; m < count; m++) {
            const __m256 row = _mm256_broadcast_ss((const float *)(rows + m * stride) + e);
            sum[m][0] = _mm256_fmadd_ps(row, a, sum[m][0]);
            sum[m][1] = _mm256_fmadd_ps(row, b, sum[m][1]);
        }
    }
#pragma GCC unroll 6
    for (int m = 0; m < count; m++) {
        _mm256_storeu_ps(out + m * out_stride, sum[m][0]);
        _mm256_storeu_ps(out + m * out_stride + 8, sum[m][1]);
    }
}

AVX2 INLINE void tile_int16(int count, const uint8_t *rows, int64_t stride, const int16_t *panel,
                            int64_t dim, float *out, int64_t out_stride) {
    __m256i sum[MAX_WIDE_TILE][2];
#pragma GCC unroll 6
    for (int m = 0; m < count; m++) sum[m][0] = sum[m][1] = _mm256_setzero_si256();
    for (int64_t e = 0; e < dim / 2; e++, panel += 2 * LANES) {
        const __m256i a = _mm256_loadu_si256((const __m256i *)panel);
        const __m256i b = _mm256_loadu_si256((const __m256i *)(panel + LANES));
#pragma GCC unroll 6
        for (int m = 0; m < count; m++) {
            const __m256i row = _mm256_set1_epi32(((const int32_t *)(rows + m * stride))[e]);
            sum[m][0] = _mm256_add_epi32(sum[m][0], _mm256_madd_epi16(row, a));
            sum[m][1] = _mm256_add_epi32(sum[m][1], _mm256_madd_epi16(row, b));
        }
    }
#pragma GCC unroll 6
    for (int m = 0; m < count; m++) {
        float *to = out + m * out_stride;
        _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), _mm256_cvtepi32_ps(sum[m][0])));
        to += 8;
        _mm256_storeu_ps(to, _mm256_add_ps(_mm256_loadu_ps(to), _mm256_cvtepi32_ps(sum[m][1])));
    }
}

INLINE void prefetch(int count, const uint8_t *rows, int64_t stride, int64_t ahead, int64_t byte) {
#pragma GCC unroll 12
    for (int m = 0; m < count; m++)
        _mm_prefetch((const char *)(rows + m * stride + ahead + byte), _MM_HINT_T0);
}

VNNI INLINE void tile_vnni(int count, const uint8_t *rows, int64_t stride, int64_t ahead,
                           const int8_t *panel, int64_t dim, float *out, int64_t out_stride) {
    const __m512i start = _mm512_loadu_si512(panel);
    __m512i sum[MAX_TILE];
#pragma GCC unroll 12
    for (int m = 0; m < count; m++) sum[m] = start;
    panel += LANES * sizeof(int32_t);
    for (int64_t line = 0; line < dim; line += 64) {
        prefetch(count, rows, stride, ahead, line);
        for (int64_t byte = line; byte < line + 64; byte += 4, panel += 4 * LANES) {
            const __m512i lanes = _mm512_loadu_si512(panel);
#pragma GCC unroll 12
            for (int m = 0; m < count; m++) {
                const __m512i row = _mm512_set1_epi32(*(const int32_t *)(rows + m * stride + byte));
                sum[m] = _mm512_dpbusd_epi32(sum[m], row, lanes);
            }
        }
    }
#pragma GCC unroll 12
    for (int m = 0; m < count; m++)
        _mm512_storeu_ps(out + m * out_stride, _mm512_cvtepi32_ps(sum[m]));
}

BF16 INLINE void tile_bf16(int count, const uint8_t *rows, int64_t stride, int64_t ahead,
                           const uint16_t *panel, int64_t dim, float *out, int64_t out_stride) {
    __m512 sum[MAX_TILE];
#pragma GCC unroll 12
    for (int m = 0; m < count; m++) sum[m] = _mm512_setzero_ps();
    for (int64_t line = 0; line < 2 * dim; line += 64) {
        prefetch(count, rows, stride, ahead, line);
        for (int64_t byte = line; byte < line + 64; byte += 4, panel += 2 * LANES) {
            const __m512i lanes = _mm512_loadu_si512(panel);
#pragma GCC unroll 12
            for (int m = 0; m < count; m++) {
                const __m512i row = _mm512_set1_epi32(*(const int32_t *)(rows + m * stride + byte));
                sum[m] = _mm512_dpbf16_ps(sum[m], (__m512bh)row, (__m512bh)lanes);
            }
        }
    }
#pragma GCC unroll 12
    for (int m = 0; m < count; m++) _mm512_storeu_ps(out + m * out_stride, sum[m]);
}

/* A tile's number of rows must be known when it is compiled, or its sums would leave registers. */
#define TILE(target, name, count, ...)                                                            \
    target static void name##_##count(const uint8_t *rows, int64_t stride, int64_t ahead,         \
                                      const void *panel, int64_t dim, float *out, int64_t width) { \
        (void)ahead;                                                                              \
        tile_##name(count, rows, stride, __VA_ARGS__, dim, out, width);                           \
    }
#define WIDE_TILES(name)                                                                          \
    TILE(AVX2, name, 1, panel)                                                                    \
    TILE(AVX2, name, 2, panel)                                                                    \
    TILE(AVX2, name, 3, panel)                                                                    \
    TILE(AVX2, name, 4, panel)                                                                    \
    TILE(AVX2, name, 5, panel)                                                                    \
    TILE(AVX2, name, 6, panel)                                                                    \
    static tile_function *const name##_tiles[] = {0,        name##_1, name##_2, name##_3,         \
                                                  name##_4, name##_5, name##_6};
#define TILES(target, name)                                                                       \
    TILE(target, name, 1, ahead, panel)                                                           \
    TILE(target, name, 2, ahead, panel)                                                           \
    TILE(target, name, 3, ahead, panel)                                                           \
    TILE(target, name, 4, ahead, panel)                                                           \
    TILE(target, name, 5, ahead, panel)                                                           \
    TILE(target, name, 6, ahead, panel)                                                           \
    TILE(target, name, 7, ahead, panel)                                                           \
    TILE(target, name, 8, ahead, panel)                                                           \
    TILE(target, name, 9, ahead, panel)                                                           \
    TILE(target, name, 10, ahead, panel)                                                          \
    TILE(target, name, 11, ahead, panel)                                                          \
    TILE(target, name, 12, ahead, panel)                                                          \
    static tile_function *const name##_tiles[] = {                                                \
        0,        name##_1, name##_2, name##_3,  name##_4,  name##_5, name##_6,                   \
        name##_7, name##_8, name##_9, name##_10, name##_11, name##_12};

WIDE_TILES(fp32)
WIDE_TILES(int16)
TILES(VNNI, vnni)
TILES(BF16, bf16)

/* ---- Widening rows for AVX2 ------------------------------------------------------------------- */

AVX2 static void widen(int row_type, const void *rows, int64_t count, void *into) {
    int64_t i = 0;
    if (row_type == ROWS_INT8) {
        const uint8_t *from = rows;
        int16_t *to = into;
        const __m256i offset = _mm256_set1_epi16(128);
        for (; i + 16 <= count; i += 16) {
            const __m256i wide = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(from + i)));
            _mm256_storeu_si256((__m256i *)(to + i), _mm256_sub_epi16(wide, offset));
        }
        for (; i < count; i++) to[i] = (int16_t)(from[i] - 128);
        return;
    }
    const uint16_t *from = rows;
    float *to = into;
    for (; i + 8 <= count; i += 8) {
        const __m128i half = _mm_loadu_si128((const __m128i *)(from + i));
        const __m256 wide = row_type == ROWS_FP16 ? _mm256_cvtph_ps(half)
                                                  : _mm256_castsi256_ps(_mm256_slli_epi32(
                                                        _mm256_cvtepu16_epi32(half), 16));
        _mm256_storeu_ps(to + i, wide);
    }
    for (; i < count; i++) {
        const uint32_t bits = (uint32_t)from[i] << 16;
        if (row_type == ROWS_FP16)
            to[i] = _cvtsh_ss(from[i]);
        else
            memcpy(to + i, &bits, 4);
    }
}

/* ---- One item --------------------------------------------------------------------------------- */

typedef struct {
    tile_function *const *tiles;
    int tile_rows;       /* most rows of a tile */
    int panels;
    int64_t block;       /* values of a row handled at a time */
    int64_t panel_bytes; /* of sixteen lanes */
    int64_t block_bytes; /* of sixteen lanes, for one block of values */
    void *wide;          /* one block of all rows of an item, widened; NULL where rows need none */
    int64_t wide_bytes;  /* of one row in it */
    float *dots;         /* [rows_per_item][panels * 16] */
} work;

/* The item's dot products with all lanes. Blocks are small enough that rows and panel stay in the
 * first-level cache together. */
AVX2 static void multiply(const scan *s, const work *w, const uint8_t *rows, int64_t item_bytes,
                          int64_t ahead) {
    const int64_t width = w->panels * LANES, row_bytes = item_bytes / s->rows_per_item;
    if (w->wide) memset(w->dots, 0, s->rows_per_item * width * sizeof(float));
    for (int64_t e = 0, block = 0; e < s->dim; e += w->block, block++) {
        const int64_t dim = s->dim - e < w->block ? s->dim - e : w->block;
        const uint8_t *from = rows;
        int64_t stride = row_bytes;
        if (w->wide) {
            for (int64_t r = 0; r < s->rows_per_item; r++)
                widen(s->row_type, rows + r * row_bytes + e * row_bytes / s->dim, dim,
                      (uint8_t *)w->wide + r * w->wide_bytes);
            from = w->wide;
            stride = w->wide_bytes;
        }
        for (int panel = 0; panel < w->panels; panel++) {
            const uint8_t *lanes = (const uint8_t *)s->panels + panel * w->panel_bytes;
            for (int64_t r = 0; r < s->rows_per_item; r += w->tile_rows) {
                const int64_t left = s->rows_per_item - r;
                w->tiles[left < w->tile_rows ? left : w->tile_rows](
                    from + r * stride, stride, panel ? 0 : ahead, lanes + block * w->block_bytes,
                    dim, w->dots + r * width + panel * LANES, width);
            }
        }
    }
}

/* Turns one row's dot products into cosines, or into bounds of them. */
AVX2 static void rescale(const scan *s, float *dots, int64_t width, int64_t row) {
    const float scale = s->row_scale ? s->row_scale[row] : 1;
    if (!s->row_residual) {
        for (int64_t l = 0; l < width; l++) dots[l] *= scale * s->lane_scale[l];
        return;
    }
    const float norm = s->row_residual[row], error = s->row_slack[row];
    for (int64_t l = 0; l < width; l++)
        dots[l] = dots[l] * (scale * s->lane_scale[l]) + norm * s->lane_residual[l] + error +
                  s->lane_slack[l];
}

AVX2 static void reduce(const scan *s, const work *w, int64_t item, float *scores, int64_t stride) {
    const int64_t width = w->panels * LANES;
    float best[LANES];
    for (int64_t r = 0; r < s->rows_per_item; r++)
        rescale(s, w->dots + r * width, width, item * s->rows_per_item + r);
    for (int q = 0; q < s->queries; q++) scores[q * stride] = 0;
    if (s->sides & BEST_LANE)
        for (int q = 0; q < s->queries; q++) {
            const int from = s->query_start[q], to = s->query_start[q + 1];
            float sum = 0;
            for (int64_t r = 0; r < s->rows_per_item && from < to; r++) {
                const float *c = w->dots + r * width;
                float most = s->clamp_lanes[q] ? 0 : c[from];
                for (int l = from; l < to; l++) most = c[l] > most ? c[l] : most;
                sum += most;
            }
            scores[q * stride] += sum;
        }
    if (s->sides & BEST_ROW)
        for (int panel = 0, q = 0; panel < w->panels; panel++) {
            for (int l = 0; l < LANES; l++) best[l] = s->clamp_rows ? 0 : -1e30f;
            for (int64_t r = 0; r < s->rows_per_item; r++) {
                const float *c = w->dots + r * width + panel * LANES;
                for (int l = 0; l < LANES; l++) best[l] = c[l] > best[l] ? c[l] : best[l];
            }
            for (int l = 0; l < LANES; l++) {
                while (q < s->queries && s->query_start[q + 1] <= panel * LANES + l) q++;
                if (q < s->queries) scores[q * stride] += best[l];
            }
        }
}

/* Scores the items from `begin` to `end`, or those that `which` lists at these places, and writes
 * them to scores[query * stride + place]. Returns 0, or 1 where there is no memory. */
AVX2 int teran_scan(const scan *s, const int64_t *which, int64_t begin, int64_t end, float *scores,
                    int64_t stride) {
    const int layout = teran_layout(s->row_type, s->level);
    const int64_t item_bytes = s->rows_per_item * s->dim * (s->row_type == ROWS_INT8 ? 1 : 2);
    const int widens = layout == SINGLES || (layout == PAIRS && s->row_type == ROWS_INT8);
    const int64_t lane_bytes = layout == SINGLES ? 4 : layout == PAIRS ? 2 : 1;
    work w = {0};
    w.tiles = layout == SINGLES ? fp32_tiles
              : layout == QUADS ? vnni_tiles
              : widens          ? int16_tiles
                                : bf16_tiles;
    w.tile_rows = widens ? WIDE_TILE : MAX_TILE;
    w.panels = (s->query_start[s->queries] + LANES - 1) / LANES;
    w.block = widens ? WIDE_BLOCK / lane_bytes : s->dim;
    w.panel_bytes = LANES * (s->dim * lane_bytes + (layout == QUADS ? sizeof(int32_t) : 0));
    w.block_bytes = LANES * w.block * lane_bytes;
    w.wide_bytes = w.block * lane_bytes;
    const int64_t dots = s->rows_per_item * w.panels * LANES * sizeof(float);
    w.dots = aligned_alloc(64, dots + 64);
    w.wide = widens ? aligned_alloc(64, s->rows_per_item * w.wide_bytes) : NULL;
    const int fails = !w.dots || (widens && !w.wide);
    for (int64_t i = begin; i < end && !fails; i++) {
        const int64_t item = which ? which[i] : i;
        multiply(s, &w, (const uint8_t *)s->rows + item * item_bytes, item_bytes,
                 which ? 0 : item_bytes);
        reduce(s, &w, item, scores + i, stride);
    }
    free(w.dots);
    free(w.wide);
    return fails;
}
