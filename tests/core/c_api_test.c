/* The C interface from C11: dense and sparse decoding against a dense reference in double, the life
 * of an index, and every kind of error. Prints what fails and exits with 1. */
#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tactic/tactic.h"

enum { kQHeads = 4, kKvHeads = 2, kDim = 32, kValueDim = 16, kTokens = 900, kCells = 1000 };

static int failures = 0;

#define EXPECT(condition)                                                                     \
  do {                                                                                        \
    if (!(condition)) {                                                                       \
      printf("%s:%d: %s does not hold; last error: \"%s\"\n", __FILE__, __LINE__, #condition, \
             tactic_last_error());                                                            \
      ++failures;                                                                             \
    }                                                                                         \
  } while (0)

/* The call fails with that code and a message that contains `text`. */
#define EXPECT_ERROR(call, expected, text)             \
  do {                                                 \
    EXPECT((call) == (expected));                      \
    EXPECT(strstr(tactic_last_error(), text) != NULL); \
  } while (0)

/* --- data --------------------------------------------------------------------------------------
 */

static float keys[kCells][kKvHeads][kDim];
static float values[kCells][kKvHeads][kValueDim];
static float q[kQHeads][kDim];
static float out[kQHeads][kValueDim];
static uint32_t cells[kTokens];

static uint64_t state = 1;
static float Random(void) { /* uniform in [-1, 1) */
  state = state * 6364136223846793005u + 1442695040888963407u;
  return (float)(int32_t)(state >> 32) * 0x1p-31f;
}

static void Generate(void) {
  for (int c = 0; c < kCells; ++c) {
    for (int h = 0; h < kKvHeads; ++h) {
      for (int i = 0; i < kDim; ++i) keys[c][h][i] = Random();
      for (int i = 0; i < kValueDim; ++i) values[c][h][i] = Random();
    }
  }
  for (int h = 0; h < kQHeads; ++h) {
    for (int i = 0; i < kDim; ++i) q[h][i] = 3 * Random();
  }
  for (int t = 0; t < kTokens; ++t)
    cells[t] = (uint32_t)(t * 7 % kCells); /* 7 does not divide 1000 */
}

static tactic_shape Shape(void) {
  const tactic_shape shape = {kQHeads, kKvHeads, kDim, kValueDim};
  return shape;
}

static tactic_rows RowsOf(const void* data, int dim) {
  const size_t row = tactic_row_bytes(TACTIC_F32, (size_t)dim);
  const tactic_rows rows = {data, TACTIC_F32, kKvHeads * row, row};
  return rows;
}

static tactic_request Request(const tactic_index* index) {
  const tactic_request request = {
      &q[0][0], kDim,       RowsOf(keys, kDim), RowsOf(values, kValueDim), cells, kTokens,
      index,    &out[0][0], kValueDim};
  return request;
}

static tactic_options Options(void) {
  tactic_options options;
  EXPECT(tactic_options_init(&options, TACTIC_PAPER, sizeof(options)) == TACTIC_OK);
  options.dense_below = 0;
  options.segment_size = 128;
  options.recent = 64;
  return options;
}

static tactic_params Params(void) {
  tactic_params params;
  EXPECT(tactic_params_init(&params, sizeof(params)) == TACTIC_OK);
  params.scale = 0.25f;
  return params;
}

/* Largest distance from dense attention over all tokens. */
static double DistanceFromDense(double scale) {
  double largest = 0;
  for (int h = 0; h < kQHeads; ++h) {
    const int kv = h / (kQHeads / kKvHeads);
    double weights[kTokens];
    double max = -INFINITY;
    for (int t = 0; t < kTokens; ++t) {
      double dot = 0;
      for (int i = 0; i < kDim; ++i) dot += (double)q[h][i] * keys[cells[t]][kv][i];
      weights[t] = dot * scale;
      max = fmax(max, weights[t]);
    }
    double sum = 0;
    for (int t = 0; t < kTokens; ++t) sum += weights[t] = exp(weights[t] - max);
    for (int i = 0; i < kValueDim; ++i) {
      double want = 0;
      for (int t = 0; t < kTokens; ++t) want += weights[t] / sum * values[cells[t]][kv][i];
      largest = fmax(largest, fabs(out[h][i] - want));
    }
  }
  return largest;
}

/* --- tests -------------------------------------------------------------------------------------
 */

