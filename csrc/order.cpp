#include "order.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <tuple>

#include "format.h"

namespace fgrpo {
namespace {

template <typename T>
int compare_bytes(std::span<const T> a, std::span<const T> b, std::size_t bytes) {
    if (a.empty() || a.data() == b.data()) return 0;
    return std::memcmp(a.data(), b.data(), std::min(a.size_bytes(), bytes));
}

// Below 0: a comes first. Formats come first, so that terms of one format follow each other.
int compare(const Weighted& a, const Weighted& b, std::size_t bytes) {
    const auto key = [](const Weighted& term) {
        return std::tuple(term.payload->format.codec, term.payload->format.block,
                          std::bit_cast<std::uint32_t>(term.weight));
    };
    if (key(a) != key(b)) return key(a) < key(b) ? -1 : 1;
    const int scales = compare_bytes(a.payload->scales, b.payload->scales, bytes);
    // Codes may decide only where scales are equal to their end.
    if (scales != 0 || a.payload->scales.size_bytes() > bytes) return scales;
    return compare_bytes(a.payload->codes, b.payload->codes, bytes);
}

// Whether terms that compare equal may differ in what was not compared.
bool may_differ(const Payload& a, const Payload& b, std::size_t bytes) {
    const bool more = a.scales.size_bytes() > bytes || a.codes.size_bytes() > bytes;
    return more && (a.scales.data() != b.scales.data() || a.codes.data() != b.codes.data());
}

}  // namespace

Ordered in_order(std::span<const Payload> payloads, std::span<const float> weights, std::size_t bytes) {
    Ordered ordered;
    std::vector<Weighted>& terms = ordered.terms;
    terms.reserve(payloads.size());
    for (std::size_t k = 0; k < payloads.size(); ++k) terms.push_back({&payloads[k], weights[k], k});
    std::sort(terms.begin(), terms.end(),
              [&](const Weighted& a, const Weighted& b) { return compare(a, b, bytes) < 0; });
    for (std::size_t i = 1; i < terms.size(); ++i) {
        const Weighted &one = terms[i - 1], &next = terms[i];
        if (compare(one, next, bytes) == 0 && may_differ(*one.payload, *next.payload, bytes)) {
            ordered.ties.push_back(i);
        }
    }
    return ordered;
}

bool equal_blocks(const Payload& a, const Payload& b, std::size_t first, std::size_t N) {
    const Format format = a.format;
    const auto part = [&](const auto& of, std::size_t begin, std::size_t past) {
        return of.subspan(begin, past - begin);
    };
    const std::size_t begin = code_bytes(format, first), past = code_bytes(format, first + N);
    if (compare_bytes(part(a.codes, begin, past), part(b.codes, begin, past), past - begin) != 0)
        return false;
    const std::size_t scale = scale_count(format, first), past_scale = scale_count(format, first + N);
    return compare_bytes(part(a.scales, scale, past_scale), part(b.scales, scale, past_scale), SIZE_MAX) == 0;
}

}  // namespace fgrpo
