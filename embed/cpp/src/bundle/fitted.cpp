#include "bundle/fitted.h"

#include "bundle/manifest.h"
#include "bundle/schema.h"
#include "text.h"

namespace diffusevae {

const Defaults* Fitted::get(int64_t steps) const {
    for (const Defaults& setting : settings)
        if (setting.steps == steps) return &setting;
    return nullptr;
}

std::optional<Fitted> parse_fitted(Fields& top, int64_t T) {
    if (top.take_null("fitted")) return std::nullopt;
    Fields fields = top.object("fitted");
    Fitted fitted;
    take(fields, fitted);
    for (Fields& entry : fields.objects("settings", "a list of settings, one for each count of calls")) {
        Defaults setting = read<Defaults>(entry, T, T - 1);
        if (!setting.timesteps || int64_t(setting.timesteps->size()) != setting.steps)
            entry.refuse("timesteps", "a list of " + std::to_string(setting.steps) + ", as " + entry.name_of("steps") + " says");
        if (fitted.get(setting.steps) != nullptr) entry.refuse("steps", "another count for each setting");
        fitted.settings.push_back(std::move(setting));
    }
    fields.done();
    return fitted;
}

void check_fitted(const Manifest& manifest, const Origin& origin) {
    if (!manifest.fitted) return;
    const std::string& digest = manifest.graph(manifest.pipeline.step.graph)->sha256;
    if (manifest.fitted->of != digest)
        refuse(origin, "fitted.of", in_quotes(manifest.fitted->of) + " (str)",
               digest + ", the SHA-256 of the step's graph, on which settings are fitted");
}

}  // namespace diffusevae
