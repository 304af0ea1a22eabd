// Generated from nbs/Zg_explorers.ipynb; change it there, then: python -m llm_literate.scripts

import {
  axis,
  chart,
  explorer,
  grouped,
  picture,
  row,
  slider,
  status,
  steps,
} from "./explorer.mjs";

/** Round as Python does, a half to the even neighbour. */
export const round = (number) =>
  Math.abs(number % 1) === 0.5 ? 2 * Math.round(number / 2) : Math.round(number);

/** Give the factor for the peak learning rate at a step, 0 to total - 1. */
export function warmupCosine(step, total, warmup, start, end) {
  const rise = round(warmup * total);
  if (step < rise) return start + ((1 - start) * (step + 1)) / rise;
  const done = (step - rise + 1) / Math.max(1, total - rise);
  return end + ((1 - end) * (1 + Math.cos(Math.PI * done))) / 2;
}

const RATES = [
  1e-6, 3e-6, 1e-5, 3e-5, 1e-4, 2e-4, 3e-4, 4e-4, 5e-4, 6e-4, 8e-4, 1e-3, 2e-3, 3e-3,
  5e-3, 1e-2,
];
const short = (number) =>
  number === 0 ? "0" : Number(number.toPrecision(3)).toString();

explorer("schedule", (panel) => {
  const changed = () => {
    at.input.max = total.value - 1;
    at.value = step();
    tell();
    curve.redraw();
  };
  const total = slider(
    { label: "Steps", values: steps(10, 500, 10), value: 240, show: grouped },
    changed,
  );
  const warmup = slider(
    {
      label: "Warm-up, share",
      values: steps(0, 60, 1),
      value: 20,
      show: (n) => `${n} %`,
    },
    changed,
  );
  const peak = slider(
    { label: "Peak rate", values: RATES, value: 1e-3, show: short },
    changed,
  );
  const initial = slider(
    { label: "Initial rate", values: [0, ...RATES], value: 3e-5, show: short },
    changed,
  );
  const minimum = slider(
    { label: "Minimum rate", values: [0, ...RATES], value: 1e-6, show: short },
    changed,
  );
  const at = slider(
    {
      label: "Look at step",
      values: steps(0, 499),
      value: 100,
      show: (n) => grouped(n),
    },
    changed,
  );
  const says = status();

  const step = () => Math.min(at.value, total.value - 1);
  const rate = (k) =>
    peak.value *
    warmupCosine(
      k,
      total.value,
      warmup.value / 100,
      initial.value / peak.value,
      minimum.value / peak.value,
    );
  function tell() {
    const rise = round((warmup.value / 100) * total.value);
    says.say(
      `Step ${step()} of 0 to ${total.value - 1}: rate ${short(rate(step()))}, ${
        step() < rise
          ? `rising, until ${rise} steps are done`
          : "falling along the cosine"
      }.`,
    );
  }
  const curve = picture((width) => {
    const points = steps(0, total.value - 1).map((k) => [k, rate(k)]);
    const most = Math.max(...points.map(([, value]) => value));
    return chart(width, {
      x: axis(
        "step",
        [0, 0.5, 1]
          .map((share) => Math.round(share * (total.value - 1)))
          .map((k) => [k, k]),
      ),
      y: axis(
        "learning rate",
        [0, most / 2, most].map((value) => [value, short(value)]),
      ),
      lines: [{ points }],
      dot: [step(), rate(step())],
      words:
        `The learning rate over ${total.value} steps: it begins at ${short(rate(0))}, is at most ${short(most)}` +
        ` and ends at ${short(rate(total.value - 1))}.`,
    });
  });
  panel.append(
    row(total, warmup, at),
    row(peak, initial, minimum),
    curve.element,
    says.element,
  );
  tell();
});
