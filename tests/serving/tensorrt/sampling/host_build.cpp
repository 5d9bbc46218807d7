// serving/tensorrt/sampling/sampling.cu, built for the host, behind C functions for the tests.

#include "host_cuda.h"

#include "sampling.cu"

extern "C" {

void host_sample(int kind, const void *logits, int rows, int vocab, Parameters *parameters,
                 long long *tokens, long long *lengths, int blocks, int threads) {
    for (int at = 0; at < rows; ++at) {
        Workspace work = {};
        u64 skipped = static_cast<u64>(at) * vocab;
        launch(blocks, threads, [&] {
            Parameters *own = parameters + at;
            if (kind == 0)
                sample_float32(static_cast<const Float32 *>(logits) + skipped, vocab, own, &work,
                               tokens + at, lengths ? lengths + at : nullptr);
            else if (kind == 1)
                sample_float16(static_cast<const Float16 *>(logits) + skipped, vocab, own, &work,
                               tokens + at, lengths ? lengths + at : nullptr);
            else
                sample_bfloat16(static_cast<const BFloat16 *>(logits) + skipped, vocab, own, &work,
                                tokens + at, lengths ? lengths + at : nullptr);
        });
    }
}

void host_kept(const float *logits, int vocab, const Parameters *parameters, bool *kept, int blocks,
               int threads) {
    Workspace work = {};
    launch(blocks, threads, [&] {
        Row<Float32> row = {reinterpret_cast<const Float32 *>(logits), vocab, *parameters, work};
        Kept result = row.kept(value_of(row.maximum()));
        for (int id = row.first(); id < vocab; id += row.stride())
            kept[id] = result.has(row.score(id), id);
    });
}

void host_philox(u32 *counter, u64 key) { philox_4x32_10(counter, key); }

void host_exponential(float *values, int n) {
    for (int i = 0; i < n; ++i)
        values[i] = exponential(values[i]);
}

void host_logarithm_of_1_plus(float *values, int n) {
    for (int i = 0; i < n; ++i)
        values[i] = logarithm_of_1_plus(values[i]);
}

void host_values_of_float16(const Float16 *stored, float *values, int n) {
    for (int i = 0; i < n; ++i)
        values[i] = stored[i].value();
}

int host_workspace_bytes() { return sizeof(Workspace); }
int host_parameters_bytes() { return sizeof(Parameters); }
}
