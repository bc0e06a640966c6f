// The format of sparse_delta.h once more, bit by bit, for the fuzz target to compare with. Hashes are left to
// the library.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>
#include <vector>

#include "sparse_delta.h"

namespace fgrpo::fuzz {

using Model = std::vector<bfloat16>;
using Bytes = std::span<const std::uint8_t>;

inline constexpr std::size_t kUpdateHeader = 32, kUpdatePadding = 8;

inline std::uint16_t word_at(Bytes bytes, std::size_t at) {
    return static_cast<std::uint16_t>(bytes[at] | bytes[at + 1] << 8);
}

// Exponential Golomb codes, from the low end of each byte.
class Bits {
  public:
    explicit Bits(Bytes bytes) : bytes_(bytes) {}

    // Nothing where the bits end or the value passes 16 bits.
    std::optional<std::uint32_t> code(unsigned order) {
        unsigned zeros = 0;
        for (std::optional<bool> bit = next(); !bit || !*bit; bit = next(), ++zeros) {
            if (!bit || zeros > 16) return std::nullopt;
        }
        std::uint64_t value = 0;
        for (unsigned i = 0; i < zeros + order; ++i) {
            const std::optional<bool> bit = next();
            if (!bit) return std::nullopt;
            value |= std::uint64_t{*bit} << i;
        }
        value += (std::uint64_t{1} << (zeros + order)) - (std::uint64_t{1} << order);
        if (value > 0xffff) return std::nullopt;
        return static_cast<std::uint32_t>(value);
    }

    // Whether only the rest of a byte is left, and 0.
    bool at_end() {
        if (8 * bytes_.size() - at_ >= 8) return false;
        while (at_ < 8 * bytes_.size()) {
            if (*next()) return false;
        }
        return true;
    }

  private:
    std::optional<bool> next() {
        if (at_ == 8 * bytes_.size()) return std::nullopt;
        const bool bit = bytes_[at_ / 8] >> at_ % 8 & 1;
        ++at_;
        return bit;
    }

    Bytes bytes_;
    std::size_t at_ = 0;
};

inline bfloat16 moved(bfloat16 value, std::uint32_t step) {
    const auto pattern = static_cast<std::uint16_t>(value);
    const int place = pattern & 0x8000 ? 0xffff - pattern : pattern + 0x8000;
    const int distance = static_cast<int>(step / 2 + 1) * (step % 2 ? -1 : 1);
    const int target = (place + distance) & 0xffff;
    return bfloat16{static_cast<std::uint16_t>(target & 0x8000 ? target - 0x8000 : 0xffff - target)};
}

// Changes the values as one block's bytes say; false where these are not well formed.
inline bool follow_block(Bytes block, std::span<bfloat16> values) {
    const std::size_t N = values.size();
    if (block[0] == 2) {
        if (block.size() != 1 + 2 * N) return false;
        for (std::size_t i = 0; i < N; ++i) values[i] = bfloat16{word_at(block, 1 + 2 * i)};
        return true;
    }
    if (block[0] > 2 || block.size() < 2) return false;
    const unsigned gap_order = block[1] & 15u, step_order = block[1] >> 4;
    if (block[0] == 0) {
        if (block.size() < 4) return false;
        Bits bits(block.subspan(4));
        std::size_t at = 0;
        for (std::size_t left = word_at(block, 2) + std::size_t{1}; left > 0; --left, ++at) {
            const auto gap = bits.code(gap_order);
            if (!gap || at + *gap >= N) return false;
            const auto step = bits.code(step_order);
            if (!step) return false;
            at += *gap;
            values[at] = moved(values[at], *step);
        }
        return bits.at_end();
    }
    const std::size_t map = (N + 7) / 8;
    if (block.size() < 2 + map || gap_order != 0) return false;
    Bits bits(block.subspan(2 + map));
    for (std::size_t i = 0; i < 8 * map; ++i) {
        if (!(block[2 + i / 8] >> i % 8 & 1)) continue;
        if (i >= N) return false;
        const auto step = bits.code(step_order);
        if (!step) return false;
        values[i] = moved(values[i], *step);
    }
    return bits.at_end();
}

// What an update makes of the base; nothing where it is not well formed.
inline std::optional<Model> followed(Bytes update, const Model& base) {
    constexpr std::uint8_t kStart[] = {'F', 'G', 'S', 'U', 1, 0, 0, 0};
    const std::size_t size = base.size(), blocks = (size + kUpdateBlock - 1) / kUpdateBlock;
    std::size_t at = kUpdateHeader + 2 * blocks;
    if (update.size() < at + kUpdatePadding ||
        !std::equal(std::begin(kStart), std::end(kStart), update.begin()))
        return std::nullopt;
    std::uint64_t declared;
    std::memcpy(&declared, &update[8], sizeof(declared));
    if (declared != size) return std::nullopt;
    Model result = base;
    for (std::size_t block = 0; block < blocks; ++block) {
        const std::size_t length = word_at(update, kUpdateHeader + 2 * block), first = block * kUpdateBlock;
        if (update.size() - at < length + kUpdatePadding) return std::nullopt;
        const std::size_t N = std::min(kUpdateBlock, size - first);
        if (length && !follow_block(update.subspan(at, length), std::span(result).subspan(first, N)))
            return std::nullopt;
        at += length;
    }
    const Bytes rest = update.subspan(at);
    if (rest.size() != kUpdatePadding || std::count(rest.begin(), rest.end(), 0) != kUpdatePadding)
        return std::nullopt;
    return result;
}

}  // namespace fgrpo::fuzz
