// Compiled once per instruction set, with FGRPO_SIMD naming the table. One source for all, so that every
// table computes the same bits; intrinsics stand only where compilers make poor code of the plain form.
//
// Everything here and in its headers has internal linkage and uses no inline function of a library: of those
// the linker keeps one copy, and an older machine would stop at the AVX-512 one.
#include "kernels.h"

#include "accumulate.h"
#include "quantise.h"

namespace fgrpo {

// Constant-initialised: no code of this file runs before the machine is known to support it.
extern const Kernels FGRPO_SIMD;
constinit const Kernels FGRPO_SIMD = {
    FGRPO_SIMD_NAME,
    {{delta<float, float>, delta<float, bfloat16>}, {delta<bfloat16, float>, delta<bfloat16, bfloat16>}},
    peaks,
    uniform,
    {quantise<8>, quantise<4>, quantise<2>},
    {accumulate<8>, accumulate<4>, accumulate<2>},
    accumulate_exact,
    stream,
    fence,
    {out_of_range<8>, out_of_range<4>, out_of_range<2>},
};

}  // namespace fgrpo
