"""The small world: splits that cannot meet, one answer to every question, sentences that are right."""

import hashlib
import os
import random
import re
import subprocess
import sys
from collections import Counter
from functools import cache

import pytest

from llm_literate import small_world, valley
from llm_literate.small_world import corpus, instructions, messages, stories
from llm_literate.valley import ABOUT, ANIMALS, COLOURS, DEEDS, FACTS, JOBS, KINDS, PEOPLE, PLACES, ROADS, split_of

SPLITS = ("train", "val", "test")
GENERATORS = {"stories": stories, "messages": messages, "instructions": instructions}


@cache
def sample(genre, split, n=3000, seed=0):
    return GENERATORS[genre](n, seed, split)


@cache
def text(split="train"):
    return corpus(split=split)


def prompt(entry):
    return entry["instruction"], entry["input"]


def written(entry):
    "What an entry looks like in the form that chapter 7 trains on, up to the answer."
    return f"{entry['instruction']}\n\n" + (f"### Input:\n{entry['input']}\n\n" if entry["input"] else "")


# The world itself


def test_the_world_is_whole():
    assert (len(PEOPLE), len(PLACES), len(JOBS)) == (72, 16, 12)
    assert Counter(p.split for p in PEOPLE.values()) == {"train": 48, "val": 8, "test": 16}
    assert len({(p.home, p.job) for p in PEOPLE.values()}) == 72
    assert all(p.home != p.work for p in PEOPLE.values())
    reached, new = set(), {"mill"}
    while new:
        reached |= new
        new = {b for road in ROADS for a, b in (road, road[::-1]) if a in new} - reached
    assert reached == set(PLACES)


def test_no_subject_has_two_values():
    for kind, facts in ABOUT.items():
        if kind != "road":
            assert max(Counter(f.subject for f in facts).values()) == 1, kind


def test_both_ways_of_an_opposite_are_in_one_split():
    split = {f.subject: f.split for f in ABOUT["opposite"]}
    assert all(split[f.value] == f.split for f in ABOUT["opposite"])


def test_every_split_has_facts_to_ask_for():
    for kind in ("opposite", "plural", "past", "kind", "colour", "home", "job"):
        count = Counter(f.split for f in ABOUT[kind])
        assert count["train"] > 2 * count["test"] > 0 < count["val"], (kind, count)


@pytest.mark.parametrize("noun, many", [
    ("fox", "foxes"), ("butterfly", "butterflies"), ("monkey", "monkeys"), ("mouse", "mice"), ("sheep", "sheep"),
    ("brush", "brushes"), ("bench", "benches"), ("glass", "glasses"), ("kite", "kites"), ("scarf", "scarves"),
])
def test_plurals(noun, many):
    assert valley.Word(noun).many == many


def test_words_know_their_forms():
    owl = valley.Word("owl")
    assert (owl.a, owl.A, owl.one, owl.One) == ("an owl", "An owl", "an owl", "An owl")
    assert (owl.cap, owl.many, owl.Many) == ("Owl", "owls", "Owls")
    assert valley.Word("gold", phrase="gold").One == "Gold"
    assert PEOPLE["Mia"].She == "She" and PEOPLE["Hugo"].him == "him" and PEOPLE["Hugo"].Her == "His"


def test_untrue_is_never_true():
    rng = random.Random(1)
    truth = {(f.kind, f.subject, f.value) for f in FACTS}
    for fact in FACTS:
        for _ in range(5):
            assert (fact.kind, fact.subject, valley.untrue(rng, fact)) not in truth


def test_a_template_keeps_what_it_is_told():
    lines = valley.template("A [b|c] <d> {e}.\n? Maybe.", {"d": ["x", "y"]})
    told = {valley.tell(random.Random(i), lines, {"e": "f"}) for i in range(100)}
    assert told == {f"A {b} {d} f.{m}" for b in "bc" for d in "xy" for m in ("", " Maybe.")}


# Splits


def test_split_shares():
    count = Counter(split_of(str(i)) for i in range(50_000))
    assert {s: round(count[s] / 50_000, 2) for s in SPLITS} == {"train": .7, "val": .1, "test": .2}


def test_stories_of_different_splits_never_meet():
    told = {split: set(stories(n, 7, split)) for split, n in zip(SPLITS, (10_000, 3_000, 3_000), strict=True)}
    assert [len(told[s]) for s in SPLITS] == [10_000, 3_000, 3_000]
    assert not told["train"] & told["val"] and not told["train"] & told["test"] and not told["val"] & told["test"]


