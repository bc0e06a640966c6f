// The only file that knows Python: turns buffers and addresses into spans, names into enums, and releases the interpreter
// lock. Sizes, values and overlaps are checked by the core. std::invalid_argument and NotEncodable arrive as
// ValueError.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "buffers.h"
#include "delta_codec.h"
#include "gram.h"
#include "groups.h"
#include "robust.h"
#include "softmax.h"
#include "sparse_delta.h"
#include "threads.h"

namespace py = pybind11;

namespace fgrpo {
namespace {

// float32 items, or bfloat16 bits as 16-bit unsigned integers.
Values values_of(const py::buffer_info& info) {
    if (info.itemsize == sizeof(float)) return span_of<const float>(info);
    return span_of<const bfloat16>(info);
}

Format format_of(const std::string& codec, std::size_t block) { return {codec_named(codec), block}; }

void encode_buffers(const py::object& updated, const py::object& base, const py::object& residual,
                    const std::string& codec, std::size_t block, const std::string& rounding,
                    std::uint64_t seed, const std::string& scale, const py::object& codes,
                    const py::object& scales, int num_threads) {
    const py::buffer_info updated_info = contiguous(updated, "new", "fH", false);
    std::optional<py::buffer_info> base_info, residual_info;
    std::optional<Values> base_values;
    std::span<float> residual_span;
    if (!base.is_none()) base_values = values_of(base_info.emplace(contiguous(base, "base", "fH", false)));
    if (!residual.is_none()) {
        residual_span =
            span_of<float>(residual_info.emplace(contiguous(residual, "encode: residual", "f", true)));
        // The core takes an empty residual for none; here None says that, so an empty one must fit too.
        if (residual_info->size != updated_info.size) {
            throw py::value_error("encode: residual has " + std::to_string(residual_info->size) +
                                  " values, new has " + std::to_string(updated_info.size) +
                                  "; was it made for another model?");
        }
    }
    const py::buffer_info codes_info = contiguous(codes, "encode: codes", "B", true);
    const py::buffer_info scales_info = contiguous(scales, "encode: scales", "H", true);
    const Format format = format_of(codec, block);
    const Rounding how = rounding_named(rounding);
    const Scaling scaling = scaling_named(scale);
    const py::gil_scoped_release released;
    encode(values_of(updated_info), base_values, residual_span, format, how, seed,
           span_of<std::uint8_t>(codes_info), span_of<bfloat16>(scales_info), num_threads, scaling);
}

// Addresses and bytes of codes and scales, then codec, block and size: a view of each buffer would take longer than
// the mean of a few thousand values. The caller holds the memory.
using PayloadTuple = std::tuple<std::uintptr_t, std::size_t, std::uintptr_t, std::size_t, std::string,
                                std::size_t, std::size_t>;

Payload payload_at(const PayloadTuple& fields) {
    const auto& [codes, code_bytes, scales, scale_bytes, codec, block, size] = fields;
    if (scales % alignof(bfloat16) != 0) throw py::value_error("scales must be aligned to their items");
    return {format_of(codec, block),
            size,
            {reinterpret_cast<const std::uint8_t*>(codes), code_bytes},
            {reinterpret_cast<const bfloat16*>(scales), scale_bytes / sizeof(bfloat16)}};
}

std::vector<Payload> payloads_at(const std::vector<PayloadTuple>& tuples) {
    std::vector<Payload> payloads;
    payloads.reserve(tuples.size());
    for (const PayloadTuple& fields : tuples) payloads.push_back(payload_at(fields));
    return payloads;
}

void decode_payload(const PayloadTuple& fields, const py::object& out, int num_threads) {
    const Payload payload = payload_at(fields);
    const py::buffer_info out_info = contiguous(out, "decode: out", "f", true);
    const py::gil_scoped_release released;
    decode(payload, span_of<float>(out_info), num_threads);
}

// `stats`: None, or float64 [K, 2], which receives each client's squared norm and dot product with the mean.
void aggregate_payloads(const std::vector<PayloadTuple>& tuples, const std::vector<float>& weights,
                        const py::object& out, const py::object& stats, int num_threads) {
    const std::vector<Payload> payloads = payloads_at(tuples);
    const py::buffer_info out_info = contiguous(out, "aggregate: out", "f", true);
    if (stats.is_none()) {
        const py::gil_scoped_release released;
        aggregate(payloads, weights, span_of<float>(out_info), num_threads);
        return;
    }
    const py::buffer_info stats_info = contiguous(stats, "stats", "d", true);
    static_assert(sizeof(ClientStats) == 2 * sizeof(double));
    const std::span<ClientStats> client_stats(static_cast<ClientStats*>(stats_info.ptr),
                                              static_cast<std::size_t>(stats_info.size) / 2);
    const py::gil_scoped_release released;
    aggregate_with_stats(payloads, weights, span_of<float>(out_info), client_stats, num_threads);
}

void check_payload(const PayloadTuple& fields, int num_threads) {
    const Payload payload = payload_at(fields);
    const py::gil_scoped_release released;
    check(payload, num_threads);
}

void trimmed_mean_payloads(const std::vector<PayloadTuple>& tuples, std::size_t trim, const py::object& out,
                           int num_threads) {
    const std::vector<Payload> payloads = payloads_at(tuples);
    const py::buffer_info out_info = contiguous(out, "trimmed_mean: out", "f", true);
    const py::gil_scoped_release released;
    trimmed_mean(payloads, trim, span_of<float>(out_info), num_threads);
}

// `others`: None, or the payloads of the columns. `out`: float64, a row a payload.
void gram_payloads(const std::vector<PayloadTuple>& tuples,
                   const std::optional<std::vector<PayloadTuple>>& other_tuples, const py::object& out,
                   int num_threads) {
    const std::vector<Payload> payloads = payloads_at(tuples);
    const py::buffer_info out_info = contiguous(out, "gram: out", "d", true);
    if (!other_tuples) {
        const py::gil_scoped_release released;
        gram(payloads, span_of<double>(out_info), num_threads);
        return;
    }
    const std::vector<Payload> others = payloads_at(*other_tuples);
    const py::gil_scoped_release released;
    gram(payloads, others, span_of<double>(out_info), num_threads);
}

std::vector<double> norms_of_payloads(const std::vector<PayloadTuple>& tuples, int num_threads) {
    const std::vector<Payload> payloads = payloads_at(tuples);
    std::vector<double> result(tuples.size());
    const py::gil_scoped_release released;
    norms(payloads, result, num_threads);
    return result;
}

std::size_t encode_update_buffers(const py::object& updated, const py::object& base, const py::object& out,
                                  int num_threads) {
    const py::buffer_info updated_info = contiguous(updated, "new", "H", false);
    const py::buffer_info base_info = contiguous(base, "base", "H", false);
    const py::buffer_info out_info = contiguous(out, "encode_update: out", "B", true);
    const py::gil_scoped_release released;
    return encode_update(span_of<const bfloat16>(updated_info), span_of<const bfloat16>(base_info),
                         span_of<std::uint8_t>(out_info), num_threads);
}

void apply_update_buffers(const py::object& base, const py::object& update, const py::object& out,
                          int num_threads) {
    const py::buffer_info base_info = contiguous(base, "base", "H", false);
    const py::buffer_info update_info = contiguous(update, "update", "B", false);
    const py::buffer_info out_info = contiguous(out, "apply_update: out", "H", true);
    const py::gil_scoped_release released;
    apply_update(span_of<const bfloat16>(base_info), span_of<const std::uint8_t>(update_info),
                 span_of<bfloat16>(out_info), num_threads);
}

// Tensors by their addresses, which the caller holds: logits or their gradient with whether they are bfloat16, where
// each of n rows starts in items, and the width; int64 [n]; and four times float32 [n].
using RowsTuple = std::tuple<std::uintptr_t, bool, std::uintptr_t, std::size_t, std::size_t>;
using StatisticsTuple = std::tuple<std::uintptr_t, std::uintptr_t, std::uintptr_t, std::uintptr_t>;

template <typename T>
std::span<T> span_at(std::uintptr_t address, std::size_t size) {
    return {reinterpret_cast<T*>(address), size};
}

template <typename Data>
LogitRows<Data> rows_at(const RowsTuple& fields) {
    const auto& [data, is_bfloat16, starts, count, vocab] = fields;
    return {reinterpret_cast<Data*>(data), span_at<const std::int64_t>(starts, count), vocab,
            is_bfloat16 ? LogitType::bfloat16 : LogitType::float32};
}

RowStatistics statistics_at(const StatisticsTuple& fields, std::size_t count) {
    const auto& [logp, entropy, peak, log_sum] = fields;
    return {span_at<float>(logp, count), span_at<float>(entropy, count), span_at<float>(peak, count),
            span_at<float>(log_sum, count)};
}

void row_statistics_at(const RowsTuple& logits, std::uintptr_t targets, double temperature,
                       const StatisticsTuple& out, int num_threads) {
    const auto rows = rows_at<const void>(logits);
    const std::size_t count = rows.starts.size();
    const py::gil_scoped_release released;
    row_statistics(rows, span_at<const std::int64_t>(targets, count), temperature, statistics_at(out, count),
                   num_threads);
}

// `grad_entropy` 0: none.
void row_gradients_at(const RowsTuple& logits, std::uintptr_t targets, double temperature,
                      const StatisticsTuple& statistics, std::uintptr_t grad_logp,
                      std::uintptr_t grad_entropy, const RowsTuple& out, int num_threads) {
    const auto rows = rows_at<const void>(logits);
    const std::size_t count = rows.starts.size();
    const py::gil_scoped_release released;
    row_gradients(rows, span_at<const std::int64_t>(targets, count), temperature,
                  statistics_at(statistics, count), span_at<const float>(grad_logp, count),
                  span_at<const float>(grad_entropy, grad_entropy == 0 ? 0 : count), rows_at<void>(out),
                  num_threads);
}

AdvantageScale scale_named(const std::string& name) {
    if (name == "group") return AdvantageScale::group;
    if (name == "batch") return AdvantageScale::batch;
    if (name == "none") return AdvantageScale::none;
    throw py::value_error("group_advantages: no scale is called " + name);
}

// Address and number of the float64 rewards; address of as many int64 ids, 0: groups of one size; scale, whether one is
// left out, eps; addresses of float64 [B], [S], [S] and bool [S].
void group_advantages_at(
    const std::tuple<std::uintptr_t, std::size_t>& rewards, std::uintptr_t ids, std::size_t count,
    const std::tuple<std::string, bool, double>& options,
    const std::tuple<std::uintptr_t, std::uintptr_t, std::uintptr_t, std::uintptr_t>& out) {
    const auto [values, size] = rewards;
    const auto [scale, leave_one_out, eps] = options;
    const auto [advantages, mean, std, degenerate] = out;
    const AdvantageOptions how = {scale_named(scale), leave_one_out, eps};
    const py::gil_scoped_release released;
    group_advantages(span_at<const double>(values, size),
                     {span_at<const std::int64_t>(ids, ids == 0 ? 0 : size), count}, how,
                     {span_at<double>(advantages, size), span_at<double>(mean, count),
                      span_at<double>(std, count), span_at<std::uint8_t>(degenerate, count)});
}

}  // namespace
}  // namespace fgrpo

