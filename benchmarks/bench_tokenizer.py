"""Train and encode beside tokenizers, tiktoken and a plain loop: one run, alternating, medians and ratios.

python benchmarks/bench_tokenizer.py [--text FILE] [--rounds N] [--naive]

"wall" is what one waits, on a machine that others use too; "CPU" is the work of all threads together.
"""

import argparse
import random
import statistics
import time
from collections import Counter
from pathlib import Path

import regex
import tiktoken
import tokenizers
from tokenizers import models, pre_tokenizers, trainers

from llm_literate.tokenizer import BYTES, ENDOFTEXT, GPT2_PATTERN, BPETokenizer, gpt2_tokenizer

SIZE, VOCABULARY = 1_000_000, 2048
PART = 50  # the plain loop trains on this part of the text; its time grows in proportion


def made_up_text(seed: int = 0) -> str:
    "Write text whose words, numbers and marks are spread as in English: 1 MB, some 14,000 different words."
    rng = random.Random(seed)
    onsets = ["", *"bcdfghlmnprstw", "st", "tr", "ch", "sh", "th", "pl", "gr"]
    syllables = [a + b + c for a in onsets for b in "aeiou" for c in ("", "", "n", "r", "s", "l", "t", "nd", "ck")]
    lengths = rng.choices([1, 2, 3, 4], [4, 8, 5, 2], k=16_000)
    words = ["".join(rng.choices(syllables, k=n)) for n in lengths]
    weights = [1 / (rank + 2.7) for rank in range(len(words))]  # Zipf's law with Mandelbrot's shift
    out, size, start = [], 0, True
    while size < SIZE:
        for word in rng.choices(words, weights, k=1000):
            if rng.random() < .01:
                word = str(rng.randrange(2000))
            piece = (word.capitalize() if start or rng.random() < .02 else word) + rng.choices(
                ["", ",", ".", "!", "?", "'s", ";", " (so)"], [82, 6, 8, 1, 1, 1, .5, .5])[0]
            start = piece[-1] in ".!?"
            piece += rng.choice(["\n\n", " ", " ", " ", " "]) if start else " "
            out.append(piece)
            size += len(piece)
    return "".join(out)[:SIZE]


def plain_training(text: str, n_merges: int) -> list:
    "Count every pair and rewrite every word for each merge: the loop of most tutorials."
    words = [[BYTES.index(b) for b in w.encode()] for w in regex.findall(GPT2_PATTERN, text)]
    merges = []
    for new in range(256, 256 + n_merges):
        counts = Counter()
        for word in words:
            counts.update(zip(word, word[1:], strict=False))
        if not counts:
            break
        a, b = max(counts, key=lambda p: (counts[p], -p[0], -p[1]))
        merges.append((a, b))
        for k, word in enumerate(words):
            if a in word:
                out, i = [], 0
                while i < len(word):
                    if word[i] == a and i + 1 < len(word) and word[i + 1] == b:
                        out.append(new)
                        i += 2
                    else:
                        out.append(word[i])
                        i += 1
                words[k] = out
    return merges


def best_pair(parts: list[bytes], ranks: dict[bytes, int]) -> tuple[int, int]:
    "Find the pair that was learned first: its rank and place."
    return min((ranks.get(a + b, 1 << 30), i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False)))


def plain_encoding(text: str, ranks: dict[bytes, int]) -> list[int]:
    "Search every word for its best pair again after each merge, and remember nothing."
    ids = []
    for word in regex.findall(GPT2_PATTERN, text):
        word = word.encode()
        parts = [word[i:i + 1] for i in range(len(word))]
        while len(parts) > 1:
            rank, i = best_pair(parts, ranks)
            if rank == 1 << 30:
                break
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        ids += [ranks[part] for part in parts]
    return ids


def peer_tokenizer(bpe: BPETokenizer) -> tokenizers.Tokenizer:
    "Give the library tokenizers the same vocabulary."
    letter = dict(zip(BYTES, [chr(b) for b in BYTES[:188]] + [chr(256 + i) for i in range(68)], strict=True))

    def spell(token):
        return "".join(letter[b] for b in token)

    def parts_of(token):  # the two earlier tokens that the merges of smaller rank leave
        parts = [token[i:i + 1] for i in range(len(token))]
        while len(parts) > 2:
            _, i = best_pair(parts, bpe.ranks)
            parts[i:i + 2] = [parts[i] + parts[i + 1]]
        return tuple(map(spell, parts))

    merges = [parts_of(token) for token in sorted(bpe.ranks, key=bpe.ranks.get) if len(token) > 1]
    peer = tokenizers.Tokenizer(models.BPE({spell(t): id for t, id in bpe.ranks.items()}, merges))
    peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return peer


