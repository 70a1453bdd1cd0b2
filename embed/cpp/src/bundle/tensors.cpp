#include "bundle/tensors.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

#include "bundle/schema.h"
#include "text.h"

namespace diffusevae {
namespace {

bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '_'; }

// The shape of a nested list, nothing where it is ragged or empty; a number has the shape [].
std::optional<std::vector<int64_t>> shape_of(const Value& value) {
    const List* list = value.list();
    if (list == nullptr) return std::vector<int64_t>{};
    if (list->empty()) return std::nullopt;
    const std::optional<std::vector<int64_t>> first = shape_of(list->front());
    for (const Value& item : *list)
        if (!first || shape_of(item) != first) return std::nullopt;
    std::vector<int64_t> shape = {int64_t(list->size())};
    shape.insert(shape.end(), first->begin(), first->end());
    return shape;
}

void flatten(const Value& value, std::vector<const Value*>& into) {
    if (const List* list = value.list()) {
        for (const Value& item : *list) flatten(item, into);
    } else {
        into.push_back(&value);
    }
}

template <class Number>
void append(std::vector<char>& bytes, Number number) {
    const char* const from = reinterpret_cast<const char*>(&number);
    bytes.insert(bytes.end(), from, from + sizeof number);
}

// The fixed sizes of a shape, nothing where one is free.
std::optional<std::vector<int64_t>> fixed(const Dimensions& shape) {
    std::vector<int64_t> sizes;
    for (const Dimension& dimension : shape) {
        const int64_t* size = std::get_if<int64_t>(&dimension);
        if (size == nullptr) return std::nullopt;
        sizes.push_back(*size);
    }
    return sizes;
}

// A list of dimensions as Python shows it: [4, 'length'].
std::string shown_shape(const Dimensions& shape) {
    std::vector<std::string> texts;
    for (const Dimension& dimension : shape)
        texts.push_back(std::holds_alternative<int64_t>(dimension) ? text_of(dimension) : in_quotes(text_of(dimension)));
    return "[" + joined(texts) + "]";
}

}  // namespace

std::string text_of(const Dimension& dimension) {
    const int64_t* size = std::get_if<int64_t>(&dimension);
    return size != nullptr ? std::to_string(*size) : std::get<std::string>(dimension);
}

std::string text_of(const Dimensions& shape) {
    std::vector<std::string> texts;
    for (const Dimension& dimension : shape) texts.push_back(text_of(dimension));
    return joined(texts);
}

std::string TensorSpec::text() const { return name + " " + dtype + "[" + text_of(shape) + "]"; }

bool operator==(const TensorSpec& a, const TensorSpec& b) {
    return a.name == b.name && a.dtype == b.dtype && a.shape == b.shape && a.range == b.range;
}

bool is_identifier(const std::string& text) {
    return !text.empty() && is_letter(text[0])
           && std::all_of(text.begin(), text.end(), [](char c) { return is_letter(c) || (c >= '0' && c <= '9'); });
}

Dimensions parse_shape(Fields& fields, const char* key) {
    Dimensions shape;
    const List& dimensions = fields.items(key, "a list of dimensions");
    if (int64_t(dimensions.size()) > kMaxRank)
        fields.refuse(key, "at most " + std::to_string(kMaxRank) + " dimensions");
    for (const Value& value : dimensions) {
        const std::optional<int64_t> size = value.integer();
        const std::string* name = value.text();
        if (size && *size >= 1 && *size <= kMaxDimension) {
            shape.emplace_back(*size);
        } else if (name != nullptr && is_identifier(*name)) {
            shape.emplace_back(*name);
        } else {
            fields.refuse(key, "dimensions that are names or positive integers");
        }
    }
    return shape;
}

Range parse_range(Fields& fields, const char* key) {
    const char* const expected = "'unbounded' or [low, high]";
    const Value& value = fields.take(key, expected);
    if (value.text() != nullptr && *value.text() == "unbounded") return std::nullopt;
    const List* list = value.list();
    if (list == nullptr || list->size() != 2) fields.refuse(key, expected);
    const std::optional<long double> low = (*list)[0].number(), high = (*list)[1].number();
    if (!low || !high) fields.refuse(key, expected);
    if (!(*low < *high)) fields.refuse(key, "[low, high] with low < high");
    return std::make_pair(double(*low), double(*high));
}

std::vector<TensorSpec> parse_tensors(Fields& fields, const char* key) {
    std::vector<TensorSpec> tensors;
    std::set<std::string> names;
    for (Fields& entry : fields.objects(key, "a list of tensors")) {
        tensors.push_back(read<TensorSpec>(entry));
        names.insert(tensors.back().name);
    }
    if (names.size() < tensors.size()) fields.refuse(key, "a name of its own for each tensor");
    return tensors;
}

std::optional<Null> parse_null(Fields& fields, const std::string& key, const Dimensions& shape, const std::string& dtype,
                               const Range& range) {
    const std::string expected = "a number, a nested list, or null";
    const Value& value = fields.take(key, expected);
    if (value.is_null()) return std::nullopt;
    Null null;
    if (value.list() != nullptr) {
        const auto sizes = fixed(shape), found = shape_of(value);
        if (!sizes || !found || *found != *sizes) fields.refuse(key, "a number, or a list of shape " + shown_shape(shape));
    }
    std::vector<const Value*> numbers;
    flatten(value, numbers);
    const bool whole = dtype != kFloat32;
    const std::string fitting = (whole ? "integers of " : "numbers of ") + dtype;
    for (const Value* number : numbers)
        if (!number->number() || (whole && !std::holds_alternative<Integer>(number->any()))) fields.refuse(key, fitting);
    for (const Value* number : numbers)
        if (range && !(*number->number() >= range->first && *number->number() <= range->second))
            fields.refuse(key, "numbers within the range [" + short_number(range->first) + ", "
                                   + short_number(range->second) + "]");
    for (const Value* number : numbers) {
        const std::optional<int64_t> integer = number->integer();
        if (!whole && std::fabs(*number->number()) <= std::numeric_limits<float>::max()) {
            append(null, float(double(*number->number())));
        } else if (dtype == kInt64 && integer && *integer != INT64_MIN) {
            append(null, *integer);
        } else if (dtype == kUint8 && integer && *integer >= 0 && *integer <= UINT8_MAX) {
            append(null, uint8_t(*integer));
        } else {
            fields.refuse(key, fitting);
        }
    }
    return null;
}

}  // namespace diffusevae
