#include "parameter_sums.h"

#include "launch.h"

namespace mmvim::cuda {

template void launch<ParameterSums>(const ParameterSumsProblem&, const Device&);

}  // namespace mmvim::cuda
