// The field `pipeline`, section by section in the order of a request: the checks and sentences of engine/bundle/pipeline.py.
#include <algorithm>
#include <optional>
#include <set>
#include <tuple>

#include "bundle/guides.h"
#include "bundle/schema.h"
#include "text.h"

namespace diffusevae {
namespace {

const char* const kImageChannels = "1 or 3 or 4";

bool is_image_channels(const Dimension& dimension) {
    const int64_t* size = std::get_if<int64_t>(&dimension);
    return size != nullptr && (*size == 1 || *size == 3 || *size == 4);
}

bool is_fixed(const Dimension& dimension) { return std::holds_alternative<int64_t>(dimension); }

// {name in the graph, value} for exactly the graph's tensors.
Wires parse_wires(Fields& fields, const std::vector<TensorSpec>& tensors) {
    Wires wires;
    for (const TensorSpec& tensor : tensors)
        wires.emplace_back(tensor.name, fields.text(tensor.name, "the name of a value: the graph has " + tensor.text()));
    fields.done();
    return wires;
}

void check_image(const Fields& fields, const TensorSpec& tensor) {
    const bool fits = tensor.dtype == kFloat32 && tensor.shape.size() == 4 && tensor.shape[0] == Dimension(kBatch);
    const bool unit = tensor.range && (tensor.range->first == 0.0 || tensor.range->first == -1.0)
                      && tensor.range->second == 1.0;
    if (!fits || !is_image_channels(tensor.shape[1]) || !unit)
        fields.refuse(tensor.name, "a graph that takes images, float32[batch, C, H, W] in [0, 1] or [-1, 1], not "
                                       + tensor.text());
}

using Bound = std::vector<std::pair<std::string, Dimension>>;  // free dimensions of a graph, by name

const Dimension* bound_to(const Bound& bound, const std::string& name) {
    for (const auto& [known, dimension] : bound)
        if (known == name) return &dimension;
    return nullptr;
}

// Refuses a value that the graph's tensor does not take; binds the tensor's free dimensions.
void fit(const Fields& fields, const TensorSpec& tensor, const ValueKind& value, Bound& bound) {
    const std::string expected = "a value that fits " + tensor.text() + ", not " + value.text();
    if (tensor.dtype != value.dtype || tensor.shape.size() != value.shape.size()) fields.refuse(tensor.name, expected);
    for (size_t i = 0; i < tensor.shape.size(); ++i) {
        const Dimension &theirs = tensor.shape[i], &ours = value.shape[i];
        if (is_fixed(theirs) || theirs == Dimension(kBatch) || ours == Dimension(kBatch)) {
            if (theirs != ours) fields.refuse(tensor.name, expected);
            continue;
        }
        const std::string& name = std::get<std::string>(theirs);
        const Dimension* before = bound_to(bound, name);
        if (before == nullptr) {
            bound.emplace_back(name, ours);
        } else if (*before != ours) {
            fields.refuse(tensor.name, expected + ": its dimension " + in_quotes(name) + " is " + text_of(*before)
                                           + " already");
        }
    }
}

// The names that a call would make, as far as they can be read: for the message about a cycle.
std::vector<std::string> names_made(Fields& call) {
    Fields outputs = call.object("outputs");
    std::vector<std::string> names;
    for (const std::string& key : outputs.keys())
        if (const std::string* name = outputs.take(key, "a name").text()) names.push_back(*name);
    return names;
}

[[noreturn]] void refuse_value(const Fields& fields, const std::string& port, const std::string& value,
                               const ValueKinds& there, const std::set<std::string>& pending) {
    std::vector<std::string> names = there.names();
    std::sort(names.begin(), names.end());
    const std::string known = names.empty() ? "none" : joined(names);
    if (pending.count(value) != 0)
        fields.refuse(port, "a value that is there by then (" + known + "): a call makes it that comes no earlier than this "
                                "one, which is a cycle");
    fields.refuse(port, "a value that something makes: " + in_quotes(known));
}

// Reads the sections in their order and knows which values there are so far.
class Reader {
public:
    Reader(const std::vector<InputSpec>& inputs, const std::vector<const GraphSpec*>& graphs, PipelineSpec& spec)
        : graphs_(graphs), spec_(spec) {
        for (const InputSpec& input : inputs) {
            inputs_.insert(input.name);
            spec_.values.add(input.name, {input.dtype, input.shape});
            if (input.null) spec_.nulls[input.name] = *input.null;
        }
    }

