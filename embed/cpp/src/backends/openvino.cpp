// Backend `openvino`: graphs on the CPU, in float32. The bundle's verified ONNX files, compiled from memory; the
// options are those of engine/backends/openvino.py, so that one version of it computes the same bits here and there.
#include <algorithm>
#include <exception>
#include <map>
#include <new>
#include <openvino/openvino.hpp>
#include <utility>

#include "backends/onnx_file.h"
#include "backends/one_process.h"
#include "bundle/reader.h"
#include "error.h"
#include "backends/graph.h"

namespace diffusevae {
namespace {

constexpr const char* kName = "openvino";
constexpr const char* kPrecision = "f32";

// Its thread pool is the process's: in a child of fork() it has no workers, and a model compiled anew may wait for ever.
OneProcess& process() {
    static OneProcess only("OpenVINO");
    return only;
}

[[noreturn]] void refuse(const std::string& sentence) { throw Error(DIFFUSEVAE_BACKEND, "openvino, " + sentence); }

// Runs `call` in the one process that may, and turns what the runtime throws into an Error.
template <class Call>
auto guarded(const std::string& what, const char* expected, const Call& call) -> decltype(call()) {
    process().enter();
    try {
        return call();
    } catch (const Error&) {
        throw;
    } catch (const std::bad_alloc&) {
        throw;
    } catch (const std::exception& error) {  // ov::Exception, and whatever the plugins' libraries throw
        refuse(what + ": found " + error.what() + "; expected " + expected);
    }
}

const char* dtype_of(const ov::element::Type& type) {
    return type == ov::element::f32   ? "float32"
           : type == ov::element::i64 ? "int64"
           : type == ov::element::u8  ? "uint8"
                                      : "another type";
}

bool same_shape(const ov::PartialShape& found, const std::vector<Dimension>& expected) {
    if (found.rank().is_dynamic() || size_t(found.rank().get_length()) != expected.size()) return false;
    for (size_t i = 0; i < expected.size(); ++i) {
        const int64_t* fixed = std::get_if<int64_t>(&expected[i]);
        if (found[i].is_static() != (fixed != nullptr)) return false;
        if (fixed != nullptr && found[i].get_length() != *fixed) return false;
    }
    return true;
}

// Refuses a graph whose own inputs or outputs are not what the manifest says.
void check_ports(const std::vector<ov::Output<const ov::Node>>& ports, const std::vector<TensorSpec>& expected,
                 const std::string& where) {
    std::map<std::string, ov::Output<const ov::Node>> named;
    for (const auto& port : ports) named.emplace(port.get_any_name(), port);
    for (const TensorSpec& tensor : expected) {
        const auto found = named.find(tensor.name);
        std::string shown = "nothing";
        if (found != named.end()) {
            const std::string dtype = dtype_of(found->second.get_element_type());
            const ov::PartialShape shape = found->second.get_partial_shape();
            if (dtype == tensor.dtype && same_shape(shape, tensor.shape)) continue;
            shown = dtype + shape.to_string();
        }
        refuse(where + ": found " + tensor.name + " as " + shown + " in the file, expected " + tensor.text()
               + " as the manifest says; rebuild the bundle");
    }
    if (named.size() == expected.size()) return;
    refuse(where + ": found " + std::to_string(named.size()) + " tensors on one side, expected "
           + std::to_string(expected.size()) + " as the manifest says; rebuild the bundle");
}

// A compiled model and one infer request; clones share the compiled model and take turns on its threads.
class OpenVinoGraph : public Graph {
public:
    OpenVinoGraph(std::string name, ov::CompiledModel compiled)
        : name_(std::move(name)), held_(new Held{std::move(compiled), {}}) {
        held_->request = held_->compiled.create_infer_request();
    }

    void run(const Arrays& arrays) override {
        const auto infer = [&] {
            for (const Array& array : arrays) {
                const ov::Shape shape(array.shape, array.shape + array.rank);
                const auto type = array.dtype == Dtype::kInt64   ? ov::element::i64
                                  : array.dtype == Dtype::kUint8 ? ov::element::u8
                                                                 : ov::element::f32;
                held_->request.set_tensor(array.name, ov::Tensor(type, shape, array.data));
            }
            held_->request.infer();
        };
        guarded("graph '" + name_ + "'", "a result; check the free memory, or use a smaller batch", infer);
    }

