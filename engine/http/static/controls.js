// Parts of the page that are made of what the bundle has: sliders, walls of canvases.

export const $ = (id) => document.getElementById(id);

/** A labelled slider; on(value) while it moves. Double-click or Escape sets it back. */
export function slider(parent, { id, label, min, max, step, value }, on) {
  const field = document.createElement("div");
  field.className = "field";
  const name = document.createElement("label"), shown = document.createElement("output"), input = document.createElement("input");
  Object.assign(name, { htmlFor: id, textContent: label });
  Object.assign(input, { type: "range", id, min, max, step, value });
  shown.htmlFor = id;
  const show = () => { shown.textContent = (+input.value).toFixed(2); };
  const back = () => { input.value = value; show(); on(value); };
  input.addEventListener("input", () => { show(); on(+input.value); });
  input.addEventListener("dblclick", back);
  input.addEventListener("keydown", (event) => { if (event.key === "Escape") back(); });
  show();
  field.append(name, shown, input);
  parent.append(field);
  return { back: () => { input.value = value; show(); } };
}

/** A part that opens when its name is pressed. */
export function folded(parent, text) {
  const part = document.createElement("details"), name = document.createElement("summary");
  name.textContent = text;
  part.append(name);
  parent.append(part);
  return part;
}

export function heading(parent, text) {
  const line = document.createElement("h3");
  line.className = "group";
  line.textContent = text;
  parent.append(line);
}

/** As many buttons with a canvas as there are seeds; press(seed). */
export function wall(parent, seeds, chosen, press) {
  while (parent.children.length > seeds.length) parent.lastChild.remove();
  seeds.forEach((seed, i) => {
    let button = parent.children[i];
    if (!button) {
      button = document.createElement("button");
      button.type = "button";
      button.append(document.createElement("canvas"));
      parent.append(button);
    }
    button.title = `seed ${seed}`;
    button.setAttribute("aria-label", `seed ${seed}`);
    button.setAttribute("aria-pressed", String(seed === chosen));
    button.onclick = () => press(seed);
  });
  return [...parent.querySelectorAll("canvas")];
}

/** Arrow keys move among the tabs of a list; on(tab). */
export function tabs(list, on) {
  const choose = (tab) => {
    for (const other of list) {
      other.setAttribute("aria-selected", String(other === tab));
      other.tabIndex = other === tab ? 0 : -1;
    }
    on(tab);
  };
  list.forEach((tab, i) => {
    tab.addEventListener("click", () => choose(tab));
    tab.addEventListener("keydown", (event) => {
      const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!by) return;
      const next = list[(i + by + list.length) % list.length];
      choose(next);
      next.focus();
    });
  });
}
