"""The models that bench_model.py compares: ours, three libraries, and plain code as small training scripts have it.

Each builder takes the same sizes and returns a `Contestant`.
All are GPT-2's architecture with biases, without dropout, and with one matrix for embedding and output layer,
so that all have the same number of parameters; litgpt has no learned positions, it rotates queries and keys instead.
What a library does not bring (generation without a cache in litgpt) is the shortest loop around its model.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class Contestant:
    "A model, how its users compute the loss and generate, and the groups their optimizer gets."
    model: nn.Module
    loss: Callable  # (ids (b, t), targets (b, t)) -> scalar
    generate: dict[str, Callable] = field(default_factory=dict)  # "cached", "uncached": (ids (1, t), n) -> (1, t + n)
    groups: Callable | None = None  # () -> parameter groups; default: all parameters

    def parameters(self):
        "Say what the optimizer gets."
        return self.groups() if self.groups else self.model.parameters()


def token_loss(logits, targets):
    "Average the cross-entropy over all tokens."
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


@torch.no_grad()
def extend(scores, ids, n):
    "Append the likeliest token n times, computing everything anew for each."
    for _ in range(n):
        ids = torch.cat([ids, scores(ids)[:, -1].argmax(-1, keepdim=True)], 1)
    return ids


def ours(vocab_size, context_length, emb_dim, n_heads, n_layers):
    "Build the model of this book."
    from llm_literate.generate import generate
    from llm_literate.model import GPTConfig, GPTModel
    model = GPTModel(GPTConfig(vocab_size, context_length, emb_dim, n_heads, n_layers, drop_rate=0.0,
                               qkv_bias=True, tie_weights=True))
    return Contestant(model, lambda ids, targets: token_loss(model(ids), targets), {
        "cached": lambda ids, n: generate(model, ids, n),
        "uncached": lambda ids, n: generate(model, ids, n, use_cache=False)})


def transformers(vocab_size, context_length, emb_dim, n_heads, n_layers):
    "Build GPT2LMHeadModel with torch's attention; its loss shifts the labels itself."
    from transformers import GPT2Config, GPT2LMHeadModel
    model = GPT2LMHeadModel(GPT2Config(
        vocab_size=vocab_size, n_positions=context_length, n_embd=emb_dim, n_head=n_heads, n_layer=n_layers,
        bos_token_id=None, eos_token_id=None,  # it shall not stop early
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, attn_implementation="sdpa"))
    model.generation_config.pad_token_id = 0

    def generate(ids, n, use_cache):
        return model.eval().generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n, do_sample=False,
                                     use_cache=use_cache)

    return Contestant(model, lambda ids, targets: model(ids, labels=ids).loss, {
        "cached": lambda ids, n: generate(ids, n, True), "uncached": lambda ids, n: generate(ids, n, False)})


def book_sizes(vocab_size, context_length, emb_dim, n_heads, n_layers):
    "Spell the sizes as the book's own package wants them."
    return dict(vocab_size=vocab_size, context_length=context_length, emb_dim=emb_dim, n_heads=n_heads,
                n_layers=n_layers, drop_rate=0.0, qkv_bias=True)


def book_package(*sizes):
    "Build the model of llms-from-scratch, chapter 4. Its cache (kv_cache.gpt2 of 1.0.19) fails at the second token."
    from llms_from_scratch import ch04
    from llms_from_scratch.ch05 import calc_loss_batch
    config = book_sizes(*sizes)
    model = ch04.GPTModel(config)
    model.out_head.weight = model.tok_emb.weight

    def uncached(ids, n):
        return ch04.generate_text_simple(model.eval(), ids, n, config["context_length"])

    return Contestant(model, lambda ids, targets: calc_loss_batch(ids, targets, model, "cpu"), {"uncached": uncached})


def book_package_fast(*sizes):
    "Build the faster variant that llms-from-scratch brings."
    from llms_from_scratch import ch04
    from llms_from_scratch.ch05 import calc_loss_batch
    model = ch04.GPTModelFast(book_sizes(*sizes))
    model.out_head.weight = model.tok_emb.weight
    return Contestant(model, lambda ids, targets: calc_loss_batch(ids, targets, model, "cpu"))


def litgpt(vocab_size, context_length, emb_dim, n_heads, n_layers):
    "Build litgpt's model in the configuration nearest to GPT-2."
    from litgpt import Config
    from litgpt.generate.base import generate
    from litgpt.model import GPT
    from litgpt.utils import chunked_cross_entropy
    model = GPT(Config(
        block_size=context_length, vocab_size=vocab_size, padded_vocab_size=vocab_size, n_layer=n_layers,
        n_head=n_heads, n_embd=emb_dim, rotary_percentage=1.0, parallel_residual=False, bias=True,
        norm_class_name="LayerNorm", mlp_class_name="GptNeoxMLP", gelu_approximate="tanh",
        intermediate_size=4 * emb_dim))
    model.apply(model._init_weights)
    model.lm_head.weight = model.transformer.wte.weight

    @torch.no_grad()
    def cached(ids, n):
        model.eval().max_seq_length = ids.shape[1] + n
        model.set_kv_cache(batch_size=1, dtype=model.lm_head.weight.dtype)
        new = generate(model, ids[0], ids.shape[1] + n, temperature=0.0, top_p=0.0)
        model.clear_kv_cache()
        return new[None]

    return Contestant(model, lambda ids, targets: chunked_cross_entropy(model(ids), targets),
                      {"cached": cached, "uncached": lambda ids, n: extend(model.eval(), ids, n)})


class PlainBlock(nn.Module):
    "Attend and think, each after a normalization and around a shortcut: one product makes queries, keys and values."

    def __init__(self, d, n_heads):
        super().__init__()
        self.n_heads = n_heads
        self.norm_a, self.norm_b = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.mix = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.widen, self.narrow = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x):
        b, t, d = x.shape
        q, k, v = (part.view(b, t, self.n_heads, -1).transpose(1, 2) for part in self.qkv(self.norm_a(x)).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.mix(y.transpose(1, 2).reshape(b, t, d))
        return x + self.narrow(F.gelu(self.widen(self.norm_b(x))))


class PlainGPT(nn.Module):
    "Write a GPT the way small training scripts do: clean, nothing tuned."

    def __init__(self, vocab_size, context_length, emb_dim, n_heads, n_layers):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocab_size, emb_dim), nn.Embedding(context_length, emb_dim)
        self.blocks = nn.ModuleList(PlainBlock(emb_dim, n_heads) for _ in range(n_layers))
        self.norm, self.head = nn.LayerNorm(emb_dim), nn.Linear(emb_dim, vocab_size, bias=False)
        self.head.weight = self.tokens.weight
        for name, weight in self.named_parameters():  # GPT-2's first weights
            if weight.ndim > 1:
                adds = name.endswith(("mix.weight", "narrow.weight"))
                nn.init.normal_(weight, std=0.02 / (2 * n_layers) ** 0.5 if adds else 0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, ids, last_only=False):
        x = self.tokens(ids) + self.places(torch.arange(ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x[:, -1:] if last_only else x))


def plain(*sizes):
    "Build plain code in nanoGPT's style: weight decay for matrices only, no cache."
    model = PlainGPT(*sizes)

    def groups():
        return [{"params": [w for w in model.parameters() if w.ndim > 1]},
                {"params": [w for w in model.parameters() if w.ndim < 2], "weight_decay": 0.0}]

    return Contestant(model, lambda ids, targets: token_loss(model(ids), targets),
                      {"uncached": lambda ids, n: extend(lambda i: model(i, last_only=True), ids, n)}, groups)


BUILDERS = {  # name in the tables: builder, package that it needs
    "ours": (ours, "llm_literate"),
    "nanoGPT-style code": (plain, "torch"),
    "transformers": (transformers, "transformers"),
    "llms-from-scratch": (book_package, "llms_from_scratch"),
    "llms-from-scratch, fast": (book_package_fast, "llms_from_scratch"),
    "litgpt": (litgpt, "litgpt"),
}