    void read(Fields& top) {
        spec_.state = nested<StateSpec>(top, "state");
        const StateSpec& s = spec_.state;
        state_ = {kFloat32, {Dimension(kBatch), s.channels, s.height, s.width}};
        encode(top);
        spec_.before = section(top, "before", spec_.values);
        check_state(top.object("state"));
        rows(top);
        step(top);
        quantize(top);
        guides(top);
        regulariser(top);
        ValueKinds there = usable();
        there.add(kX, state_);
        spec_.after = section(top, "after", there);
        image(top);
        nulls(top);
    }

private:
    using Made = std::vector<std::pair<std::string, ValueKind>>;

    bool is_input(const std::string& name) const { return inputs_.count(name) != 0; }

    // ---- sections ------------------------------------------------------------------------------------------------------

    // Sees the image and its own values; at least one of those has the name and kind of an input, or is x.
    void encode(Fields& top) {
        ValueKinds there, taken = spec_.values;
        taken.add(kX, state_);
        bool used = false;
        for (Fields& fields : calls(top, "encode")) {
            const auto [call, made] = read_call(fields, there, {}, true);
            check_samples(fields, call, made);
            for (size_t i = 0; i < made.size(); ++i) {
                const ValueKind* known = taken.find(made[i].first);
                used = used || known != nullptr;
                if (known != nullptr && !(made[i].second == *known))
                    fields.object("outputs").refuse(call.outputs[i].first, "another name for " + made[i].second.text() + ": "
                                                                               + made[i].first + " is " + known->text());
            }
            for (const auto& [name, kind] : made) there.add(name, kind);
            spec_.encode.push_back(call);
        }
        if (!spec_.encode.empty() && !used)
            top.refuse("encode", "outputs that are named as an input, or as the state: " + joined(taken.names()));
        for (const auto& [name, kind] : there.all()) {
            if (name == kX) continue;  // which the loop makes, for all calls after it
            encoded_.insert(name);
            if (spec_.values.find(name) == nullptr) spec_.values.add(name, kind);
        }
    }

    // `before` or `after`: each call sees `given` and what earlier ones made.
    std::vector<CallSpec> section(Fields& top, const char* key, const ValueKinds& given) {
        ValueKinds there;
        for (const auto& [name, kind] : given.all())
            if (is_input(name) || encoded_.count(name) == 0) there.add(name, kind);
        std::vector<Fields> entries = calls(top, key);
        std::vector<std::vector<std::string>> later;
        for (Fields& fields : entries) later.push_back(names_made(fields));
        std::vector<CallSpec> found;
        for (size_t i = 0; i < entries.size(); ++i) {
            std::set<std::string> pending;
            for (size_t j = i; j < later.size(); ++j) pending.insert(later[j].begin(), later[j].end());
            const auto [call, made] = read_call(entries[i], there, pending, false);
            check_samples(entries[i], call, made);
            for (const auto& [port, name] : call.outputs)
                if (spec_.values.find(name) != nullptr || is_reserved(name))
                    entries[i].object("outputs").refuse(
                        port, "a new name: a value has one maker, and some names are reserved");
            for (const auto& [name, kind] : made) {
                there.add(name, kind);
                spec_.values.add(name, kind);
            }
            found.push_back(call);
        }
        return found;
    }

    // Timesteps and values to one table, [steps, R], or [steps, batch, R] where it takes a value of a sample.
    void rows(Fields& top) {
        Fields fields = top.object("rows");
        ValueKinds there = usable();
        there.add(kTimesteps, {kInt64, {Dimension(kSteps)}});
        const auto [call, made] = read_call(fields, there, {}, false);
        Dimensions expected = {Dimension(kSteps)};
        if (call.inputs.size() > 1) expected.emplace_back(kBatch);
        if (port_of(call.inputs, kTimesteps) == nullptr)
            top.refuse("rows", "a call that takes " + in_quotes(kTimesteps));
        if (made.size() != 1 || made[0].first != kRows)
            fields.refuse("outputs", "one output, which is called " + in_quotes(kRows));
        const ValueKind& table = made[0].second;
        const bool fits = table.dtype == kFloat32 && table.shape.size() == expected.size() + 1
                          && std::equal(expected.begin(), expected.end(), table.shape.begin())
                          && is_fixed(table.shape.back());
        if (!fits)
            fields.refuse("outputs",
                          "float32[" + text_of(expected) + ", a number] from the graph, not " + table.text());
        spec_.values.add(kRows, {kFloat32, {expected.size() > 1 ? Dimension(kBatch) : Dimension(int64_t(1)),
                                            table.shape.back()}});
        spec_.rows = call;
    }

