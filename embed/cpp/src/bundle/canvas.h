// A canvas: a bundle made for one size, as if it were for another. Its graphs run on the whole of it, or on windows of a larger
// one (engine/bundle/canvas.py says how they are put together).
#ifndef DIFFUSEVAE_BUNDLE_CANVAS_H
#define DIFFUSEVAE_BUNDLE_CANVAS_H

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bundle/manifest.h"

namespace diffusevae {

// Another size of the state, in pixels of it as everything here.
struct Canvas {
    int64_t height = 0, width = 0;              // of the bundle's own state, and of a window
    int64_t whole_height = 0, whole_width = 0;
    std::vector<int64_t> rows, columns;         // where windows begin, from the top and from the left; empty without windows
    // {graph: {name in the graph: pixels to one of the state's}} of what lies over the state
    std::map<std::string, std::map<std::string, int64_t>> ports;

    bool tiled() const { return !rows.empty(); }
    bool own_size() const { return whole_height == height && whole_width == width; }
    std::vector<std::pair<int64_t, int64_t>> windows() const;  // top and left of every window, row by row
    std::vector<float> weights(int64_t factor) const;          // of each pixel of a window of a map with this factor
};

// The canvas for images of this size; `manifest` becomes that of a bundle which has it. overlap: the share of a window that the
// next one covers, for windows; nothing for the whole. Error (ARGUMENT) for a bundle or a size that does not go.
Canvas resize(Manifest& manifest, int64_t height, int64_t width, std::optional<double> overlap);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BUNDLE_CANVAS_H
