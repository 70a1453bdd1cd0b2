// The checks of one operation, and how any field of a program is refused.
#ifndef DIFFUSEVAE_NATIVE_OPERATION_CHECK_H
#define DIFFUSEVAE_NATIVE_OPERATION_CHECK_H

#include "program.h"

namespace diffusevae {
namespace native {

constexpr int32_t kMostChannels = 1 << 16, kMostSide = 1024, kMostEntries = 1 << 24;
constexpr int32_t kMostRow = 1 << 28;  // values of an input port of 1 x 1, of which maps are made
constexpr int32_t kMostAttended = 1 << 14;  // pixels or tokens that attention looks at

// Throws Failure(DV_NATIVE_BAD_PROGRAM).
[[noreturn]] void refuse(const std::string& field, const std::string& found, const std::string& expected);
void in_range(int64_t value, int64_t least, int64_t most, const std::string& field);

// Operation `index`, whose predecessors are sound; marks the tensor (Program::writer) or port that it writes.
void check_operation(Program& program, int32_t index, std::vector<char>& port_written);

}  // namespace native
}  // namespace diffusevae

#endif  // DIFFUSEVAE_NATIVE_OPERATION_CHECK_H
