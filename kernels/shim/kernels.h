// The kernels by name, and how one is run over a grid.
#pragma once

#include "device.h"
#include "heap.h"

#include "kernels.inc"

#include <map>
#include <set>
#include <string>
#include <tuple>
#include <type_traits>

namespace shim {

// A kernel with its arguments.
struct Call {
    std::function<void()> body;
    std::vector<const void *> reads;
    std::vector<void *> writes;
};

template <typename T> void note(Call &call, T value) {
    if constexpr (std::is_pointer_v<T> && std::is_const_v<std::remove_pointer_t<T>>) {
        call.reads.push_back(value);
    } else if constexpr (std::is_pointer_v<T>) {
        call.writes.push_back(value);
    }
}

// Makes a call from the addresses of the arguments, and takes their values at once.
using Binder = std::function<Call(void **)>;

template <typename... P, size_t... I> Binder binder(void (*kernel)(P...), std::index_sequence<I...>) {
    return [kernel](void **addresses) {
        std::tuple<P...> values{*static_cast<P *>(addresses[I])...};
        Call call;
        (note(call, std::get<I>(values)), ...);
        call.body = [kernel, values] { std::apply(kernel, values); };
        return call;
    };
}

template <typename... P> Binder binder(void (*kernel)(P...)) {
    return binder(kernel, std::index_sequence_for<P...>{});
}

#define KERNEL(name) {#name, binder(name)},
inline const std::map<std::string, Binder> KERNELS = {
#include "names.inc"
};

struct Geometry {
    uint3 grid, block;
    unsigned dynamic_bytes;
};

[[noreturn]] inline void refuse(const std::string &kernel, const std::string &why) {
    std::fprintf(stderr, "%s: %s\n", kernel.c_str(), why.c_str());
    std::abort();
}

// Copies of the allocations a kernel was given.
using Copies = std::map<void *, std::vector<char>>;

template <typename Pointers> void copy_around(Copies &copies, const Heap &heap, const Pointers &pointers) {
    for (const void *pointer : pointers) {
        auto [first, size] = heap.around(pointer, 0);
        if (first != nullptr && copies.count(first) == 0) {
            const char *bytes = static_cast<const char *>(first);
            copies[first] = std::vector<char>(bytes, bytes + size);
        }
    }
}

inline bool differs(const Copies::value_type &copy) {
    return std::memcmp(copy.first, copy.second.data(), copy.second.size()) != 0;
}

inline void run(const std::string &kernel, const Call &call, const Geometry &how, Order order) {
    launch(kernel.c_str(), how.grid, how.block, how.dynamic_bytes, order, call.body);
}

// In both orders of blocks and threads: the results must agree, and inputs must stay as they are.
inline void run_twice(const std::string &kernel, const Call &call, const Geometry &how, const Heap &heap) {
    Copies before, inputs, after;
    copy_around(before, heap, call.writes);
    copy_around(inputs, heap, call.reads);
    run(kernel, call, how, Order::FirstToLast);
    for (const auto &input : inputs) {
        // One allocation may have an input beside an output.
        if (before.count(input.first) == 0 && differs(input)) {
            refuse(kernel, "wrote into an input");
        }
    }
    copy_around(after, heap, call.writes);
    for (const auto &[first, bytes] : before) {
        std::memcpy(first, bytes.data(), bytes.size());
    }
    run(kernel, call, how, Order::LastToFirst);
    for (const auto &copy : after) {
        if (differs(copy)) {
            refuse(kernel, "the result depends on the order of threads");
        }
    }
}

} // namespace shim
