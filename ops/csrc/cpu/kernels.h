// What the CPU kernels are given and offer: plain structs and function pointers, no torch.
//
// A kernel handles one block of adjacent channels of one sequence; whoever calls it splits a batch
// into blocks, moves the pointers there and adds up what several blocks contribute to.

#pragma once

#include <cstdint>

namespace mmvim {

enum class Type : int32_t { kFloat, kBFloat16 };

// Rows of a tensor: the value of token t, channel c lies at data[t * stride + c].
struct Rows {
  void* data = nullptr;
  int64_t stride = 0;
  Type type = Type::kFloat;
};

// One scan direction over a block of channels; pointers are those of the block's first channel.
struct Scan {
  Rows u;
  Rows delta;  // the step before bias and softplus; not given where rank > 0 says to compute it
  Rows dt;     // rank columns, multiplied by dt_weight
  Rows B, C;   // `states` columns
  // Parameters, channels adjacent and rows `ld` apart.
  const float* dt_weight = nullptr;  // (rank, ld)
  const float* decay = nullptr;      // (states, ld), A times log2(e)
  const float* D = nullptr;          // (ld)
  const float* bias = nullptr;       // (ld)
  int64_t ld = 0;
  int64_t rank = 0;
  int64_t states = 0;
  bool softplus = false;
  bool reverse = false;
  // The state before every `chunk` tokens, in scan order; null where none is kept.
  float* checkpoints = nullptr;
  int64_t checkpoint_stride = 0;  // from one chunk to the next
  int64_t state_stride = 0;       // from one state to the next within a checkpoint
  int64_t chunk = 0;
};

struct ForwardBlock {
  Scan scans[2];
  int directions = 1;
  int64_t length = 0;
  int64_t channels = 0;
  Rows z;  // null data: no gate
  Rows out;  // may be the u of the first scan, each row of which is read before it is written
  float scale = 1.0f;
  float* last_state = nullptr;  // (channels, states) of the first scan, or null
  float* scratch = nullptr;     // forward_scratch() floats, 64-byte aligned
};

// What a direction's backward adds to, beside the gradients of the block's own channels.
struct ScanGrads {
  Rows u;
  Rows delta;         // null where computed from dt
  float* rows;        // (length, rank + 2 states): this block's share of the grads of dt, B, C
  float* parameters;  // (states + rank + 2, ld): this sequence's share of those of A, dt_weight,
                      // D and bias, in this order
};

struct BackwardBlock {
  Scan scans[2];
  ScanGrads grads[2];
  int directions = 1;
  int64_t length = 0;
  int64_t channels = 0;
  Rows z;
  Rows grad_out;
  Rows grad_z;  // null data: not wanted
  float scale = 1.0f;
  const float* grad_last_state = nullptr;  // (channels, states) of the first scan, or null
  float* scratch = nullptr;                // backward_scratch() floats, 64-byte aligned
};

// One direction of a depthwise convolution with SiLU.
struct Conv {
  const float* weight = nullptr;  // (width, ld); the last row meets the token itself
  const float* bias = nullptr;    // (ld)
  bool reverse = false;
  Rows out;
  Rows grad_out;
  // (width + 1, ld): this sequence's share of the grads of weight and bias.
  float* parameters = nullptr;
};

// Forwards, some tokens of all channels; backwards, all tokens of some channels.
struct ConvBlock {
  Conv convs[2];
  int directions = 1;
  int64_t length = 0;
  int64_t first = 0;  // forward: the tokens to compute
  int64_t count = 0;
  int64_t channels = 0;
  int64_t width = 0;
  int64_t ld = 0;
  Rows x;
  Rows grad_x;  // backward only
  float* scratch = nullptr;
};

// Some rows of a normalisation; `total` is x + added.
struct NormRows {
  int64_t count = 0;
  int64_t channels = 0;
  float eps = 0.0f;
  const float* weight = nullptr;  // (channels)
  float* scales = nullptr;        // (count), the factor of each row
  Rows x, added, total, normed;   // forward
  // Backward, which reads `total` too; without grad_total where nothing else reads it.
  Rows grad_normed, grad_total, grad_x;
  float* grad_weight = nullptr;   // (channels), added to
};

// The weight of a linear layer, or some of its inputs.
struct Weight {
  const float* data = nullptr;  // (outputs, inputs), rows `stride` apart
  int64_t inputs = 0;
  int64_t stride = 0;
  const float* scales = nullptr;  // (inputs), factors of its columns, or null
};

// Some tokens times a packed weight. A product of many inputs is computed some of them at a time:
// `out` holds the sums in between.
struct Product {
  bool first = true, last = true;  // of these inputs
  int64_t tokens = 0, inputs = 0, outputs = 0;
  const float* x = nullptr;  // (tokens, inputs)
  int64_t x_stride = 0;
  const float* packed = nullptr;
  const float* row_scales = nullptr;  // (tokens), or null
  const float *biases = nullptr, *gains = nullptr;  // (outputs), or null
  const float *added = nullptr, *gated = nullptr;  // (tokens, outputs), or null
  int64_t added_stride = 0, gated_stride = 0;
  float* out = nullptr;  // (tokens, outputs)
  int64_t out_stride = 0;
};

struct Kernels {
  const char* name;
  void (*scan_forward)(const ForwardBlock&);
  void (*scan_backward)(const BackwardBlock&);
  void (*conv_forward)(const ConvBlock&);
  void (*conv_backward)(const ConvBlock&);
  void (*norm_forward)(const NormRows&);
  void (*norm_backward)(const NormRows&);
  // 1 / sqrt(mean(x^2) + eps) of rows.count tokens x into rows.scales.
  void (*norm_scales)(const NormRows&);
  // Rows [first, first + count) of a weight, count rounded up to whole panels.
  void (*pack_weight)(const Weight&, int64_t first, int64_t count, float* packed);
  void (*multiply)(const Product&);
  int64_t (*panel_width)();
  void (*exp_many)(float* data, int64_t count, int64_t repeats);
  int64_t (*forward_scratch)(const ForwardBlock&);
  int64_t (*backward_scratch)(const BackwardBlock&);
  int64_t (*conv_scratch)(const ConvBlock&);
};

extern const Kernels kPlainKernels;
#ifdef __x86_64__
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#elif defined(__aarch64__)
extern const Kernels kNeonKernels;
#endif

// The kernels in use; the best this machine can run until another set is chosen.
const Kernels& kernels();

}  // namespace mmvim
