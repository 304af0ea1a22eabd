// Generated from nbs/05e_javascript.ipynb; change it there, then: make export

/** Write each byte of a text as the character with its number. */
const bytesOf = (text) => Array.from(new TextEncoder().encode(text),
  (byte) => String.fromCharCode(byte)).join("");

/** Cut text into tokens by byte pair encoding; takes what llm_literate saved. */
export class Tokenizer {
  constructor({ pattern, special_tokens, tokens }) {
    this.ids = new Map(tokens.map((token, id) => [token, id]));
    this.tokens = [...tokens];
    this.special = new Map(Object.entries(special_tokens));
    for (const [name, id] of this.special) this.tokens[id] = bytesOf(name);
    const signs = { "\\s": "\\p{White_Space}", "\\S": "\\P{White_Space}" };
    this.words = new RegExp(pattern.replace(/\\s/gi, (sign) => signs[sign]), "gu");
    const names = [...this.special.keys()].sort((a, b) => b.length - a.length);
    const plain = names.map((name) => name.replace(/[^\w\s]/g, "\\$&"));
    this.cuts = new RegExp(`(${plain.join("|")})`);
  }

  /** Join the bytes of a word, the smallest id first. */
  merge(word) {
    const parts = [...bytesOf(word)];
    if (this.ids.has(parts.join(""))) return [this.ids.get(parts.join(""))];
    for (;;) {
      let best = Infinity, at = -1;
      for (let i = 0; i + 1 < parts.length; i++) {
        const id = this.ids.get(parts[i] + parts[i + 1]);
        if (id < best) [best, at] = [id, i];
      }
      if (at < 0) return parts.map((part) => this.ids.get(part));
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
  }

  /** Turn text into ids; a special token in it is plain text unless `special`. */
  encode(text, special = false) {
    const pieces = special && this.special.size ? text.split(this.cuts) : [text];
    return pieces.flatMap((piece, k) => (k % 2 ? this.special.get(piece)
      : (piece.match(this.words) ?? []).flatMap((word) => this.merge(word))));
  }

  /** Turn ids into text, with U+FFFD for half a character. */
  decode(ids) {
    const wrong = ids.find((id) => this.tokens[id] === undefined);
    if (wrong !== undefined) throw new Error(`no token has the id ${wrong}`);
    const letters = ids.map((id) => this.tokens[id]).join("");
    const bytes = Uint8Array.from(letters, (letter) => letter.charCodeAt(0));
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
  }
}
