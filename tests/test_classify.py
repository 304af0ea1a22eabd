"""The classifier's parts: data that is refused or read, padding that cannot matter, intervals that agree with scipy's,
a head that leaves the rest alone, verdicts, and the command."""

import io
import math
import warnings
from dataclasses import replace

import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from llm_literate import classify as module
from llm_literate.classify import (
    LABELS,
    SpamDataset,
    Verdict,
    accuracy,
    balance,
    classifier_loss,
    classify,
    command,
    load_messages,
    predict,
    report,
    small_classifier,
    split,
    to_classifier,
    wilson,
)
from llm_literate.data import make_loader
from llm_literate.loss import evaluate
from llm_literate.model import GPTConfig, GPTModel, init_weights
from llm_literate.small_world import messages
from llm_literate.tokenizer import gpt2_tokenizer, small_tokenizer
from llm_literate.train import train
from llm_literate.weights import load_model, load_pretrained, save_model

TINY = GPTConfig(vocab_size=2048, context_length=32, emb_dim=16, n_heads=2, n_layers=3, drop_rate=0.0,
                 tie_weights=True)
ROWS = [("ham", "See you at the mill."), ("spam", "You have won a golden purse, hurry!"), ("ham", "Yes."),
        ("spam", "Free flour for everybody!")]
TABLE = pd.DataFrame(ROWS, columns=["label", "text"])


@pytest.fixture(scope="module")
def tokenizer():
    return small_tokenizer()


def tiny(parts="all", seed=0, config=TINY, classes=2):
    random = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    return to_classifier(init_weights(GPTModel(config), 0.3, generator=random), classes, parts).eval()


# Messages


def test_messages_are_read_alike_from_every_source(tmp_path):
    TABLE.to_csv(tmp_path / "a.csv", index=False)
    lines = "".join(f"{label}\t{text}\n" for label, text in ROWS)
    (tmp_path / "SMSSpamCollection").write_text(lines, encoding="utf-8")
    numbers = TABLE.assign(label=[0, 1, 0, 1]).rename(columns={"label": "Label", "text": "Text"})
    sources = [TABLE, TABLE.to_dict("records"), tmp_path / "a.csv", str(tmp_path / "SMSSpamCollection"), numbers]
    for source in sources:
        found = load_messages(source)
        assert found[["label", "text"]].values.tolist() == [list(row) for row in ROWS]


def test_a_mark_of_byte_order_is_no_part_of_a_column(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nHi,ham\n", encoding="utf-8-sig")
    assert load_messages(tmp_path / "a.csv")["text"].tolist() == ["Hi"]


def test_texts_that_look_like_missing_numbers_stay_texts(tmp_path):
    (tmp_path / "a.csv").write_text("text,label\nNA,ham\nnull,spam\n12,ham\n")
    assert load_messages(tmp_path / "a.csv")["text"].tolist() == ["NA", "null", "12"]


def test_a_mark_swallows_lines_only_if_marks_are_read(tmp_path):
    (tmp_path / "sms").write_text('ham\t"one\nspam\ttwo\nham\tthree" four\nham\tfive\n')
    assert len(load_messages(tmp_path / "sms")) == 2
    assert load_messages(tmp_path / "sms", quoted=False)["text"].tolist() == ['"one', "two", 'three" four', "five"]


@pytest.mark.parametrize("content, told", [
    ("", "empty"),
    ("\n\n", "empty"),
    ("text,label\n", "not one message"),
    ("text,sort\nHi,ham\n", "no column 'label'; the columns are 'text', 'sort'"),
    ("label,words\nham,Hi\n", "no column 'text'"),
    ("text,label\nHi,ham\nHo,harm\n", "message 1 has the label 'harm'"),
    ("text,label\nHi,ham\n,spam\n", "message 1 has no text"),
    ("text,label\nHi,ham\n  ,spam\n", "message 1 has no text"),
    ("text,label\nHi there, call me,ham\n", "more fields than columns; a text with a comma"),
    ("label,text\nham,Hi there, call me\n", "more fields than columns"),
    ("text,label,Text\nHi,ham,Ho\n", "more than one column 'text'"),
])
def test_files_with_faults_are_refused(tmp_path, content, told):
    path = tmp_path / "a.csv"
    path.write_text(content)
    with pytest.raises(ValueError, match=told):
        load_messages(path)
    with pytest.raises(ValueError, match=told):
        SpamDataset(path, small_tokenizer())


@pytest.mark.parametrize("lines", [1, 9999])  # the byte is found when looking at the file, and when reading it
def test_files_in_another_encoding_are_named(tmp_path, lines):
    path = tmp_path / "a.csv"
    path.write_bytes(b"text,label\n" + b"Hi,ham\n" * lines + "h\u00e9llo,ham\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"a\.csv is not in UTF-8; save it as UTF-8"):
        load_messages(path)


def test_labels_of_a_table_with_gaps_are_numbers_all_the_same():
    rows = [{"text": "Hi", "label": 0.0}, {"text": "Ho", "label": "1.0"}]
    assert load_messages(rows)["label"].tolist() == ["ham", "spam"]


@pytest.mark.parametrize("text", [None, math.nan, 3])
def test_texts_that_are_none_are_refused(text):
    with pytest.raises(ValueError, match="message 0 has no text"):
        load_messages([{"text": text, "label": "ham"}])


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 9))
def test_balance_keeps_equally_many(ham, spam, seed):
    table = pd.DataFrame({"label": ["ham"] * ham + ["spam"] * spam, "text": [f"t{i}" for i in range(ham + spam)]})
    found = balance(table, seed)
    assert found["label"].value_counts().to_dict() == {"ham": min(ham, spam), "spam": min(ham, spam)}
    assert found["text"].is_unique and balance(table, seed).equals(found)


