// The CPU implementations of the scan operators: mmvim_ops.library has their schemas and says what
// the arguments are.

#include <algorithm>

#include "scan_parts.h"

namespace mmvim {
namespace {

// Backwards the gradients of B and C are, and the order of a sum must not depend on the machine.
Blocks backward_blocks(int64_t batch, int64_t groups, int64_t channels) {
  const Blocks blocks(batch, groups, channels, 96);
  return blocks.count() >= 4 ? blocks : Blocks(batch, groups, channels, 48);
}

// What both operators are made of: one or two scans over the same tokens, gated and summed.
struct Problem {
  int64_t batch, length, channels, groups, states, rank;  // channels of all groups
  int directions;
  int64_t chunk;
  float scale;
  bool softplus;
  bool reverse[2];
  std::vector<View> u, delta, rows;  // one a direction; `rows` holds dt, B, C of dt_proj's input
  std::vector<View> BC;              // of the generic operator: B, C
  std::vector<Parameters> parameters;
  std::optional<View> z;

  Scan scan(int d, const Blocks::Item& item, float* checkpoints) const {
    Scan s;
    s.u = u[d].rows(item.b, item.first);
    if (rank > 0) {
      s.dt = rows[d].rows(item.b, 0);
      s.B = rows[d].rows(item.b, rank);
      s.C = rows[d].rows(item.b, rank + states);
    } else {
      s.delta = delta[d].rows(item.b, item.first);
      s.B = BC[0].group_rows(item.b, item.group);
      s.C = BC[1].group_rows(item.b, item.group);
    }
    parameters[d].give(s, item.first, padded(channels));
    s.rank = rank;
    s.states = states;
    s.softplus = softplus;
    s.reverse = reverse[d];
    s.chunk = chunk;
    // (chunks, batch, groups or directions, states, channels of one)
    const int64_t outer = groups * directions, width = channels / groups;
    const int64_t place = directions == 2 ? d : item.group;
    s.state_stride = width;
    s.checkpoint_stride = batch * outer * states * width;
    s.checkpoints = checkpoints + (item.b * outer + place) * states * width +
                    (item.first - item.group * width);
    return s;
  }

