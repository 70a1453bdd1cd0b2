// The judge of programs: everything that a later stage relies on is checked here, against hostile input.
#ifndef DIFFUSEVAE_NATIVE_PROGRAM_H
#define DIFFUSEVAE_NATIVE_PROGRAM_H

#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

#include "target.h"

namespace diffusevae {
namespace native {

// What a function of the C interface answers, with its sentence.
class Failure : public std::runtime_error {
public:
    Failure(int32_t status, const std::string& text) : std::runtime_error(text), status_(status) {}
    int32_t status() const { return status_; }

private:
    int32_t status_;
};

// Throws Failure(DV_NATIVE_BAD_CALL) where a call is not good. `text` is a text, or where it takes making what makes it: a check
// of every step's call must cost nothing.
template <class Text>
void demand(bool good, const Text& text) {
    if (good) return;
    if constexpr (std::is_invocable_v<Text>) throw Failure(DV_NATIVE_BAD_CALL, text());
    else throw Failure(DV_NATIVE_BAD_CALL, text);
}

// An op that looks up the ids of a port, all of them below its factor.
struct LookedUp {
    int32_t op, port;
};

// The arrays of a checked program; the weights stay the caller's.
struct Program {
    std::vector<dv_native_port> ports;
    std::vector<dv_native_tensor> tensors;
    std::vector<dv_native_op> ops;
    std::vector<dv_native_blob> blobs;
    const uint8_t* weights;
    int64_t weights_size;
    bool of_rows;                   // a timestep table; otherwise of maps
    int32_t row_port, steps_port;   // or NONE
    std::vector<int32_t> writer;    // of each tensor: its op
    std::vector<LookedUp> looked_up;

    const dv_native_tensor& tensor(int32_t i) const { return tensors[size_t(i)]; }
    const dv_native_port& port(int32_t i) const { return ports[size_t(i)]; }
    const uint8_t* blob(int32_t i) const { return weights + blobs[size_t(i)].offset; }
};

// Throws Failure(DV_NATIVE_BAD_PROGRAM): which field of which operation, what was found, what was expected.
Program checked(const dv_native_program& given);

// Whether it makes a program one of rows, as a timestep table is.
inline bool is_of_rows(int32_t kind) {
    return kind == DV_NATIVE_LOOKUP || kind == DV_NATIVE_LINEAR || kind == DV_NATIVE_ADD;
}

inline int32_t blocks_of(int64_t channels) { return int32_t((channels + kBlock - 1) / kBlock); }

// Numbers in a list that ends with NONE.
inline int32_t count_of(const int32_t (&list)[kSources]) {
    int32_t count = 0;
    while (count < kSources && list[count] != DV_NATIVE_NONE) ++count;
    return count;
}

// What the sizes of a convolution's operands follow from.
struct ConvShape {
    int32_t sources, channels, map_blocks, k_blocks, height, width;
    int32_t outputs, out_height, out_width;
    int32_t taps, phases, n_blocks, skips, skip_blocks;
    int64_t steps() const { return int64_t(k_blocks) * taps; }
};

ConvShape conv_shape(const Program& program, const dv_native_op& op);

}  // namespace native
}  // namespace diffusevae

#endif  // DIFFUSEVAE_NATIVE_PROGRAM_H
