// Generated from nbs/Zg_explorers.ipynb; change it there, then: python -m llm_literate.scripts

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
  count === 1 ? "once" : count === 2 ? "twice" : `${count} times`;

explorer("bpe", (panel, place) => {
  let done = 0;
  const said = status(),
    next = status();
  const tokenList = make("ol", {
    class: "explorer-tokens",
    "aria-label": "Tokens of the text",
  });
  const mergeList = make("ol", {
    class: "explorer-tokens",
    "aria-label": "Merges so far",
  });
  const text = field(
    {
      label: "Your text",
      rows: 3,
      limit: 1000,
      value: place.dataset.text ?? "the baker bakes, the bakers baked",
    },
    () => show(0),
  );
  const back = button("Back", () => show(Math.max(0, done - 1))),
    forth = button("Next merge", () => show(done + 1));
  const rest = button("All merges", () => show(Infinity)),
    start = button("Start again", () => show(0));

  function show(wanted) {
    const found = learn(text.value, wanted),
      tokens = tokensOf(found.merges);
    done = found.merges.length;
    const name = (id) => spell(tokens[id]),
      both = ({ pair }) => `${name(pair[0])} + ${name(pair[1])}`;
    const ids = found.words.flat(),
      last = found.merges[done - 1],
      bytes = new TextEncoder().encode(text.value).length;
    said.say(
      (last
        ? `Merge ${done}: ${both(last)} occurs ${times(last.count)} and becomes token ${255 + done}. `
        : "") + `The text has ${bytes} bytes and is ${ids.length} tokens.`,
    );
    next.element.textContent = found.next
      ? `Most frequent now: ${both(found.next)}, ${times(found.next.count)}.`
      : "No pair occurs twice, so nothing is left to merge.";
    tokenList.replaceChildren(
      ...found.words.flatMap((word) =>
        word.map((id, i) =>
          make(
            "li",
            {
              class: `${i < word.length - 1 ? "" : "last "}${last && id === 255 + done ? "new" : ""}`,
            },
            name(id),
          ),
        ),
      ),
    );
    mergeList.replaceChildren(
      ...found.merges.map((merge, i) =>
        make("li", {}, make("small", {}, `${256 + i} `), name(256 + i)),
      ),
    );
    for (const key of [back, start]) enable(key, done > 0);
    for (const key of [forth, rest]) enable(key, Boolean(found.next));
  }

  next.element.removeAttribute("role");
  panel.append(
    text.element,
    row(forth, back, rest, start),
    said.element,
    next.element,
    tokenList,
    make("p", { class: "explorer-head" }, "Merges so far"),
    mergeList,
  );
  show(0);
});
