// The kernels of one instruction set, as the engine sees them. Plain structs, resolved at load: offsets, tables, weights.
//
// The kernels are compiled four times (target_*.cpp) from the same family headers. Everything that they compile is inlined or
// in an unnamed namespace, and they include no standard C++ templates: the linker merges equal functions of different
// files, and could pick the one compiled for instructions that the machine lacks.
#ifndef DIFFUSEVAE_NATIVE_TARGET_H
#define DIFFUSEVAE_NATIVE_TARGET_H

#include <stdint.h>

#include "diffusevae/native.h"

#define DV_MERGED inline __attribute__((always_inline))  // see above

namespace diffusevae {
namespace native {

constexpr int kBlock = 32;          // channels of a map's block
constexpr int kLanes = 16;          // outputs of an n-block, pixels of a tile
constexpr int kStepBytes = 1024;    // packed weights of one K step of one n-block
constexpr int kMaxTaps = 36;
constexpr int kPoints = 16;         // products of a Winograd tile
constexpr int kMaxPhases = 4;
constexpr int kSources = DV_NATIVE_MAX_SOURCES;
constexpr int kMostCodeChannels = 64;

// A map inside a sample's part of the arena.
struct Map {
    int64_t offset;                 // bytes from the start of the sample's part
    int32_t channels, blocks, height, width;
    int64_t sums;                   // float [slots][2][32 blocks]: sum and sum of squares of each stripe; -1 where unused
    int32_t slots;
    DV_MERGED int32_t pixels() const { return height * width; }
};

// Source maps made into one operand of a product: padded, and laid out so that a pixel's channels of one K step are adjacent.
struct Gather {
    int32_t count;                  // 0: absent
    Map source[kSources];
    int32_t map_blocks;             // blocks of 32 over all sources
    int32_t blocks;                 // K steps a tap: blocks behind the activation (GEGLU leaves half), for int8 in pairs
    int32_t pixel_bytes;
    int32_t kernel, stride, pad_top, pad_left;
    int32_t rows, columns;          // padded size
    int32_t out_height, out_width;
    bool copies;                    // one copy a tap column (stride 1) or tap (stride 2) instead of one padded map
    bool in_place;                  // read from the arena as it is, nothing to prepare
    int64_t block_bytes, bytes;
    int64_t scratch;                // bytes from the start of a sample's scratch
};

// A run of K steps over one operand.
struct Segment {
    bool in_arena;
    int64_t offset, block_bytes;
    int32_t blocks, taps;
    int32_t tap[kMaxPhases][kMaxTaps];  // bytes from a pixel's origin
    const uint32_t* origin;         // bytes from the operand's start, one a pixel of the (phase's) output
    int32_t pixel_stride;           // bytes between the pixels of a tile
};

// A convolution; of NORM, which ends before the product, what concerns main, the norm and the output.
struct Conv {
    Gather main, skip;
    int32_t channels;               // real channels of the sources
    int32_t groups;                 // of a GroupNorm; 0: none
    bool layer;                     // a LayerNorm instead
    float epsilon;
    const float *norm_weight, *norm_bias;
    int32_t scale_row, activation;
    bool modulated;                 // NORM: scaled and shifted by a map, and by the row only then
    Map modulation;
    int32_t row_behind;             // where in the row the scale behind it begins, or NONE

    Segment main_segment[kSources], skip_segment[kSources];
    int32_t main_segments, skip_segments;
    const uint8_t *weights, *skip_weights;
    int32_t steps, skip_steps;      // K steps of one n-block and phase
    int32_t n_blocks, phases;
    const float *bias, *multiplier; // [phases][16 n_blocks]
    int32_t bias_row;
    int32_t outputs;                // real channels

    int32_t tiles;                  // Winograd: tiles of 2 x 2 pixels transformed at a time; 0: direct
    int32_t pixels;                 // of one phase; Winograd: numbered tile by tile
    int32_t stripe, stripes;        // pixels of a stripe; stripes of one phase
    const uint32_t* place;          // output pixel of each pixel of phase 0
    int32_t phase_place[kMaxPhases];

    bool to_port, to_tokens;        // of a port: channels of a pixel adjacent
    Map output;                     // geometry also where it goes to a port
    int32_t port;
    int32_t output_activation;
    bool has_residual;
    float residual_scale;
    Map residual;