def test_messages_of_different_splits_never_meet():
    names = re.compile(r"\b(" + "|".join(PEOPLE) + r")\b")
    texts = {}
    for split, n in zip(SPLITS, (20_000, 2_000, 4_000), strict=True):
        texts[split] = [m["text"] for m in messages(n, 3, split)]
        assert len(set(texts[split])) == n
        assert {PEOPLE[name].split for t in texts[split] for name in names.findall(t)} == {split}
    assert not set(texts["train"]) & (set(texts["val"]) | set(texts["test"]))
    assert not set(texts["val"]) & set(texts["test"])


def test_instructions_of_different_splits_never_meet():
    prompts = {}
    for split, n in zip(SPLITS, (20_000, 2_000, 4_000), strict=True):
        entries = instructions(n, 5, split)
        prompts[split] = {prompt(e) for e in entries}
        assert len(prompts[split]) == n
    assert not prompts["train"] & (prompts["val"] | prompts["test"]) and not prompts["val"] & prompts["test"]


def test_what_is_asked_for_differs_between_the_splits():
    asked = {split: {"names": set(), "words": set(), "facts": set()} for split in SPLITS}
    for split in SPLITS:
        for e in instructions(4000, 2, split):
            whole = f"{e['instruction']} {e['input']} {e['output']}"
            asked[split]["names"] |= set(re.findall(r"\b[A-Z][a-z]+\b", whole)) & set(PEOPLE)
            if e["family"] in ("repeat", "first", "last", "after", "reverse", "count"):
                asked[split]["words"] |= set(e["input"].split(", "))
            if e["family"] in ("opposite", "plural", "past", "kind", "colour"):
                asked[split]["facts"].add((e["family"], e["input"] or e["instruction"]))
    for what in ("names", "words", "facts"):
        a, b, c = (asked[split][what] for split in SPLITS)
        assert a and b and c and not a & b and not a & c and not b & c, what


def test_no_test_question_stands_in_the_pretraining_text():
    whole = text()
    for split in ("val", "test"):
        assert not [m for m in sample("messages", split, 500) if m["text"] in whole]
        for e in sample("instructions", split, 500):
            assert written(e) not in whole, e
            if e["input"].count(" ") > 4 and e["family"] != "truth":  # nor, for what is copied, the input alone
                assert e["input"] not in whole, e
        assert not set(sample("stories", split)) & set(whole.split("<|endoftext|>"))


def test_all_facts_stand_in_the_pretraining_text():
    said = Counter(re.split(r"(?<=[.?!]) |<\|endoftext\|>", text()))
    rng, rare = random.Random(0), []
    for fact in FACTS:
        slots = {"s": fact.subject, "v": fact.value, "w": valley.Word("-")}
        forms = {valley.tell(rng, form, slots) for form in small_world._SAID[fact.kind]}
        if sum(said[form] for form in forms) < 2:
            rare.append(fact)
    assert not rare, rare


# The same everywhere


@pytest.mark.parametrize("genre", GENERATORS)
def test_a_seed_gives_the_same_again(genre):
    make = GENERATORS[genre]
    assert make(50, 4) == make(50, 4) != make(50, 5)
    assert make(50, 4)[:20] == make(20, 4)
    assert make(0) == []
    assert len(make(7, "a text may be a seed", "val")) == 7


def test_nothing_depends_on_hashes_or_the_version():
    "Python promises the same `random()` for ever, and these digests hold it to that, here and in CI."
    code = ("import hashlib, json; from llm_literate.small_world import *\n"
            "made = [corpus(60), corpus(30, 1, 'test'), messages(90, 2, 'val'), instructions(90, 3, 'test')]\n"
            "print(hashlib.sha256(json.dumps(made).encode()).hexdigest())")
    digests = {subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONHASHSEED": seed}, text=True,
                              capture_output=True, check=True).stdout.strip() for seed in ("1", "77")}
    assert digests == {DIGEST}


DIGEST = "3137a74af2c3e7c0a79e80e0f6d05f613620eaa88a505772afa255051de87ae2"


