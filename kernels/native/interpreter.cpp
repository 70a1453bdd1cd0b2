// Every operation over all samples of a tile; within it a few samples at a time, so that a prepared
// operand is multiplied while it lies in the thread's L2.
#include "interpreter.h"

#include <algorithm>
#include <chrono>

namespace diffusevae {
namespace native {
namespace {

constexpr int64_t kMostArena = int64_t(512) << 20;  // beyond it a tile holds fewer samples
constexpr int64_t kSplitSamples = 8;
constexpr int64_t kMostRowFloats = int64_t(1) << 36;  // of one tensor: sizes stay far from overflowing

// Bytes of operands that a thread prepares before it multiplies them: what its L2 holds beside weights and outputs.
int64_t group_bytes(const Kernels& kernels) { return kernels.tiles ? int64_t(1) << 20 : int64_t(1) << 19; }

int64_t page_up(int64_t bytes) { return (bytes + 4095) / 4096 * 4096; }

Tiling tiling_of(const Layout& layout, int32_t threads) {
    if (layout.program.of_rows) return Tiling{0, 0};
    const int64_t fits = std::max<int64_t>(1, kMostArena / layout.sample_bytes);
    // Eight samples a thread share each panel of weights; with many threads one is enough to fill them.
    const int64_t wanted = std::max<int64_t>(1, std::min<int64_t>(8, 32 / threads));
    const int64_t each = std::min(wanted, fits / threads);
    const int64_t split = threads == 1 ? (each == 0 ? 1 : 0) : std::min<int64_t>({threads, kSplitSamples, fits});
    return Tiling{int32_t(each), int32_t(split)};
}

int64_t scratch_per_thread(const Layout& layout, const Tiling& tiling) {
    return tiling.each == 0 ? 0 : page_up(std::max(layout.scratch_bytes, group_bytes(*layout.kernels)) + kSlack);
}

int64_t scratch_bytes(const Layout& layout, const Tiling& tiling, int32_t threads) {
    return page_up(std::max(scratch_per_thread(layout, tiling) * threads, layout.scratch_bytes * tiling.split) + kSlack);
}

int64_t private_bytes(const Layout& layout) { return page_up(layout.private_floats * int64_t(sizeof(float)) + kSlack); }

int64_t arena_bytes(const Layout& layout, const Tiling& tiling, int32_t threads) {
    return page_up(layout.sample_bytes * tiling.samples(threads) + kSlack);
}

double now_us() {
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int64_t rows_of(int32_t kind, const dv_native_call& call) {
    if (kind == DV_NATIVE_ROWS_STEPS) return call.steps;
    return kind == DV_NATIVE_ROWS_BATCH ? call.batch : call.steps * call.batch;
}

}  // namespace

Interpreter::Interpreter(std::shared_ptr<const Layout> layout, int32_t threads)
    : layout_(std::move(layout)),
      tiling_(tiling_of(*layout_, threads)),
      thread_scratch_(scratch_per_thread(*layout_, tiling_)),
      scratch_at_(arena_bytes(*layout_, tiling_, threads)),
      private_at_(scratch_at_ + scratch_bytes(*layout_, tiling_, threads)),
      memory_(private_at_ + private_bytes(*layout_) * threads),
      timings_(layout_->operations.size()),
      team_(threads) {}

void Interpreter::check(const dv_native_call& call) const {
    const Program& p = layout_->program;
    const auto demand = [](bool good, const std::string& what) {
        if (!good) throw Failure(DV_NATIVE_BAD_CALL, what);
    };
    const auto found = [](int64_t value) { return ", found " + std::to_string(value); };
    demand(call.ports && size_t(call.ports_count) == p.ports.size(),
           "expected " + std::to_string(p.ports.size()) + " ports" + found(call.ports_count));
    for (int32_t i = 0; i < call.ports_count; ++i)
        demand(call.ports[i] != nullptr, "the pointer of port " + std::to_string(i) + " is null");
    demand(call.batch >= 1 && call.batch <= INT32_MAX, "batch: expected 1 or more" + found(call.batch));
    const bool row = p.row_port != DV_NATIVE_NONE, steps = p.steps_port != DV_NATIVE_NONE;
    demand(row ? call.row_count == 1 || call.row_count == call.batch : call.row_count == 0,
           std::string("row_count: expected ") + (row ? "1 or the batch" : "0") + found(call.row_count));
    demand(steps ? call.steps >= 1 && call.steps <= INT32_MAX : call.steps == 0,
           std::string("steps: expected ") + (steps ? "1 or more" : "0") + found(call.steps));
}

void Interpreter::run(const dv_native_call& call, Watch& watch) {
    check(call);
    if (layout_->program.of_rows) return run_rows(call);
    int64_t& done = watch.slice().samples;
    if (done < 0 || done >= call.batch)
        throw Failure(DV_NATIVE_BAD_CALL, "slice.samples: expected 0.." + std::to_string(call.batch - 1) + ", found "
                                              + std::to_string(done));
    while (done < call.batch) {
        watch.look();
        const int64_t left = call.batch - done;
        const bool side_by_side = tiling_.each > 0 && left >= threads();
        const int64_t count = side_by_side ? std::min<int64_t>(tiling_.each, left / threads()) * threads()
                                           : std::min<int64_t>(left, tiling_.split);
        run_tile(call, done, int32_t(count), side_by_side);
        done += count;
    }
    done = 0;
}

void Interpreter::run_tile(const dv_native_call& call, int64_t sample, int32_t count, bool side_by_side) {
    const Program& p = layout_->program;
    const bool row = p.row_port != DV_NATIVE_NONE;
    const int32_t parts = threads(), each = count / parts;
    uint8_t* memory = memory_.at();
    auto job = [&](int32_t part) {
        Work w{};
        w.arena = memory;
        w.arena_stride = layout_->sample_bytes;
        w.scratch = memory + scratch_at_ + (side_by_side ? part * thread_scratch_ : 0);
        w.private_scratch = reinterpret_cast<float*>(memory + private_at_ + part * private_bytes(*layout_));
        w.row = row ? static_cast<const float*>(call.ports[p.row_port]) : nullptr;
        w.row_stride = row && call.row_count > 1 ? p.port(p.row_port).channels : 0;
        w.ports = call.ports;
        w.sample = sample;
        w.first = side_by_side ? part * each : 0;
        w.last = side_by_side ? w.first + each : count;
        w.part = side_by_side ? 0 : part;
        w.parts = side_by_side ? 1 : parts;
        layout_->kernels->enter();
        run_operations(w, profiling_ && part == 0);
        layout_->kernels->leave();
    };
    team_.run(job);
    if (!profiling_) return;
    for (size_t i = 0; i < timings_.size(); ++i) {
        const Operation& op = layout_->operations[i];
        timings_[i].flop += op.flop * count;
        timings_[i].activation_bytes += op.activation_bytes * count;
        timings_[i].weight_bytes += op.weight_bytes;
        timings_[i].runs += 1;
    }
}

void Interpreter::run_operations(Work w, bool clocked) {
    const Kernels& k = *layout_->kernels;
    for (size_t i = 0; i < layout_->operations.size(); ++i) {
        const Operation& op = layout_->operations[i];
        if (op.kind == DV_NATIVE_CONV) {
            run_conv(i, w, clocked);
            continue;
        }
        const double begin = clocked ? now_us() : 0.0;
        switch (op.kind) {
        case DV_NATIVE_INPUT: k.input(op.input, w); break;
        case DV_NATIVE_ATTENTION: k.attention(op.attention, w); break;
        case DV_NATIVE_POOL: k.pool(op.resize, w); break;
        default: k.upsample(op.resize, w);
        }
        if (w.parts > 1) team_.barrier();
        if (clocked) timings_[i].product_us += now_us() - begin;
    }
}

void Interpreter::run_conv(size_t index, Work w, bool clocked) {
    const Operation& op = layout_->operations[index];
    const Conv& c = op.conv;
    const bool prepares = !c.main.in_place || (c.skip.count > 0 && !c.skip.in_place);
    const int32_t last = w.last, samples = w.last - w.first;
    const int64_t fit = group_bytes(*layout_->kernels) / op.scratch_bytes;
    const int32_t group = w.parts > 1 || !prepares ? samples : int32_t(std::max<int64_t>(1, std::min<int64_t>(fit, samples)));
    w.scratch_stride = op.scratch_bytes;
    w.upcoming = upcoming(index, w);
    for (; w.first < last; w.first = w.last) {
        w.last = std::min(last, w.first + group);
        const double begin = clocked ? now_us() : 0.0;
        if (prepares) {
            layout_->kernels->prepare(c, w);
            if (w.parts > 1) team_.barrier();
        }
        const double prepared = clocked ? now_us() : 0.0;
        layout_->kernels->product(c, w);
        if (w.parts > 1) team_.barrier();
        if (!clocked) continue;
        timings_[index].prepare_us += prepared - begin;
        timings_[index].product_us += now_us() - prepared;
    }
}

// Where this part begins to read the weights of the next convolution.
const uint8_t* Interpreter::upcoming(size_t index, const Work& w) const {
    for (size_t i = index + 1; i < layout_->operations.size(); ++i) {
        if (layout_->operations[i].kind != DV_NATIVE_CONV) continue;
        const Conv& c = layout_->operations[i].conv;
        const int32_t pairs = std::max(1, c.n_blocks / 2);
        const Share share = share_of(int64_t(w.last - w.first) * c.stripes, pairs * c.phases, w.part, w.parts);
        // Prefetching beyond the last panel is harmless: it never faults.
        return c.weights + int64_t(share.group_first) * (c.n_blocks / pairs) * c.steps * kStepBytes;
    }
    return nullptr;
}

void Interpreter::run_rows(const dv_native_call& call) {
    const Program& p = layout_->program;
    const Kernels& k = *layout_->kernels;
    if (p.steps_port != DV_NATIVE_NONE) {
        const int64_t* steps = static_cast<const int64_t*>(call.ports[p.steps_port]);
        for (const Operation& op : layout_->operations)
            for (int64_t s = 0; op.kind == DV_NATIVE_LOOKUP && s < call.steps; ++s)
                if (steps[s] < 0 || steps[s] >= op.rows.entries)
                    throw Failure(DV_NATIVE_BAD_CALL, "timestep " + std::to_string(steps[s]) + ", expected 0.."
                                                          + std::to_string(op.rows.entries - 1));
    }
    std::vector<int64_t> at(p.tensors.size());
    int64_t floats = 0, widest = 0;
    for (size_t i = 0; i < p.tensors.size(); ++i) {
        const int64_t rows = rows_of(p.tensors[i].rows, call);
        if (rows > kMostRowFloats / p.tensors[i].channels) throw Failure(DV_NATIVE_NO_MEMORY, "steps x batch is too large");
        const int64_t size = rows * p.tensors[i].channels;
        at[i] = floats;
        floats += size;
        widest = std::max(widest, size);
    }
    if (int64_t(rows_.size()) < floats + widest * threads()) rows_.resize(size_t(floats + widest * threads()));
    const auto tensor = [&](int32_t i) { return rows_.data() + at[size_t(i)]; };
    auto job = [&](int32_t part) {
        k.enter();
        for (const Operation& op : layout_->operations) {
            const RowsOp& r = op.rows;
            float* out = r.output == DV_NATIVE_NONE ? static_cast<float*>(call.ports[r.output_port]) : tensor(r.output);
            if (op.kind == DV_NATIVE_LINEAR) {
                const int64_t rows = rows_of(p.tensor(r.first).rows, call);
                k.linear(r.linear, tensor(r.first), rows_.data() + floats + part * widest, rows, out, part, threads());
            } else if (part == 0) {
                const int64_t width = p.tensor(r.output).channels;
                if (op.kind == DV_NATIVE_INPUT)
                    std::copy_n(static_cast<const float*>(call.ports[r.first]), call.batch * width, out);
                else if (op.kind == DV_NATIVE_LOOKUP)
                    for (int64_t s = 0; s < call.steps; ++s) {
                        const int64_t t = static_cast<const int64_t*>(call.ports[r.first])[s];
                        std::copy_n(r.table + t * width, width, out + s * width);
                    }
                else
                    for (int64_t s = 0; s < call.steps; ++s)
                        for (int64_t i = 0; i < call.batch * width; ++i)
                            out[s * call.batch * width + i] = tensor(r.first)[s * width + i % width] + tensor(r.second)[i];
            }
            if (threads() > 1) team_.barrier();
        }
        k.leave();
    };
    team_.run(job);
}

void Interpreter::profile(bool on) {
    profiling_ = on;
    if (on) std::fill(timings_.begin(), timings_.end(), dv_native_timing{});
}

}  // namespace native
}  // namespace diffusevae
