// One instance of the bidirectional scan without torch: compiled in a minute, checked, timed, and
// small enough for a sanitizer or a profiler. cuda_scan.py compiles it and names the steps.
//
//   cuda_scan check                  against float64 on the host; ends with 1 if anything is wrong
//   cuda_scan time [B L E R [reps]]  median and quartiles of both passes, in microseconds
//   cuda_scan powers                 errors of powers of two, which add up where decays are slow
//
// SCAN_TYPE, SCAN_SPLIT, SCAN_STATES, SCAN_TILE, SCAN_VIM and SCAN_BACKWARD are the instance's.
// With MMVIM_EMULATE the phases run on the host, where there is nothing to be timed.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "launch.h"
#include "scan_backward.h"
#include "scan_forward.h"

namespace {

using namespace mmvim::cuda;
using T = SCAN_TYPE;
constexpr int kStates = SCAN_STATES;
constexpr bool kPadded = kStates != 16;
using TheShape = Shape<T, kPadded ? kMostStates : 16, SCAN_SPLIT, kPadded, SCAN_TILE, SCAN_VIM>;
using Forward = ScanForward<TheShape>;
using BackwardShape = Shape<T, kPadded ? kMostStates : 16, SCAN_SPLIT, kPadded, kGrid, SCAN_VIM>;
constexpr int kChunk = 128;
constexpr float kScale = 0.5f;

#ifdef MMVIM_EMULATE
struct Memory {
  static void* get(size_t bytes) { return std::aligned_alloc(256, (bytes + 255) / 256 * 256); }
  static void release(void* memory) { std::free(memory); }
  static void copy(void* to, const void* from, size_t bytes) { std::memcpy(to, from, bytes); }
  static void fill(void* to, int byte, size_t bytes) { std::memset(to, byte, bytes); }
  static void wait() {}
};
Device this_device() {
  Device device;
  device.multiprocessors = emulated_multiprocessors;
  device.shared_bytes = emulated_shared_bytes;
  return device;
}
#else
struct Memory {
  static void* get(size_t bytes) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes), "allocating");
    return memory;
  }
  static void release(void* memory) { cudaFree(memory); }
  static void copy(void* to, const void* from, size_t bytes) {
    check(cudaMemcpy(to, from, bytes, cudaMemcpyDefault), "copying");
  }
  static void fill(void* to, int byte, size_t bytes) {
    check(cudaMemset(to, byte, bytes), "filling");
  }
  static void wait() { check(cudaDeviceSynchronize(), "running the kernels"); }
};
Device this_device() {
  Device device;
  check(cudaDeviceGetAttribute(&device.multiprocessors, cudaDevAttrMultiProcessorCount, 0),
        "asking the device");
  check(cudaDeviceGetAttribute(&device.shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0),
        "asking the device");
  return device;
}
#endif

// Memory of the device between two zones that nobody may write to; all of it begins as NaN. A
// sanitizer knows ends better: with MMVIM_NO_ZONES there are none.
class Buffer {
 public:
  explicit Buffer(size_t bytes)
      : zone_(std::getenv("MMVIM_NO_ZONES") ? 0 : 4096), bytes_(bytes),
        base_(static_cast<char*>(Memory::get(bytes + 2 * zone_))) {
    Memory::fill(base_, 0xff, bytes_ + 2 * zone_);
  }
  Buffer(const Buffer&) = delete;
  ~Buffer() { Memory::release(base_); }

  char* data() const { return base_ + zone_; }
  float* floats() const { return reinterpret_cast<float*>(data()); }
  void clear() const { Memory::fill(data(), 0, bytes_); }
  template <class U>
  std::vector<U> values() const {
    std::vector<U> host(bytes_ / sizeof(U));
    Memory::copy(host.data(), data(), host.size() * sizeof(U));
    return host;
  }
  bool zones_are_whole() const {
    std::vector<unsigned char> host(2 * zone_);
    Memory::copy(host.data(), base_, zone_);
    Memory::copy(host.data() + zone_, data() + bytes_, zone_);
    return std::all_of(host.begin(), host.end(), [](unsigned char c) { return c == 0xff; });
  }

