// The studio: what is on the screen is a function of `state`, and each part asks the server for it.

import { Newest, ServerError, draw, events, hasToken, images, info as askInfo, useToken, whole } from "./client.js";
import { asCpp, asCurl, asPython } from "./code.js";
import { $, folded, heading, slider, tabs, wall } from "./controls.js";

const SETTLED = 180; // ms without a movement after which the wall follows too
const MOVING = 12; // ms of sampling while something moves, where settings were fitted: the rest of 33 is the browser's
const state = {
  first: 0, count: 12, seed: 0, picture: null, edits: {}, axes: [], preserve: 0.6, given: {}, compare: false, side: "A",
  settings: { A: null, B: null }, // null: as the bundle records it
  language: "python",
};
let moving = false;
let info, sliders = [], frames = null, drawn = [], latents = new Map(), settle;

// ---- requests --------------------------------------------------------------------------------------------------------

const setting = (side) => ({ ...state.settings[side], ...state.given });
const moved = () => Object.fromEntries(Object.entries(state.edits).filter(([, strength]) => strength !== 0));
const seeds = () => Array.from({ length: state.count }, (_, i) => state.first + i);

async function latentsOf(list) {
  const missing = list.filter((seed) => !latents.has(seed));
  if (missing.length) {
    const answer = await whole("sample", { ...state.given, seed: missing, steps: 1, spacing: "linspace" }, info.drawn.name);
    missing.forEach((seed, i) => latents.set(seed, answer.outputs[info.drawn.name][i]));
  }
  return list.map((seed) => latents.get(seed));
}

/** A latent moved along the axes in float32, as numpy would. */
function along(latent) {
  const found = Float32Array.from(latent);
  state.axes.forEach((strength, k) => { if (strength) info.axes[k].forEach((one, i) => { found[i] += Math.fround(strength * one); }); });
  return [...found];
}

async function ofSeeds(list, side) {
  const body = { seed: list, ...setting(side) }, edits = moved();
  if (Object.keys(edits).length) body.edits = edits;
  if (state.axes.some(Boolean)) body[info.drawn.name] = (await latentsOf(list)).map(along);
  return { verb: "sample", body };
}

async function ofFocus() {
  if (!state.picture) return quick(await ofSeeds([state.seed], state.side));
  const { file, base64, latent } = state.picture, kept = setting(state.side), edits = moved();
  if (state.axes.some(Boolean)) {
    const body = { [info.drawn.name]: [along(latent)], seed: 0, ...kept };
    return { verb: "sample", body: Object.keys(edits).length ? { ...body, edits } : body };
  }
  if (!info.directions.length) return { verb: "reconstruct", body: { images: base64, seed: 0, ...kept }, file };
  delete kept.t_start; // `preserve` says it
  return { verb: "edit", body: { what: base64, edits, preserve: state.preserve, seed: 0, ...kept }, file };
}

/** While something moves the recorded setting gives way to the best fitted one that keeps up. */
function quick(request) {
  if (!moving || !info.fitted.length || state.settings[state.side] !== null) return request;
  return { ...request, body: { ...request.body, budget_ms: MOVING, at_most: true } };
}

function ofBetween() {
  const edits = moved(), body = { a: +$("a").value, b: +$("b").value, n: Math.min(16, info.limits.max_batch), mode: $("mode").value };
  return { verb: "interpolate", body: { ...body, ...setting(state.side), ...(Object.keys(edits).length ? { edits } : {}) } };
}

// ---- pictures --------------------------------------------------------------------------------------------------------

// Two on their way: the server works on one while the browser shows the other. An answer that was overtaken is not shown.
let asked = 0, shown = 0;
const focus = new Newest(async () => {
  const turn = ++asked, request = await ofFocus(), answer = await images(request.verb, request.body);
  if (turn < shown) return;
  shown = turn;
  draw($("focus"), answer, 0);
  readOut(answer);
  $("focus").dataset.drawn = String(+($("focus").dataset.drawn || 0) + 1);
  said();
  if (!request.body.budget_ms) showCode("focus", request);
}, failed, 2);

