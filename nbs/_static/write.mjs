// Generated from nbs/05e_javascript.ipynb; change it there, then: make export

import { softmax } from "./gpt.mjs";

const highest = (scores) => scores.reduce((a, b) => Math.max(a, b));

/** Turn logits into probabilities, the unlikely tokens cut away. */
export function probabilities(logits, { temperature = 1, topK = null, topP = null }) {
  const top = highest(logits), heat = Math.max(temperature, 1e-30);
  const scores = Float64Array.from(logits, (score) => (score - top) / heat);
  const ranked = [...scores.keys()].sort((a, b) => scores[b] - scores[a]);
  const least = scores[ranked[(topK ?? Infinity) - 1] ?? ranked.at(-1)];
  let shares = softmax(scores.map((score) => (score < least ? -Infinity : score)));
  if (topP !== null && topP < 1) {
    let before = 0; // held by likelier tokens
    for (const id of ranked) {
      const share = shares[id];
      if (before >= topP) shares[id] = 0;
      before += share;
    }
    const kept = shares.reduce((a, b) => a + b);
    shares = shares.map((share) => share / kept);
  }
  return shares;
}

/** Take the likeliest token at temperature 0, or draw one by its probability. */
export function choose(logits, options, random = Math.random) {
  if (options.temperature === 0) return logits.indexOf(highest(logits));
  let left = random();
  const shares = probabilities(logits, options);
  const id = shares.findIndex((share) => (left -= share) < 0);
  return id < 0 ? shares.findLastIndex((share) => share > 0) : id;
}

/** Give the ids that follow, one by one, until `end` or `count` of them. */
export async function* write(model, ids, { count, end, pause, random, ...options }) {
  const text = [...ids], most = model.config.context_length;
  let cache = model.newCache();
  for (let n = 0; n < count; n++) {
    if (text.length > most) cache = model.newCache();
    let x;
    for (const id of text.slice(Math.max(cache.length, text.length - most))) {
      await pause?.();
      x = model.read(id, cache);
    }
    const id = choose(model.score(x), { temperature: 0, ...options }, random);
    text.push(id);
    yield id;
    if (id === end) return;
  }
}
