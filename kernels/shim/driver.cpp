// Launches kernels on the CPU on behalf of the process at the other end of the standard streams.
//
// A request, little-endian: name (u32 length, bytes), grid and block (3 u32 each), dynamic shared bytes (u32), number
// of arguments (u32), then the arguments: a tag (u8) and a value. Tag 0 is a buffer (u32 length, bytes), 1 an i32, 2 an
// f32, 3 a u64. The answer: all buffers (bytes), as the kernel left them. A kernel runs in two orders of its threads,
// which must agree. Anything wrong ends the process with a message on standard error.

#include "device.h"

#include "kernels.inc"

#include <map>
#include <memory>
#include <string>
#include <tuple>

// The switch of stacks that this program does by hand.
extern "C" const char *__asan_default_options() { return "detect_stack_use_after_return=0:detect_leaks=0"; }

namespace {

enum Tag : unsigned char { BUFFER, INT, FLOAT, LONG };

struct Argument {
    Tag tag = INT;
    uint64_t bits = 0;
    std::vector<unsigned char> bytes;
};

struct Request {
    std::string kernel;
    uint3 grid, block;
    unsigned dynamic_bytes;
    std::vector<Argument> arguments;
};

[[noreturn]] void refuse(const std::string &why) {
    std::fprintf(stderr, "%s\n", why.c_str());
    std::exit(2);
}

void read_bytes(void *to, size_t count) {
    if (count > 0 && std::fread(to, 1, count, stdin) != count) {
        refuse("a request ends too early");
    }
}

template <typename T> T read_value() {
    T value;
    read_bytes(&value, sizeof(T));
    return value;
}

bool read_request(Request &request) {
    unsigned length;
    if (std::fread(&length, sizeof(length), 1, stdin) != 1) {
        return false;
    }
    request.kernel.resize(length);
    read_bytes(request.kernel.data(), length);
    request.grid = read_value<uint3>();
    request.block = read_value<uint3>();
    request.dynamic_bytes = read_value<unsigned>();
    request.arguments = std::vector<Argument>(read_value<unsigned>());
    for (Argument &argument : request.arguments) {
        argument.tag = read_value<Tag>();
        if (argument.tag == BUFFER) {
            argument.bytes.resize(read_value<unsigned>());
            read_bytes(argument.bytes.data(), argument.bytes.size());
        } else if (argument.tag == LONG) {
            argument.bits = read_value<uint64_t>();
        } else {
            argument.bits = read_value<unsigned>();
        }
    }
    return true;
}

void expect(const Request &request, size_t index, Tag tag) {
    if (request.arguments[index].tag != tag) {
        refuse(request.kernel + ": argument " + std::to_string(index) + " has the wrong kind");
    }
}

// The value of an argument as the type its parameter has.
template <typename T> struct As {
    static_assert(std::is_pointer_v<T>);
    static T of(Request &request, size_t index) {
        expect(request, index, BUFFER);
        return reinterpret_cast<T>(request.arguments[index].bytes.data());
    }
};
template <> struct As<int> {
    static int of(Request &request, size_t index) {
        expect(request, index, INT);
        return static_cast<int>(request.arguments[index].bits);
    }
};
template <> struct As<float> {
    static float of(Request &request, size_t index) {
        expect(request, index, FLOAT);
        return __uint_as_float(static_cast<unsigned>(request.arguments[index].bits));
    }
};
template <> struct As<u64> {
    static u64 of(Request &request, size_t index) {
        expect(request, index, LONG);
        return request.arguments[index].bits;
    }
};

using Launcher = std::function<void(Request &, shim::Order)>;

template <typename... P, size_t... I>
Launcher launcher(void (*kernel)(P...), std::index_sequence<I...>) {
    return [kernel](Request &request, shim::Order order) {
        if (request.arguments.size() != sizeof...(P)) {
            refuse(request.kernel + ": wrong number of arguments");
        }
        std::tuple<P...> values{As<P>::of(request, I)...};
        shim::launch(request.kernel.c_str(), request.grid, request.block, request.dynamic_bytes, order,
                     [&] { std::apply(kernel, values); });
    };
}

template <typename... P> Launcher launcher(void (*kernel)(P...)) {
    return launcher(kernel, std::index_sequence_for<P...>{});
}

#define KERNEL(name) {#name, launcher(name)},
const std::map<std::string, Launcher> LAUNCHERS = {
#include "names.inc"
};

} // namespace

int main() {
    Request request;
    while (read_request(request)) {
        auto launcher = LAUNCHERS.find(request.kernel);
        if (launcher == LAUNCHERS.end()) {
            refuse("no kernel " + request.kernel);
        }
        Request twin = request;
        launcher->second(request, shim::Order::FirstToLast);
        launcher->second(twin, shim::Order::LastToFirst);
        for (size_t i = 0; i < request.arguments.size(); ++i) {
            const Argument &argument = request.arguments[i];
            if (argument.bytes != twin.arguments[i].bytes) {
                refuse(request.kernel + ": argument " + std::to_string(i) + " depends on the order of threads");
            }
            if (!argument.bytes.empty()) {
                std::fwrite(argument.bytes.data(), 1, argument.bytes.size(), stdout);
            }
        }
        std::fflush(stdout);
    }
}
