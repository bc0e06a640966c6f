// For kernels.cpp alone (see there): from parameters to a delta, and its largest magnitude.
#pragma once

#include "vectors.h"

namespace fgrpo {
namespace {

// Values `at`, at + 1, ... of parameters of either type, as float32.
template <typename Value>
inline Vector<float, kLanes> load_wide(const void* values, size_t at) {
    if constexpr (sizeof(Value) == sizeof(float)) {
        return load<Vector<float, kLanes>>(static_cast<const float*>(values) + at);
    } else {
        const auto halves = load<Vector<uint16_t, kLanes>>(static_cast<const uint16_t*>(values) + at);
        return (Vector<float, kLanes>)(__builtin_convertvector(halves, Vector<uint32_t, kLanes>) << 16);
    }
}

template <typename Updated, typename Base>
inline Vector<float, kLanes> load_delta(const Source& source, size_t at) {
    auto delta = load_wide<Updated>(source.updated, at);
    if (source.base) delta -= load_wide<Base>(source.base, at);
    if (source.residual) delta += load<Vector<float, kLanes>>(source.residual + at);
    return delta;
}

template <typename Updated, typename Base>
inline float delta_at(const Source& source, size_t at) {
    float delta = widen(static_cast<const Updated*>(source.updated)[at]);
    if (source.base) delta -= widen(static_cast<const Base*>(source.base)[at]);
    if (source.residual) delta += source.residual[at];
    return delta;
}

template <typename Updated, typename Base>
uint32_t peak(const Source& source, size_t N) {
    Magnitudes most = {};
    size_t i = 0;
    for (; i + kLanes <= N; i += kLanes) {
        most = larger(most, magnitudes(load_delta<Updated, Base>(source, i)));
    }
    uint32_t peak = largest(most);
    for (; i < N; ++i) {
        const uint32_t magnitude = bits_of(delta_at<Updated, Base>(source, i)) & 0x7fffffffu;
        peak = magnitude > peak ? magnitude : peak;
    }
    return peak;
}

template <typename Updated, typename Base>
void delta(const Source& source, size_t N, float* __restrict delta) {
    size_t i = 0;
    for (; i + kLanes <= N; i += kLanes) store(delta + i, load_delta<Updated, Base>(source, i));
    for (; i < N; ++i) delta[i] = delta_at<Updated, Base>(source, i);
}

template <typename Updated, typename Base>
inline Block read_block(const Source& source, size_t at, size_t N, size_t block, float* __restrict buffer) {
    if (N < block) {
        for (size_t i = 0; i < block; ++i) buffer[i] = i < N ? delta_at<Updated, Base>(source, at + i) : 0.0f;
        return {buffer, peak<float, float>({buffer, nullptr, nullptr}, block)};
    }
    Magnitudes most = {};
    if (sizeof(Updated) == sizeof(float) && !source.base && !source.residual) {
        const float* values = static_cast<const float*>(source.updated) + at;
        for (size_t i = 0; i < block; i += kLanes) {
            most = larger(most, magnitudes(load<Vector<float, kLanes>>(values + i)));
        }
        return {values, largest(most)};
    }
    for (size_t i = 0; i < block; i += kLanes) {
        const auto values = load_delta<Updated, Base>(source, at + i);
        store(buffer + i, values);
        most = larger(most, magnitudes(values));
    }
    return {buffer, largest(most)};
}

// Asks for the bytes of values [at, at + N), which need not exist.
template <typename Value>
inline void prefetch(const void* values, size_t at, size_t N) {
    constexpr size_t line = 64;
    const uintptr_t start = reinterpret_cast<uintptr_t>(values) + at * sizeof(Value);
    for (size_t i = 0; i < N * sizeof(Value); i += line) {
        __builtin_prefetch(reinterpret_cast<const void*>(start + i));
    }
}

template <typename Updated, typename Base>
void read_blocks(const Source& source, size_t at, size_t N, size_t block, float* buffer, Block* blocks) {
    for (size_t start = 0; start < N; start += block) {
        const size_t count = N - start < block ? N - start : block;
        *blocks++ = read_block<Updated, Base>(source, at + start, count, block, buffer + start);
        // What is read next comes while this is rounded.
        const size_t next = at + N + start;
        prefetch<Updated>(source.updated, next, block);
        if (source.base) prefetch<Base>(source.base, next, block);
        if (source.residual) prefetch<float>(source.residual, next, block);
    }
}

}  // namespace
}  // namespace fgrpo
