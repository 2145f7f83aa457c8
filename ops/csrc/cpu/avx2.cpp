// The CPU kernels for AVX2 with FMA.
//
// Nothing of the standard library is called here, and every function is local: an instance that
// the linker shared with the rest would run on machines without these instructions.

#include "kernels.h"
#include "vector_avx2.h"

namespace mmvim {
namespace avx2 {
namespace {

#include "math.inc"
#include "scan.inc"
#include "conv.inc"
#include "norm.inc"

}  // namespace
}  // namespace avx2

const Kernels kAvx2Kernels = {
    "avx2",
    avx2::scan_forward,
    avx2::scan_backward,
    avx2::conv_forward,
    avx2::conv_backward,
    avx2::norm_forward,
    avx2::norm_backward,
    avx2::exp_many,
    avx2::forward_scratch,
    avx2::backward_scratch,
    avx2::conv_scratch,
};

}  // namespace mmvim
