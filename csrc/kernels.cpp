// Compiled once per instruction set, with FGRPO_SIMD naming the table. One source for all, so that every
// table computes the same bits; intrinsics stand only where compilers make poor code of the plain form.
//
// Everything here and in its headers has internal linkage and uses no inline function of a library: of those
// the linker keeps one copy, and an older machine would stop at the AVX-512 one.
#include "kernels.h"

#include "accumulate.h"
#include "delta.h"
#include "moments.h"
#include "philox.h"
#include "quantise.h"

namespace fgrpo {

namespace gram_tables {
extern const GramKernels FGRPO_SIMD;
}
namespace robust {
extern const RobustKernels FGRPO_SIMD;
}
namespace softmax {
extern const SoftmaxKernels FGRPO_SIMD;
}
namespace update {
extern const UpdateKernels FGRPO_SIMD;
}

// Constant-initialised: no code of this file runs before the machine is known to support it.
extern const Kernels FGRPO_SIMD;
constinit const Kernels FGRPO_SIMD = {
    FGRPO_SIMD_NAME,
    {{delta<float, float>, delta<float, bfloat16>}, {delta<bfloat16, float>, delta<bfloat16, bfloat16>}},
    {{peak<float, float>, peak<float, bfloat16>}, {peak<bfloat16, float>, peak<bfloat16, bfloat16>}},
    {{read_blocks<float, float>, read_blocks<float, bfloat16>},
     {read_blocks<bfloat16, float>, read_blocks<bfloat16, bfloat16>}},
    {quantise<8>, quantise<4>, quantise<2>},
    random_bits,
    round_to_bfloat16,
    {accumulate_codes<8>, accumulate_codes<4>, accumulate_codes<2>, accumulate_values<bfloat16>,
     accumulate_values<float>},
    moments,
    {code_moments<8>, code_moments<4>, code_moments<2>},
    stream,
    fence,
    gram_tables::FGRPO_SIMD,
    robust::FGRPO_SIMD,
    softmax::FGRPO_SIMD,
    update::FGRPO_SIMD,
};

}  // namespace fgrpo