    bool int8;
    float inverse_scale;
    int32_t zero_point;
};

struct Input {
    int32_t count;
    int32_t port[kSources], channels[kSources];
    int64_t values[kSources];       // of a port, a sample
    int64_t offset;                 // of the value that the map begins with
    int32_t patch;                  // 1 or 3
    int32_t parts;                  // of the first port: 2 with what bf16 leaves out of it
    int32_t stride;                 // pixels of the port from one of the map's to the next
    bool tokens;                    // from [batch, height, channels]
    Map output;
};

struct Embed {
    int32_t port, height, width;    // of the ids
    int32_t side;                   // ids of a pixel, down and across
    const float *table, *places;    // [ids, channels]; [pixels, channels] or null
    bool to_port, to_tokens;
    int32_t output_port;
    Map output;                     // geometry also where it goes to a port
};

// Codes c of largest z.c - |c|^2 / 2 for z = x / scale, which is the nearest; what is written is scale c.
struct Nearest {
    int32_t port, output_port;
    const float *codes, *halves;    // [groups of 16][channels][16]; |c|^2 / 2, infinity behind the last
    int32_t groups, channels, pixels;
    float scale;
};

struct Attention {
    Map source, others, output;     // others: where keys and values are, which may be the source itself
    int32_t heads, width;           // channels of a head
    int32_t keys, values;           // channels of `others` where they begin
    float scale;

    // A head's keys and values as packed weights: K steps of 32 channels or keys, n-blocks of 16 keys or channels.
    DV_MERGED int32_t steps() const { return (width + kBlock - 1) / kBlock; }
    DV_MERGED int32_t groups() const { return (width + kLanes - 1) / kLanes; }
    DV_MERGED int32_t key_steps() const { return (others.pixels() + kBlock - 1) / kBlock; }
    DV_MERGED int32_t key_groups() const { return (others.pixels() + kLanes - 1) / kLanes; }
    DV_MERGED int64_t keys_bytes() const { return int64_t(key_groups()) * steps() * kStepBytes; }
    DV_MERGED int64_t head_bytes() const { return keys_bytes() + int64_t(groups()) * key_steps() * kStepBytes; }
};

// What a thread holds of an attention, in bytes from its private memory's start: some queries, their scores with a block of keys
// before and after the softmax, what that block adds to the result, and the result.
struct AttentionRoom {
    int64_t queries, scores, weights, part, result, bytes;
    DV_MERGED AttentionRoom(const Attention& a, int32_t together, int32_t keys, int32_t pixel_bytes) {
        queries = 0;
        scores = queries + int64_t(a.steps()) * together * pixel_bytes;
        weights = scores + int64_t(keys) * together * 4;
        part = weights + int64_t(keys / kBlock) * together * pixel_bytes;
        result = part + int64_t(a.groups()) * kLanes * together * 4;
        bytes = result + int64_t(a.groups()) * kLanes * together * 4;
    }
};

// The gradient at `source` of a GroupNorm with its activation, both over one map, from the gradient behind them.
struct NormGradient {
    Map source, gradient, output;
    bool has_residual;
    Map residual;                   // added; of the gradient's size
    int32_t factor;                 // a gradient's pixel is of the mean over factor x factor of the source's
    int32_t groups;
    float epsilon;
    const float *weight, *bias;
    int32_t scale_row, activation;
    int32_t rows, stripes;          // rows of pixels whose sums are gathered apart; how many such stripes

    DV_MERGED int32_t padded() const { return source.blocks * kBlock; }
    DV_MERGED int64_t sums_floats() const { return int64_t(stripes) * 2 * padded(); }
    DV_MERGED int64_t private_floats() const { return 8ll * padded(); }
};

// The gradient at [q | k | v] from the one at what attention made of it. Queries are worked off in chunks, each of which adds its part
// to the gradients of keys and values. Of a head there are packed matrices: keys and values by channels (their outputs are the pixels)
// and keys by pixels (their outputs are the channels); behind them lie the chunks' parts.
struct AttentionGradient {
    Attention of;                   // source, others: [q | k | v]; output: its gradient
    Map gradient;
    int32_t chunk, chunks;          // queries of a chunk, a multiple of 128
    int32_t together;               // rows of a product (Kernels::attention_queries)

