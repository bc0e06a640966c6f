// libFuzzer target for delta_codec.h: declared sizes, encoding of arbitrary floats, shared memory. Buffers have
// exactly the size of the contract, so that AddressSanitizer sees the first byte beyond. Compared with
// specification.h and between instruction sets and thread counts.
#include <algorithm>
#include <array>
#include <limits>

#include "formats.h"
#include "input.h"
#include "specification.h"

using namespace fgrpo;
using namespace fgrpo::fuzz;

namespace {

constexpr std::size_t kBlocks[] = {32, 64, 128, 256, 512, 1024};
constexpr Rounding kRoundings[] = {Rounding::nearest, Rounding::nearest, Rounding::stochastic};
constexpr Scaling kScalings[] = {Scaling::absmax, Scaling::mse};

// ---- sizes ----

void try_sizes(Input& input) {
    const std::size_t shift = input.up_to(63);
    const std::size_t size = input.take<std::uint64_t>() >> shift;
    const Format format{input.one_of(kCodecs),
                        input.flag() ? input.one_of(kBlocks) : std::size_t{input.take<std::uint16_t>()}};
    const bool block_known =
        std::find(std::begin(kBlocks), std::end(kBlocks), format.block) != std::end(kBlocks);

    std::size_t bytes = 0, scales = 0;
    const bool no_bytes = refused([&] { bytes = code_bytes(format, size); });
    const bool no_scales = refused([&] { scales = scale_count(format, size); });
    VERIFY(no_scales == !block_known);
    VERIFY(no_bytes == (!block_known || size > std::numeric_limits<std::size_t>::max() / 8));
    if (!no_bytes) {
        using Wide = unsigned __int128;
        const Wide blocks = (Wide{size} + format.block - 1) / format.block;
        VERIFY(scales == (quantises(format.codec) ? blocks : 0));
        const Wide padded = quantises(format.codec) ? blocks * format.block : Wide{size};
        const Wide bits = padded * bits_of(format.codec);
        VERIFY(bytes == bits / 8);
    }

    // Declared sizes that the bytes do not bear out.
    const std::vector<std::uint8_t> codes(input.up_to(255));
    const std::vector<bfloat16> few_scales(input.up_to(7));
    const Payload payload{format, size, codes, few_scales};
    if (!no_bytes && bytes == codes.size() && scales == few_scales.size()) return;
    std::array<float, 16> out;
    out.fill(2.0f);
    const std::span<float> some = std::span(out).first(input.up_to(16));
    const float weight = 1.0f;
    const std::size_t function = input.up_to(2);
    VERIFY(refused([&] {
        if (function == 0) check(payload);
        if (function == 1) decode(payload, some);
        if (function == 2) aggregate({&payload, 1}, {&weight, 1}, some);
    }));
    VERIFY(std::count(out.begin(), out.end(), 2.0f) == 16);
}

// ---- encode ----

// Floats of any bits; or without NaN, Inf and the largest; or of magnitudes that lie together, as real ones do.
class Floats {
  public:
    explicit Floats(Input& input) : kind_(input.up_to(2)), exponent_(input.take<std::uint8_t>()) {}

    std::vector<float> take(Input& input, std::size_t size) const {
        std::vector<float> values = input.values<float>(size);
        for (float& value : values) {
            std::uint32_t bits = bits_of(value);
            if (kind_ == 1) bits &= 0xbfffffffu;
            if (kind_ == 2) bits = (bits & 0x807fffffu) | std::uint32_t{exponent_} << 23;
            value = std::bit_cast<float>(bits);
        }
        return values;
    }

  private:
    std::size_t kind_;
    std::uint8_t exponent_;
};

// Parameters in one of the two dtypes.
struct Parameters {
    Parameters(Input& input, std::size_t size)
        : is_float(input.flag()), wide(Floats(input).take(input, size)) {
        if (is_float) return;
        narrow.resize(size);
        for (std::size_t i = 0; i < size; ++i) {
            narrow[i] = bfloat16{static_cast<std::uint16_t>(bits_of(wide[i]) >> 16)};
            wide[i] = widen(narrow[i]);
        }
    }
    Values values() const { return is_float ? Values(std::span(wide)) : Values(std::span(narrow)); }
    float operator[](std::size_t i) const { return wide[i]; }

