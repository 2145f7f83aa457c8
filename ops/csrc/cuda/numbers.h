// Adjacent numbers of any type, as memory is read and written by in one access, and as floats.

#pragma once

#ifndef __CUDACC__
#include <stdexcept>
#endif

#include "portable.h"

namespace mmvim::cuda {

template <class T, int Count>
struct alignas(Count * sizeof(T)) Numbers {
  T at[Count];
};

// Numbers at an address that is a multiple of their size: where it is not, a GPU stops.
template <class T, int Count>
MMVIM_HD Numbers<T, Count>& numbers_at(char* address) {
#ifndef __CUDACC__
  if (reinterpret_cast<uintptr_t>(address) % sizeof(Numbers<T, Count>) != 0)
    throw std::logic_error("numbers are read or written at an address they cannot be at");
#endif
  return *reinterpret_cast<Numbers<T, Count>*>(address);
}

template <class T, int Count>
MMVIM_HD Floats<Count> to_floats(const Numbers<T, Count>& numbers) {
  Floats<Count> floats;
  MMVIM_UNROLL
  for (int i = 0; i < Count; ++i) floats.at[i] = to_float(numbers.at[i]);
  return floats;
}
template <class T, int Count>
MMVIM_HD Numbers<T, Count> to_numbers(const Floats<Count>& floats) {
  Numbers<T, Count> numbers;
  MMVIM_UNROLL
  for (int i = 0; i < Count; ++i) numbers.at[i] = from_float<T>(floats.at[i]);
  return numbers;
}

}  // namespace mmvim::cuda
