"""Appendix D: the largest gradient of the book's model, before and after clipping."""

import pytest

from llm_literate.ledger import check

CLIPPED = """
import json, os
from pathlib import Path
import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader
from llm_literate.data import TokenWindows, flat_ids
from llm_literate.model import GPTConfig, GPTModel
from llm_literate.tokenizer import gpt2_tokenizer

text = Path(os.environ["LLM_LITERATE_DATA"], "the-verdict.txt").read_text(encoding="utf-8")
windows = TokenWindows(flat_ids(text[:int(0.9 * len(text))], gpt2_tokenizer()), 256, 256)
torch.manual_seed(123)
loader = DataLoader(windows, 2, shuffle=True, drop_last=True, collate_fn=tuple)
for _ in range(30):  # the book goes through the data twice, 15 epochs each, to draw its schedules
    *_, (inputs, targets) = loader
torch.manual_seed(123)
model = GPTModel(GPTConfig(context_length=256))
F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten()).backward()
found = [max(w.grad.max().item() for w in model.parameters())]
torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm=1.0)
print(json.dumps([*found, max(w.grad.max().item() for w in model.parameters())]))
"""


@pytest.mark.data
def test_largest_gradient_of_the_book(in_own_process):
    check("D.3-largest", in_own_process(CLIPPED, 2.5, "the gradient of 163 million parameters"))
