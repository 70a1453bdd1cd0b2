// A request as a program: Python, curl and C++ that give the same bits.

const quote = (text) => JSON.stringify(text);
const shell = (text) => `'${text.replaceAll("'", "'\\''")}'`;

/** JSON as Python: None, True, False. */
function python(value) {
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return `[${value.map(python).join(", ")}]`;
  if (typeof value === "object") return `{${Object.entries(value).map(([k, v]) => `${quote(k)}: ${python(v)}`).join(", ")}}`;
  return typeof value === "string" ? quote(value) : String(value);
}

/** {verb, body, file}: file is the name of the picture whose base64 is body.what or body.images. */
export function asPython({ verb, body, file }, info) {
  const { image, drawn } = info, head = ["from engine import Sampler"], lines = [];
  const rest = { ...body }, first = [];
  if (file) {
    head.push("from engine.imaging import load_images");
    lines.push(`pictures = load_images([${quote(file)}], (${image.channels}, ${image.height}, ${image.width})).images`);
    first.push("pictures");
    delete rest.images;
    delete rest.what;
  }
  for (const name of verb === "interpolate" ? ["a", "b"] : verb === "edit" ? ["what", "edits"] : []) {
    if (name in rest) first.push(python(rest[name]));
    delete rest[name];
  }
  if (drawn && rest[drawn.name]) {
    head.unshift("import numpy as np", "");
    lines.push(`${drawn.name} = np.array(${python(rest[drawn.name])}, np.float32)`);
    rest[drawn.name] = null;
  }
  const named = Object.entries(rest).map(([name, value]) => `${name}=${value === null ? name : python(value)}`);
  return [
    ...head, "",
    `sampler = Sampler(${quote(info.path)}, backend=${quote(info.backend)}, precision=${quote(info.precision)})`,
    ...lines,
    `batch = sampler.${verb}(${[...first, ...named].join(", ")})`,
    `batch.images  # uint8 [n, ${image.height}, ${image.width}, ${image.channels}]`,
  ].join("\n");
}

export function asCurl({ verb, body, file }, info, origin, withToken) {
  const head = [`curl -s ${origin}/v1/${verb} -H 'Content-Type: application/json' -H 'Accept: image/png'`];
  if (withToken) head.push(`-H "Authorization: Bearer $DIFFUSEVAE_TOKEN"`);
  if (!file) return [...head, `-d ${shell(JSON.stringify(body))} -o picture.png`].join(" \\\n  ");
  const name = body.images ? "images" : "what", { [name]: _, ...rest } = body; // the shell puts the picture between the two
  const parts = [`printf %s ${shell(`{"${name}":"`)}`, `base64 < ${shell(file)} | tr -d '\\n'`, `printf %s ${shell(`",${JSON.stringify(rest).slice(1)}`)}`];
  return `{ ${parts.join("; ")}; } |\n  ${[...head, "-d @- -o picture.png"].join(" \\\n  ")}`;
}

const CPP = {
  seed: (v) => (Array.isArray(v) ? `options.seeds = {${v.join(", ")}};` : `options.seed = ${v};`),
  n: (v) => `options.n = ${v};`,
  text: (v) => `options.texts = {${[v].flat().map(quote).join(", ")}};`,
  edits: (v) => `options.edits = {${Object.entries(v).map(([name, s]) => `{${quote(name)}, ${s}}`).join(", ")}};`,
};

export function asCpp({ verb, body, file }, info) {
  if (verb !== "sample" || file) {
    return `// The C++ library samples; ${verb} is Python's and HTTP's. There it is one line: see the other tabs.`;
  }
  const lines = Object.entries(body).map(([name, value]) => {
    if (CPP[name]) return CPP[name](value);
    const given = info.given.find((one) => one.name === name);
    if (given) return `options.inputs[${quote(name)}] = diffusevae::Array::of<${given.dtype === "int64" ? "int64_t" : "float"}>({${value}});`;
    if (Array.isArray(value)) {
      const flat = value.flat();
      return `options.inputs[${quote(name)}] = diffusevae::Array::of<float>({${flat.map((one) => `${Number.isInteger(one) ? `${one}.0` : one}f`).join(", ")}}, {${value.length}, ${flat.length / value.length}});`;
    }
    return `options.${name} = ${typeof value === "string" ? quote(value) : value};`;
  });
  return [
    "#include <diffusevae.hpp>", "",
    "int main() {",
    "    diffusevae::OpenOptions open;",
    `    open.backend = ${quote(info.backend)};`,
    `    open.precision = ${quote(info.precision)};`,
    `    diffusevae::Sampler sampler(${quote(info.path)}, open);`,
    "    diffusevae::SampleOptions options;",
    ...lines.map((line) => `    ${line}`),
    "    const diffusevae::Batch batch = sampler.sample(options);  // batch.images: uint8 [n, H, W, C]",
    "}",
  ].join("\n");
}