static void TestVersionsAndIsas(void) {
  char version[32];
  snprintf(version, sizeof(version), "%d.%d.%d", TACTIC_VERSION_MAJOR, TACTIC_VERSION_MINOR,
           TACTIC_VERSION_PATCH);
  EXPECT(strcmp(tactic_version(), version) == 0);
  EXPECT(strcmp(version, TACTIC_PROJECT_VERSION) == 0); /* of CMakeLists.txt */
  const char* isas = tactic_supported_isas();
  EXPECT(strstr(isas, "scalar") != NULL);
  EXPECT(strncmp(isas, tactic_isa_name(), strlen(tactic_isa_name())) == 0);
  EXPECT_ERROR(tactic_set_isa("avx9000"), TACTIC_INVALID_ARGUMENT, "\"avx9000\"");
  EXPECT_ERROR(tactic_set_isa(NULL), TACTIC_INVALID_ARGUMENT, "name is null");
  EXPECT(tactic_row_bytes(TACTIC_F32, 10) == 40);
  EXPECT(tactic_row_bytes(TACTIC_Q4_0, 64) == 36);
  EXPECT(tactic_row_bytes(TACTIC_Q4_0, 40) == 0);
  EXPECT(tactic_row_bytes(9, 64) == 0);
}

static void TestDense(void) {
  const tactic_shape shape = Shape();
  tactic_options options = Options();
  const tactic_params params = Params();
  options.mode = TACTIC_DENSE;
  for (int threads = 1; threads <= 3; ++threads) {
    tactic_decoder* decoder = NULL;
    EXPECT(tactic_decoder_create(threads, &decoder) == TACTIC_OK);
    const tactic_request request = Request(NULL);
    memset(out, 0, sizeof(out));
    EXPECT(tactic_decode(decoder, &shape, &options, &params, &request, 1) == TACTIC_OK);
    /* 900 weights of at most 1 in f32: 900 roundings of 2^-24 of sums of magnitudes below 1. */
    EXPECT(DistanceFromDense(params.scale) < 900 * 0x1p-24 * 4);
    tactic_stats stats;
    stats.struct_size = sizeof(stats);
    EXPECT(tactic_decoder_stats(decoder, &stats) == TACTIC_OK);
    EXPECT(stats.rows_read == kTokens * kKvHeads);
    EXPECT(stats.bytes_read == kTokens * kKvHeads * 4 * (kDim + kValueDim));
    EXPECT(stats.bytes_dense == stats.bytes_read);
    EXPECT(tactic_decode(decoder, &shape, &options, &params, NULL, 0) == TACTIC_OK);
    tactic_decoder_destroy(decoder);
  }
}

/* o - o_I = (1 - p) (mu_rest - mu_I): with values in [-1, 1] no further than 2 (1 - p) from dense.
 */
static void TestPaper(void) {
  const tactic_shape shape = Shape();
  tactic_options options = Options();
  tactic_params params = Params();
  params.measure_mass = 1;
  tactic_decoder* decoder = NULL;
  EXPECT(tactic_decoder_create(2, &decoder) == TACTIC_OK);
  tactic_index* index = NULL;
  EXPECT(tactic_index_create(&shape, &options, &index) == TACTIC_OK);
  EXPECT(tactic_index_append(index, kTokens) == TACTIC_OK);
  const tactic_rows rows = RowsOf(keys, kDim);
  EXPECT(tactic_index_build(index, &rows, NULL, cells, kTokens, decoder) == TACTIC_OK);
  EXPECT(tactic_index_memory_bytes(index) > 0);

  const double targets[] = {0.3, 0.9, 1.0};
  int64_t rows_before = 0;
  for (int i = 0; i < 3; ++i) {
    options.target = targets[i];
    const tactic_request requests[2] = {Request(index), Request(NULL)}; /* the second: dense */
    static float dense_out[kQHeads][kValueDim];
    tactic_request both[2] = {requests[0], requests[1]};
    both[1].out = &dense_out[0][0];
    EXPECT(tactic_decode(decoder, &shape, &options, &params, both, 2) == TACTIC_OK);
    double least_mass = 1;
    int64_t most_rows = 0;
    for (int h = 0; h < kQHeads; ++h) {
      tactic_head_report report;
      report.struct_size = sizeof(report);
      EXPECT(tactic_decoder_head_report(decoder, 0, h, &report) == TACTIC_OK);
      EXPECT(report.own_mass > 0 && report.own_mass <= report.union_mass + 1e-5);
      EXPECT(report.own_rows <= report.union_rows && report.union_rows <= kTokens);
      least_mass = fmin(least_mass, report.union_mass);
      if (report.own_rows > most_rows) most_rows = report.own_rows;
      EXPECT(tactic_decoder_head_report(decoder, 1, h, &report) == TACTIC_OK);
      EXPECT(report.own_rows == kTokens);
    }
    EXPECT(most_rows >= rows_before);
    rows_before = most_rows;
    EXPECT(DistanceFromDense(params.scale) <= 2 * (1 - least_mass) + 900 * 0x1p-24 * 4);
    memcpy(out, dense_out, sizeof(out));
    EXPECT(DistanceFromDense(params.scale) < 900 * 0x1p-24 * 4);
  }
  EXPECT(rows_before == kTokens); /* target 1 */
  tactic_index_destroy(index);
  /* What is asked after the index is gone was copied. */
  tactic_stats stats;
  stats.struct_size = sizeof(stats);
  EXPECT(tactic_decoder_stats(decoder, &stats) == TACTIC_OK);
  EXPECT(stats.rows_read == 2 * kTokens * kKvHeads);
  tactic_decoder_destroy(decoder);
}

