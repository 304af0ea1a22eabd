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
  steps,
} from "./explorer.mjs";

/** Count the bytes of a cache: keys and values of each token in each layer. */
export const cacheBytes = ({ layers, width, context, batch, each }) =>
  2 * layers * width * context * batch * each;

/** Count the bytes of the blocks' matrices: four for attention, two of fourfold size. */
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
const SIZES = [
  [1e3, "1 KB"],
  [1e6, "1 MB"],
  [1e9, "1 GB"],
  [1e12, "1 TB"],
];

explorer("cache", (panel) => {
  const changed = () => {
    tell();
    curve.redraw();
  };
  const model = choice(
    {
      label: "Model",
      value: "124M",
      options: Object.entries(MODELS).map(([name, { words }]) => [name, words]),
    },
    () => {
      take();
      changed();
    },
  );
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
    {
      label: "Texts at a time",
      values: steps(0, 10).map((power) => 2 ** power),
      show: grouped,
    },
    changed,
  );
  const each = choice(
    {
      label: "Bytes per number",
      value: "4",
      options: [
        ["4", "4 (float32)"],
        ["2", "2 (bfloat16)"],
        ["1", "1 (int8)"],
      ],
    },
    changed,
  );
  const says = status();

  const take = () => {
    const {
      layers: deep,
      heads: many,
      per: wide,
      context: long,
    } = MODELS[model.value];
    [layers.value, heads.value, per.value, context.value] = [deep, many, wide, long];
  };
  const sizes = () => ({
    layers: layers.value,
    width: heads.value * per.value,
    context: context.value,
    batch: batch.value,
    each: Number(each.value),
  });
  function tell() {
    const now = sizes(),
      whole = cacheBytes(now);
    says.say(
      `${heads.value} heads of ${per.value} make a width of ${grouped(now.width)}. ` +
        `A token takes ${grouped(cacheBytes({ ...now, context: 1, batch: 1 }))} bytes, ` +
        `the cache ${grouped(whole)} bytes (${bytes(whole)}), the blocks' weights ${bytes(weightBytes(now))}.`,
    );
  }
  const curve = picture((width) => {
    const now = sizes(),
      points = TOKENS.map((tokens) => [
        tokens,
        cacheBytes({ ...now, context: tokens }),
      ]);
    const weights = weightBytes(now),
      most =
        10 **
        (3 *
          Math.ceil(
            Math.log10(Math.max(1e9, weights, ...points.map((p) => p[1]))) / 3,
          ));
    return chart(width, {
      x: axis(
        "tokens of context",
        TOKENS.filter((_, i) => i % 3 === 0 || i === 13)
          .map((tokens) => [tokens, tokens < 1024 ? tokens : `${tokens / 1024}k`])
          .filter((_, i, list) => i !== list.length - 2),
        true,
      ),
      y: axis(
        "memory",
        [...SIZES, [1e15, "1 PB"], [1e18, "1 EB"]].filter(([size]) => size <= most),
        true,
      ),
      lines: [
        { points },
        {
          points: TOKENS.map((tokens) => [tokens, weights]),
          name: "weights",
          kind: "other-line",
        },
      ],
      dot: [context.value, cacheBytes(now)],
      words:
        `Memory of the cache against the tokens of context: ${bytes(points[0][1])} at ${TOKENS[0]} tokens, ` +
        `${bytes(cacheBytes(now))} at ${grouped(context.value)}; the weights take ${bytes(weights)}.`,
    });
  });
  take();
  panel.append(
    row(model, context),
    row(layers, heads, per),
    row(batch, each),
    curve.element,
    says.element,
  );
  tell();
});
