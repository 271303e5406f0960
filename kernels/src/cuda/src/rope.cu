// Rotary position embedding (Su et al.: arXiv 2104.09864), half-split pairs. Bits of the CPU.

// cos[T, e/2] =, sin[T, e/2] = of position * theta^(-2i/e), made in f64. Made once per (T, e, theta).
// Grid ceil(T * e/2 / 128), block 128.
extern "C" __global__ void swl_rope_table(float *cos_out, float *sin_out, int tokens, int head_width, float theta) {
    int half = head_width / 2;
    u64 index = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= (u64)tokens * (u64)half) {
        return;
    }
    int pair = (int)(index % half);
    double position = (double)(index / half);
    double frequency = exp_f64(-ln_f64((double)theta) * (double)(2 * pair) / (double)head_width);
    double sine, cosine;
    sin_cos_f64(position * frequency, &sine, &cosine);
    cos_out[index] = (float)cosine;
    sin_out[index] = (float)sine;
}

// Rotates x[B*T, heads*e] in place; `sign` is 1 forward, -1 back. Grid ceil(B*T*heads*e/2 / 256), block 256.
extern "C" __global__ void swl_rope(
    float *x, const float *cos_table, const float *sin_table,
    int batch, int tokens, int heads, int head_width, float sign
) {
    int half = head_width / 2;
    u64 index = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= (u64)batch * tokens * heads * half) {
        return;
    }
    u64 head = index / half;
    int pair = (int)(index % half);
    u64 angle = head / heads % tokens * half + pair;
    float c = cos_table[angle];
    float s = sign * sin_table[angle];
    float *low = x + head * head_width + pair;
    float *high = low + half;
    float a = *low, b = *high;
    *low = a * c - b * s;
    *high = b * c + a * s;
}