    bool is_float;
    std::vector<float> wide;
    std::vector<bfloat16> narrow;
};

struct How {
    Rounding rounding;
    Scaling scaling;
};

// That `scale` suits a block of this largest magnitude.
void verify_scale_by_absmax(Codec codec, float scale, double peak) {
    const double ideal = peak / largest_code_of(codec);
    VERIFY(!std::signbit(scale));
    if (scale == 0.0f) {
        VERIFY(ideal < 0x1p-126 * (1 + 0x1p-20));
    } else {
        VERIFY(scale >= ideal * (1 - 0x1p-20) && scale <= ideal * (1 + 0x1p-7) * (1 + 0x1p-20));
    }
}

// That no other candidate is better by more than float32 can tell.
void verify_scale_by_mse(Codec codec, float scale, float peak, std::span<const float> delta) {
    const std::span<const float> candidates = peak_codes(codec);
    if (scale == 0.0f) {
        VERIFY(peak / *std::max_element(candidates.begin(), candidates.end()) < 0x1p-126f);
        return;
    }
    const bool upwards = std::find(delta.begin(), delta.end(), peak) != delta.end();
    VERIFY(upwards || !std::signbit(scale));
    const double error = squared_error(delta, scale, codec), unit = peak / candidates[0];
    const double noise = 0x1p-20 * unit * unit * static_cast<double>(delta.size());
    for (const float candidate : candidates) {
        const double other = widen(nearest(peak / candidate)) * (upwards ? -1.0 : 1.0);
        VERIFY(error <= squared_error(delta, other, codec) * (1 + 0x1p-8) + noise);
    }
}

void verify_bf16(Rounding rounding, float delta, float value) {
    if (rounding == Rounding::nearest) {
        VERIFY(same(value, widen(nearest(delta))));
    } else {
        const bool exact = delta == widen(inner(delta));
        VERIFY(same(value, widen(inner(delta))) || (!exact && same(value, widen(outer(delta)))));
    }
}

// That a payload is what encode() should make of `delta`, and `residual`, where there is one, what is left.
void verify_encoded(const Payload& payload, How how, const std::vector<float>& delta,
                    const std::vector<float>& residual) {
    check(payload);
    std::vector<float> out(delta.size());
    decode(payload, out);
    for (std::size_t i = 0; i < residual.size(); ++i) VERIFY(same(residual[i], delta[i] - out[i]));
    const Codec codec = payload.format.codec;
    if (!quantises(codec)) {
        for (std::size_t i = 0; i < delta.size(); ++i) {
            if (codec == Codec::none) VERIFY(same(out[i], delta[i]));
            if (codec == Codec::bf16) verify_bf16(how.rounding, delta[i], out[i]);
        }
        return;
    }
    const std::vector<float> codes = unpacked(payload);
    const std::size_t block = payload.format.block;
    const double highest = largest_code_of(codec), lowest = -highest - (how.scaling == Scaling::mse);
    for (std::size_t first = 0; first < delta.size(); first += block) {
        const std::size_t end = std::min(first + block, delta.size());
        const float scale = widen(payload.scales[first / block]);
        float peak = 0;
        for (std::size_t i = first; i < end; ++i) peak = std::max(peak, std::abs(delta[i]));
        if (how.scaling == Scaling::absmax) verify_scale_by_absmax(codec, scale, peak);
        if (how.scaling == Scaling::mse)
            verify_scale_by_mse(codec, scale, peak, std::span(delta).subspan(first, end - first));
        for (std::size_t i = first; i < end; ++i) {
            VERIFY(scale != 0 || codes[i] == 0);
            if (scale == 0) continue;
            const double ideal = std::clamp(double{delta[i]} / scale, lowest, highest);
            VERIFY(codes[i] >= lowest);
            VERIFY(std::abs(codes[i] - ideal) <= (how.rounding == Rounding::nearest ? 0.5 : 1.0) + 0x1p-14);
        }
    }
}

// What encode() writes to, poisoned.
struct Outputs {
    Outputs(Format format, std::size_t size, const std::vector<float>& residual)
        : codes(code_bytes(format, size), 0x80),
          scales(scale_count(format, size), bfloat16{0x7fc0}),
          residual(residual) {}

