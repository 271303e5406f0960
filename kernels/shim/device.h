// The part of the CUDA language the kernels use, for a C++ compiler and a CPU.
//
// A block runs as fibers, one per thread, each until it waits for others. Every wait has a place in the source.
// Threads that should meet but wait at different places, or have ended, are reported: on a GPU that is undefined.
// A warp runs as far ahead of the others as barriers let it. Blocks, warps and threads run first to last or last to
// first, as the caller says: a kernel that gives other bits in the other order misses a barrier. Dynamic shared memory
// is filled with NaN before each block.
//
// Not here: tensor cores, asynchronous copies, real concurrency.
#pragma once

#include "fiber.h"

#include <cmath>
#include <cstdio>
#include <cstring>
#include <functional>
#include <memory>
#include <vector>

struct uint3 {
    unsigned x, y, z;
};

namespace shim {

constexpr unsigned WARP = 32;
constexpr size_t STACK_BYTES = 128 << 10;

enum class Order { FirstToLast, LastToFirst };
enum class Wait { None, Warp, Block, Done };

struct Fiber {
    Context context;
    std::unique_ptr<char[]> stack{new char[STACK_BYTES]};
    uint3 index = {};
    unsigned linear = 0;
    Wait wait = Wait::None;
    const char *what = "";
    int line = 0;
    // Exchanges of this thread so far. Two slots suffice: no thread enters the exchange after the next before all have
    // left this one.
    unsigned exchanges = 0;
    uint64_t slots[2] = {};
};

struct Block {
    Context scheduler;
    // As many as the largest block had; this one has the first `threads`.
    std::vector<Fiber> fibers;
    unsigned threads = 0;
    Fiber *current = nullptr;
    const std::function<void()> *body = nullptr;
    uint3 block_index = {}, block_dim = {}, grid_dim = {};
    char *dynamic_shared = nullptr;
    const char *kernel = "";
};

inline Block block;

[[noreturn]] inline void fail(const char *why, const Fiber &a, const Fiber &b) {
    auto place = [](const Fiber &f) { return f.wait == Wait::Done ? "the end" : f.what; };
    std::fprintf(stderr, "%s: %s: thread %u at %s (line %d), thread %u at %s (line %d)\n", block.kernel, why,
                 a.linear, place(a), a.line, b.linear, place(b), b.line);
    std::abort();
}

inline void wait(Wait wait, const char *what, int line) {
    Fiber &me = *block.current;
    me.wait = wait;
    me.what = what;
    me.line = line;
    switch_to(me.context, block.scheduler);
}

inline void entry() {
    (*block.body)();
    wait(Wait::Done, "the end", 0);
    std::abort();
}

// Lets the fibers `first..end` go on if all wait for each other at one place.
inline bool release(unsigned first, unsigned end, Wait kind) {
    std::vector<Fiber> &fibers = block.fibers;
    unsigned waiting = 0;
    for (unsigned i = first; i < end; ++i) {
        waiting += fibers[i].wait == kind;
    }
    if (waiting != end - first) {
        return false;
    }
    for (unsigned i = first; i < end; ++i) {
        if (fibers[i].line != fibers[first].line || std::strcmp(fibers[i].what, fibers[first].what) != 0) {
            fail("threads wait for each other at different places", fibers[first], fibers[i]);
        }
    }
    for (unsigned i = first; i < end; ++i) {
        fibers[i].wait = Wait::None;
    }
    return true;
}

// Runs a warp until its threads wait for the block, or for each other in vain.
inline void run_warp(unsigned warp, Order order) {
    unsigned first = warp * WARP, end = first + WARP < block.threads ? first + WARP : block.threads;
    do {
        for (unsigned i = first; i < end; ++i) {
            Fiber &fiber = block.fibers[order == Order::FirstToLast ? i : first + end - 1 - i];
            if (fiber.wait == Wait::None) {
                block.current = &fiber;
                switch_to(block.scheduler, fiber.context);
            }
        }
    } while (release(first, end, Wait::Warp));
}

inline void run_block(Order order) {
    std::vector<Fiber> &fibers = block.fibers;
    unsigned count = block.threads;
    for (unsigned i = 0; i < count; ++i) {
        fibers[i].wait = Wait::None;
        fibers[i].context.prepare(fibers[i].stack.get(), STACK_BYTES, entry);
    }
    unsigned warps = (count + WARP - 1) / WARP;
    for (;;) {
        for (unsigned i = 0; i < warps; ++i) {
            run_warp(order == Order::FirstToLast ? i : warps - 1 - i, order);
        }
        if (release(0, count, Wait::Block)) {
            continue;
        }
        const Fiber *stuck = nullptr, *other = nullptr;
        for (unsigned i = 0; i < count; ++i) {
            if (fibers[i].wait != Wait::Done && stuck == nullptr) {
                stuck = &fibers[i];
            }
        }
        if (stuck == nullptr) {
            return;
        }
        for (unsigned i = 0; i < count; ++i) {
            if (fibers[i].wait != stuck->wait || fibers[i].line != stuck->line) {
                other = &fibers[i];
            }
        }
        fail("a thread waits for one that never comes", *stuck, other == nullptr ? *stuck : *other);
    }
}

// Runs `body` for every thread of the grid.
inline void launch(const char *kernel, uint3 grid, uint3 threads, size_t dynamic_bytes, Order order,
                   const std::function<void()> &body) {
    unsigned count = threads.x * threads.y * threads.z;
    block.kernel = kernel;
    block.body = &body;
    block.block_dim = threads;
    block.grid_dim = grid;
    block.threads = count;
    while (block.fibers.size() < count) {
        block.fibers.emplace_back();
    }
    for (unsigned i = 0; i < count; ++i) {
        block.fibers[i].linear = i;
        block.fibers[i].index = {i % threads.x, i / threads.x % threads.y, i / threads.x / threads.y};
    }
    unsigned blocks = grid.x * grid.y * grid.z;
    for (unsigned i = 0; i < blocks; ++i) {
        unsigned at = order == Order::FirstToLast ? i : blocks - 1 - i;
        block.block_index = {at % grid.x, at / grid.x % grid.y, at / grid.x / grid.y};
        block.dynamic_shared = static_cast<char *>(std::malloc(dynamic_bytes));
        if (dynamic_bytes > 0) {
            std::memset(block.dynamic_shared, 0xFF, dynamic_bytes);
        }
        run_block(order);
        std::free(block.dynamic_shared);
    }
}

// The value that lane `source(lane)` of this warp brought to this exchange.
template <typename T, typename F> T exchange(T value, const char *what, int line, unsigned width, F source) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    Fiber &me = *block.current;
    unsigned slot = me.exchanges++ % 2;
    std::memcpy(&me.slots[slot], &value, sizeof(T));
    wait(Wait::Warp, what, line);
    unsigned lane = me.linear % WARP, warp = me.linear - lane;
    unsigned from = source(lane);
    // A lane outside its section of `width` gets its own value, as on a GPU.
    if (from / width != lane / width) {
        from = lane;
    }
    if (warp + from >= block.threads) {
        fail("an exchange with a lane that does not exist", me, me);
    }
    T result;
    std::memcpy(&result, &block.fibers[warp + from].slots[slot], sizeof(T));
    return result;
}

