// Adjacent numbers of any type, as memory is read and written by in one access, and as floats.

#pragma once

#include "portable.h"

namespace mmvim::cuda {

template <class T, int Count>
struct alignas(Count * sizeof(T)) Numbers {
  T at[Count];
};

template <class T, int Count>
MMVIM_HD Numbers<T, Count>& numbers_at(char* address) {
  require_aligned(address, sizeof(Numbers<T, Count>));
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
