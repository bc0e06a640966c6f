// For bindings.cpp alone: objects of Python's buffer protocol as spans.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>
#include <span>
#include <string>
#include <utility>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>

#include <cinttypes>
#include <cstdio>
#include <fstream>
#endif

namespace py = pybind11;

namespace fgrpo {
namespace {

// Where a buffer begins and ends.
inline std::pair<std::uintptr_t, std::uintptr_t> addresses_of(const py::buffer_info& info) {
    const auto start = reinterpret_cast<std::uintptr_t>(info.ptr);
    return {start, start + static_cast<std::size_t>(info.size * info.itemsize)};
}

#if defined(__linux__)
inline std::uintptr_t page_bytes() { return static_cast<std::uintptr_t>(sysconf(_SC_PAGESIZE)); }

// Whether the system's list of what is mapped, where it can be read, says that an address may be written.
inline bool is_mapped_for_writing(std::uintptr_t address) {
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
        std::uintptr_t first = 0, past = 0;
        char read = 0, write = 0;
        if (std::sscanf(line.c_str(), "%" SCNxPTR "-%" SCNxPTR " %c%c", &first, &past, &read, &write) != 4)
            continue;
        if (first <= address && address < past) return write == 'w';
    }
    return true;
}

inline bool can_be_written(std::uintptr_t address) {
    // Faults in a page that is about to be written anyway. It also fails before Linux 5.14 and for memory of devices.
    constexpr int populate_write = 23;  // MADV_POPULATE_WRITE
    const std::uintptr_t page = page_bytes();
    return madvise(reinterpret_cast<void*>(address / page * page), page, populate_write) == 0 ||
           is_mapped_for_writing(address);
}
#endif

// Whether a buffer that says it is writable is: so says a tensor over a file that is mapped for reading, and writing
// to it would end the process. Looks at both ends.
inline bool can_be_written(const py::buffer_info& info) {
#if defined(__linux__)
    const auto [start, end] = addresses_of(info);
    return start == end || (can_be_written(start) && can_be_written(end - 1));
#else
    (void)info;
    return true;
#endif
}

// A contiguous buffer whose items have one of the formats of the buffer protocol ("f": float32). `name` is
// for errors. What is to be written must be writable, by its own word and by its memory's.
inline py::buffer_info contiguous(const py::handle& object, const std::string& name,
                                  const std::string& formats, bool writable) {
    if (!PyObject_CheckBuffer(object.ptr())) {
        throw py::type_error(name + " must be a buffer, got " + std::string(py::str(py::type::of(object))));
    }
    // Asked for writable memory, pybind11 would raise Python's BufferError, which does not name the argument.
    py::buffer_info info = py::reinterpret_borrow<py::buffer>(object).request(false);
    if (writable && (info.readonly || !can_be_written(info))) {
        throw py::value_error(name + " is in read-only memory, and is written to; pass a copy");
    }
    const std::string format = info.format.substr(info.format.find_first_not_of("<=@"));
    if (format.size() != 1 || formats.find(format) == std::string::npos) {
        throw py::type_error(name + " must hold items of format '" + formats + "', got '" + info.format +
                             "'");
    }
    py::ssize_t stride = info.itemsize;
    for (py::ssize_t axis = info.ndim; axis-- > 0; stride *= info.shape[axis]) {
        if (info.shape[axis] > 1 && info.strides[axis] != stride)
            throw py::value_error(name + " must be contiguous");
    }
    if (reinterpret_cast<std::uintptr_t>(info.ptr) % static_cast<std::size_t>(info.itemsize) != 0) {
        throw py::value_error(name + " must be aligned to its items");
    }
    return info;
}

template <typename T>
std::span<T> span_of(const py::buffer_info& info) {
    return {static_cast<T*>(info.ptr), static_cast<std::size_t>(info.size)};
}

}  // namespace
}  // namespace fgrpo