 private:
  size_t zone_, bytes_;
  char* base_;
};

struct Sizes {
  int64_t B, L, E, R;
  int64_t between = 0;  // columns between rows of x and z: an odd number leaves nothing aligned
  double slowness = 1;  // what decay rates are divided by
};

// What is drawn, as the kernels read it, and on the device. Rows of x and z are `stride` apart.
struct Inputs {
  Sizes s;
  int64_t stride, columns;
  std::vector<double> x[2], dbl[2], weight[2], bias[2], A[2], D[2], z, grad;
};

double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

struct Results {
  std::vector<double> out, grad_z, grad_u[2], grad_dbl[2], grad_parameters[2];
};

// One channel of one direction of one sequence in float64: adds y to `y`, or, where the gradients
// of y are given, the gradients of everything else to `to`.
void walk(const Inputs& in, int d, int64_t b, int64_t c, std::vector<double>& y,
          const std::vector<double>* grad_y, Results* to) {
  const int64_t L = in.s.L, E = in.s.E, R = in.s.R;
  constexpr int N = kStates;
  const auto token = [&](int64_t t) { return b * L + (d == 0 ? t : L - 1 - t); };
  std::vector<double> h((L + 1) * N), decay(L * N), step(L), slope(L);
  for (int64_t t = 0; t < L; ++t) {
    const double* row = &in.dbl[d][token(t) * in.columns];
    double raw = in.bias[d][c];
    for (int64_t r = 0; r < R; ++r) raw += row[r] * in.weight[d][c * R + r];
    step[t] = std::log1p(std::exp(raw));
    slope[t] = sigmoid(raw);
    const double u = in.x[d][token(t) * in.stride + c];
    double sum = in.D[d][c] * u;
    for (int n = 0; n < N; ++n) {
      decay[t * N + n] = std::exp(step[t] * in.A[d][c * N + n]);
      h[(t + 1) * N + n] = decay[t * N + n] * h[t * N + n] + step[t] * u * row[R + n];
      sum += row[R + N + n] * h[(t + 1) * N + n];
    }
    if (!grad_y) y[token(t) * E + c] += sum;
  }
  if (!grad_y) return;
  double* parameters = to->grad_parameters[d].data() + c;  // rows of E: A, weight, D, bias
  std::vector<double> grad_h(N);
  for (int64_t t = L - 1; t >= 0; --t) {
    const int64_t at = token(t);
    const double* row = &in.dbl[d][at * in.columns];
    double* grad_row = &to->grad_dbl[d][at * in.columns];
    const double u = in.x[d][at * in.stride + c], gy = (*grad_y)[at * E + c];
    double grad_step = 0, grad_input = 0;  // of the step, and of step * u
    for (int n = 0; n < N; ++n) {
      grad_h[n] += gy * row[R + N + n];
      grad_row[R + N + n] += gy * h[(t + 1) * N + n];
      grad_row[R + n] += grad_h[n] * step[t] * u;
      grad_input += grad_h[n] * row[R + n];
      const double through_decay = grad_h[n] * decay[t * N + n] * h[t * N + n];
      grad_step += through_decay * in.A[d][c * N + n];
      parameters[n * E] += through_decay * step[t];
      grad_h[n] *= decay[t * N + n];
    }
    const double grad_raw = (grad_step + grad_input * u) * slope[t];
    to->grad_u[d][at * E + c] = grad_input * step[t] + gy * in.D[d][c];
    for (int64_t r = 0; r < R; ++r) {
      grad_row[r] += grad_raw * in.weight[d][c * R + r];
      parameters[(N + r) * E] += grad_raw * row[r];
    }
    parameters[(N + R) * E] += gy * u;
    parameters[(N + R + 1) * E] += grad_raw;
  }
}

