// What surrounds the function on_tile of a block: XLA calls `run` with the arrays of one or more
// parameters, and it calls on_tile for each tile, on the threads of XLA.

#include <math.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "xla/ffi/api/c_api.h"

#define ALIGNED __attribute__((aligned(64)))

static inline float float_of_bits(uint32_t x) {
  union { uint32_t bits; float value; } same = {.bits = x};
  return same.value;
}

static inline uint32_t bits_of_float(float x) {
  union { float value; uint32_t bits; } same = {.value = x};
  return same.bits;
}

// bfloat16 is the upper half of a float.
static inline float widened(uint16_t x) { return float_of_bits((uint32_t)x << 16); }
static inline uint16_t upper_half(float x) { return bits_of_float(x) >> 16; }

// The nearest bfloat16 of a float; of two, the even one.
static inline float rounded(float x) {
  uint32_t bits = bits_of_float(x);
  uint32_t nearest = (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff0000;
  return float_of_bits(x != x ? bits | 0x400000 : nearest);
}

// The maximum of the first n values, or NaN if one is NaN; there is memory for `all` values.
#define LARGEST(type)                                                \
  static inline type largest_##type(const type* x, int n, int all) { \
    type best = x[0];                                                \
    int is_nan = 0;                                                  \
    _Pragma("omp simd reduction(max : best) reduction(| : is_nan)")  \
    for (int i = 0; i < all; i++) {                                  \
      type value = i < n ? x[i] : x[0];                              \
      best = value > best ? value : best;                            \
      is_nan |= value != value;                                      \
    }                                                                \
    return is_nan ? (type)NAN : best;                                \
  }
LARGEST(float)
LARGEST(double)
LARGEST(int8_t)
LARGEST(uint8_t)
LARGEST(int32_t)
LARGEST(uint32_t)

// ON_TILE

enum { ARRAYS = @ARRAYS@, NUMBERS = @NUMBERS@, RESULTS = @RESULTS@, TILE = @TILE@ };
enum { CHUNK = 16 * TILE };  // elements that a thread takes at a time

static const int array_bytes[] = {@ARRAY_BYTES@};   // of each array, for one tile
static const int number_bytes[] = {@NUMBER_BYTES@};  // of each number
static const int result_bytes[] = {@RESULT_BYTES@};  // of each result, for one tile
enum { SCALARS = @SCALARS@ };  // the place among the results of the scalars of each tile, or -1

// Successive elements of one parameter, or of one member of a batch of them.
typedef struct {
  const void* in[ARRAYS];
  void* out[RESULTS];
  const void* number[NUMBERS];
  int64_t start, end;
} Chunk;

// Chunks that threads share. A thread that starts late finds none, and only releases the job.
typedef struct {
  atomic_long next, finished, holders;
  long count;
  Chunk chunks[];
} Job;

static void run_chunk(const Chunk* chunk) {
  for (int64_t start = chunk->start; start < chunk->end; start += TILE) {
    int64_t left = chunk->end - start;
    on_tile(left < TILE ? (int)left : TILE, start, chunk->in, chunk->out, chunk->number);
  }
}

static void take_chunks(Job* job) {
  long i;
  while ((i = atomic_fetch_add(&job->next, 1)) < job->count) {
    run_chunk(&job->chunks[i]);
    atomic_fetch_add(&job->finished, 1);
  }
}

static void release(Job* job) {
  if (atomic_fetch_sub(&job->holders, 1) == 1) free(job);
}

static void help(void* data) {
  take_chunks(data);
  release(data);
}

static int64_t elements(const XLA_FFI_Buffer* x) {
  int64_t n = 1;
  for (int64_t i = 0; i < x->rank; i++) n *= x->dims[i];
  return n;
}

// The bytes of a result for a parameter of n elements.
static int64_t bytes_of_result(int i, int64_t n) {
  return i == SCALARS ? (n + TILE - 1) / TILE * result_bytes[i] : n * result_bytes[i] / TILE;
}

