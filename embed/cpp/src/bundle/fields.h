// The fields of one JSON object: each is taken once and checked, and what is left over is refused.
#ifndef DIFFUSEVAE_FIELDS_H
#define DIFFUSEVAE_FIELDS_H

#include <memory>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "error.h"
#include "bundle/json.h"

namespace diffusevae {

// A file inside a bundle: letters, digits, '.', '_', '-', up to 128, the first a letter or digit.
bool is_file_name(std::string_view text);
// 64 lower-case hexadecimal digits.
bool is_sha256(std::string_view text);
// A text of 1..200 printable characters.
bool is_text(const Value& value);
// An integer of `low` or more, of any size.
bool is_at_least(const Value& value, int64_t low);

// One number, or a list of them, one a step; the list is empty where there is one.
struct Numbers {
    double value = 0;
    std::vector<double> list;
};

// The fields of one object. The value must outlive it; every refusal is an Error (BUNDLE) with the field's dotted name.
class Fields {
public:
    Fields(const Value& value, const Origin& origin);

    const Origin& origin() const { return *origin_; }
    std::string name_of(std::string_view key) const;
    std::vector<std::string> keys() const;
    bool has(std::string_view key) const { return raw_->find(key) != nullptr; }
    bool take_null(std::string_view key);  // whether a field that may be null is so, which takes it

    const Value& take(std::string_view key, const std::string& expected);
    int64_t integer(std::string_view key, int64_t low, int64_t high);
    int64_t integer_or_null(std::string_view key, int64_t low, int64_t high);  // where null would do as well
    double number(std::string_view key, double low, double high);
    Numbers numbers(std::string_view key, double low, double high);
    std::vector<double> series(std::string_view key, double low, double high, int64_t count);
    std::vector<int64_t> falling(std::string_view key, int64_t low, int64_t high);  // integers; where null would do as well
    bool boolean(std::string_view key);
    std::string text(std::string_view key);
    std::string text(std::string_view key, const std::string& expected);
    std::string file_name(std::string_view key);
    std::string label(std::string_view key);  // of the same letters as a file name
    std::string sha256(std::string_view key);
    std::string choice(std::string_view key, const std::vector<std::string>& choices);
    const Value& free(std::string_view key);  // an object whose content is not checked here
    const List& array(std::string_view key, const std::string& expected);
    const List& items(std::string_view key, const std::string& expected);  // not empty
    std::vector<Fields> objects(std::string_view key, const std::string& expected, bool may_be_empty = false);
    Fields object(std::string_view key);

    // Refuses the keys that were not taken; `optional` are those that may be absent.
    void done(const std::vector<std::string>& optional = {}) const;
    // Refuses the value that a field holds.
    [[noreturn]] void refuse(std::string_view key, const std::string& expected) const;

private:
    int64_t integer(std::string_view key, int64_t low, int64_t high, const char* also);
    std::string matching(std::string_view key, bool (*fits)(std::string_view), const char* expected);
    Fields(const Value& value, std::shared_ptr<const Origin> origin, std::string field);
    [[noreturn]] void refuse_value(const std::string& name, const Value& found, const std::string& expected) const;

    std::shared_ptr<const Origin> origin_;
    std::string field_;
    const Object* raw_;
    std::set<std::string, std::less<>> taken_;
};

// An object whose fields the function `take` of bundle/schema.h reads, and which has no others.
template <class Spec, class... Given>
Spec read(Fields fields, const Given&... given) {
    Spec into;
    take(fields, into, given...);
    fields.done();
    return into;
}

template <class Spec>
Spec nested(Fields& fields, const char* key) {
    return read<Spec>(fields.object(key));
}

}  // namespace diffusevae

#endif  // DIFFUSEVAE_FIELDS_H
