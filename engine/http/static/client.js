// The server, as the page asks it: JSON in, .npy or events out; and requests of which only the newest matters.

let token = new URLSearchParams(location.hash.slice(1)).get("token") || "";

export function useToken(text) { token = text; }
export const hasToken = () => token !== "";

export class ServerError extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

async function send(path, body, accept) {
  const headers = { Accept: accept };
  if (body !== undefined) headers["Content-Type"] = "application/json";
  if (token) headers.Authorization = `Bearer ${token}`;
  const answer = await fetch(path, { method: body === undefined ? "GET" : "POST", headers, body: body && JSON.stringify(body) });
  if (answer.ok) return answer;
  const said = await answer.json().catch(() => ({}));
  throw new ServerError(answer.status, said.error ? said.error.message : `the server answered ${answer.status}`);
}

export async function info() { return (await send("/v1/info", undefined, "application/json")).json(); }

/** The whole answer as JSON, with these outputs. */
export async function whole(verb, body, outputs) {
  return (await send(`/v1/${verb}?outputs=${outputs}`, body, "application/json")).json();
}

/** Images of a request, {shape: [n, h, w, c], data: Uint8Array}, and how long they took. */
export async function images(verb, body) {
  const began = performance.now();
  const answer = await send(`/v1/${verb}`, body, "application/x-npy");
  const found = npy(await answer.arrayBuffer());
  const took = Object.fromEntries([...answer.headers.get("server-timing").matchAll(/(\w+);dur=([\d.]+)/g)].map((m) => [m[1], +m[2]]));
  return { ...found, network: took.network, trip: performance.now() - began };
}

/** Calls on(name, data) for each server-sent event of a request. */
export async function events(verb, body, on) {
  const reader = (await send(`/v1/${verb}`, body, "text/event-stream")).body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    text += part.value;
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const [, name, data] = text.slice(0, end).match(/^event: (\w+)\ndata: (.*)$/s);
      text = text.slice(end + 2);
      on(name, JSON.parse(data));
    }
  }
}

/** A uint8 .npy file. */
export function npy(buffer) {
  const head = new DataView(buffer).getUint16(8, true);
  const text = new TextDecoder().decode(new Uint8Array(buffer, 10, head));
  const shape = text.match(/'shape': \(([^)]*)\)/)[1].split(",").filter((word) => word.trim()).map(Number);
  return { shape, data: new Uint8Array(buffer, 10 + head) };
}

/** Draw image i of an answer on a canvas. */
export function draw(canvas, { shape: [, height, width, channels], data }, i) {
  const pixels = new ImageData(width, height), from = i * height * width * channels;
  for (let at = 0; at < height * width; at++) {
    for (let c = 0; c < 3; c++) pixels.data[4 * at + c] = data[from + at * channels + (channels > 2 ? c : 0)];
    pixels.data[4 * at + 3] = channels === 4 ? data[from + at * 4 + 3] : 255;
  }
  if (canvas.width !== width || canvas.height !== height) [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

/** At most `most` requests at a time: while they are out, only the newest of those that come is kept, and it always gets its turn. */
export class Newest {
  constructor(run, failed, most = 1) { [this.run, this.failed, this.most, this.out, this.next] = [run, failed, most, 0, null]; }

  async ask(...wanted) {
    this.next = wanted;
    if (this.out === this.most) return;
    this.out++;
    while (this.next) {
      const now = this.next;
      this.next = null;
      try { await this.run(...now); } catch (error) { if (!this.next) this.failed(error); }
    }
    this.out--;
  }
}