    // x, the row of a timestep and values to e and, from some networks, the variance, of the state's shape.
    void step(Fields& top) {
        Fields fields = top.object("step");
        spec_.values.add(kX, state_);
        ValueKinds there = usable();
        there.add(kX, state_);
        there.add(kRows, *spec_.values.find(kRows));
        const auto [call, made] = read_call(fields, there, {}, false);
        if (port_of(call.inputs, kX) == nullptr) top.refuse("step", "a call that takes " + in_quotes(kX));
        check_answer(fields, call, made);
        spec_.step = call;
    }

    // What a network of the loop gives: e and perhaps the variance, of the state's shape.
    void check_answer(Fields& fields, const CallSpec& call, const Made& made) const {
        const bool fits = std::all_of(made.begin(), made.end(), [&](const auto& one) {
            return (one.first == kE || one.first == kVariance) && one.second == state_;
        });
        if (fits && port_of(call.outputs, kE) != nullptr) return;
        std::vector<std::string> found;
        for (const auto& [name, kind] : made) found.push_back(name + " " + kind.text());
        fields.refuse("outputs", "one output, which is called " + in_quotes(kE) + " and is " + state_.text()
                                     + " as the state, or beside it a second one of that kind, called "
                                     + in_quotes(kVariance) + ", not " + joined(found));
    }

    // x0 to x0; null where the pipeline has none.
    void quantize(Fields& top) {
        if (top.take_null("quantize")) return;
        Fields fields = top.object("quantize");
        ValueKinds there;
        there.add(kX0, state_);
        const auto [call, made] = read_call(fields, there, {}, false);
        if (made != Made{{kX0, state_}})
            fields.refuse("outputs", "one output, which is called " + in_quotes(kX0) + " and is " + state_.text() + " as the state");
        spec_.quantize = call;
    }

    // Each as `rows` and `step`, with rows of its own; absent where there are none.
    void guides(Fields& top) {
        if (!top.has("guides")) return;
        std::vector<Fields> entries = top.objects("guides", "a list of guides, which is left out where it would be empty");
        if (int64_t(entries.size()) > kMaxGuides) top.refuse("guides", "at most " + std::to_string(kMaxGuides) + " guides");
        for (Fields& fields : entries) spec_.guides.push_back(guide(fields));
    }

    GuideSpec guide(Fields& fields) {
        GuideSpec found;
        ValueKinds there = usable();
        there.add(kX, state_);
        if (!fields.take_null("rows")) there.add(kRows, own_rows(fields, found.rows));
        Fields entry = fields.object("step");
        const auto [call, made] = read_call(entry, there, {}, false);
        if (port_of(call.inputs, kX) == nullptr || (found.rows && port_of(call.inputs, kRows) == nullptr))
            fields.refuse("step", "a call that takes " + in_quotes(kX) + ", and " + in_quotes(kRows) + " where the guide makes them");
        const ValueKind entropy{kFloat32, {Dimension(kBatch)}};
        const bool fits = std::all_of(made.begin(), made.end(), [&](const auto& one) {
            return (one.first == kG && one.second == state_) || (one.first == kEntropy && one.second == entropy);
        });
        if (!fits || port_of(call.outputs, kG) == nullptr) {
            std::vector<std::string> kinds;
            for (const auto& [name, kind] : made) kinds.push_back(name + " " + kind.text());
            fields.refuse("step", "outputs " + in_quotes(kG) + ", " + state_.text() + " as the state, and perhaps "
                                      + in_quotes(kEntropy) + ", " + entropy.text() + ", not " + joined(kinds));
        }
        found.step = call;
        std::tie(found.low, found.high) = parse_interval(fields, "timesteps");
        found.classes = fields.integer("classes", 2, kMaxClasses);
        fields.done();
        return found;
    }