def test_size_of_the_text():
    whole = text()
    assert 5.2e6 < len(whole.encode()) < 6.2e6
    assert whole.isascii() and whole.endswith("<|endoftext|>")
    documents = whole.split("<|endoftext|>")[:-1]
    assert all(d and d == d.strip() for d in documents)
    assert len(corpus(60)) < 80_000 and corpus(0) == ""


@pytest.mark.parametrize("make", [*GENERATORS.values(), corpus])
def test_refusals(make):
    with pytest.raises(ValueError, match="'train', 'val' or 'test', not 'dev'"):
        make(3, split="dev")
    for n in (-1, 2.5, "3", True, None):
        with pytest.raises(ValueError, match=f"is {n!r}, must be an integer, 0 or more"):
            make(n)


@pytest.mark.parametrize("spam", [2, -1, float("nan")])
def test_a_share_is_no_more_than_all(spam):
    with pytest.raises(ValueError, match=f"spam is {spam}, must be a share, 0 to 1"):
        messages(3, spam=spam)


def test_drawing_more_than_there_are_ends():
    assert sorted(valley.draw(random.Random(0), [1, 2], 2)) == [1, 2]
    with pytest.raises(ValueError, match="3 items are to be drawn, there are 2"):
        valley.draw(random.Random(0), [1, 2], 3)


# Messages: one reading, one label


RISKY = re.compile(r"send your key|pay \w+ coins for|give the stranger|leave the door open|tell the stranger|hand over"
                   r"|sign the letter|send \w+ coins|tell everybody|put your ring|lend the stranger|open the gate")
ADVICE = [re.compile(p) for p in (
    r"Do not (?P<one>(?!believe|do so)[^.]+?), (?P<two>.+?)\.", r"Please (?P<two>.+?) and do not (?P<one>.+?)\.",
    r"It is better to (?P<two>.+?) than to (?P<one>.+?)\.", r"You should (?P<two>.+?) and never (?P<one>.+?)\.",
    r"Why (?P<one>.+?) when you can (?P<two>.+?)\?", r"Never (?P<one>.+?) before you (?P<two>.+?)\.",
    r"If somebody wants you to (?P<one>.+?), (?P<two>.+?)\.",
    r"Nobody should (?P<one>.+?)\. Everybody should (?P<two>.+?)\.",
    r"Whoever tells you to (?P<one>.+?) is wrong\. You can (?P<two>.+?)\.")]
HEARSAY = re.compile(r"(?:you should|you must|tells you to|told you to) (?P<it>[^.]+?)\. (?P<verdict>[^.]+)\.")
WRONG = {"That is wrong", "Do not believe it", "Please do not do it", "It is bad advice", "Do not do so today"}
SENDER = re.compile(r"(?:\bI am|This is|My name is|It is me,) (?P<who>[A-Z]\w+)"
                    r"|(?P<writer>[A-Z]\w+) the \w+ is writing to you")
SIGNED = re.compile(r"(?:Yours,|See you,|Many thanks,|Good bye, your) (\w+)$")
OFFER = re.compile(r"(?:You can have my|I sell an?|My|For \w+ coins the|Do you want my) \w+ (?P<thing>[a-z-]+)"
                   r"(?: costs you|\? It is| is yours| for)(?: \w+ coins)?[.]")
AGAIN = re.compile(r"(?:and I bring the|the (?=[a-z-]+ is yours\.)|and give you the|and get the"
                   r"|The (?=[a-z-]+ is waiting)) ?(?P<thing>[a-z-]+)")
SHOUTS = re.compile(r"Free \w+ for everybody|the lucky one!|Only today: |Get rich by|Sell me your house|Last chance!"
                    r"|Eat secret|Dear winner!|Everybody wants|Your luck is here!")


