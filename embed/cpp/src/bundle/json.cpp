#include "bundle/json.h"

#include <algorithm>
#include <charconv>
#include <nlohmann/json.hpp>

#include "bundle/constants.h"
#include "error.h"
#include "text.h"

#if NLOHMANN_JSON_VERSION_MAJOR != 3 || NLOHMANN_JSON_VERSION_MINOR < 11
#error "nlohmann/json: found another version, expected 3.11 or newer (below 4): pip install 'nlohmann-json>=3.11,<4'"
#endif

namespace diffusevae {
namespace {

constexpr size_t kMaxDepth = 900;           // about where the Python engine's parser gives up
constexpr size_t kMaxValues = size_t(1) << 20;  // a program of 16384 operations has half as many
constexpr size_t kShown = 80;

bool before(const Member& member, std::string_view name) { return member.name < name; }

// Takes the parser's events and builds the value; whatever is wrong leaves it as Error.
class Builder {
public:
    using Json = nlohmann::json;

    Builder(std::string_view text, const Origin& origin) : text_(text), origin_(origin) {}

    Value take() { return std::move(root_); }

    bool null() { return add(Value()); }
    bool boolean(bool value) { return add(Value(value)); }
    bool number_integer(Json::number_integer_t value) { return add(Value(Integer{std::to_string(value)})); }
    bool number_unsigned(Json::number_unsigned_t value) { return add(Value(Integer{std::to_string(value)})); }
    bool number_float(Json::number_float_t value, const std::string& token) {
        // Also what integers beyond 64 bits come as.
        if (token.find_first_not_of("-0123456789") != std::string::npos) return add(Value(value));
        if (token.size() > size_t(kMaxDigits)) refuse("an integer of " + std::to_string(token.size()) + " digits");
        return add(Value(Integer{token}));
    }
    bool string(std::string& value) { return add(Value(std::move(value))); }
    bool binary(Json::binary_t&) { return refuse("binary data"); }

    bool start_object(size_t) { return open(true); }
    bool key(std::string& name) {
        open_.back().key = std::move(name);
        return true;
    }
    bool end_object() {
        Members members = std::move(open_.back().members);
        std::sort(members.begin(), members.end(), [](const Member& a, const Member& b) { return a.name < b.name; });
        const auto twice = std::adjacent_find(members.begin(), members.end(),
                                              [](const Member& a, const Member& b) { return a.name == b.name; });
        if (twice != members.end()) refuse("the key " + in_quotes(twice->name) + " twice in one object");
        open_.pop_back();
        std::vector<size_t> written(members.size());
        for (size_t i = 0; i < members.size(); ++i) written[members[i].place] = i;
        return add(Value(Object{std::move(members), std::move(written)}));
    }
    bool start_array(size_t) { return open(false); }
    bool end_array() {
        List list = std::move(open_.back().list);
        open_.pop_back();
        return add(Value(std::move(list)));
    }

    bool parse_error(size_t position, const std::string& token, const Json::exception& error) {
        constexpr int kNumberOverflow = 406;
        if (error.id == kNumberOverflow) {
            const bool integer = token.find_first_not_of("-0123456789") == std::string::npos;
            return refuse(integer ? "an integer of " + std::to_string(token.size()) + " digits"
                                  : "the number " + token.substr(0, size_t(kMaxDigits)) + ", too large for float64");
        }
        // The number is shown as Python's parser reads it, which knows these words.
        const size_t at = std::min(position - std::min<size_t>(position, 1), text_.size());
        for (const std::string_view word : {"NaN", "Infinity"}) {
            const std::string sign = at > 0 && text_[at - 1] == '-' ? "-" : "";
            if (text_.substr(at, word.size()) == word) return refuse("the number " + sign + std::string(word));
        }
        if (std::string_view(error.what()).find("surrogate") != std::string_view::npos)
            return refuse("half of a surrogate pair before byte " + std::to_string(position));
        const std::string last = token.empty() ? "its end" : in_quotes(token);
        return refuse("no JSON at byte " + std::to_string(position) + ", where " + last + " stands");
    }

private:
    struct Open {
        bool object;
        std::string key;
        List list;
        Members members;
    };

    bool open(bool object) {
        if (open_.size() == kMaxDepth)
            refuse("JSON nested too deeply, beyond " + std::to_string(kMaxDepth) + " levels");
        open_.push_back(Open{object, {}, {}, {}});
        return true;
    }

