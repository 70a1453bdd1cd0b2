// A cascade by its names.  cascade BUNDLE OUT: three samples of seed 7; the last stage's x goes to OUT, and twice more, from a clone
// and from the same Samplers in a list, which is checked. Prints the stages' sizes, or what an exception says.
#include <diffusevae.hpp>

#include <cstdio>
#include <fstream>

namespace {

std::vector<diffusevae::StageOptions> later_options() {
    diffusevae::StageOptions options;
    options.steps = 3;
    options.noise_level = 40;
    return {options};
}

diffusevae::CascadeBatch run(diffusevae::Cascade& cascade) {
    diffusevae::SampleOptions first;
    first.n = 3;
    first.seed = 7;
    first.steps = 4;
    return cascade.sample(first, later_options());
}

// What a body throws, or a sentence of its own where it throws nothing.
template <class Body>
void refused(const Body& body) {
    try {
        body();
        std::printf("not refused\n");
    } catch (const diffusevae::Error& error) {
        std::printf("%s: %s\n", diffusevae_status_name(error.status()), error.what());
    }
}

void check_refusals(const char* path, diffusevae::Cascade& cascade) {
    refused([&] {
        diffusevae::OpenOptions opening;
        opening.height = 64;
        diffusevae::Cascade sized(path, opening);
    });
    int64_t rows = 0;
    diffusevae::SampleOptions first;
    first.callback = [&](const diffusevae::StepInfo&) {
        ++rows;
        return false;
    };
    std::vector<diffusevae::StageOptions> later(1);
    later[0].steps = 302;
    refused([&] { cascade.sample(first, later); });
    later[0] = {};
    later[0].noise_level = 1000;
    refused([&] { cascade.sample(first, later); });
    later[0] = {};
    later[0].inputs["label"] = diffusevae::Array::of(std::vector<int64_t>{1});
    refused([&] { cascade.sample(first, later); });
    later[0] = {};
    later[0].noise_level = 3;
    later[0].inputs["level"] = diffusevae::Array::of(std::vector<int64_t>{3});
    refused([&] { cascade.sample(first, later); });
    diffusevae::SampleOptions told = first;
    told.inputs["level"] = diffusevae::Array::of(std::vector<int64_t>{3});
    refused([&] { cascade.sample(told); });
    std::printf("%d rows before that\n", int(rows));
}

// Cancels when the first stage has made its last row, where it looks no more whether it is cancelled.
void check_cancel(diffusevae::Cascade cascade) {
    int64_t later = 0;
    diffusevae::SampleOptions first;
    first.steps = 4;
    bool done = false;
    first.callback = [&](const diffusevae::StepInfo& step) {
        later += done;
        done = done || step.step + 1 == step.steps;
        if (done) cascade.cancel();
        return false;
    };
    refused([&] { cascade.sample(first); });
    std::printf("%d rows after that\n", int(later));
    if (cascade.sample().stages.size() != 2) throw diffusevae::ArgumentError("no other run after one that was cancelled");
}

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3) return 2;
    try {
        diffusevae::OpenOptions opening;
        opening.threads = 2;
        opening.max_batch = 2;
        diffusevae::Cascade cascade(argv[1], opening);
        const diffusevae::CascadeBatch batch = run(cascade);
        diffusevae::Cascade twin = cascade.clone();
        if (run(twin).last().x != batch.last().x) throw diffusevae::ArgumentError("another result from a clone");
        std::vector<diffusevae::Sampler> listed;
        for (size_t stage = 0; stage < cascade.size(); ++stage) listed.push_back(cascade[stage].clone());
        diffusevae::Cascade same(std::move(listed));
        if (run(same).last().x != batch.last().x) throw diffusevae::ArgumentError("another result from a list");
        if (batch.seeds != std::vector<uint64_t>{7, 8, 9} || batch.timings().network_calls != 2 * 4 + 2 * batch.last().timings.network_calls / 2)
            throw diffusevae::ArgumentError("other seeds or times than expected");
        diffusevae::SampleOptions unknown;
        unknown.inputs["label"] = diffusevae::Array::of(std::vector<int64_t>{1});
        try {
            cascade.sample(unknown);
        } catch (const diffusevae::ArgumentError& error) {
            std::printf("%s\n", error.what());
        }
        check_refusals(argv[1], cascade);
        check_cancel(cascade.clone());
        for (const diffusevae::Batch& stage : batch.stages) std::printf("%dx%d\n", int(stage.height), int(stage.width));
        std::ofstream(argv[2], std::ios::binary)
            .write(reinterpret_cast<const char*>(batch.last().x.data()), std::streamsize(batch.last().x.size() * sizeof(float)));
    } catch (const diffusevae::Error& error) {
        std::printf("%s: %s\n", diffusevae_status_name(error.status()), error.what());
        return 1;
    }
}
