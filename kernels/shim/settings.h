// Settings of the machine, from the environment.
#pragma once

#include <cstdlib>
#include <string>

namespace shim {

inline std::string text_of(const char *name) {
    const char *value = std::getenv(name);
    return value == nullptr ? "" : value;
}

inline size_t number_of(const char *name, size_t otherwise) {
    std::string text = text_of(name);
    return text.empty() ? otherwise : std::strtoull(text.c_str(), nullptr, 10);
}

struct Settings {
    // Bytes of the device.
    size_t memory = number_of("CUDA_ON_CPU_MEMORY", size_t(1) << 30);
    // The CUDA version of the driver: 1000 major + 10 minor.
    int driver = static_cast<int>(number_of("CUDA_ON_CPU_DRIVER", 12000));
    // Seed of the coin by which streams work.
    size_t seed = number_of("CUDA_ON_CPU_SEED", 1);
    // The device fails as soon as this file exists.
    std::string breaks_with = text_of("CUDA_ON_CPU_BREAKS_WITH");
    // A file that gets the name of every kernel when it is first launched.
    std::string launched = text_of("CUDA_ON_CPU_LAUNCHED");
    // Whether kernels run once more in the other order of blocks and threads, with the same results.
    bool both_orders = number_of("CUDA_ON_CPU_BOTH_ORDERS", 0) != 0;
};

} // namespace shim
