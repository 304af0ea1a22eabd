// Generated from nbs/Zg_explorers.ipynb; change it there, then: make export

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

/** Build a figure in every place that asks for it, or leave the drawing there. */
export async function explorer(name, build) {
  for (const place of document.querySelectorAll(`[data-explorer="${name}"]`)) {
    const panel = make("div", {
      class: "explorer-panel",
      role: "group",
      "aria-label": place.dataset.label ?? name,
    });
    const line = place.querySelector(".explorer-still");
    place.append(panel);
    try {
      await build(panel, place);
    } catch (fault) {
      panel.remove();
      if (line)
        line.textContent = `This figure does not answer here: ${fault.message}`;
      continue;
    }
    line?.remove();
    const still = document.getElementById(place.dataset.still ?? "");
    still?.querySelectorAll(".cell_output").forEach((output) => {
      output.hidden = true;
    });
    place.dataset.ready = "yes";
  }
}

let count = 0;
const fresh = () => `explorer-${(count += 1)}`;

/** List numbers from one to another, both included. */
export const steps = (from, to, by = 1) =>
  Array.from({ length: Math.round((to - from) / by) + 1 }, (_, i) =>
    Number((from + i * by).toPrecision(12)),
  );

/** Make a labelled slider over a list of values; read and set its `value`. */
export function slider(
  { label, values, value = values[0], show = String },
  changed,
) {
  const id = fresh();
  const input = make("input", {
    type: "range",
    id,
    min: 0,
    max: values.length - 1,
    step: 1,
  });
  const says = make("span", { class: "explorer-value", "aria-hidden": "true" });
  const tell = () => {
    says.textContent = show(values[input.value]);
    input.setAttribute("aria-valuetext", says.textContent);
  };
  input.addEventListener("input", () => {
    tell();
    changed?.();
  });
  const element = make(
    "div",
    { class: "explorer-control" },
    make("label", { for: id }, label),
    says,
    input,
  );
  const control = {
    element,
    input,
    get value() {
      return values[input.value];
    },
    set value(wanted) {
      input.value = Math.max(0, values.indexOf(wanted));
      tell();
    },
  };
  control.value = value;
  return control;
}

/** Put a label before an input; what it holds is the `value` of the control. */
function labelled(label, input, kind = "explorer-control") {
  const name = make("label", { for: input.id }, label);
  return {
    element: make("div", { class: kind }, name, input),
    input,
    get value() {
      return input.value;
    },
    set value(wanted) {
      input.value = wanted;
    },
  };
}

/** Make a labelled list to choose from; `options` are [value, words] pairs. */
export function choice({ label, options, value = options[0][0] }, changed) {
  const input = make(
    "select",
    { id: fresh(), change: () => changed?.() },
    options.map(([key, words]) =>
      make("option", { value: key, selected: key === value }, words),
    ),
  );
  return labelled(label, input);
}

/** Make a labelled text field; `rows` above 1 make it tall. */
export function field({ label, value = "", rows = 1, limit = 2000 }, changed) {
  const attributes = {
    id: fresh(),
    maxlength: limit,
    spellcheck: "false",
    autocomplete: "off",
    input: () => changed?.(),
  };
  const input =
    rows > 1
      ? make("textarea", { ...attributes, rows })
      : make("input", { ...attributes, type: "text" });
  input.value = value;
  return labelled(label, input, "explorer-control explorer-wide");
}

/** Make a button. */
export const button = (label, pressed) =>
  make("button", { type: "button", click: pressed }, label);

/** Switch a button on or off; it keeps the focus, and so the reader's place. */
export const enable = (element, on) =>
  element.setAttribute("aria-disabled", String(!on));

/** Make a row of controls or buttons. */
export const row = (...parts) =>
  make(
    "div",
    { class: "explorer-row" },
    parts.map((part) => part.element ?? part),
  );

/** Make a line that is read aloud when it changes; give it words with `say`. */
export function status() {
  const element = make("p", { role: "status", class: "explorer-says" });
  return {
    element,
    say: (words) => {
      element.textContent = words;
    },
  };
}

/** Keep a drawing as wide as its place; `paint(width)` gives {height, parts, words}. */
export function picture(paint) {
  const ruler = make("div"),
    drawing = make("div"),
    element = make("div", { class: "explorer-picture" }, ruler, drawing);
  let width = 0;
  const redraw = () => {
    if (!width) return;
    const { height, parts, words } = paint(width);
    drawing.replaceChildren(
      draw(
        "svg",
        {
          role: "img",
          "aria-label": words,
          width,
          height,
          viewBox: `0 0 ${width} ${height}`,
        },
        parts,
      ),
    );
  };
  new ResizeObserver((entries) => {
    const wide = Math.floor(entries[0].contentRect.width);
    if (wide !== width) {
      width = wide;
      redraw();
    }
  }).observe(ruler); // it has no height: a taller drawing is no change of size
  return { element, redraw };
}

/** Write a number as people read it: 1234567 → 1,234,567. */
export const grouped = (number) =>
  number.toLocaleString("en-US", { maximumFractionDigits: 6 });

/** Make an axis from [value, words] pairs; the first and the last are its ends. */
export function axis(label, ticks, log = false) {
  const bend = log ? Math.log : Number;
  const [from, to] = [ticks[0][0], ticks[ticks.length - 1][0]].map(bend);
  const share = (value) =>
    Math.min(1, Math.max(0, (bend(value) - from) / (to - from)));
  return { label, ticks, share };
}

/** Paint lines ({points, name, kind}) and a dot at [x, y], for `picture`. */
export function chart(width, { x, y, lines, dot, words }) {
  const height = 250,
    left = 62,
    right = width - 20,
    top = 30,
    bottom = height - 46;
  const across = (value) => left + x.share(value) * (right - left);
  const down = (value) => bottom - y.share(value) * (bottom - top);
  const parts = [
    draw("path", { class: "axis", d: `M${left},${top}V${bottom}H${right}` }),
    draw("text", { x: 0, y: 13, class: "faint" }, y.label),
    draw(
      "text",
      { x: right, y: height - 6, class: "faint", "text-anchor": "end" },
      x.label,
    ),
    x.ticks.map(([value, name]) =>
      draw(
        "text",
        { x: across(value), y: bottom + 19, "text-anchor": "middle" },
        name,
      ),
    ),
    y.ticks.map(([value, name]) =>
      draw("text", { x: left - 6, y: down(value) + 4, "text-anchor": "end" }, name),
    ),
    lines.map(({ points, kind = "line" }) =>
      draw("path", {
        class: kind,
        d: points
          .map(
            ([a, b], i) =>
              `${i ? "L" : "M"}${across(a).toFixed(1)},${down(b).toFixed(1)}`,
          )
          .join(""),
      }),
    ),
    lines
      .filter((line) => line.name)
      .map(({ points, name }) =>
        draw("text", { x: left + 8, y: down(points[0][1]) - 7 }, name),
      ),
    dot
      ? draw("circle", { class: "mark", cx: across(dot[0]), cy: down(dot[1]), r: 6 })
      : [],
  ].flat();
  return { height, parts, words };
}

/** Write bytes with three digits and a decimal unit: 75497472 → 75.5 MB. */
export function bytes(number) {
  const units = ["bytes", "KB", "MB", "GB", "TB", "PB"];
  const power = Math.min(
    units.length - 1,
    Math.floor(Math.log10(Math.max(1, number)) / 3 + 1e-12),
  );
  return `${Number((number / 1000 ** power).toPrecision(3))} ${units[power]}`;
}
