// Generated from nbs/05e_javascript.ipynb; change it there, then: make export

import { button, explorer, field, make, row, slider, status } from "./explorer.mjs";
import { choiceSliders } from "./choice_sliders.mjs";
import { breather, loader } from "./small_model.mjs";
import { write } from "./write.mjs";

explorer("generate", (panel) => {
  const prompt = field({ label: "Beginning", value: "Once upon a time", rows: 3 });
  const settings = choiceSliders();
  const count = slider({ label: "Tokens at most", value: 100,
    values: [10, 25, 50, 100, 200] });
  const given = make("span"), added = make("b"), says = status();
  const text = make("p", { class: "explorer-text", hidden: true }, given, added);
  const start = button("Write", go), stop = button("Stop", () => halt?.abort());
  const controls = make("div", { hidden: true, class: "explorer-controls" },
    row(prompt), row(...settings.parts, count), row(start, stop));
  let small = null, halt = null;

  async function go() {
    halt?.abort();
    const { signal } = (halt = new AbortController()), { model, tokenizer } = small;
    const end = tokenizer.special.get("<|endoftext|>"), ids = [];
    given.textContent = prompt.value;
    added.textContent = "";
    text.hidden = false;
    says.say("The model is writing.");
    let begin = null, why = "";
    try {
      for await (const id of write(model, [end, ...tokenizer.encode(prompt.value)],
        { count: count.value, end, pause: breather(signal), ...settings.options() })) {
        begin ??= performance.now(); // the prompt is read by now
        if (id === end) why = " The model ended its text.";
        else ids.push(id);
        added.textContent = tokenizer.decode(ids);
        signal.throwIfAborted();
      }
    } catch (fault) {
      if (!signal.aborted) throw fault;
      why = " Stopped.";
    }
    if (halt.signal !== signal) return; // another run has begun
    const speed = (ids.length - 1) / ((performance.now() - begin) / 1000);
    const often = begin && ids.length > 5 ? `, ${Math.round(speed)} a second` : "";
    says.say(`${ids.length} ${ids.length === 1 ? "token" : "tokens"}${often}.${why}`);
  }

  const get = loader((loaded) => {
    small = loaded;
    controls.hidden = false;
    return start;
  });
  panel.append(get.element, controls, text, says.element);
});