def test_balance_needs_both_classes():
    with pytest.raises(ValueError, match="one of the two classes"):
        balance(TABLE[TABLE["label"] == "ham"])


@given(st.integers(0, 300), st.floats(0.05, 0.9), st.floats(0, 0.1), st.integers(0, 9))
def test_split_loses_and_doubles_nothing(n, first, second, seed):
    table = pd.DataFrame({"text": [f"t{i}" for i in range(n)]})
    parts = split(table, first, second, seed)
    assert sorted(text for part in parts for text in part["text"]) == sorted(table["text"])
    for part, share in zip(parts, (first, second), strict=False):
        assert n * share - 1 < len(part) <= n * share + 1e-6


@pytest.mark.parametrize("first, second", [(29, 71), (57, 43), (55, 29)])
def test_split_cuts_hundredths_exactly(first, second):
    found = split(pd.DataFrame({"text": range(100)}), first / 100, second / 100)
    assert [len(part) for part in found] == [first, second, 100 - first - second]


@pytest.mark.parametrize("shares", [(0, 0.1), (0.9, 0.2), (0.5, -0.1), (math.nan, 0.1), (0.5, math.nan)])
def test_split_refuses_impossible_shares(shares):
    with pytest.raises(ValueError, match="shares"):
        split(TABLE, *shares)


# Batches


def test_places_point_where_they_should(tokenizer):
    for read in "last", "end", "first":
        data = SpamDataset(TABLE, tokenizer, read=read)
        ids, places, labels = data.__getitems__([0, 1, 2, 3])
        assert labels.tolist() == [0, 1, 0, 1]
        for row, place, own in zip(ids, places, data.rows, strict=True):
            assert row.tolist() == own + [tokenizer.eot_token] * (ids.shape[1] - len(own))
            assert place == {"last": len(own) - 1, "end": data.max_length - 1, "first": 0}[read]


def test_one_sample_is_filled_up_to_the_longest(tokenizer):
    data = SpamDataset(TABLE, tokenizer)
    ids, place, label = data[2]
    assert len(ids) == data.max_length == max(map(len, data.rows)) and label == 0
    assert tokenizer.decode(ids[:place + 1].tolist()) == "Yes."


def test_batches_are_filled_only_up_to_their_own_longest(tokenizer):
    data = SpamDataset(TABLE, tokenizer)
    assert data.__getitems__([2])[0].shape[1] == len(data.rows[2]) < data.max_length
    assert SpamDataset(TABLE, tokenizer, read="end").__getitems__([2])[0].shape[1] == data.max_length


def test_what_is_cut_is_counted(tokenizer):
    data = SpamDataset(TABLE, tokenizer, max_length=4)
    assert data.truncated == sum(len(tokenizer.encode(text)) > 4 for text in TABLE["text"]) > 0
    assert SpamDataset(TABLE, tokenizer).truncated == 0
    assert max(map(len, data.rows)) == 4


