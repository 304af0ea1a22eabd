// Generated from nbs/05e_javascript.ipynb; change it there, then: make export

import { draw, explorer, field, grouped, picture, row, status } from "./explorer.mjs";
import { choiceSliders } from "./choice_sliders.mjs";
import { loader, percent, visible } from "./small_model.mjs";
import { probabilities } from "./write.mjs";

const BARS = 12;

explorer("sampling", (panel) => {
  const data = JSON.parse(document.getElementById("sampling-example").textContent);
  let logits = Float64Array.from(data.logits, (score) => score / 100);
  let name = (id) => data.names[id], small = null, wait = null;
  let best = [], before = [], after = [];
  const settings = choiceSliders(show, { temperature: 1 });
  const prompt = field({ label: "Beginning", value: data.prompt, rows: 2,
    limit: 300 }, () => {
    clearTimeout(wait);
    wait = setTimeout(read, 300);
  });
  prompt.element.hidden = true;
  const says = status(), bars = picture(paint);

  function read() {
    const { model, tokenizer } = small, end = tokenizer.special.get("<|endoftext|>");
    const ids = [end, ...tokenizer.encode(prompt.value)];
    const cache = model.newCache();
    let x;
    for (const id of ids.slice(-model.config.context_length)) x = model.read(id, cache);
    logits = model.score(x);
    name = (id) => (id === end ? "end of text" : tokenizer.decode([id]));
    show();
  }

  function inWords() {
    const kept = after.filter((share) => share > 0);
    const bits = kept.reduce((sum, share) => sum - share * Math.log2(share), 0);
    const rest = 1 - best.reduce((sum, id) => sum + after[id], 0);
    const n = kept.length, tokens = n === 1 ? "1 token is" : `${grouped(n)} tokens are`;
    const first = `“${visible(name(best[0]))}” has ${percent(after[best[0]])}.`;
    return `${first} ${tokens} left, ` +
      `and the choice is as open as one among ${(2 ** bits).toFixed(1)}. ` +
      `Those without a bar hold ${percent(Math.max(0, rest))}.`;
  }

  function paint(width) {
    const step = 24, left = 110, most = Math.max(before[best[0]], after[best[0]]);
    const wide = (share) => (share / most) * (width - left - 75);
    const parts = best.flatMap((id, i) => {
      const y = i * step, label = visible(name(id)), was = wide(before[id]);
      const bar = { x: left, y: y + 4, height: step - 8 }, now = wide(after[id]);
      return [
        draw("text", { x: left - 8, y: y + 17, "text-anchor": "end" },
          label.length > 12 ? `${label.slice(0, 11)}…` : label),
        draw("rect", { ...bar, class: "bar", width: now }),
        draw("rect", { ...bar, class: "axis", width: was }),
        draw("text", { x: left + Math.max(now, was) + 6, y: y + 17 },
          after[id] ? percent(after[id]) : "cut"),
      ];
    });
    return { height: best.length * step, parts,
      words: `Bars of the ${BARS} likeliest tokens. ${inWords()}` };
  }

  function show() {
    before = probabilities(logits, {});
    after = probabilities(logits, settings.options());
    best = [...before.keys()].sort((a, b) => before[b] - before[a]).slice(0, BARS);
    bars.redraw();
    says.say(inWords());
  }

  const get = loader((loaded) => {
    small = loaded;
    prompt.element.hidden = false;
    return prompt.input;
  }, "For a beginning of your own, load the model.");
  panel.append(row(...settings.parts), bars.element, says.element, prompt.element,
    get.element);
  show();
});
