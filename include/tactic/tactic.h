/* The C interface: indexes, decode steps and instruction sets, for programs and bindings that
 * cannot use C++. Plain C11; what each thing means is said in the C++ headers, options.h and
 * decode.h.
 *
 * Conventions:
 * - Handles are opaque. X_create (and index_fork) gives one through its last argument; whoever got
 * it frees it with X_destroy. Destroying NULL does nothing. Everything else stays with its owner:
 * the library keeps no pointer to keys, values, queries, outputs, cells, strings or structs that it
 * was given beyond the call.
 * - What can fail returns a tactic_code; TACTIC_OK is 0. On failure nothing has changed and nothing
 * was written through output arguments (a failed build or decode: see there). tactic_last_error()
 * then says in one sentence which argument was wrong, its value and what was expected.
 * - Nothing throws. NULL where a pointer is needed is an error, not a crash. A handle that was
 *   destroyed, or memory that is smaller than described, is undefined behaviour, as in all of C.
 * - Structs that may grow begin with struct_size, which the caller sets to sizeof the struct (the
 * _init functions do). Later versions append fields; a library given a smaller struct of an earlier
 * version uses defaults for the rest and writes no further than struct_size. tactic_shape,
 * tactic_rows and tactic_request do not grow within a major version.
 * - Different handles may be used from different threads at the same time. One handle must not be,
 *   except that any number of decoders may decode with the same index at once.
 */
#ifndef TACTIC_TACTIC_H_
#define TACTIC_TACTIC_H_

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define TACTIC_API __attribute__((visibility("default")))
#else
#define TACTIC_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

#define TACTIC_VERSION_MAJOR 0
#define TACTIC_VERSION_MINOR 1
#define TACTIC_VERSION_PATCH 0

/* "0.1.0": of the library that runs, where the macros are of the header that was compiled. */
TACTIC_API const char* tactic_version(void);

/* --- errors --------------------------------------------------------------------------------- */

typedef enum tactic_code {
  TACTIC_OK = 0,
  TACTIC_INVALID_ARGUMENT = 1, /* outside of what the documentation allows */
  TACTIC_OUT_OF_RANGE = 2,     /* a position or number outside of the sequence or step */
  TACTIC_UNSUPPORTED = 3,      /* valid, but not built or not available on this machine */
  TACTIC_NOT_FOUND = 4,
  TACTIC_RESOURCE_EXHAUSTED = 5, /* memory or threads */
  TACTIC_INTERNAL = 6            /* a bug of the library */
} tactic_code;

/* Message of the last call on this thread that failed; "" when none has. Valid until the next such
 * call on this thread. Never NULL. */
TACTIC_API const char* tactic_last_error(void);

/* --- instruction sets ------------------------------------------------------------------------- */

/* Name of the one in use, e.g. "avx2". The environment variable TACTIC_FORCE_ISA chooses at first
 * use; a bad value makes tactic_decode fail. */
TACTIC_API const char* tactic_isa_name(void);
/* Those this build and machine have, best first, separated by commas. */
TACTIC_API const char* tactic_supported_isas(void);
/* Chooses one by name. INVALID_ARGUMENT: unknown. UNSUPPORTED: not on this machine. Must not run at
 * the same time as anything else of the library. */
TACTIC_API tactic_code tactic_set_isa(const char* name);

/* --- shapes, rows, options ----------------------------------------------------------------------
 */

/* The sizes of one attention layer. */
typedef struct tactic_shape {
  int32_t q_heads;   /* a multiple of kv_heads, at most 32 times as many */
  int32_t kv_heads;  /* at least 1 */
  int32_t head_dim;  /* of queries and keys: a multiple of 8 from 8 to 512 */
  int32_t value_dim; /* of values and outputs: likewise */
} tactic_shape;

/* Element types of rows; q8_0 and q4_0 are ggml's blocks of 32 and need dims that are multiples. */
enum { TACTIC_F32 = 0, TACTIC_F16 = 1, TACTIC_BF16 = 2, TACTIC_Q8_0 = 3, TACTIC_Q4_0 = 4 };