Results expected_of(const Inputs& in) {
  const int64_t B = in.s.B, L = in.s.L, E = in.s.E, R = in.s.R;
  Results results;
  std::vector<double> y(B * L * E), grad_y(B * L * E);
  const auto walk_all = [&](const std::vector<double>* grads) {
    for (int d = 0; d < 2; ++d)
      for (int64_t b = 0; b < B; ++b)
        for (int64_t c = 0; c < E; ++c) walk(in, d, b, c, y, grads, &results);
  };
  walk_all(nullptr);
  results.out.resize(y.size());
  results.grad_z.resize(y.size());
  for (int64_t i = 0; i < B * L * E; ++i) {
    const double z = in.z[i / E * in.stride + i % E], s = sigmoid(z), grad = kScale * in.grad[i];
    results.out[i] = kScale * y[i] * z * s;
    results.grad_z[i] = grad * y[i] * (s + z * s * (1 - s));
    grad_y[i] = grad * z * s;
  }
  for (int d = 0; d < 2; ++d) {
    results.grad_u[d].resize(y.size());
    results.grad_dbl[d].resize(B * L * in.columns);
    results.grad_parameters[d].resize((kStates + R + 2) * E);
  }
  walk_all(&grad_y);
  return results;
}

// A problem on the device and what comes out of it.
class Run {
 public:
  Run(const Sizes& s, bool trains) {
    in.s = s;
    in.stride = s.E + s.between;
    in.columns = s.R + 2 * kStates;
    const int64_t tokens = s.B * s.L;
    std::mt19937 generator(7);
    std::normal_distribution<float> normal;
    std::vector<float> pool(65521);  // prime: numbers repeat in another order in every tensor
    for (float& number : pool) number = normal(generator);
    size_t drawn = 0;
    const auto draw = [&](auto value, int64_t count, std::vector<double>& host,
                          const std::function<double(double)>& shape) {
      std::vector<decltype(value)> numbers(count);
      host.resize(count);
      for (int64_t i = 0; i < count; ++i) {
        const auto given = static_cast<float>(shape(pool[drawn++ * 7919 % pool.size()]));
        numbers[i] = from_float<decltype(value)>(given);
        host[i] = to_float(numbers[i]);
      }
      Buffer* buffer = make(count * sizeof value);
      Memory::copy(buffer->data(), numbers.data(), count * sizeof value);
      return buffer;
    };
    const auto plain = [](double x) { return x; };
    Problem p;
    p.batch = s.B;
    p.length = s.L;
    p.chunk = trains ? std::min<int64_t>(kChunk, s.L) : s.L;
    p.channels = static_cast<int>(s.E);
    p.rank = static_cast<int>(s.R);
    p.states = kStates;
    p.directions = 2;
    p.softplus = p.gated = true;
    p.scale = kScale;
    const Buffer* z = draw(T{}, tokens * in.stride, in.z, plain);
    const Buffer* grad = draw(T{}, tokens * s.E, in.grad, plain);
    out = make(tokens * s.E * sizeof(T));
    partial = make(tokens * s.E * sizeof(float));
    checkpoints = make(ceil_div(s.L, p.chunk) * s.B * 2 * kStates * s.E * sizeof(float));
    p.checkpoints = checkpoints->floats();
    for (int d = 0; d < 2; ++d) {
      Direction& scan = p.scans[d];
      scan.reverse = d == 1;
      char* x = draw(T{}, tokens * in.stride, in.x[d], plain)->data();
      scan.u = rows(x, in.stride, s.E, sizeof(T));
      scan.z = rows(z->data(), in.stride, s.E, sizeof(T));
      scan.partial = rows(partial->data(), s.E, s.E, sizeof(float));
      char* dbl = draw(T{}, tokens * in.columns, in.dbl[d], plain)->data();
      scan.dt = rows(dbl, in.columns, 0, sizeof(T));
      scan.B = rows(dbl + s.R * sizeof(T), in.columns, 0, sizeof(T));
      scan.C = rows(dbl + (s.R + kStates) * sizeof(T), in.columns, 0, sizeof(T));
      const auto parameter = [&](int64_t count, std::vector<double>& host, const auto& shape) {
        return draw(float{}, count, host, shape)->floats();
      };
      scan.dt_weight = parameter(s.E * s.R, in.weight[d],
                                 [&](double x) { return x / std::sqrt(s.R); });
      scan.bias = parameter(s.E, in.bias[d], [](double x) { return x / 2 - 2.5; });
      scan.A = parameter(s.E * kStates, in.A[d],
                         [&](double x) { return -std::exp(x) / s.slowness; });
      scan.D = parameter(s.E, in.D[d], plain);
    }
    static_cast<Problem&>(forward) = p;
    static_cast<Problem&>(backward) = p;
    parts = ceil_div<int64_t>(s.E, TheShape::kChannels);
    grad_z = make(tokens * s.E * sizeof(T));
    for (int d = 0; d < 2; ++d) {
      forward.out[d] = rows(out->data(), s.E, 0, sizeof(T));
      grad_u[d] = make(tokens * s.E * sizeof(T));
      grad_dbl[d] = make(parts * tokens * in.columns * sizeof(float));
      grad_parameters[d] = make(s.B * (kStates + s.R + 2) * s.E * sizeof(float));
      ScanGrads& grads = backward.grads[d];
      grads.out = rows(grad->data(), s.E, s.E, sizeof(T));
      grads.z = rows(grad_z->data(), s.E, 0, sizeof(T));
      grads.u = rows(grad_u[d]->data(), s.E, 0, sizeof(T));
      RowSums sums;
      sums.data = grad_dbl[d]->floats();
      sums.sequence = s.L * in.columns;
      sums.token = sums.group = in.columns;
      sums.part = tokens * in.columns;
      grads.dt = grads.B = grads.C = sums;
      grads.B.data += s.R;
      grads.C.data += s.R + kStates;
      grads.parameters = grad_parameters[d]->floats();
    }
    if (!Forward::serves(forward)) throw LaunchError("this kernel does not serve these sizes");
    Forward::fit(forward);
#if SCAN_BACKWARD
    if (!Backward::serves(backward)) throw LaunchError("this kernel does not serve these sizes");
    Backward::fit(backward);
#endif
  }

