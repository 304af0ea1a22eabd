"""Models of transformers with the same weights as ours: made at random, here, without a download."""

import pytest
import torch

from llm_literate.model import GPTConfig, GPTModel, init_weights

NAMES = {  # ours: theirs; the matrices of their blocks are stored transposed
    "norm1.scale": "ln_1.weight", "norm1.shift": "ln_1.bias",
    "norm2.scale": "ln_2.weight", "norm2.shift": "ln_2.bias",
    "att.out_proj.weight": "attn.c_proj.weight", "att.out_proj.bias": "attn.c_proj.bias",
    "ff.layers.0.weight": "mlp.c_fc.weight", "ff.layers.0.bias": "mlp.c_fc.bias",
    "ff.layers.2.weight": "mlp.c_proj.weight", "ff.layers.2.bias": "mlp.c_proj.bias",
}


def gpt2_pair(seed=0, emb_std=0.2, **sizes):
    "Make a random GPT2LMHeadModel and our model with its weights, both in evaluation mode."
    transformers = pytest.importorskip("transformers", reason="parity with transformers needs the package")
    torch.manual_seed(seed)
    config = GPTConfig(qkv_bias=True, **sizes)
    theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(
        vocab_size=config.vocab_size, n_positions=config.context_length, n_embd=config.emb_dim,
        n_layer=config.n_layers, n_head=config.n_heads, tie_word_embeddings=config.tie_weights,
        bos_token_id=0, eos_token_id=None, pad_token_id=None)).eval()
    with torch.no_grad():
        for weight in theirs.parameters():  # as wide as those of a trained model, biases not 0
            weight.add_(torch.randn_like(weight) * (emb_std if weight.ndim == 2 else 0.1))
    theirs_state = theirs.state_dict()
    state = {"tok_emb.weight": theirs_state["transformer.wte.weight"],
             "pos_emb.weight": theirs_state["transformer.wpe.weight"],
             "final_norm.scale": theirs_state["transformer.ln_f.weight"],
             "final_norm.shift": theirs_state["transformer.ln_f.bias"],
             "out_head.weight": theirs_state["lm_head.weight"]}
    for i in range(config.n_layers):
        mine, their = f"trf_blocks.{i}.", f"transformer.h.{i}."
        for kind in ("weight", "bias"):
            thirds = theirs_state[f"{their}attn.c_attn.{kind}"].chunk(3, dim=-1)
            for name, third in zip(("W_query", "W_key", "W_value"), thirds, strict=True):
                state[f"{mine}att.{name}.{kind}"] = third.T if kind == "weight" else third
        for ours, name in NAMES.items():
            weight = theirs_state[their + name]
            state[mine + ours] = weight.T if weight.ndim == 2 else weight
    ours = GPTModel(config)
    ours.load_state_dict(state)
    return ours.eval(), theirs


def random_model(seed=0, std=0.3, **sizes):
    "Make a small model whose scores differ enough to tell its tokens apart."
    sizes = dict(vocab_size=19, context_length=8, emb_dim=8, n_heads=2, n_layers=2) | sizes
    model = GPTModel(GPTConfig(**sizes))
    return init_weights(model, std, emb_std=0.7, residual=1.0,
                        generator=torch.Generator().manual_seed(seed))
