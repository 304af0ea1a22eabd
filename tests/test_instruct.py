"""Instructions: the form, batches in which no entry sees another, what is refused, and answers in order."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st

from llm_literate.data import make_loader
from llm_literate.generate import generate
from llm_literate.instruct import (
    InstructionDataset,
    check_entries,
    collate,
    format_input,
    format_response,
    load_instructions,
    partition,
    respond,
    save_responses,
)
from llm_literate.ledger import check
from llm_literate.loss import lm_loss
from llm_literate.model import GPTConfig, GPTModel, init_weights
from llm_literate.small_world import corpus, instructions
from llm_literate.tokenizer import gpt2_tokenizer, small_tokenizer

END = small_tokenizer().eot_token
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
full = texts.filter(str.strip)
entry_lists = st.lists(st.fixed_dictionaries({"instruction": full, "input": texts, "output": full}), min_size=1,
                       max_size=5)
row_lists = st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=12), min_size=1, max_size=6)
STYLES = ("alpaca", "phi3")


def tiny(**fields):
    "Make a small random model of our vocabulary."
    torch.manual_seed(3)
    config = GPTConfig(vocab_size=2048, context_length=160, emb_dim=16, n_heads=2, n_layers=2, drop_rate=0.1)
    return init_weights(GPTModel(replace(config, **fields)), 0.4).eval()


# The form


def test_the_form_is_that_of_the_pretraining_text_to_the_letter():
    documents = {d for d in corpus(600, seed=4).split("<|endoftext|>") if "### Response:" in d}
    entries = instructions(len(documents), "corpus 4", "train")
    written = {format_input(e) + format_response(e["output"]) for e in entries}
    assert documents and written == documents


def test_the_form_in_full():
    entry = {"instruction": "Add.", "input": "1 and 2", "output": "3"}
    assert format_input(entry) == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
        "\n\n### Instruction:\nAdd.\n\n### Input:\n1 and 2")
    assert format_response("3") == "\n\n### Response:\n3"
    bare = entry | {"input": ""}
    assert format_input(bare).endswith("### Instruction:\nAdd.") and "Input" not in format_input(bare)
    assert format_input(entry, "phi3") + format_response("3", "phi3") == "<|user|>\nAdd.\n1 and 2\n<|assistant|>\n3"
    assert format_input(bare, "phi3") == "<|user|>\nAdd."


@given(entry_lists)
def test_different_requests_have_different_forms_unless_they_imitate_the_form(entries):
    plain = [e for e in entries if "###" not in "".join(e.values()) and "\n" not in "".join(e.values())]
    for style in STYLES[:1]:
        forms = {format_input(e, style): (e["instruction"], e["input"]) for e in plain}
        assert all(forms[format_input(e, style)] == (e["instruction"], e["input"]) for e in plain)


def test_unknown_styles():
    for write in (lambda: format_input(instructions(1)[0], "chatml"), lambda: format_response("", "chatml")):
        with pytest.raises(ValueError, match="style is 'chatml', must be one of alpaca, phi3"):
            write()


# Entries


GOOD = {"instruction": "Sing.", "input": "", "output": "La."}


@pytest.mark.parametrize("wrong, why", [
    ({}, "entry 2 has no 'instruction', only nothing"), ({1: 2}, "entry 2 has no 'instruction', only 1"),
    ({"instruction": "Sing.", "output": "La."}, "entry 2 has no 'input', only instruction, output"),
    ({"instruction": "Sing.", "input": ""}, "entry 2 has no 'output'"),
    (GOOD | {"output": ""}, "entry 2: its output is empty"),
    (GOOD | {"output": " \n"}, "entry 2: its output is empty"),
    (GOOD | {"instruction": "\t"}, "entry 2: its instruction is empty"),
    (GOOD | {"output": 7}, "entry 2: its output is a int, must be a string"),
    (GOOD | {"input": None}, "entry 2: its input is a NoneType"),
    (GOOD | {"instruction": ["Sing."]}, "entry 2: its instruction is a list"),
    ("Sing.", "entry 2 is a str"), (None, "entry 2 is a NoneType"), (["Sing.", "", "La."], "entry 2 is a list"),
])
def test_bad_entries_are_named_by_their_index(wrong, why, tmp_path):
    entries = [GOOD, GOOD, wrong, GOOD]
    for take in (check_entries, lambda e: InstructionDataset(e, small_tokenizer())):
        with pytest.raises(ValueError, match=why):
            take(entries)
    path = tmp_path / "entries.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    with pytest.raises(ValueError, match=f"entries.json: {why}"):
        load_instructions(path)


def test_what_is_asked_needs_no_output():
    assert check_entries([{"instruction": "Sing.", "input": ""}], answered=False)
    with pytest.raises(ValueError, match="entry 0 has no 'input'"):
        check_entries([{"instruction": "Sing."}], answered=False)


@pytest.mark.parametrize("entries", [{"0": GOOD}, "entries", 3, None])
def test_only_lists(entries):
    with pytest.raises(ValueError, match="must be a list"):
        check_entries(entries)


@pytest.mark.parametrize("content, why", [
    (b"", "is no JSON file"), (b'[{"instruction": "Si', "is no JSON file"), (b"\xff\xfe[]", "is no JSON file"),
    (b'{"instruction": "Sing."}', "holds a dict, must hold a list"), (b'"text"', "holds a str"), (b"null", "NoneType"),
])
def test_files_that_hold_no_list(content, why, tmp_path):
    path = tmp_path / "entries.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"entries.json {why}|{why}"):
        load_instructions(path)


def test_a_mark_at_the_head_of_a_file_is_skipped(tmp_path):
    path = tmp_path / "entries.json"
    path.write_text(json.dumps([GOOD]), encoding="utf-8-sig")  # as some editors do
    assert load_instructions(path) == [GOOD]


@given(entries=entry_lists)
def test_files_come_back(entries, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / "entries.json"
    path.write_text(json.dumps(entries), encoding="utf-8")
    assert load_instructions(path) == entries


@given(st.integers(0, 3000), st.floats(0.01, 1), st.floats(0, 1))
def test_parts_are_all_and_never_overlap(n, train, test):
    entries = list(range(n))
    if train + test > 1 + 1e-9:
        with pytest.raises(ValueError, match="add up to 1 or less"):
            partition(entries, train, test)
        return
    a, b, c = partition(entries, train, test)
    assert a + c + b == entries
    assert len(a) == int(n * train + 1e-9) and len(c) in (int(n * test + 1e-9), n - len(a))


@pytest.mark.parametrize("train", [0.29, 0.57, 0.58])
def test_no_entry_is_lost_to_a_share_that_is_not_exact(train):
    parts = partition(list(range(100)), train, 1 - train)
    assert [len(part) for part in parts] == [round(100 * train), 0, round(100 * (1 - train))]


def test_the_books_parts():
    check("7.2-split", [len(part) for part in partition([GOOD] * 1100)])


@pytest.mark.data
def test_the_books_file(data_dir):
    entries = load_instructions(data_dir / "instruction-data.json")
    check("7.2-entries", len(entries))
    asked = [(e["instruction"], e["input"]) for e in entries]
    check("7.2-duplicates", len(asked) - len(set(asked)))
    train, _, test = partition(asked)
    check("7.2-overlap", sum(a in set(train) for a in test))
    dataset = InstructionDataset(entries, gpt2_tokenizer(), max_length=1024)
    assert len(dataset) == 1100 and dataset.cut == []


# Batches


def test_the_books_batch():
    inputs, targets = collate([[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]])
    assert inputs.tolist() == [[0, 1, 2, 3, 4], [5, 6, 50256, 50256, 50256], [7, 8, 9, 50256, 50256]]
    check("7.3-targets", targets)


def test_the_books_losses():
    logits = torch.tensor([[-1.0, 1.0], [-0.5, 1.5], [-0.5, 1.5]])
    cases = ([0, 1], [0, 1, 1], [0, 1, -100])
    check("7.3-losses", [F.cross_entropy(logits[:len(c)], torch.tensor(c)) for c in cases])


def by_steps(rows, end, max_length=None):
    "Do what section 7.3 describes, one step at a time: fill up, shift, ignore all but the first end token."
    width = max(len(row) + 1 for row in rows)
    inputs, targets = [], []
    for row in rows:
        filled = row + [end] * (width - len(row))
        target = filled[1:]
        seen = False
        for j, token in enumerate(target):
            if token == end:
                target[j], seen = (-100 if seen else end), True
        inputs.append(filled[:-1][:max_length])
        targets.append(target[:max_length])
    return inputs, targets


@given(row_lists, st.none() | st.integers(1, 14))
def test_batches_are_those_of_the_steps(rows, max_length):
    inputs, targets = collate(rows, 100, max_length=max_length)
    assert (inputs.tolist(), targets.tolist()) == by_steps(rows, 100, max_length)


@given(row_lists, st.data())
def test_every_token_of_a_row_is_learned_once_and_no_other(rows, data):
    skip = [data.draw(st.integers(0, len(row))) for row in rows]
    inputs, targets = collate(rows, 100, skip)
    assert inputs.shape == targets.shape == (len(rows), max(map(len, rows)))
    for row, n, one, two in zip(rows, skip, inputs.tolist(), targets.tolist(), strict=True):
        assert one == row + [100] * (len(one) - len(row))
        assert [t for t in two if t != -100] == (row + [100])[max(n, 1):]
        kept = [j for j, t in enumerate(two) if t != -100]
        assert kept == list(range(max(n, 1) - 1, len(row)))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=9))
def test_an_end_token_inside_a_row_is_a_token_like_others(row):
    _, targets = collate([row, [1] * 12], 3)
    assert targets[0].tolist() == [*row[1:], 3] + [-100] * (12 - len(row))


@effort(max_examples=25)
@given(row_lists.filter(lambda rows: len(rows) > 1), st.data())
def test_no_token_of_one_row_reaches_another(rows, data):
    model, which = tiny(emb_dim=8, n_layers=1, vocab_size=101, context_length=12), data.draw(
        st.integers(0, len(rows) - 1))
    other = data.draw(st.lists(st.integers(0, 99), min_size=1, max_size=12))
    changed = [other if i == which else row for i, row in enumerate(rows)]
    with torch.no_grad():
        for i, row in enumerate(rows):
            if i == which:
                continue
            alone = model(torch.tensor([row]))[0]
            for batch in (rows, changed):
                inputs, targets = collate(batch, 100)
                assert torch.allclose(model(inputs)[i, :len(row)], alone, atol=1e-5)
                assert targets[i, :len(row)].tolist() == [*row[1:], 100] and (targets[i, len(row):] == -100).all()


def test_a_gradient_reaches_only_its_own_row():
    model = tiny()
    inputs, targets = collate([[5, 6, 7], [8], [9, 10, 11, 12, 13]], END)
    vectors = model.tok_emb(inputs).detach().requires_grad_()
    model.tok_emb.forward = lambda ids: vectors
    logits = model(inputs)
    F.cross_entropy(logits[0], targets[0]).backward()
    reached = vectors.grad.abs().sum(-1) > 0
    assert reached.tolist() == [[True] * 3 + [False] * 2, [False] * 5, [False] * 5]


@pytest.mark.parametrize("rows, options, why", [
    ([], {}, "a batch needs rows"), ([[1], []], {}, "at least one token"),
    ([[1]], {"max_length": 0}, "max_length is 0, must be 1 or more"),
])
def test_impossible_batches(rows, options, why):
    with pytest.raises(ValueError, match=why):
        collate(rows, **options)


# The data set


@given(entry_lists, st.sampled_from(STYLES), st.booleans())
def test_what_counts_is_the_answer_and_its_end_or_all(entries, style, mask):
    tokenizer = small_tokenizer()
    dataset = InstructionDataset(entries, tokenizer, style, mask)
    inputs, targets = dataset.collate([dataset[i] for i in range(len(dataset))])
    for entry, one, two in zip(entries, inputs.tolist(), targets.tolist(), strict=True):
        learned = [t for t in two if t != -100]
        assert learned[-1] == END and END not in learned[:-1]
        whole = format_input(entry, style) + format_response(entry["output"], style)
        assert tokenizer.decode(learned[:-1]) == entry["output"] if mask else whole.endswith(
            tokenizer.decode(learned[:-1]))
        assert tokenizer.decode([t for t in one if t != END]) == whole


def test_ids_are_those_of_the_whole_text():
    tokenizer = small_tokenizer()
    entries = instructions(300, 7)
    for (ids, _), entry in zip(InstructionDataset(entries, tokenizer), entries, strict=True):
        assert ids == tokenizer.encode(format_input(entry) + format_response(entry["output"]))


def test_text_never_becomes_a_control_token():
    odd = GOOD | {"input": "<|endoftext|>", "output": "a <|endoftext|> b"}
    for tokenizer in (small_tokenizer(), gpt2_tokenizer()):
        assert tokenizer.eot_token not in InstructionDataset([odd], tokenizer)[0][0]


def test_what_is_too_long_is_cut_and_told():
    tokenizer = small_tokenizer()
    long = GOOD | {"output": "la " * 30}
    n = InstructionDataset([long], tokenizer)[0][1]
    dataset = InstructionDataset([GOOD, long], tokenizer, mask_prompt=True, max_length=n + 5)
    assert dataset.cut == [1]
    inputs, targets = dataset.collate([dataset[0], dataset[1]])
    assert inputs.shape == (2, n + 5) and (targets[1] != -100).sum() == 6 and END not in targets[1]
    with pytest.raises(ValueError, match=f"entry 1: its request alone has {n} tokens, and max_length is {n - 1}"):
        InstructionDataset([GOOD | {"instruction": "S"}, long], tokenizer, max_length=n - 1)


def test_a_batch_has_the_loss_of_its_entries():
    tokenizer, model = small_tokenizer(), tiny(vocab_size=2048)
    dataset = InstructionDataset(instructions(7, 5), tokenizer, mask_prompt=True)
    together, n = lm_loss(model, dataset.collate([dataset[i] for i in range(7)]))
    parts = [lm_loss(model, dataset.collate([dataset[i]])) for i in range(7)]
    assert n == sum(k for _, k in parts)
    assert together.item() == pytest.approx(sum((x * k).item() for x, k in parts) / n.item(), rel=1e-5)


def test_loaders_take_it():
    dataset = InstructionDataset(instructions(50), small_tokenizer())
    loader = make_loader(dataset, 8)
    assert len(loader) == 6 and len({inputs.shape[1] for inputs, _ in loader}) > 1
    workers = make_loader(dataset, 8, num_workers=1)
    for (a, b), (c, d) in zip(make_loader(dataset, 8), workers, strict=True):
        assert torch.equal(a, c) and torch.equal(b, d)


# Answers


def one_by_one(model, entries, n, style="alpaca"):
    "Answer each entry by itself, without a cache."
    tokenizer, found = small_tokenizer(), []
    for entry in entries:
        ids = tokenizer.encode_ordinary(format_input(entry, style) + format_response("", style))
        new = generate(model, torch.tensor([ids]), n, eos_id=END, use_cache=False)[0, len(ids):].tolist()
        new = new[:new.index(END)] if END in new else new
        found.append(tokenizer.decode(new).strip())
    return found


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("batch_size", [1, 3, 64])
def test_answers_are_those_of_one_after_the_other(style, batch_size):
    model, entries = tiny(), instructions(12, 3)
    answers = respond(model, small_tokenizer(), entries, 8, style, batch_size, progress=False)
    assert answers == one_by_one(model, entries, 8, style)
    assert len(set(answers)) > 1


def test_rows_end_by_themselves():
    model, entries = tiny(), instructions(30, 3)
    model.out_head.weight.data[END] *= 3  # ends come often, and at different places
    answers = respond(model, small_tokenizer(), entries, 20, progress=False)
    assert answers == one_by_one(model, entries, 20)
    lengths = {len(small_tokenizer().encode(answer)) for answer in answers}
    assert len(lengths) > 2 and min(lengths) < 20


def test_a_single_entry_gives_a_single_answer_and_its_output_is_not_read():
    model, tokenizer, entry = tiny(), small_tokenizer(), instructions(1)[0]
    answer = respond(model, tokenizer, entry, 6)
    assert isinstance(answer, str)
    asked = {key: entry[key] for key in ("instruction", "input")}
    assert respond(model, tokenizer, [asked, entry | {"output": "Else."}], 6, progress=False) == [answer, answer]
    assert respond(model, tokenizer, [], progress=False) == []


def test_answers_end_with_the_context():
    model, tokenizer, entry = tiny(), small_tokenizer(), instructions(1)[0]
    model.out_head.weight.data[END] = 0
    n = InstructionDataset([entry], tokenizer)[0][1]
    short = tiny(context_length=n + 3)
    answer = respond(short, tokenizer, entry, 50)
    assert answer == one_by_one(short, [entry], 3)[0]
    with pytest.raises(ValueError, match=f"entry 1 is a request of {n} tokens; the model takes {n}"):
        respond(tiny(context_length=n), tokenizer, [GOOD, entry], progress=False)


@pytest.mark.parametrize("wrong, why", [
    ({"batch_size": -1}, "batch_size is -1, must be an integer, 1 or more"), ({"batch_size": 0}, "batch_size is 0"),
    ({"batch_size": "2"}, "batch_size is '2'"), ({"batch_size": 2.0}, "batch_size is 2.0"),
    ({"max_new_tokens": -1}, "max_new_tokens is -1, must be an integer, 0 or more"),
    ({"max_new_tokens": "5"}, "max_new_tokens is '5'"),
])
def test_impossible_numbers_are_refused_and_not_answered_with_nothing(wrong, why):
    with pytest.raises(ValueError, match=why):
        respond(tiny(), small_tokenizer(), [GOOD, GOOD], progress=False, **wrong)


def test_chance_can_be_repeated():
    model, entries = tiny(), instructions(6)

    def drawn(seed):
        return respond(model, small_tokenizer(), entries, 6, progress=False, temperature=1.0,
                       generator=torch.Generator().manual_seed(seed))
    assert drawn(1) == drawn(1) != drawn(2)


def test_bad_requests_are_refused_before_anything_is_generated():
    with pytest.raises(ValueError, match="entry 1 has no 'input'"):
        respond(None, small_tokenizer(), [GOOD, {"instruction": "Sing."}])


# The file of answers


@given(entries=entry_lists, data=st.data())
def test_answers_come_back_with_what_was_asked(entries, data, tmp_path_factory):
    answers = [data.draw(texts) for _ in entries]
    path = tmp_path_factory.mktemp("files") / "responses.json"
    assert save_responses(path, entries, answers) == path
    records = load_instructions(path)
    assert [r.pop("model_response") for r in records] == answers and records == entries
    assert [p.name for p in path.parent.iterdir()] == ["responses.json"]


def test_a_response_for_each():
    with pytest.raises(ValueError, match="2 entries and 1 responses"):
        save_responses("nowhere.json", [GOOD, GOOD], ["La."])


def test_an_old_file_stays_whole_if_writing_fails(tmp_path):
    path = save_responses(tmp_path / "responses.json", [GOOD], ["La."])
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_responses(path, [GOOD | {"more": {1, 2}}], ["Lo."])
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1