    bool add(Value value) {
        if (++count_ > kMaxValues) refuse("more than " + std::to_string(kMaxValues) + " values");
        if (open_.empty()) {
            root_ = std::move(value);
        } else if (Open& parent = open_.back(); parent.object) {
            parent.members.push_back(Member{std::move(parent.key), std::move(value), parent.members.size()});
        } else {
            parent.list.push_back(std::move(value));
        }
        return true;
    }

    [[noreturn]] bool refuse(const std::string& found) const {
        diffusevae::refuse(origin_, "", found, origin_.what + " in JSON");
    }

    std::string_view text_;
    const Origin& origin_;
    Value root_;
    std::vector<Open> open_;
    size_t count_ = 0;
};

// Appends what Python's repr() would show, until there is enough of it: a deep value is not followed to its end.
class Shower {
public:
    void operator()(std::nullptr_t) { text += "None"; }
    void operator()(bool value) { text += value ? "True" : "False"; }
    void operator()(const Integer& value) { text += value.digits; }
    void operator()(double value) {
        char digits[32];
        const std::to_chars_result end = std::to_chars(digits, digits + sizeof digits, value);
        const std::string shown(digits, end.ptr);
        text += shown + (shown.find_first_of(".e") == std::string::npos ? ".0" : "");
    }
    void operator()(const std::string& value) { text += in_quotes(value); }
    void operator()(const List& list) {
        text += "[";
        for (const Value& value : list) {
            if (text.size() > kShown) return;
            if (&value != list.data()) text += ", ";
            std::visit(*this, value.any());
        }
        text += "]";
    }
    void operator()(const Object& object) {
        text += "{";
        for (const size_t place : object.written) {
            const Member& member = object.members[place];
            if (text.size() > kShown) return;
            if (place != object.written.front()) text += ", ";
            text += in_quotes(member.name) + ": ";
            std::visit(*this, member.value.any());
        }
        text += "}";
    }

    std::string text;
};

}  // namespace

const char* const kRebuild = "rebuild the bundle with: diffusevae build CKPT --out PATH";

Origin manifest_origin(const std::string& where) { return {where, "a manifest", kRebuild}; }
Origin program_origin(const std::string& where) { return {where, "a native program", kRebuild}; }
Origin weights_origin(const std::string& where) { return {where, "a header of packed weights", kRebuild}; }

void refuse(const Origin& origin, const std::string& field, const std::string& found, const std::string& expected) {
    const std::string where = origin.where + (field.empty() ? "" : ", " + field);
    throw Error(DIFFUSEVAE_BUNDLE, where + ": found " + found + ", expected " + expected + "; " + origin.cure);
}

const Value* Object::find(std::string_view name) const {
    const auto found = std::lower_bound(members.begin(), members.end(), name, before);
    return found != members.end() && found->name == name ? &found->value : nullptr;
}

std::optional<int64_t> Value::integer() const {
    const Integer* written = std::get_if<Integer>(&any_);
    if (written == nullptr) return std::nullopt;
    int64_t value = 0;
    const char* const end = written->digits.data() + written->digits.size();
    const std::from_chars_result read = std::from_chars(written->digits.data(), end, value);
    if (read.ec != std::errc() || read.ptr != end) return std::nullopt;
    return value;
}

std::optional<long double> Value::number() const {
    if (const double* value = std::get_if<double>(&any_)) return *value;
    const Integer* written = std::get_if<Integer>(&any_);
    if (written == nullptr) return std::nullopt;
    const bool negative = written->digits[0] == '-';
    long double value = 0;
    for (size_t i = negative ? 1 : 0; i < written->digits.size(); ++i) value = value * 10 + (written->digits[i] - '0');
    return negative ? -value : value;
}

Value parse_json(std::string_view text, const Origin& origin) {
    // Two things that the parser lets pass: it skips a byte order mark, and takes a zero byte for the end.
    if (text.substr(0, 3) == "\xEF\xBB\xBF") refuse(origin, "", "a byte order mark", origin.what + " in JSON");
    if (text.find('\0') != std::string_view::npos) refuse(origin, "", "a zero byte", origin.what + " in JSON");
    Builder builder(text, origin);
    nlohmann::json::sax_parse(text.begin(), text.end(), &builder);
    return builder.take();
}

std::string shown(const Value& value) {
    if (value.is_null()) return "null";
    Shower shower;
    std::visit(shower, value.any());
    static const char* const kKinds[] = {"null", "bool", "int", "float", "str", "list", "object"};
    return cut(shower.text, kShown) + " (" + kKinds[value.any().index()] + ")";
}

}  // namespace diffusevae