  void go_forward(const Device& device) const { launch<Forward>(forward, device); }
  void go_backward(const Device& device, bool atomic) {
#if SCAN_BACKWARD
    backward.atomic = atomic;
    if (atomic)
      for (const Buffer* sums : grad_dbl) sums->clear();
    launch<Backward>(backward, device);
#else
    (void)device, (void)atomic;
#endif
  }
  // Of the last calls; sums over what blocks and sequences left.
  Results results(bool atomic) const {
    Results found = {wide(*out), wide(*grad_z), {}, {}, {}};
    for (int d = 0; d < 2; ++d) {
      found.grad_u[d] = wide(*grad_u[d]);
      const int64_t one = in.s.B * in.s.L * in.columns;
      found.grad_dbl[d] = summed(*grad_dbl[d], one, atomic ? 1 : parts);
      found.grad_parameters[d] =
          summed(*grad_parameters[d], (kStates + in.s.R + 2) * in.s.E, in.s.B);
    }
    return found;
  }
  bool zones_are_whole() const {
    return std::all_of(buffers_.begin(), buffers_.end(),
                       [](const auto& buffer) { return buffer->zones_are_whole(); });
  }

  Inputs in;
  Buffer* out = nullptr;

 private:
#if SCAN_BACKWARD
  using Backward = ScanBackward<BackwardShape>;
#endif
  Buffer* make(size_t bytes) {
    buffers_.push_back(std::make_unique<Buffer>(bytes));
    return buffers_.back().get();
  }
  // As tensors become Rows: strides of dimensions with one entry are none.
  Rows rows(char* data, int64_t columns, int64_t group, int64_t size) const {
    Rows rows;
    rows.data = data;
    rows.token = in.s.L > 1 ? columns * size : 0;
    rows.sequence = in.s.B > 1 ? columns * size * in.s.L : 0;
    rows.group = group * size;
    const int64_t bits =
        reinterpret_cast<intptr_t>(data) | rows.token | rows.sequence | rows.group;
    rows.alignment = 16;
    while (bits % rows.alignment != 0) rows.alignment /= 2;
    return rows;
  }
  static std::vector<double> wide(const Buffer& buffer) {
    std::vector<double> numbers;
    for (T value : buffer.values<T>()) numbers.push_back(to_float(value));
    return numbers;
  }
  static std::vector<double> summed(const Buffer& buffer, int64_t one, int64_t count) {
    const std::vector<float> all = buffer.values<float>();
    std::vector<double> sums(one);
    for (int64_t i = 0; i < one * count; ++i) sums[i % one] += all[i];
    return sums;
  }

