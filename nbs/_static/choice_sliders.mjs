// Generated from nbs/05e_javascript.ipynb; change it there, then: make export

import { slider, steps } from "./explorer.mjs";

const ALL = "all";

/** Make sliders for temperature, top-k and top-p; `options()` reads them. */
export function choiceSliders(changed, { temperature = 0.8 } = {}) {
  const heat = slider({ label: "Temperature", value: temperature,
    values: steps(0, 3, 0.1), show: (t) => t.toFixed(1) }, changed);
  const top = slider({ label: "Top-k", value: ALL,
    values: [1, 2, 3, 4, 5, 8, 10, 20, 50, 100, ALL] }, changed);
  const share = slider({ label: "Top-p", value: 1,
    values: steps(0.05, 1, 0.05), show: (p) => p.toFixed(2) }, changed);
  const options = () => ({ temperature: heat.value, topP: share.value,
    topK: top.value === ALL ? null : top.value });
  return { parts: [heat, top, share], options };
}