PYBIND11_MODULE(_C, module) {
    using namespace fgrpo;
    module.doc() =
        "The delta codec, the softmax of rows and advantages in C++. Use fgrpo_kernels, which takes tensors; "
        "here "
        "everything is a buffer or an address.";
    module.def("encode", &encode_buffers, py::arg("new"), py::arg("base").none(true),
               py::arg("residual").none(true), py::arg("codec"), py::arg("block"), py::arg("rounding"),
               py::arg("seed"), py::arg("scale"), py::arg("codes"), py::arg("scales"),
               py::arg("num_threads"));
    module.def("decode", &decode_payload, py::arg("payload"), py::arg("out"), py::arg("num_threads"));
    module.def("aggregate", &aggregate_payloads, py::arg("payloads"), py::arg("weights"), py::arg("out"),
               py::arg("stats").none(true), py::arg("num_threads"));
    module.def("check", &check_payload, py::arg("payload"), py::arg("num_threads"));
    module.def("code_bytes", [](const std::string& codec, std::size_t block, std::size_t size) {
        return code_bytes(format_of(codec, block), size);
    });
    module.def("scale_count", [](const std::string& codec, std::size_t block, std::size_t size) {
        return scale_count(format_of(codec, block), size);
    });
    module.def("trimmed_mean", &trimmed_mean_payloads, py::arg("payloads"), py::arg("trim"), py::arg("out"),
               py::arg("num_threads"));
    module.def("gram", &gram_payloads, py::arg("payloads"), py::arg("others").none(true), py::arg("out"),
               py::arg("num_threads"));
    module.def("norms", &norms_of_payloads, py::arg("payloads"), py::arg("num_threads"));
    module.def("update_bound", &update_bound);
    module.def("encode_update", &encode_update_buffers, py::arg("new"), py::arg("base"), py::arg("out"),
               py::arg("num_threads"));
    module.def("apply_update", &apply_update_buffers, py::arg("base"), py::arg("update"), py::arg("out"),
               py::arg("num_threads"));
    module.def("row_statistics", &row_statistics_at, py::arg("logits"), py::arg("targets"),
               py::arg("temperature"), py::arg("out"), py::arg("num_threads"));
    module.def("row_gradients", &row_gradients_at, py::arg("logits"), py::arg("targets"),
               py::arg("temperature"), py::arg("statistics"), py::arg("grad_logp"), py::arg("grad_entropy"),
               py::arg("out"), py::arg("num_threads"));
    module.def("group_advantages", &group_advantages_at, py::arg("rewards"), py::arg("ids"), py::arg("count"),
               py::arg("options"), py::arg("out"));
    module.def("available_threads", &available_threads);
    module.def("simd_levels", &simd_levels);
    module.def("use_simd", &use_simd);
}
