#include "backends/weights.h"

#include <algorithm>
#include <utility>
#include <vector>

#include "bundle/fields.h"
#include "bundle/safetensors.h"

namespace diffusevae {
namespace {

constexpr int64_t kAlignment = 64;
constexpr size_t kMaxHeaderBytes = size_t(16) << 20;
constexpr int64_t kMaxDimension = int64_t(1) << 31, kMaxOffset = int64_t(1) << 62;

int64_t bytes_of_element(const std::string& dtype) { return dtype == "F32" ? 4 : dtype == "BF16" ? 2 : 1; }

Blob parse_blob(Fields fields) {
    Blob blob;
    blob.dtype = fields.choice("dtype", {"F32", "BF16", "I8"});
    std::vector<int64_t> shape;
    for (const Value& value : fields.items("shape", "a list of dimensions")) {
        shape.push_back(value.integer().value_or(0));
        if (shape.back() < 1 || shape.back() > kMaxDimension) fields.refuse("shape", "positive integers");
    }
    std::vector<int64_t> offsets;
    for (const Value& value : fields.items("data_offsets", "[begin, end]")) {
        offsets.push_back(value.integer().value_or(-1));
        if (offsets.back() < 0 || offsets.back() >= kMaxOffset)
            fields.refuse("data_offsets", "[begin, end] of two integers");
    }
    if (offsets.size() != 2) fields.refuse("data_offsets", "[begin, end] of two integers");
    const std::optional<int64_t> size = bytes_of(shape, bytes_of_element(blob.dtype));
    if (!size || offsets[1] - offsets[0] != *size)
        fields.refuse("data_offsets", "[begin, end], " + (size ? std::to_string(*size) : "too many")
                                          + " bytes apart by dtype and shape");
    fields.done();
    blob.offset = offsets[0];
    blob.size = *size;
    return blob;
}

// The blobs of a header over `size` bytes of data; together they must fill it without a gap.
Blobs parse_header(const Value& header, int64_t size, const Origin& origin) {
    Fields top(header, origin);
    Blobs blobs;
    std::vector<std::pair<int64_t, std::string>> order;
    for (const std::string& name : top.keys()) {
        blobs[name] = parse_blob(top.object(name));
        order.emplace_back(blobs[name].offset, name);
    }
    std::sort(order.begin(), order.end());
    int64_t end = 0;
    for (const auto& [offset, name] : order) {
        const Blob& blob = blobs[name];
        if (offset != end || offset % kAlignment != 0 || blob.size % kAlignment != 0)
            top.refuse(name, "a tensor of a multiple of " + std::to_string(kAlignment) + " bytes, from "
                                 + std::to_string(end) + " on, where the last one ends");
        end += blob.size;
        if (end > size) break;
    }
    if (end != size)
        refuse(origin, "", std::to_string(size) + " bytes of data",
               "the " + std::to_string(end) + " that the header names");
    return blobs;
}

}  // namespace

Weights::Weights(MappedFile file, const std::string& where) : file_(std::move(file)) {
    const Origin origin = weights_origin(where);
    const SafetensorsParts parts = split_safetensors(file_.bytes(), kMaxHeaderBytes, origin);
    const size_t start = file_.bytes().size() - parts.data.size();
    if (start % size_t(kAlignment) != 0)
        refuse(origin, "", "data from byte " + std::to_string(start) + " on",
               "a header that ends at a multiple of " + std::to_string(kAlignment));
    blobs_ = parse_header(parts.header, int64_t(parts.data.size()), origin);
    data_ = parts.data;
}

}  // namespace diffusevae
