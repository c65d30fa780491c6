// The XPU library's C interface: what csrc/torch calls for an operator, and what Python calls to build kernels.
// No SYCL type and no torch type crosses it, and no exception: a function that can fail returns 0 for success and
// writes the reason into `message` (of `message_size` bytes) otherwise. Queues are sycl::queue*, owned by the caller.
#pragma once

#include <stddef.h>
#include <stdint.h>

#if defined(__GNUC__)
#define BNB_EXPORT extern "C" __attribute__((visibility("default")))
#endif

enum BnbDtype { BNB_FLOAT16 = 0, BNB_BFLOAT16 = 1, BNB_FLOAT32 = 2 };
enum BnbDataType { BNB_GENERAL8BIT = 0, BNB_FP4 = 1, BNB_NF4 = 2 };

// Statistics of quantised blocks. absmax_8bit is null, or the statistics are themselves quantised in blocks of 256.
struct BnbStatistics {
  const float* absmax;
  const uint8_t* absmax_8bit;
  const float* absmax_code;    // 256 entries
  const float* absmax_offset;  // 1 entry
};

// ---- operators ------------------------------------------------------------------------------------------------------
// out[i] = code[A[i]] * absmax[i / blocksize] for i < n; `code` (256 entries) is read for BNB_GENERAL8BIT alone.
BNB_EXPORT int cdequantize_blockwise(int dtype, int data_type, const float* code, const uint8_t* A, const float* absmax, void* out,
                                     int64_t blocksize, int64_t n, void* queue, char* message, size_t message_size);

// absmax[b] = the largest magnitude of block b, out = the codes of A[i] / absmax[i / blocksize] for i < n, in
// ceil(n / 2) bytes for 4-bit types; `code` (256 entries) is read for BNB_GENERAL8BIT alone. blocksize is any positive
// number, for 4-bit types a power of two from 32 to 4096.
BNB_EXPORT int cquantize_blockwise(int dtype, int data_type, const float* code, const void* A, float* absmax, uint8_t* out,
                                   int64_t blocksize, int64_t n, void* queue, char* message, size_t message_size);

// out[m, n] = A[m, k] B[n, k]^T (+ bias[n]). `datatype` is a table of 16 on the device, or null for that of data_type.
BNB_EXPORT int cgemv_4bit_inference(int dtype, int64_t m, int64_t n, int64_t k, const void* A, const uint8_t* B,
                                    const BnbStatistics* statistics, const float* datatype, int data_type, void* out, int64_t lda,
                                    int64_t ldb, int64_t ldc, int64_t blocksize, const void* bias, void* queue, char* message,
                                    size_t message_size);

// The same, with B read once for several rows of A. `scratch` is null, or memory of the device: as many bytes as
// cgemm_4bit_scratch says, aligned to 64.
BNB_EXPORT int cgemm_4bit_inference(int dtype, int64_t m, int64_t n, int64_t k, const void* A, const uint8_t* B,
                                    const BnbStatistics* statistics, const float* datatype, int data_type, void* out, int64_t lda,
                                    int64_t ldb, int64_t ldc, int64_t blocksize, const void* bias, void* scratch, void* queue,
                                    char* message, size_t message_size);
BNB_EXPORT int64_t cgemm_4bit_scratch(int64_t m, int64_t k, void* queue);
// Up to so many rows of A cgemm_4bit_inference is the way to go; for more, dequantise and multiply.
BNB_EXPORT int64_t cgemm_4bit_max_rows(int dtype, void* queue);
// XPU alone: so many bytes of them at a time.
BNB_EXPORT int64_t cgemm_4bit_panel_bytes(void* queue);

// CPU alone: out[m, k] = A[m, n] B[n, k], the gradient of the product's A.
BNB_EXPORT int cgemm_4bit_transposed(int dtype, int64_t m, int64_t n, int64_t k, const void* A, const uint8_t* B,
                                     const BnbStatistics* statistics, int data_type, void* out, int64_t lda, int64_t ldb,
                                     int64_t ldc, int64_t blocksize, void* queue, char* message, size_t message_size);

// row_stats[r] = max |A[r, c]|; out = A * 127 / row_stats, rounded. `outliers`: null for no threshold, or a byte for each
// column, zero before; then magnitudes from threshold (> 0) on count for nothing, become 0 and set their column's byte.
BNB_EXPORT int cint8_vector_quant(int dtype, const void* A, int8_t* out, float* row_stats, uint8_t* outliers, float threshold,
                                  int64_t rows, int64_t cols, void* queue, char* message, size_t message_size);

