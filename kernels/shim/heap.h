// Memory of the device and memory of the host that the device may reach: each allocation is one of the C heap, so the
// address sanitizer sees every access outside.
#pragma once

#include <cstdlib>
#include <cstring>
#include <map>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, bytes) ((void)(at), (void)(bytes))
#define ASAN_UNPOISON_MEMORY_REGION(at, bytes) ((void)(at), (void)(bytes))
#endif

namespace shim {

class Heap {
  public:
    explicit Heap(size_t capacity) : capacity(capacity) {}

    // Null if it is full.
    void *allocate(size_t bytes) {
        if (bytes > free()) {
            return nullptr;
        }
        void *at = std::malloc(bytes);
        sizes[at] = bytes;
        used += bytes;
        return at;
    }

    void release(void *at) {
        used -= sizes.at(at);
        sizes.erase(at);
        std::free(at);
    }

    size_t free() const { return capacity - used; }

    // First byte and length of the allocation that has `bytes` from `at` on; null and 0 if none has.
    std::pair<void *, size_t> around(const void *at, size_t bytes) const {
        auto next = sizes.upper_bound(const_cast<void *>(at));
        if (next == sizes.begin()) {
            return {nullptr, 0};
        }
        auto [first, size] = *--next;
        size_t offset = static_cast<const char *>(at) - static_cast<char *>(first);
        return offset + bytes <= size ? std::pair{first, size} : std::pair<void *, size_t>{nullptr, 0};
    }

    bool begins(const void *at) const { return sizes.count(const_cast<void *>(at)) > 0; }

    const size_t capacity;

  private:
    std::map<void *, size_t> sizes;
    size_t used = 0;
};

} // namespace shim
