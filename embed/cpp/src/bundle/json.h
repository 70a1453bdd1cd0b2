// From untrusted JSON to values: parsed by nlohmann_json, refused where it is ambiguous or out of proportion: keys
// that come twice, NaN and infinity, integers of more than 20 digits, deep nesting, more values than a bundle has. As in
// engine/bundle/fields.py, but for half of a surrogate pair, which is no character: Python refuses it in the texts that it reads,
// this parser everywhere.
#ifndef DIFFUSEVAE_JSON_H
#define DIFFUSEVAE_JSON_H

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

namespace diffusevae {

// What is being read, for messages: the file, what is expected of it, and the command that mends it.
struct Origin {
    std::string where, what, cure;
};

extern const char* const kRebuild;

Origin manifest_origin(const std::string& where);
Origin program_origin(const std::string& where);
Origin weights_origin(const std::string& where);

class Value;

// Throws Error (BUNDLE): "WHERE, FIELD: found FOUND, expected EXPECTED; CURE", without the field where it is "".
[[noreturn]] void refuse(const Origin& origin, const std::string& field, const std::string& found,
                         const std::string& expected);

// Kept as it was written: a manifest may hold up to 20 digits, more than 64 bits.
struct Integer {
    std::string digits;
};

using List = std::vector<Value>;

// Sorted by name, every name once; `written` is the order in which they were written.
struct Member;
using Members = std::vector<Member>;
struct Object {
    Members members;
    std::vector<size_t> written;
    const Value* find(std::string_view name) const;
};

class Value {
public:
    using Any = std::variant<std::nullptr_t, bool, Integer, double, std::string, List, Object>;

    Value() = default;  // null
    template <class Kind>
    explicit Value(Kind value) : any_(std::in_place_type<Kind>, std::move(value)) {}

    bool is_null() const { return std::holds_alternative<std::nullptr_t>(any_); }
    const bool* boolean() const { return std::get_if<bool>(&any_); }
    const std::string* text() const { return std::get_if<std::string>(&any_); }
    const List* list() const { return std::get_if<List>(&any_); }
    const Object* object() const { return std::get_if<Object>(&any_); }
    std::optional<int64_t> integer() const;    // nothing for 1.0, and beyond 64 bits
    std::optional<long double> number() const; // integers and floats
    const Any& any() const { return any_; }

private:
    Any any_;
};

struct Member {
    std::string name;
    Value value;
    size_t place;  // in the order in which members were written
};

// The value of UTF-8 JSON; Error (BUNDLE) names what is wrong with it.
Value parse_json(std::string_view text, const Origin& origin);

// The value as a message shows it, cut to 80 characters, with its kind: "'x' (str)", "[1, 2] (list)", "null".
std::string shown(const Value& value);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_JSON_H