// out[:, columns[i]] = 0 for i < n.
BNB_EXPORT int cint8_zero_columns(int8_t* out, const int64_t* columns, int64_t n, int64_t rows, int64_t cols, void* queue,
                                  char* message, size_t message_size);

// col_stats[c] = max |A[r, c]|; out = A * 127 / col_stats, rounded; magnitudes from a threshold > 0 on count for nothing
// and become 0. `scratch` holds ceil(rows / height) * cols values; it may be null if height >= rows.
BNB_EXPORT int cint8_column_quant(int dtype, const void* A, int8_t* out, float* col_stats, float* scratch, float threshold,
                                  int64_t rows, int64_t cols, int64_t height, void* queue, char* message, size_t message_size);

// out[r, c] = A[r, c] * stats[r * stride] / 127; `dtype` is out's.
BNB_EXPORT int cint8_vector_dequant(int dtype, const int8_t* A, const float* stats, void* out, int64_t stride, int64_t rows,
                                    int64_t cols, void* queue, char* message, size_t message_size);

// out = A * row_stats * col_stats / 127² + bias + addend; `dtype` is out's and that of addend, a matrix; bias (of bias_dtype,
// a value a column) and addend may be null.
BNB_EXPORT int cdequant_mm_int32(int dtype, const int32_t* A, const float* row_stats, const float* col_stats, void* out,
                                 const void* bias, int bias_dtype, const void* addend, int64_t rows, int64_t cols, void* queue,
                                 char* message, size_t message_size);

// Up to so many rows m are for the two functions that follow, more for torch's own product; 0 where none are.
BNB_EXPORT int64_t cint8_few_rows(void* queue);

// out[m, n] = A[m, k] B[n, k]^T, exact.
BNB_EXPORT int cint8_linear_matmul(const int8_t* A, const int8_t* B, int32_t* out, int64_t m, int64_t n, int64_t k, void* queue,
                                   char* message, size_t message_size);

// cdequant_mm_int32 of that product, its addend outliers[m, n_columns] times B's columns of these numbers scaled
// back to dtype (cint8_vector_dequant). `dtype` is out's and outliers'; bias may be null, and the last two if n_columns is 0.
BNB_EXPORT int cint8_scaled_mm(int dtype, const int8_t* A, const int8_t* B, const float* row_stats, const float* col_stats,
                               void* out, const void* bias, int bias_dtype, const void* outliers, const int64_t* columns,
                               int64_t n_columns, int64_t m, int64_t n, int64_t k, void* queue, char* message, size_t message_size);

// For XPUs of which cint8_few_rows is not 0: that addend alone, out[m, n], of `dtype` like the outliers.
BNB_EXPORT int cint8_outlier_product(int dtype, const void* outliers, const int8_t* B, const int64_t* columns, int64_t n_columns,
                                     const float* col_stats, void* out, int64_t m, int64_t n, int64_t k, void* queue, char* message,
                                     size_t message_size);

// LAMB is ADAM and LARS is MOMENTUM, with max_unorm.
enum BnbOptimizer { BNB_ADAM = 0, BNB_MOMENTUM = 1, BNB_RMSPROP = 2, BNB_ADAGRAD = 4, BNB_LION = 5, BNB_ADEMAMIX = 6 };

struct BnbOptimizerStep {
  float beta1, beta2, beta3, alpha, eps, weight_decay, lr, gnorm_scale;
  float max_unorm, param_norm;  // 32-bit states alone
  int32_t step;                 // from 1
  int32_t skip_zeros;           // elements whose gradient is 0 stay as they are
};

// One step with 32-bit states, in place, n elements. state2 is ADAM's and ADEMAMIX's; ADEMAMIX's state1 has two rows
// of n. With max_unorm, unorm[0] becomes the square of the update's norm, and `scratch` is BNB_UNORM_SCRATCH floats.
enum { BNB_UNORM_SCRATCH = 2048 };
BNB_EXPORT int coptimizer32bit(int dtype, int optimizer, const void* g, void* p, float* state1, float* state2, float* unorm,
                               float* scratch, const BnbOptimizerStep* step, int64_t n, void* queue, char* message,
                               size_t message_size);