  Tensor new_checkpoints(const Tensor& like) const {
    const Sizes sizes = {ceil_div(length, chunk), batch, groups * directions, states,
                         channels / groups};
    return torch::stable::new_empty(like, sizes, ScalarType::Float);
  }
};

void check_chunk(int64_t chunk) { STD_TORCH_CHECK(chunk >= 1, "chunk must be at least 1"); }

struct ForwardResult {
  Tensor out, last_state, checkpoints;
};

ForwardResult run_forward(const Problem& problem, const Tensor& lead, ScalarType out_type,
                          bool want_last_state) {
  ForwardResult result = {torch::stable::new_empty(lead, sizes_of(lead), out_type), nothing(lead),
                          problem.new_checkpoints(lead)};
  if (want_last_state) {
    result.last_state = torch::stable::new_empty(
        lead, Sizes{problem.batch, problem.channels, problem.states}, ScalarType::Float);
  }
  const Blocks blocks =
      forward_blocks(problem.batch, problem.groups, problem.channels / problem.groups);
  if (blocks.count() == 0) return result;
  const View out(result.out);
  float* checkpoints = static_cast<float*>(result.checkpoints.data_ptr());
  float* last_state =
      want_last_state ? static_cast<float*>(result.last_state.data_ptr()) : nullptr;

  const auto block_of = [&](int64_t index) {
    const Blocks::Item item = blocks.item(index);
    ForwardBlock block;
    for (int d = 0; d < problem.directions; ++d)
      block.scans[d] = problem.scan(d, item, checkpoints);
    block.directions = problem.directions;
    block.length = problem.length;
    block.channels = item.count;
    block.z = rows_or_none(problem.z, item.b, item.first);
    block.out = out.rows(item.b, item.first);
    block.scale = problem.scale;
    if (last_state)
      block.last_state = last_state + (item.b * problem.channels + item.first) * problem.states;
    return block;
  };
  const Kernels& use = kernels();
  for_each_item(blocks.count(), use.forward_scratch(block_of(0)),
                [&](int64_t index, float* scratch) {
                  ForwardBlock block = block_of(index);
                  block.scratch = scratch;
                  use.scan_forward(block);
                });
  return result;
}

struct BackwardResult {
  Tensor grad_u[2], grad_delta, grad_z;
  // To be summed over their first dimension: (blocks of a group, B, groups, L, rank + 2 states) and
  // (B, states + rank + 2, ld).
  Tensor rows[2];
  Tensor parameters[2];
};

BackwardResult run_backward(const Problem& problem, const Tensor& grad_out, const Tensor& lead,
                            const OptionalTensor& grad_last_state, const Tensor& checkpoints,
                            const Tensor* delta, const Tensor* z) {
  const int64_t ld = padded(problem.channels), width = problem.rank + 2 * problem.states;
  const Blocks blocks =
      backward_blocks(problem.batch, problem.groups, problem.channels / problem.groups);
  BackwardResult result = {{nothing(lead), nothing(lead)}, nothing(lead), nothing(lead),
                           {nothing(lead), nothing(lead)}, {nothing(lead), nothing(lead)}};
  std::vector<View> grad_u;
  for (int d = 0; d < problem.directions; ++d) {
    result.grad_u[d] = new_contiguous(problem.u[d].tensor());
    grad_u.emplace_back(result.grad_u[d]);
    const Sizes rows = {blocks.per_group, problem.batch, problem.groups, problem.length, width};
    result.rows[d] = torch::stable::new_empty(lead, rows, ScalarType::Float);
    result.parameters[d] = torch::stable::new_zeros(
        lead, Sizes{problem.batch, problem.states + problem.rank + 2, ld}, ScalarType::Float);
  }
  if (delta) result.grad_delta = new_contiguous(*delta);
  if (z) result.grad_z = new_contiguous(*z);
  if (blocks.count() == 0) return result;
  const View grad(grad_out);
  const std::optional<View> grad_delta = delta ? view(result.grad_delta) : std::nullopt;
  const std::optional<View> grad_z = z ? view(result.grad_z) : std::nullopt;
  OptionalTensor last = grad_last_state;
  if (last) last = to_contiguous(*last);
  const Tensor saved = to_contiguous(checkpoints);
  float* states = static_cast<float*>(saved.data_ptr());

  const auto block_of = [&](int64_t index) {
    const Blocks::Item item = blocks.item(index);
    BackwardBlock block;
    for (int d = 0; d < problem.directions; ++d) {
      block.scans[d] = problem.scan(d, item, states);
      ScanGrads& grads = block.grads[d];
      grads.u = grad_u[d].rows(item.b, item.first);
      grads.delta = rows_or_none(grad_delta, item.b, item.first);
      const int64_t place = (item.block * problem.batch + item.b) * problem.groups + item.group;
      grads.rows = static_cast<float*>(result.rows[d].data_ptr()) + place * problem.length * width;
      grads.parameters = static_cast<float*>(result.parameters[d].data_ptr()) +
                         item.b * (problem.states + problem.rank + 2) * ld + item.first;
    }
    block.directions = problem.directions;
    block.length = problem.length;
    block.channels = item.count;
    block.z = rows_or_none(problem.z, item.b, item.first);
    block.grad_out = grad.rows(item.b, item.first);
    block.grad_z = rows_or_none(grad_z, item.b, item.first);
    block.scale = problem.scale;
    if (last)
      block.grad_last_state = static_cast<const float*>(last->data_ptr()) +
                              (item.b * problem.channels + item.first) * problem.states;
    return block;
  };
  const Kernels& use = kernels();
  for_each_item(blocks.count(), use.backward_scratch(block_of(0)),
                [&](int64_t index, float* scratch) {
                  BackwardBlock block = block_of(index);
                  block.scratch = scratch;
                  use.scan_backward(block);
                });
  return result;
}

// Columns [first, first + count) of the summed rows of a direction, (B, L, groups, count) or, for
// one group, (B, L, count), in the type of `like`.
Tensor take_rows(const Tensor& parts, int64_t first, int64_t count, const Tensor& like) {
  const int64_t blocks = parts.size(0), batch = parts.size(1), groups = parts.size(2);
  const int64_t length = parts.size(3), width = parts.size(4);
  Sizes sizes = {batch, length, groups, count};
  if (like.dim() == 3) sizes = {batch, length, count};
  Tensor sum = torch::stable::new_empty(like, sizes, ScalarType::Float);
  const float* data = static_cast<const float*>(parts.data_ptr());
  float* out = static_cast<float*>(sum.data_ptr());
  const int64_t part = batch * groups * length * width;
  torch::stable::parallel_for(0, batch * length, 64, [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      const int64_t b = row / length, t = row % length;
      for (int64_t g = 0; g < groups; ++g) {
        const float* from = data + ((b * groups + g) * length + t) * width + first;
        float* to = out + (row * groups + g) * count;
        for (int64_t i = 0; i < count; ++i) to[i] = from[i];
        for (int64_t p = 1; p < blocks; ++p)
          for (int64_t i = 0; i < count; ++i) to[i] += from[p * part + i];
      }
    }
  });
  return to_type(sum, like.scalar_type());
}

Problem selective_problem(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                          const Tensor& C, const OptionalTensor& D, const OptionalTensor& z,
                          const OptionalTensor& delta_bias, bool softplus, bool reverse,
                          int64_t groups, int64_t chunk) {
  check_chunk(chunk);
  Problem p = {};
  p.batch = u.size(0);
  p.length = u.size(1);
  p.channels = u.size(2);
  p.groups = groups;
  p.states = A.size(1);
  p.directions = 1;
  p.chunk = chunk;
  p.scale = 1.0f;
  p.softplus = softplus;
  p.reverse[0] = reverse;
  p.u.emplace_back(u);
  p.delta.emplace_back(delta);
  p.BC.emplace_back(B);
  p.BC.emplace_back(C);
  p.parameters.emplace_back(A, std::nullopt, D, delta_bias);
  p.z = view(z);
  return p;
}

std::tuple<Tensor, Tensor, Tensor> selective_scan(
    const Tensor u, const Tensor delta, const Tensor A, const Tensor B, const Tensor C,
    const OptionalTensor D, const OptionalTensor z, const OptionalTensor delta_bias,
    bool delta_softplus, bool reverse, int64_t groups, int64_t chunk) {
  const Problem problem = selective_problem(u, delta, A, B, C, D, z, delta_bias, delta_softplus,
                                            reverse, groups, chunk);
  const ForwardResult result = run_forward(problem, u, u.scalar_type(), true);
  return {result.out, result.last_state, result.checkpoints};
}

auto selective_scan_backward(const Tensor grad_out, const OptionalTensor grad_last_state,
                             const Tensor u, const Tensor delta, const Tensor A, const Tensor B,
                             const Tensor C, const OptionalTensor D, const OptionalTensor z,
                             const OptionalTensor delta_bias, const Tensor checkpoints,
                             bool delta_softplus, bool reverse, int64_t groups, int64_t chunk,
                             const std::vector<bool> needs, bool /*deterministic*/) {
  const Problem problem = selective_problem(u, delta, A, B, C, D, z, delta_bias, delta_softplus,
                                            reverse, groups, chunk);
  const BackwardResult result =
      run_backward(problem, grad_out, u, grad_last_state, checkpoints,
                   needs[1] ? &delta : nullptr, needs[6] && z ? &*z : nullptr);
  const int64_t N = problem.states;
  std::vector<Tensor> grads = nothings(8, u);
  if (needs[0]) grads[0] = result.grad_u[0];
  if (needs[1]) grads[1] = result.grad_delta;
  if (needs[2]) grads[2] = unpack(result.parameters[0], 0, A);
  if (needs[3]) grads[3] = take_rows(result.rows[0], 0, N, B);
  if (needs[4]) grads[4] = take_rows(result.rows[0], N, N, C);
  if (needs[5] && D) grads[5] = unpack(result.parameters[0], N, *D);
  if (needs[6] && z) grads[6] = result.grad_z;
  if (needs[7] && delta_bias) grads[7] = unpack(result.parameters[0], N + 1, *delta_bias);
  return as_tuple<8>(grads);
}

Problem bidirectional_problem(const Tensor& x_f, const Tensor& x_b, const Tensor& dbl_f,
                              const Tensor& dbl_b, const Tensor& dt_w_f, const Tensor& dt_w_b,
                              const Tensor& dt_b_f, const Tensor& dt_b_b, const Tensor& A_f,
                              const Tensor& A_b, const Tensor& D_f, const Tensor& D_b,
                              const OptionalTensor& z, double scale, int64_t chunk) {
  check_chunk(chunk);
  Problem p = {};
  p.batch = x_f.size(0);
  p.length = x_f.size(1);
  p.channels = x_f.size(2);
  p.groups = 1;
  p.states = A_f.size(1);
  p.rank = dt_w_f.size(1);
  p.directions = 2;
  p.chunk = chunk;
  p.scale = static_cast<float>(scale);
  p.softplus = true;
  p.reverse[1] = true;
  for (const Tensor* x : {&x_f, &x_b}) p.u.emplace_back(*x);
  for (const Tensor* dbl : {&dbl_f, &dbl_b}) p.rows.emplace_back(*dbl);
  p.parameters.emplace_back(A_f, dt_w_f, D_f, dt_b_f);
  p.parameters.emplace_back(A_b, dt_w_b, D_b, dt_b_b);
  p.z = view(z);
  return p;
}

std::tuple<Tensor, Tensor> bidirectional_selective_scan(
    const Tensor x_f, const Tensor x_b, const Tensor dbl_f, const Tensor dbl_b,
    const Tensor dt_w_f, const Tensor dt_w_b, const Tensor dt_b_f, const Tensor dt_b_b,
    const Tensor A_f, const Tensor A_b, const Tensor D_f, const Tensor D_b,
    const OptionalTensor z, double scale, bool wide_out, int64_t chunk) {
  const Problem problem = bidirectional_problem(x_f, x_b, dbl_f, dbl_b, dt_w_f, dt_w_b, dt_b_f,
                                                dt_b_b, A_f, A_b, D_f, D_b, z, scale, chunk);
  const ForwardResult result =
      run_forward(problem, x_f, wide_out ? ScalarType::Float : x_f.scalar_type(), false);
  return {result.out, result.checkpoints};
}

auto bidirectional_selective_scan_backward(
    const Tensor grad_out, const Tensor x_f, const Tensor x_b, const Tensor dbl_f,
    const Tensor dbl_b, const Tensor dt_w_f, const Tensor dt_w_b, const Tensor dt_b_f,
    const Tensor dt_b_b, const Tensor A_f, const Tensor A_b, const Tensor D_f, const Tensor D_b,
    const OptionalTensor z, const Tensor checkpoints, double scale, int64_t chunk,
    const std::vector<bool> needs, bool /*deterministic*/) {
  const Problem problem = bidirectional_problem(x_f, x_b, dbl_f, dbl_b, dt_w_f, dt_w_b, dt_b_f,
                                                dt_b_b, A_f, A_b, D_f, D_b, z, scale, chunk);
  const BackwardResult result = run_backward(problem, grad_out, x_f, std::nullopt, checkpoints,
                                             nullptr, needs[12] && z ? &*z : nullptr);
  const int64_t N = problem.states, R = problem.rank;
  const Tensor* dbls[] = {&dbl_f, &dbl_b};
  const Tensor* parameters[4][2] = {
      {&dt_w_f, &dt_w_b}, {&dt_b_f, &dt_b_b}, {&A_f, &A_b}, {&D_f, &D_b}};
  const int64_t places[4] = {N, N + R + 1, 0, N + R};
  std::vector<Tensor> grads = nothings(13, x_f);
  for (int d = 0; d < 2; ++d) {
    if (needs[d]) grads[d] = result.grad_u[d];
    if (needs[2 + d]) grads[2 + d] = take_rows(result.rows[d], 0, R + 2 * N, *dbls[d]);
    for (int i = 0; i < 4; ++i) {
      const int at = 4 + 2 * i + d;
      if (needs[at]) grads[at] = unpack(result.parameters[d], places[i], *parameters[i][d]);
    }
  }
  if (needs[12] && z) grads[12] = result.grad_z;
  return as_tuple<13>(grads);
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mmvim, CPU, m) {
  m.impl("selective_scan", TORCH_BOX(&selective_scan));
  m.impl("selective_scan_backward", TORCH_BOX(&selective_scan_backward));
  m.impl("bidirectional_selective_scan", TORCH_BOX(&bidirectional_selective_scan));
  m.impl("bidirectional_selective_scan_backward",
         TORCH_BOX(&bidirectional_selective_scan_backward));
}

}  // namespace mmvim