def test_a_special_token_in_a_message_is_plain_text(tokenizer):
    data = SpamDataset([{"text": "<|endoftext|>", "label": "spam"}], tokenizer)
    assert tokenizer.eot_token not in data.rows[0]


@pytest.mark.parametrize("options, told", [
    ({"read": "middle"}, "read is 'middle'"), ({"max_length": 0}, "max_length is 0"),
    ({"max_length": 2.5}, "max_length is 2.5"), ({"max_length": "3"}, "max_length is '3'"),
])
def test_datasets_refuse_impossible_settings(tokenizer, options, told):
    with pytest.raises(ValueError, match=told):
        SpamDataset(TABLE, tokenizer, **options)


# The model


def test_padding_cannot_reach_the_last_real_token():
    model, random = tiny(), torch.Generator().manual_seed(1)
    rows = [torch.randint(2047, (n,), generator=random).tolist() for n in (1, 5, 9, 20)]
    alone = torch.stack([model(torch.tensor([row]))[0, -1] for row in rows])
    for _ in range(5):
        ids = torch.randint(2048, (4, 32), generator=random) # any filler at all
        for i, row in enumerate(rows):
            ids[i, :len(row)] = torch.tensor(row)
        found = module._scores(model, ids, torch.tensor([len(row) - 1 for row in rows]))
        torch.testing.assert_close(found, alone, rtol=1e-4, atol=1e-5)


def test_the_end_of_a_padded_row_does_depend_on_the_padding():
    model, row = tiny(), [5, 6, 7]
    ends = [model(torch.tensor([row + [2047] * n]))[0, -1] for n in (1, 20)]
    assert not torch.allclose(*ends, atol=1e-3)


@pytest.mark.parametrize("parts, trained", [
    ("all", None),
    (("head",), ("out_head.",)),
    ("final_norm", ("final_norm.",)),
    (("head", "last_block", "final_norm"), ("out_head.", "trf_blocks.2.", "final_norm.")),
])
def test_only_the_chosen_parts_train(parts, trained):
    model = tiny(parts)
    names = {name for name, weight in model.named_parameters() if weight.requires_grad}
    every = {name for name, _ in model.named_parameters()}
    assert names == (every if trained is None else {name for name in every if name.startswith(trained)})


def test_frozen_parts_stay_as_they_are_to_the_bit(tokenizer):
    model = tiny(("head", "last_block", "final_norm"))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    train(model, make_loader(SpamDataset(TABLE, tokenizer), 4), loss_fn=classifier_loss, max_steps=3, progress=False)
    changed = {name for name, weight in model.state_dict().items() if not torch.equal(weight, before[name])}
    assert changed and all(name.startswith(("out_head.", "trf_blocks.2.", "final_norm.")) for name in changed)


def test_a_tied_embedding_is_left_alone():
    model = GPTModel(TINY)
    words = model.tok_emb.weight
    to_classifier(model, 5)
    assert model.tok_emb.weight is words and tuple(words.shape) == (2048, 16)
    assert model.out_head.weight is not words and model.out_head.weight.shape == (5, 16)
    assert not model.config.tie_weights
    assert not words.requires_grad and model.out_head.weight.requires_grad


def test_a_second_head_replaces_the_first():
    model = to_classifier(tiny(), 3, "head")
    assert model.out_head.out_features == 3
    assert sum(w.numel() for w in model.parameters() if w.requires_grad) == 3 * 16 + 3


def test_the_head_has_the_type_of_the_model():
    assert to_classifier(GPTModel(TINY).bfloat16()).out_head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize("options, told", [
    ({"num_classes": 1}, "num_classes is 1"), ({"num_classes": 2.5}, "num_classes is 2.5"),
    ({"train": "heads"}, "'heads'"), ({"train": ("head", "first_block")}, "'first_block'"),
])
def test_impossible_classifiers_are_refused(options, told):
    model = GPTModel(TINY)
    head = model.out_head
    with pytest.raises(ValueError, match=told):
        to_classifier(model, **options)
    assert model.out_head is head and all(weight.requires_grad for weight in model.parameters())


