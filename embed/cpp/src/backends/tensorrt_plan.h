// Plans of TensorRT: everything that can be checked is, before the library reads a byte of one and after it has.
#ifndef DIFFUSEVAE_BACKENDS_TENSORRT_PLAN_H
#define DIFFUSEVAE_BACKENDS_TENSORRT_PLAN_H

#include <NvInfer.h>

#include <deque>
#include <memory>
#include <mutex>
#include <string>

#include "bundle/reader.h"
#include "backends/graph.h"
#include "backends/one_process.h"

namespace diffusevae {

constexpr const char* kTensorRt = "tensorrt";
constexpr const char* kPlanPrecision = "fp16";  // that plans are asked for in; which graphs compute in another, the manifest says

// Keeps the library's last warnings and errors: a call that fails returns null or false, and says why only here.
class KeepingLogger : public nvinfer1::ILogger {
public:
    void log(Severity severity, const char* message) noexcept override;
    std::string said();  // and forgets it, so that the next error has its own

private:
    std::mutex lock_;
    std::deque<std::string> messages_;
};

// The GPU that a sampler runs on: the one that was current in the thread that opened it.
struct Gpu {
    int ordinal = 0, major = 0, minor = 0;
    std::string name;

    static Gpu current();
    std::string sm() const { return "sm" + std::to_string(10 * major + minor); }
    bool covered_by(const std::vector<std::string>& targets) const;  // "sm86" is that one, "sm80+" later ones too
};

// A loaded engine whose tensors are what the manifest says; graphs over it share it, each with a context of its own.
class Plan {
public:
    Plan(const Bundle& bundle, const std::string& graph, const Gpu& gpu);

    const Gpu& gpu() const { return gpu_; }
    const std::string& where() const { return where_; }
    int64_t bytes() const { return bytes_; }
    bool is_input(const char* name) const;
    void check_shape(const Array& array) const;  // against the profile that the plan was built with
    Own<nvinfer1::IExecutionContext> context() const;
    [[noreturn]] void fail(const std::string& what) const;  // Error (BACKEND) with what the library said

private:
    void check_before(const EngineSpec& entry) const;
    void check_tensors(const std::vector<TensorSpec>& expected, nvinfer1::TensorIOMode mode) const;

    Gpu gpu_;
    std::string where_;
    int64_t bytes_ = 0;
    // In this order: an engine ends before the runtime that made it, and that before its logger.
    Own<KeepingLogger> logger_;
    Own<nvinfer1::IRuntime> runtime_;
    Own<nvinfer1::ICudaEngine> engine_;
};

// "10.9.0.34": of the library that runs, as the Python package has it.
std::string tensorrt_version();

// The shape as messages have it: [4, 3, 32, 32].
std::string shape_text(const int64_t* sizes, size_t rank);

[[noreturn]] void refuse_plan(const std::string& sentence);  // Error (BACKEND)

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BACKENDS_TENSORRT_PLAN_H