def read(message):
    "Read a message in order, with the facts of the world, and say what it is."
    for pattern in ADVICE:
        if m := pattern.search(message):
            assert bool(RISKY.match(m["one"])) != bool(RISKY.match(m["two"])), message
            return "ham" if RISKY.match(m["one"]) else "spam"
    if m := HEARSAY.search(message):
        return "spam" if bool(RISKY.match(m["it"])) != (m["verdict"] in WRONG) else "ham"
    if m := re.search(r"(\w+) (?:have|has) won ", message):
        pays = re.search(r"(\w+) (?:have|has) to pay", message)
        return "spam" if m[1].lower() == "you" and pays and pays[1].lower() == "you" else "ham"
    if (m := SENDER.search(message)) and (signed := SIGNED.search(message)):
        return "ham" if signed[1] == (m["who"] or m["writer"]) else "spam"
    if (m := OFFER.search(message)) and (again := AGAIN.search(message, m.end())):
        coins = re.findall(r"(\w+) coins", message[m.start():])
        return "ham" if m["thing"] == again["thing"] and coins[0] == coins[1] else "spam"
    if m := re.search(r"(?:have found|Who has lost|^|[.!?] )\s*[Aa]n? (\w+)[.?]? ?(?:for \w+ coins!)? "
                      r"It says ([\w-]+?)(?:\.| all day)", message):
        return "ham" if ANIMALS[m[1]].says == m[2] else "spam"
    if m := re.search(r"I have ([^.!?]+?) for you\. It is (\w+), as it"
                      r"|picture I sent: (.+?), as (\w+) as ever", message):
        return "ham" if COLOURS[m[1] or m[3]] == (m[2] or m[4]) else "spam"
    kinds = {noun.many: kind.many for noun, kind in KINDS.items()}
    if m := re.search(r"I sell (\w+)\. They are the best (\w+) ", message):
        return "ham" if kinds[m[1]] == m[2] else "spam"
    if m := re.search(r"Come and see my (\w+)! I have \w+ (\w+)\.", message):
        return "ham" if kinds[m[2]] == m[1] else "spam"
    if m := re.search(r"We have an? (\w+)\. It will be an? (\w+) ", message):
        return "ham" if ANIMALS[m[2]].young == m[1] else "spam"
    if m := re.search(r"Our (\w+) has an? (\w+) now", message):
        return "ham" if ANIMALS[m[1]].young == m[2] else "spam"
    if m := re.search(r"I sell (\w+) from my own (\w+)\.|Do you need (\w+)\? My (\w+) give", message):
        animal = next(a for a in ANIMALS.values() if a.many == (m[2] or m[4]))
        return "ham" if animal.gives == (m[1] or m[3]) else "spam"
    return "spam" if SHOUTS.search(message) else "ham"


@pytest.mark.parametrize("split", SPLITS)
def test_whoever_reads_in_order_is_always_right(split):
    wrong = [m for m in messages(4000, 11, split) if read(m["text"]) != m["label"]]
    assert not wrong, wrong[:5]


def test_what_is_said_of_a_message_in_the_pretraining_text_is_right():
    "Each message there is followed by a verdict, which the reader above shares, and never by a label."
    verdicts = {"Spam!": "spam", "No, I do not believe it.": "spam", "Lies!": "spam", "Away with it!": "spam",
                "Not from a friend.": "spam", "Good!": "ham", "Yes, I believe it.": "ham", "True and honest.": "ham",
                "Thanks for it!": "ham", "From a friend.": "ham"}
    found = Counter()
    for document in text().split("<|endoftext|>"):
        message, _, said = document.partition("\n")
        heard = [v for v in verdicts if said.startswith(f"{v} ") or said.endswith(f" {v}")]
        if len(heard) == 1 and "\n" not in said:
            assert read(message) == verdicts[heard[0]], document
            found[verdicts[heard[0]]] += 1
    assert set(found) == {"spam", "ham"} and all(2350 < n < 2650 for n in found.values()), found


def test_messages_are_balanced_or_as_asked():
    made = sample("messages", "train")
    assert .46 < sum(m["label"] == "spam" for m in made) / len(made) < .54
    for kind in {m["kind"] for m in made}:
        share = [m["label"] == "spam" for m in made if m["kind"] == kind]
        least, most = (150, .08) if kind != "goods" else (20, .25)  # goods are rare
        assert len(share) > least and abs(sum(share) / len(share) - .5) < most, kind
    assert {m["label"] for m in messages(100, spam=0)} == {"ham"}
    assert {m["label"] for m in messages(100, spam=1)} == {"spam"}


def test_length_says_nothing():
    made = sample("messages", "train")
    mean = {label: sum(len(m["text"]) for m in made if m["label"] == label) / sum(m["label"] == label for m in made)
            for label in ("ham", "spam")}
    assert abs(mean["ham"] - mean["spam"]) < 6, mean


# Instructions: every answer follows from the prompt


def value(kind, subject):
    return next(f.value for f in ABOUT[kind] if f.subject == subject)