inline unsigned ballot(bool mine, const char *what, int line) {
    Fiber &me = *block.current;
    unsigned slot = me.exchanges++ % 2;
    me.slots[slot] = mine;
    wait(Wait::Warp, what, line);
    unsigned warp = me.linear / WARP * WARP, bits = 0;
    for (unsigned lane = 0; lane < WARP && warp + lane < block.threads; ++lane) {
        bits |= static_cast<unsigned>(block.fibers[warp + lane].slots[slot]) << lane;
    }
    return bits;
}

inline unsigned whole_warp(unsigned mask, int line) {
    if (mask != 0xFFFFFFFFu) {
        std::fprintf(stderr, "%s: line %d: only exchanges of whole warps are known\n", block.kernel, line);
        std::abort();
    }
    return mask;
}

template <typename To, typename From> To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof(To));
    return to;
}

template <typename T> T *dynamic_shared() { return reinterpret_cast<T *>(block.dynamic_shared); }

} // namespace shim

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(...)
#define SWL_DYNAMIC_SHARED(type, name) type *name = shim::dynamic_shared<type>()

#define threadIdx (shim::block.current->index)
#define blockIdx (shim::block.block_index)
#define blockDim (shim::block.block_dim)
#define gridDim (shim::block.grid_dim)

#define __syncthreads() shim::wait(shim::Wait::Block, "__syncthreads", __LINE__)
#define __syncwarp() shim::wait(shim::Wait::Warp, "__syncwarp", __LINE__)
#define __ballot_sync(mask, mine) (shim::whole_warp(mask, __LINE__), shim::ballot(mine, "__ballot_sync", __LINE__))
#define __shfl_xor_sync(mask, value, other)                                                                            \
    (shim::whole_warp(mask, __LINE__), shim::exchange(value, "__shfl_xor_sync", __LINE__, shim::WARP,                  \
                                                      [&](unsigned lane) { return lane ^ unsigned(other); }))
#define __shfl_down_sync(mask, value, delta)                                                                           \
    (shim::whole_warp(mask, __LINE__), shim::exchange(value, "__shfl_down_sync", __LINE__, shim::WARP,                 \
                                                      [&](unsigned lane) { return lane + unsigned(delta); }))
#define SWL_SHFL(mask, value, source, width, ...)                                                                      \
    (shim::whole_warp(mask, __LINE__),                                                                                 \
     shim::exchange(value, "__shfl_sync", __LINE__, width, [&](unsigned lane) {                                        \
         return lane / (width) * (width) + unsigned(source) % (width);                                                 \
     }))
#define __shfl_sync(mask, value, ...) SWL_SHFL(mask, value, __VA_ARGS__, shim::WARP, )

inline unsigned __float_as_uint(float x) { return shim::bits_as<unsigned>(x); }
inline float __uint_as_float(unsigned x) { return shim::bits_as<float>(x); }
inline long long __double_as_longlong(double x) { return shim::bits_as<long long>(x); }
inline double __longlong_as_double(long long x) { return shim::bits_as<double>(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }

inline int atomicMin(int *at, int value) {
    int old = *at;
    *at = value < old ? value : old;
    return old;
}

inline float atomicAdd(float *at, float value) {
    float old = *at;
    *at = old + value;
    return old;
}
