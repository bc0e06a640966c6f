// What the fuzz targets share: an input as an endless stream of values, and the assertion that ends a run.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <stdexcept>
#include <string>
#include <vector>

#include "delta_codec.h"

namespace fgrpo::fuzz {

// Always on, whatever NDEBUG says: what it states is what the fuzzer looks for.
#define VERIFY(condition)                                                                \
    do {                                                                                 \
        if (!(condition)) {                                                              \
            std::fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #condition); \
            std::abort();                                                                \
        }                                                                                \
    } while (false)

// Read again from its beginning when it ends, so that few bytes can describe a large case.
class Input {
  public:
    Input(const std::uint8_t* bytes, std::size_t count) : bytes_(bytes, count) {}

    template <typename T>
    T take() {
        T value{};
        fill(reinterpret_cast<std::uint8_t*>(&value), sizeof(T));
        return value;
    }

    // From 0 to `most`, which is at most 255.
    std::size_t up_to(std::size_t most) { return next() % (most + 1); }

    bool flag() { return next() & 1; }

    template <typename T, std::size_t count>
    T one_of(const T (&choices)[count]) {
        return choices[up_to(count - 1)];
    }

    // Mostly a few blocks, now and then more than one tile of kernels.h.
    std::size_t size() {
        const bool large = up_to(63) == 63;
        return take<std::uint16_t>() % (large ? 5000 : 150);
    }

    template <typename T>
    std::vector<T> values(std::size_t count) {
        std::vector<T> values(count);
        fill(reinterpret_cast<std::uint8_t*>(values.data()), sizeof(T) * count);
        return values;
    }

  private:
    std::uint8_t next() {
        if (bytes_.empty()) return 0;
        const std::uint8_t byte = bytes_[at_];
        if (++at_ == bytes_.size()) at_ = 0;
        return byte;
    }

    void fill(std::uint8_t* to, std::size_t count) {
        while (count && !bytes_.empty()) {
            const std::size_t part = std::min(count, bytes_.size() - at_);
            std::memcpy(to, bytes_.data() + at_, part);
            to += part, count -= part, at_ += part;
            if (at_ == bytes_.size()) at_ = 0;
        }
    }

    std::span<const std::uint8_t> bytes_;
    std::size_t at_ = 0;
};

// Whether a call is refused as the caller's mistake. Any other exception ends the run.
template <typename Function>
bool refused(const Function& function) {
    try {
        function();
    } catch (const std::invalid_argument&) {
        return true;
    }
    return false;
}

// Makes later calls use an instruction set that the input chooses, from the worst to the best here.
inline void choose_simd(Input& input) {
    static const std::vector<std::string> levels = simd_levels();
    use_simd(levels[input.up_to(levels.size() - 1)]);
}

inline int threads_from(Input& input) { return static_cast<int>(input.up_to(4)); }

}  // namespace fgrpo::fuzz