def answer(e):
    "Answer an instruction from its text and the world alone."
    asked, given, family = e["instruction"], e["input"], e["family"]
    words = given.removeprefix("Words: ").split(", ")
    sentences = [s + "." for s in given.rstrip(".").split(". ")]
    deeds = {did: (do, does) for do, does, did in DEEDS}
    named = given.partition(": ")[2]
    numbers = re.findall(r"\d+", asked + given)

    def cut(sentence):
        return re.fullmatch(r"(?:One day|Later|Every day) (\w+) (\w+) (the \w+ \w+) ((?:in|at|on) the \w+)\.",
                            sentence).groups()

    if family in ("repeat", "reverse"):
        return f"Words: {', '.join(words if family == 'repeat' else reversed(words))}"
    if family in ("first", "last"):
        return f"It is {words[0 if family == 'first' else -1]}."
    if family == "after":
        before = re.search(r"(?:after|follows) (\w+)", asked)[1]
        return f"It is {words[words.index(before) + 1]}."
    if family == "count":
        return f"It has {['two', 'three', 'four', 'five', 'six'][len(words) - 2]} words."
    if family in ("who", "where", "what"):
        return f"It was {cut(given)[{'who': 0, 'what': 2, 'where': 3}[family]]}."
    if family == "which":
        (who,) = (cut(s)[0] for s in sentences if " ".join(cut(s)[1:3]) in asked)
        return f"It was {who}."
    if family == "rename":
        a, b = re.findall(r"\b(" + "|".join(PEOPLE) + r")\b", asked)
        old, new = (a, b) if asked.startswith("Replace") else (b, a)
        assert cut(given)[0] == old
        return given.replace(old, new)
    if family == "yesterday":
        who, does, what, where = cut(given)
        return f"Yesterday {who} {next(d for d in deeds if deeds[d][1] == does)} {what} {where}."
    if family == "polite":
        return f"Could you please {given[0].lower()}{given[1:-1]}?"
    if family == "sum":
        return f"The sum is {sum(map(int, numbers))}."
    if family == "larger":
        return f"The larger number is {max(map(int, numbers))}."
    if family == "truth":
        return "Yes." if any(holds(named)) else "No."
    if family in ("opposite", "plural", "past"):
        word = named or re.search(r"of (\w+)\.", asked)[1]
        return f"The {family} is {value(family, word)}."
    if family == "kind":
        word = named or re.search(r"does (\w+) belong", asked)[1]
        return f"It is {value(family, word).a}."
    if family == "colour":
        subject = named or re.search(r"does (.+) have", asked)[1]
        return f"It is {next(f.value for f in ABOUT['colour'] if subject in (f.subject, f.subject.one))}."
    if family == "animal":
        animal = ANIMALS[named or re.search(r"\ban? (\w+)(?: says| lives|\.)", asked)[1]]
        if "young" in asked:
            return f"It is {animal.young.a}."
        return f"It says {animal.says}." if "sound" in asked or "says" in asked else f"It lives {animal.lives}."
    person = PEOPLE[named or re.search(r"(" + "|".join(PEOPLE) + ")", asked)[1]]
    return f"{person.She} is {person.job.a}." if "job" in asked else f"{person.She} lives by the {person.home}."


def holds(claim):
    "For every way to read a claim, say whether it holds."
    for pattern, kind in ((r"The opposite of (\w+) is (\w+)\.", "opposite"),
                          (r"The plural of (\w+) is (\w+)\.", "plural"),
                          (r"(\w+) lives by the (\w+)\.", "home"), (r"(\w+) is a (\w+)\.", "job"),
                          (r"An? ([\w-]+) says ([\w-]+)\.", "says"), (r"An? (\w+) lives (.+)\.", "lives"),
                          (r"A young (\w+) is an? (\w+)\.", "young"), (r"(?:An? )?(\w+) is an? (\w+)\.", "kind"),
                          (r"(.+) is (\w+)\.", "colour")):
        if m := re.fullmatch(pattern, claim):
            subject = m[1][0].lower() + m[1][1:] if kind not in ("home", "job") else m[1]
            yield any(m[2] == f.value and subject in (f.subject, f.subject.one) for f in ABOUT[kind])


@pytest.mark.parametrize("split", SPLITS)
def test_every_answer_follows_from_the_prompt(split):
    for e in instructions(4000, 21, split):
        assert answer(e) == e["output"], e
        assert set(e) == {"instruction", "input", "output", "family"} and all(type(v) is str for v in e.values())


