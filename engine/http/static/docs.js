// The OpenAPI document as a page: what each path takes, and its example, to be changed and sent.

const main = document.getElementById("main");
const token = new URLSearchParams(location.hash.slice(1)).get("token");
const auth = token ? { Authorization: `Bearer ${token}` } : {};

function add(parent, tag, text = "", attributes = {}) {
  const found = Object.assign(document.createElement(tag), attributes);
  if (text) found.textContent = text;
  parent.append(found);
  return found;
}

/** A field's type in words. */
function words(schema) {
  if (schema.oneOf) return schema.oneOf.map(words).join(" or ");
  if (schema.enum) return schema.enum.join(" | ");
  if (schema.type === "array") return `[${words(schema.items)}]`;
  const bounds = schema.minimum !== undefined && schema.maximum !== undefined ? ` ${schema.minimum} .. ${schema.maximum}` : "";
  return (schema.contentEncoding || schema.type) + bounds;
}

async function send(path, operation, text, accept, result) {
  result.replaceChildren();
  const began = performance.now(), headers = { Accept: accept, "Content-Type": "application/json", ...auth };
  const answer = await fetch(path, { method: "POST", headers, body: text });
  const took = (performance.now() - began).toFixed(1);
  add(result, "p", `${answer.status}, ${took} ms`, { className: "quiet" });
  const kind = answer.headers.get("content-type") || "";
  if (kind.startsWith("image/")) {
    const image = add(result, "img", "", { className: "pixels", alt: "the answer", src: URL.createObjectURL(await answer.blob()) });
    image.onload = () => { image.width = 4 * image.naturalWidth; };
  } else if (kind.includes("npy")) {
    add(result, "p", `${(await answer.blob()).size} bytes of .npy`);
  } else {
    const said = await answer.text();
    add(result, "pre", said.length > 3000 ? `${said.slice(0, 3000)} …` : said);
  }
}

function operation(path, { post }) {
  const card = add(main, "section", "", { className: "card" });
  add(card, "h2", `POST ${path}`);
  add(card, "p", post.summary, { className: "quiet" });
  const content = post.requestBody.content["application/json"], { properties, required } = content.schema;
  const details = add(card, "details");
  add(details, "summary", `${Object.keys(properties).length} fields, ${post.parameters.length} query parameters`);
  const list = add(details, "dl");
  for (const [name, schema] of Object.entries(properties)) {
    add(add(list, "dt"), "code", `${name}${required.includes(name) ? " (needed)" : ""}: ${words(schema)}`);
    add(list, "dd", schema.description || "");
  }
  for (const { name, description } of post.parameters) {
    add(add(list, "dt"), "code", `?${name}=`);
    add(list, "dd", description);
  }
  const body = add(card, "textarea", "", { value: JSON.stringify(content.example), rows: 3, ariaLabel: `body of ${path}` });
  const row = add(card, "div", "", { className: "row" });
  const accept = add(row, "select", "", { ariaLabel: "kind of answer" });
  for (const kind of Object.keys(post.responses["200"].content)) accept.append(new Option(kind, kind));
  const button = add(row, "button", "Send", { className: "main", type: "button" });
  const result = add(card, "div", "", { className: "result" });
  button.addEventListener("click", () => send(path, post, body.value, accept.value, result).catch((error) => add(result, "p", error.message)));
}

const answer = await fetch("/openapi.json", { headers: auth });
if (answer.ok) {
  const { info, paths } = await answer.json();
  document.getElementById("title").textContent = info.title;
  document.getElementById("about").textContent = info.description;
  for (const [path, operations] of Object.entries(paths)) if (operations.post) operation(path, operations);
  const others = add(main, "section", "", { className: "card" });
  add(others, "h2", "And");
  for (const [path, { get }] of Object.entries(paths)) if (get) add(others, "p", `GET ${path}: ${get.summary}`);
} else {
  document.getElementById("about").textContent = `/openapi.json answered ${answer.status}; with a token open /docs#token=TOKEN`;
}
