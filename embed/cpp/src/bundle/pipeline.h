// The pipeline of a bundle: which graphs run before the loop, in it and after it, and what each is fed.
//
//     encode   from an image to inputs; only for verbs that take images
//     before   once a request, from inputs to values
//     rows     once a set of timesteps: everything of the network that depends on the timestep
//     step     once a row of the solver's table: x and the values above to the network's output e, and to `variance` where a
//              second output says how much noise each element gets
//     quantize only where a request asks for it, once a row: from the row's x0 to what of it a decoder can tell apart, such as
//              the nearest codes; null where there is no such graph
//     regulariser  once a row that is its own: a second network from x to e; absent where there is none
//     guides   once a row that is guided: from x to the gradient that is added to the step; absent where there are none
//     after    once a request, from the final x to values
//     maps     the inputs that lie over the state as x does, so that the calls can be made on windows of a larger one; null
//              where the pipeline works in its own size alone
//     multiple what height and width of the state are multiples of where the calls are made on the whole of a larger or smaller
//              one at once; null where each graph is of one size
//
// Calls name graphs and values and nothing else; every call is checked here against the graph's own signature.
#ifndef DIFFUSEVAE_BUNDLE_PIPELINE_H
#define DIFFUSEVAE_BUNDLE_PIPELINE_H

#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bundle/graphs.h"
#include "bundle/inputs.h"

namespace diffusevae {

// What a call may be fed: dtype and shape, "batch" first but for `timesteps`.
struct ValueKind {
    std::string dtype;
    Dimensions shape;

    std::string text() const { return dtype + "[" + text_of(shape) + "]"; }
};

bool operator==(const ValueKind& a, const ValueKind& b);

// By name, in the order in which they came to be.
class ValueKinds {
public:
    void add(const std::string& name, ValueKind kind);  // or replace
    const ValueKind* find(const std::string& name) const;
    const std::vector<std::pair<std::string, ValueKind>>& all() const { return kinds_; }
    std::vector<std::string> names() const;

private:
    std::vector<std::pair<std::string, ValueKind>> kinds_;
};

using Wires = std::vector<std::pair<std::string, std::string>>;  // {name in the graph, value}

// The value of a port, or the port of a value; null where there is none.
const std::string* value_at(const Wires& wires, const std::string& port);
const std::string* port_of(const Wires& wires, const std::string& value);

struct CallSpec {
    std::string graph;
    Wires inputs, outputs;
};

// A guide: `rows` once a set of timesteps (nothing: it knows no timestep), `step` once a row that it guides, for the timesteps
// low .. high, both included. classes: of its classifier, which the entropy is of.
struct GuideSpec {
    std::optional<CallSpec> rows;
    CallSpec step;
    int64_t low = 0, high = 0, classes = 0;

    bool serves(int64_t timestep) const { return low <= timestep && timestep <= high; }
    bool gives_entropy() const { return port_of(step.outputs, kEntropy) != nullptr; }
};

// The regulariser, a second network that is fed x and its row alone; what it predicts.
struct RegulariserSpec {
    std::optional<CallSpec> rows;
    CallSpec step;
    std::string prediction;

    bool learns_variance() const { return port_of(step.outputs, kVariance) != nullptr; }
};

// What the loop carries: its size, the limit of x0 (nothing: none), and the values it is centred on and may start from.
struct StateSpec {
    int64_t channels = 0, height = 0, width = 0;
    std::optional<double> clip;
    std::optional<std::string> centre, start;
};

struct PipelineSpec {
    std::vector<CallSpec> encode, before, after;
    CallSpec rows, step;
    std::optional<CallSpec> quantize;
    std::vector<GuideSpec> guides;  // from the clean end
    std::optional<RegulariserSpec> regulariser;
    std::map<std::string, Null> nulls;
    StateSpec state;
    std::string image;
    ValueKinds values;  // dtype and shape of everything that a call makes or takes
    std::optional<TensorSpec> encoder_image;  // the image that `encode` takes, as its graph has it
    // How many pixels of each value that lies over the state one of the state's has a side, x included.
    std::optional<std::map<std::string, int64_t>> maps;
    std::optional<int64_t> multiple;  // what a side of the state is a multiple of, where graphs run on any size

    std::vector<const CallSpec*> calls() const;  // every call but those of guides and of the regulariser, in the order of a request
    std::vector<const CallSpec*> guide_calls() const;  // each guide's rows first
    std::vector<const CallSpec*> regulariser_calls() const;  // its rows first
    // Whether the network has a second output, which variance "learned_range" reads.
    bool learns_variance() const { return port_of(step.outputs, kVariance) != nullptr; }
    // Whether `encode` makes the loop's clean state of an image.
    bool encodes_state() const;
    // Whether the rows depend on the sample too.
    bool per_sample_rows() const { return rows.inputs.size() > 1; }
    // The call of `before` that makes a value; null for an input.
    const CallSpec* maker(const std::string& value) const;
    // Whether a value without a null of its own has one made by a call that is run on nulls.
    bool null_is_computed(const std::string& value) const;
    // Whether a value is something else in the null lane.
    bool has_null(const std::string& value) const { return nulls.count(value) != 0 || null_is_computed(value); }
    // Whether guidance has a null lane to tell apart from the other.
    bool guided() const;
    // One image, [C, height, width].
    std::vector<int64_t> image_shape() const;
};

// The field `pipeline`; graphs: those that it may name.
PipelineSpec parse_pipeline(Fields fields, const std::vector<InputSpec>& inputs,
                            const std::vector<const GraphSpec*>& graphs);

// The fields `maps` and `multiple`, of a pipeline whose other fields were read.
void parse_maps(Fields& top, PipelineSpec& spec, const std::vector<InputSpec>& inputs);

// Refuses a whole-sampler graph that does not take and give what the pipeline says.
void check_sampler(Fields& top, const std::vector<GraphSpec>& graphs, const std::vector<InputSpec>& inputs,
                   const PipelineSpec& pipeline);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BUNDLE_PIPELINE_H
