// The CPU implementation of a whole Vim block for inference: mmvim_ops.library has its schema.
//
// Some sequences at a time go through five steps, each on all threads. What lies between them is
// two rows of E channels a token: the causal convolution is written over its x, the sum of the scans
// over that, and the gate, a product of its own, is multiplied by that sum as soon as it is known.
// Weights are packed where they are used, at every call: copies that lasted could be out of date.

#include <algorithm>
#include <cstring>

#include "scan_parts.h"

namespace mmvim {
namespace {

constexpr int64_t kTokens = 64;            // of a tile
constexpr int64_t kFewestTokens = 16;      // of a tile that is shorter to keep all threads busy
constexpr int64_t kMostTokens = 96;        // of a last one, which takes in what would be a short one
constexpr int64_t kPassTokens = 1536;      // at most, for which some panels are packed once
constexpr int64_t kPartInputs = 256;       // of a product at a time
constexpr int64_t kPanelFloats = 1 << 16;  // of packed panels at a time, in the second-level cache

Tensor plain(const Tensor& tensor) { return to_contiguous(to_type(tensor, ScalarType::Float)); }
OptionalTensor plain(const OptionalTensor& tensor) {
  return tensor ? OptionalTensor(plain(*tensor)) : std::nullopt;
}
float* floats(const Tensor& tensor) { return static_cast<float*>(tensor.data_ptr()); }
const float* floats_or_null(const OptionalTensor& tensor) {
  return tensor ? floats(*tensor) : nullptr;
}

// A linear layer, or some outputs of one, and the normalisation of what it is given, if any.
struct Linear {
  Tensor weight;  // (outputs, inputs)
  OptionalTensor bias;
  OptionalTensor norm_weight = std::nullopt;
  float eps = 0.0f;
  int64_t first_row = 0, rows = weight.size(0);

  // Outputs [first, first + count) of those it has.
  Linear part(int64_t first, int64_t count) const {
    Linear some = *this;
    some.first_row = first_row + first;
    some.rows = count;
    return some;
  }
  // Inputs [first, first + count).
  Weight unpacked(int64_t first, int64_t count) const {
    return {floats(weight) + first_row * weight.size(1) + first, count, weight.size(1),
            norm_weight ? floats(*norm_weight) + first : nullptr};
  }
  Product product(int64_t tokens) const {
    Product p;
    p.tokens = tokens;
    p.inputs = weight.size(1);
    p.outputs = rows;
    if (bias) p.biases = floats(*bias) + first_row;
    return p;
  }

  Floats packed(const Kernels& use) const {
    const int64_t panel = use.panel_width();
    Floats panels(ceil_div(rows, panel) * panel * weight.size(1));
    use.pack_weight(unpacked(0, weight.size(1)), 0, rows, panels.data());
    return panels;
  }

  // All of a product, on all threads. Each packs the panels it needs.
  void apply(const Kernels& use, const Product& all) const {
    const int64_t width = use.panel_width(), panels = ceil_div(all.outputs, width);
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t parts = ceil_div(all.inputs, kPartInputs), part = ceil_div(all.inputs, parts);
    const int64_t in_cache = kPanelFloats / (width * part);
    int64_t passes = ceil_div(all.tokens, kPassTokens);
    const int64_t per_thread = ceil_div(panels * passes, threads);
    const int64_t most = std::max<int64_t>(1, std::min({in_cache, per_thread, panels}));
    // Of equal sizes, and as many for each thread, or the others would wait for one.
    const int64_t groups = ceil_div(panels, most), group = ceil_div(panels, groups);
    passes = ceil_div(ceil_div(passes * groups, threads) * threads, groups);
    passes = std::min(passes, ceil_div(all.tokens, kTokens));
    const int64_t pass = ceil_div(all.tokens, passes), scratch_floats = group * width * part;
    const auto run = [&](int64_t item, float* scratch) {
      const int64_t column = item % groups * group * width;
      const int64_t start = item / groups * pass, end = std::min(all.tokens, start + pass);
      Product p = all;
      p.outputs = std::min(group * width, all.outputs - column);
      p.packed = scratch;
      if (p.biases) p.biases += column;
      if (p.gains) p.gains += column;
      for (int64_t k = 0; k < all.inputs; k += part) {
        p.inputs = std::min(part, all.inputs - k);
        p.first = k == 0;
        p.last = k + p.inputs == all.inputs;
        use.pack_weight(unpacked(k, p.inputs), column, p.outputs, scratch);
        for (int64_t t = start; t < end; t += p.tokens) {
          p.tokens = end - t <= kMostTokens ? end - t : kTokens;
          p.x = all.x + t * all.x_stride + k;
          p.out = all.out + t * all.out_stride + column;
          if (all.added) p.added = all.added + t * all.added_stride + column;
          if (all.gated) p.gated = all.gated + t * all.gated_stride + column;
          if (all.row_scales) p.row_scales = all.row_scales + t;
          use.multiply(p);
        }
      }
    };
    for_each_item(passes * groups, scratch_floats, run);
  }

