// Reductions in one fixed order.
//
// A long sum is kept in 16 interleaved parts (part i has the terms i, i + 16, ...) that a fixed tree adds up: the
// order of the CPU. Half a warp holds the parts.

#define SWL_LANES 16

// Adds up the parts of a half-warp; all 16 lanes get the sum. All 32 lanes of the warp must call it.
__device__ inline float lanes_sum(float part) {
    for (int half = SWL_LANES / 2; half > 0; half /= 2) {
        part += __shfl_xor_sync(SWL_ALL_LANES, part, half);
    }
    return part;
}

// The largest number of a block, for all its threads. `scratch` has one number per warp; NaN loses.
__device__ inline float block_max(float x, float *scratch) {
    for (int half = 16; half > 0; half /= 2) {
        float other = __shfl_xor_sync(SWL_ALL_LANES, x, half);
        x = other > x ? other : x;
    }
    __syncthreads();
    if (threadIdx.x % 32 == 0) {
        scratch[threadIdx.x / 32] = x;
    }
    __syncthreads();
    x = scratch[0];
    for (int warp = 1; warp < (int)(blockDim.x / 32); ++warp) {
        x = scratch[warp] > x ? scratch[warp] : x;
    }
    return x;
}
