#include "bundle/safetensors.h"

#include <algorithm>

#include "bundle/fields.h"
#include "text.h"

namespace diffusevae {
namespace {

constexpr size_t kLengthBytes = 8, kMaxHeaderBytes = 100'000'000;  // as the format's own library has it
constexpr int64_t kMost = int64_t(1) << 62;
const char* const kMetadata = "__metadata__";

std::vector<int64_t> integers(Fields& fields, const char* key, const char* expected) {
    std::vector<int64_t> found;
    for (const Value& value : fields.array(key, expected)) {
        const std::optional<int64_t> number = value.integer();
        if (!number || *number < 0 || *number >= kMost) fields.refuse(key, expected);
        found.push_back(*number);
    }
    return found;
}

// Free remarks: texts by name, or null.
void check_metadata(Fields& top) {
    const char* const expected = "texts by name, or null";
    const Value& remarks = top.take(kMetadata, expected);
    if (remarks.is_null()) return;
    for (const Member& remark : top.free(kMetadata).object()->members)
        if (remark.value.text() == nullptr) top.refuse(kMetadata, expected);
}

struct Extent {
    int64_t begin, end;
    std::string name;
};

Extent read_extent(Fields fields, const std::string& name, StoredTensor& tensor) {
    const std::vector<int64_t> offsets = integers(fields, "data_offsets", "[begin, end]");
    if (offsets.size() != 2) fields.refuse("data_offsets", "[begin, end]");
    tensor.dtype = fields.choice("dtype", {"F32"});
    tensor.shape = integers(fields, "shape", "a list of dimensions");
    const std::optional<int64_t> size = bytes_of(tensor.shape, sizeof(float));
    if (!size || offsets[1] - offsets[0] != *size)
        fields.refuse("data_offsets", "[begin, end], as far apart as dtype and shape say");
    return {offsets[0], offsets[1], name};
}

}  // namespace

std::optional<int64_t> bytes_of(const std::vector<int64_t>& shape, int64_t unit) {
    if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
    int64_t size = unit;
    for (const int64_t dimension : shape) {
        if (dimension > kMost / size) return std::nullopt;
        size *= dimension;
    }
    return size;
}

SafetensorsParts split_safetensors(std::string_view bytes, size_t max_header, const Origin& origin) {
    const std::string size = std::to_string(bytes.size());
    if (bytes.size() < kLengthBytes) refuse(origin, "", size + " bytes", origin.what + " in safetensors");
    uint64_t length = 0;
    for (size_t i = kLengthBytes; i-- > 0;) length = length << 8 | static_cast<unsigned char>(bytes[i]);
    if (length > max_header || length > bytes.size() - kLengthBytes)
        refuse(origin, "", "a header of " + std::to_string(length) + " bytes in a file of " + size,
               "one that ends inside it");
    return {parse_json(bytes.substr(kLengthBytes, length), origin), bytes.substr(kLengthBytes + length)};
}

std::map<std::string, StoredTensor> parse_safetensors(std::string_view bytes, const Origin& origin) {
    const SafetensorsParts parts = split_safetensors(bytes, kMaxHeaderBytes, origin);
    Fields top(parts.header, origin);
    std::map<std::string, StoredTensor> tensors;
    std::vector<Extent> extents;
    for (const std::string& name : top.keys()) {
        if (name == kMetadata) {
            check_metadata(top);
            continue;
        }
        extents.push_back(read_extent(top.object(name), name, tensors[name]));
    }
    std::sort(extents.begin(), extents.end(), [](const Extent& a, const Extent& b) {
        return std::make_pair(a.begin, a.end) < std::make_pair(b.begin, b.end);
    });
    int64_t end = 0;
    for (const Extent& extent : extents) {
        if (extent.begin != end)
            top.refuse(extent.name, "a tensor from " + std::to_string(end) + " on, where the last one ends");
        end = extent.end;
        if (end > int64_t(parts.data.size())) break;
        tensors[extent.name].data = parts.data.substr(size_t(extent.begin), size_t(end - extent.begin));
    }
    if (end != int64_t(parts.data.size()))
        refuse(origin, "", std::to_string(parts.data.size()) + " bytes of data",
               std::to_string(end) + " or more, as the header says");
    return tensors;
}

}  // namespace diffusevae