static void TestTactic(void) {
  const tactic_shape shape = Shape();
  const tactic_rows rows[2] = {RowsOf(keys, kDim), RowsOf(values, kValueDim)};
  const tactic_params params = Params();
  tactic_options options;
  EXPECT(tactic_options_init(&options, TACTIC_TACTIC, sizeof(options)) == TACTIC_OK);
  EXPECT(options.mode == TACTIC_TACTIC && options.cluster_size == 32 && options.sinks == 4);
  options.dense_below = 0;
  options.segment_size = 128;
  tactic_decoder* decoder = NULL;
  EXPECT(tactic_decoder_create(2, &decoder) == TACTIC_OK);
  tactic_index* index = NULL;
  EXPECT(tactic_index_create(&shape, &options, &index) == TACTIC_OK);
  const float norms[] = {1, 2, -1};
  EXPECT_ERROR(tactic_index_set_query_norms(index, norms, 3), TACTIC_INVALID_ARGUMENT,
               "kv_heads is 3; expected the index's 2");
  EXPECT_ERROR(tactic_index_set_query_norms(index, norms + 1, 2), TACTIC_INVALID_ARGUMENT,
               "mean_squares[1] is -1");
  EXPECT(tactic_index_set_query_norms(index, norms, 2) == TACTIC_OK);
  EXPECT(tactic_index_append(index, kTokens) == TACTIC_OK);
  EXPECT_ERROR(tactic_index_build(index, &rows[0], NULL, cells, kTokens, NULL),
               TACTIC_INVALID_ARGUMENT, "values is null");
  EXPECT(tactic_index_build(index, &rows[0], &rows[1], cells, kTokens, decoder) == TACTIC_OK);
  const tactic_request request = Request(index);
  for (int all = 0; all < 2; ++all) {
    options.target = all ? 1 : 0.9;
    EXPECT(tactic_decode(decoder, &shape, &options, &params, &request, 1) == TACTIC_OK);
    for (int h = 0; h < kQHeads; ++h) {
      tactic_head_report report = {.struct_size = sizeof(report)};
      EXPECT(tactic_decoder_head_report(decoder, 0, h, &report) == TACTIC_OK);
      EXPECT(all ? report.p_hat == 1 : report.p_hat > 0.8 && report.p_hat < 1);
      EXPECT(all ? report.own_rows == kTokens : report.own_rows < kTokens);
    }
    EXPECT(DistanceFromDense(params.scale) < (all ? 900 * 0x1p-24 * 4 : 2 * 0.2));
  }
  tactic_index_destroy(index);
  tactic_decoder_destroy(decoder);
}