  // The row scales of a product with a normalisation.
  Floats norm_scales(const Kernels& use, const Product& all) const {
    Floats scales(all.tokens);
    torch::stable::parallel_for(0, all.tokens, kTokens, [&](int64_t begin, int64_t end) {
      NormRows rows;
      rows.count = end - begin;
      rows.channels = all.inputs;
      rows.eps = eps;
      rows.scales = scales.data() + begin;
      rows.x = {const_cast<float*>(all.x) + begin * all.x_stride, all.x_stride, Type::kFloat};
      use.norm_scales(rows);
    });
    return scales;
  }
};

// One direction between the two projections of a block, in plain float32.
struct Direction {
  Tensor conv_weight;
  OptionalTensor conv_bias;
  Tensor x_proj, dt_weight, dt_bias, A, D;
};

// The same, packed.
struct PackedDirection {
  Floats conv_weight, conv_bias, x_proj;
  Parameters parameters;

  PackedDirection(const Kernels& use, const Direction& d)
      : conv_weight(pack(d.conv_weight, d.A.size(0))),
        conv_bias(pack(d.conv_bias, d.A.size(0))),
        x_proj(Linear{d.x_proj, std::nullopt}.packed(use)),
        parameters(d.A, d.dt_weight, d.D, d.dt_bias) {}
};

class Block {
 public:
  Block(Linear in_proj, const Direction& forward, const Direction& reverse, Linear out_proj,
        OptionalTensor gains, double scale)
      : use_(kernels()),
        in_proj_(in_proj.part(0, in_proj.rows / 2)),
        gate_(in_proj.part(in_proj.rows / 2, in_proj.rows / 2)),
        out_proj_(std::move(out_proj)),
        gains_(std::move(gains)),
        scale_(static_cast<float>(scale)),
        channels_(forward.A.size(0)),
        states_(forward.A.size(1)),
        rank_(forward.dt_weight.size(1)),
        width_(forward.conv_weight.size(1)) {
    // Each by a thread.
    for_each_item(2, 0, [&](int64_t d, float*) {
      directions_[d].emplace(use_, d == 0 ? forward : reverse);
    });
  }

  Tensor run(const Tensor& x) const {
    const int64_t batch = x.size(0), length = x.size(1), dims = x.size(2);
    const Tensor out = new_contiguous(x);
    if (batch * length == 0) return out;
    // As few sequences at a time as give all threads something to do.
    const int64_t wanted = 2 * kTokens * torch::stable::get_num_threads();
    const int64_t together = std::min(batch, ceil_div(wanted, length));
    const Space space(*this, x, together, length);
    for (int64_t b = 0; b < batch; b += together) {
      const int64_t sequences = std::min(together, batch - b), first = b * length * dims;
      const int64_t tokens = sequences * length;
      Product p = in_proj_.product(tokens);
      p.x = floats(x) + first;
      p.x_stride = dims;
      p.out = space.x_f;
      p.out_stride = stride();
      const Floats scales = in_proj_.norm_scales(use_, p);
      p.row_scales = scales.data();
      in_proj_.apply(use_, p);

      convolve_and_project(space, sequences, length);
      scan(space, sequences, length);

      p = gate_.product(tokens);
      p.x = floats(x) + first;
      p.x_stride = dims;
      p.row_scales = scales.data();
      p.gated = space.x_f;
      p.out = space.x_b;
      p.gated_stride = p.out_stride = stride();
      gate_.apply(use_, p);

      p = out_proj_.product(tokens);
      p.x = space.x_b;
      p.x_stride = stride();
      p.gains = floats_or_null(gains_);
      p.added = floats(x) + first;
      p.added_stride = dims;
      p.out = floats(out) + first;
      p.out_stride = dims;
      out_proj_.apply(use_, p);
    }
    return out;
  }

