// Images of a bundle as one picture:  sample BUNDLE OUT.ppm [N [BUDGET_MS]]
#include <diffusevae.hpp>
#include <fstream>
#include <iostream>

// Images side by side, row by row.
void write_strip(std::ostream& out, const uint8_t* images, const diffusevae::Batch& batch) {
    const int64_t row = batch.width * batch.channels;
    for (int64_t y = 0; y < batch.height; ++y) {
        for (int64_t i = 0; i < batch.n; ++i)
            out.write(reinterpret_cast<const char*>(images + (i * batch.height + y) * row), row);
    }
}

int main(int argc, char** argv) try {
    if (argc < 3) return std::cerr << "usage: sample BUNDLE OUT.ppm [N [BUDGET_MS]]\n", 2;
    diffusevae::Sampler sampler(argv[1]);
    diffusevae::SampleOptions options;
    options.n = argc > 3 ? std::stoi(argv[3]) : 8;
    if (argc > 4) options.budget_ms = std::stod(argv[4]);  // of the settings fitted to the bundle the best that keeps it
    options.seed = 0;
    if (!sampler.info().start.empty()) options.pixels = {sampler.info().start};
    sampler.sample(options);  // the first run pays for memory
    const diffusevae::Batch batch = sampler.sample(options);

    // What the chain started from above, where there is such a value, and what the diffusion steps made of it below.
    std::ofstream out(argv[2], std::ios::binary);
    out << "P6\n" << batch.n * batch.width << ' ' << batch.height * (1 + batch.pixels.size()) << "\n255\n";
    for (const auto& [name, start] : batch.pixels) write_strip(out, start.data<uint8_t>(), batch);
    write_strip(out, batch.images.data(), batch);

    std::cout << sampler.info().backend << ' ' << sampler.info().precision << ' ' << sampler.info().isa << '\n'
              << batch.n << " images in " << batch.timesteps.size() << " steps, " << batch.timings.total_ms
              << " ms: " << argv[2] << '\n';
    return out.flush() ? 0 : 1;
} catch (const std::exception& error) {
    std::cerr << error.what() << '\n';
    return 1;
}