static void TestIndex(void) {
  const tactic_shape shape = Shape();
  const tactic_options options = Options();
  const tactic_rows rows = RowsOf(keys, kDim);
  tactic_index* index = NULL;
  tactic_index* fork = NULL;
  EXPECT(tactic_index_create(&shape, &options, &index) == TACTIC_OK);
  EXPECT(tactic_index_size(index) == 0);
  EXPECT(tactic_index_append(index, 700) == TACTIC_OK);
  EXPECT(tactic_index_build(index, &rows, NULL, cells, kTokens, NULL) == TACTIC_OK);
  EXPECT(tactic_index_fork(index, &fork) == TACTIC_OK);
  EXPECT(tactic_index_memory_bytes(fork) == tactic_index_memory_bytes(index));
  EXPECT(tactic_index_truncate(index, 600) == TACTIC_OK);
  EXPECT(tactic_index_remove_range(index, 100, 200) == TACTIC_OK);
  EXPECT(tactic_index_invalidate(index, 0, 50) == TACTIC_OK);
  EXPECT(tactic_index_size(index) == 500);
  EXPECT(tactic_index_size(fork) == 700);
  EXPECT(tactic_index_build(index, &rows, NULL, cells, 500, NULL) == TACTIC_OK);

  EXPECT_ERROR(tactic_index_truncate(index, 501), TACTIC_OUT_OF_RANGE, "n is 501");
  EXPECT_ERROR(tactic_index_remove_range(index, 5, 4), TACTIC_OUT_OF_RANGE, "[5, 4)");
  EXPECT_ERROR(tactic_index_invalidate(index, 0, 501), TACTIC_OUT_OF_RANGE, "[0, 501)");
  EXPECT_ERROR(tactic_index_append(index, -1), TACTIC_INVALID_ARGUMENT, "n is -1");
  EXPECT_ERROR(tactic_index_append(index, INT64_MAX), TACTIC_INVALID_ARGUMENT, "n is");
  EXPECT_ERROR(tactic_index_build(index, &rows, NULL, cells, 499, NULL), TACTIC_INVALID_ARGUMENT,
               "num_cells is 499; expected at least the index's 500");
  EXPECT_ERROR(tactic_index_build(index, NULL, NULL, cells, 500, NULL), TACTIC_INVALID_ARGUMENT,
               "keys is null");
  EXPECT_ERROR(tactic_index_build(index, &rows, NULL, NULL, 500, NULL), TACTIC_INVALID_ARGUMENT,
               "cells is null");
  tactic_rows bad = rows;
  bad.type = 256; /* 0 if somebody looked at its lowest byte only */
  EXPECT_ERROR(tactic_index_build(index, &bad, NULL, cells, 500, NULL), TACTIC_INVALID_ARGUMENT,
               "keys.type is 256");
  bad = rows;
  bad.data = NULL;
  EXPECT_ERROR(tactic_index_build(index, &bad, NULL, cells, 500, NULL), TACTIC_INVALID_ARGUMENT,
               "keys.data is null");
  EXPECT(tactic_index_size(index) == 500);
  tactic_index_destroy(index);
  tactic_index_destroy(fork);

  tactic_index* none = NULL;
  tactic_shape bad_shape = shape;
  bad_shape.head_dim = 12;
  EXPECT_ERROR(tactic_index_create(&bad_shape, &options, &none), TACTIC_INVALID_ARGUMENT,
               "head_dim is 12");
  EXPECT_ERROR(tactic_index_create(&shape, NULL, &none), TACTIC_INVALID_ARGUMENT,
               "options is null");
  EXPECT_ERROR(tactic_index_create(NULL, &options, &none), TACTIC_INVALID_ARGUMENT,
               "shape is null");
  EXPECT_ERROR(tactic_index_create(&shape, &options, NULL), TACTIC_INVALID_ARGUMENT,
               "index is null");
  EXPECT(none == NULL);
  EXPECT_ERROR(tactic_index_append(NULL, 1), TACTIC_INVALID_ARGUMENT, "index is null");
  EXPECT(tactic_index_size(NULL) == 0);
  tactic_index_destroy(NULL);
}

static void TestOptions(void) {
  tactic_options options = Options();
  EXPECT(options.struct_size == sizeof(options));
  EXPECT(options.mode == TACTIC_PAPER && options.target == 0.9);
  EXPECT(tactic_options_validate(&options) == TACTIC_OK);
  options.mode = 257;
  EXPECT_ERROR(tactic_options_validate(&options), TACTIC_INVALID_ARGUMENT, "mode is 257");
  options = Options();
  options.cluster_size = 1;
  EXPECT_ERROR(tactic_options_validate(&options), TACTIC_INVALID_ARGUMENT, "cluster_size is 1");
  options = Options();
  options.struct_size = 8;
  EXPECT_ERROR(tactic_options_validate(&options), TACTIC_INVALID_ARGUMENT,
               "options.struct_size is 8");
  EXPECT_ERROR(tactic_options_init(&options, TACTIC_PAPER, 8), TACTIC_INVALID_ARGUMENT,
               "struct_size is 8");
  EXPECT_ERROR(tactic_options_init(NULL, TACTIC_PAPER, sizeof(options)), TACTIC_INVALID_ARGUMENT,
               "options is null");
}

