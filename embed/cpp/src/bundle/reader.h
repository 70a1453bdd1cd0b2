// Opening a bundle: everything is verified before a native parser sees a byte.
#ifndef DIFFUSEVAE_BUNDLE_READER_H
#define DIFFUSEVAE_BUNDLE_READER_H

#include <optional>
#include <string>

#include "bundle/canvas.h"
#include "bundle/files.h"
#include "bundle/manifest.h"

namespace diffusevae {

// A verified bundle. What is read from it later is verified once more as it is read.
class Bundle {
public:
    // Verifies the manifest, and size and SHA-256 of every file it names; Error (BUNDLE) names what does not match.
    // Links in the folder may end in it or in a store. A builder may replace the folder meanwhile: then the new bundle is
    // opened, never a mixture of both.
    static Bundle open(const std::string& path, const Stores& stores);

    const std::string& path() const { return path_; }
    const Manifest& manifest() const { return manifest_; }

    // Become the same bundle for images of this size: its graphs run on the whole or, with an overlap, on windows. Error
    // (ARGUMENT) where that is not possible.
    void resize(int64_t height, int64_t width, std::optional<double> overlap) {
        canvas_ = diffusevae::resize(manifest_, height, width, overlap);
    }
    const Canvas* canvas() const { return canvas_ ? &*canvas_ : nullptr; }

    // A graph by its key; Error (ARGUMENT) where this bundle has none.
    const GraphSpec& spec(const std::string& key) const;
    std::string read_graph(const std::string& key) const;

    bool has_engine(const std::string& backend, const std::string& precision, const std::string& graph) const;
    // Error (BUNDLE) with the command that builds it where there is none.
    const EngineSpec& engine(const std::string& backend, const std::string& precision, const std::string& graph) const;
    std::string read_engine(const EngineSpec& engine, const std::string& label) const;
    MappedFile map_engine(const EngineSpec& engine, const std::string& label) const;

    std::optional<std::string> read_prior() const;
    std::optional<std::string> read_directions() const;
    std::optional<std::string> read_text() const;  // the vocabulary
    std::string path_of(const FileSpec& spec) const;

private:
    Bundle(std::string path, Manifest manifest, Stores stores)
        : path_(std::move(path)), manifest_(std::move(manifest)), stores_(std::move(stores)) {}
    static Bundle verified(const std::string& folder, const Stores& stores);
    const EngineSpec* find_engine(const std::string& backend, const std::string& precision,
                                  const std::string& graph) const;

    std::string path_;
    Manifest manifest_;
    Stores stores_;
    std::optional<Canvas> canvas_;
};

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BUNDLE_READER_H
