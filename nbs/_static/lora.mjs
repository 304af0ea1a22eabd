// Generated from nbs/Zg_explorers.ipynb; change it there, then: python -m llm_literate.scripts

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

/** Sizes: [width, layers, vocabulary, context, whether queries, keys, values have a bias]. */
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
  const block = 12 * d * d + (bias ? 13 : 10) * d; // matrices; biases, scales and shifts
  return (vocabulary + context) * d + layers * block + 2 * d + 2 * d + 2;
}

const RANKS = [1, 2, 4, 8, 16, 32, 64, 128, 256];
const million = (number) =>
  number >= 1e6
    ? `${grouped(Number((number / 1e6).toPrecision(4)))} million`
    : grouped(number);

explorer("lora", (panel) => {
  const changed = () => {
    tell();
    curve.redraw();
  };
  const model = choice({ label: "Model", options: Object.entries(NAMES) }, changed);
  const which = choice(
    {
      label: "Layers with LoRA",
      options: Object.keys(CHOICES).map((name) => [name, name]),
    },
    changed,
  );
  const rank = slider({ label: "Rank", values: RANKS, value: 16 }, changed);
  const says = status();

  function tell() {
    const count = trained(model.value, rank.value, which.value),
      share = (100 * count) / frozen(model.value);
    says.say(
      `Rank ${rank.value} trains ${grouped(count)} numbers beside ${grouped(frozen(model.value))} that stay, ` +
        `${Number(share.toPrecision(3))} %. A file of them has ${bytes(4 * count)}; training holds ${bytes(
          16 * count,
        )} for them, and would hold ${bytes(16 * frozen(model.value))} for all weights.`,
    );
  }
  const curve = picture((width) => {
    const points = RANKS.map((r) => [r, trained(model.value, r, which.value)]),
      whole = frozen(model.value);
    return chart(width, {
      x: axis(
        "rank",
        RANKS.map((r) => [r, r]),
        true,
      ),
      y: axis(
        "numbers that train",
        [
          [1e3, "1,000"],
          [1e5, "100,000"],
          [1e7, "10 mill."],
          [1e9, "1 bill."],
          [2e9, ""],
        ],
        true,
      ),
      lines: [
        { points },
        {
          points: RANKS.map((r) => [r, whole]),
          name: "all weights",
          kind: "other-line",
        },
      ],
      dot: [rank.value, trained(model.value, rank.value, which.value)],
      words:
        `Numbers that train against the rank, for ${NAMES[model.value]}, layers: ${which.value}. ` +
        `From ${million(points[0][1])} at rank 1 to ${million(points[8][1])} at rank 256; the model has ${million(whole)}.`,
    });
  });
  panel.append(row(model, which, rank), curve.element, says.element);
  tell();
});
