// Graphs of a bundle on windows of a canvas: cut, run some at a time, and put together by weight, to the bits of
// engine/backends/tiles.py.
#ifndef DIFFUSEVAE_BACKENDS_TILES_H
#define DIFFUSEVAE_BACKENDS_TILES_H

#include <memory>
#include <string>

#include "backends/graph.h"
#include "bundle/canvas.h"
#include "bundle/graphs.h"

namespace diffusevae {

// A graph that takes whole canvases where it has maps; as it is where it has none. spec: its entry, of windows.
std::unique_ptr<Graph> on_canvas(std::unique_ptr<Graph> graph, const GraphSpec& spec, const Canvas& canvas);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BACKENDS_TILES_H
