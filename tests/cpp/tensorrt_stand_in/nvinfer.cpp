// Only a stand-in for tests: a "plan" names one of the toy models of tests/toy.py and is computed here. See README.md.
//
// A plan is text, then float32 weights: "stand-in plan", then on a line of its own
//     GRAPH MIN_BATCH MAX_BATCH MAX_STEPS SIZE Z_DIM ROW_WIDTH CONDITIONAL Z_CONDITIONED
// padded with spaces to 128 bytes.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "NvInfer.h"
#include "device.h"

namespace {

using nvinfer1::DataType;
using nvinfer1::Dims;
using nvinfer1::TensorIOMode;

constexpr size_t kHead = 128;
constexpr int64_t kFreeBatch = -1, kFreeSteps = -2;

struct Tensor {
    TensorIOMode mode;
    DataType type;
    std::vector<int64_t> shape;  // with the two free sizes
};

struct Toy {
    std::string graph;
    long min_batch = 0, max_batch = 0, max_steps = 0, size = 0, z_dim = 0, row = 0;
    bool conditional = false, z_conditioned = false;
    std::vector<float> weights;
    std::map<std::string, Tensor> tensors;
};

bool parse(const void* plan, size_t bytes, Toy& toy) {
    if (bytes < kHead || std::memcmp(plan, "stand-in plan\n", 14) != 0) return false;
    const std::string head(static_cast<const char*>(plan) + 14, kHead - 14);
    char graph[32];
    int conditional = 0, z_conditioned = 0;
    if (std::sscanf(head.c_str(), "%31s %ld %ld %ld %ld %ld %ld %d %d", graph, &toy.min_batch, &toy.max_batch,
                    &toy.max_steps, &toy.size, &toy.z_dim, &toy.row, &conditional, &z_conditioned) != 9) return false;
    toy.graph = graph;
    toy.conditional = conditional != 0;
    toy.z_conditioned = z_conditioned != 0;
    toy.weights.resize((bytes - kHead) / sizeof(float));
    std::memcpy(toy.weights.data(), static_cast<const char*>(plan) + kHead, toy.weights.size() * sizeof(float));

    const auto input = [&](const char* name, std::vector<int64_t> shape, DataType type = DataType::kFLOAT) {
        toy.tensors[name] = {TensorIOMode::kINPUT, type, std::move(shape)};
    };
    const auto output = [&](const char* name, std::vector<int64_t> shape) {
        toy.tensors[name] = {TensorIOMode::kOUTPUT, DataType::kFLOAT, std::move(shape)};
    };
    const std::vector<int64_t> image{kFreeBatch, 3, toy.size, toy.size};
    if (toy.graph == "denoiser") {
        input("x", image);
        if (toy.conditional) input("cond", image);
        input("row", {toy.z_conditioned ? kFreeBatch : 1, toy.row});
        output("eps", image);
    } else if (toy.graph == "timestep_table") {
        input("timesteps", {kFreeSteps}, DataType::kINT64);
        if (toy.z_conditioned) input("z", {kFreeBatch, toy.z_dim});
        if (toy.z_conditioned) output("rows", {kFreeSteps, kFreeBatch, toy.row});
        if (!toy.z_conditioned) output("rows", {kFreeSteps, toy.row});
    } else {
        input("z", {kFreeBatch, toy.z_dim});
        output("image", image);
    }
    return true;
}

float mean(const float* values, int64_t count) {
    float sum = 0;
    for (int64_t i = 0; i < count; ++i) sum += values[i];
    return sum / float(count);
}

class Context : public nvinfer1::IExecutionContext {
public:
    Context(const Toy& toy, nvinfer1::ILogger& logger) : toy_(toy), logger_(logger) { stand_in::count(1); }
    ~Context() override { stand_in::count(-1); }

    bool setInputShape(const char* name, const Dims& dims) noexcept override {
        if (stand_in::must_fail("setInputShape")) return complain("the shape was not accepted");
        const Tensor& tensor = toy_.tensors.at(name);
        if (size_t(dims.nbDims) != tensor.shape.size()) return complain("another rank");
        for (size_t i = 0; i < tensor.shape.size(); ++i) {
            if (tensor.shape[i] >= 0 && dims.d[i] != tensor.shape[i]) return complain("another fixed size");
            if (tensor.shape[i] == kFreeBatch) batch_ = dims.d[i];
            if (tensor.shape[i] == kFreeSteps) steps_ = dims.d[i];
        }
        return true;
    }

    bool setTensorAddress(const char* name, void* address) noexcept override {
        addresses_[name] = address;
        return address != nullptr;
    }

    Dims getTensorShape(const char* name) const noexcept override {
        Dims dims{};
        for (const int64_t size : toy_.tensors.at(name).shape) {
            dims.d[dims.nbDims++] = size == kFreeBatch ? batch_ : size == kFreeSteps ? steps_ : size;
        }
        return dims;
    }

    bool enqueueV3(cudaStream_t stream) noexcept override {
        if (stand_in::must_fail("enqueueV3")) return complain("out of registers");
        for (const auto& [name, tensor] : toy_.tensors) {
            const Dims dims = getTensorShape(name.c_str());
            size_t bytes = tensor.type == DataType::kINT64 ? 8 : 4;
            for (int32_t i = 0; i < dims.nbDims; ++i) bytes *= size_t(dims.d[i]);
            if (!stand_in::on_device(addresses_[name], bytes)) return complain("an address outside device memory");
        }
        stand_in::enqueue(stream, [this] { compute(); });
        return true;
    }

private:
    bool complain(const char* message) const {
        logger_.log(nvinfer1::ILogger::Severity::kERROR, message);
        return false;
    }

