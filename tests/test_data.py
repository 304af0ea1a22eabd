"""llm_literate.data: windows equal to copied ones, batches that go on where they stopped, downloads that fail well."""

import hashlib
import http.server
import io
import json
import socket
import time
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from servers import serving
from torch.utils.data import DataLoader, Subset

from llm_literate import data
from llm_literate.data import DataFile, DataUnavailable, TokenWindows, fetch, flat_ids, local, make_loader


def copied(ids, context_length, stride):
    "Cut windows the plain way."
    starts = range(0, len(ids) - context_length, stride)
    return [(ids[i:i + context_length], ids[i + 1:i + context_length + 1]) for i in starts]


def as_lists(loader):
    "Write out the inputs of every batch of an epoch."
    return [inputs.tolist() for inputs, _ in loader]


# Windows


@given(st.lists(st.integers(0, 50256), min_size=2, max_size=80), st.data())
def test_windows_equal_copied_ones(ids, draw):
    context_length = draw.draw(st.integers(1, len(ids) - 1))
    stride = draw.draw(st.integers(1, 12))
    windows = TokenWindows(ids, context_length, stride)
    expected = copied(ids, context_length, stride)
    assert [(x.tolist(), y.tolist()) for x, y in windows] == expected
    assert len(windows) == len(expected)
    chosen = draw.draw(st.lists(st.integers(0, len(expected) - 1), min_size=1, max_size=5))
    inputs, targets = windows.__getitems__(chosen)
    assert inputs.tolist() == [expected[i][0] for i in chosen]
    assert targets.tolist() == [expected[i][1] for i in chosen]


@pytest.mark.parametrize("kind", ["uint8", "int16", "uint16", "int32", "int64"])
@pytest.mark.parametrize("make", [lambda a: a, torch.from_numpy, lambda a: torch.from_numpy(a).unfold(0, 1, 1)[:, 0]])
def test_every_kind_of_ids_becomes_int64(kind, make):
    windows = TokenWindows(make(np.arange(100, dtype=kind)), 4, 3)
    for inputs, targets in (windows[1], windows.__getitems__([1])):
        assert inputs.dtype == targets.dtype == torch.int64
        assert inputs.flatten().tolist() == [3, 4, 5, 6] and targets.flatten().tolist() == [4, 5, 6, 7]
        assert inputs.is_contiguous() and targets.is_contiguous()


def test_ids_above_two_bytes_stay_whole():
    assert TokenWindows([1, 2**16, 2**31 - 1], 2, 1)[0][1].tolist() == [2**16, 2**31 - 1]
    assert TokenWindows([1, 2**16 - 1, 3], 2, 1).ids.dtype == torch.uint16
    assert TokenWindows(np.array([1, 2**16 - 1, 3], np.uint16), 2, 1)[0][1].tolist() == [2**16 - 1, 3]


@pytest.mark.parametrize("far", [2**31, 2**40, -2**31 - 1])
def test_ids_above_four_bytes_stay_whole(far):
    assert TokenWindows([far, 1, 2], 1, 1)[0][0].tolist() == [far]


def test_windows_share_the_memory_of_the_ids():
    ids = torch.arange(1000)
    assert {part.untyped_storage().data_ptr() for part in TokenWindows(ids, 256, 1)[7]} == {ids.data_ptr()}
    array = np.arange(1000, dtype=np.uint16)
    assert np.shares_memory(TokenWindows(array, 256, 1).ids.numpy(), array)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("mode", ["r", "c"])
def test_windows_over_a_file_on_disk(tmp_path, mode):
    np.arange(500, dtype=np.uint16).tofile(tmp_path / "ids.bin")
    ids = np.memmap(tmp_path / "ids.bin", np.uint16, mode)
    windows = TokenWindows(ids, 8, 8)
    assert np.shares_memory(windows.ids.numpy(), ids)
    assert as_lists(make_loader(windows, 61, shuffle=False)) == [np.arange(488).reshape(61, 8).tolist()]


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_windows_travel_to_workers(start):
    if start not in torch.multiprocessing.get_all_start_methods():
        pytest.skip(f"this system cannot start processes by {start}")
    windows = TokenWindows(np.arange(1000, dtype=np.uint16), 256, 1)
    loader = DataLoader(windows, batch_size=400, num_workers=1, multiprocessing_context=start)
    assert [inputs[0, 0].item() for inputs, _ in loader] == [0, 400]