  std::vector<std::unique_ptr<Buffer>> buffers_;
  ForwardProblem forward;
  BackwardProblem backward;
  int64_t parts = 1;
  Buffer *partial = nullptr, *checkpoints = nullptr, *grad_z = nullptr;
  Buffer *grad_u[2] = {}, *grad_dbl[2] = {}, *grad_parameters[2] = {};
};

int faults = 0;

void require(bool right, const char* what, double rms = 0) {
  if (right) return;
  ++faults;
  std::printf("\n  WRONG: %s (rms %.1e)", what, rms);
}

// Relative rms error of what should be near; `worst` becomes the largest of them.
void compare(const char* what, const std::vector<double>& got, const std::vector<double>& want,
             double tolerance, double& worst) {
  double error = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    error += (got[i] - want[i]) * (got[i] - want[i]);
    norm += want[i] * want[i];
  }
  const double rms = std::sqrt(error / norm);
  worst = std::max(worst, rms);
  require(rms <= tolerance, what, rms);  // a NaN is not
}

void check_size(const Sizes& s, const Device& device) {
  std::printf("B %lld, L %lld, E %lld, R %lld%s%s", static_cast<long long>(s.B),
              static_cast<long long>(s.L), static_cast<long long>(s.E),
              static_cast<long long>(s.R), s.between ? ", rows apart" : "",
              s.slowness > 1 ? ", slow decays" : "");
  Run run(s, true);
  const Results want = expected_of(run.in);
  // The rms errors that tests/ops/conftest.py allows; sums are float32, whatever the inputs are.
  const double half = std::is_same<T, Half>::value ? 5e-4 : 3e-3;
  const double rounding = sizeof(T) == 4 ? 5e-7 : half, summing = 5e-6;
  const double rounding_of_grads = sizeof(T) == 4 ? 5e-6 : half;
  std::vector<T> first;
  for (int turn = 0; turn < 4; ++turn) {
    run.go_forward(device);
    Memory::wait();
    const std::vector<T> found = run.out->values<T>();
    if (turn == 0) first = found;
    require(std::memcmp(found.data(), first.data(), found.size() * sizeof(T)) == 0,
            "other bits when it runs again");
  }
  double worst = 0, worst_sum = 0;
  for (bool atomic : {false, true}) {
    run.go_backward(device, atomic);
    Memory::wait();
    const Results got = run.results(atomic);
    if (!atomic) compare("out", got.out, want.out, rounding, worst);
    if (!SCAN_BACKWARD) break;
    if (!atomic) compare("grad of z", got.grad_z, want.grad_z, rounding_of_grads, worst);
    for (int d = 0; d < 2; ++d) {
      compare(atomic ? "grad of dbl, added up" : "grad of dbl, in parts", got.grad_dbl[d],
              want.grad_dbl[d], summing, worst_sum);
      if (atomic) continue;
      compare("grad of x", got.grad_u[d], want.grad_u[d], rounding_of_grads, worst);
      compare("grads of parameters", got.grad_parameters[d], want.grad_parameters[d], summing,
              worst_sum);
    }
  }
  require(run.zones_are_whole(), "written beside a tensor");
  std::printf(": largest rms %.1e, of float32 sums %.1e\n", worst, worst_sum);
}

