// The CPU kernels for AVX2 with FMA.

#include "vector_avx2.h"

#define MMVIM_ISA avx2
#define MMVIM_KERNELS kAvx2Kernels
#include "kernels.inc"
