// Backend `native`: this project's own engine on the CPU, in bf16 or int8. A checked program, mapped weights, and the C
// functions of the kernels. The instruction set is the best that processor and operating system allow (AMX, AVX-512 VNNI,
// AVX2); DIFFUSEVAE_ISA forces one of them. Results depend on the instruction set, never on batch size or threads. Graphs that
// the engine has no operations for are another backend's, where the manifest says so.
#include <unistd.h>

#include <cstdlib>

#include "checks.h"
#include "bundle/reader.h"
#include "diffusevae/native.h"
#include "error.h"
#include "backends/graph.h"
#include "backends/native_program.h"
#include "text.h"

namespace diffusevae {

namespace {

constexpr const char* kVariable = "DIFFUSEVAE_ISA";

const std::vector<std::string> kIsas = {"amx", "avx512_bf16", "avx512", "avx2"};  // best first
const std::vector<std::string> kOwnPrecisions = {"bf16", "int8"};

struct Message {
    char text[1024] = "";
};

// The error for a status of the kernels, with what to do about it.
[[noreturn]] void fail(int32_t status, const std::string& what, const Message& message) {
    const std::string found = what + ": found " + message.text;
    switch (status) {
        case DV_NATIVE_BAD_PROGRAM:
            throw Error(DIFFUSEVAE_BUNDLE, what + ", " + message.text + "; " + kRebuild);
        case DV_NATIVE_BAD_CALL:
            throw Error(DIFFUSEVAE_ARGUMENT, found + "; expected inputs within what the graph was built for; correct them");
        case DV_NATIVE_NO_MEMORY:
            throw Error(DIFFUSEVAE_NO_MEMORY,
                        found + "; expected a result; free some memory, or use fewer threads or a smaller batch");
        case DV_NATIVE_NO_THREADS:
            throw Error(DIFFUSEVAE_BACKEND, found + "; expected a result; lower threads, or raise the limit on processes");
        case DV_NATIVE_UNSUPPORTED:
            throw Error(DIFFUSEVAE_BACKEND,
                        found + "; expected a result; unset " + kVariable + ", or choose another backend");
        default:
            throw Error(DIFFUSEVAE_BACKEND, found + "; expected a result; try another backend");
    }
}

bool supports(const std::string& isa, Message& why) {
    return dv_native_supports(isa.c_str(), why.text, sizeof why.text) != 0;
}

// The instruction set that graphs loaded now run on, as a text that stays.
const char* instruction_set() {
    Message why;
    const char* best = dv_native_isa();
    const char* variable = std::getenv(kVariable);
    const std::string forced = variable ? variable : "";
    if (forced.empty()) {
        if (*best) return best;
        supports(kIsas.back(), why);
        throw Error(DIFFUSEVAE_BACKEND, std::string("backend 'native': found a processor on which no instruction set of its "
                                                    "kernels runs (") + why.text + "), expected one of " + joined(kIsas)
                                            + "; choose another backend");
    }
    for (const std::string& isa : kIsas) {
        if (isa != forced) continue;
        if (supports(isa, why)) return isa.c_str();
        throw Error(DIFFUSEVAE_BACKEND, std::string(kVariable) + ": found '" + forced + "' on a machine that cannot run it ("
                                            + why.text + "), expected one that it can; unset the variable, or choose "
                                            + (*best ? best : "another backend"));
    }
    throw Error(DIFFUSEVAE_BACKEND, std::string(kVariable) + ": found " + in_quotes(forced) + ", expected one of "
                                        + joined(kIsas) + ", or the variable unset for the best."
                                        + did_you_mean(forced, kIsas));
}

// What was asked for; for "auto" the first that the bundle's step was built in, on any instruction set.
const char* chosen_precision(const Bundle& bundle, const std::string& asked) {
    const std::string& step = bundle.manifest().pipeline.step.graph;
    for (const std::string& precision : kOwnPrecisions)
        if (precision == asked || (asked == "auto" && bundle.has_engine("native", precision, step)))
            return precision.c_str();
    if (asked == "auto") return kOwnPrecisions[0].c_str();
    throw Error(DIFFUSEVAE_BACKEND, "native: found precision '" + asked + "', expected one of those it has: "
                                        + joined(kOwnPrecisions) + "; choose one, or another backend");
}

// What all handles over one program share.
struct Loaded {
    std::string what;  // for messages
    Weights weights;
    NativeProgram program;
    int threads;
    std::string resized;  // of a program in another size than its own: what was asked for, for messages
};

using SharedProgram = std::shared_ptr<const Loaded>;

struct Close {
    void operator()(dv_native* handle) const { dv_native_close(handle); }
};

using Handle = std::unique_ptr<dv_native, Close>;

// A program and one handle over it; clones have a layout and weights in common, memory and threads of their own.
class NativeGraph : public Graph {
public:
    NativeGraph(SharedProgram loaded, Handle handle)
        : loaded_(std::move(loaded)),
          handle_(std::move(handle)),
          process_(getpid()),
          ports_(loaded_->program.ports.size()) {}

