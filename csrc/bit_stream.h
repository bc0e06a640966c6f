// Exponential Golomb codes in a stream of bits, as sparse_delta.h describes them.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

namespace fgrpo {

inline constexpr unsigned kOrders = 16;

// Writes to memory that has room for 8 bytes more than what is put.
class BitWriter {
  public:
    explicit BitWriter(std::uint8_t* to) : to_(to) {}

    void put(std::uint16_t value, unsigned order) {
        const std::uint64_t shifted = value + (std::uint64_t{1} << order);
        const unsigned below = static_cast<unsigned>(std::bit_width(shifted)) - 1, zeros = below - order;
        const std::uint64_t code = (((shifted - (std::uint64_t{1} << below)) << 1) | 1) << zeros;
        pending_ |= code << filled_;  // at most 7 + 33 bits
        filled_ += zeros + 1 + below;
        std::memcpy(to_, &pending_, sizeof(pending_));
        to_ += filled_ / 8;
        pending_ >>= filled_ / 8 * 8;
        filled_ %= 8;
    }

    // The first byte that is not complete.
    std::uint8_t* at() const { return to_; }

    // The end of the stream, its last byte filled up with zeros.
    std::uint8_t* finish() const { return to_ + (filled_ != 0); }

  private:
    std::uint8_t* to_;
    std::uint64_t pending_ = 0;
    unsigned filled_ = 0;  // bits of pending_, below 8 between calls
};

// Reads a stream of `bytes` bytes after which 8 more may be read. Never moves beyond that, whatever the bits.
class BitReader {
  public:
    static constexpr std::uint64_t kNoCode = std::uint64_t{1} << 20;

    BitReader(const std::uint8_t* from, std::size_t bytes) : from_(from), end_(8 * bytes) {}

    // The next code's value; more than 0xffff where there is none.
    std::uint64_t take(unsigned order) {
        if (bit_ > end_) return kNoCode;
        std::uint64_t window;
        std::memcpy(&window, from_ + bit_ / 8, sizeof(window));
        const Code code(window >> bit_ % 8, order);
        bit_ += code.bits;
        return code.value;
    }

    // What two calls of take() return, in less time: both codes mostly lie in one word.
    std::pair<std::uint64_t, std::uint64_t> take_two(unsigned first_order, unsigned second_order) {
        if (bit_ > end_) return {kNoCode, kNoCode};
        std::uint64_t window;
        std::memcpy(&window, from_ + bit_ / 8, sizeof(window));
        window >>= bit_ % 8;
        const Code first(window, first_order);
        window >>= first.bits;
        const Code second(window, second_order);
        if (first.bits + second.bits > kWindow) {
            const std::uint64_t value = take(first_order);
            return {value, take(second_order)};
        }
        bit_ += first.bits + second.bits;
        return {first.value, second.value};
    }

    bool past_end() const { return bit_ > end_; }

    // Whether nothing is left but fewer than 8 bits of 0.
    bool at_end() const {
        if (bit_ > end_ || end_ - bit_ >= 8) return false;
        return bit_ == end_ || from_[bit_ / 8] >> bit_ % 8 == 0;
    }

  private:
    static constexpr unsigned kWindow = 57;  // bits that a word holds from any bit of its first byte on

    // The code at the low end of a window. A valid one has 16 zeros at most; after 20 a one is taken for granted,
    // which bounds the bits to 56 and makes a value of no less than 2^20 - 1.
    struct Code {
        Code(std::uint64_t window, unsigned order) {
            const unsigned zeros = static_cast<unsigned>(std::countr_zero(window | kNoCode));
            const unsigned below = zeros + order;
            const std::uint64_t one = std::uint64_t{1} << below;
            bits = zeros + 1 + below;
            value = (one | ((window >> (zeros + 1)) & (one - 1))) - (std::uint64_t{1} << order);
        }
        unsigned bits;
        std::uint64_t value;
    };

    const std::uint8_t* from_;
    std::size_t bit_ = 0, end_;
};

// How many bits codes take, estimated from how many there are of each width.
struct Estimate {
    unsigned order;
    std::size_t bits;
};

class Widths {
  public:
    void add(std::uint16_t value) { ++count_[std::bit_width(2u * value + 1u) - 1]; }  // 0 without a branch

    Estimate best_order() const {
        Estimate best{0, SIZE_MAX};
        for (unsigned order = 0; order < kOrders; ++order) {
            std::size_t bits = 0;
            for (unsigned width = 0; width <= 16; ++width) {
                // 2^order added: it may carry, which only shows in the estimate where it always does.
                const unsigned sum = width <= order ? order + 1 : width + (width == order + 1);
                bits += count_[width] * (2 * sum - 1 - order);
            }
            if (bits < best.bits) best = {order, bits};
        }
        return best;
    }

  private:
    std::uint32_t count_[17] = {};
};

}  // namespace fgrpo
