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
} from "./explorer.mjs";

/** Sizes: [width, layers, vocabulary, context, bias of queries, keys and values]. */
export const MODELS = {
  "124M": [768, 12, 50257, 1024, true],
  "355M": [1024, 24, 50257, 1024, true],
  "774M": [1280, 36, 50257, 1024, true],
  "1558M": [1600, 48, 50257, 1024, true],
  small: [256, 4, 2048, 128, false],
};

const NAMES = {
  ...Object.fromEntries(Object.keys(MODELS).map((name) => [name, `GPT-2, ${name}`])),
  small: "our small model",
};

/** Shapes of a model's linear layers: {name: [[inputs, outputs, how many], …]}. */
function linears([d, layers]) {
  return {
    queries: [[d, d, layers]],
    keys: [[d, d, layers]],
    values: [[d, d, layers]],
    projection: [[d, d, layers]],
    forward: [
      [d, 4 * d, layers],
      [4 * d, d, layers],
    ],
    head: [[d, 2, 1]],
  };
}

/** Which of them get LoRA. */
export const CHOICES = {
  all: ["queries", "keys", "values", "projection", "forward", "head"],
  "queries and values": ["queries", "values"],
  attention: ["queries", "keys", "values", "projection"],
  "feed-forward": ["forward"],
};

/** Count the numbers that LoRA trains. */
export const trained = (model, rank, which) =>
  CHOICES[which]
    .flatMap((name) => linears(MODELS[model])[name])
    .reduce(
      (sum, [inputs, outputs, many]) => sum + rank * (inputs + outputs) * many,
      0,
    );

/** Count all numbers of the model without LoRA, two classes at its end. */
export function frozen(model) {
  const [d, layers, vocabulary, context, bias] = MODELS[model];
  const block = 12 * d * d + (bias ? 13 : 10) * d; // matrices, then single numbers
  return (vocabulary + context) * d + layers * block + 2 * d + 2 * d + 2;
}

const RANKS = [1, 2, 4, 8, 16, 32, 64, 128, 256];
const TICKS = [
  [1e3, "1,000"],
  [1e5, "100,000"],
  [1e7, "10M"],
  [1e9, "1,000M"],
  [2e9, ""],
];

explorer("lora", (panel) => {
  const kinds = Object.keys(CHOICES).map((name) => [name, name]);
  const model = choice({ label: "Model", options: Object.entries(NAMES) }, changed);
  const which = choice({ label: "Layers with LoRA", options: kinds }, changed);
  const rank = slider({ label: "Rank", values: RANKS, value: 16 }, changed);
  const says = status(),
    curve = picture(paint);
  const train = (r) => trained(model.value, r, which.value);

  function changed() {
    const count = train(rank.value),
      whole = frozen(model.value);
    const share = Number(((100 * count) / whole).toPrecision(3));
    says.say(
      `Rank ${rank.value} trains ${grouped(count)} numbers ` +
        `beside ${grouped(whole)} that stay, ${share} %. ` +
        `A file of them has ${bytes(4 * count)}. ` +
        `Training needs ${bytes(16 * count)} for them; ` +
        `for all weights it would need ${bytes(16 * whole)}.`,
    );
    curve.redraw();
  }
  function paint(width) {
    const points = RANKS.map((r) => [r, train(r)]),
      whole = frozen(model.value);
    const limit = {
      points: RANKS.map((r) => [r, whole]),
      name: "all weights",
      kind: "other-line",
    };
    return chart(width, {
      x: axis(
        "rank",
        RANKS.map((r) => [r, r]),
        true,
      ),
      y: axis("numbers that train", TICKS, true),
      lines: [{ points }, limit],
      dot: [rank.value, train(rank.value)],
      words:
        `Numbers that train against the rank, for ${NAMES[model.value]}, ` +
        `layers: ${which.value}. ` +
        `${grouped(train(1))} at rank 1, ${grouped(train(256))} at rank 256; ` +
        `the model has ${grouped(whole)}.`,
    });
  }
  panel.append(row(model, which, rank), curve.element, says.element);
  changed();
});