// The same with 8-bit states in blocks of 256, and the maps (256 increasing values) and absmax (one for each block; of
// ADEMAMIX's state1 two rows) that go with them.
BNB_EXPORT int coptimizer_static_8bit_blockwise(int dtype, int optimizer, void* p, const void* g, uint8_t* state1, uint8_t* state2,
                                                const float* quantiles1, const float* quantiles2, float* absmax1, float* absmax2,
                                                const BnbOptimizerStep* step, int64_t n, void* queue, char* message,
                                                size_t message_size);

// ---- memory shared by host and device: paged optimizer states ------------------------------------------------------
// *shared = 1 if the queue's device can use the memory at `pointer`, which the host can too.
BNB_EXPORT int cis_shared(const void* pointer, int* shared, void* queue, char* message, size_t message_size);
// Memory for both, for the rest of the process; null, and a message, if there is none.
BNB_EXPORT void* bnb_xpu_malloc_shared(size_t bytes, void* queue, char* message, size_t message_size);
// A hint to bring the memory to the device.
BNB_EXPORT int bnb_xpu_prefetch(const void* pointer, size_t bytes, void* queue, char* message, size_t message_size);
// Fills with `count` items of 4 bytes or 1. Asynchronous.
BNB_EXPORT int bnb_xpu_fill(void* pointer, uint32_t value, size_t item_size, size_t count, void* queue, char* message,
                            size_t message_size);

// ---- kernels --------------------------------------------------------------------------------------------------------
// Called, with the runtime locked, when an operator needs a family of kernels that is not there yet. It must call
// bnb_xpu_load or bnb_xpu_compile for it. Without a builder, families are compiled and not kept.
typedef int (*BnbBuilder)(int device, const char* family, char* message, size_t message_size);
BNB_EXPORT void bnb_xpu_set_builder(BnbBuilder builder);

// The index of the queue's device in this process (also 0 or more for a device seen before), or -1.
BNB_EXPORT int bnb_xpu_open(void* queue, char* message, size_t message_size);
// "kind\nbackend\nname\nversion\ndriver" of an opened device; kind is cpu, gpu16, gpu32, xmx16 or mma32. Valid for the process'
// life.
BNB_EXPORT const char* bnb_xpu_describe(int device);
// Families of a kind, a line each: "family\tkernel\tkernel…". Valid for the process' life.
BNB_EXPORT const char* bnb_xpu_families(const char* kind);
// The SYCL source of a family, whole. Valid for the process' life; null if there is no such family.
BNB_EXPORT const char* bnb_xpu_source(const char* family);
// 1 if the family's kernels are ready on the device.
BNB_EXPORT int bnb_xpu_is_built(int device, const char* family);

// What a build leaves to be kept: machine code where the driver gives it (OpenCL), else SPIR-V.
enum BnbFormat { BNB_FORMAT_BEST = 0, BNB_FORMAT_SPIRV = 1 };
// Compile a family for a device from source and install it; *data (free with bnb_xpu_free) is what bnb_xpu_load takes.
BNB_EXPORT int bnb_xpu_compile(int device, const char* family, int format, char** data, size_t* size, char* message,
                               size_t message_size);
BNB_EXPORT int bnb_xpu_load(int device, const char* family, const char* data, size_t size, char* message, size_t message_size);
// SPIR-V of a family as compiled for another kind of device, for offline compilers; one module after another, each
// preceded by its size as 8 bytes, little-endian.
BNB_EXPORT int bnb_xpu_spirv(int device, const char* family, const char* kind, char** data, size_t* size, char* message,
                             size_t message_size);
BNB_EXPORT void bnb_xpu_free(char* data);

// ---- for tests and benchmarks ---------------------------------------------------------------------------------------
// Devices opened from now on count as this kind ("" ends that), so that GPU kernels can be run on a CPU device.
BNB_EXPORT int bnb_xpu_force_kind(const char* kind, char* message, size_t message_size);
// A queue on the first device that SYCL finds (in order, as torch's are), and its end.
BNB_EXPORT void* bnb_xpu_new_queue(char* message, size_t message_size);
BNB_EXPORT int bnb_xpu_wait(void* queue, char* message, size_t message_size);
BNB_EXPORT void bnb_xpu_delete_queue(void* queue);