def test_the_loss_is_the_mean_over_messages(tokenizer):
    model, data = tiny(), SpamDataset(TABLE, tokenizer)
    loss, n = classifier_loss(model, data.__getitems__([0, 1, 2, 3]))
    ones = [-torch.log_softmax(model(torch.tensor([row]))[0, -1], -1)[label]
            for row, label in zip(data.rows, data.labels, strict=True)]
    torch.testing.assert_close(loss, torch.stack(ones).mean())
    assert n == 4
    parts = make_loader(data, 3, shuffle=False, drop_last=False)
    assert evaluate(model, parts, classifier_loss) == pytest.approx(loss.item(), abs=1e-5)


def test_training_learns_messages_by_heart(tokenizer):
    model, data = tiny(), SpamDataset(messages(24, 1, "train"), tokenizer, max_length=32)
    loader = make_loader(data, 8)
    train(model, loader, loss_fn=classifier_loss, epochs=60, lr=3e-3, progress=False)
    assert accuracy(model, loader) == 1


def test_predictions_follow_the_order_of_the_loader(tokenizer):
    model, data = tiny(), SpamDataset(messages(20, 1, "train"), tokenizer, max_length=32)
    model.train()
    chances, labels = predict(model, make_loader(data, 6, shuffle=False, drop_last=False))
    assert labels.tolist() == data.labels and model.training
    torch.testing.assert_close(chances.sum(1), torch.ones(20))
    assert accuracy(model, make_loader(data, 7, shuffle=False, drop_last=False)) == \
        pytest.approx((chances.argmax(1) == labels).float().mean().item())
    with pytest.raises(ValueError, match="no batch"):
        predict(model, [])


# Counting


@given(st.integers(0, 500), st.integers(1, 500))
def test_wilson_agrees_with_scipy(right, n):
    from scipy.stats import binomtest, norm
    right = min(right, n)
    theirs = binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert wilson(right, n, norm.ppf(0.975)) == pytest.approx((theirs.low, theirs.high), abs=1e-9)
    low, high = wilson(right, n)
    assert 0 <= low <= right / n + 1e-12 and right / n - 1e-12 <= high <= 1


@pytest.mark.parametrize("right, n", [(-1, 3), (4, 3), (0, 0)])
def test_wilson_refuses_impossible_counts(right, n):
    with pytest.raises(ValueError, match=f"{right} of {n}"):
        wilson(right, n)


@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=60))
def test_report_agrees_with_scikit_learn(pairs):
    from sklearn.metrics import accuracy_score, precision_score, recall_score
    labels, answers = (list(x) for x in zip(*pairs, strict=True))
    found = report(torch.tensor(labels), answers)
    assert found["accuracy"] == pytest.approx(accuracy_score(labels, answers))
    for name, score in (("precision", precision_score), ("recall", recall_score)):
        theirs = score(labels, answers, zero_division=math.nan)
        assert found[name] == pytest.approx(theirs, nan_ok=True)
    assert found["low"] <= found["accuracy"] <= found["high"]


@pytest.mark.parametrize("labels, answers, told", [
    ([0, 1], [0], "2 labels and 1 answers"),
    ([0, 1, 1], [0.2, 0.9, 0.8], "0.2 is no class"),
    ([0, 1], [0, 2], "2 is no class"),
    ([-1], [1], "-1 is no class"),
    (["ham"], ["spam"], "'ham' is no class"),
    ([0, 1], torch.tensor([[0.5, 0.5], [0.25, 0.75]]), r"\[0.5, 0.5\] is no class"),
])
def test_report_refuses_what_is_no_class(labels, answers, told):
    with pytest.raises(ValueError, match=told):
        report(labels, answers)


def test_report_reads_classes_of_every_kind():
    expected = report([1, 0, 1], [1, 1, 0])
    for kind in (torch.tensor, pd.Series, iter, lambda labels: [bool(x) for x in labels]):
        assert report(kind([1, 0, 1]), kind([1, 1, 0])) == expected


# Verdicts


def test_verdicts_are_the_same_alone_and_in_company(tokenizer):
    model = tiny()
    texts = [m["text"] for m in messages(40, 3, "test")] + ["Yes."]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        together = classify(texts, model, tokenizer, batch_size=7)
        for text, verdict in zip(texts, together, strict=True):
            alone = classify(text, model, tokenizer)
            assert isinstance(alone, Verdict) and alone.label == verdict.label
            assert alone.probabilities == pytest.approx(verdict.probabilities, abs=1e-5)
            assert verdict.label == max(verdict.probabilities, key=verdict.probabilities.get)
            assert sum(verdict.probabilities.values()) == pytest.approx(1, abs=1e-5)


