// Generated from nbs/05e_javascript.ipynb; change it there, then: make export

const HALVES = Float32Array.from({ length: 65536 }, (_, bits) => {
  const sign = bits >> 15 ? -1 : 1, fraction = bits & 1023;
  const exponent = (bits >> 10) & 31;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  if (exponent === 0) return sign * fraction * 2 ** -24;
  return sign * (1 + fraction / 1024) * 2 ** (exponent - 15);
});

/** Read a safetensors file that llm_literate wrote, in half precision. */
export function readModel(buffer) {
  const start = 8 + Number(new DataView(buffer).getBigUint64(0, true)), weights = {};
  const text = new TextDecoder().decode(buffer.slice(8, start));
  const { __metadata__: { llm_literate: note }, ...entries } = JSON.parse(text);
  for (const [name, { dtype, data_offsets: [from, to] }] of Object.entries(entries)) {
    const bytes = buffer.slice(start + from, start + to);
    if (bytes.byteLength < to - from) throw new Error(`${name} is cut off`);
    if (dtype !== "F16") throw new Error(`${name} has type ${dtype}, not F16`);
    weights[name] = new Float32Array(new Uint16Array(bytes)).map((bits) => HALVES[bits]);
  }
  return new GPT(JSON.parse(note.slice(note.indexOf("{"))).config, weights);
}

/** Multiply two vectors and add up. */
function dot(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += a[i] * b[i];
  return sum;
}

/** Multiply a matrix, stored row by row, with a vector. */
function product(matrix, x) {
  const d = x.length, y = new Float32Array(matrix.length / d);
  for (let i = 0; i < y.length; i++) y[i] = dot(matrix.subarray(i * d, (i + 1) * d), x);
  return y;
}

/** Bring numbers to mean 0 and variance 1, then scale and shift them. */
function layerNorm(x, scale, shift) {
  const mean = x.reduce((sum, v) => sum + v, 0) / x.length;
  const variance = x.reduce((sum, v) => sum + (v - mean) ** 2, 0) / x.length;
  const width = Math.sqrt(variance + 1e-5);
  return x.map((v, i) => ((v - mean) / width) * scale[i] + shift[i]);
}

/** Pass positive numbers, fade negative ones. */
const gelu = (v) =>
  0.5 * v * (1 + Math.tanh(Math.sqrt(2 / Math.PI) * (v + 0.044715 * v ** 3)));

/** Turn scores into shares that add up to 1. */
export function softmax(scores) {
  const top = scores.reduce((a, b) => Math.max(a, b));
  const powers = scores.map((score) => Math.exp(score - top));
  const sum = powers.reduce((a, b) => a + b);
  return powers.map((power) => power / sum);
}

const add = (a, b) => a.map((v, i) => v + b[i]);

/** Run a GPT of llm_literate, one token at a time. */
export class GPT {
  constructor(config, weights) { Object.assign(this, { config, weights }); }

  /** Make room for the keys and values of a new text. */
  newCache() {
    const lists = () => Array.from({ length: this.config.n_layers }, () => []);
    return { length: 0, keys: lists(), values: lists() };
  }

  linear(name, x) {
    const bias = this.weights[`${name}.bias`];
    const y = product(this.weights[`${name}.weight`], x);
    return bias ? add(y, bias) : y;
  }

  norm(name, x) {
    return layerNorm(x, this.weights[`${name}.scale`], this.weights[`${name}.shift`]);
  }

  /** Take in the next token; `watch(layer, head, shares)` sees where attention goes. */
  read(id, cache, watch) {
    const place = cache.length++, { emb_dim: d, context_length: most } = this.config;
    if (place >= most) throw new Error(`the context takes ${most} tokens`);
    const row = (name, i) => this.weights[name].subarray(i * d, (i + 1) * d);
    let x = add(row("tok_emb.weight", id), row("pos_emb.weight", place));
    for (let layer = 0; layer < this.config.n_layers; layer++) {
      const block = `trf_blocks.${layer}`;
      x = add(x, this.attend(layer, this.norm(`${block}.norm1`, x), cache, watch));
      const wide = this.linear(`${block}.ff.layers.0`, this.norm(`${block}.norm2`, x));
      x = add(x, this.linear(`${block}.ff.layers.2`, wide.map(gelu)));
    }
    return x;
  }

  /** Mix the values of all tokens so far, each head by shares of its own. */
  attend(layer, x, cache, watch) {
    const att = `trf_blocks.${layer}.att`, mixed = new Float32Array(x.length);
    const query = this.linear(`${att}.W_query`, x);
    const keys = cache.keys[layer], values = cache.values[layer];
    keys.push(this.linear(`${att}.W_key`, x));
    values.push(this.linear(`${att}.W_value`, x));
    const { n_heads } = this.config, d = x.length / n_heads;
    for (let head = 0; head < n_heads; head++) {
      const from = head * d, to = from + d, q = query.subarray(from, to);
      const fits = keys.map((key) => dot(q, key.subarray(from, to)) / Math.sqrt(d));
      const shares = softmax(fits);
      watch?.(layer, head, shares);
      for (let t = 0; t < shares.length; t++) {
        for (let i = from; i < to; i++) mixed[i] += shares[t] * values[t][i];
      }
    }
    return this.linear(`${att}.out_proj`, mixed);
  }

  /** Score every token as the next one: what `read` gave becomes logits. */
  score(x) {
    const head = this.weights["out_head.weight"] ?? this.weights["tok_emb.weight"];
    return product(head, this.norm("final_norm", x));
  }
}