    // As `rows` and `step`, with rows of its own and nothing else that it is fed; absent where there is none.
    void regulariser(Fields& top) {
        if (!top.has("regulariser")) return;
        Fields fields = top.object("regulariser");
        if (spec_.state.centre)
            top.refuse("regulariser", "none: an unconditional network is not told " + in_quotes(*spec_.state.centre)
                                          + ", around which the state lies");
        RegulariserSpec found;
        ValueKinds there;
        there.add(kX, state_);
        if (!fields.take_null("rows")) there.add(kRows, own_rows(fields, found.rows));
        Fields entry = fields.object("step");
        const auto [call, made] = read_call(entry, there, {}, false);
        if (port_of(call.inputs, kX) == nullptr || (found.rows && port_of(call.inputs, kRows) == nullptr))
            fields.refuse("step", "a call that takes " + in_quotes(kX) + ", and " + in_quotes(kRows)
                                      + " where the regulariser makes them");
        check_answer(entry, call, made);
        found.step = call;
        found.prediction = fields.choice("prediction", kPredictions);
        fields.done();
        spec_.regulariser = found;
    }

    // The row that the own table of a guide or a regulariser has for a timestep.
    ValueKind own_rows(Fields& fields, std::optional<CallSpec>& into) {
        Fields entry = fields.object("rows");
        ValueKinds timesteps;
        timesteps.add(kTimesteps, {kInt64, {Dimension(kSteps)}});
        const auto [call, made] = read_call(entry, timesteps, {}, false);
        const ValueKind* const table = made.size() == 1 && made[0].first == kRows ? &made[0].second : nullptr;
        if (table == nullptr || table->dtype != kFloat32 || table->shape.size() != 2 || table->shape[0] != Dimension(kSteps)
            || !is_fixed(table->shape[1]))
            fields.refuse("rows", std::string("a call with one output, float32[") + kSteps + ", a number], which is called "
                                      + in_quotes(kRows));
        into = call;
        return {kFloat32, {Dimension(int64_t(1)), table->shape[1]}};
    }

    void image(Fields& top) {
        std::vector<std::string> choices = {kX};
        for (const CallSpec& call : spec_.after)
            for (const auto& [port, name] : call.outputs) choices.push_back(name);
        spec_.image = top.choice("image", choices);
        const ValueKind& kind = *spec_.values.find(spec_.image);
        const bool fits = kind.dtype == kFloat32 && kind.shape.size() == 4 && is_image_channels(kind.shape[1])
                          && is_fixed(kind.shape[2]) && is_fixed(kind.shape[3]);
        if (!fits)
            top.refuse("image", std::string("a value of float32[batch, ") + kImageChannels + ", H, W], not " + kind.text());
    }

    // Nulls of values that `before` makes.
    void nulls(Fields& top) {
        Fields fields = top.object("nulls");
        std::vector<std::string> made;
        for (const CallSpec& call : spec_.before)
            for (const auto& [port, name] : call.outputs) made.push_back(name);
        for (const std::string& name : fields.keys()) {
            if (std::find(made.begin(), made.end(), name) == made.end())
                fields.refuse(name, "a null of a value that `before` makes: "
                                        + (made.empty() ? "it makes none" : joined(made)));
            const ValueKind& kind = *spec_.values.find(name);
            const Dimensions sample(kind.shape.begin() + 1, kind.shape.end());
            const std::optional<Null> null = parse_null(fields, name, sample, kind.dtype, std::nullopt);
            if (!null) fields.refuse(name, "a number or a nested list");
            spec_.nulls[name] = *null;
        }
        fields.done();
    }

    // Centre and start are values of the state's shape.
    void check_state(Fields fields) {
        const std::pair<const char*, const std::optional<std::string>*> named[] = {
            {"centre", &spec_.state.centre}, {"start", &spec_.state.start}};
        const ValueKinds there = usable();
        for (const auto& [key, name] : named) {
            if (!*name) continue;
            const ValueKind* kind = there.find(**name);
            if (kind == nullptr)
                fields.refuse(key, "an input or a value that `before` makes: "
                                       + (there.all().empty() ? "there is none" : joined(there.names())));
            if (!(*kind == state_)) fields.refuse(key, "a value of " + state_.text() + " as the state, not " + kind->text());
        }
    }

