// The native engine's packed weights, in a safetensors file that is mapped, checked and never copied. Of the
// format only what packed weights need is taken: three dtypes, no gaps, tensors and data at multiples of 64 bytes.
#ifndef DIFFUSEVAE_WEIGHTS_H
#define DIFFUSEVAE_WEIGHTS_H

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "bundle/files.h"

namespace diffusevae {

// One packed tensor: where it begins in the data, and its bytes.
struct Blob {
    std::string dtype;
    int64_t offset = 0, size = 0;
};

using Blobs = std::map<std::string, Blob>;

// A mapped file: its blobs by name, and the data, which lives as long as this does.
class Weights {
public:
    Weights(MappedFile file, const std::string& where);  // Error (BUNDLE) names what is wrong with the header

    const Blobs& blobs() const { return blobs_; }
    const void* data() const { return data_.data(); }
    int64_t size() const { return int64_t(data_.size()); }

private:
    MappedFile file_;
    Blobs blobs_;
    std::string_view data_;
};

}  // namespace diffusevae

#endif  // DIFFUSEVAE_WEIGHTS_H
