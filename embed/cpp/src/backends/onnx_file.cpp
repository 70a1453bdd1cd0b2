// A walk over the messages that can hold a tensor, which skips contents.
#include "backends/onnx_file.h"

#include <cstdint>

#include "error.h"

namespace diffusevae {
namespace {

enum class Kind { kModel, kGraph, kNode, kAttribute, kSparse, kTraining, kFunction, kTensor, kExternal };

struct Child {
    Kind parent;
    uint64_t field;
    Kind kind;
};

// From onnx.proto: every way from a model to a tensor's external data.
constexpr Child kChildren[] = {
    {Kind::kModel, 7, Kind::kGraph},       {Kind::kModel, 20, Kind::kTraining},   {Kind::kModel, 25, Kind::kFunction},
    {Kind::kGraph, 1, Kind::kNode},        {Kind::kGraph, 5, Kind::kTensor},      {Kind::kGraph, 15, Kind::kSparse},
    {Kind::kNode, 5, Kind::kAttribute},    {Kind::kAttribute, 5, Kind::kTensor},  {Kind::kAttribute, 6, Kind::kGraph},
    {Kind::kAttribute, 10, Kind::kTensor}, {Kind::kAttribute, 11, Kind::kGraph},  {Kind::kAttribute, 22, Kind::kSparse},
    {Kind::kAttribute, 23, Kind::kSparse}, {Kind::kSparse, 1, Kind::kTensor},     {Kind::kSparse, 2, Kind::kTensor},
    {Kind::kTraining, 1, Kind::kGraph},    {Kind::kTraining, 2, Kind::kGraph},    {Kind::kFunction, 7, Kind::kNode},
    {Kind::kFunction, 11, Kind::kAttribute}, {Kind::kTensor, 13, Kind::kExternal},
};

constexpr int kMaxDepth = 100;  // messages inside messages; protobuf's own parsers stop there too

// The messages of one file; `where` names it in errors.
class Walk {
public:
    explicit Walk(const std::string& where) : where_(where) {}

    bool holds_external_data(std::string_view message, Kind kind, int depth) const {
        if (depth > kMaxDepth) refuse("messages nested deeper than 100");
        while (!message.empty()) {
            const uint64_t tag = number(message);
            switch (tag & 7) {
                case 0: number(message); break;
                case 1: take(message, 8); break;
                case 5: take(message, 4); break;
                case 2: {
                    const std::string_view content = take(message, number(message));
                    if (leads_outside(content, find(kind, tag >> 3), depth)) return true;
                    break;
                }
                default: refuse("a field of wire type " + std::to_string(tag & 7));
            }
        }
        return false;
    }

    [[noreturn]] void refuse(const std::string& found) const {
        throw Error(DIFFUSEVAE_BUNDLE,
                    where_ + ": found " + found + ", expected an ONNX file with every weight inside, where its SHA-256 "
                    "covers it; rebuild the bundle with: diffusevae build CKPT --out PATH");
    }

private:
    bool leads_outside(std::string_view content, const Child* child, int depth) const {
        if (child == nullptr) return false;
        return child->kind == Kind::kExternal || holds_external_data(content, child->kind, depth + 1);
    }

    static const Child* find(Kind parent, uint64_t field) {
        for (const Child& child : kChildren) {
            if (child.parent == parent && child.field == field) return &child;
        }
        return nullptr;
    }

    std::string_view take(std::string_view& message, uint64_t size) const {
        if (size > message.size()) refuse("a message that is cut short");
        const std::string_view content = message.substr(0, size);
        message.remove_prefix(size);
        return content;
    }

    // The number of variable length at the front.
    uint64_t number(std::string_view& message) const {
        uint64_t value = 0;
        for (int shift = 0; shift < 70; shift += 7) {
            const uint8_t byte = uint8_t(take(message, 1)[0]);
            if (shift == 63 && byte > 1) refuse("a number of more than 64 bits");
            value |= uint64_t(byte & 0x7F) << shift;
            if (byte < 0x80) return value;
        }
        refuse("a number of more than ten bytes");
    }

    const std::string& where_;
};

}  // namespace

void check_self_contained(std::string_view data, const std::string& where) {
    const Walk walk(where);
    if (walk.holds_external_data(data, Kind::kModel, 0)) walk.refuse("a tensor whose data lies in another file");
}

}  // namespace diffusevae
