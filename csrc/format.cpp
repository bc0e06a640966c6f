#include "format.h"

#include <bit>
#include <charconv>
#include <limits>

#include "kernels.h"

namespace fgrpo {

static_assert(std::endian::native == std::endian::little, "payloads are little-endian");

namespace {

constexpr std::string_view kCodecs[] = {"int8", "int4", "int2", "bf16", "none"};
constexpr std::string_view kRoundings[] = {"nearest", "stochastic"};
constexpr std::string_view kScalings[] = {"absmax", "mse"};

template <std::size_t count>
std::size_t index_of(const char* kind, const std::string_view (&names)[count], std::string_view name) {
    std::string known;
    for (std::size_t i = 0; i < count; ++i) {
        if (names[i] == name) return i;
        known += std::string(i ? ", " : "") + std::string(names[i]);
    }
    throw std::invalid_argument("unknown " + std::string(kind) + " '" + std::string(name) +
                                "'; known: " + known);
}

}  // namespace

Codec codec_named(std::string_view name) { return static_cast<Codec>(index_of("codec", kCodecs, name)); }

Rounding rounding_named(std::string_view name) {
    return static_cast<Rounding>(index_of("rounding", kRoundings, name));
}

Scaling scaling_named(std::string_view name) {
    return static_cast<Scaling>(index_of("scale", kScalings, name));
}

std::size_t code_bytes(Format format, std::size_t size) {
    require_format("code_bytes", format);
    if (size > std::numeric_limits<std::size_t>::max() / 8) {
        throw std::invalid_argument("code_bytes: " + std::to_string(size) +
                                    " values are more than memory can hold");
    }
    if (!has_scales(format.codec)) return size * (code_bits(format.codec) / 8);  // in bits it could overflow
    return code_offset(format, blocks_of(format, size) * format.block);
}

std::size_t scale_count(Format format, std::size_t size) {
    require_format("scale_count", format);
    if (!has_scales(format.codec)) return 0;
    return size / format.block + (size % format.block != 0);
}

int code_at(const Payload& payload, std::size_t index) {
    const std::size_t block = payload.format.block, bits = code_bits(payload.format.codec);
    const std::size_t bytes = block * bits / 8;
    const std::size_t within = index % block;
    const unsigned byte = payload.codes[index / block * bytes + within % bytes];
    const std::size_t slot = within / bytes;
    return static_cast<int>(byte << (32 - bits - slot * bits)) >> (32 - bits);
}

int largest_code(Codec codec) { return (1 << (code_bits(codec) - 1)) - 1; }

std::uint16_t largest_scale(Codec codec) {
    const float too_large = 0x1p127f / static_cast<float>((largest_code(codec) + 1) / 2);
    const auto bits = static_cast<std::uint16_t>(std::bit_cast<std::uint32_t>(too_large) >> 16);
    return codec == Codec::int2 ? bits : static_cast<std::uint16_t>(bits - 1);
}

std::string text(float value) {
    char characters[32];
    return std::string(characters, std::to_chars(characters, characters + sizeof(characters), value).ptr);
}

void require_format(const std::string& where, Format format) {
    if (!std::has_single_bit(format.block) || format.block < kSmallestBlock || format.block > kLargestBlock) {
        throw std::invalid_argument(where + ": block must be a power of two from 32 to 1024, got " +
                                    std::to_string(format.block));
    }
}

void require_lengths(const std::string& where, const Payload& payload) {
    require_format(where, payload.format);
    const std::size_t bytes = code_bytes(payload.format, payload.size);
    const std::size_t scales = scale_count(payload.format, payload.size);
    if (payload.codes.size() == bytes && payload.scales.size() == scales) return;
    throw std::invalid_argument(where + ": " + std::to_string(payload.size) + " values need " +
                                std::to_string(bytes) + " bytes of codes and " + std::to_string(scales) +
                                " scales, got " + std::to_string(payload.codes.size()) + " and " +
                                std::to_string(payload.scales.size()));
}

}  // namespace fgrpo
