#include "scan_kernels.inc"

namespace mmvim::cuda {

MMVIM_COMPILE_SCANS(BFloat16)

}  // namespace mmvim::cuda