 private:
  int64_t columns() const { return rank_ + 2 * states_; }  // of x_proj
  int64_t halo() const { return width_ - 1; }
  // Tokens of a tile: of equal sizes, and as many tiles for each thread.
  int64_t tile(int64_t sequences, int64_t length) const {
    const int64_t threads = torch::stable::get_num_threads();
    const int64_t tiles = ceil_div(sequences * ceil_div(length, kTokens), threads) * threads;
    return std::max({ceil_div(length, ceil_div(tiles, sequences)), halo(), kFewestTokens});
  }

  // Rows lie an odd number of cache lines apart: those of a power of two would meet in few places of
  // a cache.
  int64_t stride() const { return (ceil_div(channels_, 16) | 1) * 16; }

  // Between the steps: x, later x_f, later y; x_b, later y with its gate; dt, B and C of both
  // directions; the x about the borders of tiles.
  struct Space {
    Tensor all;
    int64_t tile, tiles;  // of a sequence
    float *x_f, *x_b, *rows, *halos;
    Space(const Block& block, const Tensor& like, int64_t sequences, int64_t length)
        : tile(block.tile(sequences, length)), tiles(ceil_div(length, tile)) {
      const int64_t tokens = sequences * length;
      const int64_t sizes[4] = {tokens * block.stride(), tokens * block.stride(),
                                tokens * 2 * block.columns(),
                                sequences * tiles * 2 * block.halo() * block.channels_};
      all = torch::stable::new_empty(like, Sizes{sizes[0] + sizes[1] + sizes[2] + sizes[3]},
                                     ScalarType::Float);
      x_f = floats(all);
      x_b = x_f + sizes[0];
      rows = x_b + sizes[1];
      halos = rows + sizes[2];
    }
  };

  // Some tokens of a sequence.
  struct Tile {
    int64_t start;  // of the sequence, among all tokens
    int64_t first, count, before, after;
    float* halo;  // x of the tokens about the tile's beginning; that of the next tile follows
  };
  Tile tile_of(const Space& space, int64_t item, int64_t length) const {
    const int64_t index = item % space.tiles;
    Tile t;
    t.start = item / space.tiles * length;
    t.first = index * space.tile;
    t.count = std::min(space.tile, length - t.first);
    t.before = std::min(halo(), t.first);
    t.after = std::min(halo(), length - t.first - t.count);
    t.halo = space.halos + item * 2 * halo() * channels_;
    return t;
  }

  static void copy_rows(float* to, int64_t to_stride, const float* from, int64_t from_stride,
                        int64_t rows, int64_t columns) {
    for (int64_t t = 0; t < rows; ++t)
      std::memcpy(to + t * to_stride, from + t * from_stride, columns * sizeof(float));
  }

  // x -> x_f in its place, x_b; and x_proj of both. A tile reads x of its neighbours, which may have
  // been written over by then: the tokens about each border are kept first.
  void convolve_and_project(const Space& space, int64_t sequences, int64_t length) const {
    const int64_t E = channels_, stride = this->stride();
    const int64_t items = sequences * space.tiles;
    torch::stable::parallel_for(0, items, 1, [&](int64_t begin, int64_t end) {
      for (int64_t item = begin; item < end; ++item) {
        const Tile t = tile_of(space, item, length);
        const int64_t rows = t.before + std::min(halo(), t.count);
        copy_rows(t.halo, E,
                  space.x_f + (t.start + t.first - t.before) * stride, stride, rows, E);
      }
    });
    const int64_t window_floats = (space.tile + 2 * halo()) * E;
    for_each_item(items, window_floats, [&](int64_t item, float* window) {
      const Tile t = tile_of(space, item, length);
      const int64_t at = t.start + t.first;
      float* own = window + t.before * E;
      copy_rows(window, E, t.halo, E, t.before, E);
      copy_rows(own, E, space.x_f + at * stride, stride, t.count, E);
      // The next tile has `tile` tokens before it, so all of its halo.
      const float* next = t.halo + (2 * halo() + halo()) * E;
      copy_rows(own + t.count * E, E, next, E, t.after, E);
      ConvBlock block;
      block.directions = 2;
      block.length = t.before + t.count + t.after;
      block.first = t.before;
      block.count = t.count;
      block.channels = E;
      block.width = width_;
      block.ld = padded(E);
      block.x = {window, E, Type::kFloat};
      float* outs[2] = {space.x_f + (at - t.before) * stride, space.x_b + (at - t.before) * stride};
      for (int d = 0; d < 2; ++d) {
        Conv& conv = block.convs[d];
        conv.weight = directions_[d]->conv_weight.data();
        conv.bias = directions_[d]->conv_bias.data();
        conv.reverse = d == 1;
        conv.out = {outs[d], stride, Type::kFloat};
      }
      use_.conv_forward(block);
      for (int d = 0; d < 2; ++d) {
        Product p;
        p.tokens = t.count;
        p.inputs = E;
        p.outputs = columns();
        p.x = (d == 0 ? space.x_f : space.x_b) + at * stride;
        p.x_stride = stride;
        p.packed = directions_[d]->x_proj.data();
        p.out = space.rows + at * 2 * columns() + d * columns();
        p.out_stride = 2 * columns();
        use_.multiply(p);
      }
    });
  }

