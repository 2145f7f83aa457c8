// The CPU kernels for whatever the compiler takes for granted.

#include "vector_plain.h"

#define MMVIM_ISA plain
#define MMVIM_KERNELS kPlainKernels
#include "kernels.inc"