    std::unique_ptr<Graph> clone() const override {
        const auto make = [&] { return std::make_unique<OpenVinoGraph>(name_, held_->compiled); };
        return guarded("another graph '" + name_ + "'", "one over the same weights; check the memory", make);
    }

private:
    struct Held {
        ov::CompiledModel compiled;  // its create_infer_request is safe to call from any thread
        ov::InferRequest request;
    };

    std::string name_;
    Own<Held> held_;
};

class OpenVino : public Backend {
public:
    OpenVino(const Bundle& bundle, int threads) : bundle_(bundle), core_(new ov::Core), config_{
        ov::hint::inference_precision(ov::element::f32),  // left out, it takes bf16 wherever the processor has it
        ov::hint::performance_mode(ov::hint::PerformanceMode::LATENCY),
        ov::inference_num_threads(threads),
        ov::num_streams(1),
        ov::hint::enable_cpu_pinning(false),  // pinned, two containers or clones fight over the same processors
    } {
        const auto options = core_->get_property("CPU", ov::supported_properties);
        // Activations are never quantized behind the caller's back.
        const ov::AnyMap::value_type plain = ov::hint::dynamic_quantization_group_size(0);
        if (std::find(options.begin(), options.end(), plain.first) != options.end()) config_.insert(plain);
    }

    const char* name() const override { return kName; }
    const char* precision() const override { return kPrecision; }

    std::unique_ptr<Graph> load(const std::string& name) override {
        const GraphSpec& spec = bundle_.spec(name);
        const std::string data = bundle_.read_graph(name);
        const std::string where = bundle_.path_of(spec);
        if (spec.weights) {
            refuse(where + ": found its weights in a file of their own, expected them inside, as in a graph of less than "
                   "2 GiB; sample this bundle in Python");
        }
        check_self_contained(data, where);
        const auto compile = [&]() -> std::unique_ptr<Graph> {
            const std::shared_ptr<ov::Model> model = core_->read_model(data, ov::Tensor());
            fix_sizes(*model, spec);
            ov::CompiledModel compiled = core_->compile_model(model, "CPU", config_);
            check_ports(compiled.inputs(), spec.inputs, where);
            check_ports(compiled.outputs(), spec.outputs, where);
            check_precision(compiled, name);
            return std::make_unique<OpenVinoGraph>(name, compiled);
        };
        return guarded(where, "a graph that it can compile; upgrade openvino, or rebuild the bundle", compile);
    }

private:
    // Inputs whose file leaves more dimensions free than the manifest does are of the manifest's size from here on.
    static void fix_sizes(ov::Model& model, const GraphSpec& spec) {
        std::map<std::string, ov::PartialShape> shapes;
        for (const ov::Output<ov::Node>& port : model.inputs()) {
            const std::string name = port.get_any_name();
            const ov::PartialShape found = port.get_partial_shape();
            for (const TensorSpec& tensor : spec.inputs) {
                if (tensor.name != name || found.rank().is_dynamic() || size_t(found.size()) != tensor.shape.size()) continue;
                ov::PartialShape shape = found;
                for (size_t i = 0; i < tensor.shape.size(); ++i)
                    if (const int64_t* fixed = std::get_if<int64_t>(&tensor.shape[i]); fixed && found[i].is_dynamic())
                        shape[i] = *fixed;
                if (shape != found) shapes[name] = shape;
            }
        }
        if (!shapes.empty()) model.reshape(shapes);
    }

    static void check_precision(const ov::CompiledModel& compiled, const std::string& name) {
        const ov::element::Type obtained = compiled.get_property(ov::hint::inference_precision);
        if (obtained == ov::element::f32) return;
        refuse("graph '" + name + "': found that it runs in " + obtained.get_type_name()
               + ", expected f32 as asked for; choose backend native");
    }

    const Bundle& bundle_;
    Own<ov::Core> core_;
    ov::AnyMap config_;
};

}  // namespace

std::unique_ptr<Backend> open_openvino(const Bundle& bundle, const BackendRequest& request) {
    if (request.precision != "auto" && request.precision != kPrecision) {
        refuse("precision: found '" + request.precision + "', expected f32, the one that this library asks of it; "
               "choose it, or backend native");
    }
    const auto open = [&] { return std::make_unique<OpenVino>(bundle, request.threads); };
    return guarded("its CPU plugin", "the libraries of one version, beside each other; install openvino again", open);
}

}  // namespace diffusevae