const walls = new Newest(async () => {
  const list = seeds();
  for (const side of state.compare ? ["A", "B"] : ["A"]) {
    const request = await ofSeeds(list, side), answer = await images(request.verb, request.body);
    wall($(`wall-${side}`), list, state.picture ? null : state.seed, choose).forEach((canvas, i) => draw(canvas, answer, i));
    if (side === state.side || !state.compare) showCode("wall", request);
  }
  $("wall-A").dataset.drawn = String(+($("wall-A").dataset.drawn || 0) + 1);
  said();
}, failed);

const between = new Newest(async () => {
  const request = ofBetween();
  frames = await images(request.verb, request.body);
  $("scrub").max = frames.shape[0] - 1;
  showFrame();
  said();
  showCode("between", request);
}, failed);

function showFrame() {
  if (!frames) return;
  const at = Math.min(+$("scrub").value, frames.shape[0] - 1);
  draw($("frame"), frames, at);
  $("scrub-value").textContent = `${at + 1} of ${frames.shape[0]}`;
}

/** The picture at once, and as good as it gets with all the rest when the hand has come to rest. */
function changed(rest = true) {
  moving = rest;
  focus.ask();
  clearTimeout(settle);
  if (rest) settle = setTimeout(() => { moving = false; focus.ask(); walls.ask(); if (info.drawn) between.ask(); }, SETTLED);
}

function readOut({ network, trip }) {
  const now = performance.now(), ms = (value) => `${value.toFixed(1)} ms`;
  drawn = [...drawn.filter((when) => now - when < 1000), now];
  $("network").textContent = ms(network);
  $("rest").textContent = ms(Math.max(0, trip - network));
  $("trip").textContent = ms(trip);
  $("rate").textContent = drawn.length > 2 ? (1000 * (drawn.length - 1) / (now - drawn[0])).toFixed(0) : "–";
}

function said(text = "") { $("alert").textContent = text; $("alert").hidden = !text; }

function failed(error) {
  if (error instanceof ServerError && error.status === 401) $("key").hidden = false;
  if (error instanceof ServerError && error.status === 429) setTimeout(() => changed(), 1000);
  said(error.message);
}

// ---- the parts of the page -------------------------------------------------------------------------------------------

function choose(seed) {
  state.seed = seed;
  if (state.picture) leavePicture();
  for (const button of document.querySelectorAll(".wall button")) button.setAttribute("aria-pressed", String(button.title === `seed ${seed}`));
  $("focus-name").textContent = `seed ${seed}`;
  $("strip").hidden = true;
  changed(false);
}

async function takePicture(file) {
  try {
    const bytes = new Uint8Array(await file.arrayBuffer());
    let binary = "";
    for (let at = 0; at < bytes.length; at += 8192) binary += String.fromCharCode(...bytes.subarray(at, at + 8192));
    const base64 = btoa(binary), answer = await whole("reconstruct", { images: base64, seed: 0, ...state.given }, info.drawn.name);
    state.picture = { file: file.name, base64, latent: answer.outputs[info.drawn.name][0] };
    $("original-image").src = URL.createObjectURL(file);
    $("original").hidden = $("back").hidden = false;
    $("preserve-field").hidden = !info.directions.length;
    $("focus-name").textContent = file.name;
    for (const button of document.querySelectorAll(".wall button")) button.setAttribute("aria-pressed", "false");
    changed(false);
  } catch (error) { failed(error); }
}

function leavePicture() {
  state.picture = null;
  $("original").hidden = $("back").hidden = $("preserve-field").hidden = true;
}

