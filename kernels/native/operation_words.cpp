// Names of kinds, dtypes and activations as programs spell them, and the sentences that they stand in.
#include "operation_words.h"

#include <algorithm>
#include <cstdio>

namespace diffusevae {
namespace native {
namespace {

const char* const kKinds[] = {"?",      "input", "conv",  "attention", "pool",          "upsample",           "lookup",
                              "linear", "add",   "embed", "nearest",   "norm_gradient", "attention_gradient", "classify",
                              "norm"};
const char* const kDtypes[] = {"?", "F32", "BF16", "I8"};
const char* const kActivations[] = {"identity", "silu", "gelu", "sigmoid", "signed_sigmoid", "geglu", "relu"};

std::string number(float value) {
    char shown[32];
    std::snprintf(shown, sizeof shown, "%g", double(value));
    return shown;
}

}  // namespace

std::string text(int64_t value) { return std::to_string(value); }

std::string size_of(int64_t channels, int64_t height, int64_t width) {
    return text(channels) + " x " + text(height) + " x " + text(width);
}

const char* kind_name(int32_t kind) {
    return kKinds[kind >= DV_NATIVE_INPUT && kind <= DV_NATIVE_NORM ? kind : 0];
}

std::string OperationWords::name(const std::string& field) const {
    return "ops[" + text(index_) + "]." + field + " (" + kind_name(op_.kind) + ")";
}

void OperationWords::want(bool good, const std::string& field, const std::string& found, const std::string& expected) const {
    if (!good) refuse(name(field), found, expected);
}

void OperationWords::one_of(int32_t value, int32_t first, int32_t second, const std::string& field) const {
    want(value == first || value == second, field, text(value), text(first) + " or " + text(second));
}

void OperationWords::between(float value, float least, float most, const std::string& field) const {
    want(value >= least && value <= most, field, number(value), number(least) + ".." + number(most));
}

void OperationWords::activation(int32_t value, std::initializer_list<int32_t> allowed, const std::string& field) const {
    std::string names;
    for (const int32_t each : allowed) {
        if (value == each) return;
        names += (names.empty() ? "" : ", ") + std::string(kActivations[each]);
    }
    const bool known = value >= DV_NATIVE_IDENTITY && value <= DV_NATIVE_RELU;
    refuse(name(field), known ? kActivations[value] : text(value), "one of " + names);
}

int32_t OperationWords::sources(int32_t least, int32_t most) const {
    const int32_t count = count_of(op_.sources);
    want(count >= least && count <= most, "sources", text(count) + " of them",
         least == most ? text(least) : text(least) + " to " + text(most));
    return count;
}

const dv_native_tensor& OperationWords::source(int32_t tensor, const std::string& field) const {
    in_range(tensor, 0, int64_t(p_.tensors.size()) - 1, name(field));
    want(p_.writer[size_t(tensor)] != DV_NATIVE_NONE, field, "tensors[" + text(tensor) + "], not yet written",
         "tensors that operations before this one write");
    return p_.tensor(tensor);
}

const dv_native_tensor& OperationWords::source(int32_t tensor, int32_t rows, const std::string& field) const {
    const dv_native_tensor& t = source(tensor, field);
    want(t.rows == rows, field, t.rows == DV_NATIVE_ROWS_NONE ? "a map" : "rows",
         rows == DV_NATIVE_ROWS_NONE ? "a map" : rows == DV_NATIVE_ROWS_STEPS ? "rows of steps" : "rows of the batch");
    return t;
}

const dv_native_tensor& OperationWords::map(int32_t tensor, const std::string& field) const {
    return source(tensor, DV_NATIVE_ROWS_NONE, field);
}

const dv_native_tensor& OperationWords::output() {
    in_range(op_.output, 0, int64_t(p_.tensors.size()) - 1, name("output"));
    int32_t& writer = p_.writer[size_t(op_.output)];
    want(writer == DV_NATIVE_NONE, "output", "tensors[" + text(op_.output) + "], which ops[" + text(writer) + "] writes",
         "a tensor that no operation before this one writes");
    writer = index_;
    return p_.tensor(op_.output);
}

const dv_native_tensor& OperationWords::output(int32_t rows, int64_t channels, int64_t height, int64_t width) {
    const dv_native_tensor& t = output();
    want(t.rows == rows && t.channels == channels && t.height == height && t.width == width, "output",
         size_of(t.channels, t.height, t.width) + (t.rows == rows ? "" : " of another kind"),
         (rows == DV_NATIVE_ROWS_NONE ? "a map of " : "rows of ") + size_of(channels, height, width));
    return t;
}

const dv_native_port& OperationWords::output_port(std::initializer_list<int32_t> kinds) {
    in_range(op_.output_port, 0, int64_t(p_.ports.size()) - 1, name("output_port"));
    const dv_native_port& port = p_.port(op_.output_port);
    want(port.is_output == 1 && std::find(kinds.begin(), kinds.end(), port.kind) != kinds.end(), "output_port",
         "ports[" + text(op_.output_port) + "]", "an output port of the operation's kind");
    char& written = port_written_[size_t(op_.output_port)];
    want(written == 0, "output_port", "ports[" + text(op_.output_port) + "], written before",
         "a port that no operation before this one writes");
    written = 1;
    return port;
}

void OperationWords::one_output() const {
    if (op_.output == DV_NATIVE_NONE)
        want(op_.output_port != DV_NATIVE_NONE, "output_port", "null", "a port, since there is no output");
    else
        want(op_.output_port == DV_NATIVE_NONE, "output_port", "ports[" + text(op_.output_port) + "]",
             "null, since there is an output");
}

const dv_native_port& OperationWords::input_port(int32_t port, int32_t kind, const std::string& field) const {
    in_range(port, 0, int64_t(p_.ports.size()) - 1, name(field));
    want(p_.port(port).is_output == 0 && p_.port(port).kind == kind, field, "ports[" + text(port) + "]",
         "an input port of the operation's kind");
    return p_.port(port);
}

void OperationWords::blob(int32_t number, int32_t dtype, int64_t bytes, const std::string& field) const {
    const int64_t size = (bytes + 63) / 64 * 64;
    const std::string expected = std::string(kDtypes[dtype]) + " weights of " + text(size) + " bytes";
    want(number != DV_NATIVE_NONE, field, "null", expected);
    in_range(number, 0, int64_t(p_.blobs.size()) - 1, name(field));
    const dv_native_blob& b = p_.blobs[size_t(number)];
    want(b.dtype == dtype && b.size == size, field, std::string(kDtypes[b.dtype]) + " of " + text(b.size) + " bytes",
         expected);
}

void OperationWords::row_slice(int32_t first, int64_t count, const std::string& field) const {
    want(p_.row_port != DV_NATIVE_NONE, field, text(first), "null in a program without a row port");
    in_range(first, 0, p_.port(p_.row_port).channels - count, name(field));
}

void OperationWords::group_norm(int64_t channels, int32_t count) const {
    in_range(op_.norm_groups, 1, channels, name("norm.groups"));
    want(channels % op_.norm_groups == 0, "norm.groups", text(op_.norm_groups),
         "a divisor of the " + text(channels) + " channels");
    between(op_.norm_epsilon, 1e-12f, 1.0f, "norm.epsilon");
    blob(op_.norm_weight, DV_NATIVE_F32, 4 * channels, "norm.weight");
    blob(op_.norm_bias, DV_NATIVE_F32, 4 * channels, "norm.bias");
    if (op_.scale_row != DV_NATIVE_NONE) row_slice(op_.scale_row, 2 * channels, "norm.scale_row");
    for (int32_t i = 0; i < count; ++i) {
        const int32_t kind = p_.ops[size_t(p_.writer[size_t(op_.sources[i])])].kind;
        want(kind == DV_NATIVE_CONV, "sources", std::string("a map that ") + kind_name(kind) + " writes",
             "maps that conv writes, which gathers the norm's sums");
    }
}

}  // namespace native
}  // namespace diffusevae