def test_long_texts_are_cut_and_told(tokenizer):
    model, text = tiny(), "See you at the mill. " * 50
    with pytest.warns(UserWarning, match="1 of 2 texts are longer than 32 tokens"):
        short, long = classify(["Yes.", text], model, tokenizer)
    assert long.tokens == len(tokenizer.encode(text)) and long.read == 32 and "read 32 of" in str(long)
    assert short.tokens == short.read and "read" not in str(short)
    start = tokenizer.decode(tokenizer.encode(text)[:32])
    assert classify(start, model, tokenizer).probabilities == pytest.approx(long.probabilities, abs=1e-5)


def test_texts_that_fit_are_not_warned_of(tokenizer):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert classify(["Yes.", "No."], tiny(), tokenizer, max_length=8)[1].tokens == 2


@pytest.mark.parametrize("texts", ["", "  \n", ["Yes.", ""], ["Yes.", None]])
def test_texts_with_nothing_in_them_are_refused(tokenizer, texts):
    with pytest.raises(ValueError, match="something to read"):
        classify(texts, tiny(), tokenizer)


def test_no_texts_no_verdicts(tokenizer):
    assert classify([], tiny(), tokenizer) == []


def test_models_and_labels_that_do_not_fit_are_refused(tokenizer):
    with pytest.raises(ValueError, match="2048 outputs for 2 labels"):
        classify("Yes.", GPTModel(TINY), tokenizer)
    with pytest.raises(ValueError, match="2 outputs for 3 labels"):
        classify("Yes.", tiny(), tokenizer, labels=("a", "b", "c"))
    with pytest.raises(ValueError, match="do not belong together"):
        classify("Yes.", tiny(config=replace(TINY, vocab_size=2100)), tokenizer)
    with pytest.raises(ValueError, match="max_length is 33"):
        classify("Yes.", tiny(), tokenizer, max_length=33)


@pytest.mark.parametrize("options, told", [
    ({"batch_size": -1}, "batch_size is -1"), ({"batch_size": 0}, "batch_size is 0"),
    ({"batch_size": "2"}, "batch_size is '2'"),
    ({"max_length": 2.5}, "max_length is 2.5"), ({"max_length": "3"}, "max_length is '3'"),
    ({"max_length": 0}, "max_length is 0"),
    ({"labels": ("a", "a")}, "must be a list of different words"), ({"labels": {"ham": 0, "spam": 1}}, "are {'ham'"),
    ({"labels": "hs"}, "are 'hs'"), ({"labels": None}, "are None"), ({"labels": 5}, "are 5"),
])
def test_impossible_arguments_are_refused(tokenizer, options, told):
    with pytest.raises(ValueError, match=told):
        classify(["Yes.", "No."], tiny(), tokenizer, **options)


def test_a_damaged_model_has_no_answer(tokenizer):
    model = tiny()
    model.tok_emb.weight.data.fill_(math.nan)
    with pytest.raises(ValueError, match="scores are NaN"):
        classify("Yes.", model, tokenizer)
    with pytest.raises(ValueError, match="scores are NaN"):
        accuracy(model, make_loader(SpamDataset(TABLE, tokenizer), 2))


def test_the_mode_of_the_model_is_left_alone(tokenizer):
    model = tiny().train()
    classify("Yes.", model, tokenizer)
    assert model.training


def test_a_saved_classifier_answers_alike(tokenizer, tmp_path):
    model, text = tiny(), "You have won a golden purse!"
    save_model(model, tmp_path / "a", about={"labels": LABELS})
    assert classify(text, load_model(tmp_path / "a"), tokenizer) == classify(text, model, tokenizer)


# The command


def test_the_command_reads_a_file_and_its_labels(tmp_path, capsys):
    save_model(tiny(classes=3), tmp_path / "a", about={"labels": ["red", "green", "blue"]})
    command("See you at the mill.", str(tmp_path / "a"))
    assert capsys.readouterr().out.split()[0] in ("red", "green", "blue")


