// The scan operators on a GPU: mmvim_ops.library has their schemas and says what the arguments are.

#include "parameter_grads.h"
#include "scan_kernels.h"
#include "tensors.h"

namespace mmvim::cuda {
namespace {

// The tensors of one direction, in the types that the kernels read; they outlive the launch.
struct Inputs {
  RowsOf u;
  std::optional<RowsOf> delta, dbl, B, C;
  Parameter A, dt_weight, D, bias;
};

// What both operators are made of.
struct Scans {
  ScalarType type;
  Problem problem;
  std::vector<Inputs> inputs;
  std::optional<RowsOf> z;

  void finish_problem(int64_t chunk) {
    STD_TORCH_CHECK(chunk >= 1, "chunk must be at least 1");
    Problem& p = problem;
    STD_TORCH_CHECK(p.length < INT32_MAX && p.all_channels() < INT32_MAX,
                    "the CUDA kernels take less than 2^31 tokens and channels");
    STD_TORCH_CHECK(p.states <= kMostStates && p.rank <= kMostRank,
                    "the CUDA kernels take up to ", kMostStates, " states and ", kMostRank,
                    " dt columns, got ", p.states, " and ", p.rank, "; use backend='chunked'");
    STD_TORCH_CHECK(chunk % kGrid == 0 || chunk >= p.length,
                    "the CUDA kernels take a chunk that is a multiple of ", kGrid,
                    " or covers all tokens, got ", chunk);
    p.chunk = std::min(chunk, p.length);
    p.directions = static_cast<int>(inputs.size());
    p.gated = z.has_value();
    for (int d = 0; d < p.directions; ++d) {
      const Inputs& from = inputs[d];
      Direction& scan = p.scans[d];
      scan.u = from.u.rows(0, p.channels);
      if (from.dbl) {
        scan.dt = from.dbl->rows();
        scan.B = from.dbl->rows(p.rank);
        scan.C = from.dbl->rows(p.rank + p.states);
      } else {
        scan.delta = from.delta->rows(0, p.channels);
        scan.B = from.B->rows();
        scan.C = from.C->rows();
      }
      scan.A = from.A.data();
      scan.dt_weight = from.dt_weight.data();
      scan.D = from.D.data();
      scan.bias = from.bias.data();
      if (z) scan.z = z->rows(0, p.channels);
    }
  }

  int64_t chunks() const { return ceil_div(problem.length, problem.chunk); }
  // So many of every sequence's states.
  Tensor new_states(const Tensor& like, int64_t count) const {
    const Problem& p = problem;
    return torch::stable::new_empty(
        like, Sizes{count, p.batch, int64_t{p.groups} * p.directions, p.states, p.channels},
        ScalarType::Float);
  }
  // Two directions meet: (B, L, E) of what the first at a tile leaves for the second.
  Tensor new_partial(const Tensor& like) const {
    if (problem.directions == 1) return nothing(like);
    return torch::stable::new_empty(
        like, Sizes{problem.batch, problem.length, problem.all_channels()}, ScalarType::Float);
  }
};

struct ForwardResult {
  Tensor out, last_state, checkpoints;
};

ForwardResult run_forward(const Scans& scans, const Tensor& lead, ScalarType out_type,
                          bool want_last_state) {
  const OnDeviceOf on(lead);
  ForwardProblem p;
  static_cast<Problem&>(p) = scans.problem;
  p.wide_out = out_type == ScalarType::Float;
  const ScalarType written = p.wide_out ? out_type : scans.type;
  const Tensor out = new_contiguous(lead, written), partial = scans.new_partial(lead);
  ForwardResult result = {out, nothing(lead), scans.new_states(lead, scans.chunks())};
  if (want_last_state) {
    result.last_state = torch::stable::new_empty(
        lead, Sizes{p.batch, p.all_channels(), p.states}, ScalarType::Float);
    p.last_state = floats(result.last_state);
  }
  p.checkpoints = floats(result.checkpoints);
  for (int d = 0; d < p.directions; ++d) {
    p.out[d] = RowsOf(out, written).rows();
    if (p.directions == 2) p.scans[d].partial = RowsOf(partial, ScalarType::Float).rows();
  }
  with_type(scans.type, [&](auto value) {
    using T = decltype(value);
    scan_forward<T>(p, forward_kernel<T>(p, on.device()), on.device());
  });
  result.out = to_type(out, out_type);
  return result;
}

// Tokens of a sequence, from `first` on and before `end`.
struct Span {
  int64_t first, end;

