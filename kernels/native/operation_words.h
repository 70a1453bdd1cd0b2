// What the checks of all kinds of operations share: how a field is refused, and what an operation refers to.
#ifndef DIFFUSEVAE_NATIVE_OPERATION_WORDS_H
#define DIFFUSEVAE_NATIVE_OPERATION_WORDS_H

#include <initializer_list>

#include "operation_check.h"

namespace diffusevae {
namespace native {

std::string text(int64_t value);
std::string size_of(int64_t channels, int64_t height, int64_t width);
const char* kind_name(int32_t kind);  // "?" for none

// One operation among those of its program; what it writes is marked in Program::writer and in `port_written`.
class OperationWords {
public:
    OperationWords(Program& program, int32_t index, std::vector<char>& port_written)
        : p_(program), op_(program.ops[size_t(index)]), index_(index), port_written_(port_written) {}

protected:
    // ---- words of a refusal -------------------------------------------------------------------------------------------

    std::string name(const std::string& field) const;
    void want(bool good, const std::string& field, const std::string& found, const std::string& expected) const;
    void one_of(int32_t value, int32_t first, int32_t second, const std::string& field) const;
    void between(float value, float least, float most, const std::string& field) const;
    void activation(int32_t value, std::initializer_list<int32_t> allowed, const std::string& field) const;

    // ---- what an operation refers to ----------------------------------------------------------------------------------

    // Entries of a list of sources that must be so many.
    int32_t sources(int32_t least, int32_t most) const;
    const dv_native_tensor& source(int32_t tensor, const std::string& field) const;
    const dv_native_tensor& source(int32_t tensor, int32_t rows, const std::string& field) const;
    const dv_native_tensor& map(int32_t tensor, const std::string& field) const;

    // The tensor that this operation writes; marks it written.
    const dv_native_tensor& output();
    const dv_native_tensor& output(int32_t rows, int64_t channels, int64_t height, int64_t width);
    const dv_native_port& output_port(std::initializer_list<int32_t> kinds);
    void one_output() const;
    const dv_native_port& input_port(int32_t port, int32_t kind, const std::string& field = "sources") const;

    // Weights of exactly this dtype and of this size, rounded up to 64 bytes.
    void blob(int32_t number, int32_t dtype, int64_t bytes, const std::string& field) const;
    void row_slice(int32_t first, int64_t count, const std::string& field) const;

    // A GroupNorm of these sources, whose sums convolutions gather, and the numbers of its weights.
    void group_norm(int64_t channels, int32_t count) const;

    Program& p_;
    const dv_native_op& op_;
    int32_t index_;
    std::vector<char>& port_written_;
};

// Whether an operation is one of gradients; those are checked apart.
inline bool is_gradient(int32_t kind) { return kind >= DV_NATIVE_NORM_GRADIENT && kind <= DV_NATIVE_CLASSIFY; }
void check_gradient(Program& program, int32_t index, std::vector<char>& port_written);

}  // namespace native
}  // namespace diffusevae

#endif  // DIFFUSEVAE_NATIVE_OPERATION_WORDS_H