def test_indices_as_sequences_have_them():
    windows = TokenWindows(list(range(20)), 4, 4)
    assert windows[-1][0].tolist() == windows[len(windows) - 1][0].tolist() == [12, 13, 14, 15]
    assert windows[torch.tensor(1)][0].tolist() == windows[np.int64(1)][0].tolist() == [4, 5, 6, 7]
    for i in (len(windows), -len(windows) - 1):
        with pytest.raises(IndexError):
            windows[i]
    with pytest.raises(IndexError):
        windows.__getitems__([0, len(windows)])


@pytest.mark.parametrize(("ids", "context_length", "message"), [
    ([1, 2, 3, 4], 4, r"4 ids .* context_length 4 needs 5 .* longer text or a context_length of at most 3"),
    ([1], 1, r"1 ids .* needs 2 \(one more target\); give a longer text$"),
    ([], 4, r"0 ids do not fill a window"),
])
def test_a_text_shorter_than_a_window_is_refused(ids, context_length, message):
    with pytest.raises(ValueError, match=message):
        TokenWindows(ids, context_length, 1)


def test_a_text_of_just_one_window():
    assert len(TokenWindows([1, 2, 3, 4, 5], 4, 100)) == 1


@pytest.mark.parametrize("name", ["context_length", "stride"])
@pytest.mark.parametrize("value", [0, -3, 2.0, "4", True, None])
def test_lengths_must_be_whole_and_positive(name, value):
    with pytest.raises(ValueError, match=rf"{name} is .*, must be an integer, 1 or more"):
        TokenWindows([1, 2, 3, 4], **{"context_length": 2, "stride": 2, name: value})


@pytest.mark.parametrize("ids", [[1.0, 2.0, 3.0], torch.ones(3, 3, dtype=torch.long), np.ones(3, bool),
                                 torch.ones(5), [[1, 2], [3, 4]], ["a", "b", "c"]])
def test_ids_must_be_flat_integers(ids):
    with pytest.raises(ValueError, match="must be one flat sequence of integers"):
        TokenWindows(ids, 1, 1)


# Encoding in pieces


class Words:
    "Encode words with their leading white space, as a pre-tokenizer would cut them."

    n_vocab = 50_000

    def encode(self, text, allowed_special=frozenset()):
        import regex
        return [hash(w) % 50_000 for w in regex.findall(r" ?[^\s]+|\s+(?!\S)|\s+", text)]


BROKEN = st.lists(st.sampled_from([
    " ", "  ", "\n", "\r\n", "\t ", "\u00a0", "\u3000", "\x1c", "\x85", "word", "Don't", "'s", "42", "…", "!?", "_",
    "é", "e\u0301", "\u0301", "日本", "🙂", "\u200d", "<|endoftext|>"]), max_size=40)


@given(BROKEN.map("".join) | st.text(max_size=60), st.integers(1, 20))
def test_pieces_join_to_the_text(text, size):
    pieces = list(data._pieces(text, size))
    assert "".join(pieces) == text
    assert all(len(piece) >= size for piece in pieces[:-1])


@pytest.fixture(scope="module")
def gpt2():
    return pytest.importorskip("llm_literate.tokenizer").gpt2_tokenizer()


@given(text=BROKEN.map("".join) | st.text(max_size=60), size=st.integers(1, 20))
def test_pieces_do_not_change_gpt2_ids(gpt2, text, size):
    special = {"<|endoftext|>"}
    assert flat_ids(text, gpt2, special, size).tolist() == gpt2.encode(text, allowed_special=special)


