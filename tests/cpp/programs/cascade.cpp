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
        for (const diffusevae::Batch& stage : batch.stages) std::printf("%dx%d\n", int(stage.height), int(stage.width));
        std::ofstream(argv[2], std::ios::binary)
            .write(reinterpret_cast<const char*>(batch.last().x.data()), std::streamsize(batch.last().x.size() * sizeof(float)));
    } catch (const diffusevae::Error& error) {
        std::printf("%s: %s\n", diffusevae_status_name(error.status()), error.what());
        return 1;
    }
}
