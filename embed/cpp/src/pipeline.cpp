#include "pipeline.h"

#include <algorithm>
#include <cstring>

#include "clock.h"
#include "diffusevae/kernels.h"
#include "inpaint.h"

namespace diffusevae {
namespace {

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

void Pipeline::run(const Request& request, const StepTable& table, int64_t begin, int64_t n,
                   const std::vector<Wanted>& wanted, const std::atomic<bool>& cancelled, diffusevae_timings& timings,
                   std::vector<double>& step_ms) {
    Clock clock;
    begin_chunk(request, table, n);
    const std::vector<uint64_t> seeds = request.seeds.part(begin, n);
    if (request.blend) take_images(*request.holed, *request.blend, begin);
    timings.before_ms += clock.lap();
    take_inputs(request, seeds, begin, table.calls());
    timings.noise_ms += clock.lap();
    before(request.blend && request.blend->replaces ? &*spec_.state.start : nullptr);
    timings.before_ms += clock.lap();
    rows(table);
    timings.rows_ms += clock.lap();
    start(request, table, seeds, begin);
    timings.noise_ms += clock.lap();
    loop(request, table, seeds, begin, cancelled, timings, step_ms);
    clock.lap();
    after();
    timings.after_ms += clock.lap();
    store(wanted, request, seeds, begin);
    timings.post_ms += clock.lap();
}

// Forgets the values of the chunk before, but nulls that no request changes, and makes room for n samples.
void Pipeline::begin_chunk(const Request& request, const StepTable& table, int64_t n) {
    n_ = n;
    there_.clear();
    for (auto at = nulls_there_.begin(); at != nulls_there_.end();)
        at = null_depends_on_request(*at) ? nulls_there_.erase(at) : std::next(at);
    work_.prepare(n, table, request.watch || request.setting.quantize_denoised, spec_.learns_variance());
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

// What depends on the timesteps: the network's embeddings, those of the guides and of the regulariser that these rows call.
void Pipeline::rows(const StepTable& table) {
    embed(table);
    const auto outside = [this](const CallSpec& spec, const Find& find, Tensors& into) { call(spec, find, into); };
    if (table.takes_guide()) guides_.begin(table, outside);
    if (!table.nets.empty()) regulariser_.begin(table, outside);
}

// The table of embeddings, kept from run to run where it depends on the timesteps alone.
void Pipeline::embed(const StepTable& table) {
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

// ---- the loop ----------------------------------------------------------------------------------------------------------

void Pipeline::loop(const Request& request, const StepTable& table, const std::vector<uint64_t>& seeds, int64_t begin,
                    const std::atomic<bool>& cancelled, diffusevae_timings& timings, std::vector<double>& step_ms) {
    const CallSpec& step = spec_.step;
    const std::string *x_port = port_of(step.inputs, kX), *row_port = port_of(step.inputs, kRows);
    const std::string* v_port = port_of(step.outputs, kVariance);
    const std::function<void(Tensor&)> quantize = request.setting.quantize_denoised ? quantizer() : nullptr;
    const Guide guide = table.takes_guide() ? guide_of(request, table, begin) : nullptr;
    const Second second = table.nets.empty() ? nullptr : second_network();
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
                spec_.per_sample_rows() ? table.lanes * n_ : 1,
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
    run_chain(chain, work_, timings, step_ms);
}

std::function<void(Tensor&)> Pipeline::quantizer() {
    return [this](Tensor& x0) {
        call(*spec_.quantize, [&](const std::string&) -> const Tensor& { return x0; }, quantized_);
        std::memcpy(x0.data(), quantized_.at(kX0).data(), x0.size());
    };
}

Guide Pipeline::guide_of(const Request& request, const StepTable& table, int64_t begin) {
    return [this, &request, &table, begin](int64_t i, const float* v, const std::function<const float*()>& mean) {
        const GuidedRow row{table, i, request.setting.guide_mode, work_.x, v, begin, mean};
        const auto value_of = [this](const std::string& name) -> const Tensor& { return value(name); };
        const auto run = [this](const CallSpec& spec, const Find& find, Tensors& into) { call_unchecked(spec, find, into); };
        return guides_.gradient(row, value_of, run, where_of(parts_.backend));
    };
}

Second Pipeline::second_network() {
    return [this](int64_t i, float* x, float* e, float* v) {
        regulariser_.evaluate(loaded(spec_.regulariser->step.graph), i, x, work_.shape, e, v);
    };
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
