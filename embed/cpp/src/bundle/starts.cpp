#include "bundle/starts.h"

#include "bundle/manifest.h"
#include "bundle/schema.h"
#include "text.h"

namespace diffusevae {

std::optional<Starts> parse_starts(Fields& top, int64_t T) {
    if (top.take_null("refine")) return std::nullopt;
    Fields fields = top.object("refine");
    Starts starts;
    take(fields, starts, T - 1);
    const std::string expected = "a list of 1.." + std::to_string(kMaxStarts) + " damages";
    std::vector<Fields> rows = fields.objects("damages", expected);
    if (int64_t(rows.size()) > kMaxStarts) fields.refuse("damages", expected);
    for (Fields& row : rows) read<StartRow>(row, kMeasures, int64_t(starts.t_starts.size()));
    fields.done();
    return starts;
}

void check_starts(const Manifest& manifest, const Origin& origin) {
    if (!manifest.refine) return;
    const std::string& digest = manifest.graph(manifest.pipeline.step.graph)->sha256;
    if (manifest.refine->of != digest)
        refuse(origin, "refine.of", in_quotes(manifest.refine->of) + " (str)",
               digest + ", the SHA-256 of the step's graph, on which starts are fitted");
}

}  // namespace diffusevae
