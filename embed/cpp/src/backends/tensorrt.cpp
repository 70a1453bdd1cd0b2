// Backend `tensorrt`: graphs on an NVIDIA GPU. The bundle's plans; the caller's arrays are copied to the device and
// the results back.
#include <map>
#include <utility>

#include "backends/tensorrt_cuda.h"
#include "backends/tensorrt_plan.h"
#include "error.h"
#include "backends/graph.h"
#include "tensor.h"

namespace diffusevae {
namespace {

size_t bytes_of(const Array& array) {
    size_t bytes = bytes_of(array.dtype);
    for (size_t i = 0; i < array.rank; ++i) bytes *= size_t(array.shape[i]);
    return bytes;
}

nvinfer1::Dims dims_of(const Array& array) {
    nvinfer1::Dims dims{};
    dims.nbDims = int32_t(array.rank);
    for (size_t i = 0; i < array.rank; ++i) dims.d[i] = array.shape[i];
    return dims;
}

// A plan with a context, a stream and device memory of its own; the memory grows with the largest batch seen.
class TensorRtGraph : public Graph {
public:
    explicit TensorRtGraph(std::shared_ptr<const Plan> plan) : plan_(std::move(plan)) {
        const DeviceScope scope(plan_->gpu().ordinal);
        stream_ = std::make_unique<Stream>();
        context_ = plan_->context();
    }

    ~TensorRtGraph() override {
        context_.reset();  // before the memory that it was told of
        memory_.clear();
    }

    void run(const Arrays& arrays) override {
        const DeviceScope scope(plan_->gpu().ordinal);
        try {
            for (const Array& array : arrays) bind(array);
            for (const Array& array : arrays) check_output(array);
            if (!context_->enqueueV3(stream_->handle())) plan_->fail("to run");
            for (const Array& array : arrays) fetch(array);
        } catch (const Error&) {
            cudaStreamSynchronize(stream_->handle());  // what still runs reads the caller's arrays
            throw;
        }
        stream_->synchronize(plan_->where());
    }

    std::unique_ptr<Graph> clone() const override { return std::make_unique<TensorRtGraph>(plan_); }
    int64_t weight_bytes() const override { return plan_->bytes(); }

private:
    // Gives the context the array's shape and memory on the device, and fills that of an input.
    void bind(const Array& array) {
        const bool input = plan_->is_input(array.name);
        if (input) plan_->check_shape(array);
        void* memory = memory_[array.name].at_least(bytes_of(array));
        const std::string shown = shape_text(array.shape, array.rank) + " of " + array.name;
        if (input && !context_->setInputShape(array.name, dims_of(array))) plan_->fail("the shape " + shown);
        if (!context_->setTensorAddress(array.name, memory)) plan_->fail("the memory for " + shown);
        if (input) copy(memory, array.data, array, cudaMemcpyHostToDevice);
    }

    // The library writes as much as its shapes say: more than there is room for must not be.
    void check_output(const Array& array) const {
        if (plan_->is_input(array.name)) return;
        const nvinfer1::Dims found = context_->getTensorShape(array.name);
        bool same = found.nbDims == int32_t(array.rank);
        for (size_t i = 0; same && i < array.rank; ++i) same = found.d[i] == array.shape[i];
        if (!same) plan_->fail("the output " + std::string(array.name) + " as " + shape_text(array.shape, array.rank));
    }

    void fetch(const Array& output) {
        if (plan_->is_input(output.name)) return;
        copy(output.data, memory_[output.name].at_least(bytes_of(output)), output, cudaMemcpyDeviceToHost);
    }

    void copy(void* to, const void* from, const Array& array, cudaMemcpyKind direction) {
        check_cuda(cudaMemcpyAsync(to, from, bytes_of(array), direction, stream_->handle()),
                   plan_->where() + ", copying " + array.name);
    }

    std::shared_ptr<const Plan> plan_;
    std::map<std::string, DeviceMemory> memory_;
    std::unique_ptr<Stream> stream_;
    Own<nvinfer1::IExecutionContext> context_;
};

class TensorRt : public Backend {
public:
    explicit TensorRt(const Bundle& bundle) : bundle_(bundle), gpu_(Gpu::current()) {}

    const char* name() const override { return kTensorRt; }
    const char* precision() const override { return kPlanPrecision; }
    bool runs_guides() const override { return false; }
    bool runs_regulariser() const override { return false; }

    std::unique_ptr<Graph> load(const std::string& name) override {
        const DeviceScope scope(gpu_.ordinal);
        return std::make_unique<TensorRtGraph>(std::make_shared<const Plan>(bundle_, name, gpu_));
    }

private:
    const Bundle& bundle_;
    Gpu gpu_;
};

}  // namespace

std::unique_ptr<Backend> open_tensorrt(const Bundle& bundle, const BackendRequest& request) {
    if (request.precision != "auto" && request.precision != kPlanPrecision) {
        refuse_plan("tensorrt, precision: found '" + request.precision + "', expected fp16, which its plans are in; "
                    "choose it, or backend native");
    }
    return std::make_unique<TensorRt>(bundle);
}

}  // namespace diffusevae
