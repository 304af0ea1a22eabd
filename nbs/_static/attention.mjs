// Generated from nbs/05e_javascript.ipynb; change it there, then: make export

import { draw, explorer, field, make, picture, row, slider, status, steps }
  from "./explorer.mjs";
import { loader, percent, visible } from "./small_model.mjs";

const MOST = 24; // tokens that can be told apart on a phone

/** Run a text through the model and keep what every head looks at. */
export function look(model, ids) {
  const { n_layers, n_heads } = model.config, cache = model.newCache();
  const empty = (n, what) => Array.from({ length: n }, what);
  const shares = empty(n_layers, () => empty(n_heads, () => []));
  const keep = (layer, head, row) => shares[layer][head].push(row);
  for (const id of ids) model.read(id, cache, keep);
  return shares;
}

/** Unfold what the page hands over: thousandths, with zeros above the diagonal. */
const unfold = (shares) => shares.map((heads) => heads.map((rows) =>
  rows.map((row, i) => row.slice(0, i + 1).map((share) => share / 1000))));

explorer("attention", (panel) => {
  const data = JSON.parse(document.getElementById("attention-example").textContent);
  let words = [], shares = [], small = null, wait = null, token = null;
  const layer = slider({ label: "Layer", value: data.layer,
    values: steps(1, data.shares.length) }, show);
  const head = slider({ label: "Head", value: data.head,
    values: steps(1, data.shares[0].length) }, show);
  const from = make("div", { class: "explorer-control" });
  const sentence = field({ label: "Sentence", limit: 200,
    value: data.words.slice(1).join("") }, () => {
    clearTimeout(wait);
    wait = setTimeout(read, 300);
  });
  sentence.element.hidden = true;
  const says = status(), list = make("ol"), grid = picture(paint);

  function take(found, tokens) {
    shares = found;
    words = tokens.map((word, i) => (i ? visible(word) : "start"));
    const values = steps(0, words.length - 1);
    token = slider({ label: "Token", values, value: values.at(-1),
      show: (i) => words[i] }, show);
    from.replaceChildren(...token.element.childNodes);
    show();
  }

  function read() {
    const { model, tokenizer } = small, end = tokenizer.special.get("<|endoftext|>");
    const all = [end, ...tokenizer.encode(sentence.value)], ids = all.slice(0, MOST);
    take(look(model, ids), ids.map((id) => tokenizer.decode([id])));
    const cut = all.length > MOST ? ` Only the first ${MOST} tokens are shown.` : "";
    says.say(inWords(token.value) + cut);
  }

  function inWords(i) {
    const rows = shares[layer.value - 1][head.value - 1];
    const best = [...rows[i].entries()].sort((a, b) => b[1] - a[1]).slice(0, 4);
    const named = (j) => (j === i ? "itself" : `“${words[j]}”`);
    const parts = best.filter(([j, share], n) => n === 0 || share >= 0.005)
      .map(([j, share]) => `${percent(share)} from ${named(j)}`);
    return `“${words[i]}” takes ${parts.join(", ")}.`;
  }

  function paint(width) {
    const rows = shares[layer.value - 1][head.value - 1], chosen = token.value;
    const names = words.map((word) =>
      (word.length > 9 ? `${word.slice(0, 8)}…` : word));
    const top = 8 * Math.max(...names.map((name) => name.length)) + 6;
    const size = Math.min(26, (width - top - 2) / rows.length);
    const parts = rows.flatMap((row, i) => {
      const y = top + i * size, middle = y + size / 2 + 4;
      const style = i === chosen ? { "font-weight": 700 } : {};
      const turned = `translate(${middle} ${top - 5}) rotate(-90)`;
      const pick = () => { token.value = i; show(); };
      return [
        draw("text", { ...style, x: top - 5, y: middle, "text-anchor": "end" },
          names[i]),
        draw("text", { transform: turned }, names[i]),
        ...row.map((share, j) => draw("rect", { class: "cell", y, x: top + j * size,
          width: size - 1, height: size - 1, click: pick,
          "fill-opacity": 0.06 + 0.94 * share })),
      ];
    });
    parts.push(draw("rect", { class: "chosen", x: top - 1, y: top + chosen * size - 1,
      width: (chosen + 1) * size + 1, height: size + 1 }));
    const what = `Attention of layer ${layer.value}, head ${head.value}`;
    return { height: top + rows.length * size + 2, parts,
      words: `${what}, a triangle of ${rows.length} tokens. ${inWords(chosen)}` };
  }

  function show() {
    grid.redraw();
    says.say(inWords(token.value));
    list.replaceChildren(...words.map((_, i) => make("li", {}, inWords(i))));
  }

  const get = loader((loaded) => {
    small = loaded;
    sentence.element.hidden = false;
    return sentence.input;
  }, "To look at a sentence of your own, load the model.");
  const whole = make("details", {},
    make("summary", {}, "All tokens of this head in words"), list);
  panel.append(row(layer, head, { element: from }), grid.element, says.element,
    whole, sentence.element, get.element);
  take(unfold(data.shares), data.words);
});
