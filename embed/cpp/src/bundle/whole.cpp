// The whole-sampler graph: it must take and give what inputs and pipeline say. engine/bundle/whole.py is the same in Python.
#include <algorithm>

#include "bundle/pipeline.h"
#include "diffusevae/row.h"
#include "text.h"

namespace diffusevae {
namespace {

std::vector<std::string> sorted(std::vector<std::string> texts) {
    std::sort(texts.begin(), texts.end());
    return texts;
}

void check_side(const Fields& fields, const char* direction, const std::vector<TensorSpec>& tensors,
                const std::vector<std::string>& expected) {
    std::vector<std::string> found;
    for (const TensorSpec& tensor : tensors) found.push_back(tensor.text());
    const std::vector<std::string> have = sorted(found), want = sorted(expected);
    if (have == want) return;
    refuse(fields.origin(), fields.name_of(direction), in_quotes(joined(have, "; ")),
           "'" + joined(want, "; ") + "' (by inputs and pipeline)");
}

}  // namespace

void check_sampler(Fields& top, const std::vector<GraphSpec>& graphs, const std::vector<InputSpec>& inputs,
                   const PipelineSpec& pipeline) {
    const auto graph = std::find_if(graphs.begin(), graphs.end(), [](const GraphSpec& g) { return g.key == kSampler; });
    if (graph == graphs.end()) return;
    const StateSpec& s = pipeline.state;
    const std::vector<int64_t> image = pipeline.image_shape();
    const std::string planes = text_of(Dimensions{s.channels, s.height, s.width}), state = " float32[batch, " + planes + "]";
    std::vector<std::string> takes = {"x_T" + state, "timesteps int64[rows]", "coefficients float32[rows, " + std::to_string(kRowFields) + "]",
                                      "weights float32[rows, lanes]", "start float32[3]",
                                      "noise float32[noise_steps, batch, " + planes + "]"};
    for (const InputSpec& input : inputs) takes.push_back(input.text());
    if (!pipeline.guides.empty()) takes.push_back("guide_mode int64[1]");
    if (pipeline.regulariser) takes.push_back("nets int64[rows]");
    std::vector<std::string> gives = {"images uint8[batch, " + text_of(Dimensions{image[1], image[2], image[0]}) + "]",
                                      "x" + state};
    if (s.start) gives.push_back(*s.start + state);
    const Fields fields = top.object("graphs").object(kSampler);
    check_side(fields, "inputs", graph->inputs, takes);
    check_side(fields, "outputs", graph->outputs, gives);
}

}  // namespace diffusevae
