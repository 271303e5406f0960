// Rotary position embedding (Su et al.: arXiv 2104.09864), half-split pairs. Bits of the CPU.

// Turns the pair (a, b) of a head by an angle with this cosine and sine; back with -s.
__device__ inline void rope_turn(float *low, float *high, float a, float b, float c, float s) {
    *low = a * c - b * s;
    *high = b * c + a * s;
}

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

// y = bf16(x[B*T, heads*e], every head rotated by its position).
// Grid ceil(B*T*heads*e/2 / 256), block 256.
extern "C" __global__ void swl_rope_to_bf16(
    u16 *y, const float *x, const float *cos_table, const float *sin_table,
    int batch, int tokens, int heads, int head_width
) {
    int half = head_width / 2;
    u64 index = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= (u64)batch * tokens * heads * half) {
        return;
    }
    u64 head = index / half;
    int pair = (int)(index % half);
    u64 angle = head / heads % tokens * half + pair;
    u64 at_low = head * head_width + pair, at_high = at_low + half;
    float low, high;
    rope_turn(&low, &high, x[at_low], x[at_high], cos_table[angle], sin_table[angle]);
    y[at_low] = f32_to_bf16(low);
    y[at_high] = f32_to_bf16(high);
}