def clock(work) -> tuple[float, float]:
    "Run once: seconds waited, seconds computed."
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def race(contestants: dict, rounds: int) -> dict[str, tuple[float, float]]:
    "Let all contestants run in turn, in another order each round; medians of wall and CPU seconds."
    times = {name: [] for name in contestants}
    for k in range(rounds):
        names = list(contestants)
        for name in names[k % len(names):] + names[:k % len(names)]:
            times[name].append(clock(contestants[name]))
    return {name: tuple(map(statistics.median, zip(*runs, strict=True))) for name, runs in times.items()}


def table(title: str, times: dict[str, tuple[float, float]], megabytes: float | None = None) -> None:
    "Print the times, and their ratios to ours, which stand first."
    (base_wall, base_cpu), *_ = times.values()
    print(f"\n{title:<56}{'wall':>8}{'CPU':>9}{'wall':>12}{'CPU':>8}" + ("     MB per CPU s" if megabytes else ""))
    for name, (wall, cpu) in times.items():
        speed = f"{megabytes / cpu:12.2f}" if megabytes else ""
        print(f"  {name:<52}{wall:8.3f} s{cpu:7.3f} s{wall / base_wall:9.2f} ×{cpu / base_cpu:6.2f} ×{speed}")


def train_peer(pieces: list[str]) -> tokenizers.Tokenizer:
    peer = tokenizers.Tokenizer(models.BPE())
    peer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    peer.train_from_iterator(pieces, trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=[ENDOFTEXT], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
    return peer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", type=Path, help="UTF-8 text to use instead of the small world and made-up words")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--naive", action="store_true", help="let the plain loop train on all the text, once")
    args = parser.parse_args()
    if args.text:
        texts = {str(args.text): args.text.read_text(encoding="utf-8")[:SIZE]}
    else:
        from llm_literate.small_world import corpus
        texts = {"small world": corpus(seed=0).replace(ENDOFTEXT, "\n")[:SIZE], "made-up words": made_up_text()}
    print(f"tokenizers {tokenizers.__version__}, tiktoken {tiktoken.__version__}, regex {regex.__version__}, "
          f"{args.rounds} rounds, medians")
    for name, text in texts.items():
        compare(name, text, args)


def compare(name: str, text: str, args) -> None:
    size, words = len(text.encode()) / 1e6, len(set(regex.findall(GPT2_PATTERN, text)))
    print(f"\n=== {name}: {size:.2f} MB, {words:,} different words, vocabulary {VOCABULARY:,} ===")
    lines = text.splitlines(keepends=True)
    times = race({
        "ours": lambda: BPETokenizer.train(text, VOCABULARY),
        "tokenizers, one string": lambda: train_peer([text]),
        "tokenizers, lines": lambda: train_peer(lines),
    }, args.rounds)
    part = text if args.naive else text[:len(text) // PART]
    factor = len(text) / len(part)
    label = "plain loop" + (f" (1/{PART} of the text, × {PART})" if factor > 1 else "")
    times[label] = tuple(s * factor for s in clock(lambda: plain_training(part, VOCABULARY - 257)))
    table("Training", times)

    trained = BPETokenizer.train(text, VOCABULARY)
    assert train_peer([text]).get_vocab_size() == trained.n_vocab
    gpt2 = gpt2_tokenizer()
    for title, bpe, fast in (("the trained vocabulary", trained, trained.to_tiktoken()),
                             ("GPT-2's vocabulary", BPETokenizer.from_tiktoken(gpt2), gpt2)):
        peer, few = peer_tokenizer(bpe), text[:len(text) // 10]
        assert bpe.encode(text) == fast.encode(text) == peer.encode(text).ids

        def anew(bpe=bpe):  # an empty memory of words
            bpe._words.clear()
            return bpe.encode(text)

        def again(bpe=bpe):
            return bpe.encode(text)

        times = race({
            "ours": anew,
            "ours, words known": again,
            "tiktoken": lambda fast=fast: fast.encode(text),
            "tokenizers": lambda peer=peer: peer.encode(text).ids,
            "tokenizers, encode_batch_fast of lines":
                lambda peer=peer: [e.ids for e in peer.encode_batch_fast(lines)],
        }, args.rounds)
        assert plain_encoding(few, bpe.ranks) == bpe.encode(few)
        plain = clock(lambda few=few, bpe=bpe: plain_encoding(few, bpe.ranks))
        times["plain search (1/10 of the text, × 10)"] = tuple(s * 10 for s in plain)
        table(f"Encoding with {title}", times, size)


if __name__ == "__main__":
    main()
