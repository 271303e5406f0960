// Softmax cross-entropy, fused with its gradient. Bits of the CPU.

// losses[N] = -ln softmax(logits)[target]; logits[N,V] <- scale (softmax(logits) - onehot(target)), in place.
// Grid N, block 256.
extern "C" __global__ void swl_cross_entropy(
    float *losses, float *logits, const u32 *targets, int vocab, float scale
) {
    __shared__ float scratch[8];
    __shared__ float total;
    float *row = logits + (u64)blockIdx.x * vocab;
    u32 target = targets[blockIdx.x];
    float top = -__uint_as_float(0x7F800000u);
    for (int c = threadIdx.x; c < vocab; c += blockDim.x) {
        top = row[c] > top ? row[c] : top;
    }
    top = block_max(top, scratch);
    float below = top - row[target];
    __syncthreads();
    for (int c = threadIdx.x; c < vocab; c += blockDim.x) {
        row[c] = exp_f32(row[c] - top);
    }
    __syncthreads();
    if (threadIdx.x < 32) {
        float part = 0.0f;
        for (int c = threadIdx.x % SWL_LANES; c < vocab; c += SWL_LANES) {
            part += row[c];
        }
        part = lanes_sum(part);
        if (threadIdx.x == 0) {
            total = part;
        }
    }
    __syncthreads();
    float factor = scale / total;
    for (int c = threadIdx.x; c < vocab; c += blockDim.x) {
        float value = row[c] * factor;
        row[c] = c == (int)target ? value - scale : value;
    }
    if (threadIdx.x == 0) {
        losses[blockIdx.x] = (float)(ln_f64((double)total) + (double)below);
    }
}
