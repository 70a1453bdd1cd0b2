// Directions of a drawn input: what moves it from samples without an attribute to samples with it,
//
//     z' = z + s_1 d_1 + ... + s_k d_k
//
// each product and sum one of float32, in the order of the bundle's directions: the bits of engine/bundle/directions.py.
#ifndef DIFFUSEVAE_BUNDLE_DIRECTIONS_H
#define DIFFUSEVAE_BUNDLE_DIRECTIONS_H

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "bundle/fields.h"
#include "bundle/files.h"
#include "bundle/inputs.h"
#include "diffusevae.h"

namespace diffusevae {

class Bundle;
struct Manifest;

// Directions of an input by name, the file that holds them, and the SHA-256 of the graph in whose space they lie.
struct DirectionsSpec : FileSpec {
    std::string input, of;
    std::vector<std::string> names;
};

std::vector<std::string> parse_names(Fields& fields, const char* key);  // different printable texts
std::optional<DirectionsSpec> parse_directions(Fields& top, const std::vector<InputSpec>& inputs);

// Refuses directions in the space of another encoder than the bundle's.
void check_directions(const Manifest& manifest, const Origin& origin);

struct Directions {
    std::vector<float> vectors;  // [K, D]
    int64_t width = 0;           // D
};

// The directions of a bundle, nothing where it has none; Error (BUNDLE) when the file is not what the manifest says.
std::optional<Directions> read_directions(const Bundle& bundle);

using Edits = std::vector<std::pair<size_t, float>>;  // index of a direction and its strength, in the bundle's order

// A caller's edits; Error (ARGUMENT) for what this bundle has no direction for, and for strengths out of range.
Edits checked_edits(const std::optional<DirectionsSpec>& spec, const diffusevae_sample_options& given);

// Moves z [count, D] in place.
void move(const Directions& directions, const Edits& edits, float* z, int64_t count);

}  // namespace diffusevae

#endif  // DIFFUSEVAE_BUNDLE_DIRECTIONS_H