/* Bytes of a row of n elements; 0 if the type is unknown or cannot hold n. */
TACTIC_API size_t tactic_row_bytes(int32_t type, size_t n);

/* Where the keys or values of a layer lie: the row of KV head h in cell c begins at
 * data + c * row_stride + h * head_stride (bytes) and is contiguous. */
typedef struct tactic_rows {
  const void* data;
  int32_t type;
  size_t row_stride;
  size_t head_stride;
} tactic_rows;

enum { TACTIC_DENSE = 0, TACTIC_PAPER = 1, TACTIC_TACTIC = 2 };
enum { TACTIC_CLUSTERS = 0, TACTIC_PAGES = 1 };

/* Parameters of the algorithm: ranges, defaults and their reasons are in tactic/options.h. */
typedef struct tactic_options {
  size_t struct_size;
  int32_t mode; /* TACTIC_DENSE, TACTIC_PAPER or TACTIC_TACTIC */
  double target;
  int32_t cluster_size;
  int32_t kmeans_iterations;
  int32_t segment_size;
  int32_t update_interval;
  uint64_t seed;
  int32_t sinks;
  int32_t recent;
  int32_t index; /* TACTIC_CLUSTERS or TACTIC_PAGES */
  int32_t bits;
  double bits_error;
  double skip_share;
  double skip_token;
  double unread_margin;
  double skipped_margin;
  int32_t rounds;
  int32_t tail; /* 0 or 1 */
  double dense_share;
  double head_share;
  double near_window;
  double far_window;
  double window_share;
  int32_t dense_below;
} tactic_options;

/* Fills in the defaults of a mode. struct_size: sizeof(tactic_options). */
TACTIC_API tactic_code tactic_options_init(tactic_options* options, int32_t mode,
                                           size_t struct_size);
/* OK, or the first field that is out of its range. */
TACTIC_API tactic_code tactic_options_validate(const tactic_options* options);

/* --- index: the clustered keys of one sequence in one layer --------------------------------------
 */

typedef struct tactic_index tactic_index;
typedef struct tactic_decoder tactic_decoder;

/* An index of an empty sequence. */
TACTIC_API tactic_code tactic_index_create(const tactic_shape* shape, const tactic_options* options,
                                           tactic_index** index);
TACTIC_API void tactic_index_destroy(tactic_index* index);
/* A second sequence with the same history, which shares memory with the first. */
TACTIC_API tactic_code tactic_index_fork(const tactic_index* index, tactic_index** fork);

/* Number of positions; 0 for NULL. */
TACTIC_API int64_t tactic_index_size(const tactic_index* index);
/* Bytes the index holds; what forks share is counted for each. 0 for NULL. */
TACTIC_API size_t tactic_index_memory_bytes(const tactic_index* index);

/* Adds n >= 0 positions at the end. */
TACTIC_API tactic_code tactic_index_append(tactic_index* index, int64_t n);
/* Keeps the first n positions. OUT_OF_RANGE unless 0 <= n <= size. */
TACTIC_API tactic_code tactic_index_truncate(tactic_index* index, int64_t n);
/* Removes positions [begin, end); later ones move down. OUT_OF_RANGE unless
 * 0 <= begin <= end <= size. */
TACTIC_API tactic_code tactic_index_remove_range(tactic_index* index, int64_t begin, int64_t end);
/* The keys of positions [begin, end) were rewritten. OUT_OF_RANGE likewise. */
TACTIC_API tactic_code tactic_index_invalidate(tactic_index* index, int64_t begin, int64_t end);

/* Mean of |q * scale|^2 over the query heads of each KV head and some tokens of the model:
 * [kv_heads]. With bits = 0 it decides how many bits the codes of later builds get. */
TACTIC_API tactic_code tactic_index_set_query_norms(tactic_index* index, const float* mean_squares,
                                                    size_t kv_heads);

