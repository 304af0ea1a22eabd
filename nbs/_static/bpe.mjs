// Generated from nbs/Zg_explorers.ipynb; change it there, then: make export

import { button, enable, explorer, field, make, row, status } from "./explorer.mjs";

const SPACE = "\\p{White_Space}",
  WORDS = new RegExp(
    [
      "'(?:[sdmt]|ll|ve|re)",
      " ?\\p{L}+",
      " ?\\p{N}+",
      ` ?[^${SPACE}\\p{L}\\p{N}]+`,
      `${SPACE}+(?!\\P{White_Space})`,
      `${SPACE}+`,
    ].join("|"),
    "gu",
  );

/** Cut text into the words inside which merges happen. */
export const cutWords = (text) => text.match(WORDS) ?? [];

const printable = (byte) =>
  (byte > 32 && byte < 127) || (byte > 160 && byte !== 173);
const all = [...Array(256).keys()];
const BYTES = [...all.filter(printable), ...all.filter((byte) => !printable(byte))];
const IDS = all.map((byte) => BYTES.indexOf(byte));

function mostFrequent(words) {
  const counts = new Map();
  for (const word of words)
    for (let i = 1; i < word.length; i += 1) {
      const key = word[i - 1] * 65536 + word[i];
      counts.set(key, (counts.get(key) ?? 0) + 1);
    }
  let best = null;
  for (const [key, count] of counts)
    if (!best || count > best.count || (count === best.count && key < best.key))
      best = { key, count };
  return (
    best && {
      pair: [Math.floor(best.key / 65536), best.key % 65536],
      count: best.count,
    }
  );
}

function merged(word, [a, b], id) {
  const out = [];
  for (let i = 0; i < word.length; i += 1)
    if (word[i] === a && word[i + 1] === b) {
      out.push(id);
      i += 1;
    } else out.push(word[i]);
  return out;
}

/** Learn at most n merges of pairs that occur twice or more: {merges, words, next}. */
export function learn(text, n) {
  const encoder = new TextEncoder(),
    merges = [];
  let words = cutWords(text).map((word) =>
    [...encoder.encode(word)].map((byte) => IDS[byte]),
  );
  for (;;) {
    const next = mostFrequent(words);
    if (!next || next.count < 2 || merges.length >= n)
      return { merges, words, next: next?.count > 1 ? next : null };
    const id = 256 + merges.length;
    merges.push(next);
    words = words.map((word) => merged(word, next.pair, id));
  }
}

const decoder = new TextDecoder("utf-8", { fatal: true });

/** Write a token as people read it. */
export function spell(bytes) {
  try {
    const text = decoder.decode(new Uint8Array(bytes));
    return text.replaceAll(" ", "␣").replaceAll("\n", "↵").replaceAll("\t", "⇥");
  } catch {
    return bytes.map((byte) => `<${byte.toString(16).padStart(2, "0")}>`).join("");
  }
}

/** Write out the bytes of all tokens, those of the merges last. */
export function tokensOf(merges) {
  const tokens = BYTES.map((byte) => [byte]);
  for (const {
    pair: [a, b],
  } of merges)
    tokens.push([...tokens[a], ...tokens[b]]);
  return tokens;
}

const times = (count) =>
  count < 3 ? ["never", "once", "twice"][count] : `${count} times`;
const chips = (name) => make("ol", { class: "explorer-tokens", "aria-label": name });

explorer("bpe", (panel, place) => {
  let done = 0;
  const start = place.dataset.text ?? "the baker bakes, the bakers baked";
  const text = field(
    { label: "Your text", rows: 3, limit: 1000, value: start },
    () => show(0),
  );
  const forth = button("Next merge", () => show(done + 1));
  const back = button("Back", () => show(Math.max(0, done - 1)));
  const rest = button("All merges", () => show(Infinity));
  const first = button("Start again", () => show(0));
  const said = status(),
    next = make("p"),
    head = make("p", { class: "explorer-head" });
  const tokenList = chips("Tokens of the text"),
    mergeList = chips("Merges so far");

  function show(wanted) {
    const { merges, words, next: coming } = learn(text.value, wanted);
    done = merges.length;
    const tokens = tokensOf(merges),
      newest = done ? 255 + done : null;
    const name = (id) => spell(tokens[id]);
    const both = ({ pair: [a, b], count }) => [
      `${name(a)} + ${name(b)}`,
      times(count),
    ];

    const bytes = new TextEncoder().encode(text.value).length;
    const size = `The text has ${bytes} bytes and is ${words.flat().length} tokens.`;
    if (done) {
      const [pair, often] = both(merges[done - 1]);
      said.say(
        `Merge ${done}: ${pair} occurs ${often} and becomes token ${newest}. ${size}`,
      );
    } else said.say(size);
    next.textContent = coming
      ? `Most frequent now: ${both(coming).join(", ")}.`
      : "No pair occurs twice, so nothing is left to merge.";

    const chip = (id, i, word) => {
      const kinds = [id === newest && "new", i === word.length - 1 && "last"];
      return make("li", { class: kinds.filter(Boolean).join(" ") }, name(id));
    };
    const made = (id) => make("li", {}, make("small", {}, `${id} `), name(id));
    tokenList.replaceChildren(...words.flatMap((word) => word.map(chip)));
    mergeList.replaceChildren(...merges.map((_, i) => made(256 + i)));
    head.textContent = done ? "Merges so far" : "Merges so far: none";
    for (const key of [back, first]) enable(key, done > 0);
    for (const key of [forth, rest]) enable(key, coming !== null);
  }

  panel.append(text.element, row(forth, back, rest, first), said.element, next);
  panel.append(tokenList, head, mergeList);
  show(0);
});