@pytest.mark.parametrize("about", ["note", ["x"], {}])
def test_the_command_takes_any_note_of_a_file(tmp_path, capsys, about):
    save_model(tiny(), tmp_path / "a", about=about)
    command("Yes.", str(tmp_path / "a"))
    assert capsys.readouterr().out.startswith(LABELS)


@pytest.mark.parametrize("labels", [None, 5, {"ham": 0, "spam": 1}, "hs", ["a", "a"]])
def test_the_command_refuses_a_file_with_other_labels(tmp_path, labels):
    save_model(tiny(), tmp_path / "a", about={"labels": labels})
    with pytest.raises(ValueError, match="names of the classes are .*, must be a list of different words"):
        command("Yes.", str(tmp_path / "a"))


def test_the_command_reads_lines_from_the_input(tmp_path, capsys, monkeypatch):
    save_model(tiny(), tmp_path / "a")
    monkeypatch.setattr("sys.stdin", io.StringIO("Yes.\n\nSee you at the mill.\n"))
    command("-", str(tmp_path / "a"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition("\t")[2] for line in lines] == ["Yes.", "See you at the mill."]
    assert all(line.startswith(LABELS) for line in lines)


@pytest.mark.parametrize("text", ["", "   "])
def test_the_command_refuses_an_empty_message_before_it_loads_anything(text):
    with pytest.raises(ValueError, match="the message is empty"):
        command(text, "there/is/no/such/file")


def test_the_command_makes_its_filter_once(tmp_path, capsys, monkeypatch):
    calls = []

    def make():
        calls.append(1)
        return tiny()

    monkeypatch.setattr(module, "small_classifier", make)
    made_once = module.made_once
    monkeypatch.setattr(module, "made_once", lambda name, make, about: made_once(name, make, about, tmp_path))
    for _ in range(2):
        command("Yes.")
    out, err = capsys.readouterr()
    assert len(calls) == 1 and err.count("once") == 1
    first, second = out.splitlines()
    assert first == second and first.startswith(LABELS)


def test_the_small_filter_is_the_same_each_time(monkeypatch):
    options = {"n": 32, "epochs": 1, "progress": False}
    monkeypatch.setattr(torch, "manual_seed", None)  # it would seed GPUs, whose state is not put back
    state = torch.get_rng_state()
    one, two = small_classifier(**options), small_classifier(**options)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    words = load_pretrained().tok_emb.weight
    assert not one.training and not torch.equal(one.tok_emb.weight, words)


# The real messages


@pytest.mark.data
def test_the_numbers_of_the_book(data_dir):
    sms = load_messages(data_dir / "SMSSpamCollection")
    assert sms["label"].value_counts().to_dict() == {"ham": 4825, "spam": 747}
    assert len(load_messages(data_dir / "SMSSpamCollection", quoted=False)) == 5574
    parts = split(balance(sms))
    assert [len(part) for part in parts] == [1045, 149, 300]
    assert SpamDataset(parts[0], gpt2_tokenizer()).max_length == 120
    sets = [SpamDataset(part, gpt2_tokenizer(), 120) for part in parts]
    loaders = [make_loader(s, 8, drop_last=first) for s, first in zip(sets, (True, False, False), strict=True)]
    assert [len(loader) for loader in loaders] == [130, 19, 38]


@pytest.mark.data
def test_the_small_model_learns_real_messages(data_dir, tokenizer):
    "Quick: 400 messages, two epochs; the benchmark does it in full. It was pretrained on another world."
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    sms = balance(load_messages(data_dir / "SMSSpamCollection").drop_duplicates("text"))
    learn, _, test = split(sms)
    learn, test = learn.head(400), test.head(200)
    linear = make_pipeline(CountVectorizer(ngram_range=(1, 2)), LogisticRegression(max_iter=1000))
    linear.fit(learn["text"], learn["label"])
    simple = linear.score(test["text"], test["label"])
    torch.manual_seed(0)
    model = to_classifier(load_pretrained(), train="all")
    train(model, make_loader(SpamDataset(learn, tokenizer, 64), 16, seed=0), loss_fn=classifier_loss, epochs=2,
          lr=5e-4, progress=False)
    found = accuracy(model, make_loader(SpamDataset(test, tokenizer, 64), 32, shuffle=False, drop_last=False))
    print(f"small model {found:.3f}, logistic regression {simple:.3f} of 200")
    assert wilson(round(found * 200), 200)[0] > 0.75
    assert found > simple - 0.1
