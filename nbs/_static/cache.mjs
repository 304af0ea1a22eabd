// Generated from nbs/Zg_explorers.ipynb; change it there, then: make export

import {
  axis,
  bytes,
  chart,
  choice,
  explorer,
  grouped,
  picture,
  row,
  slider,
  status,
  steps,
} from "./explorer.mjs";

/** Count the bytes of a cache: keys and values of each token in each layer. */
export const cacheBytes = ({ layers, width, context, batch, each }) =>
  2 * layers * width * context * batch * each;

/** Count the bytes of the blocks' matrices: four for attention, and two, each as large as four. */
export const weightBytes = ({ layers, width, each }) =>
  12 * layers * width * width * each;

const MODELS = {
  small: { words: "our small model", layers: 4, heads: 8, per: 32, context: 128 },
  "124M": { words: "GPT-2, 124M", layers: 12, heads: 12, per: 64, context: 1024 },
  "355M": { words: "GPT-2, 355M", layers: 24, heads: 16, per: 64, context: 1024 },
  "774M": { words: "GPT-2, 774M", layers: 36, heads: 20, per: 64, context: 1024 },
  "1558M": { words: "GPT-2, 1558M", layers: 48, heads: 25, per: 64, context: 1024 },
};

const TOKENS = steps(4, 17).map((power) => 2 ** power);
const MARKS = [
  [16, "16"],
  [128, "128"],
  [1024, "1k"],
  [8192, "8k"],
  [131072, "128k"],
];
const SIZES = [
  [1e3, "1 KB"],
  [1e6, "1 MB"],
  [1e9, "1 GB"],
  [1e12, "1 TB"],
  [1e15, "1 PB"],
  [1e18, "1 EB"],
];
const KINDS = [
  ["4", "4 (float32)"],
  ["2", "2 (bfloat16)"],
  ["1", "1 (int8)"],
];

explorer("cache", (panel) => {
  const names = Object.entries(MODELS).map(([name, { words }]) => [name, words]);
  const model = choice({ label: "Model", value: "124M", options: names }, take);
  const layers = slider({ label: "Layers", values: steps(1, 128) }, changed);
  const heads = slider({ label: "Heads", values: steps(1, 128) }, changed);
  const per = slider(
    { label: "Numbers per head", values: [16, 32, 64, 96, 128, 256] },
    changed,
  );
  const context = slider(
    { label: "Tokens of context", values: TOKENS, show: grouped },
    changed,
  );
  const batch = slider(
    { label: "Texts at a time", values: [1, 2, 4, 8, 16, 32, 64, 128, 256] },
    changed,
  );
  const each = choice({ label: "Bytes per number", options: KINDS }, changed);
  const says = status(),
    curve = picture(paint);

  function take() {
    const sizes = MODELS[model.value];
    for (const [name, control] of Object.entries({ layers, heads, per, context }))
      control.value = sizes[name];
    changed();
  }
  function sizes(others = {}) {
    const width = heads.value * per.value;
    const now = {
      layers: layers.value,
      width,
      context: context.value,
      batch: batch.value,
    };
    return { ...now, each: Number(each.value), ...others };
  }
  function changed() {
    const now = sizes(),
      whole = cacheBytes(now),
      token = cacheBytes(sizes({ context: 1, batch: 1 }));
    says.say(
      `${heads.value} heads of ${per.value} make a width of ${grouped(now.width)}. ` +
        `A token takes ${grouped(token)} bytes, ` +
        `the cache ${grouped(whole)} bytes (${bytes(whole)}), ` +
        `the blocks' weights ${bytes(weightBytes(now))}.`,
    );
    curve.redraw();
  }
  function paint(width) {
    const now = sizes(),
      whole = cacheBytes(now),
      weights = weightBytes(now);
    const points = TOKENS.map((context) => [
      context,
      cacheBytes(sizes({ context })),
    ]);
    const enough = SIZES.findIndex(
      ([size]) => size >= Math.max(1e9, weights, points.at(-1)[1]),
    );
    const limit = {
      points: TOKENS.map((tokens) => [tokens, weights]),
      name: "weights",
      kind: "other-line",
    };
    return chart(width, {
      x: axis("tokens of context", MARKS, true),
      y: axis("memory", SIZES.slice(0, enough + 1), true),
      lines: [{ points }, limit],
      dot: [context.value, whole],
      words:
        `Memory of the cache against the tokens of context: ` +
        `${bytes(points[0][1])} at ${TOKENS[0]} tokens, ` +
        `${bytes(whole)} at ${grouped(context.value)}; the weights take ${bytes(weights)}.`,
    });
  }
  panel.append(
    row(model, context),
    row(layers, heads, per),
    row(batch, each),
    curve.element,
    says.element,
  );
  take();
});