    void run(const Arrays& arrays) override {
        dv_native_call call{ports_.data(), int32_t(ports_.size()), 0, 1, 0, {}};
        std::fill(ports_.begin(), ports_.end(), nullptr);
        for (const Array& array : arrays) bind(array, call);
        Message message;
        const int32_t status = dv_native_run(own_handle(), &call, message.text, sizeof message.text);
        if (status != DV_NATIVE_OK) fail(status, loaded_->what, message);
    }

    LoopEnd run_loop(Loop& loop) override {
        loop.step_ms.assign(size_t(loop.calls), 0.0);
        std::vector<int32_t> numbers;
        std::vector<const float*> constants;
        for (const Array& array : loop.constants) {
            numbers.push_back(number_of(array.name));
            constants.push_back(static_cast<const float*>(array.data));
        }
        dv_native_steps steps{};
        steps.x_port = number_of(loop.x_port);
        steps.row_port = loop.row_port ? number_of(loop.row_port) : DV_NATIVE_NONE;
        steps.e_port = number_of(loop.e_port);
        steps.v_port = loop.v_port ? number_of(loop.v_port) : DV_NATIVE_NONE;
        steps.constants_count = int32_t(constants.size());
        steps.constant_ports = numbers.data();
        steps.constants = constants.data();
        steps.steps = int32_t(loop.calls);
        steps.row_count = int32_t(loop.row_count);
        steps.lanes = int32_t(loop.lanes);
        steps.samples = int32_t(loop.samples);
        steps.embeddings = loop.row_port ? loop.embeddings : nullptr;
        steps.rows = loop.rows;
        steps.weights = loop.weights;
        steps.x = loop.x;
        steps.x_in = loop.x_in;
        steps.c = loop.c;
        steps.e = loop.e;
        steps.v = loop.v;
        steps.y = loop.y;
        steps.h = loop.h;
        steps.seeds = loop.seeds;
        steps.noise = loop.noise;
        steps.noise_shared = loop.noise_shared ? 1 : 0;
        steps.step_ms = loop.step_ms.data();
        steps.update_ms = &loop.update_ms;
        steps.stop = loop.stop;
        steps.stop_user = loop.stop_user;
        Message message;
        const int32_t status = dv_native_run_steps(own_handle(), &steps, message.text, sizeof message.text);
        loop.failed = steps.failed_step;
        if (status == DV_NATIVE_CANCELLED) return LoopEnd::kStopped;
        if (status == DV_NATIVE_NOT_FINITE) return LoopEnd::kNotFinite;
        if (status != DV_NATIVE_OK) fail(status, loaded_->what, message);
        return LoopEnd::kDone;
    }

    std::unique_ptr<Graph> clone() const override { return std::make_unique<NativeGraph>(loaded_, cloned()); }

    int64_t weight_bytes() const override { return loaded_->weights.size(); }

private:
    int32_t number_of(const char* name) const {
        const int32_t number = loaded_->program.port(name);
        if (number == DV_NATIVE_NONE)
            throw Error(DIFFUSEVAE_INTERNAL, loaded_->what + ": found the array '" + name + "', which no port takes");
        return number;
    }

