// The checks of engine/backends/tensorrt/plan.py.
#include "backends/tensorrt_plan.h"

#include <algorithm>

#include "backends/tensorrt_cuda.h"
#include "error.h"

namespace diffusevae {
namespace {

constexpr size_t kKeptMessages = 8;
constexpr size_t kHeader = 32;  // bytes that every plan has; fewer, and the library reads past their end

std::string rebuild(const std::string& options = "") {
    return "rebuild with: diffusevae build CKPT --out PATH --backends tensorrt --precision fp16"
           + options;
}

const char* dtype_of(nvinfer1::DataType type) {
    switch (type) {
        case nvinfer1::DataType::kFLOAT: return "float32";
        case nvinfer1::DataType::kINT64: return "int64";
        case nvinfer1::DataType::kHALF: return "float16";
        case nvinfer1::DataType::kUINT8: return "uint8";
        default: return "another type";
    }
}

bool same_shape(const nvinfer1::Dims& found, const std::vector<Dimension>& expected) {
    if (found.nbDims < 0 || size_t(found.nbDims) != expected.size()) return false;
    for (size_t i = 0; i < expected.size(); ++i) {
        const int64_t* fixed = std::get_if<int64_t>(&expected[i]);
        if (fixed == nullptr ? found.d[i] >= 0 : found.d[i] != *fixed) return false;
    }
    return true;
}

}  // namespace

void refuse_plan(const std::string& sentence) { throw Error(DIFFUSEVAE_BACKEND, sentence); }

std::string shape_text(const int64_t* sizes, size_t rank) {
    std::string text = "[";
    for (size_t i = 0; i < rank; ++i) text += (i == 0 ? "" : ", ") + std::to_string(sizes[i]);
    return text + "]";
}

std::string tensorrt_version() {
    const int parts[] = {getInferLibMajorVersion(), getInferLibMinorVersion(), getInferLibPatchVersion(),
                         getInferLibBuildVersion()};
    std::string text;
    for (const int part : parts) text += (text.empty() ? "" : ".") + std::to_string(part);
    return text;
}

void KeepingLogger::log(Severity severity, const char* message) noexcept {
    if (severity > Severity::kWARNING) return;
    const std::lock_guard<std::mutex> guard(lock_);
    messages_.emplace_back(message);
    if (messages_.size() > kKeptMessages) messages_.pop_front();
}

std::string KeepingLogger::said() {
    const std::lock_guard<std::mutex> guard(lock_);
    std::string text;
    for (const std::string& message : messages_) text += (text.empty() ? "" : " | ") + message;
    messages_.clear();
    return text.empty() ? "nothing" : text;
}

Gpu Gpu::current() {
    Gpu gpu;
    cuda_process().check();
    check_cuda(cudaGetDevice(&gpu.ordinal), "the current device");
    cudaDeviceProp properties;
    cuda_process().enter();
    check_cuda(cudaGetDeviceProperties(&properties, gpu.ordinal), "device " + std::to_string(gpu.ordinal));
    gpu.major = properties.major;
    gpu.minor = properties.minor;
    gpu.name = properties.name;
    return gpu;
}

bool Gpu::covered_by(const std::vector<std::string>& targets) const {
    const std::string exact = sm();
    return std::any_of(targets.begin(), targets.end(), [&](const std::string& target) {
        if (target == exact) return true;
        if (target.size() < 4 || target.size() > 6) return false;
        if (target.compare(0, 2, "sm") != 0 || target.back() != '+') return false;
        const std::string number = target.substr(2, target.size() - 3);
        return std::all_of(number.begin(), number.end(), [](char c) { return c >= '0' && c <= '9'; })
               && 10 * major + minor >= std::stoi(number);
    });
}

Plan::Plan(const Bundle& bundle, const std::string& graph, const Gpu& gpu) : gpu_(gpu) {
    const std::string precision = bundle.spec(graph).computes_in(kPlanPrecision);
    const EngineSpec& entry = bundle.engine(kTensorRt, precision, graph);
    where_ = bundle.path() + ", " + entry.name();
    check_before(entry);
    const std::string data = bundle.read_engine(entry, "plan");
    if (data.size() < kHeader) {
        refuse_plan(where_ + ": found " + std::to_string(data.size()) + " bytes, expected a plan, which is longer; "
                    + rebuild());
    }
    bytes_ = int64_t(data.size());
    logger_ = Own<KeepingLogger>(new KeepingLogger);
    runtime_.reset(nvinfer1::createInferRuntime(*logger_));
    if (runtime_ == nullptr) fail("to start");
    engine_.reset(runtime_->deserializeCudaEngine(data.data(), data.size()));
    if (engine_ == nullptr) fail("to load the plan");
    const GraphSpec& spec = bundle.spec(graph);  // of a half graph too: it takes and gives what the one in float32 does
    check_tensors(spec.inputs, nvinfer1::TensorIOMode::kINPUT);
    check_tensors(spec.outputs, nvinfer1::TensorIOMode::kOUTPUT);
    if (size_t(engine_->getNbIOTensors()) != spec.inputs.size() + spec.outputs.size()) {
        refuse_plan(where_ + ": found " + std::to_string(engine_->getNbIOTensors()) + " tensors in the plan, expected "
                    "those of the manifest and no other; " + rebuild());
    }
}

void Plan::check_before(const EngineSpec& entry) const {
    const std::string version = tensorrt_version();
    std::string made_with = "an unrecorded version";
    for (const auto& [name, recorded] : entry.made_with) {
        if (name == kTensorRt) made_with = recorded;
    }
    if (made_with != version) {
        refuse_plan(where_ + ": found a plan of tensorrt " + made_with + ", expected one of " + version + ", the "
                    "library that is loaded (plans run on the version that built them only); " + rebuild()
                    + ", or run with that library");
    }
    if (!gpu_.covered_by(entry.targets)) {
        std::string targets;
        for (const std::string& target : entry.targets) targets += (targets.empty() ? "" : ", ") + target;
        refuse_plan(where_ + ": found a plan for " + (targets.empty() ? "no target" : targets) + ", expected one for "
                    + gpu_.sm() + ", which " + gpu_.name + " (device " + std::to_string(gpu_.ordinal) + ") is; "
                    + rebuild(" --targets " + gpu_.sm()));
    }
}

void Plan::check_tensors(const std::vector<TensorSpec>& expected, nvinfer1::TensorIOMode mode) const {
    for (const TensorSpec& tensor : expected) {
        const char* name = tensor.name.c_str();
        std::string shown = "nothing of that kind";
        if (engine_->getTensorIOMode(name) == mode) {
            const std::string dtype = dtype_of(engine_->getTensorDataType(name));
            const nvinfer1::Dims shape = engine_->getTensorShape(name);
            if (dtype == tensor.dtype && same_shape(shape, tensor.shape)) continue;
            shown = dtype + shape_text(shape.d, size_t(std::max(0, shape.nbDims)));
        }
        refuse_plan(where_ + ": found " + tensor.name + " as " + shown + " in the plan, expected " + tensor.text()
                    + " as the manifest says; " + rebuild());
    }
}

bool Plan::is_input(const char* name) const {
    return engine_->getTensorIOMode(name) == nvinfer1::TensorIOMode::kINPUT;
}

void Plan::check_shape(const Array& array) const {
    const nvinfer1::Dims low = engine_->getProfileShape(array.name, 0, nvinfer1::OptProfileSelector::kMIN);
    const nvinfer1::Dims high = engine_->getProfileShape(array.name, 0, nvinfer1::OptProfileSelector::kMAX);
    for (size_t i = 0; i < array.rank; ++i) {
        const int64_t size = array.shape[i];
        if (int64_t(i) < low.nbDims && size >= low.d[i] && size <= high.d[i]) continue;
        const std::string range = std::to_string(low.d[i]) + ".." + std::to_string(high.d[i]);
        refuse_plan(where_ + ", input " + array.name + ": found " + shape_text(array.shape, array.rank) + ", expected "
                    + std::to_string(size) + " to be in " + range + ", the range that the plan was built for; choose a "
                    "max_batch in it (guidance doubles the batch of up to 8), or "
                    + rebuild(" --trt-batch MIN OPT MAX"));
    }
}

Own<nvinfer1::IExecutionContext> Plan::context() const {
    Own<nvinfer1::IExecutionContext> made(engine_->createExecutionContext());
    if (made == nullptr) fail("an execution context");
    return made;
}

void Plan::fail(const std::string& what) const {
    refuse_plan(where_ + ": found that tensorrt " + tensorrt_version() + " refuses " + what + " (it said: "
                + logger_->said() + "), expected it to work; check the GPU and its memory with nvidia-smi, or "
                + rebuild(" --targets " + gpu_.sm()));
}

}  // namespace diffusevae