/* Clusters and codes the keys that are due, if any. values: NULL in mode paper. cells[p] is the
 * cell of position p, for all positions: num_cells >= size. Works on the threads of `threads`, or
 * on the calling one where that is NULL. INVALID_ARGUMENT; RESOURCE_EXHAUSTED: what was not
 * finished is read exactly until the next build.
 */
TACTIC_API tactic_code tactic_index_build(tactic_index* index, const tactic_rows* keys,
                                          const tactic_rows* values, const uint32_t* cells,
                                          size_t num_cells, tactic_decoder* threads);

/* --- decoding
 * ------------------------------------------------------------------------------------- */

typedef struct tactic_params {
  size_t struct_size;
  float scale;          /* logits are q . k * scale; above 0. Default 1 */
  float softcap;        /* above 0: logits become softcap * tanh(logit / softcap). Default 0 */
  int32_t measure_mass; /* not 0: also compute exact masses, which reads every key. Default 0 */
} tactic_params;

TACTIC_API tactic_code tactic_params_init(tactic_params* params, size_t struct_size);

/* One new token of one sequence. */
typedef struct tactic_request {
  const float* q; /* [q_heads][head_dim], q_stride floats from head to head */
  size_t q_stride;
  tactic_rows keys;
  tactic_rows values;
  const uint32_t* cells; /* [num_cells]: the cell of every visible position, in order */
  size_t num_cells;
  /* The index of the sequence, whose first num_cells positions are visible; NULL: dense. */
  const tactic_index* index;
  float* out; /* [q_heads][value_dim], out_stride floats from head to head */
  size_t out_stride;
} tactic_request;

/* Decodes on `threads` threads (the calling one and threads - 1 of its own), 1 to 1024, which sleep
 * between calls. Buffers grow to what the largest step needs and are kept. */
TACTIC_API tactic_code tactic_decoder_create(int32_t threads, tactic_decoder** decoder);
TACTIC_API void tactic_decoder_destroy(tactic_decoder* decoder);

/* Attention of one layer for num_requests new tokens: writes every request's out. INVALID_ARGUMENT
 * names the request and writes nothing; there is then nothing to report on. */
TACTIC_API tactic_code tactic_decode(tactic_decoder* decoder, const tactic_shape* shape,
                                     const tactic_options* options, const tactic_params* params,
                                     const tactic_request* requests, size_t num_requests);

/* What the last step cost, summed over its requests and KV heads. */
typedef struct tactic_stats {
  size_t struct_size; /* set by the caller */
  int64_t rows_read;
  int64_t rows_dense; /* what dense attention would read */
  int64_t bytes_read; /* keys and values attended, centroids, keys sampled */
  int64_t bytes_dense;
  int64_t bytes_clusters; /* of bytes_read: centroids and what else is stored per cluster */
  int64_t bytes_codes;    /* of bytes_read: codes of keys */
  int64_t bytes_rows;     /* of bytes_read: keys and values */
} tactic_stats;

/* What one query head did in the last step. */
typedef struct tactic_head_report {
  size_t struct_size; /* set by the caller */
  int64_t own_rows;   /* of its own selection */
  int64_t union_rows; /* that its group read */
  double own_mass;    /* exact softmax mass of its selection; -1 unless measured */
  double union_mass;  /* of what its group read; -1 unless measured */
  double p_hat;       /* mode tactic: mass its selection is believed to have; else -1 */
  double code_error;  /* mode tactic: predicted standard deviation of a code's logit */
  int32_t rounds;     /* mode tactic: times the selection was extended */
} tactic_head_report;

/* INVALID_ARGUMENT unless the last tactic_decode succeeded. */
TACTIC_API tactic_code tactic_decoder_stats(const tactic_decoder* decoder, tactic_stats* stats);
/* Likewise. OUT_OF_RANGE unless request and q_head are of that step. */
TACTIC_API tactic_code tactic_decoder_head_report(const tactic_decoder* decoder, size_t request,
                                                  int32_t q_head, tactic_head_report* report);

#ifdef __cplusplus
} /* extern "C" */
#endif

#endif /* TACTIC_TACTIC_H_ */
