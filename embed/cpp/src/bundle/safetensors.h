// The header of a safetensors file: eight bytes with the header's length, a JSON header
// {name: {dtype, shape, data_offsets}}, the data. Two readers with one start: packed weights are held to more, weights.h.
#ifndef DIFFUSEVAE_SAFETENSORS_H
#define DIFFUSEVAE_SAFETENSORS_H

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bundle/json.h"

namespace diffusevae {

// A file in its two parts.
struct SafetensorsParts {
    Value header;
    std::string_view data;
};

// Splits `bytes`, which must outlive the result, behind a header of `max_header` bytes at most; Error (BUNDLE) otherwise.
SafetensorsParts split_safetensors(std::string_view bytes, size_t max_header, const Origin& origin);

struct StoredTensor {
    std::string dtype;
    std::vector<int64_t> shape;
    std::string_view data;
};

// The float32 tensors of a file, by name, without "__metadata__". Error (BUNDLE) unless they fill the data without a gap.
std::map<std::string, StoredTensor> parse_safetensors(std::string_view bytes, const Origin& origin);

// The product of the dimensions, times `unit`; nothing where it does not fit into 62 bits.
std::optional<int64_t> bytes_of(const std::vector<int64_t>& shape, int64_t unit);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_SAFETENSORS_H
