// Where everything lies: a checked program resolved for one instruction set: offsets, tables, sizes of scratch.
#ifndef DIFFUSEVAE_NATIVE_LAYOUT_H
#define DIFFUSEVAE_NATIVE_LAYOUT_H

#include <array>
#include <map>
#include <memory>
#include <vector>

#include "memory.h"
#include "program.h"

namespace diffusevae {
namespace native {

// An op of rows: float32 tensors and ports of [rows, channels].
struct RowsOp {
    int32_t first, second;          // tensors read, or (LOOKUP, INPUT) a port
    int32_t output, output_port;
    int32_t entries;                // LOOKUP
    const float* table;
    Linear linear;
};

struct Operation {
    int32_t kind;
    Conv conv;
    Input input;
    Attention attention;
    Resize resize;
    Embed embed;
    Nearest nearest;
    NormGradient norm_gradient;
    AttentionGradient attention_gradient;
    Classify classify;
    RowsOp rows;
    int64_t scratch_bytes;          // a sample
    double flop, activation_bytes;  // a sample
    double weight_bytes;
};

struct Layout {
    const Kernels* kernels;
    Program program;
    std::vector<Operation> operations;
    int64_t sample_bytes;           // one sample's part of the arena
    int64_t scratch_bytes;          // the largest of all operations, a sample
    int64_t private_floats;         // of each thread
    // Tables shared by the operations of one geometry; a map does not move its values.
    std::map<std::array<int64_t, 5>, std::vector<uint32_t>> tables;
    std::vector<std::unique_ptr<Memory>> transformed;  // weights of Winograd's convolutions, shared by clones
};

// Bytes behind every block of memory that tiles may read (never use) beyond an operand's last pixel.
constexpr int64_t kSlack = 4096;

std::shared_ptr<const Layout> make_layout(Program program, const Kernels* kernels);

}  // namespace native
}  // namespace diffusevae

#endif  // DIFFUSEVAE_NATIVE_LAYOUT_H
