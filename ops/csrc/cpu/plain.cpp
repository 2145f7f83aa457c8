// The CPU kernels for whatever the compiler takes for granted.
//
// Nothing of the standard library is called here, and every function is local: an instance that
// the linker shared with the rest would run on machines without these instructions.

#include "kernels.h"
#include "vector_plain.h"

namespace mmvim {
namespace plain {
namespace {

#include "math.inc"
#include "scan.inc"
#include "conv.inc"
#include "norm.inc"

}  // namespace
}  // namespace plain

const Kernels kPlainKernels = {
    "plain",
    plain::scan_forward,
    plain::scan_backward,
    plain::conv_forward,
    plain::conv_backward,
    plain::norm_forward,
    plain::norm_backward,
    plain::exp_many,
    plain::forward_scratch,
    plain::backward_scratch,
    plain::conv_scratch,
};

}  // namespace mmvim