int check_all(const Device& device) {
  std::vector<Sizes> all = {{1, 1, 8, 4}, {2, 33, 24, 4}, {1, 64, 40, 12}, {2, 129, 24, 12},
                            {1, 197, 72, 48}, {3, 320, 16, 24}, {1, 513, 16, 12, 0, 1e5}};
  if (!SCAN_VIM)
    for (const Sizes& more : {Sizes{2, 1, 8, 4, 3}, Sizes{2, 70, 21, 5}, Sizes{1, 97, 40, 12, 1}})
      all.push_back(more);
  for (const Sizes& each : all) check_size(each, device);
  std::printf("%d faults\n", faults);
  return faults > 0;
}

#ifndef MMVIM_EMULATE
__global__ void powers(const float* x, float* fast, float* exact, int count) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= count) return;
  fast[i] = exp2_fast(x[i]);
  exact[i] = exp2_exact(x[i]);
}

void print_powers() {
  constexpr int kCount = 1 << 16;
  std::printf("| 2^-x for x from | mean error, special-function unit | largest | mean, "
              "multiply-adds | largest |\n|---|---|---|---|---|\n");
  for (int exponent = 0; exponent <= 24; exponent += 4) {
    std::vector<float> x(kCount);
    for (int i = 0; i < kCount; ++i) x[i] = -std::ldexp(1.0f + i / float{kCount}, -exponent);
    const Buffer given(4 * kCount), fast(4 * kCount), exact(4 * kCount);
    Memory::copy(given.data(), x.data(), 4 * kCount);
    powers<<<kCount / 256, 256>>>(given.floats(), fast.floats(), exact.floats(), kCount);
    std::printf("| 2^-%d", exponent);
    for (const Buffer* each : {&fast, &exact}) {
      double sum = 0, most = 0;
      const std::vector<float> y = each->values<float>();
      for (int i = 0; i < kCount; ++i) {
        const double want = std::exp2(double(x[i])), error = (y[i] - want) / want;
        sum += error;
        most = std::max(most, std::fabs(error));
      }
      std::printf(" | %+.1e | %.1e", sum / kCount, most);
    }
    std::printf(" |\n");
  }
}

void print_times(const char* pass, int reps, const std::function<void()>& go) {
  cudaEvent_t begin, end;
  check(cudaEventCreate(&begin), "creating an event");
  check(cudaEventCreate(&end), "creating an event");
  for (int i = 0; i < 3; ++i) go();
  std::vector<float> times(reps);
  for (float& time : times) {
    cudaEventRecord(begin);
    go();
    cudaEventRecord(end);
    check(cudaEventSynchronize(end), "running the kernels");
    cudaEventElapsedTime(&time, begin, end);
  }
  std::sort(times.begin(), times.end());
  std::printf("%s: %.1f us (quartiles %.1f, %.1f)\n", pass, 1e3 * times[reps / 2],
              1e3 * times[reps / 4], 1e3 * times[reps * 3 / 4]);
}

void time_size(const Sizes& s, int reps, const Device& device) {
  Run inference(s, false), training(s, true);
  print_times("forward", reps, [&] { inference.go_forward(device); });
  print_times("forward that saves states", reps, [&] { training.go_forward(device); });
  if (SCAN_BACKWARD)
    print_times("backward, sums cleared", reps, [&] { training.go_backward(device, true); });
}
#endif

}  // namespace

int main(int count, char** words) {
  const std::string step = count > 1 ? words[1] : "";
  try {
    const Device device = this_device();
    if (step == "check") return check_all(device);
#ifndef MMVIM_EMULATE
    const auto number = [&](int i, int64_t usual) {
      return count > i ? std::atoll(words[i]) : usual;
    };
    if (step == "powers") {
      print_powers();
      return 0;
    }
    if (step == "time") {
      const Sizes s = {number(2, 8), number(3, 4096), number(4, 384), number(5, 12)};
      time_size(s, static_cast<int>(number(6, 31)), device);
      return 0;
    }
#endif
    std::fprintf(stderr, "usage: cuda_scan check | time [B L E R [reps]] | powers\n");
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s\n", error.what());
  }
  return 2;
}
