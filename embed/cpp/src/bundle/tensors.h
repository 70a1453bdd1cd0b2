// Tensors as a manifest declares them: name, dtype, shape with named free dimensions, range; and nulls, one sample of a value.
#ifndef DIFFUSEVAE_BUNDLE_TENSORS_H
#define DIFFUSEVAE_BUNDLE_TENSORS_H

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "bundle/constants.h"
#include "bundle/fields.h"

namespace diffusevae {

constexpr const char* kFloat32 = "float32";
constexpr const char* kInt64 = "int64";
constexpr const char* kUint8 = "uint8";

using Dimension = std::variant<int64_t, std::string>;  // a name is a free dimension
using Dimensions = std::vector<Dimension>;
using Range = std::optional<std::pair<double, double>>;  // both ends belong to it; nothing: unbounded

std::string text_of(const Dimension& dimension);
std::string text_of(const Dimensions& shape);  // "batch, 3, 32, 32"

struct TensorSpec {
    std::string name, dtype;
    Dimensions shape;
    Range range;

    std::string text() const;  // "x float32[batch, 3, 32, 32]"
};

bool operator==(const TensorSpec& a, const TensorSpec& b);
inline bool operator!=(const TensorSpec& a, const TensorSpec& b) { return !(a == b); }

// What stands for "nothing" under guidance, as bytes of the value's dtype: all of a sample, or one number that fills it.
using Null = std::vector<char>;

// Whether a text is a name as Python's identifiers of ASCII letters are.
bool is_identifier(const std::string& text);

Dimensions parse_shape(Fields& fields, const char* key);
Range parse_range(Fields& fields, const char* key);
std::vector<TensorSpec> parse_tensors(Fields& fields, const char* key);

// The null in the field `key`, nothing where it is null. shape: of one sample. A number fills it; a nested list must have
// exactly this shape, which then is fixed.
std::optional<Null> parse_null(Fields& fields, const std::string& key, const Dimensions& shape, const std::string& dtype,
                               const Range& range);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BUNDLE_TENSORS_H
