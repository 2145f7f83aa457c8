#include "scan_kernels.inc"

namespace mmvim::cuda {

MMVIM_COMPILE_SCANS(Half)

}  // namespace mmvim::cuda