@pytest.mark.parametrize("pattern", [
    r"""(?i:'s|'t|'re|'ve)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
    r"""\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+|[^\r\n\p{L}\p{N}]?\p{L}+"""])
@given(text=BROKEN.map("".join) | st.text(max_size=60), size=st.integers(1, 20))
def test_pieces_suit_later_pretokenizers(pattern, text, size):
    import regex
    cut = regex.compile(pattern).findall
    assert [word for piece in data._pieces(text, size) for word in cut(piece)] == cut(text)


def test_a_special_token_with_a_space_is_never_cut():
    class Tokenizer:
        n_vocab = 300

        def encode(self, text, allowed_special):
            return [text.count("<a b>")]

    assert flat_ids("x <a b> " * 9, Tokenizer(), {"<a b>"}, piece=4).tolist() == [9]


def test_flat_ids_are_compact():
    assert flat_ids("a b", Words()).dtype == torch.uint16
    big = Words()
    big.n_vocab = 2**16 + 1
    assert flat_ids("a b", big).dtype == torch.int32
    assert flat_ids("", big).shape == (0,)
    with pytest.raises(ValueError, match="piece is 0"):
        flat_ids("a b", big, piece=0)


def test_special_text_is_refused_unless_allowed(gpt2):
    with pytest.raises(ValueError, match="special"):
        flat_ids("a <|endoftext|> b", gpt2)


# Batches


@pytest.fixture(scope="module")
def windows():
    return TokenWindows(np.arange(103, dtype=np.uint16), 4, 2)  # 50 windows


@pytest.mark.parametrize("drop_last", [True, False])
def test_default_order_is_that_of_a_plain_loader(windows, drop_last):
    ours = make_loader(windows, 8, shuffle=False, drop_last=drop_last)
    plain = DataLoader(windows, batch_size=8, drop_last=drop_last)
    assert as_lists(ours) == as_lists(plain)
    assert len(ours) == len(plain) == len(list(ours))
    assert [y.tolist() for _, y in ours] == [y.tolist() for _, y in plain]


def test_an_epoch_holds_every_window_once(windows):
    loader = make_loader(windows, 7, drop_last=False)
    first = [x[0] for batch in as_lists(loader) for x in batch]
    second = [x[0] for batch in as_lists(loader) for x in batch]
    assert sorted(first) == sorted(second) == list(range(0, 100, 2))
    assert first != second != list(range(0, 100, 2))


def test_order_is_a_function_of_seed_and_epoch(windows):
    a, b, other = make_loader(windows, seed=5), make_loader(windows, seed=5), make_loader(windows, seed=6)
    epochs = [as_lists(a) for _ in range(3)]
    torch.manual_seed(99)
    assert epochs == [as_lists(b) for _ in range(3)]
    b.epoch = 1
    assert as_lists(b) == epochs[1]
    assert as_lists(other) not in epochs  # seed 6 at epoch 0 is not seed 5 at epoch 1
    a.epoch = 0
    assert as_lists(a) == epochs[0] and a.epoch == 1


def test_the_global_random_state_is_left_alone(windows):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    list(make_loader(windows))
    assert torch.equal(torch.get_rng_state(), before)


@given(stop=st.integers(0, 24), shuffle=st.booleans(), drop_last=st.booleans(), batch_size=st.integers(1, 9))
def test_resuming_gives_exactly_the_batches_that_remain(windows, stop, shuffle, drop_last, batch_size):
    def make():
        return make_loader(windows, batch_size, shuffle, drop_last)

    whole, reference = [], make()
    while len(whole) < stop + 2 * len(reference):
        whole += as_lists(reference)
    running, given_so_far, state = make(), [], make().state_dict()
    while len(given_so_far) < stop:
        for inputs, _ in running:
            given_so_far.append(inputs.tolist())
            state = running.state_dict()
            if len(given_so_far) == stop:
                break
    fresh = make()
    fresh.load_state_dict(json.loads(json.dumps(state)))
    while fresh.epoch < reference.epoch:
        given_so_far += as_lists(fresh)
    assert given_so_far == whole


def test_state_after_the_last_batch_and_after_the_epoch(windows):
    loader = make_loader(windows, 10)
    for _ in loader:
        state = loader.state_dict()
    assert (state["epoch"], state["batch"]) == (0, 5)
    assert (loader.state_dict()["epoch"], loader.state_dict()["batch"]) == (1, 0)
    again = make_loader(windows, 10)
    again.load_state_dict(state)
    assert as_lists(again) == [] and again.epoch == 1
    assert as_lists(again) == as_lists(loader)


def test_a_look_at_the_first_batch_changes_nothing(windows):
    loader = make_loader(windows, 10)
    peek = next(iter(loader))[0].tolist()
    epoch = as_lists(loader)
    assert epoch[0] == peek and len(epoch) == 5
    resumed = make_loader(windows, 10)
    resumed.load_state_dict(loader.state_dict() | {"batch": 3})
    peek = next(iter(resumed))[0].tolist()
    rest = as_lists(resumed)
    assert rest[0] == peek and len(rest) == 2
    assert len(as_lists(resumed)) == 5
    resumed.epoch = 1  # the epoch of the state, but now from its beginning
    assert len(as_lists(resumed)) == 5


def test_a_state_of_another_loader_is_refused(windows):
    state = make_loader(windows, 4, seed=1).state_dict()
    with pytest.raises(ValueError, match=r"batch_size was 4, is 8; seed was 1, is 2"):
        make_loader(windows, 8, seed=2).load_state_dict(state)
    with pytest.raises(ValueError, match="samples was 50, is 10"):
        make_loader(Subset(windows, range(10)), 4, seed=1).load_state_dict(state)


@given(batch_size=st.integers(1, 7), world_size=st.integers(1, 6), shuffle=st.booleans(), drop_last=st.booleans())
def test_ranks_share_the_batches_of_one_process(windows, batch_size, world_size, shuffle, drop_last):
    alone = make_loader(windows, batch_size * world_size, shuffle, drop_last)
    ranks = [make_loader(windows, batch_size, shuffle, drop_last, rank=r, world_size=world_size)
             for r in range(world_size)]
    assert {len(rank) for rank in ranks} == {len(alone)}
    for whole, parts in zip(as_lists(alone), zip(*map(as_lists, ranks), strict=True), strict=True):
        assert all(parts) and max(map(len, parts)) - min(map(len, parts)) <= 1
        joined = sum(parts, [])
        assert joined[:len(whole)] == whole and len(joined) == max(len(whole), world_size)
    assert ranks[0].state_dict() == ranks[-1].state_dict()


def test_other_datasets_and_collations_work():
    pairs = [(torch.tensor([i]), i % 2) for i in range(10)]
    loader = make_loader(pairs, 5, shuffle=False)
    assert [labels.tolist() for _, labels in loader] == [[0, 1, 0, 1, 0], [1, 0, 1, 0, 1]]
    names = make_loader([f"text {i}" for i in range(4)], 2, shuffle=False, collate_fn=" | ".join)
    assert list(names) == ["text 0 | text 1", "text 2 | text 3"]


def test_subsets_work(windows):
    inputs, targets = next(iter(make_loader(Subset(windows, [5, 1, 3]), 3, shuffle=False)))
    assert inputs[:, 0].tolist() == [10, 2, 6] and torch.equal(targets[:, :-1], inputs[:, 1:])


def test_workers_give_the_same_batches(windows):
    alone, helped = make_loader(windows, 8), make_loader(windows, 8, num_workers=2)
    assert as_lists(alone) == as_lists(helped)
    for _ in helped:
        break
    assert helped.state_dict()["batch"] == 1  # batches given, not batches prepared ahead


@pytest.mark.parametrize(("options", "message"), [
    ({"batch_size": 0}, "batch_size is 0"), ({"batch_size": 2.5}, "batch_size is 2.5"),
    ({"seed": -1}, "seed is -1"), ({"seed": None}, "seed is None"), ({"rank": 2, "world_size": 2}, "rank is 2"),
    ({"rank": -1}, "rank is -1"), ({"world_size": 0}, "world_size is 0"),
    ({"batch_size": 51}, "50 samples do not fill one batch of 51 .* smaller batch_size or drop_last=False"),
    ({"batch_size": 26, "world_size": 2}, "50 samples do not fill one batch of 26 for each of 2 processes"),
])
def test_wrong_loaders_are_refused(windows, options, message):
    with pytest.raises(ValueError, match=message):
        make_loader(windows, **options)


def test_a_state_is_plain_though_the_numbers_were_numpys(windows):
    one, plain = np.int64(1), make_loader(windows, 4, seed=1, world_size=2, rank=1)
    loader = make_loader(windows, 4 * one, seed=one, world_size=2 * one, rank=one)
    assert loader.order == plain.order and loader.state_dict() == plain.state_dict()
    assert {type(value) for value in loader.state_dict().values()} == {int, bool} and type(loader.order.rank) is int


def test_an_empty_dataset_is_refused():
    with pytest.raises(ValueError, match="0 samples"):
        make_loader([], drop_last=False)


# Files


TEXT = b"Once there was a kite.\n" * 400


def digest(content):
    return hashlib.sha256(content).hexdigest()


def zipped(**members):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():  # without the time of day, so that the same members are the same bytes
            entry = zipfile.ZipInfo(name.replace("__", "../"))
            archive.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return stream.getvalue()


class Server(http.server.BaseHTTPRequestHandler):
    "Serve the bytes of `pages`, and play faults by name."

    pages: dict = {}
    asked: list = []

    def do_GET(self):
        self.asked.append(self.path)
        body = self.pages.get(self.path)
        if body is None:
            return self.send_error(404)
        self.send_response(200)
        cut, drip = "cut" in self.path, "drip" in self.path
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if drip:
            for byte in body:
                try:
                    self.wfile.write(bytes([byte]))
                    self.wfile.flush()
                except OSError:
                    return
                time.sleep(.05)
        self.wfile.write(body[:len(body) // 2] if cut else body)

    def log_message(self, *_):
        pass


@pytest.fixture(scope="module")
def address():
    with serving(Server) as server:
        yield f"http://{server.where}"


@pytest.fixture
def silent():
    "Give an address that takes connections and never answers."
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/kite.txt"


@pytest.fixture
def shelf(address, tmp_path, monkeypatch):
    "Serve pages and register them: `shelf(pages, urls=…)` gives the empty cache folder."
    monkeypatch.delenv("LLM_LITERATE_DATA", raising=False)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    Server.asked = []

    def register(pages, urls, content=TEXT, **fields):
        Server.pages = pages
        full = tuple(url if url.startswith("http") else address + url for url in urls)
        file = DataFile(**{"name": "kite.txt", "urls": full, "sha256": digest(content), "size": len(content),
                           "licence": "ours"} | fields)
        monkeypatch.setattr(data, "FILES", {file.name: file})
        return tmp_path / "cache"

    return register


def left_behind(folder):
    return sorted(path.name for path in folder.glob("**/*")) if folder.exists() else []


def test_a_download_is_kept(shelf, capfd):
    cache = shelf({"/kite.txt": TEXT}, ["/kite.txt"])
    assert local("kite.txt", cache) is None
    path = fetch("kite.txt", cache)
    assert path.read_bytes() == TEXT and path == local("kite.txt", cache) == fetch("kite.txt", str(cache))
    assert left_behind(cache) == ["kite.txt"] and Server.asked == ["/kite.txt"]
    assert capfd.readouterr() == ("", "")


def test_local_asks_nobody(shelf, monkeypatch):
    cache = shelf({"/kite.txt": TEXT}, ["/kite.txt"])
    monkeypatch.setattr(socket, "socket", None)
    assert local("kite.txt", cache) is None


@pytest.mark.parametrize(("path", "body", "reason"), [
    ("/cut/kite.txt", TEXT, "IncompleteRead|ConnectionError|ChunkedEncodingError|does not match"),
    ("/kite.txt", TEXT[:-1] + b"!", digest(TEXT[:-1] + b"!")),
    ("/kite.txt", TEXT + b"!", "longer than 9200 bytes"),
    ("/kite.txt", b"", digest(b"")),
    ("/kite.txt", None, "404"),
])
def test_a_bad_answer_leaves_nothing(shelf, path, body, reason):
    cache = shelf({path: body}, [path])
    with pytest.raises(DataUnavailable, match=reason) as caught:
        fetch("kite.txt", cache)
    assert isinstance(caught.value, OSError)
    said = str(caught.value)
    assert "kite.txt" in said and path in said and str(cache / "kite.txt") in said and digest(TEXT) in said
    assert left_behind(cache) == []


def test_the_next_mirror_is_tried(shelf):
    tampered = TEXT[:-1] + b"!"
    cache = shelf({"/a/kite.txt": tampered, "/cut/kite.txt": TEXT, "/good/kite.txt": TEXT},
                  ["/a/kite.txt", "/gone/kite.txt", "/cut/kite.txt", "/good/kite.txt", "/never/kite.txt"])
    assert fetch("kite.txt", cache).read_bytes() == TEXT
    assert Server.asked == ["/a/kite.txt", "/gone/kite.txt", "/cut/kite.txt", "/good/kite.txt"]
    assert left_behind(cache) == ["kite.txt"]


def test_all_mirrors_are_named_when_all_fail(shelf):
    cache = shelf({}, ["/a/kite.txt", "/b/kite.txt"])
    with pytest.raises(DataUnavailable, match="(?s)/a/kite.txt.*/b/kite.txt"):
        fetch("kite.txt", cache)


@pytest.mark.parametrize("addresses", [1, 4])
def test_servers_that_never_answer(shelf, silent, monkeypatch, addresses):
    assert data.PATIENCE <= 8  # an error within ten seconds; here a tenth of it
    monkeypatch.setattr(data, "PATIENCE", .8)
    waits, download = [], data._download
    monkeypatch.setattr(data, "_download", lambda url, size, wait: (waits.append(wait), download(url, size, wait))[1])
    cache = shelf({}, [silent] * addresses)
    with pytest.raises(DataUnavailable, match="no answer within|timed out"):
        fetch("kite.txt", cache)
    assert len(waits) == addresses and sum(waits) == pytest.approx(.8)
    assert left_behind(cache) == []


def test_a_mirror_helps_where_one_never_answers(shelf, silent, monkeypatch):
    monkeypatch.setattr(data, "PATIENCE", 6.0)  # half of it for each
    assert fetch("kite.txt", shelf({"/kite.txt": TEXT}, [silent, "/kite.txt"])).read_bytes() == TEXT


def test_a_server_that_drips(shelf, monkeypatch):
    monkeypatch.setattr(data, "PATIENCE", .5)
    cache = shelf({"/drip/kite.txt": TEXT}, ["/drip/kite.txt"])  # it would send everything in the end
    with pytest.raises(DataUnavailable, match="no answer within"):
        fetch("kite.txt", cache)
    assert left_behind(cache) == []


def test_a_name_that_hangs(shelf, monkeypatch):
    monkeypatch.setattr(data, "PATIENCE", .5)
    cache = shelf({}, ["http://a-name-that-hangs.invalid/kite.txt"])
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(5))  # then it fails in another way
    with pytest.raises(DataUnavailable, match="no answer within"):
        fetch("kite.txt", cache)


def test_nobody_is_there(shelf):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/kite.txt"
    with pytest.raises(DataUnavailable, match="refused"):
        fetch("kite.txt", shelf({}, [url]))


def test_a_spoilt_download_is_replaced(shelf):
    cache = shelf({"/kite.txt": TEXT}, ["/kite.txt"])
    cache.mkdir()
    (cache / "kite.txt").write_bytes(b"half")
    assert local("kite.txt", cache) is None
    assert fetch("kite.txt", cache).read_bytes() == TEXT


def test_a_cache_that_cannot_be_written(shelf, tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DataUnavailable, match="kite.txt"):
        fetch("kite.txt", shelf({"/kite.txt": TEXT}, ["/kite.txt"]))


def test_the_folder_of_the_environment_comes_first(shelf, tmp_path, monkeypatch):
    cache = shelf({"/kite.txt": TEXT}, ["/kite.txt"])
    monkeypatch.setenv("LLM_LITERATE_DATA", str(tmp_path))
    (tmp_path / "kite.txt").write_bytes(TEXT)
    assert fetch("kite.txt", cache) == local("kite.txt", cache) == tmp_path / "kite.txt"
    assert Server.asked == [] and not cache.exists()


def test_a_wrong_file_in_the_folder_of_the_environment(shelf, tmp_path, monkeypatch):
    cache = shelf({"/kite.txt": TEXT}, ["/kite.txt"])
    monkeypatch.setenv("LLM_LITERATE_DATA", str(tmp_path))
    (tmp_path / "kite.txt").write_bytes(b"other")
    for find in (local, fetch):
        with pytest.raises(DataUnavailable, match=f"(?s){digest(b'other')}.*{digest(TEXT)}"):
            find("kite.txt", cache)
    assert Server.asked == [] and (tmp_path / "kite.txt").read_bytes() == b"other"


def test_a_folder_of_the_environment_without_the_file(shelf, tmp_path, monkeypatch):
    cache = shelf({"/kite.txt": TEXT}, ["/kite.txt"])
    monkeypatch.setenv("LLM_LITERATE_DATA", str(tmp_path / "nothing"))
    assert fetch("kite.txt", cache) == cache / "kite.txt"
    (cache / "kite.txt").unlink()
    Server.pages = {}
    with pytest.raises(DataUnavailable) as caught:
        fetch("kite.txt", cache)
    assert str(tmp_path / "nothing" / "kite.txt") in str(caught.value)


def test_an_unknown_name():
    for find in (local, fetch):
        with pytest.raises(ValueError, match="no data file 'the-verdict' is known, only the-verdict.txt"):
            find("the-verdict")


# Archives


def packed(shelf, archive, **fields):
    return shelf({"/kites.zip": archive}, ["/kites.zip"], archive="kites.zip", archive_sha256=digest(archive), **fields)


def test_a_member_of_an_archive(shelf, tmp_path, monkeypatch):
    archive = zipped(**{"readme": b"hello", "kite.txt": TEXT})
    cache = packed(shelf, archive)
    assert fetch("kite.txt", cache) == local("kite.txt", cache) == cache / "kite.txt"
    assert (cache / "kite.txt").read_bytes() == TEXT and left_behind(cache) == ["kite.txt", "kites.zip"]
    (cache / "kite.txt").unlink()
    assert local("kite.txt", cache) == cache / "kite.txt"  # from the archive that was kept
    monkeypatch.setenv("LLM_LITERATE_DATA", str(tmp_path / "mine"))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "kites.zip").write_bytes(archive)
    assert local("kite.txt", tmp_path / "other") == tmp_path / "other" / "kite.txt"


def test_a_tampered_archive_is_never_opened(shelf, monkeypatch):
    cache = packed(shelf, zipped(**{"kite.txt": TEXT}))
    Server.pages["/kites.zip"] = bad = zipped(**{"kite.txt": TEXT, "more": b"!"})
    monkeypatch.setattr(zipfile, "ZipFile", None)
    with pytest.raises(DataUnavailable, match=digest(bad)):
        fetch("kite.txt", cache)
    assert left_behind(cache) == []


@pytest.mark.parametrize(("members", "reason"), [
    ({"other.txt": TEXT}, r"has no 'kite.txt', only \['other.txt'\]"),
    ({"__kite.txt": TEXT}, "has no 'kite.txt'"),
    ({"kite.txt": TEXT + b"!"}, "has more than 9200 bytes"),
    ({"kite.txt": b"0" * 50_000_000}, "has more than 9200 bytes"),
    ({"kite.txt": TEXT[:-1] + b"!"}, f"must have {digest(TEXT)}"),
])
def test_a_bad_member_is_refused(shelf, tmp_path, members, reason):
    archive = zipped(**members)
    cache = packed(shelf, archive, size=len(TEXT) if len(members.get("kite.txt", b"")) < 10**6 else 9200)
    data.FILES["kite.txt"] = DataFile(**vars(data.FILES["kite.txt"]) | {"size": 9200})
    Server.pages["/kites.zip"] = archive
    if len(archive) > 9200:  # the download itself is too long: put the archive there by hand
        cache.mkdir()
        (cache / "kites.zip").write_bytes(archive)
        with pytest.raises(ValueError, match=reason):
            local("kite.txt", cache)
    else:
        with pytest.raises(DataUnavailable, match=reason):
            fetch("kite.txt", cache)
    assert left_behind(tmp_path) in (["cache", "kites.zip"], ["cache"])


def test_something_that_is_no_archive(shelf):
    with pytest.raises(DataUnavailable, match="BadZipFile"):
        fetch("kite.txt", packed(shelf, b"no zip file at all"))


# The real files


@pytest.mark.data
@pytest.mark.parametrize("name", list(data.FILES))
def test_real_files_are_what_is_registered(name, data_dir, tmp_path):
    path = local(name, tmp_path)
    assert path == data_dir / name and path.stat().st_size == data.FILES[name].size


@pytest.mark.data
def test_the_verdict_gives_the_numbers_of_the_book(gpt2, tmp_path):
    text = local("the-verdict.txt", tmp_path).read_text(encoding="utf-8")
    ids = flat_ids(text, gpt2, piece=1000)
    assert len(ids) == 5145
    inputs, targets = TokenWindows(ids, 4, 1)[0]
    assert (inputs.tolist(), targets.tolist()) == ([40, 367, 2885, 1464], [367, 2885, 1464, 1807])