def test_one_prompt_has_one_answer():
    answers = {}
    for split in SPLITS:
        for seed in range(3):
            for e in instructions(3000, seed, split):
                assert answers.setdefault(prompt(e), e["output"]) == e["output"]


def test_there_are_families_of_all_sorts():
    count = Counter(e["family"] for e in instructions(2000, split="test"))
    assert len(count) == 23 and min(count.values()) >= 20, count
    assert len({e["input"] == "" for e in sample("instructions", "test")}) == 2
    answers = Counter(e["output"] for e in sample("instructions", "train") if e["family"] == "truth")
    assert .4 < answers["Yes."] / answers.total() < .6


# Sentences


FAULTS = {
    "article": r"\b[Aa] [aeiou]|\b[Aa]n [^aeiou\W]",
    "gap": r"[{}<>\[\]]",
    "two spaces": r"  ",
    "space before a mark": r" [,.;:?!]",
    "two marks": r"[,.;:?!][,.;:](?!\")|\.\"\.|,\.",
    "small letter at the start": r"(?:^|[.?!] )[a-z]",
    "twice": r"\b(\w+) \1\b",
    "who lived, without an end": r"who lived by the \w+ ",
}


@pytest.mark.parametrize("genre", ["stories", "messages"])
def test_sentences_are_right(genre):
    for record in sample(genre, "train", 6000):
        said = record if genre == "stories" else record["text"]
        assert said.count('"') % 2 == 0, said
        assert said.lstrip('"')[0].isupper(), said
        for name, pattern in FAULTS.items():
            if name == "twice":
                bare = re.sub(r'"[^"]*"', "", said)  # a song may repeat itself
                assert not re.search(pattern, bare), (name, said)
            elif name == "small letter at the start":
                assert not re.search(pattern, re.sub(r'[?!]"', "", said)), (name, said)
            else:
                assert not re.search(pattern, said), (name, re.search(pattern, said)[0], said)


def test_pronouns_agree():
    for story in sample("stories", "train", 6000):
        named = {PEOPLE[w].she for w in re.findall(r"[A-Z][a-z]+", story) if w in PEOPLE}
        said = {{"her": "she", "his": "he", "him": "he", "herself": "she", "himself": "he"}.get(w, w)
                for w in re.findall(r"\b(?:she|he|her|his|him|herself|himself)\b", story.lower())}
        assert said <= named, story


def test_stories_agree_with_the_world():
    for story in sample("stories", "train", 6000):
        for who, job in re.findall(r"(\w+) the (" + "|".join(JOBS) + r")\b", story):
            assert who not in PEOPLE or PEOPLE[who].job == job, story
        for job, who in re.findall(r"a (\w+) called (\w+)", story):
            assert who not in PEOPLE or PEOPLE[who].job == job, story
        for who, home in re.findall(r"(\w+), who lived by the (\w+)", story):
            assert PEOPLE[who].home == home, story


def test_every_plot_is_told_and_none_is_long():
    made = sample("stories", "train", 6000)
    lengths = [len(s) for s in made]
    assert min(lengths) > 250 and max(lengths) < 1100
    assert len(small_world._PLOTS) >= 12


def test_stories_reward_copying():
    "Most names stand in their story before, and further back than five words."
    again = far = 0
    for story in sample("stories", "val", 1000):
        last = {}
        for i, word in enumerate(re.findall(r"\w+", story)):
            if word in PEOPLE:
                again += word in last
                far += word in last and i - last[word] > 5
                last[word] = i
    assert again > 5000 and far / again > .75


def test_hash_of_content_is_plain_sha256():
    tenth = int.from_bytes(hashlib.sha256(b"mill").digest()[:4], "big") % 10
    assert split_of("mill") == ("train" if tenth < 7 else "val" if tenth < 8 else "test")


@pytest.mark.parametrize("split", SPLITS)
def test_a_recall_has_one_answer_that_stands_in_its_beginning(split):
    made = small_world.recalls(300, 1, split)
    assert len(dict(made)) == 300
    for beginning, name in made:
        assert beginning.endswith("That is the story of") and re.search(rf"\b{name}\b", beginning)
        told = re.findall(r"\b(?:" + "|".join(PEOPLE) + r")\b", beginning)
        assert told[0] == name, beginning
    assert max(Counter(name for _, name in made).values()) < 20
