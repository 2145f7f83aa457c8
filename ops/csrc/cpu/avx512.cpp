// The CPU kernels for AVX-512 (F, DQ, BW, VL).
//
// Nothing of the standard library is called here, and every function is local: an instance that
// the linker shared with the rest would run on machines without these instructions.

#include "kernels.h"
#include "vector_avx512.h"

namespace mmvim {
namespace avx512 {
namespace {

#include "math.inc"
#include "scan.inc"
#include "conv.inc"
#include "norm.inc"

}  // namespace
}  // namespace avx512

const Kernels kAvx512Kernels = {
    "avx512",
    avx512::scan_forward,
    avx512::scan_backward,
    avx512::conv_forward,
    avx512::conv_backward,
    avx512::norm_forward,
    avx512::norm_backward,
    avx512::exp_many,
    avx512::forward_scratch,
    avx512::backward_scratch,
    avx512::conv_scratch,
};

}  // namespace mmvim
