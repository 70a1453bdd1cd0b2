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

// Operations and values that take some tens of microseconds: short enough to wait for, and 100 times what taking a piece costs.
// A test cuts smaller, so that its maps are cut at all.
#if defined(DV_SMALL_PIECES)
constexpr double kScale = 1.0 / 1024;
#else
constexpr double kScale = 1.0;
#endif
constexpr double kPieceValues = kScale * 32768, kPieceRows = kScale * 4e5;  // rows: float32, weights from memory
double piece_flop(const Kernels& kernels) { return kScale * (kernels.tiles ? 2.4e7 : 4e6); }

int32_t pieces_of(double amount, double a_piece, int32_t threads) {
    return int32_t(std::min(std::max(amount / a_piece / threads, 1.0), double(Team::kMostPieces)));
}

double now_us() {
    return std::chrono::duration<double, std::micro>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

int64_t rows_of(int32_t kind, const dv_native_call& call) {
    if (kind == DV_NATIVE_ROWS_STEPS) return call.steps;
    return kind == DV_NATIVE_ROWS_BATCH ? call.batch : call.steps * call.batch;
}

// How often all of an operation's samples are gone through; what a pass reads, the passes before it have finished.
int32_t passes(const Operation& op) {
    const Conv& c = op.conv;
    switch (op.kind) {
    case DV_NATIVE_CONV: return !c.main.in_place || (c.skip.count > 0 && !c.skip.in_place) ? 2 : 1;
    case DV_NATIVE_ATTENTION:
    case DV_NATIVE_NORM_GRADIENT: return 2;
    case DV_NATIVE_ATTENTION_GRADIENT: return 3;
    default: return 1;
    }
}

void run_part(const Kernels& k, const Operation& op, int32_t pass, const Work& w) {
    switch (op.kind) {
    case DV_NATIVE_INPUT: return k.input(op.input, w);
    case DV_NATIVE_CONV: return pass + 1 < passes(op) ? k.prepare(op.conv, w) : k.product(op.conv, w);
    case DV_NATIVE_NORM: return k.norm(op.conv, w);
    case DV_NATIVE_ATTENTION: return pass == 0 ? k.pack(op.attention, w) : k.attention(op.attention, w);
    case DV_NATIVE_NORM_GRADIENT: return k.norm_gradient(op.norm_gradient, pass, w);
    case DV_NATIVE_ATTENTION_GRADIENT: return k.attention_gradient(op.attention_gradient, pass, w);
    case DV_NATIVE_CLASSIFY: return k.classify(op.classify, w);
    case DV_NATIVE_POOL: return k.pool(op.resize, w);
    case DV_NATIVE_UPSAMPLE: return k.upsample(op.resize, w);
    case DV_NATIVE_EMBED: return k.embed(op.embed, w);
    default: return k.nearest(op.nearest, w);
    }
}

}  // namespace

Interpreter::Interpreter(std::shared_ptr<const Layout> layout, int32_t threads)
    : layout_(std::move(layout)),
      tiling_(tiling_of(*layout_, threads)),
      thread_scratch_(scratch_per_thread(*layout_, tiling_)),
      scratch_at_(arena_bytes(*layout_, tiling_, threads)),
      private_at_(scratch_at_ + scratch_bytes(*layout_, tiling_, threads)),
      memory_(private_at_ + private_bytes(*layout_) * threads),
      held_(size_t(threads)),
      timings_(layout_->operations.size()),
      team_(threads, layout_->kernels->enter, layout_->kernels->leave) {}