    float* at(const char* name) const { return static_cast<float*>(addresses_.at(name)); }

    void compute() const {
        if (toy_.graph == "denoiser") return denoise();
        if (toy_.graph == "timestep_table") return tabulate();
        decode();
    }

    void denoise() const {
        const int64_t pixels = 3 * toy_.size * toy_.size;
        for (int64_t n = 0; n < batch_; ++n) {
            const float offset = mean(at("row") + (toy_.z_conditioned ? n * toy_.row : 0), toy_.row);
            for (int64_t i = n * pixels; i < (n + 1) * pixels; ++i) {
                float sum = at("x")[i] * 0.1f;
                if (toy_.conditional) sum += at("cond")[i] * 0.2f;
                at("eps")[i] = sum + offset;
            }
        }
    }

    void tabulate() const {
        const int64_t lanes = toy_.z_conditioned ? batch_ : 1;
        float* rows = at("rows");
        for (int64_t s = 0; s < steps_; ++s) {
            const float t = float(static_cast<const int64_t*>(addresses_.at("timesteps"))[s]);
            for (int64_t n = 0; n < lanes; ++n) {
                const float by_z = toy_.z_conditioned ? mean(at("z") + n * toy_.z_dim, toy_.z_dim) * 0.01f : 0.0f;
                for (int64_t k = 0; k < toy_.row; ++k) *rows++ = t * (float(k + 1) / 6000.0f) + by_z;
            }
        }
    }

    void decode() const {
        const int64_t pixels = 3 * toy_.size * toy_.size;
        for (int64_t i = 0; i < batch_ * pixels; ++i) {
            float sum = 0;
            for (int64_t k = 0; k < toy_.z_dim; ++k) {
                sum += at("z")[i / pixels * toy_.z_dim + k] * toy_.weights[size_t(k * pixels + i % pixels)];
            }
            at("image")[i] = 2.0f / (1.0f + std::exp(-sum)) - 1.0f;
        }
    }

    const Toy& toy_;
    nvinfer1::ILogger& logger_;
    int64_t batch_ = 1, steps_ = 1;
    std::map<std::string, void*> addresses_;
};

class Engine : public nvinfer1::ICudaEngine {
public:
    Engine(Toy toy, nvinfer1::ILogger& logger) : toy_(std::move(toy)), logger_(logger) { stand_in::count(1); }
    ~Engine() override { stand_in::count(-1); }

    int32_t getNbIOTensors() const noexcept override { return int32_t(toy_.tensors.size()); }

    TensorIOMode getTensorIOMode(const char* name) const noexcept override {
        const auto found = toy_.tensors.find(name);
        return found == toy_.tensors.end() ? TensorIOMode::kNONE : found->second.mode;
    }

    DataType getTensorDataType(const char* name) const noexcept override { return toy_.tensors.at(name).type; }

    Dims getTensorShape(const char* name) const noexcept override {
        Dims dims{};
        for (const int64_t size : toy_.tensors.at(name).shape) dims.d[dims.nbDims++] = size < 0 ? -1 : size;
        return dims;
    }

    Dims getProfileShape(const char* name, int32_t, nvinfer1::OptProfileSelector select) const noexcept override {
        const bool low = select == nvinfer1::OptProfileSelector::kMIN;
        Dims dims{};
        for (const int64_t size : toy_.tensors.at(name).shape) {
            const int64_t batch = low ? toy_.min_batch : toy_.max_batch, steps = low ? 1 : toy_.max_steps;
            dims.d[dims.nbDims++] = size == kFreeBatch ? batch : size == kFreeSteps ? steps : size;
        }
        return dims;
    }

    nvinfer1::IExecutionContext* createExecutionContext() noexcept override {
        return stand_in::must_fail("createExecutionContext") ? nullptr : new Context(toy_, logger_);
    }

private:
    Toy toy_;
    nvinfer1::ILogger& logger_;
};

class Runtime : public nvinfer1::IRuntime {
public:
    explicit Runtime(nvinfer1::ILogger& logger) : logger_(logger) { stand_in::count(1); }
    ~Runtime() override { stand_in::count(-1); }

    nvinfer1::ICudaEngine* deserializeCudaEngine(const void* plan, std::size_t bytes) noexcept override {
        Toy toy;
        if (parse(plan, bytes, toy)) return new Engine(std::move(toy), logger_);
        logger_.log(nvinfer1::ILogger::Severity::kERROR, "Serialization assertion failed");
        return nullptr;
    }

private:
    nvinfer1::ILogger& logger_;
};

int32_t version_part(int index) {
    const char* version = std::getenv("STAND_IN_VERSION");
    int parts[4] = {10, 9, 0, 34};
    if (version != nullptr) std::sscanf(version, "%d.%d.%d.%d", &parts[0], &parts[1], &parts[2], &parts[3]);
    return parts[index];
}

}  // namespace

extern "C" {
int32_t getInferLibMajorVersion() noexcept { return version_part(0); }
int32_t getInferLibMinorVersion() noexcept { return version_part(1); }
int32_t getInferLibPatchVersion() noexcept { return version_part(2); }
int32_t getInferLibBuildVersion() noexcept { return version_part(3); }
}

namespace nvinfer1 {
IRuntime* createInferRuntime(ILogger& logger) noexcept {
    return stand_in::must_fail("createInferRuntime") ? nullptr : new Runtime(logger);
}
}  // namespace nvinfer1
