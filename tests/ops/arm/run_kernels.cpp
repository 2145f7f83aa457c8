// Runs one set of CPU kernels on made-up problems and prints what they give, without torch, so that
// a cross compiler and an emulator are enough to compare processors.
//
//     run_kernels NAME    "name value value ...", a line a result

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "kernels.h"

namespace mmvim {
namespace {

// Aligned as the operators align what they give to kernels, in a type of their own for bfloat16.
struct Array {
  std::shared_ptr<void> data;
  int64_t count;
  Type type;

  Array(int64_t count, Type type = Type::kFloat)
      : data(std::aligned_alloc(64, (count * 4 + 127) / 64 * 64), std::free),
        count(count), type(type) {
    std::memset(data.get(), 0, count * 4);
  }
  float* floats() const { return static_cast<float*>(data.get()); }
  Rows rows(int64_t stride, int64_t column = 0) const {
    char* first = static_cast<char*>(data.get()) + column * (type == Type::kFloat ? 4 : 2);
    return {first, stride, type};
  }
  float at(int64_t i) const {
    if (type == Type::kFloat) return floats()[i];
    const uint32_t bits = static_cast<uint32_t>(static_cast<uint16_t*>(data.get())[i]) << 16;
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
  }
  void put(int64_t i, float x) const {
    if (type == Type::kFloat) {
      floats()[i] = x;
      return;
    }
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    static_cast<uint16_t*>(data.get())[i] = static_cast<uint16_t>(bits >> 16);
  }
};

// The same numbers on every machine.
struct Draw {
  uint64_t seed = 1;
  float operator()(float low, float high) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return low + (high - low) * static_cast<float>(seed >> 40) / 16777216.0f;
  }
  Array fill(int64_t count, float low, float high, Type type = Type::kFloat) {
    Array array(count, type);
    for (int64_t i = 0; i < count; ++i) array.put(i, (*this)(low, high));
    return array;
  }
};

std::string prefix;
void print(const char* name, const Array& array) {
  std::printf("%s/%s", prefix.c_str(), name);
  for (int64_t i = 0; i < array.count; ++i) std::printf(" %.9g", array.at(i));
  std::printf("\n");
}

struct Size {
  int64_t length, channels, states, rank;  // rank 0: one direction, with a step of its own
  bool gate;
  Type type;
};

void scans(const Kernels& use, const Size& size) {
  const int64_t L = size.length, E = size.channels, N = size.states, R = size.rank;
  const int64_t ld = (E + 15) / 16 * 16, width = R + 2 * N, chunk = 32;
  const int directions = R > 0 ? 2 : 1;
  Draw draw;
  std::vector<Array> keep, grads_u, grads_rows, grads_parameters;
  ForwardBlock block;
  block.directions = directions;
  block.length = L;
  block.channels = E;
  block.scale = 0.5f;
  Array checkpoints((L + chunk - 1) / chunk * directions * N * E), last_state(E * N);
  const auto drawn = [&](int64_t count, float low, float high, Type type = Type::kFloat) {
    keep.push_back(draw.fill(count, low, high, type));
    return keep.back();
  };
  for (int d = 0; d < directions; ++d) {
    Scan& scan = block.scans[d];
    scan.u = drawn(L * (E + 3), -1, 1, size.type).rows(E + 3, 3);  // unaligned, part of more
    const Array rows = drawn(L * width, -1, 1, size.type);
    if (R > 0) {
      scan.dt = rows.rows(width);
    } else {
      scan.delta = drawn(L * E, -4, 1, size.type).rows(E);
    }
    scan.B = rows.rows(width, R);
    scan.C = rows.rows(width, R + N);
    scan.dt_weight = drawn(std::abs(R) * ld + ld, -0.5f, 0.5f).floats();
    scan.decay = drawn(N * ld, -12, -0.01f).floats();
    scan.D = drawn(ld, -1, 1).floats();
    scan.bias = drawn(ld, -4, 0).floats();
    scan.ld = ld;
    scan.rank = R;
    scan.states = N;
    scan.softplus = true;
    scan.reverse = R > 0 ? d == 1 : L % 2 == 1;
    scan.checkpoints = checkpoints.floats() + d * N * E;
    scan.checkpoint_stride = directions * N * E;
    scan.state_stride = E;
    scan.chunk = chunk;
  }
  if (size.gate) block.z = drawn(L * E, -3, 3, size.type).rows(E);
  Array out(L * E, size.type);
  block.out = out.rows(E);
  if (R == 0) block.last_state = last_state.floats();
  Array scratch(use.forward_scratch(block));
  block.scratch = scratch.floats();
  use.scan_forward(block);
  print("out", out);
  print("last state", last_state);

  BackwardBlock back;
  back.directions = directions;
  back.length = L;
  back.channels = E;
  back.scale = block.scale;
  back.z = block.z;
  back.grad_out = drawn(L * E, -1, 1, size.type).rows(E);
  Array grad_z(L * E, size.type), grad_delta(L * E, size.type);
  if (size.gate) back.grad_z = grad_z.rows(E);
  for (int d = 0; d < directions; ++d) {
    back.scans[d] = block.scans[d];
    grads_u.emplace_back(L * E, size.type);
    grads_rows.emplace_back(L * width);
    grads_parameters.emplace_back((N + R + 2) * ld);
    back.grads[d].u = grads_u[d].rows(E);
    if (R == 0) back.grads[d].delta = grad_delta.rows(E);
    back.grads[d].rows = grads_rows[d].floats();
    back.grads[d].parameters = grads_parameters[d].floats();
  }
  Array back_scratch(use.backward_scratch(back));
  back.scratch = back_scratch.floats();
  use.scan_backward(back);
  for (int d = 0; d < directions; ++d) {
    print("grad u", grads_u[d]);
    print("grad rows", grads_rows[d]);
    print("grad parameters", grads_parameters[d]);
  }
  print("grad z", grad_z);
  print("grad delta", grad_delta);
}

void convolutions(const Kernels& use, int64_t L, int64_t E, int64_t width, Type type) {
  const int64_t ld = (E + 15) / 16 * 16;
  Draw draw;
  std::vector<Array> keep, outs, parameters;
  const Array x = draw.fill(L * 2 * E, -2, 2, type), grad_x(L * E, type);
  ConvBlock block;
  block.directions = 2;
  block.length = L;
  block.count = L;
  block.channels = E;
  block.width = width;
  block.ld = ld;
  block.x = x.rows(2 * E);
  block.grad_x = grad_x.rows(E);
  for (int d = 0; d < 2; ++d) {
    Conv& conv = block.convs[d];
    outs.emplace_back(L * E, type);
    parameters.emplace_back((width + 1) * ld);
    for (const int64_t count : {width * ld, ld}) keep.push_back(draw.fill(count, -1, 1));
    conv.weight = keep[keep.size() - 2].floats();
    conv.bias = keep.back().floats();
    conv.reverse = d == 1;
    conv.out = outs[d].rows(E);
    keep.push_back(draw.fill(L * E, -1, 1, type));
    conv.grad_out = keep.back().rows(E);
    conv.parameters = parameters[d].floats();
  }
  use.conv_forward(block);
  const Array scratch(use.conv_scratch(block));
  block.scratch = scratch.floats();
  use.conv_backward(block);
  for (int d = 0; d < 2; ++d) {
    print("out", outs[d]);
    print("grad parameters", parameters[d]);
  }
  print("grad x", grad_x);
}

void norms(const Kernels& use, int64_t L, int64_t E, Type type) {
  Draw draw;
  const Array x = draw.fill(L * E, -2, 2), added = draw.fill(L * E, -2, 2, type);
  const Array weight = draw.fill(E + 16, 0.5f, 2), grad = draw.fill(L * E, -1, 1, type);
  const Array total(L * E), normed(L * E, type), scales(L), grad_x(L * E), grad_weight(E + 16);
  NormRows rows;
  rows.count = L;
  rows.channels = E;
  rows.eps = 1e-5f;
  rows.weight = weight.floats();
  rows.scales = scales.floats();
  rows.x = x.rows(E);
  rows.added = added.rows(E);
  rows.total = total.rows(E);
  rows.normed = normed.rows(E);
  rows.grad_normed = grad.rows(E);
  rows.grad_total = x.rows(E);
  rows.grad_x = grad_x.rows(E);
  rows.grad_weight = grad_weight.floats();
  use.norm_forward(rows);
  use.norm_backward(rows);
  print("normed", normed);
  print("total", total);
  print("grad x", grad_x);
  print("grad weight", grad_weight);
}

void products(const Kernels& use, int64_t tokens, int64_t inputs, int64_t outputs) {
  Draw draw;
  const int64_t width = use.panel_width(), panels = (outputs + width - 1) / width;
  const Array x = draw.fill(tokens * (inputs + 3), -1, 1), added = draw.fill(tokens * outputs, -1, 1);
  const Array weight = draw.fill(outputs * (inputs + 2), -1, 1), norm = draw.fill(inputs, 0.5f, 2);
  const Array bias = draw.fill(outputs, -1, 1), gain = draw.fill(outputs, 0.5f, 2);
  const Array packed(panels * width * inputs), scales(tokens), out(tokens * outputs);
  NormRows rows;
  rows.count = tokens;
  rows.channels = inputs;
  rows.eps = 1e-5f;
  rows.scales = scales.floats();
  rows.x = x.rows(inputs + 3);
  use.norm_scales(rows);
  Product p;
  p.tokens = tokens;
  p.outputs = outputs;
  p.x_stride = inputs + 3;
  p.packed = packed.floats();
  p.row_scales = scales.floats();
  p.biases = bias.floats();
  p.gains = gain.floats();
  p.added = added.floats();
  p.added_stride = outputs;
  p.out = out.floats();
  p.out_stride = outputs;
  for (const bool last : {false, true}) {
    const int64_t from = last ? inputs / 2 : 0;
    p.inputs = last ? inputs - from : inputs / 2;
    p.first = !last;
    p.last = last;
    p.x = x.floats() + from;
    const Weight part = {weight.floats() + from, p.inputs, inputs + 2, norm.floats() + from};
    use.pack_weight(part, 0, outputs, packed.floats());
    use.multiply(p);
  }
  print("scales", scales);
  print("out", out);
}

void run(const Kernels& use) {
  for (const Type type : {Type::kFloat, Type::kBFloat16}) {
    const char* name = type == Type::kFloat ? "float32" : "bfloat16";
    const Size sizes[] = {
        {1, 3, 16, 0, true, type},   {67, 8, 16, 0, false, type}, {130, 21, 5, 0, true, type},
        {1, 8, 1, 3, false, type},   {97, 37, 1, 6, false, type}, {64, 19, 16, 2, true, type},
        {131, 48, 16, 12, true, type},
    };
    for (const Size& size : sizes) {
      prefix = std::string("scan ") + name + " L " + std::to_string(size.length) + " E " +
               std::to_string(size.channels) + " N " + std::to_string(size.states) + " R " +
               std::to_string(size.rank);
      scans(use, size);
    }
    for (const int64_t width : {1, 3, 4}) {
      prefix = std::string("convolution ") + name + " width " + std::to_string(width);
      convolutions(use, 70, 27, width, type);
    }
    prefix = std::string("norm ") + name;
    norms(use, 5, 77, type);
  }
  for (const int64_t outputs : {1, 44, 64}) {
    prefix = "product of " + std::to_string(outputs);
    products(use, 15, 37, outputs);
  }
  Draw draw;
  Array data = draw.fill(512, -86, 0);  // the range that it promises
  use.exp_many(data.floats(), 512, 1);
  prefix = "exp";
  print("out", data);
}

}  // namespace
}  // namespace mmvim

int main(int argc, char** argv) {
  const mmvim::Kernels* sets[] = {
      &mmvim::kPlainKernels,
#ifdef __aarch64__
      &mmvim::kNeonKernels,
#endif
  };
  for (const mmvim::Kernels* set : sets) {
    if (argc != 2 || std::strcmp(argv[1], set->name) != 0) continue;
    mmvim::run(*set);
    return 0;
  }
  std::fprintf(stderr, "usage: run_kernels NAME, of kernels that were compiled\n");
  return 1;
}