void Interpreter::check(const dv_native_call& call) const {
    const Program& p = layout_->program;
    const auto expect = [](bool good, const char* what, const char* expected, int64_t found) {
        demand(good, [=] { return std::string(what) + ": expected " + expected + ", found " + std::to_string(found); });
    };
    demand(call.ports && size_t(call.ports_count) == p.ports.size(), [&] {
        return "expected " + std::to_string(p.ports.size()) + " ports, found " + std::to_string(call.ports_count);
    });
    for (int32_t i = 0; i < call.ports_count; ++i)
        demand(call.ports[i] != nullptr, [=] { return "the pointer of port " + std::to_string(i) + " is null"; });
    expect(call.batch >= 1 && call.batch <= INT32_MAX, "batch", "1 or more", call.batch);
    const bool row = p.row_port != DV_NATIVE_NONE, steps = p.steps_port != DV_NATIVE_NONE;
    expect(row ? call.row_count == 1 || call.row_count == call.batch : call.row_count == 0, "row_count",
           row ? "1 or the batch" : "0", call.row_count);
    expect(steps ? call.steps >= 1 && call.steps <= INT32_MAX : call.steps == 0, "steps", steps ? "1 or more" : "0", call.steps);
    for (const LookedUp& looked_up : p.looked_up) {
        const dv_native_op& op = p.ops[size_t(looked_up.op)];
        const dv_native_port& port = p.port(looked_up.port);
        const int64_t* ids = static_cast<const int64_t*>(call.ports[looked_up.port]);
        const int64_t* end = ids + call.batch * port.height * port.width;
        const int64_t* wrong = std::find_if(ids, end, [&](int64_t id) { return id < 0 || id >= op.factor; });
        demand(wrong == end, [&] {
            return "ids: expected 0.." + std::to_string(op.factor - 1) + ", found " + std::to_string(*wrong);
        });
    }
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

// Each share is a thread's own samples, one piece from the first operation to the last.
class Interpreter::SideBySide final : public Job {
public:
    SideBySide(Interpreter& i, const dv_native_call& call, int64_t sample, int32_t each)
        : i_(i), call_(call), sample_(sample), each_(each) {}

    int32_t pieces(int32_t) override { return 1; }
    void over(int32_t) override {}
    void run(const Piece& piece) override {
        Work w = i_.work_of(call_, sample_, piece.thread);
        w.scratch += piece.thread * i_.thread_scratch_;
        w.first = piece.share * each_;
        w.last = w.first + each_;
        w.parts = w.pieces = 1;
        i_.run_operations(w, i_.profiling_ && piece.share == 0);
    }

private:
    Interpreter& i_;
    const dv_native_call& call_;
    int64_t sample_;
    int32_t each_;
};

// All threads at one operation after the other.
class Interpreter::Split final : public Job {
public:
    Split(Interpreter& i, const dv_native_call& call, int64_t sample, int32_t count)
        : i_(i), call_(call), sample_(sample), count_(count), begin_(i.profiling_ ? now_us() : 0.0) {}

    int32_t pieces(int32_t stage) override { return i_.stages_[size_t(stage)].pieces; }

    void over(int32_t stage) override {
        if (!i_.profiling_) return;
        const Stage& s = i_.stages_[size_t(stage)];
        const double now = now_us();
        (s.last ? i_.timings_[s.operation].product_us : i_.timings_[s.operation].prepare_us) += now - begin_;
        begin_ = now;
    }

    void run(const Piece& piece) override {
        const Stage& s = i_.stages_[size_t(piece.stage)];
        const Operation& op = i_.layout_->operations[s.operation];
        Held& held = i_.held_[size_t(piece.thread)];
        if (held.stage != piece.number) held = Held{piece.number, -1};
        Work w = i_.work_of(call_, sample_, piece.thread);
        w.scratch_stride = op.scratch_bytes;
        w.last = count_;
        w.part = piece.share;
        w.parts = i_.threads();
        w.piece = piece.piece;
        w.pieces = piece.pieces;
        if (s.last && op.kind == DV_NATIVE_CONV && piece.piece + 1 == piece.pieces) w.upcoming = i_.upcoming(s.operation, w);
        run_part(*i_.layout_->kernels, op, s.pass, w);
    }

private:
    Interpreter& i_;
    const dv_native_call& call_;
    int64_t sample_;
    int32_t count_;
    double begin_;
};

Work Interpreter::work_of(const dv_native_call& call, int64_t sample, int32_t thread) {
    const int32_t row = layout_->program.row_port;
    Work w{};
    w.arena = memory_.at();
    w.arena_stride = layout_->sample_bytes;
    w.scratch = memory_.at() + scratch_at_;
    w.private_scratch = reinterpret_cast<float*>(memory_.at() + private_at_ + thread * private_bytes(*layout_));
    w.held = &held_[size_t(thread)].what;
    w.row = row != DV_NATIVE_NONE ? static_cast<const float*>(call.ports[row]) : nullptr;
    w.row_stride = row != DV_NATIVE_NONE && call.row_count > 1 ? layout_->program.port(row).channels : 0;
    w.ports = call.ports;
    w.sample = sample;
    return w;
}

void Interpreter::run_tile(const dv_native_call& call, int64_t sample, int32_t count, bool side_by_side) {
    if (side_by_side) {
        SideBySide job(*this, call, sample, count / threads());
        team_.run(job, 1);
    } else {
        plan(count);
        Split job(*this, call, sample, count);
        team_.run(job, int32_t(stages_.size()));
    }
    if (!profiling_) return;
    for (size_t i = 0; i < timings_.size(); ++i) {
        const Operation& op = layout_->operations[i];
        timings_[i].flop += op.flop * count;
        timings_[i].activation_bytes += op.activation_bytes * count;
        timings_[i].weight_bytes += op.weight_bytes;
        timings_[i].runs += 1;
    }
}

// The stages of so many samples, and what a piece of each is.
void Interpreter::plan(int32_t samples) {
    if (planned_ == samples) return;
    planned_ = samples;
    stages_.clear();
    for (size_t i = 0; i < layout_->operations.size(); ++i) {
        const Operation& op = layout_->operations[i];
        const int32_t moving = pieces_of(op.activation_bytes / 2.0 * samples, kPieceValues, threads());
        const int32_t computing = pieces_of(op.flop * samples, piece_flop(*layout_->kernels), threads());
        const int32_t count = passes(op);
        for (int32_t pass = 0; pass < count; ++pass) {
            // The first of several moves values to where they are multiplied.
            const bool multiplies = op.flop > 0.0 && (pass > 0 || count == 1);
            stages_.push_back({i, pass, pass + 1 == count, multiplies ? computing : moving});
        }
    }
}

void Interpreter::run_operations(Work w, bool clocked) {
    for (size_t i = 0; i < layout_->operations.size(); ++i) {
        const Operation& op = layout_->operations[i];
        if (op.kind == DV_NATIVE_CONV || passes(op) > 1) {
            run_in_groups(i, w, clocked);
            continue;
        }
        const double begin = clocked ? now_us() : 0.0;
        *w.held = -1;
        run_part(*layout_->kernels, op, 0, w);
        if (clocked) timings_[i].product_us += now_us() - begin;
    }
}

// As many samples at a time as have their operands in L2 together.
void Interpreter::run_in_groups(size_t index, Work w, bool clocked) {
    const Operation& op = layout_->operations[index];
    const int32_t last = w.last, samples = w.last - w.first, count = passes(op);
    const int64_t fit = group_bytes(*layout_->kernels) / op.scratch_bytes;
    const int32_t group = count == 1 ? samples : int32_t(std::max<int64_t>(1, std::min<int64_t>(fit, samples)));
    w.scratch_stride = op.scratch_bytes;
    w.upcoming = upcoming(index, w);
    for (; w.first < last; w.first = w.last) {
        w.last = std::min(last, w.first + group);
        for (int32_t pass = 0; pass < count; ++pass) {
            const double begin = clocked ? now_us() : 0.0;
            *w.held = -1;
            run_part(*layout_->kernels, op, pass, w);
            if (!clocked) continue;
            (pass + 1 < count ? timings_[index].prepare_us : timings_[index].product_us) += now_us() - begin;
        }
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

// Every operation of a program of rows in two stages: SILU of a LINEAR's inputs, and what it computes.
class Interpreter::RowsJob final : public Job {
public:
    RowsJob(Interpreter& i, const dv_native_call& call, std::vector<float*> tensors, float* activated)
        : i_(i), p_(i.layout_->program), call_(call), tensors_(std::move(tensors)), activated_(activated) {}

    void over(int32_t) override {}

    int32_t pieces(int32_t stage) override {
        const Operation& op = i_.layout_->operations[size_t(stage / 2)];
        if (op.kind != DV_NATIVE_LINEAR) return 1;
        const double rows = double(rows_of(p_.tensor(op.rows.first).rows, call_));
        return stage % 2 == 0 ? pieces_of(rows * op.rows.linear.inputs, kPieceValues, i_.threads())
                              : pieces_of(rows * op.flop, kPieceRows, i_.threads());
    }

    void run(const Piece& piece) override {
        const Operation& op = i_.layout_->operations[size_t(piece.stage / 2)];
        const bool first = piece.stage % 2 == 0;
        if (op.kind == DV_NATIVE_LINEAR) return first ? activate(op.rows, piece) : multiply(op.rows, piece);
        if (!first && piece.share == 0 && piece.piece == 0) copy(op);
    }

private:
    float* output(const RowsOp& r) const {
        return r.output == DV_NATIVE_NONE ? static_cast<float*>(call_.ports[r.output_port]) : tensors_[size_t(r.output)];
    }

    static Work work_of(const Piece& piece, int32_t parts) {
        Work w{};
        w.part = piece.share, w.parts = parts, w.piece = piece.piece, w.pieces = piece.pieces;
        return w;
    }

    void activate(const RowsOp& r, const Piece& piece) const {
        if (r.linear.activation != DV_NATIVE_SILU) return;
        const Range some = units_of(work_of(piece, i_.threads()), rows_of(p_.tensor(r.first).rows, call_) * r.linear.inputs);
        i_.layout_->kernels->activate(tensors_[size_t(r.first)], some.first, some.last, activated_);
    }

    void multiply(const RowsOp& r, const Piece& piece) const {
        const float* in = r.linear.activation == DV_NATIVE_SILU ? activated_ : tensors_[size_t(r.first)];
        const int64_t rows = rows_of(p_.tensor(r.first).rows, call_);
        i_.layout_->kernels->linear(r.linear, in, rows, output(r), work_of(piece, i_.threads()));
    }

    void copy(const Operation& op) const {
        const RowsOp& r = op.rows;
        const int64_t width = p_.tensor(r.output).channels, all = call_.batch * width;
        float* out = output(r);
        if (op.kind == DV_NATIVE_INPUT) {
            std::copy_n(static_cast<const float*>(call_.ports[r.first]), all, out);
            return;
        }
        for (int64_t s = 0; s < call_.steps; ++s) {
            if (op.kind == DV_NATIVE_LOOKUP)
                std::copy_n(r.table + static_cast<const int64_t*>(call_.ports[r.first])[s] * width, width, out + s * width);
            else
                for (int64_t i = 0; i < all; ++i)
                    out[s * all + i] = tensors_[size_t(r.first)][s * width + i % width] + tensors_[size_t(r.second)][i];
        }
    }

    Interpreter& i_;
    const Program& p_;
    const dv_native_call& call_;
    std::vector<float*> tensors_;
    float* activated_;
};

void Interpreter::run_rows(const dv_native_call& call) {
    const Program& p = layout_->program;
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
    if (int64_t(rows_.size()) < floats + widest) rows_.resize(size_t(floats + widest));
    std::vector<float*> tensors;
    for (const int64_t begin : at) tensors.push_back(rows_.data() + begin);
    RowsJob job(*this, call, std::move(tensors), rows_.data() + floats);
    team_.run(job, int32_t(2 * layout_->operations.size()));
}

void Interpreter::profile(bool on) {
    profiling_ = on;
    if (on) std::fill(timings_.begin(), timings_.end(), dv_native_timing{});
}

}  // namespace native
}  // namespace diffusevae