    std::vector<std::uint8_t> codes;
    std::vector<bfloat16> scales;
    std::vector<float> residual;
};

void try_encode(Input& input) {
    const Format format = format_from(input);
    const How how{input.one_of(kRoundings), input.one_of(kScalings)};
    const bool wrong = how.rounding == Rounding::stochastic && how.scaling == Scaling::mse;
    const std::uint64_t seed = input.take<std::uint64_t>();
    const std::size_t size = input.size();
    const bool with_base = input.flag(), with_residual = input.flag() && size > 0;
    const Parameters updated(input, size), base(input, with_base ? size : 0);
    const Values updated_values = updated.values();
    const std::optional<Values> base_values = with_base ? std::optional(base.values()) : std::nullopt;
    const std::vector<float> start = Floats(input).take(input, with_residual ? size : 0);
    std::vector<float> delta(size);
    for (std::size_t i = 0; i < size; ++i) {
        delta[i] = with_base ? updated[i] - base[i] : updated[i];
        if (with_residual) delta[i] += start[i];
    }
    const auto bad = std::find_if_not(delta.begin(), delta.end(), encodable);

    const auto encoded = [&](int threads) {
        Outputs outputs(format, size, start);
        try {
            encode(updated_values, base_values, outputs.residual, format, how.rounding, seed, outputs.codes,
                   outputs.scales, threads, how.scaling);
            VERIFY(bad == delta.end() && !wrong);
        } catch (const std::invalid_argument&) {
            VERIFY(wrong);
            VERIFY(std::equal(start.begin(), start.end(), outputs.residual.begin(), same));
        } catch (const NotEncodable& error) {
            VERIFY(error.index == static_cast<std::size_t>(bad - delta.begin()));
            VERIFY(std::equal(start.begin(), start.end(), outputs.residual.begin(), same));
        }
        return outputs;
    };
    use_simd("baseline");
    const Outputs outputs = encoded(1);
    if (wrong) return;
    if (bad == delta.end()) {
        verify_encoded({format, size, outputs.codes, outputs.scales}, how, delta, outputs.residual);
    }
    choose_simd(input);
    const Outputs others = encoded(threads_from(input));
    if (bad != delta.end()) return;
    VERIFY(others.codes == outputs.codes && others.scales == outputs.scales);
    VERIFY(std::equal(outputs.residual.begin(), outputs.residual.end(), others.residual.begin(), same));
}

// ---- memory that arguments share ----

void try_shared_memory(Input& input) {
    std::vector<std::uint8_t> memory = input.values<std::uint8_t>(2048);
    for (std::uint8_t& byte : memory) byte &= 0xbf;  // floats below 2
    std::vector<std::uint8_t> before = memory;
    struct Range {
        std::size_t first, bytes;
        bool meets(Range other) const {
            return bytes && other.bytes && first < other.first + other.bytes && other.first < first + bytes;
        }
    };
    const auto place = [&](std::size_t bytes) {
        const std::size_t first = input.up_to(255) * 8;
        return Range{std::min(first, (memory.size() - bytes) / 8 * 8), bytes};
    };
    const auto at = [&](Range range) { return memory.data() + range.first; };
    const auto floats = [&](Range range) {
        return std::span(reinterpret_cast<float*>(at(range)), range.bytes / sizeof(float));
    };

    const Format format{input.one_of(kCodecs), 32};
    const std::size_t size = input.up_to(100);
    const Range updated = place(4 * size), base = place(4 * size),
                residual = place(input.flag() ? 4 * size : 0);
    const Range codes = place(code_bytes(format, size)), scales = place(2 * scale_count(format, size));
    const std::span<std::uint8_t> code_span(at(codes), codes.bytes);
    const std::span<bfloat16> scale_span(reinterpret_cast<bfloat16*>(at(scales)), scales.bytes / 2);

    bool shared = residual.meets(codes) || residual.meets(scales) || codes.meets(scales);
    for (const Range written : {residual, codes, scales}) {
        shared = shared || written.meets(updated) || written.meets(base);
    }
    const bool refused_it = refused([&] {
        encode(Values(std::span<const float>(floats(updated))), Values(std::span<const float>(floats(base))),
               floats(residual), format, Rounding::nearest, 0, code_span, scale_span);
    });
    VERIFY(refused_it == shared);
    VERIFY(!shared || memory == before);

    before = memory;
    const Payload payload{format, size, code_span, scale_span};
    const bool payload_shared = residual.meets(codes) || residual.meets(scales);
    if (residual.bytes != 4 * size) return;
    const float weight = 1.0f;
    const bool sum = input.flag();
    VERIFY(payload_shared == refused([&] {
               if (sum) aggregate({&payload, 1}, {&weight, 1}, floats(residual));
               if (!sum) decode(payload, floats(residual));
           }));
    VERIFY(!payload_shared || memory == before);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* bytes, std::size_t count) {
    Input input(bytes, count);
    switch (input.up_to(7)) {
        case 0:
            try_sizes(input);
            break;
        case 1:
            try_shared_memory(input);
            break;
        default:
            try_encode(input);
    }
    return 0;
}