    DV_MERGED int64_t keys_by_pixels() const { return 2 * of.keys_bytes(); }
    DV_MERGED int64_t parts() const { return keys_by_pixels() + int64_t(of.groups()) * of.key_steps() * kStepBytes; }
    // A part: [keys, values][channels in blocks of `together`][groups of 16 pixels][together][16 pixels], floats.
    DV_MERGED int32_t row_blocks() const { return (of.width + together - 1) / together; }
    DV_MERGED int64_t block_floats() const { return int64_t(of.key_groups()) * together * kLanes; }
    DV_MERGED int64_t matrix_floats() const { return row_blocks() * block_floats(); }
    DV_MERGED int64_t head_bytes() const { return parts() + chunks * 2 * matrix_floats() * 4; }
};

// What a thread holds of it, in bytes: two operands, their products with all pixels, a third operand, its result; then 32 rows of weights
// and of their gradients, both of a chunk packed, and a chunk's channels as an operand.
struct GradientRoom {
    int64_t first, second, scores, slopes, weighted, result, rows, packed, across, bytes;
    int64_t rows_bytes, packed_bytes;  // of one of the two
    DV_MERGED GradientRoom(const AttentionGradient& a, int32_t pixel_bytes) {
        const int64_t operand = int64_t(a.of.steps()) * a.together * pixel_bytes, all = a.block_floats() * 4;
        rows_bytes = int64_t(a.of.key_steps()) * kBlock * kBlock * 2;
        packed_bytes = int64_t(a.of.key_groups()) * (a.chunk / kBlock) * kStepBytes;
        first = 0;
        second = first + operand;
        scores = second + operand;
        slopes = scores + all;
        weighted = slopes + all;
        result = weighted + int64_t(a.of.key_steps()) * a.together * pixel_bytes;
        rows = result + int64_t(a.of.groups()) * kLanes * a.together * 4;
        packed = rows + 2 * rows_bytes;
        across = packed + 2 * packed_bytes;
        bytes = across + int64_t(a.chunk / kBlock) * a.together * pixel_bytes;
    }
};

// From a map to logits, float32 throughout, and back: the gradient of log softmax(logits)_label at the map. What the matrix takes is
// the mean over the pixels, or what a token of their mean sees of them and itself in [q | k | v].
struct Classify {
    Map source, output;
    int32_t labels, entropy;        // ports
    int32_t classes, features;
    const float *weights, *bias;    // as Linear's
    int32_t heads;                  // 0: the mean
    float scale;
    const float* places;            // [1 + pixels][channels of the source]

    DV_MERGED int32_t groups() const { return (classes + kLanes - 1) / kLanes; }
    DV_MERGED int64_t tokens() const { return heads > 0 ? 1 + int64_t(source.pixels()) : 0; }
    DV_MERGED int64_t padded_tokens() const { return (tokens() + kLanes - 1) / kLanes * kLanes; }
    DV_MERGED int64_t padded() const { return int64_t(source.blocks) * kBlock; }
};

// What a thread holds of it, in floats: the mean, features and their gradient, logits, sums a feature, tokens, weights.
struct ClassifyRoom {
    int64_t mean, features, slopes, logits, sums, tokens, weights, floats;
    DV_MERGED explicit ClassifyRoom(const Classify& c) {
        mean = 0;
        features = mean + c.padded();
        slopes = features + c.padded();
        logits = slopes + c.padded();
        sums = logits + int64_t(c.groups()) * kLanes;
        tokens = sums + int64_t(c.features) * kLanes;
        weights = tokens + c.tokens() * c.padded();
        floats = weights + int64_t(c.heads + 1) * c.padded_tokens();
    }
};

struct Resize {                     // pool and upsample
    Map source, output;
    int32_t factor;
    bool filtered;                  // by 1-3-3-1, to half or twice the size
};

struct Linear {
    const float *weights, *bias;    // [n-block][inputs][16]
    int32_t inputs, outputs, activation;
};

// A piece of one operation over the samples first .. last of a tile: piece `piece` of `pieces` of part `part` of `parts`. Parts are
// what the threads begin with; which thread takes a piece changes nothing but where its private floats lie.
struct Work {
    uint8_t* arena;
    int64_t arena_stride;           // bytes from one sample to the next
    uint8_t* scratch;               // of the samples first .. last
    int64_t scratch_stride;
    float* private_scratch;         // the running thread's own floats
    int64_t* held;                  // which of the operation's values they hold from its last piece (-1: none)
    const float* row;
    int64_t row_stride;             // floats from one sample's row to the next; 0 where shared
    void* const* ports;
    int64_t sample;                 // the tile's first sample in the caller's batch
    int32_t first, last;
    int32_t part, parts, piece, pieces;
    const uint8_t* upcoming;        // packed weights that are read after the part's last piece, or null