static void TestDecodeErrors(void) {
  const tactic_shape shape = Shape();
  const tactic_options options = Options();
  const tactic_params params = Params();
  tactic_decoder* decoder = NULL;
  EXPECT_ERROR(tactic_decoder_create(0, &decoder), TACTIC_INVALID_ARGUMENT, "threads is 0");
  EXPECT_ERROR(tactic_decoder_create(5000, &decoder), TACTIC_INVALID_ARGUMENT, "threads is 5000");
  EXPECT(decoder == NULL);
  EXPECT(tactic_decoder_create(2, &decoder) == TACTIC_OK);
  tactic_stats stats;
  stats.struct_size = sizeof(stats);
  EXPECT_ERROR(tactic_decoder_stats(decoder, &stats), TACTIC_INVALID_ARGUMENT, "not decoded");

  tactic_request requests[2] = {Request(NULL), Request(NULL)};
  requests[1].q = NULL;
  EXPECT_ERROR(tactic_decode(decoder, &shape, &options, &params, requests, 2),
               TACTIC_INVALID_ARGUMENT, "request 1: q or out is null");
  requests[1] = Request(NULL);
  requests[1].values.type = -1;
  EXPECT_ERROR(tactic_decode(decoder, &shape, &options, &params, requests, 2),
               TACTIC_INVALID_ARGUMENT, "request 1: values.type is -1");
  requests[1] = Request(NULL);
  requests[1].cells = NULL;
  EXPECT_ERROR(tactic_decode(decoder, &shape, &options, &params, requests, 2),
               TACTIC_INVALID_ARGUMENT, "request 1: cells is null");
  EXPECT_ERROR(tactic_decode(decoder, &shape, &options, &params, NULL, 2), TACTIC_INVALID_ARGUMENT,
               "requests is null");
  EXPECT_ERROR(tactic_decode(NULL, &shape, &options, &params, requests, 1), TACTIC_INVALID_ARGUMENT,
               "decoder is null");
  tactic_params bad_params = params;
  bad_params.scale = 0;
  EXPECT_ERROR(tactic_decode(decoder, &shape, &options, &bad_params, requests, 1),
               TACTIC_INVALID_ARGUMENT, "scale is 0");

  EXPECT(tactic_decode(decoder, &shape, &options, &params, requests, 1) == TACTIC_OK);
  tactic_head_report report;
  report.struct_size = sizeof(report);
  EXPECT(tactic_decoder_head_report(decoder, 0, kQHeads - 1, &report) == TACTIC_OK);
  EXPECT(report.own_mass == -1);
  EXPECT_ERROR(tactic_decoder_head_report(decoder, 1, 0, &report), TACTIC_OUT_OF_RANGE,
               "request is 1");
  EXPECT_ERROR(tactic_decoder_head_report(decoder, 0, kQHeads, &report), TACTIC_OUT_OF_RANGE,
               "q_head 4");
  EXPECT_ERROR(tactic_decoder_head_report(decoder, 0, -1, &report), TACTIC_OUT_OF_RANGE,
               "q_head -1");
  /* A failed step, even of more requests, has nothing to report on. */
  EXPECT(tactic_decode(decoder, &shape, &options, &params, requests, 2) != TACTIC_OK);
  EXPECT_ERROR(tactic_decoder_head_report(decoder, 1, 0, &report), TACTIC_INVALID_ARGUMENT,
               "not decoded");
  tactic_decoder_destroy(decoder);
  tactic_decoder_destroy(NULL);
}

int main(void) {
  EXPECT(strcmp(tactic_last_error(), "") == 0);
  Generate();
  TestVersionsAndIsas();
  TestOptions();
  TestDense();
  TestPaper();
  TestTactic();
  TestIndex();
  TestDecodeErrors();
  if (failures > 0) printf("%d expectations failed\n", failures);
  return failures == 0 ? 0 : 1;
}
