#include <atomic>
#include <stdexcept>

#include "delta_codec.h"
#include "kernels.h"

namespace fgrpo {

extern const Kernels kernels_baseline;
#if defined(FGRPO_X86_64)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
extern const Kernels kernels_avx512_vnni;
#endif

namespace {

std::vector<const Kernels*> usable() {
    std::vector<const Kernels*> tables = {&kernels_baseline};
#if defined(FGRPO_X86_64)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) tables.push_back(&kernels_avx2);
    if (__builtin_cpu_supports("fma") && __builtin_cpu_supports("avx512f") &&
        __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl")) {
        tables.push_back(&kernels_avx512);
        if (__builtin_cpu_supports("avx512vnni")) tables.push_back(&kernels_avx512_vnni);
    }
#endif
    return tables;
}

std::atomic<const Kernels*>& in_use() {
    static std::atomic<const Kernels*> table = usable().back();
    return table;
}

}  // namespace

const Kernels& kernels() { return *in_use().load(std::memory_order_relaxed); }

std::vector<std::string> simd_levels() {
    std::vector<std::string> names;
    for (const Kernels* table : usable()) names.emplace_back(table->name);
    return names;
}

std::string use_simd(const std::string& name) {
    std::string known;
    for (const Kernels* table : usable()) {
        if (name == table->name) return in_use().exchange(table)->name;
        known += std::string(known.empty() ? "" : ", ") + table->name;
    }
    throw std::invalid_argument("use_simd: this machine has " + known + ", not '" + name + "'");
}

}  // namespace fgrpo
