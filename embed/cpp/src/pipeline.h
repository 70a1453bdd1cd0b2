// The pipeline at work on one chunk of samples: inputs -> before -> rows and the loop -> after -> pixels; `encode` makes inputs, or
// the state that is known, of images.
//
// Which graphs those are is in the manifest (bundle/pipeline.h); the loop is chain.h's.
#ifndef DIFFUSEVAE_PIPELINE_H
#define DIFFUSEVAE_PIPELINE_H

#include <atomic>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "backends/graph.h"
#include "bundle/directions.h"
#include "bundle/prior.h"
#include "bundle/reader.h"
#include "chain.h"
#include "guides.h"
#include "outputs.h"
#include "regulariser.h"
#include "request.h"
#include "steps.h"
#include "tensor.h"

namespace diffusevae {

// What a pipeline needs of what was opened; all of it outlives the pipeline.
struct Parts {
    const Bundle& bundle;
    const Backend& backend;
    const std::optional<Prior>& prior;
    const std::optional<Directions>& directions;
    int threads;
};

using Graphs = std::map<std::string, std::unique_ptr<Graph>>;

// The graphs that a sample needs: those of before, rows, step and after. And those of calls that only some requests make.
std::vector<std::string> graphs_to_load(const PipelineSpec& spec);
std::vector<std::string> graphs_of_encode(const PipelineSpec& spec);
std::vector<std::string> graphs_of_guides(const PipelineSpec& spec);
std::vector<std::string> graphs_of_regulariser(const PipelineSpec& spec);

// The values that a run with these inputs has, and the results that come of themselves.
std::set<std::string> values_there(const PipelineSpec& spec, const std::set<std::string>& inputs);

class Pipeline {
public:
    Pipeline(Parts parts, Graphs graphs);

    const Graphs& graphs() const { return graphs_; }

    // Graphs that were not there from the beginning, as some requests alone need them; those of these that are still missing.
    void take(Graphs later) { later_.merge(later); }
    std::vector<std::string> missing(const std::vector<std::string>& names) const;

    // Samples begin .. begin + n of a request, into the arrays that are wanted. Throws Error: NUMERICS, CANCELLED, BACKEND.
    void run(const Request& request, const StepTable& table, int64_t begin, int64_t n, const std::vector<Wanted>& wanted,
             const std::atomic<bool>& cancelled, diffusevae_timings& timings, std::vector<double>& step_ms);

    // The images that the x0 of the row makes which a watcher is shown, uint8 [n, H, W, C] of its chunk.
    void preview(uint8_t* images);

private:
    void begin_chunk(const Request& request, const StepTable& table, int64_t n);
    void take_images(const Holed& holed, const Blend& blend, int64_t begin);
    void take_inputs(const Request& request, const std::vector<uint64_t>& seeds, int64_t begin, int64_t rows);
    void draw(const Request& request, const std::vector<uint64_t>& seeds);
    void draw_fresh_input(const InputSpec& input, const std::vector<uint64_t>& seeds, int64_t rows);
    void before(const std::string* replaced);  // a value that the known state stands for, or null
    void rows(const StepTable& table);
    void embed(const StepTable& table);
    void start(const Request& request, const StepTable& table, const std::vector<uint64_t>& seeds, int64_t begin);
    void loop(const Request& request, const StepTable& table, const std::vector<uint64_t>& seeds, int64_t begin,
              const std::atomic<bool>& cancelled, diffusevae_timings& timings, std::vector<double>& step_ms);
    std::function<void(Tensor&)> quantizer();  // these three are what the loop calls beside the network
    Guide guide_of(const Request& request, const StepTable& table, int64_t begin);
    Second second_network();
    void after();
    Layout layout() const;  // of the noise of a state
    std::optional<ChainBlend> blend_of(const Request& request, int64_t begin) const;
    void store(const std::vector<Wanted>& wanted, const Request& request, const std::vector<uint64_t>& seeds,
               int64_t begin) const;

    const Tensor& value(const std::string& name) const;
    bool has(const std::string& name) const { return there_.count(name) != 0; }
    // Runs a call on values that `find` knows; its outputs go to `into`, under the names of the pipeline. Error (NUMERICS) where
    // they are not finite, which the second leaves to its caller.
    using Find = Guides::Find;
    void call(const CallSpec& spec, const Find& find, Tensors& into);
    void call_unchecked(const CallSpec& spec, const Find& find, Tensors& into);
    Graph& loaded(const std::string& name) const;
    // A value over all lanes, [lanes * n, ...]: itself, then its null in the lanes after the first.
    const Tensor& stacked(const std::string& name, int64_t lanes);
    // What stands for a value in the null lane, [1 or n, ...]; the value itself where it has no null.
    const Tensor& null_of(const std::string& name);
    bool null_depends_on_request(const std::string& name) const;

    Parts parts_;
    const PipelineSpec& spec_;
    Graphs graphs_, later_;
    int64_t n_ = 0;
    Tensors values_;                  // buffers by name, of which those in there_ hold values of this chunk
    std::set<std::string> there_;
    Tensors stacked_, nulls_;         // by name
    std::set<std::string> nulls_there_;  // nulls of this chunk, or kept from one to the next
    std::map<std::string, std::string> null_shapes_;  // of what each of them was made of
    std::vector<int64_t> embedded_;   // the timesteps that embeddings_ belong to, where they depend on nothing else
    Tensor embeddings_;               // [R, width], or [R, lanes * n, width]
    Workspace work_;
    Tensors encoded_;                 // what `encode` makes of a chunk's images
    Tensor known_;                    // the clean state of them
    Guides guides_;
    Regulariser regulariser_;
    Tensors quantized_;               // what the call `quantize` makes of a row's x0
    Tensors previews_;                // what the calls after the loop make of a row's x0
};

}  // namespace diffusevae

#endif  // DIFFUSEVAE_PIPELINE_H
