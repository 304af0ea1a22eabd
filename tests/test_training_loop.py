"""Appendix D: the largest gradient of the book's model, before and after clipping."""

import json
import os
import subprocess
import sys

import pytest

from llm_literate.ledger import check

# In a process of its own, which gives its 2 GB back.
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
def test_largest_gradient_of_the_book():
    memory = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 2**40
    if memory < 2.5e9:
        pytest.skip("the gradient of 163 million parameters takes 2 GB of memory")
    done = subprocess.run([sys.executable, "-c", CLIPPED], capture_output=True, text=True, check=True)
    check("D.3-largest", json.loads(done.stdout))