    void bind(const Array& array, dv_native_call& call) {
        const int32_t number = number_of(array.name);
        ports_[size_t(number)] = array.data;
        const dv_native_port& port = loaded_->program.ports[size_t(number)];
        if (port.is_output) return;
        if (port.kind == DV_NATIVE_PORT_STEPS) {
            call.steps = array.shape[0];
        } else if (port.kind == DV_NATIVE_PORT_ROW) {
            call.row_count = int32_t(array.shape[0]);
        } else {
            call.batch = array.shape[0];
        }
    }

    Handle cloned() const {
        dv_native* twin = nullptr;
        Message message;
        const int32_t status = dv_native_clone(handle_.get(), loaded_->threads, &twin, message.text, sizeof message.text);
        if (status != DV_NATIVE_OK) fail(status, loaded_->what + ", another handle over it", message);
        return Handle(twin);
    }

    // The handle of this process: after a fork another one, because threads stay behind in the process that started them.
    dv_native* own_handle() {
        if (process_ != getpid()) {
            forked_ = cloned();
            process_ = getpid();
        }
        return forked_ ? forked_.get() : handle_.get();
    }

    SharedProgram loaded_;
    const Handle handle_;  // never replaced: clone() reads it while run() may be in another thread
    Handle forked_;
    pid_t process_;
    std::vector<void*> ports_;
};

class NativeBackend : public Backend {
public:
    NativeBackend(const Bundle& bundle, const BackendRequest& request)
        : bundle_(bundle),
          isa_(instruction_set()),
          precision_(chosen_precision(bundle, request.precision)),
          threads_(std::min(request.threads, DV_NATIVE_MAX_THREADS)) {}

    const char* name() const override { return "native"; }
    const char* precision() const override { return precision_; }
    const char* isa() const override { return isa_; }

    std::unique_ptr<Graph> load(const std::string& name) override {
        const std::string stored = bundle_.spec(name).computes_in(precision_);
        const EngineSpec& engine = bundle_.engine("native", stored, name);
        if (!engine.runs_on.empty()) return open_runner(runners_, bundle_, engine, threads_).load(name);
        const std::string where = bundle_.path_of(engine.file("program"));
        Weights weights(bundle_.map_engine(engine, "weights"), bundle_.path_of(engine.file("weights")));
        NativeProgram program = parse_program(bundle_.read_engine(engine, "program"), weights.blobs(), name, stored, where);
        const Canvas* const canvas = bundle_.canvas();
        const bool resized = canvas != nullptr && resize(program, *canvas, name);
        check_ports(program, bundle_.spec(name), where);
        return opened(std::make_shared<const Loaded>(
            Loaded{where, std::move(weights), std::move(program), threads_, resized ? asked_for(*canvas) : ""}));
    }

private:
    static std::string asked_for(const Canvas& canvas) {
        return "size: found a state of " + size_text(canvas.whole_height, canvas.whole_width) + " (the bundle's own is "
               + size_text(canvas.height, canvas.width) + ")";
    }

    std::unique_ptr<Graph> opened(SharedProgram loaded) const {
        const dv_native_program flat = loaded->program.flat(loaded->weights);
        dv_native* handle = nullptr;
        Message message;
        const int32_t status = dv_native_open(&flat, isa_, threads_, &handle, message.text, sizeof message.text);
        if (status == DV_NATIVE_BAD_PROGRAM && !loaded->resized.empty())  // the judge's sentence on that size
            throw Error(DIFFUSEVAE_BACKEND, loaded->resized + ", which backend native does not run: " + loaded->what + ", "
                                                + message.text + ". Pass overlap=0.5 too, for tiles of the bundle's own size, "
                                                  "or choose another backend.");
        if (status != DV_NATIVE_OK) fail(status, loaded->what, message);
        Handle owned(handle);
        return std::make_unique<NativeGraph>(std::move(loaded), std::move(owned));
    }

    const Bundle& bundle_;
    const char* isa_;
    const char* precision_;
    int threads_;
    Runners runners_;  // of graphs that are not the engine's own
};

}  // namespace

std::unique_ptr<Backend> open_native(const Bundle& bundle, const BackendRequest& request) {
    return std::make_unique<NativeBackend>(bundle, request);
}

}  // namespace diffusevae
