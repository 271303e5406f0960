// Rows of a table, gathered by token id and their gradients scattered back. Bits of the CPU.

// x[N,w] = (add == 0) or += (add == 1) table[ids[N]], table[V,w]. Grid ceil(N * w / 256), block 256.
extern "C" __global__ void swl_embedding(
    float *x, const u32 *ids, const float *table, int rows, int width, int add
) {
    u64 i = (u64)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < (u64)rows * (u64)width) {
        float value = table[(u64)ids[i / width] * width + i % width];
        x[i] = add ? x[i] + value : value;
    }
}

// dtable[V,w] += dx[N,w] where ids[N] says so, rows from the first to the last: one block per row of the table
// reads all ids and adds the gradients of its own. Grid V, block 128.
extern "C" __global__ void swl_embedding_backward(
    float *dtable, const float *dx, const u32 *ids, int rows, int width
) {
    u32 id = blockIdx.x;
    int lane = threadIdx.x % 32;
    float *out = dtable + (u64)id * width;
    for (int base = 0; base < rows; base += 32) {
        bool mine = base + lane < rows && ids[base + lane] == id;
        u32 found = __ballot_sync(SWL_ALL_LANES, mine);
        while (found != 0) {
            int row = base + __ffs((int)found) - 1;
            found &= found - 1;
            for (int c = threadIdx.x; c < width; c += blockDim.x) {
                out[c] += dx[at(row, c, width)];
            }
        }
    }
}