  // Those of the chunks that a launch walks over, as they lie in memory.
  Span(const BackwardProblem& p, bool reverse) {
    const auto in_grids = [](int64_t tokens) { return ceil_div(tokens, int64_t{kGrid}) * kGrid; };
    const int64_t begin = p.first_chunk * in_grids(p.chunk), past = p.end_chunk * in_grids(p.chunk);
    const int64_t tokens = in_grids(p.length);  // those that are missing, too
    first = reverse ? std::max<int64_t>(tokens - past, 0) : begin;
    end = std::min(reverse ? tokens - begin : past, p.length);
  }
};

// Rows of gradients that channels share, summed over blocks: (B, L, groups, columns).
//
// Blocks add to the sums, or each of them leaves a part, of a span of tokens at a time: parts of a
// whole sequence would take as much memory as its states.
class SharedGrads {
 public:
  SharedGrads(const Problem& p, const Tensor& lead, int64_t columns, int64_t parts, int64_t span)
      : token_(p.groups * columns), columns_(columns) {
    const Sizes sizes = {p.batch, p.length, p.groups, columns};
    sums_ = parts > 0 ? torch::stable::new_empty(lead, sizes, ScalarType::Float)
                      : torch::stable::new_zeros(lead, sizes, ScalarType::Float);
    if (parts > 1)
      parts_ = torch::stable::new_empty(lead, Sizes{parts, p.batch, span, p.groups, columns},
                                        ScalarType::Float);
  }
  // Where a launch that walks over a span leaves the columns from `column` on.
  RowSums from(int64_t column, const Span& span) const {
    if (!parts_) return {floats(*sums_) + column, sums_->size(1) * token_, token_, columns_, 0};
    const int64_t sequence = parts_->size(2) * token_;
    return {floats(*parts_) + column - span.first * token_, sequence, token_, columns_,
            sums_->size(0) * sequence};
  }
  // Sums up what it left.
  void add_parts(const Span& span) {
    if (!parts_) return;
    const int64_t tokens = span.end - span.first;
    const Tensor parts = torch::stable::narrow(*parts_, 2, 0, tokens);
    Tensor sums = torch::stable::narrow(*sums_, 1, span.first, tokens);
    torch::stable::copy_(sums, torch::stable::sum(parts, Sizes{0}));
  }
  // In the shape and type of the input.
  Tensor like(const Tensor& input) const {
    return to_type(torch::stable::view(*sums_, sizes_of(input)), input.scalar_type());
  }