static void call_threads(XLA_FFI_CallFrame* frame, Job* job) {
  int64_t threads = 1;
  XLA_FFI_ThreadPool_NumThreads_Args asked = {
      .struct_size = sizeof asked, .ctx = frame->ctx, .num_threads = &threads};
  XLA_FFI_Error* error = frame->api->XLA_FFI_ThreadPool_NumThreads(&asked);
  for (long i = 1; !error && i < threads && i < job->count; i++) {
    atomic_fetch_add(&job->holders, 1);
    XLA_FFI_ThreadPool_Schedule_Args task = {
        .struct_size = sizeof task, .ctx = frame->ctx, .task = help, .data = job};
    error = frame->api->XLA_FFI_ThreadPool_Schedule(&task);
    if (error) release(job);
  }
  if (error) {  // no threads: this one takes all chunks
    XLA_FFI_Error_Destroy_Args destroyed = {.struct_size = sizeof destroyed, .error = error};
    frame->api->XLA_FFI_Error_Destroy(&destroyed);
  }
}

// The arguments are the arrays of every parameter, and then the numbers of every parameter, or once
// those that are the same for all. A batch of parameters has as many elements of each number as it
// has members.
XLA_FFI_Error* run(XLA_FFI_CallFrame* frame) {
  __typeof__(frame->extension_start) extension = frame->extension_start;  // its type has had two names
  if (extension && extension->type == XLA_FFI_Extension_Metadata) {
    XLA_FFI_Metadata* metadata = ((XLA_FFI_Metadata_Extension*)extension)->metadata;
    metadata->api_version.major_version = XLA_FFI_API_MAJOR;
    metadata->api_version.minor_version = XLA_FFI_API_MINOR;
    return NULL;
  }
  if (frame->stage != XLA_FFI_ExecutionStage_EXECUTE) return NULL;
  XLA_FFI_Buffer** in = (XLA_FFI_Buffer**)frame->args.args;
  XLA_FFI_Buffer** out = (XLA_FFI_Buffer**)frame->rets.rets;
  int64_t parameters = frame->rets.size / RESULTS;
  XLA_FFI_Buffer** numbers = in + parameters * ARRAYS;
  int64_t own = frame->args.size == parameters * ARRAYS + NUMBERS ? 0 : NUMBERS;

  long count = 0;
  for (int64_t p = 0; p < parameters; p++) {
    int64_t all = elements(in[p * ARRAYS]), members = elements(numbers[p * own]);
    count += members * ((all / (members ? members : 1) + CHUNK - 1) / CHUNK);
  }
  Job* job = malloc(sizeof(Job) + count * sizeof(Chunk));
  if (!job) {
    XLA_FFI_Error_Create_Args create = {.struct_size = sizeof create,
                                        .message = "no memory for a list of tiles",
                                        .errc = XLA_FFI_Error_Code_RESOURCE_EXHAUSTED};
    return frame->api->XLA_FFI_Error_Create(&create);
  }
  job->next = job->finished = 0;
  job->holders = 1;
  job->count = count;

  Chunk* chunk = job->chunks;
  for (int64_t p = 0; p < parameters; p++) {
    int64_t members = elements(numbers[p * own]);
    int64_t each = members ? elements(in[p * ARRAYS]) / members : 0;
    for (int64_t b = 0; b < members; b++) {
      for (int64_t start = 0; start < each; start += CHUNK, chunk++) {
        for (int i = 0; i < ARRAYS; i++)
          chunk->in[i] = (char*)in[p * ARRAYS + i]->data + b * (each * array_bytes[i] / TILE);
        for (int i = 0; i < RESULTS; i++)
          chunk->out[i] = (char*)out[p * RESULTS + i]->data + b * bytes_of_result(i, each);
        for (int i = 0; i < NUMBERS; i++)
          chunk->number[i] = (char*)numbers[p * own + i]->data + b * number_bytes[i];
        chunk->start = start;
        chunk->end = start + CHUNK < each ? start + CHUNK : each;
      }
    }
  }
  if (count > 1) call_threads(frame, job);
  take_chunks(job);
  while (atomic_load(&job->finished) < count) sched_yield();
  release(job);
  return NULL;
}
