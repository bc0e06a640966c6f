// Compiled once per instruction set, with FGRPO_SIMD naming the table. One source for all, so that every
// table computes the same bits; intrinsics stand only where compilers make poor code of the plain form.
//
// Everything here and in its headers has internal linkage and uses no inline function of a library: of those
// the linker keeps one copy, and an older machine would stop at the AVX-512 one.
#include "kernels.h"

#include "accumulate.h"
#include "moments.h"
#include "philox.h"
#include "quantise.h"
#include "scales.h"

namespace fgrpo {

// Constant-initialised: no code of this file runs before the machine is known to support it.
extern const Kernels FGRPO_SIMD;
constinit const Kernels FGRPO_SIMD = {
    FGRPO_SIMD_NAME,
    {{delta<float, float>, delta<float, bfloat16>}, {delta<bfloat16, float>, delta<bfloat16, bfloat16>}},
    peaks,
    uniform,
    {{scale_by_absmax<8>, scale_by_absmax<4>, scale_by_absmax<2>},
     {scale_by_mse<8>, scale_by_mse<4>, scale_by_mse<2>}},
    {quantise<8>, quantise<4>, quantise<2>},
    round_to_bfloat16,
    {accumulate_codes<8>, accumulate_codes<4>, accumulate_codes<2>, accumulate_values<bfloat16>,
     accumulate_values<float>},
    moments,
    stream,
    fence,
};

}  // namespace fgrpo