  // x_f, x_b and the rows of both directions -> y, without the gate, in the place of x_f.
  void scan(const Space& space, int64_t sequences, int64_t length) const {
    const Blocks blocks = forward_blocks(sequences, 1, channels_);
    const int64_t stride = this->stride(), rows_stride = 2 * columns();
    const auto block_of = [&](int64_t index) {
      const Blocks::Item item = blocks.item(index);
      const int64_t start = item.b * length;
      ForwardBlock block;
      block.directions = 2;
      block.length = length;
      block.channels = item.count;
      block.scale = scale_;
      block.out = {space.x_f + start * stride + item.first, stride, Type::kFloat};
      for (int d = 0; d < 2; ++d) {
        Scan& s = block.scans[d];
        s.u = {(d == 0 ? space.x_f : space.x_b) + start * stride + item.first, stride, Type::kFloat};
        float* rows = space.rows + start * rows_stride + d * columns();
        s.dt = {rows, rows_stride, Type::kFloat};
        s.B = {rows + rank_, rows_stride, Type::kFloat};
        s.C = {rows + rank_ + states_, rows_stride, Type::kFloat};
        directions_[d]->parameters.give(s, item.first, padded(channels_));
        s.rank = rank_;
        s.states = states_;
        s.softplus = true;
        s.reverse = d == 1;
      }
      return block;
    };
    for_each_item(blocks.count(), use_.forward_scratch(block_of(0)),
                  [&](int64_t index, float* scratch) {
                    ForwardBlock block = block_of(index);
                    block.scratch = scratch;
                    use_.scan_forward(block);
                  });
  }

  const Kernels& use_;
  Linear in_proj_, gate_, out_proj_;
  OptionalTensor gains_;
  std::optional<PackedDirection> directions_[2];
  float scale_;
  int64_t channels_, states_, rank_, width_;
};

Tensor vim_block(const Tensor x, const Tensor norm_weight, const Tensor in_proj,
                 const OptionalTensor in_bias, const Tensor conv_weight_f,
                 const OptionalTensor conv_bias_f, const Tensor x_proj_f, const Tensor dt_weight_f,
                 const Tensor dt_bias_f, const Tensor A_f, const Tensor D_f,
                 const Tensor conv_weight_b, const OptionalTensor conv_bias_b,
                 const Tensor x_proj_b, const Tensor dt_weight_b, const Tensor dt_bias_b,
                 const Tensor A_b, const Tensor D_b, const Tensor out_proj,
                 const OptionalTensor out_bias, const OptionalTensor gains, double eps,
                 double scale) {
  STD_TORCH_CHECK(x.scalar_type() == ScalarType::Float,
                  "vim_block is compiled for float32; call the ops of the block one by one");
  const Linear in = {plain(in_proj), plain(in_bias), plain(norm_weight), static_cast<float>(eps)};
  const Direction forward = {plain(conv_weight_f), plain(conv_bias_f), plain(x_proj_f),
                             plain(dt_weight_f),   plain(dt_bias_f),   plain(A_f),
                             plain(D_f)};
  const Direction reverse = {plain(conv_weight_b), plain(conv_bias_b), plain(x_proj_b),
                             plain(dt_weight_b),   plain(dt_bias_b),   plain(A_b),
                             plain(D_b)};
  const Linear out = {plain(out_proj), plain(out_bias)};
  return Block(in, forward, reverse, out, plain(gains), scale).run(to_contiguous(x));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(mmvim, CPU, m) { m.impl("vim_block", TORCH_BOX(&vim_block)); }

}  // namespace mmvim
