#include "pipeline.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "checks.h"
#include "clock.h"
#include "diffusevae/kernels.h"
#include "error.h"
#include "inpaint.h"

namespace diffusevae {
namespace {

void check_finite(const Tensor& tensor, const CallSpec& call, const std::string& where) {
    if (tensor.dtype() != Dtype::kFloat32) return;
    const float* const end = tensor.floats() + tensor.size() / sizeof(float);
    if (std::all_of(tensor.floats(), end, [](float value) { return std::isfinite(value); })) return;
    std::string names;
    for (const auto& [port, name] : call.inputs) names += (names.empty() ? "" : ", ") + name;
    throw Error(DIFFUSEVAE_NUMERICS, "The graph '" + call.graph + "' (" + where
                                         + ") returned NaN or infinity outside the loop; every value was expected to be "
                                           "finite. Check " + names + " as you passed them, and build the bundle again from "
                                           "its checkpoint if they are ordinary.");
}

// The sizes of a graph's free dimensions, from the arrays that it is given.
void bind(Sizes& sizes, const TensorSpec& tensor, const std::vector<int64_t>& shape, const std::string& graph) {
    for (size_t i = 0; i < tensor.shape.size(); ++i) {
        const std::string* name = std::get_if<std::string>(&tensor.shape[i]);
        if (name == nullptr) continue;
        const auto [at, fresh] = sizes.emplace(*name, shape[i]);
        if (!fresh && at->second != shape[i])
            throw Error(DIFFUSEVAE_ARGUMENT, graph + ", " + tensor.name + ": found " + *name + " = "
                                                 + std::to_string(shape[i]) + ", expected " + std::to_string(at->second)
                                                 + " as in the inputs before it; convert the input");
    }
}

std::vector<int64_t> resolved(const TensorSpec& tensor, const Sizes& sizes, const std::string& graph) {
    std::vector<int64_t> shape;
    for (const Dimension& dimension : tensor.shape) {
        const int64_t* fixed = std::get_if<int64_t>(&dimension);
        const auto free = fixed != nullptr ? sizes.end() : sizes.find(std::get<std::string>(dimension));
        if (fixed == nullptr && free == sizes.end())
            throw Error(DIFFUSEVAE_BUNDLE, "graph '" + graph + "': found the output " + tensor.text() + ", whose "
                                               + text_of(dimension) + " no input says, expected dimensions of its inputs; "
                                               + kRebuild);
        shape.push_back(fixed != nullptr ? *fixed : free->second);
    }
    return shape;
}

void add_once(std::vector<std::string>& names, const std::string& name) {
    if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
}

void scale_and_add(float* x, double k, const Tensor& source) {
    const float factor = float(k);
    const size_t count = source.size() / sizeof(float);
    for (size_t i = 0; i < count; ++i) x[i] = x[i] + factor * source.floats()[i];
}

}  // namespace

std::vector<std::string> graphs_to_load(const PipelineSpec& spec) {
    std::vector<std::string> names;
    for (const CallSpec& call : spec.before) add_once(names, call.graph);
    add_once(names, spec.rows.graph);
    add_once(names, spec.step.graph);
    if (spec.quantize) add_once(names, spec.quantize->graph);
    for (const CallSpec& call : spec.after) add_once(names, call.graph);
    return names;
}

std::vector<std::string> graphs_of_encode(const PipelineSpec& spec) {
    std::vector<std::string> names;
    for (const CallSpec& call : spec.encode) add_once(names, call.graph);
    return names;
}

std::vector<std::string> graphs_of_guides(const PipelineSpec& spec) {
    std::vector<std::string> names;
    for (const CallSpec* call : spec.guide_calls()) add_once(names, call->graph);
    return names;
}

std::vector<std::string> graphs_of_regulariser(const PipelineSpec& spec) {
    std::vector<std::string> names;
    for (const CallSpec* call : spec.regulariser_calls()) add_once(names, call->graph);
    return names;
}

std::set<std::string> values_there(const PipelineSpec& spec, const std::set<std::string>& inputs) {
    std::set<std::string> there = inputs;
    for (const CallSpec& call : spec.before) {
        const bool fed = std::all_of(call.inputs.begin(), call.inputs.end(),
                                     [&](const auto& wire) { return there.count(wire.second) != 0; });
        for (const auto& [port, name] : call.outputs)
            if (fed) there.insert(name);
    }
    for (const CallSpec& call : spec.after)
        for (const auto& [port, name] : call.outputs) there.insert(name);
    there.insert({"images", kX, "seeds", kTimesteps, "step_ms"});
    return there;
}

Pipeline::Pipeline(Parts parts, Graphs graphs)
    : parts_(parts), spec_(parts.bundle.manifest().pipeline), graphs_(std::move(graphs)), work_(spec_.state), guides_(spec_.guides),
      regulariser_(spec_.regulariser) {}

std::vector<std::string> Pipeline::missing(const std::vector<std::string>& names) const {
    std::vector<std::string> found;
    for (const std::string& name : names)
        if (graphs_.count(name) == 0 && later_.count(name) == 0) found.push_back(name);
    return found;
}

Graph& Pipeline::loaded(const std::string& name) const {
    const auto found = graphs_.find(name);
    return found != graphs_.end() ? *found->second : *later_.at(name);
}

void Pipeline::run(const Request& request, const StepTable& table, int64_t begin, int64_t n,
                   const std::vector<Wanted>& wanted, const std::atomic<bool>& cancelled, diffusevae_timings& timings,
                   std::vector<double>& step_ms) {
    Clock clock;
    n_ = n;
    there_.clear();
    for (auto at = nulls_there_.begin(); at != nulls_there_.end();)
        at = null_depends_on_request(*at) ? nulls_there_.erase(at) : std::next(at);
    const bool quantizes = request.setting.quantize_denoised;
    work_.prepare(n, table, request.watch || quantizes, spec_.learns_variance());
    const std::vector<uint64_t> seeds = request.seeds.part(begin, n);
    if (request.blend) take_images(*request.holed, *request.blend, begin);
    timings.before_ms += clock.lap();
    take_inputs(request, seeds, begin, table.calls());
    timings.noise_ms += clock.lap();
    before(request.blend && request.blend->replaces ? &*spec_.state.start : nullptr);
    timings.before_ms += clock.lap();
    rows(table);
    const auto value_of = [this](const std::string& name) -> const Tensor& { return value(name); };
    const auto outside = [this](const CallSpec& spec, const Find& find, Tensors& into) { call(spec, find, into); };
    if (table.takes_guide()) guides_.begin(table, outside);
    if (!table.nets.empty()) regulariser_.begin(table, outside);
    timings.rows_ms += clock.lap();
    start(request, table, seeds, begin);
    timings.noise_ms += clock.lap();
    const CallSpec& step = spec_.step;
    const std::string *x_port = port_of(step.inputs, kX), *row_port = port_of(step.inputs, kRows);
    const std::string* v_port = port_of(step.outputs, kVariance);
    std::function<void(Tensor&)> quantize;
    if (quantizes)
        quantize = [this](Tensor& x0) {
            call(*spec_.quantize, [&](const std::string&) -> const Tensor& { return x0; }, quantized_);
            std::memcpy(x0.data(), quantized_.at(kX0).data(), x0.size());
        };
    Guide guide;
    if (table.takes_guide())
        guide = [&](int64_t i, const float* v, const std::function<const float*()>& mean) {
            const GuidedRow row{table, i, request.setting.guide_mode, work_.x, v, begin, mean};
            const auto run = [this](const CallSpec& spec, const Find& find, Tensors& into) { call_unchecked(spec, find, into); };
            return guides_.gradient(row, value_of, run, where_of(parts_.backend));
        };
    Second second;
    if (!table.nets.empty())
        second = [&](int64_t i, float* x, float* e, float* v) {
            regulariser_.evaluate(loaded(spec_.regulariser->step.graph), i, x, work_.shape, e, v);
        };
    const std::string second_name = spec_.regulariser ? spec_.regulariser->step.graph : "";
    const std::optional<ChainBlend> blend = blend_of(request, begin);
    Chain chain{table,
                *graphs_.at(step.graph),
                step.graph,
                x_port->c_str(),
                row_port ? row_port->c_str() : nullptr,
                port_of(step.outputs, kE)->c_str(),
                v_port ? v_port->c_str() : nullptr,
                {},
                embeddings_.floats(),
                spec_.per_sample_rows() ? table.lanes * n : 1,
                embeddings_.shape().back(),
                spec_.state.centre ? value(*spec_.state.centre).floats() : nullptr,
                seeds.data(),
                layout(),
                ChainNoise(request.noise, request.n, begin, spec_.state),
                parts_.threads,
                begin,
                request.watch,
                quantize,
                guide,
                second,
                second_name,
                blend,
                cancelled,
                where_of(parts_.backend)};
    for (const auto& [port, name] : step.inputs)
        if (name != kX && name != kRows) chain.constants.push_back(stacked(name, table.lanes).named(port));
    clock.lap();
    run_chain(chain, work_, timings, step_ms);
    clock.lap();
    after();
    timings.after_ms += clock.lap();
    store(wanted, request, seeds, begin);
    timings.post_ms += clock.lap();
}

const Tensor& Pipeline::value(const std::string& name) const { return name == kX ? work_.x : values_.at(name); }

// ---- around the loop ---------------------------------------------------------------------------------------------------

// The images of this chunk: what `encode` makes of them, and the clean state.
void Pipeline::take_images(const Holed& holed, const Blend& blend, int64_t begin) {
    const std::vector<int64_t> shape = {n_, holed.channels, holed.height, holed.width};
    known_.prepare(Dtype::kFloat32, shape);
    const size_t count = known_.size() / sizeof(float);
    const float* const pixels = holed.pixels.data() + size_t(begin) * (count / size_t(n_));
    for (size_t i = 0; i < count; ++i) known_.floats()[i] = 2.0f * pixels[i] - 1.0f;
    if (!blend.encodes) return;
    Tensor unit;
    unit.prepare(Dtype::kFloat32, shape);
    std::copy_n(pixels, count, unit.floats());
    const std::optional<TensorSpec>& taken = spec_.encoder_image;
    const Tensor& image = taken && taken->range == Range({0.0, 1.0}) ? unit : known_;
    for (const CallSpec& spec : spec_.encode)
        call(spec, [&](const std::string& name) -> const Tensor& { return name == kImage ? image : encoded_.at(name); }, encoded_);
    for (const InputSpec* input : blend.encoded) {
        values_[input->name] = encoded_.at(input->name);
        there_.insert(input->name);
    }
    if (spec_.encodes_state()) known_ = encoded_.at(kX);
}

std::optional<ChainBlend> Pipeline::blend_of(const Request& request, int64_t begin) const {
    if (!request.blend || request.blend->keep.empty()) return std::nullopt;
    const Blend& blend = *request.blend;
    const int64_t stride = request.holed->masks() == 1 ? 0 : spec_.state.height * spec_.state.width;
    return ChainBlend{known_.floats(),     blend.keep.data() + begin * stride, stride, blend.signal.data(), blend.sigma.data(),
                      ChainNoise(blend.noise, request.n, begin, spec_.state)};
}

void Pipeline::take_inputs(const Request& request, const std::vector<uint64_t>& seeds, int64_t begin, int64_t rows) {
    for (const GivenInput& input : request.inputs) {
        std::vector<int64_t> shape = input.shape;
        shape[0] = n_;
        Tensor& tensor = values_[input.spec->name];
        tensor.prepare(dtype_of(input.spec->dtype), shape);
        const char* from = static_cast<const char*>(input.data);
        if (input.shared) {
            tensor.repeat(from, 0, n_);
        } else {
            std::memcpy(tensor.data(), from + size_t(begin) * tensor.sample_size(), tensor.size());
        }
        there_.insert(input.spec->name);
    }
    if (request.drawn != nullptr) draw(request, seeds);
    if (request.fresh != nullptr) draw_fresh_input(*request.fresh, seeds, rows);
    if (!request.edits.empty())
        move(*parts_.directions, request.edits, values_.at(parts_.bundle.manifest().directions->input).floats(), n_);
}

void Pipeline::draw(const Request& request, const std::vector<uint64_t>& seeds) {
    std::vector<int64_t> shape = {n_};
    for (const Dimension& dimension : request.drawn->sample()) shape.push_back(std::get<int64_t>(dimension));
    Tensor& tensor = values_[request.drawn->name];
    tensor.prepare(Dtype::kFloat32, shape);
    if (request.setting.draws_from_bundle()) {
        parts_.prior->draw(seeds.data(), n_, tensor.floats());
    } else {
        draw_input(seeds, int64_t(tensor.sample_size() / sizeof(float)), tensor.floats());
    }
    there_.insert(request.drawn->name);
}

void Pipeline::draw_fresh_input(const InputSpec& input, const std::vector<uint64_t>& seeds, int64_t rows) {
    std::vector<int64_t> shape = {n_, rows};
    for (size_t i = 2; i < input.shape.size(); ++i) shape.push_back(std::get<int64_t>(input.shape[i]));
    Tensor& tensor = values_[input.name];
    tensor.prepare(Dtype::kFloat32, shape);
    draw_fresh(seeds, rows, int64_t(tensor.sample_size() / sizeof(float)) / rows, tensor.floats());
    there_.insert(input.name);
}

void Pipeline::call(const CallSpec& spec, const Find& find, Tensors& into) {
    call_unchecked(spec, find, into);
    for (const auto& [port, name] : spec.outputs) check_finite(into.at(name), spec, where_of(parts_.backend));
}

void Pipeline::call_unchecked(const CallSpec& spec, const Find& find, Tensors& into) {
    const GraphSpec& graph = parts_.bundle.spec(spec.graph);
    Arrays arrays;
    Sizes sizes;
    for (const TensorSpec& tensor : graph.inputs) {
        const Tensor& given = find(*value_at(spec.inputs, tensor.name));
        bind(sizes, tensor, given.shape(), spec.graph);
        arrays.push_back(given.named(tensor.name));
    }
    for (const TensorSpec& tensor : graph.outputs) {
        Tensor& made = into[*value_at(spec.outputs, tensor.name)];
        std::vector<int64_t> shape = resolved(tensor, sizes, spec.graph);
        const Canvas* const canvas = parts_.bundle.canvas();
        if (canvas && canvas->ports.count(spec.graph) != 0) {  // but for guides, which run in the bundle's own size
            const auto& ports = canvas->ports.at(spec.graph);
            const auto factor = ports.find(tensor.name);
            if (factor != ports.end()) {
                shape[shape.size() - 2] = factor->second * canvas->whole_height;
                shape[shape.size() - 1] = factor->second * canvas->whole_width;
            }
        }
        made.prepare(dtype_of(tensor.dtype), shape);
        arrays.push_back(made.named(tensor.name));
    }
    loaded(spec.graph).run(arrays);
}

void Pipeline::before(const std::string* replaced) {
    const auto stand_in = [&] {
        if (replaced == nullptr) return;
        values_[*replaced] = known_;
        there_.insert(*replaced);
    };
    stand_in();
    const auto there = [&](const auto& wire) { return has(wire.second); };
    for (const CallSpec& spec : spec_.before) {
        const bool fed = std::all_of(spec.inputs.begin(), spec.inputs.end(), there);
        const bool made = std::all_of(spec.outputs.begin(), spec.outputs.end(), there);
        if (!fed || made) continue;  // it makes nothing that this request needs
        call(spec, [&](const std::string& name) -> const Tensor& { return value(name); }, values_);
        for (const auto& [port, name] : spec.outputs) there_.insert(name);
        stand_in();  // a call may make it beside other values
    }
}

Layout Pipeline::layout() const {
    const StateSpec& state = spec_.state;
    const Canvas* const canvas = parts_.bundle.canvas();
    return {state.channels, state.height, state.width, canvas ? canvas->height : state.height,
            canvas ? canvas->width : state.width};
}

// The table of embeddings, kept from run to run where it depends on the timesteps alone.
void Pipeline::rows(const StepTable& table) {
    const bool per_sample = spec_.per_sample_rows();
    if (!per_sample && embedded_ == table.timesteps) return;
    embedded_.clear();
    Tensor timesteps;
    timesteps.prepare(Dtype::kInt64, {table.calls()});
    std::memcpy(timesteps.data(), table.timesteps.data(), timesteps.size());
    Tensors made;
    made[kRows] = std::move(embeddings_);
    const auto find = [&](const std::string& name) -> const Tensor& {
        return name == kTimesteps ? timesteps : stacked(name, table.lanes);
    };
    call(spec_.rows, find, made);
    embeddings_ = std::move(made[kRows]);
    if (!per_sample) embedded_ = table.timesteps;
}

// x = k_noise x_T + k_start start + k_centre centre.
void Pipeline::start(const Request& request, const StepTable& table, const std::vector<uint64_t>& seeds, int64_t begin) {
    const int64_t count = int64_t(work_.x.sample_size() / sizeof(float));
    float* x = work_.x.floats();
    if (!request.x_T) draw_initial(seeds, layout(), x);
    const float k_noise = float(table.start.k_noise);
    for (int64_t sample = 0; sample < n_; ++sample) {
        float* to = x + sample * count;
        const float* from = !request.x_T ? to : request.x_T + (request.x_T_shared ? 0 : (begin + sample) * count);
        for (int64_t i = 0; i < count; ++i) to[i] = from[i] * k_noise;
    }
    const StateSpec& state = spec_.state;
    const bool from_image = request.blend && request.blend->starts;
    if (table.start.k_start != 0.0 && (from_image || state.start))
        scale_and_add(x, table.start.k_start, from_image ? known_ : value(*state.start));
    if (table.start.k_centre != 0.0 && state.centre) scale_and_add(x, table.start.k_centre, value(*state.centre));
}

void Pipeline::after() {
    for (const CallSpec& spec : spec_.after) {
        call(spec, [&](const std::string& name) -> const Tensor& { return value(name); }, values_);
        for (const auto& [port, name] : spec.outputs) there_.insert(name);
    }
}

void Pipeline::preview(uint8_t* images) {
    const auto find = [&](const std::string& name) -> const Tensor& {
        if (name == kX) return work_.x0;
        const auto made = previews_.find(name);
        return made != previews_.end() ? made->second : value(name);
    };
    for (const CallSpec& spec : spec_.after) call(spec, find, previews_);
    const Tensor& from = find(spec_.image);
    dv_to_uint8(from.floats(), n_, from.shape()[1], from.shape()[2] * from.shape()[3], images);
}

// ---- lanes -------------------------------------------------------------------------------------------------------------

const Tensor& Pipeline::stacked(const std::string& name, int64_t lanes) {
    const Tensor& first = value(name);
    if (lanes == 1) return first;
    const Tensor& null = null_of(name);
    std::vector<int64_t> shape = first.shape();
    shape[0] = lanes * n_;
    Tensor& stack = stacked_[name];
    stack.prepare(first.dtype(), shape);
    std::memcpy(stack.data(), first.data(), first.size());
    for (int64_t lane = 1; lane < lanes; ++lane) {
        if (null.samples() == n_) {
            std::memcpy(static_cast<char*>(stack.data()) + size_t(lane) * first.size(), null.data(), first.size());
        } else {
            stack.repeat(null.data(), lane * n_, n_);
        }
    }
    return stack;
}

const Tensor& Pipeline::null_of(const std::string& name) {
    const auto own = spec_.nulls.find(name);
    if (own == spec_.nulls.end() && !spec_.null_is_computed(name)) return value(name);
    if (own != spec_.nulls.end()) {
        const Null& null = own->second;  // all of a sample, or one number that fills it
        const Tensor& like = value(name);
        std::vector<int64_t> shape = like.shape();
        shape[0] = 1;
        Tensor& made = nulls_[name];
        made.prepare(like.dtype(), shape);
        for (size_t at = 0; at < made.size(); at += null.size())
            std::memcpy(static_cast<char*>(made.data()) + at, null.data(), null.size());
        return made;
    }
    const CallSpec& maker = *spec_.maker(name);
    // Inputs of one sample where all are nulls, else of all samples.
    Tensors inputs;
    int64_t most = 1;
    std::string shapes;
    for (const auto& [port, value_name] : maker.inputs) {
        const Tensor& null = null_of(value_name);
        most = std::max(most, null.samples());
        shapes += shape_text(null.shape());
    }
    // Kept from request to request, of the last sizes where dimensions are free.
    if (nulls_there_.count(name) != 0 && null_shapes_[name] == shapes) return nulls_.at(name);
    for (const auto& [port, value_name] : maker.inputs) {
        const Tensor& null = null_of(value_name);
        std::vector<int64_t> shape = null.shape();
        shape[0] = most;
        Tensor& input = inputs[value_name];
        input.prepare(null.dtype(), shape);
        if (null.samples() == most) {
            std::memcpy(input.data(), null.data(), null.size());
        } else {
            input.repeat(null.data(), 0, most);
        }
    }
    call(maker, [&](const std::string& value_name) -> const Tensor& { return inputs.at(value_name); }, nulls_);
    for (const auto& [port, made] : maker.outputs) {
        nulls_there_.insert(made);
        null_shapes_[made] = shapes;
    }
    return nulls_.at(name);
}

// Whether a computed null is made of something without a null, and so of this request.
bool Pipeline::null_depends_on_request(const std::string& name) const {
    if (spec_.nulls.count(name) != 0) return false;
    const CallSpec* maker = spec_.maker(name);
    return maker == nullptr || std::any_of(maker->inputs.begin(), maker->inputs.end(),
                                           [&](const auto& wire) { return null_depends_on_request(wire.second); });
}

// ---- results -----------------------------------------------------------------------------------------------------------

void Pipeline::store(const std::vector<Wanted>& wanted, const Request& request, const std::vector<uint64_t>& seeds,
                     int64_t begin) const {
    for (const Wanted& one : wanted) {
        const std::string& name = one.spec->name;
        if (name == kTimesteps || name == "step_ms") continue;  // of the whole run
        if (name == "seeds") {
            std::copy_n(seeds.begin(), n_, static_cast<uint64_t*>(one.array->data) + begin);
            continue;
        }
        const bool images = name == "images";
        const Tensor& from = value(images ? spec_.image : name);
        char* const to = static_cast<char*>(one.array->data);
        if (images || one.pixels) {
            const std::vector<int64_t>& shape = from.shape();
            const int64_t pixels = shape[2] * shape[3];
            uint8_t* const first = reinterpret_cast<uint8_t*>(to) + begin * shape[1] * pixels;
            dv_to_uint8(from.floats(), n_, shape[1], pixels, first);
            if (images && request.holed && request.holed->composite) put_back(*request.holed, begin, n_, first);
        } else {
            std::memcpy(to + size_t(begin) * from.sample_size(), from.data(), from.size());
        }
    }
}

}  // namespace diffusevae