function addSliders() {
  const parent = $("sliders");
  if (info.directions.length) heading(parent, "Directions");
  const groups = new Map(); // hair=short and hair=long under "hair"
  info.directions.forEach((name, i) => {
    const [group, label] = name.includes("=") ? name.split("=", 2) : [null, name];
    if (group && !groups.has(group)) groups.set(group, folded(parent, group.replaceAll("_", " ")));
    sliders.push(slider(group ? groups.get(group) : parent, { id: `direction-${i}`, label, min: -2, max: 2, step: 0.02, value: 0 },
      (value) => { state.edits[name] = value; changed(); }));
  });
  groups.forEach((group) => parent.append(group)); // below those that stand alone
  if (info.axes.length) heading(parent, "Principal axes");
  state.axes = info.axes.map(() => 0);
  info.axes.forEach((_, k) => sliders.push(slider(parent, { id: `axis-${k}`, label: `Axis ${k + 1}`, min: -3, max: 3, step: 0.02, value: 0 },
    (value) => { state.axes[k] = value; changed(); })));
  $("reset").hidden = !sliders.length;
  $("reset").addEventListener("click", () => {
    sliders.forEach((one) => one.back());
    state.edits = {};
    state.axes.fill(0);
    changed();
  });
}

/** Fields for inputs that a bundle must be given: numbers, such as a label, and a text where it stands for token ids. */
function addGiven() {
  if (info.text) addField("text", { type: "text", value: "" }, (input) => input.value);
  for (const { name, shape, range } of info.given) {
    if (shape.length) continue;
    const limits = range ? { min: range[0], max: range[1] } : {};
    addField(name, { type: "number", value: Math.max(0, range ? range[0] : 0), ...limits }, (input) => +input.value);
  }
}

function addField(name, kind, value) {
  const field = document.createElement("div"), label = document.createElement("label"), input = document.createElement("input");
  field.className = "field";
  Object.assign(label, { htmlFor: `given-${name}`, textContent: name });
  Object.assign(input, { id: `given-${name}`, ...kind });
  state.given[name] = value(input);
  input.addEventListener("input", () => { state.given[name] = value(input); latents.clear(); changed(); });
  field.append(label, document.createElement("span"), input);
  $("sliders").append(field);
}

function showSetting() {
  const chosen = state.settings[state.side], usual = info.setting;
  $("recorded").checked = chosen === null;
  const now = chosen || { steps: usual.steps, method: usual.method, t_start: usual.t_start, temperature: usual.temperature };
  $("steps").value = now.steps;
  $("method").value = now.method;
  $("t_start").value = now.t_start || 0;
  $("temperature").value = now.temperature;
  $("steps-value").textContent = now.steps;
  $("t_start-value").textContent = now.t_start ? `t = ${now.t_start}` : "from noise";
  $("temperature-value").textContent = (+now.temperature).toFixed(2);
  for (const side of ["A", "B"]) $(`side-button-${side}`).setAttribute("aria-pressed", String(side === state.side));
}

function readSetting() {
  const found = { steps: +$("steps").value, method: $("method").value, temperature: +$("temperature").value };
  if (info.start && +$("t_start").value) found.t_start = +$("t_start").value;
  state.settings[state.side] = found;
  showSetting();
  changed();
}

function addSetting() {
  const { setting: usual, fitted, limits, T, start, verbs } = info;
  $("steps").max = Math.min(30, limits.max_steps);
  $("t_start").max = T - 1;
  $("t_start-field").hidden = !start;
  for (const name of verbs.sample.method.enum) $("method").append(new Option(name, name));
  const from = usual.t_start ? `from the start image at t = ${usual.t_start}` : "from noise";
  const kind = fitted.some((one) => one.steps === usual.steps) ? "Fitted" : "Recorded"; // as a request without a setting takes it
  $("recorded-text").textContent = `${kind}: ${usual.steps} steps of ${usual.method} ${from}${usual.timesteps ? `, at ${usual.timesteps.join(", ")}` : ""}`;
  for (const id of ["steps", "method", "t_start", "temperature"]) $(id).addEventListener("input", readSetting);
  $("recorded").addEventListener("change", () => {
    if (!$("recorded").checked) return readSetting();
    state.settings[state.side] = null;
    showSetting();
    changed();
  });
  for (const side of ["A", "B"]) $(`side-button-${side}`).addEventListener("click", () => { state.side = side; showSetting(); changed(); });
  showSetting();
}

function compare() {
  state.compare = !state.compare;
  state.side = state.compare ? "B" : "A";
  $("compare").setAttribute("aria-pressed", String(state.compare));
  for (const id of ["side-B", "tag-A", "sides"]) $(id).hidden = !state.compare;
  if (state.compare && state.settings.B === null) return readSetting();
  showSetting();
  changed();
}

