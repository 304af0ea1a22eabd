// Generated from nbs/05e_javascript.ipynb; change it there, then: make export

import { readModel } from "./gpt.mjs";
import { Tokenizer } from "./tokenizer.mjs";
import { button, make, row, status } from "./explorer.mjs";

const RECORD = "small_model.json", WEIGHTS = "small_model.safetensors";
const WORDS = "small_tokenizer.json";
const near = (name) => new URL(name, import.meta.url).href;

async function ask(url, options) {
  const answer = await fetch(url, options).catch(() => {
    throw new Error("the network gives no answer");
  });
  if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
  return answer;
}

async function collect(answer, tell) {
  const parts = [], reader = answer.body.getReader();
  for (let got = 0; ;) {
    const { done, value } = await reader.read().catch(() => {
      throw new Error("the connection broke off");
    });
    if (done) return new Blob(parts).arrayBuffer();
    parts.push(value);
    tell((got += value.length));
  }
}

async function check(bytes, wanted) {
  if (!globalThis.crypto?.subtle) return; // there with https and on 127.0.0.1
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  const hex = Array.from(digest, (byte) => byte.toString(16).padStart(2, "0"));
  if (hex.join("") !== wanted) throw new Error("what arrived is not the model");
}

async function keepOnly(store, files) {
  try {
    for (const { url } of await store.keys()) await store.delete(url);
    for (const [url, body] of files) await store.put(url, new Response(body));
  } catch { /* no room, or not allowed: then it is loaded anew next time */ }
}

/** Load the small model and its tokenizer; `tell(share)` says how far it is. */
export async function load(tell = () => {}) {
  const store = await globalThis.caches?.open("llm_literate").catch(() => null);
  const kept = (url) => store?.match(url).catch(() => null);
  const record = near(RECORD);
  const fresh = await ask(record, { cache: "no-cache" }).catch((fault) => fault);
  const answer = fresh instanceof Error ? await kept(record) : fresh;
  if (!answer) throw fresh;
  const about = await answer.json(), size = 2 * about.parameters;
  const name = (file) => `${near(file)}?${about.sha256}`;
  const words = await kept(name(WORDS)) ?? await ask(name(WORDS));
  const vocabulary = await words.json(), old = await kept(name(WEIGHTS));
  const source = old ?? await ask(name(WEIGHTS));
  const bytes = await collect(source, (got) => tell(Math.min(1, got / size)));
  await check(bytes, about.sha256).catch(async (fault) => {
    await store?.delete(name(WEIGHTS)); // or a spoilt copy would stay for ever
    throw fault;
  });
  const small = { model: readModel(bytes), tokenizer: new Tokenizer(vocabulary) };
  if (store && !old) {
    await keepOnly(store, [[record, JSON.stringify(about)],
      [name(WORDS), JSON.stringify(vocabulary)], [name(WEIGHTS), bytes]]);
  }
  return small;
}

let loading = null;
const waiting = [];

/** Make a button that loads the model; `ready` is called wherever it was pressed. */
export function loader(ready, why = "") {
  const says = status();
  says.say(why);
  const bar = make("progress", { max: 1, value: 0, "aria-label": "loaded", hidden: true });
  const press = button("Load the model (7 MB)", async () => {
    if (loading) return;
    says.say("The model is loading.");
    bar.hidden = false;
    try {
      loading = load((share) => { bar.value = share; });
      const small = await loading;
      for (const tell of waiting) tell(small);
    } catch (fault) {
      loading = null;
      bar.hidden = true;
      press.textContent = "Try again";
      says.say(`The model could not be loaded: ${fault.message}.`);
    }
  });
  const parts = [row(press, bar), says.element];
  const element = make("div", { class: "explorer-loader" }, parts);
  waiting.push((small) => {
    const next = ready(small), focused = element.contains(document.activeElement);
    element.hidden = true;
    if (focused) next?.focus();
  });
  return { element };
}

/** Make a pause for `write`: let the page breathe 60 times a second, or stop. */
export function breather(signal) {
  let last = performance.now();
  return async () => {
    signal.throwIfAborted();
    if (performance.now() - last < 16) return;
    await new Promise((go) => setTimeout(go));
    last = performance.now();
  };
}

/** Show a token so that its spaces can be seen. */
export const visible = (text) => text.replaceAll(" ", "␣").replaceAll("\n", "↵");

/** Write a share as people read it. */
export const percent = (share) => (share >= 0.005 || share === 0
  ? `${Math.round(100 * share)}%` : "under 1%");
