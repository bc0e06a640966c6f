#include "payloads.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "format.h"

namespace fgrpo {

Payload slice(const Payload& payload, std::size_t first, std::size_t N) {
    const Format format = payload.format;
    return {format, N, payload.codes.subspan(code_bytes(format, first), code_bytes(format, N)),
            payload.scales.subspan(scale_count(format, first), scale_count(format, N))};
}

void require_payloads(const std::string& function, std::span<const Payload> payloads) {
    require_payloads(function, payloads, "payload", payloads.empty() ? 0 : payloads[0].size);
}

void require_payloads(const std::string& function, std::span<const Payload> payloads, const std::string& kind,
                      std::size_t size) {
    if (payloads.empty()) {
        throw std::invalid_argument(function + ": no " + kind + "s; did every client fail?");
    }
    for (std::size_t k = 0; k < payloads.size(); ++k) {
        const std::string where = function + ": " + kind + " " + std::to_string(k);
        require_lengths(where, payloads[k]);
        if (payloads[k].size != size) {
            throw std::invalid_argument(where + " has " + std::to_string(payloads[k].size) +
                                        " parameters, payload 0 has " + std::to_string(size) +
                                        "; was it made from another model?");
        }
    }
}

void require_finite(const std::string& where, const Payload& payload, std::size_t first, std::size_t N) {
    std::vector<float> values(std::min(N, 4 * kTile));
    for (std::size_t start = first; start < first + N; start += values.size()) {
        const std::size_t count = std::min(values.size(), first + N - start);
        decode(slice(payload, start, count), std::span(values).first(count), 1);
        for (std::size_t i = 0; i < count; ++i) {
            if (std::isfinite(values[i])) continue;
            throw std::invalid_argument(where + " has the value " + text(values[i]) + " at index " +
                                        std::to_string(start + i) +
                                        "; check what comes from outside with check_codes");
        }
    }
}

}  // namespace fgrpo
