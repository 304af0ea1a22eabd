"""The small model on real text messages, beside logistic regression, on the same parts, for several seeds.

    LLM_LITERATE_DATA=folder/with/SMSSpamCollection python benchmarks/bench_sms.py --write llm_literate/assets/sms.json

Repeated messages are left out before anything else, so that no test message was seen in training. The small model was
pretrained on another world, with another vocabulary: many words of these messages are taken apart into letters.
"""

import argparse
import json
import platform
import statistics
import time
from datetime import date
from pathlib import Path

import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from llm_literate.classify import (
    LABELS,
    SpamDataset,
    balance,
    classifier_loss,
    load_messages,
    predict,
    report,
    split,
    to_classifier,
)
from llm_literate.data import fetch, make_loader
from llm_literate.model import CONFIGS, GPTModel, init_weights
from llm_literate.speed import has_bf16
from llm_literate.tokenizer import small_tokenizer
from llm_literate.train import train, warmup_cosine
from llm_literate.weights import load_pretrained


def linear(learn, test, most: int) -> list[int]:
    "Answer by logistic regression on words, or on words and pairs."
    counter = CountVectorizer(ngram_range=(1, most), token_pattern=r"\w+|[^\w\s]")
    model = make_pipeline(counter, LogisticRegression(max_iter=1000))
    model.fit(learn["text"], [LABELS.index(label) for label in learn["label"]])
    return model.predict(test["text"]).tolist()


def network(model, learn, test, seed: int, epochs: int, lr: float, length: int) -> list[int]:
    "Answer by a network that trains all its weights."
    tokenizer = small_tokenizer()
    torch.manual_seed(seed)
    to_classifier(model, train="all")
    loader = make_loader(SpamDataset(learn, tokenizer, length), 32, seed=seed)
    train(model, loader, loss_fn=classifier_loss, epochs=epochs, lr=lr, schedule=warmup_cosine,
          autocast=torch.bfloat16 if has_bf16() else None)
    data = SpamDataset(test, tokenizer, length)
    return predict(model, make_loader(data, 64, shuffle=False, drop_last=False))[0].argmax(-1).tolist()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--length", type=int, default=96, help="tokens to read of a message")
    parser.add_argument("--write", type=Path, help="keep the result in this file")
    args = parser.parse_args()
    sms = load_messages(fetch("SMSSpamCollection")).drop_duplicates("text")
    start, rows = time.perf_counter(), []
    for seed in range(args.seeds):
        learn, _, test = split(balance(sms, seed), random_state=seed)
        truth = [LABELS.index(label) for label in test["label"]]
        random = init_weights(GPTModel(CONFIGS["small"]), generator=torch.Generator().manual_seed(seed))
        settings = learn, test, seed, args.epochs, args.lr, args.length
        found = {"words": linear(learn, test, 1), "word pairs": linear(learn, test, 2),
                 "random": network(random, *settings), "pretrained": network(load_pretrained(), *settings)}
        rows.append({name: report(truth, answers) for name, answers in found.items()})
        scores = ", ".join(f"{name} {row['accuracy']:.3f}" for name, row in rows[-1].items())
        print(f"seed {seed}: {len(learn)} messages to learn from, {len(test)} to test on: {scores}", flush=True)
    scores = {name: [round(row[name]["accuracy"], 4) for row in rows] for name in rows[0]}
    for name, values in scores.items():
        print(f"{name:12} mean {statistics.mean(values):.3f}, {min(values):.3f} to {max(values):.3f}")
    tokens = SpamDataset(sms, small_tokenizer())
    result = {"date": date.today().isoformat(), "machine": platform.machine(), "torch": torch.__version__,
              "seconds": round(time.perf_counter() - start), "epochs": args.epochs, "lr": args.lr,
              "length": args.length, "train": len(learn), "test": len(test),
              "tokens_per_word": round(sum(map(len, tokens.rows)) / sum(len(t.split()) for t in sms["text"]), 2),
              "accuracy": scores}
    if args.write:
        args.write.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