    DV_MERGED uint8_t* at(int32_t image, const Map& map) const { return arena + image * arena_stride + map.offset; }
    DV_MERGED float* sums(int32_t image, const Map& map) const {
        return reinterpret_cast<float*>(arena + image * arena_stride + map.sums);
    }
    DV_MERGED const float* row_of(int32_t image) const { return row + (sample + image) * row_stride; }
};

struct Kernels {
    const char* name;
    int32_t bf16_pixel_bytes, int8_pixel_bytes;  // of a K step of one pixel, as prepared
    int32_t attention_queries, attention_keys;   // as many together, and as many in a block (AttentionRoom)
    bool tiles;                     // products over 16 pixels at one stride (AMX)
    void (*enter)();                // per thread and run: tile state
    void (*leave)();
    void (*input)(const Input&, const Work&);
    void (*prepare)(const Conv&, const Work&);
    void (*product)(const Conv&, const Work&);
    void (*pack)(const Attention&, const Work&);  // its keys and values, into the scratch
    void (*attention)(const Attention&, const Work&);
    void (*pool)(const Resize&, const Work&);
    void (*upsample)(const Resize&, const Work&);
    void (*norm)(const Conv&, const Work&);
    void (*embed)(const Embed&, const Work&);
    void (*nearest)(const Nearest&, const Work&);
    void (*norm_gradient)(const NormGradient&, int32_t pass, const Work&);            // sums, then the gradient
    void (*attention_gradient)(const AttentionGradient&, int32_t pass, const Work&);  // packed, by queries, by keys
    void (*classify)(const Classify&, const Work&);
    void (*activate)(const float* in, int64_t first, int64_t last, float* out);  // SILU of some of a LINEAR's inputs
    void (*linear)(const Linear&, const float* in, int64_t rows, float* out, const Work&);
    // Repeats a convolution's inner product over `bytes` of operands; returns operations done, 0 where there is no unit.
    double (*ceiling)(int32_t what, const uint8_t* operands, int64_t bytes, int64_t rounds);
    // Packed 3x3 weights to Winograd's points; null where products are always direct.
    void (*transform_weights)(const uint8_t* packed, int32_t n_blocks, int32_t blocks, uint8_t* to);
};

enum CeilingKind : int32_t { kCeilingBf16 = 0, kCeilingInt8 = 1, kCeilingF32 = 2 };

struct Range {
    int64_t first, last;
    DV_MERGED Range part(int64_t part, int64_t parts) const {
        const int64_t count = last - first;
        return Range{first + count * part / parts, first + count * (part + 1) / parts};
    }
};

// A piece's units of an operation that is cut one way only.
DV_MERGED Range units_of(const Work& w, int64_t units) {
    return Range{0, units}.part(w.part, w.parts).part(w.piece, w.pieces);
}

// How a product's work is cut among the parts: a grid over pixels and n-groups.
struct Share {
    int64_t unit_first, unit_last;  // stripes of all samples
    int32_t group_first, group_last;
};

// Parts cut stripes where that loads them evenly: a thread then multiplies what it prepared itself, from its own L2
// (16 x 16 maps on AMX: 10 % of that level); n-groups where stripes are too few.
DV_MERGED Share share_of(int64_t units, int32_t groups, int32_t part, int32_t parts) {
    int32_t best = 1;
    int64_t least = INT64_MAX;
    for (int32_t by_unit = parts; by_unit >= 1; --by_unit) {
        if (parts % by_unit != 0) continue;
        const int32_t by_group = parts / by_unit;
        const int64_t load = ((units + by_unit - 1) / by_unit) * ((groups + by_group - 1) / by_group);
        if (load < least) {
            least = load;
            best = by_unit;
        }
    }
    const int32_t by_group = parts / best, u = part / by_group, g = part % by_group;
    return Share{units * u / best, units * (u + 1) / best, groups * g / by_group, groups * (g + 1) / by_group};
}

// A piece of a share: units of one n-group after the other, so that its weights stay in the cache.
struct Runs {
    Share share;
    int64_t granule, across, at, end;   // `granule` units are not cut; `across` of those a group

    DV_MERGED Runs(const Share& s, int64_t granule_, const Work& w) : share(s), granule(granule_) {
        across = (s.unit_last - s.unit_first + granule - 1) / granule;
        const Range cells = Range{0, across * (s.group_last - s.group_first)}.part(w.piece, w.pieces);
        at = cells.first;
        end = cells.last;
    }

    // The next group and its units; false behind the last.
    DV_MERGED bool next(int32_t& group, Range& units) {
        if (at >= end) return false;
        const int64_t from = at % across, count = end - at < across - from ? end - at : across - from;
        group = share.group_first + int32_t(at / across);
        units.first = share.unit_first + from * granule;
        units.last = units.first + count * granule;
        if (units.last > share.unit_last) units.last = share.unit_last;
        at += count;
        return true;
    }
};

}  // namespace native
}  // namespace diffusevae

#endif  // DIFFUSEVAE_NATIVE_TARGET_H
