// The gated unit of the feed-forward layer: silu(gate) * up (Shazeer: arXiv 2002.05202). Bits of the CPU.

// h[len] = silu(gate[len]) * up[len]. Grid ceil(len / 256), block 256.
extern "C" __global__ void swl_swiglu(float *h, const float *gate, const float *up, int len) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < (u64)len) {
        h[i] = gate[i] * sigmoid_f32(gate[i]) * up[i];
    }
}

// dgate[len] =, dup[len] =. Grid ceil(len / 256), block 256.
extern "C" __global__ void swl_swiglu_backward(
    float *dgate, float *dup, const float *dh, const float *gate, const float *up, int len
) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < (u64)len) {
        float g = gate[i];
        float slope = dh[i];
        float s = sigmoid_f32(g);
        float du = slope * g * s;
        dgate[i] = slope * up[i] * s * (1.0f + g * (1.0f - s));
        dup[i] = du;
    }
}
