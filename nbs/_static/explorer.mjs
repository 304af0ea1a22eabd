// Generated from nbs/Zg_explorers.ipynb; change it there, then: python -m llm_literate.scripts

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") element.addEventListener(name, value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat());
  return element;
}

/** Make an HTML element: make("button", {type: "button", click: go}, "Go"). */
export const make = (name, attributes = {}, ...children) =>
  fill(document.createElement(name), attributes, children);

/** Make an SVG element: draw("rect", {x: 0, y: 0, width: 9, height: 9}). */
export const draw = (name, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, name), attributes, children);

/** Build a figure in every place that asks for it; where that fails, the drawing stays and the line says why. */
export async function explorer(name, build) {
  for (const place of document.querySelectorAll(`[data-explorer="${name}"]`)) {
    const panel = make("div", { class: "explorer-panel", role: "group", "aria-label": place.dataset.label ?? name });
    const line = place.querySelector(".explorer-still");
    place.append(panel);
    try {
      await build(panel, place);
    } catch (fault) {
      panel.remove();
      if (line) line.textContent = `This figure does not answer here: ${fault.message}`;
      continue;
    }
    line?.remove();
    const still = document.getElementById(place.dataset.still ?? "");
    still?.querySelectorAll(".cell_output").forEach((output) => { output.hidden = true; });
    place.dataset.ready = "yes";
  }
}

let count = 0;
const fresh = () => `explorer-${(count += 1)}`;

/** List numbers from one to another, both included. */
export const steps = (from, to, by = 1) =>
  Array.from({ length: Math.round((to - from) / by) + 1 }, (_, i) => Number((from + i * by).toPrecision(12)));

/** Make a labelled slider over a list of values; read and set its `value`. */
export function slider({ label, values, value = values[0], show = String }, changed) {
  const id = fresh();
  const input = make("input", { type: "range", id, min: 0, max: values.length - 1, step: 1 });
  const says = make("output", { for: id });
  const tell = () => {
    says.textContent = show(values[input.value]);
    input.setAttribute("aria-valuetext", says.textContent);
  };
  input.addEventListener("input", () => { tell(); changed?.(); });
  const element = make("div", { class: "explorer-control" }, make("label", { for: id }, label), says, input);
  const control = {
    element,
    input,
    get value() { return values[input.value]; },
    set value(wanted) { input.value = Math.max(0, values.indexOf(wanted)); tell(); },
  };
  control.value = value;
  return control;
}

/** Make a labelled list to choose from; `options` are [value, words] pairs. */
export function choice({ label, options, value = options[0][0] }, changed) {
  const id = fresh();
  const input = make("select", { id, change: () => changed?.() },
    options.map(([key, words]) => make("option", { value: key, selected: key === value }, words)));
  const element = make("div", { class: "explorer-control" }, make("label", { for: id }, label), input);
  return { element, input, get value() { return input.value; }, set value(wanted) { input.value = wanted; } };
}

/** Make a labelled text field; `rows` above 1 make it tall. */
export function field({ label, value = "", rows = 1, limit = 2000 }, changed) {
  const id = fresh();
  const attributes = { id, maxlength: limit, spellcheck: "false", autocomplete: "off", input: () => changed?.() };
  const input = rows > 1 ? make("textarea", { ...attributes, rows }) : make("input", { ...attributes, type: "text" });
  input.value = value;
  const element = make("div", { class: "explorer-control explorer-wide" }, make("label", { for: id }, label), input);
  return { element, input, get value() { return input.value; }, set value(wanted) { input.value = wanted; } };
}

/** Make a button. */
export const button = (label, pressed) => make("button", { type: "button", click: pressed }, label);

/** Make a row of controls or buttons. */
export const row = (...parts) => make("div", { class: "explorer-row" }, parts.map((part) => part.element ?? part));

/** Make a line that is read aloud when it changes; give it words with `say`. */
export function status() {
  const element = make("p", { role: "status", class: "explorer-says" });
  return { element, say: (words) => { element.textContent = words; } };
}

/** Keep an SVG drawing as wide as its place: `paint(width)` gives {height, parts, words}. Returns {element, redraw}. */
export function picture(paint) {
  const ruler = make("div"), drawing = make("div"), element = make("div", { class: "explorer-picture" }, ruler, drawing);
  let width = 0;
  const redraw = () => {
    if (!width) return;
    const { height, parts, words } = paint(width);
    drawing.replaceChildren(draw("svg", { role: "img", "aria-label": words, width, height,
      viewBox: `0 0 ${width} ${height}` }, parts));
  };
  new ResizeObserver((entries) => {
    const wide = Math.floor(entries[0].contentRect.width);
    if (wide !== width) { width = wide; redraw(); }
  }).observe(ruler); // which has no height, so that a taller drawing is no change of size
  return { element, redraw };
}

/** Write a number as people read it: 1234567 → 1,234,567. */
export const grouped = (number) => number.toLocaleString("en-US", { maximumFractionDigits: 6 });