 private:
  int64_t token_, columns_;
  OptionalTensor sums_, parts_;
};

// How many chunks a launch walks over: all of them, unless parts of so many floats a token would
// take more than the device's share and more than a (B, L, E) tensor of floats does.
int64_t chunks_a_launch(const Scans& scans, int64_t floats_a_token, const Device& device) {
  const Problem& p = scans.problem;
  const int64_t a_chunk = 4 * p.batch * p.chunk * floats_a_token;
  const int64_t most = std::max(device.parts_bytes, 4 * p.batch * p.length * p.all_channels());
  if (a_chunk * scans.chunks() <= most) return scans.chunks();
  return std::max<int64_t>(most / a_chunk, 1);
}

struct BackwardResult {
  // One a direction; parameters: of every launch and sequence, to be summed up.
  std::vector<Tensor> u, parameters;
  std::vector<SharedGrads> shared;  // of dbl, one a direction; or of B and of C
  OptionalTensor delta, z;
};

BackwardResult run_backward(const Scans& scans, const Tensor& lead, const Tensor& grad_out,
                            const OptionalTensor& grad_last_state, const Tensor& checkpoints,
                            bool want_delta, bool want_z, bool deterministic) {
  const OnDeviceOf on(lead);
  BackwardResult result;
  BackwardProblem p;
  static_cast<Problem&>(p) = scans.problem;
  // As it is where it is wider than the inputs; it may be narrower than inputs of several types.
  p.wide_grad = grad_out.scalar_type() == ScalarType::Float;
  const RowsOf grad(grad_out, p.wide_grad ? ScalarType::Float : scans.type);
  const Tensor saved = to_contiguous(checkpoints);
  const Parameter last(grad_last_state);
  const Tensor partial = scans.new_partial(lead);
  p.grad_last_state = last.data();
  p.checkpoints = floats(saved);
  if (want_z) result.z = new_contiguous(lead, scans.type);
  if (want_delta) {
    result.delta = new_contiguous(lead, scans.type);
    p.grads[0].delta = RowsOf(*result.delta, scans.type).rows();
  }
  const int64_t rows = p.states + p.rank + 2;
  for (int d = 0; d < p.directions; ++d) {
    p.grads[d].out = grad.rows(0, p.channels);
    if (want_z) p.grads[d].z = RowsOf(*result.z, scans.type).rows();
    if (p.directions == 2) p.scans[d].partial = RowsOf(partial, ScalarType::Float).rows();
    result.u.push_back(new_contiguous(lead, scans.type));
    p.grads[d].u = RowsOf(result.u[d], scans.type).rows();
  }
  with_type(scans.type, [&](auto value) {
    using T = decltype(value);
    const Candidate kernel = backward_kernel<T>(p, on.device());
    const int64_t blocks = ceil_div(int64_t{p.channels}, int64_t{64 / kernel.split});
    p.atomic = blocks > 1 && !deterministic;
    const int64_t parts = p.atomic ? 0 : blocks;
    const int64_t columns = p.rank > 0 ? p.rank + 2 * p.states : p.states;
    const int64_t floats_a_token = parts > 1 ? 2 * parts * p.groups * columns : 0;
    const int64_t a_launch = chunks_a_launch(scans, floats_a_token, on.device());
    const int64_t launches = ceil_div(scans.chunks(), a_launch);
    for (int i = 0; i < 2; ++i)
      result.shared.emplace_back(p, lead, columns, parts, std::min(a_launch * p.chunk, p.length));
    for (int d = 0; d < p.directions; ++d)
      result.parameters.push_back(torch::stable::new_empty(
          lead, Sizes{launches * p.batch, rows, p.all_channels()}, ScalarType::Float));
    OptionalTensor carried;
    if (launches > 1) {
      carried = scans.new_states(lead, 2);
      p.carried = floats(*carried);
    }
    for (int64_t i = launches - 1; i >= 0; --i) {
      p.goes_on = i < launches - 1;
      p.first_chunk = static_cast<int>(i * a_launch);
      p.end_chunk = static_cast<int>(std::min((i + 1) * a_launch, scans.chunks()));
      for (int d = 0; d < p.directions; ++d) {
        ScanGrads& grads = p.grads[d];
        const Span span(p, p.scans[d].reverse);
        grads.parameters =
            floats(result.parameters[d]) + i * p.batch * rows * p.all_channels();
        if (p.rank > 0) {
          grads.dt = result.shared[d].from(0, span);
          grads.B = result.shared[d].from(p.rank, span);
          grads.C = result.shared[d].from(p.rank + p.states, span);
        } else {
          grads.B = result.shared[0].from(0, span);
          grads.C = result.shared[1].from(0, span);
        }
      }
      scan_backward<T>(p, kernel, on.device());
      for (int j = 0; j < 2; ++j)
        result.shared[j].add_parts(Span(p, p.scans[p.directions == 2 ? j : 0].reverse));
    }
  });
  return result;
}

Scans selective(const Tensor& u, const Tensor& delta, const Tensor& A, const Tensor& B,
                const Tensor& C, const OptionalTensor& D, const OptionalTensor& z,
                const OptionalTensor& delta_bias, bool softplus, bool reverse, int64_t groups,
                int64_t chunk) {
  const ScalarType type = common_type({u, delta, B, C, z});
  Scans scans{type, {}, {}, std::nullopt};
  Problem& p = scans.problem;
  p.batch = u.size(0);
  p.length = u.size(1);
  p.groups = static_cast<int>(groups);
  p.channels = static_cast<int>(u.size(2) / groups);
  p.states = static_cast<int>(A.size(1));
  p.softplus = softplus;
  p.scans[0].reverse = reverse;
  scans.inputs.push_back({RowsOf(u, type), RowsOf(delta, type), std::nullopt, RowsOf(B, type),
                          RowsOf(C, type), Parameter(A), Parameter(), Parameter(D),
                          Parameter(delta_bias)});
  if (z) scans.z.emplace(*z, type);
  scans.finish_problem(chunk);
  return scans;
}

std::tuple<Tensor, Tensor, Tensor> selective_scan(
    const Tensor u, const Tensor delta, const Tensor A, const Tensor B, const Tensor C,
    const OptionalTensor D, const OptionalTensor z, const OptionalTensor delta_bias,
    bool delta_softplus, bool reverse, int64_t groups, int64_t chunk) {
  const Scans scans = selective(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse,
                                groups, chunk);
  const ForwardResult result = run_forward(scans, u, u.scalar_type(), true);
  return {result.out, result.last_state, result.checkpoints};
}

auto selective_scan_backward(const Tensor grad_out, const OptionalTensor grad_last_state,
                             const Tensor u, const Tensor delta, const Tensor A, const Tensor B,
                             const Tensor C, const OptionalTensor D, const OptionalTensor z,
                             const OptionalTensor delta_bias, const Tensor checkpoints,
                             bool delta_softplus, bool reverse, int64_t groups, int64_t chunk,
                             const std::vector<bool> needs, bool deterministic) {
  const Scans scans = selective(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse,
                                groups, chunk);
  const BackwardResult result = run_backward(scans, u, grad_out, grad_last_state, checkpoints,
                                             needs[1], needs[6] && z, deterministic);
  std::vector<Tensor> grads = nothings(8, u);
  if (needs[0]) grads[0] = to_type(result.u[0], u.scalar_type());
  if (needs[1]) grads[1] = to_type(*result.delta, delta.scalar_type());
  if (needs[3]) grads[3] = result.shared[0].like(B);
  if (needs[4]) grads[4] = result.shared[1].like(C);
  if (needs[6] && z) grads[6] = to_type(*result.z, z->scalar_type());
  sum_parameters(result.parameters[0], {&A, D ? &*D : nullptr, delta_bias ? &*delta_bias : nullptr},
                 {needs[2] ? &grads[2] : nullptr, needs[5] && D ? &grads[5] : nullptr,
                  needs[7] && delta_bias ? &grads[7] : nullptr},
                 {scans.problem.states, 1, 1});
  return as_tuple<8>(grads);
}

Scans bidirectional(const Tensor& x_f, const Tensor& x_b, const Tensor& dbl_f, const Tensor& dbl_b,
                    const Tensor& dt_w_f, const Tensor& dt_w_b, const Tensor& dt_b_f,
                    const Tensor& dt_b_b, const Tensor& A_f, const Tensor& A_b, const Tensor& D_f,
                    const Tensor& D_b, const OptionalTensor& z, double scale, int64_t chunk) {
  const ScalarType type = common_type({x_f, x_b, dbl_f, dbl_b, z});
  Scans scans{type, {}, {}, std::nullopt};
  Problem& p = scans.problem;
  p.batch = x_f.size(0);
  p.length = x_f.size(1);
  p.channels = static_cast<int>(x_f.size(2));
  p.states = static_cast<int>(A_f.size(1));
  p.rank = static_cast<int>(dt_w_f.size(1));
  p.scale = static_cast<float>(scale);
  p.softplus = true;
  p.scans[1].reverse = true;
  const auto add = [&](const Tensor& x, const Tensor& dbl, const Tensor& A, const Tensor& dt_w,
                       const Tensor& D, const Tensor& bias) {
    scans.inputs.push_back({RowsOf(x, type), std::nullopt, RowsOf(dbl, type), std::nullopt,
                            std::nullopt, Parameter(A), Parameter(dt_w), Parameter(D),
                            Parameter(bias)});
  };
  add(x_f, dbl_f, A_f, dt_w_f, D_f, dt_b_f);
  add(x_b, dbl_b, A_b, dt_w_b, D_b, dt_b_b);
  if (z) scans.z.emplace(*z, type);
  scans.finish_problem(chunk);
  return scans;
}

std::tuple<Tensor, Tensor> bidirectional_selective_scan(
    const Tensor x_f, const Tensor x_b, const Tensor dbl_f, const Tensor dbl_b,
    const Tensor dt_w_f, const Tensor dt_w_b, const Tensor dt_b_f, const Tensor dt_b_b,
    const Tensor A_f, const Tensor A_b, const Tensor D_f, const Tensor D_b,
    const OptionalTensor z, double scale, bool wide_out, int64_t chunk) {
  const Scans scans = bidirectional(x_f, x_b, dbl_f, dbl_b, dt_w_f, dt_w_b, dt_b_f, dt_b_b, A_f,
                                    A_b, D_f, D_b, z, scale, chunk);
  const ForwardResult result =
      run_forward(scans, x_f, wide_out ? ScalarType::Float : x_f.scalar_type(), false);
  return {result.out, result.checkpoints};
}

auto bidirectional_selective_scan_backward(
    const Tensor grad_out, const Tensor x_f, const Tensor x_b, const Tensor dbl_f,
    const Tensor dbl_b, const Tensor dt_w_f, const Tensor dt_w_b, const Tensor dt_b_f,
    const Tensor dt_b_b, const Tensor A_f, const Tensor A_b, const Tensor D_f, const Tensor D_b,
    const OptionalTensor z, const Tensor checkpoints, double scale, int64_t chunk,
    const std::vector<bool> needs, bool deterministic) {
  const Scans scans = bidirectional(x_f, x_b, dbl_f, dbl_b, dt_w_f, dt_w_b, dt_b_f, dt_b_b, A_f,
                                    A_b, D_f, D_b, z, scale, chunk);
  const BackwardResult result = run_backward(scans, x_f, grad_out, std::nullopt, checkpoints,
                                             false, needs[12] && z, deterministic);
  const Tensor* xs[] = {&x_f, &x_b};
  const Tensor* dbls[] = {&dbl_f, &dbl_b};
  const std::vector<const Tensor*> parameters[] = {{&A_f, &dt_w_f, &D_f, &dt_b_f},
                                                   {&A_b, &dt_w_b, &D_b, &dt_b_b}};
  const int places[] = {8, 4, 10, 6};  // of the forward scan's; the reverse scan's follow
  std::vector<Tensor> grads = nothings(13, x_f);
  for (int d = 0; d < 2; ++d) {
    if (needs[d]) grads[d] = to_type(result.u[d], xs[d]->scalar_type());
    if (needs[2 + d]) grads[2 + d] = result.shared[d].like(*dbls[d]);
    std::vector<Tensor*> wanted;
    for (int place : places) wanted.push_back(needs[place + d] ? &grads[place + d] : nullptr);
    sum_parameters(result.parameters[d], parameters[d], wanted,
                   {scans.problem.states, scans.problem.rank, 1, 1});
  }
  if (needs[12] && z) grads[12] = to_type(*result.z, z->scalar_type());
  return as_tuple<13>(grads);
}

}  // namespace

MMVIM_IMPLEMENT(m) {
  m.impl("selective_scan", TORCH_BOX(&selective_scan));
  m.impl("selective_scan_backward", TORCH_BOX(&selective_scan_backward));
  m.impl("bidirectional_selective_scan", TORCH_BOX(&bidirectional_selective_scan));
  m.impl("bidirectional_selective_scan_backward",
         TORCH_BOX(&bidirectional_selective_scan_backward));
}

}  // namespace mmvim::cuda
