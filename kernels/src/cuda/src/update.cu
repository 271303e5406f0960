// One Adam-family update in one pass; `Backend::adam_update` has the equations. Bits of the CPU.

// w[len], m[len], v[len] from g[len]. Grid ceil(len / 256), block 256.
extern "C" __global__ void swl_adam_update(
    float *w, float *m, float *v, const float *g, int len,
    float beta1, float beta2, float bias_correction2, float epsilon,
    float gradient_scale, float decay, float gradient_rate, float momentum_rate
) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < (u64)len) {
        float slope = g[i] * gradient_scale;
        float first = beta1 * m[i] + (1.0f - beta1) * slope;
        float second = beta2 * v[i] + (1.0f - beta2) * slope * slope;
        float denominator = sqrtf(second / bias_correction2) + epsilon;
        float move_by = gradient_rate * slope + momentum_rate * first;
        m[i] = first;
        v[i] = second;
        w[i] = (1.0f - decay) * w[i] - move_by / denominator;
    }
}
