// Generated from nbs/Zg_explorers.ipynb; change it there, then: make export

import {
  axis,
  chart,
  explorer,
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
  1, 3, 10, 30, 100, 200, 300, 400, 500, 600, 800, 1000, 2000, 3000, 5000, 10000,
].map((rate) => rate / 1e6);
const short = (number) => Number(number.toPrecision(3)).toString();
const rates = (label, value) => ({
  label,
  value,
  values: [0, ...RATES],
  show: short,
});

explorer("schedule", (panel) => {
  const share = {
    label: "Warm-up, share",
    values: steps(0, 60),
    value: 20,
    show: (n) => `${n} %`,
  };
  const total = slider(
    { label: "Steps", values: steps(10, 500, 10), value: 240 },
    changed,
  );
  const warmup = slider(share, changed);
  const peak = slider(
    { label: "Peak rate", values: RATES, value: 1e-3, show: short },
    changed,
  );
  const initial = slider(rates("Initial rate", 3e-5), changed);
  const minimum = slider(rates("Minimum rate", 1e-6), changed);
  const at = slider(
    { label: "Look at step", values: steps(0, 499), value: 100 },
    changed,
  );
  const says = status(),
    curve = picture(paint);

  const last = () => total.value - 1;
  const rate = (step) => {
    const start = initial.value / peak.value,
      end = minimum.value / peak.value;
    return (
      peak.value * warmupCosine(step, total.value, warmup.value / 100, start, end)
    );
  };
  function changed() {
    at.input.max = last();
    at.value = Math.min(at.value, last());
    const rise = round((warmup.value / 100) * total.value);
    const way =
      at.value < rise
        ? `rising, until ${rise} steps are done`
        : "falling along the cosine";
    says.say(
      `Step ${at.value} of 0 to ${last()}: rate ${short(rate(at.value))}, ${way}.`,
    );
    curve.redraw();
  }
  function paint(width) {
    const points = steps(0, last()).map((step) => [step, rate(step)]);
    const most = Math.max(...points.map(([, value]) => value));
    const [begins, peaks, ends] = [rate(0), most, rate(last())].map(short);
    return chart(width, {
      x: axis(
        "step",
        [0, Math.round(last() / 2), last()].map((step) => [step, step]),
      ),
      y: axis(
        "learning rate",
        [0, most / 2, most].map((value) => [value, short(value)]),
      ),
      lines: [{ points }],
      dot: [at.value, rate(at.value)],
      words:
        `The learning rate over ${total.value} steps: ` +
        `it begins at ${begins}, is at most ${peaks} and ends at ${ends}.`,
    });
  }
  panel.append(
    row(total, warmup, at),
    row(peak, initial, minimum),
    curve.element,
    says.element,
  );
  changed();
});
