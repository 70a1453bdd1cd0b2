#include "tensor.h"

#include <cstring>

#include "checks.h"

namespace diffusevae {

size_t bytes_of(Dtype dtype) {
    switch (dtype) {
        case Dtype::kFloat32: return sizeof(float);
        case Dtype::kUint8: return sizeof(uint8_t);
        default: return sizeof(int64_t);
    }
}

Dtype dtype_of(const std::string& name) {
    return name == "int64" ? Dtype::kInt64 : name == "uint8" ? Dtype::kUint8 : Dtype::kFloat32;
}

const char* name_of(Dtype dtype) {
    switch (dtype) {
        case Dtype::kFloat32: return "float32";
        case Dtype::kInt64: return "int64";
        case Dtype::kUint8: return "uint8";
        case Dtype::kUint64: return "uint64";
        case Dtype::kFloat64: return "float64";
    }
    return "no dtype";
}

void Tensor::prepare(Dtype dtype, const std::vector<int64_t>& shape) {
    std::vector<int64_t> factors = shape;
    factors.push_back(int64_t(bytes_of(dtype)));
    size_ = memory_size(factors);
    if (bytes_.size() < size_) bytes_.resize(size_);
    dtype_ = dtype;
    shape_ = shape;
}

void Tensor::repeat(const void* sample, int64_t begin, int64_t count) {
    const size_t each = sample_size();
    for (int64_t i = begin; i < begin + count; ++i) std::memcpy(bytes_.data() + size_t(i) * each, sample, each);
}

}  // namespace diffusevae
