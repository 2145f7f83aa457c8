// The CPU kernels for AVX-512 (F, DQ, BW, VL).

#include "vector_avx512.h"

#define MMVIM_ISA avx512
#define MMVIM_KERNELS kAvx512Kernels
#include "kernels.inc"