    // What is made outside of the loop is of samples: "batch" comes first, and only there.
    static void check_samples(Fields& fields, const CallSpec& call, const Made& made) {
        for (size_t i = 0; i < made.size(); ++i) {
            const Dimensions& shape = made[i].second.shape;
            if (shape[0] != Dimension(kBatch) || std::count(shape.begin(), shape.end(), Dimension(kBatch)) != 1)
                fields.object("outputs").refuse(call.outputs[i].first,
                                                "a value with " + in_quotes(kBatch) + " as the first dimension, and only "
                                                "there, not " + made[i].second.text());
        }
    }

    // ---- one call ------------------------------------------------------------------------------------------------------

    // Inputs and values of `before`: what `rows`, `step` and `after` may take.
    ValueKinds usable() const {
        ValueKinds found;
        for (const auto& [name, kind] : spec_.values.all()) {
            const bool own = name == kX || name == kE || name == kVariance || name == kRows;
            if (!own && (is_input(name) || encoded_.count(name) == 0)) found.add(name, kind);
        }
        return found;
    }

    static std::vector<Fields> calls(Fields& top, const char* key) {
        std::vector<Fields> entries = top.objects(key, "a list of calls, which may be empty", true);
        if (int64_t(entries.size()) > kMaxCalls) top.refuse(key, "at most " + std::to_string(kMaxCalls) + " calls");
        return entries;
    }

    // One call and the values that it makes, in the order of its outputs.
    std::pair<CallSpec, Made> read_call(Fields& fields, ValueKinds there, const std::set<std::string>& pending,
                                        bool image) {
        CallSpec call;
        call.graph = fields.text("graph");
        const auto found = std::find_if(graphs_.begin(), graphs_.end(),
                                        [&](const GraphSpec* graph) { return graph->key == call.graph; });
        if (found == graphs_.end()) {
            std::vector<std::string> names;
            for (const GraphSpec* graph : graphs_) names.push_back(graph->key);
            fields.refuse("graph", "one of the bundle's graphs: " + joined(names));
        }
        const GraphSpec& graph = **found;
        Fields ins = fields.object("inputs"), outs = fields.object("outputs");
        Bound bound;
        call.inputs = parse_wires(ins, graph.inputs);
        for (size_t i = 0; i < graph.inputs.size(); ++i) {
            const TensorSpec& tensor = graph.inputs[i];
            const std::string& value = call.inputs[i].second;
            if (image && value == kImage) {
                check_image(ins, tensor);
                spec_.encoder_image = tensor;
                there.add(kImage, {tensor.dtype, tensor.shape});
            }
            const ValueKind* kind = there.find(value);
            if (kind == nullptr) refuse_value(ins, tensor.name, value, there, pending);
            fit(ins, tensor, *kind, bound);
        }
        call.outputs = parse_wires(outs, graph.outputs);
        for (const TensorSpec& tensor : graph.outputs)
            for (const Dimension& size : tensor.shape)
                if (!is_fixed(size) && size != Dimension(kBatch) && bound_to(bound, std::get<std::string>(size)) == nullptr)
                    outs.refuse(tensor.name, "an output whose sizes follow from the inputs: " + in_quotes(text_of(size))
                                                 + " of " + tensor.text() + " is in none");
        Made made;
        for (size_t i = 0; i < graph.outputs.size(); ++i) {
            const TensorSpec& tensor = graph.outputs[i];
            for (const auto& [name, kind] : made)
                if (name == call.outputs[i].second) fields.refuse("outputs", "a name of its own for each output");
            made.emplace_back(call.outputs[i].second, ValueKind{tensor.dtype, resolved(tensor.shape, bound)});
        }
        fields.done();
        return {call, made};
    }

    static Dimensions resolved(const Dimensions& shape, const Bound& bound) {
        Dimensions sizes;
        for (const Dimension& dimension : shape) {
            const Dimension* to = is_fixed(dimension) ? nullptr : bound_to(bound, std::get<std::string>(dimension));
            sizes.push_back(to == nullptr ? dimension : *to);
        }
        return sizes;
    }

    const std::vector<const GraphSpec*>& graphs_;
    PipelineSpec& spec_;
    ValueKind state_;
    std::set<std::string> inputs_, encoded_;
};

}  // namespace

PipelineSpec parse_pipeline(Fields fields, const std::vector<InputSpec>& inputs,
                            const std::vector<const GraphSpec*>& graphs) {
    PipelineSpec spec;
    Reader(inputs, graphs, spec).read(fields);
    parse_maps(fields, spec, inputs);
    fields.done({"guides", "regulariser"});
    return spec;
}

}  // namespace diffusevae
