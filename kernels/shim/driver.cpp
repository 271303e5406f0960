// The driver's interface, as far as swarmline calls it, on a machine without a GPU: a `libcuda.so` whose one device is
// the CPU. The kernels of every module are those compiled into this library from the same sources.
//
// The thread that waits for a task also runs it, under one lock. Arguments that a real driver refuses are refused.
// Races are found because streams work early or late by chance (`stream.h`) and kernels run in two orders
// (`kernels.h`). Not here: tensor cores (their scalar twins run), real concurrency, speed.

#include "kernels.h"
#include "settings.h"
#include "stream.h"

#include <cstdint>
#include <fstream>
#include <mutex>

namespace {

enum Result : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NOT_FOUND = 500,
    NOT_READY = 600,
    LAUNCH_FAILED = 719,
};

const std::map<int, std::pair<const char *, const char *>> MESSAGES = {
    {SUCCESS, {"CUDA_SUCCESS", "no error"}},
    {INVALID_VALUE, {"CUDA_ERROR_INVALID_VALUE", "invalid argument"}},
    {OUT_OF_MEMORY, {"CUDA_ERROR_OUT_OF_MEMORY", "out of memory"}},
    {NOT_INITIALIZED, {"CUDA_ERROR_NOT_INITIALIZED", "initialization error"}},
    {INVALID_DEVICE, {"CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"}},
    {INVALID_IMAGE, {"CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"}},
    {INVALID_CONTEXT, {"CUDA_ERROR_INVALID_CONTEXT", "invalid device context"}},
    {NOT_FOUND, {"CUDA_ERROR_NOT_FOUND", "named symbol not found"}},
    {NOT_READY, {"CUDA_ERROR_NOT_READY", "device not ready"}},
    {LAUNCH_FAILED, {"CUDA_ERROR_LAUNCH_FAILED", "unspecified launch failure"}},
};

// Shared memory of a block: without permission, and with it on the smallest device there is.
constexpr unsigned SHARED_FREE = 48 << 10, SHARED_MOST = 99 << 10;

struct Function {
    std::string name;
    shim::Binder bind;
    unsigned dynamic_most = SHARED_FREE;
};

struct Module {
    // Empty for machine code, which is not read.
    std::string ptx;
    std::map<std::string, Function> functions;

    bool has(const std::string &kernel) const {
        return ptx.empty() || ptx.find(".entry " + kernel + "(") != std::string::npos;
    }
};

using StreamHandle = std::shared_ptr<shim::Stream>;

struct Machine {
    const shim::Settings settings;
    shim::Heap memory{settings.memory};
    // Of the host, within reach of the device.
    shim::Heap pinned{SIZE_MAX};
    shim::Coin coin{settings.seed};
    std::set<StreamHandle *> streams;
    std::set<std::string> launched;
    bool initialized = false, broken = false;
    std::mutex lock;

    // The result of an asynchronous call: a failure of the device shows at every call after it.
    Result state() {
        if (!settings.breaks_with.empty() && std::ifstream(settings.breaks_with).good()) {
            broken = true;
        }
        return broken ? LAUNCH_FAILED : SUCCESS;
    }

    void note_launch(const std::string &kernel) {
        if (!settings.launched.empty() && launched.insert(kernel).second) {
            std::ofstream(settings.launched, std::ios::app) << kernel + "\n";
        }
    }

    bool has(const void *at, size_t bytes) const { return memory.around(at, bytes).first != nullptr; }
};

// Never destroyed: the host may still free its last buffers while the process ends.
Machine &machine() {
    static Machine &machine = *new Machine;
    return machine;
}

thread_local void *current_context = nullptr;
int the_context;

shim::Stream &stream_of(void *handle) { return **static_cast<StreamHandle *>(handle); }

bool known(void *handle) { return machine().streams.count(static_cast<StreamHandle *>(handle)) > 0; }

// Ends a program after a mistake that no status of the driver reports.
[[noreturn]] void misused(const char *call, const char *how) {
    std::fprintf(stderr, "%s: %s\n", call, how);
    std::abort();
}

// A call that needs a device in working order.
template <typename Work> int with_device(Work work) {
    std::lock_guard guard(machine().lock);
    if (!machine().initialized) {
        return NOT_INITIALIZED;
    }
    if (Result state = machine().state()) {
        return state;
    }
    return work();
}

// Likewise, within a stream of the context that the thread has bound.
template <typename Work> int in_stream(void *stream, Work work) {
    return with_device([&]() -> int {
        if (current_context != &the_context) {
            return INVALID_CONTEXT;
        }
        return known(stream) ? work(stream_of(stream)) : INVALID_VALUE;
    });
}

void *as_pointer(uint64_t address) { return reinterpret_cast<void *>(address); }

} // namespace

