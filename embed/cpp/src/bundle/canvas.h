// A canvas: a bundle made for one size, as if it were for a larger one, whose graphs run on windows of it
// (engine/bundle/canvas.py says how they are put together).
#ifndef DIFFUSEVAE_BUNDLE_CANVAS_H
#define DIFFUSEVAE_BUNDLE_CANVAS_H

#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "bundle/manifest.h"

namespace diffusevae {

// Where the windows lie on a larger state.
struct Canvas {
    int64_t height = 0, width = 0;         // of a window, in pixels of the state, as are
    std::vector<int64_t> rows, columns;    // where windows begin, from the top and from the left
    // {graph: {name in the graph: pixels to one of the state's}} of what is cut into windows, and put together
    std::map<std::string, std::map<std::string, int64_t>> ports;

    int64_t whole_height() const { return rows.back() + height; }
    int64_t whole_width() const { return columns.back() + width; }
    std::vector<std::pair<int64_t, int64_t>> windows() const;  // top and left of every window, row by row
    std::vector<float> weights(int64_t factor) const;          // of each pixel of a window of a map with this factor
};

// The canvas for images of this size; `manifest` becomes that of a bundle which has it. Error (ARGUMENT) for a bundle or a size
// without tiles.
Canvas enlarge(Manifest& manifest, int64_t height, int64_t width, double overlap);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BUNDLE_CANVAS_H
