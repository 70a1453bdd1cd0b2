// Arrays that the pipeline owns: a value of a chunk of samples, in a buffer that is kept from run to run.
#ifndef DIFFUSEVAE_TENSOR_H
#define DIFFUSEVAE_TENSOR_H

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "backends/graph.h"

namespace diffusevae {

size_t bytes_of(Dtype dtype);                 // of one element
Dtype dtype_of(const std::string& name);      // "float32", "int64", "uint8"
const char* name_of(Dtype dtype);

// One array; its first dimension counts samples.
class Tensor {
public:
    // Takes another dtype and shape; what it holds afterwards is undefined. Error (NO_MEMORY) for what no memory holds.
    void prepare(Dtype dtype, const std::vector<int64_t>& shape);

    Dtype dtype() const { return dtype_; }
    const std::vector<int64_t>& shape() const { return shape_; }
    int64_t samples() const { return shape_[0]; }
    size_t size() const { return size_; }                           // bytes
    size_t sample_size() const { return size_ / size_t(samples()); }  // bytes of one sample

    const void* data() const { return bytes_.data(); }
    void* data() { return bytes_.data(); }
    float* floats() { return static_cast<float*>(data()); }
    const float* floats() const { return static_cast<const float*>(data()); }

    // This array under a graph's name for it.
    Array named(const std::string& name) const { return Array(name.c_str(), dtype_, data(), shape_); }

    // Fills samples begin .. with copies of one sample.
    void repeat(const void* sample, int64_t begin, int64_t count);

private:
    Dtype dtype_ = Dtype::kFloat32;
    std::vector<int64_t> shape_;
    size_t size_ = 0;
    std::vector<char> bytes_;  // at least size_, and as aligned as operator new makes it
};

using Tensors = std::map<std::string, Tensor>;

}  // namespace diffusevae

#endif  // DIFFUSEVAE_TENSOR_H