extern "C" {

int cuInit(unsigned) {
    machine().initialized = true;
    return SUCCESS;
}

int cuDriverGetVersion(int *version) {
    *version = machine().settings.driver;
    return SUCCESS;
}

int cuGetErrorName(int code, const char **name) {
    auto found = MESSAGES.find(code);
    *name = found == MESSAGES.end() ? nullptr : found->second.first;
    return found == MESSAGES.end() ? INVALID_VALUE : SUCCESS;
}

int cuGetErrorString(int code, const char **text) {
    auto found = MESSAGES.find(code);
    *text = found == MESSAGES.end() ? nullptr : found->second.second;
    return found == MESSAGES.end() ? INVALID_VALUE : SUCCESS;
}

int cuDeviceGetCount(int *count) {
    *count = 1;
    return machine().initialized ? SUCCESS : NOT_INITIALIZED;
}

int cuDeviceGet(int *device, int ordinal) {
    *device = 0;
    return ordinal == 0 ? SUCCESS : INVALID_DEVICE;
}

int cuDeviceGetName(char *name, int length, int) {
    std::snprintf(name, length, "CPU in place of a GPU");
    return SUCCESS;
}

int cuDeviceGetAttribute(int *value, int attribute, int) {
    const std::map<int, int> values = {{75, 8}, {76, 0}, {115, 1}}; // capability 8.0, memory pools
    auto found = values.find(attribute);
    *value = found == values.end() ? 0 : found->second;
    return found == values.end() ? INVALID_VALUE : SUCCESS;
}

int cuDeviceTotalMem_v2(size_t *bytes, int) {
    *bytes = machine().memory.capacity;
    return SUCCESS;
}

int cuDeviceGetMemPool(void **pool, int) {
    *pool = &machine().memory;
    return SUCCESS;
}

int cuMemPoolSetAttribute(void *, int, void *) { return SUCCESS; }

int cuDevicePrimaryCtxRetain(void **context, int) {
    *context = &the_context;
    return machine().state();
}

int cuDevicePrimaryCtxRelease_v2(int) { return SUCCESS; }

int cuCtxGetCurrent(void **context) {
    *context = current_context;
    return SUCCESS;
}

int cuCtxSetCurrent(void *context) {
    current_context = context;
    return SUCCESS;
}

int cuStreamCreate(void **stream, unsigned) {
    return with_device([&] {
        auto *made = new StreamHandle(std::make_shared<shim::Stream>(machine().coin));
        machine().streams.insert(made);
        *stream = made;
        return SUCCESS;
    });
}

int cuStreamDestroy_v2(void *stream) {
    std::lock_guard guard(machine().lock);
    if (!known(stream)) {
        return INVALID_VALUE;
    }
    stream_of(stream).run();
    machine().streams.erase(static_cast<StreamHandle *>(stream));
    delete static_cast<StreamHandle *>(stream);
    return SUCCESS;
}

int cuStreamSynchronize(void *stream) {
    return in_stream(stream, [](shim::Stream &on) {
        on.run();
        return machine().state();
    });
}

int cuStreamWaitEvent(void *stream, void *event, unsigned) {
    return in_stream(stream, [&](shim::Stream &on) {
        on.ask([awaited = *static_cast<shim::Event *>(event)] { awaited.reach(); });
        return SUCCESS;
    });
}

int cuEventCreate(void **event, unsigned) {
    *event = new shim::Event;
    return SUCCESS;
}

int cuEventDestroy_v2(void *event) {
    delete static_cast<shim::Event *>(event);
    return SUCCESS;
}

int cuEventRecord(void *event, void *stream) {
    return in_stream(stream, [&](shim::Stream &on) {
        *static_cast<shim::Event *>(event) = {*static_cast<StreamHandle *>(stream), on.end()};
        return SUCCESS;
    });
}

int cuEventQuery(void *event) {
    return with_device([&] { return static_cast<shim::Event *>(event)->reached() ? SUCCESS : NOT_READY; });
}

int cuEventSynchronize(void *event) {
    return with_device([&] {
        static_cast<shim::Event *>(event)->reach();
        return machine().state();
    });
}

int cuMemGetInfo_v2(size_t *free, size_t *total) {
    std::lock_guard guard(machine().lock);
    *free = machine().memory.free();
    *total = machine().memory.capacity;
    return SUCCESS;
}

int cuMemAllocAsync(uint64_t *address, size_t bytes, void *stream) {
    return in_stream(stream, [&](shim::Stream &on) -> int {
        if (bytes == 0) {
            return INVALID_VALUE;
        }
        if (bytes > machine().memory.free()) {
            // Memory that was freed in this stream before is free again.
            on.run();
        }
        void *at = machine().memory.allocate(bytes);
        if (at == nullptr) {
            return OUT_OF_MEMORY;
        }
        // Poisoned until the stream comes here, then full of NaN.
        ASAN_POISON_MEMORY_REGION(at, bytes);
        on.ask([=] {
            ASAN_UNPOISON_MEMORY_REGION(at, bytes);
            std::memset(at, 0xFF, bytes);
        });
        *address = reinterpret_cast<uint64_t>(at);
        return SUCCESS;
    });
}

int cuMemFreeAsync(uint64_t address, void *stream) {
    std::lock_guard guard(machine().lock);
    if (!known(stream)) {
        misused("cuMemFreeAsync", "no such stream");
    }
    if (!machine().memory.begins(as_pointer(address))) {
        misused("cuMemFreeAsync", "no allocation begins there");
    }
    stream_of(stream).ask([=] { machine().memory.release(as_pointer(address)); });
    return machine().state();
}

int cuMemsetD8Async(uint64_t address, unsigned char value, size_t bytes, void *stream) {
    return in_stream(stream, [&](shim::Stream &on) -> int {
        if (!machine().has(as_pointer(address), bytes)) {
            return INVALID_VALUE;
        }
        on.ask([=] { std::memset(as_pointer(address), value, bytes); });
        return SUCCESS;
    });
}

int cuMemcpyHtoDAsync_v2(uint64_t address, const void *from, size_t bytes, void *stream) {
    return in_stream(stream, [&](shim::Stream &on) -> int {
        void *to = as_pointer(address);
        if (!machine().has(to, bytes)) {
            return INVALID_VALUE;
        }
        if (machine().pinned.around(from, bytes).first != nullptr) {
            on.ask([=] { std::memcpy(to, from, bytes); });
        } else {
            // The driver stages memory that it cannot reach later.
            const char *first = static_cast<const char *>(from);
            on.ask([=, staged = std::vector<char>(first, first + bytes)] { std::memcpy(to, staged.data(), bytes); });
        }
        return SUCCESS;
    });
}

int cuMemcpyDtoHAsync_v2(void *to, uint64_t address, size_t bytes, void *stream) {
    return in_stream(stream, [&](shim::Stream &on) -> int {
        const void *from = as_pointer(address);
        if (!machine().has(from, bytes)) {
            return INVALID_VALUE;
        }
        on.ask([=] { std::memcpy(to, from, bytes); });
        if (machine().pinned.around(to, bytes).first == nullptr) {
            on.run();
        }
        return machine().state();
    });
}

int cuMemHostAlloc(void **at, size_t bytes, unsigned) {
    return with_device([&] {
        *at = machine().pinned.allocate(bytes);
        return SUCCESS;
    });
}

int cuMemFreeHost(void *at) {
    std::lock_guard guard(machine().lock);
    if (!machine().pinned.begins(at)) {
        misused("cuMemFreeHost", "no allocation begins there");
    }
    // A driver need not wait for the device first, so this one does not.
    machine().pinned.release(at);
    return SUCCESS;
}

int cuModuleLoadData(void **module, const void *image) {
    return with_device([&]() -> int {
        bool machine_code = std::memcmp(image, "\x7f" "ELF", 4) == 0;
        std::string ptx = machine_code ? "" : static_cast<const char *>(image);
        if (!machine_code && ptx.find(".version") == std::string::npos) {
            return INVALID_IMAGE;
        }
        *module = new Module{std::move(ptx), {}};
        return SUCCESS;
    });
}

int cuModuleUnload(void *module) {
    delete static_cast<Module *>(module);
    return SUCCESS;
}

int cuModuleGetFunction(void **function, void *handle, const char *name) {
    Module &module = *static_cast<Module *>(handle);
    auto found = shim::KERNELS.find(name);
    if (found == shim::KERNELS.end() || !module.has(name)) {
        return NOT_FOUND;
    }
    *function = &module.functions.try_emplace(name, Function{name, found->second}).first->second;
    return SUCCESS;
}

int cuFuncSetAttribute(void *function, int attribute, int value) {
    constexpr int MAX_DYNAMIC_SHARED_SIZE_BYTES = 8;
    if (attribute != MAX_DYNAMIC_SHARED_SIZE_BYTES || value < 0 || unsigned(value) > SHARED_MOST) {
        return INVALID_VALUE;
    }
    static_cast<Function *>(function)->dynamic_most = value;
    return SUCCESS;
}

int cuLaunchKernel(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z, unsigned block_x,
                   unsigned block_y, unsigned block_z, unsigned dynamic_bytes, void *stream, void **arguments,
                   void **) {
    return in_stream(stream, [&](shim::Stream &on) -> int {
        const Function &kernel = *static_cast<Function *>(function);
        uint64_t threads = uint64_t(block_x) * block_y * block_z;
        uint64_t blocks = uint64_t(grid_x) * grid_y * grid_z;
        if (threads == 0 || threads > 1024 || blocks == 0 || grid_y > 65535 || grid_z > 65535 ||
            dynamic_bytes > kernel.dynamic_most) {
            return INVALID_VALUE;
        }
        machine().note_launch(kernel.name);
        shim::Geometry how{{grid_x, grid_y, grid_z}, {block_x, block_y, block_z}, dynamic_bytes};
        on.ask([name = kernel.name, call = kernel.bind(arguments), how] {
            if (machine().state() != SUCCESS) {
                return;
            }
            if (machine().settings.both_orders) {
                shim::run_twice(name, call, how, machine().memory);
            } else {
                shim::run(name, call, how, shim::Order::FirstToLast);
            }
        });
        return SUCCESS;
    });
}

} // extern "C"
