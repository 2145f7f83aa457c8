// The CPU kernels for NEON, which is part of 64-bit ARM.

#include "vector_neon.h"

#define MMVIM_ISA neon
#define MMVIM_KERNELS kNeonKernels
#include "kernels.inc"