async function watchSteps() {
  const strip = $("strip");
  strip.replaceChildren();
  strip.hidden = false;
  try {
    const { verb, body } = await ofFocus();
    await events(verb, body, (name, data) => {
      if (name === "error") return said(data.error.message);
      const picture = name === "step" ? data.images && data.images[0] : data.outputs.image[0];
      if (!picture) return;
      const item = document.createElement("li"), image = new Image();
      image.className = "pixels";
      image.src = `data:image/png;base64,${picture}`;
      image.alt = name === "step" ? `prediction at t = ${data.timestep}` : "the result";
      item.append(image, name === "step" ? `t ${data.timestep}` : "result");
      strip.append(item);
    });
  } catch (error) { failed(error); }
}

const requests = {};
function showCode(subject, request) {
  if (subject) requests[subject] = request;
  const found = requests[$("subject").value];
  if (!found) return;
  const write = { python: asPython, curl: asCurl, cpp: asCpp }[state.language];
  $("code").textContent = write(found, info, location.origin, hasToken());
}

function addCode() {
  tabs(["python", "curl", "cpp"].map((name) => $(`tab-${name}`)), (tab) => {
    state.language = tab.id.slice(4);
    $("code").setAttribute("aria-labelledby", tab.id);
    showCode();
  });
  $("subject").addEventListener("change", () => showCode());
  $("copy").addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText($("code").textContent);
      $("copied").textContent = "Copied.";
    } catch {
      getSelection().selectAllChildren($("code"));
      $("copied").textContent = "Selected: press Ctrl-C to copy.";
    }
    setTimeout(() => { $("copied").textContent = ""; }, 2500);
  });
}

function addWall() {
  $("count").max = info.limits.max_batch;
  state.count = Math.min(state.count, info.limits.max_batch);
  $("count").value = state.count;
  const read = () => {
    if (!$("first").reportValidity() || !$("count").reportValidity()) return;
    [state.first, state.count] = [+$("first").value, +$("count").value];
    walls.ask();
  };
  for (const id of ["first", "count"]) $(id).addEventListener("input", read);
  $("shuffle").addEventListener("click", () => { $("first").value = Math.floor(Math.random() * 1e6); read(); choose(state.first); });
  $("compare").addEventListener("click", compare);
}

function addPictures() {
  const takes = info.verbs.reconstruct && info.drawn;
  $("file").parentElement.hidden = !takes;
  $("between").hidden = !info.drawn;
  $("back").addEventListener("click", () => choose(state.seed));
  $("steps-button").addEventListener("click", watchSteps);
  $("preserve").addEventListener("input", () => { state.preserve = +$("preserve").value; showPreserve(); changed(false); });
  const showPreserve = () => { $("preserve-value").textContent = state.preserve.toFixed(2); };
  showPreserve();
  for (const id of ["a", "b", "mode"]) $(id).addEventListener("input", () => between.ask());
  $("scrub").addEventListener("input", showFrame);
  if (!takes) return;
  $("file").addEventListener("change", () => { if ($("file").files[0]) takePicture($("file").files[0]); });
  addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("over"); });
  addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("over"); });
  addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").classList.remove("over");
    if (event.dataTransfer.files[0]) takePicture(event.dataTransfer.files[0]);
  });
}

async function open() {
  try { info = await askInfo(); } catch (error) { return failed(error); }
  $("key").hidden = true;
  said();
  document.title = `${info.name} – studio`;
  $("name").textContent = info.name;
  $("engine").textContent = `${info.backend} ${info.precision}, ${info.threads} ${info.threads === 1 ? "thread" : "threads"}, ${info.image.width} × ${info.image.height}`;
  addGiven();
  addSliders();
  addSetting();
  addWall();
  addPictures();
  addCode();
  choose(state.first);
  walls.ask();
  if (info.drawn) between.ask();
}

$("key").addEventListener("submit", (event) => { event.preventDefault(); useToken($("token").value); open(); });
open();
