"""Checkpoints: killed twenty times, stopped politely, out of disk, damaged or foreign, a run loses nothing.

What must die dies in a process of its own; a fork server imports torch once for all of them.
"""

import errno
import io
import multiprocessing
import os
import pickle
import random
import signal
import stat
import subprocess
import threading
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_literate import checkpoints
from llm_literate.checkpoints import (
    CheckpointError,
    Checkpoints,
    blueprint,
    check_blueprint,
    random_state,
    set_random_state,
)
from llm_literate.data import TokenWindows, make_loader
from llm_literate.generate import generate
from llm_literate.loss import lm_loss
from llm_literate.model import GPTConfig, GPTModel
from llm_literate.train import make_optimizer, train, warmup_cosine

posix = pytest.mark.skipif(os.name != "posix", reason="needs signals and limits that only POSIX systems have")
CONFIG = GPTConfig(64, 16, 64, 4, 2, drop_rate=0.1)
IDS = np.random.default_rng(1).integers(0, 64, 600).astype(np.uint16)
STEPS = 120


def same(a, b):
    "Tell whether two states are equal in every bit."
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(map(same, a, b))
    return a.equal(b) if isinstance(a, torch.Tensor) else type(a) is type(b) and a == b


# A run that has everything: dropout, dice of all kinds, shuffling, accumulation, a schedule, evaluation, samples


def parts(steps=STEPS, config=CONFIG, batch_size=4, lr=3e-3, optimizer=make_optimizer):
    "Make what a run begins with, the same every time."
    torch.manual_seed(1)
    np.random.seed(2)
    random.seed(3)
    model = GPTModel(config)
    loader = make_loader(TokenWindows(IDS[:-100], 16, 16), batch_size, drop_last=False)
    val_loader = make_loader(TokenWindows(IDS[-100:], 16, 16)) # 4 windows of 6, others each time
    return model, loader, val_loader, optimizer(model, lr), steps


def moody_loss(model, batch):
    "Leave out targets by NumPy's and Python's dice, beside torch's dropout."
    inputs, targets = batch
    targets = targets.clone()
    targets[:, np.random.randint(targets.shape[1])] = -100
    targets[:, random.randrange(targets.shape[1])] = -100
    return lm_loss(model, (inputs, targets))


def tell(model):
    "Sample a text: torch's dice are thrown in the middle of the training."
    return str(generate(model, torch.tensor([[1]]), 8, temperature=1.0).tolist())


def run(folder, made, loss_fn=moody_loss, watch=None, **options):
    "Begin, or go on."
    model, loader, val_loader, optimizer, steps = made
    watch = {"text": tell} | (watch or {})
    options = {"save_every": 1, "accumulate": 2, "eval_every": 7} | options
    return train(model, loader, val_loader, loss_fn=loss_fn, optimizer=optimizer, max_steps=steps, watch=watch,
                 schedule=warmup_cosine, checkpoint=folder, progress=False, **options)


def result(folder):
    "Give all of a run's last checkpoint but the time it took."
    state = Checkpoints(folder).load()
    history = {name: values for name, values in state["history"].items() if name != "seconds"}
    return {**state, "history": history, "seconds": 0}


def run_in_child(folder, options):
    torch.set_num_threads(1)
    run(folder, parts(options.pop("steps", STEPS)), **options)


@pytest.fixture(scope="module")
def child():
    "Give a function that starts a function in a new process, without importing torch again."
    if os.name != "posix":
        pytest.skip("needs a fork server")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload( # torch imports its compiler for the first optimizer
        ["pytest", "hypothesis", "torch._dynamo", "llm_literate.train", "llm_literate.generate"])
    started = []

    def start(function, *args):
        process = context.Process(target=function, args=args)
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def ended(process):
    "Wait for a process, and give its exit code."
    process.join(120)
    return process.exitcode


@pytest.fixture(scope="module")
def whole(child, tmp_path_factory):
    "Give what an uninterrupted run ends with."
    folder = tmp_path_factory.mktemp("whole")
    assert ended(child(run_in_child, folder, {})) == 0
    return result(folder)


def wait_for(process, condition, pause=0.001):
    "Look until something is so; False if the process ends before."
    while not condition():
        if not process.is_alive():
            return False
        time.sleep(pause)
    return True


def halfway(process, folder):
    "Hold the process while it has a file half written; True if it was caught at that."
    while wait_for(process, lambda: any(name.endswith(".part") for name in os.listdir(folder)), 0):
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(0.001)
        if any(name.endswith(".part") for name in os.listdir(folder)):
            return True
        os.kill(process.pid, signal.SIGCONT) # it was quicker
    return False


# Killed


@posix
def test_twenty_kills_change_no_bit(child, whole, tmp_path):
    dice, kills, written = random.Random(5), 0, 0
    folder = tmp_path / "run"
    folder.mkdir()
    while kills < 20:
        process = child(run_in_child, folder, {})
        latest = max(Checkpoints(folder)._steps(), default=0) + dice.randrange(6)
        reached = wait_for(process, lambda n=latest: max(Checkpoints(folder)._steps(), default=0) >= n)
        if kills % 2:
            written += reached and halfway(process, folder)
        else:
            time.sleep(dice.random() * 0.03)
        process.kill()
        assert ended(process) == -signal.SIGKILL, "the run was over before it had been killed 20 times"
        kills += 1
    assert written >= 8 # nine or ten, unless the machine is very strange
    done = max(Checkpoints(folder)._steps())
    assert 10 < done < STEPS
    assert ended(child(run_in_child, folder, {})) == 0
    assert same(result(folder), whole)
    assert not [name for name in os.listdir(folder) if name.endswith((".part", ".damaged"))]
    assert whole["history"]["step"] == list(range(STEPS + 1))


def crash_while_saving(folder, moment):
    "Save a third checkpoint, and die before or in the middle of one of its steps."
    def die(*args, **kwargs):
        os.kill(os.getpid(), signal.SIGKILL)

    def write_half(state, file):
        whole = io.BytesIO()
        torch_save(state, whole)
        file.write(whole.getvalue()[:len(whole.getvalue()) // 2])
        file.flush()
        die()

    torch_save, places = torch.save, {
        "write": (torch, "save"), "fsync": (os, "fsync"), "read": (checkpoints, "_read"), "rename": (Path, "replace"),
        "folder": (checkpoints, "sync_folder"), "remove": (Path, "unlink")}
    setattr(*places[moment], write_half if moment == "write" else die)
    Checkpoints(folder).save(numbered(3), 3)


def numbered(step):
    "Make a state that knows its number."
    return {"step": step, "weights": torch.full((3000,), step)}


@posix
@pytest.mark.parametrize("moment, left", [("write", 2), ("fsync", 2), ("read", 2), ("rename", 2), ("folder", 3),
                                          ("remove", 3)])
def test_a_crash_at_each_moment_leaves_a_good_one(child, tmp_path, moment, left):
    store = Checkpoints(tmp_path)
    store.save(numbered(1), 1)
    store.save(numbered(2), 2)
    assert ended(child(crash_while_saving, tmp_path, moment)) == -signal.SIGKILL
    half = [name for name in os.listdir(tmp_path) if name.endswith(".part")]
    assert len(half) == (left == 2)
    assert same(store.load(), numbered(left))
    store.save(numbered(4), 4)
    assert len(os.listdir(tmp_path)) == 2 # no half file, no third one
    assert same(store.load(), numbered(4))


# Asked to stop


def stop_in_child(folder, count, where):
    "Train, count the steps for others to see, and wait at the sixth until a signal was sent."
    def another():
        count.value += 1
        while count.value == 6:
            time.sleep(0.001)

    def counting(model, batch):
        if where == "step" and model.training:
            another()
        return moody_loss(model, batch)

    def measure(model):
        if where == "evaluation":
            another()
        return 1.0

    torch.set_num_threads(1)
    try:
        run(folder, parts(), counting, {"one": measure}, save_every=1000, eval_every=1)
    except KeyboardInterrupt:
        os._exit(42)


@posix
@pytest.mark.parametrize("number, code", [(signal.SIGTERM, 143), (signal.SIGINT, 42)])
@pytest.mark.parametrize("where, step", [("step", 3), ("evaluation", 5)])
def test_a_signal_writes_the_current_step_and_stops(child, whole, tmp_path, number, code, where, step):
    count = multiprocessing.get_context("forkserver").Value("i", 0)
    process = child(stop_in_child, tmp_path, count, where)
    assert wait_for(process, lambda: count.value == 6)
    os.kill(process.pid, number)
    count.value = 7
    assert ended(process) == code
    state = result(tmp_path)
    assert state["step"] == step # the step that ran, or was measured, when the signal came
    for name in "loss", "lr", "step":
        assert state["history"][name] == whole["history"][name][:step + 1]


@pytest.fixture
def ctrl_c():
    "Let SIGINT do what Python does by default, even where the shell has switched it off; give the handlers."
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield handlers()
    signal.signal(signal.SIGINT, before)


def handlers():
    "Say who listens to SIGINT and SIGTERM."
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def interrupting(times, at, seen=None):
    "Make a loss that sends itself SIGINT at a certain call in training, and notes the handlers."
    seen = [] if seen is None else seen

    def loss(model, batch):
        if model.training:
            seen.append(handlers())
            for _ in range(times * (len(seen) == at)):
                signal.raise_signal(signal.SIGINT)
        return moody_loss(model, batch)

    return loss


def test_ctrl_c_saves_this_step_and_gives_the_handlers_back(tmp_path, capsys, ctrl_c):
    seen = []
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, parts(20), interrupting(1, 9, seen), save_every=1000)
    assert handlers() == ctrl_c
    assert all(during != ctrl_c for during in seen[:9])
    assert seen[9][0] == ctrl_c[0] # a second one would be obeyed
    assert "stopped after step 5 of 20" in capsys.readouterr().out
    assert [path.name for path in Checkpoints(tmp_path).paths()] == ["step-000000005.pt"]
    run(tmp_path, parts(20))
    run(tmp_path / "undisturbed", parts(20))
    assert same(result(tmp_path), result(tmp_path / "undisturbed"))


def test_a_second_ctrl_c_is_obeyed_at_once(tmp_path, ctrl_c):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, parts(20), interrupting(2, 9), save_every=1000)
    assert handlers() == ctrl_c
    assert Checkpoints(tmp_path).paths() == []


def test_without_a_checkpoint_ctrl_c_is_pythons_own(ctrl_c):
    seen = []
    with pytest.raises(KeyboardInterrupt):
        run(None, parts(20), interrupting(1, 3, seen))
    assert all(during == ctrl_c for during in seen) and handlers() == ctrl_c


def test_other_threads_leave_the_signals_alone(tmp_path):
    before, seen = handlers(), []
    thread = threading.Thread(target=run, args=(tmp_path, parts(3), interrupting(0, 0, seen)))
    thread.start()
    thread.join()
    assert seen and all(during == before for during in seen)
    assert max(Checkpoints(tmp_path)._steps()) == 3


def test_a_failing_step_gives_the_handlers_back(tmp_path):
    before = handlers()
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, parts(3), lambda model, batch: 1 / 0)
    assert handlers() == before


# A full disk


def fill_the_disk_in_child(folder, out):
    "Train; from step 4 on no file may grow beyond half a checkpoint."
    import resource

    def measure(model):
        paths = Checkpoints(folder).paths()
        if paths and paths[0].name == "step-000000004.pt":
            resource.setrlimit(resource.RLIMIT_FSIZE, (paths[0].stat().st_size // 2,) * 2)
        return 1.0

    torch.set_num_threads(1)
    try:
        run(folder, parts(12), watch={"one": measure}, eval_every=1)
    except CheckpointError as error:
        out.send(str(error))
        os._exit(7)


@posix
def test_a_full_disk_stops_the_run_and_harms_nothing(child, tmp_path):
    ours, theirs = multiprocessing.Pipe()
    undisturbed, tmp_path = tmp_path / "undisturbed", tmp_path / "run"
    processes = child(fill_the_disk_in_child, tmp_path, theirs), child(run_in_child, undisturbed, {"steps": 12})
    assert [ended(process) for process in processes] == [7, 0]
    text = ours.recv()
    assert "could not write" in text and "step-000000005.pt" in text and "File too large" in text
    assert f"the last good one is {tmp_path / 'step-000000004.pt'}" in text
    assert sorted(os.listdir(tmp_path)) == ["step-000000003.pt", "step-000000004.pt"]
    assert result(tmp_path)["step"] == 4
    assert ended(child(run_in_child, tmp_path, {"steps": 12})) == 0
    found, whole = result(tmp_path), result(undisturbed)
    assert same(found["model"], whole["model"]) and same(found["random"], whole["random"])
    assert found["history"]["loss"] == whole["history"]["loss"]


@pytest.fixture
def small_disk(tmp_path):
    "Mount a disk of 256 kB, where this process may."
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(tmp_path)],
                          capture_output=True, check=False) if os.name == "posix" else None
    if done is None or done.returncode:
        pytest.skip("may not mount a small disk here")
    yield tmp_path
    subprocess.run(["umount", "-l", str(tmp_path)], check=True)


def test_a_disk_that_is_really_full(small_disk):
    store = Checkpoints(small_disk / "run")
    store.save({"x": torch.zeros(10_000)}, 1)
    with pytest.raises(CheckpointError, match=r"No space left.*the last good one is .*step-000000001\.pt"):
        store.save({"x": torch.zeros(80_000)}, 2)
    assert os.listdir(store.folder) == ["step-000000001.pt"]
    assert same(store.load(), {"x": torch.zeros(10_000)})
    store.save({"x": torch.ones(10_000)}, 2)
    assert same(store.load(), {"x": torch.ones(10_000)})


def test_a_disk_that_refuses_from_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file, must be a folder"):
        Checkpoints(tmp_path / "file")
    with pytest.raises(CheckpointError, match="there is no other"):
        Checkpoints(tmp_path / "file" / "below").save(numbered(1), 1)


def test_ctrl_c_while_saving_leaves_no_half_file(tmp_path, monkeypatch):
    def interrupted(number):
        raise KeyboardInterrupt

    store = Checkpoints(tmp_path)
    store.save(numbered(1), 1)
    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        store.save(numbered(2), 2)
    assert os.listdir(tmp_path) == ["step-000000001.pt"]
    assert same(store.load(), numbered(1))


def test_what_is_no_fault_of_the_disk_is_told_as_it_is(tmp_path, monkeypatch):
    def fail(*args):
        raise RuntimeError("the accelerator is gone")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(RuntimeError, match="the accelerator is gone"):
        Checkpoints(tmp_path).save(numbered(1), 1)
    assert os.listdir(tmp_path) == []


# Damaged and foreign files


def test_every_damage_is_found(tmp_path):
    store, dice = Checkpoints(tmp_path), random.Random(7)
    store.save(numbered(1), 1)
    path = store.save({"step": 2, "weights": torch.arange(64.0)}, 2)
    good, old, refused = path.read_bytes(), numbered(1), 0
    cases = [good[:n] for n in (0, 1, 100, len(good) // 2, len(good) - 1)]
    for _ in range(300):
        bent = bytearray(good)
        bent[dice.randrange(len(good))] ^= 1 << dice.randrange(8)
        cases.append(bytes(bent))
    for data in cases:
        path.write_bytes(data)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            state = Checkpoints(tmp_path).load()
        if told: # damaged, and found
            refused += 1
            assert "step-000000002.pt cannot be read" in str(told[0].message)
            assert "trying the one before" in str(told[0].message)
            assert same(state, old)
        else: # the bit was in the padding or in a field that says nothing
            assert same(state, {"step": 2, "weights": torch.arange(64.0)})
    assert refused > 100


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_one_is_set_aside_and_counts_no_more(tmp_path, keep):
    store = Checkpoints(tmp_path)
    store.save(numbered(10), 10)
    store.save(numbered(20), 20).write_bytes(b"torn")
    store = Checkpoints(tmp_path, keep=keep)
    with pytest.warns(UserWarning, match=r"step-000000020\.pt cannot be read"):
        assert store.load()["step"] == 10
    store.save(numbered(11), 11)
    expected = ["step-000000010.pt", "step-000000011.pt", "step-000000020.pt.damaged"]
    assert sorted(os.listdir(tmp_path)) == expected[2 - keep:]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert Checkpoints(tmp_path).load()["step"] == 11


def test_a_run_goes_on_from_the_one_before_a_damaged_one(tmp_path):
    run(tmp_path / "a", parts(12), save_every=4)
    run(tmp_path / "b", parts(12), save_every=4)
    path = Checkpoints(tmp_path / "b").paths()[0]
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.warns(UserWarning, match="cannot be read"):
        run(tmp_path / "b", parts(12), save_every=4)
    assert same(result(tmp_path / "a"), result(tmp_path / "b"))


def test_when_all_are_broken_nothing_is_begun_anew(tmp_path):
    store = Checkpoints(tmp_path)
    for step in (1, 2):
        store.save(numbered(step), step).write_bytes(b"torn")
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match=r"step-0+2\.pt .*step-0+1\.pt .*begin anew"):
        store.load()
    with pytest.warns(UserWarning), pytest.raises(CheckpointError):
        run(tmp_path, parts(3))
    assert len(os.listdir(tmp_path)) == 2


class Trap:
    "Make a file when it is unpickled."

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("form", ["torch", "old torch", "pickle"])
def test_no_code_of_a_file_is_run(tmp_path, form):
    store, trace, path = Checkpoints(tmp_path / "run"), tmp_path / "trace", tmp_path / "run" / "step-000000002.pt"
    store.save(numbered(1), 1)
    if form == "pickle":
        path.write_bytes(pickle.dumps({"model": Trap(trace)}))
        pickle.loads(path.read_bytes())
    else:
        torch.save({"model": Trap(trace)}, path, _use_new_zipfile_serialization=form == "torch")
        torch.load(path, weights_only=False)
    trace.unlink() # the trap works
    with pytest.warns(UserWarning) as told:
        assert same(store.load(), numbered(1))
    assert not trace.exists()
    assert "weights_only" not in str(told[0].message) # torch's advice to switch the protection off


def test_a_state_that_could_not_be_loaded_is_not_saved(tmp_path):
    store = Checkpoints(tmp_path)
    store.save(numbered(1), 1)
    for wrong in np.float64(0.5), Path("x"), Trap(tmp_path / "trace"), np.zeros(3):
        with pytest.raises(ValueError, match="must hold plain data only"):
            store.save({"step": 2, "wrong": wrong}, 2)
    assert os.listdir(tmp_path) == ["step-000000001.pt"]


# Another run's checkpoint


def sgd(model, lr):
    return torch.optim.SGD(model.parameters(), lr)


def one_group(model, lr):
    return torch.optim.AdamW(model.parameters(), lr, betas=(0.9, 0.95), weight_decay=0.1)


def frozen(model, lr):
    "Train all but one block, of which there are two alike."
    for weight in model.trf_blocks[0].parameters():
        weight.requires_grad = False
    return make_optimizer(model, lr)


OTHERS = {
    "steps": (dict(steps=9), "steps was 6, is 9"),
    "vocabulary": (dict(config=GPTConfig(65, 16, 64, 4, 2)), r"tok_emb.weight was \(64, 64\) .*is \(65, 64\)"),
    "layers": (dict(config=GPTConfig(64, 16, 64, 4, 3)), r"trf_blocks.2.* was not there"),
    "bias": (dict(config=GPTConfig(64, 16, 64, 4, 2, qkv_bias=True)), "bias was not there"),
    "SGD": (dict(optimizer=sgd), "optimizer was AdamW, is SGD"),
    "one group": (dict(optimizer=one_group), "group 0, weight"),
    "frozen": (dict(optimizer=frozen), "group 0, weight"),
    "learning rate": (dict(lr=1e-3), "group 0, peak was 0.003, is 0.001"),
    "loader": (dict(batch_size=5), "batch_size was 4, is 5"),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    "Give the folder of a short run that is over."
    folder = tmp_path_factory.mktemp("finished")
    run(folder, parts(6))
    return folder


@pytest.mark.parametrize("changed, told", OTHERS.values(), ids=OTHERS.keys())
def test_another_runs_checkpoint_is_refused_before_anything_changes(finished, changed, told):
    model, loader, val_loader, optimizer, steps = made = parts(**{"steps": 6, **changed})
    torch.rand(5)

    def look():
        weights = {name: value.clone() for name, value in model.state_dict().items()}
        return weights, dict(optimizer.state_dict()["state"]), loader.state_dict(), random_state()

    before = look()
    with pytest.raises(ValueError, match=told):
        run(finished, made)
    assert same(look(), before)
    assert result(finished)["step"] == 6


def test_a_finished_run_is_only_read(finished):
    model, *_ = made = parts(6)
    history = run(finished, made)
    assert same(model.state_dict(), result(finished)["model"])
    assert history.columns["step"] == list(range(7))


def test_blueprints_speak_plainly():
    model, _, _, optimizer, _ = parts()
    found = blueprint(model, optimizer, steps=3)
    assert set(map(type, found.values())) == {str} and found["steps"] == "3"
    optimizer.param_groups[0]["lr"] = 1.0 # a schedule's work
    check_blueprint(found, blueprint(model, optimizer, steps=3))
    with pytest.raises(ValueError, match=r"steps was 3, is 4; make everything as it was"):
        check_blueprint(found, blueprint(model, optimizer, steps=4))
    with pytest.raises(ValueError, match=r"; and \d+ more; make"):
        check_blueprint(found, {})
    with pytest.raises(ValueError, match=r"float32, is .*bfloat16"):
        check_blueprint(found, blueprint(model.bfloat16(), optimizer, steps=3))


# The folder


@settings(max_examples=30)
@given(st.lists(st.integers(0, 10**11), min_size=1, max_size=6, unique=True), st.integers(1, 4))
def test_the_last_ones_are_kept(tmp_path_factory, steps, keep):
    store, steps = Checkpoints(tmp_path_factory.mktemp("keep"), keep), sorted(steps)
    paths = [store.save({"step": step}, step) for step in steps]
    assert store.paths() == paths[::-1][:keep]
    assert sorted(os.listdir(store.folder)) == sorted(path.name for path in store.paths())
    assert store.load() == {"step": steps[-1]}


def test_an_earlier_step_is_another_runs(tmp_path):
    store = Checkpoints(tmp_path, keep=1)
    store.save(numbered(5), 5)
    with pytest.raises(ValueError, match="has a checkpoint of step 5, so step 4 is another run's"):
        store.save(numbered(4), 4)
    store.save(numbered(6), 5) # the same step again takes its place
    assert store.load()["step"] == 6


def test_other_files_are_left_alone_and_leftovers_go(tmp_path):
    for name in "notes.txt", "step-3.pt", "step-000000009.pt.bak", ".step-000000007.pt.part":
        (tmp_path / name).write_text("x")
    store = Checkpoints(tmp_path)
    assert store.paths() == [] and store.load() is None
    store.save(numbered(1), 1)
    assert sorted(os.listdir(tmp_path)) == ["notes.txt", "step-000000001.pt", "step-000000009.pt.bak", "step-3.pt"]


def test_nothing_there_is_nothing_loaded(tmp_path):
    assert Checkpoints(tmp_path / "a" / "b").load() is None
    assert not (tmp_path / "a").exists()
    Checkpoints(str(tmp_path / "a" / "b")).save(numbered(1), 1)
    assert (tmp_path / "a" / "b" / "step-000000001.pt").exists()


@pytest.mark.parametrize("keep", [0, -1, 1.5, True, None])
def test_keep_is_a_count(tmp_path, keep):
    with pytest.raises(ValueError, match="keep is .*, must be an integer, 1 or more"):
        Checkpoints(tmp_path, keep)


@posix
def test_a_folder_that_cannot_be_synced_is_no_failure(tmp_path, monkeypatch):
    def refuse(number, fsync=os.fsync):
        if stat.S_ISDIR(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        fsync(number)

    monkeypatch.setattr(os, "fsync", refuse)
    Checkpoints(tmp_path).save(numbered(1), 1)
    assert Checkpoints(tmp_path).load()["step"] == 1


# Dice


def throw():
    "Draw from every generator, also the numbers that they prepare in pairs."
    return (torch.rand(3).tolist(), torch.randn(3).tolist(), np.random.rand(), np.random.randn(3).tolist(),
            random.random(), random.gauss(0, 1), random.sample(range(99), 3))


@pytest.mark.parametrize("drawn", range(4))
def test_the_dice_go_on_from_a_file(drawn):
    for _ in range(drawn):
        throw()
        np.random.randn()
        random.gauss(0, 1)
    file = io.BytesIO()
    torch.save(random_state(), file)
    expected = [throw() for _ in range(3)]
    file.seek(0)
    set_random_state(torch.load(file, weights_only=True))
    assert [throw() for _ in range(3)] == expected


def test_dice_of_a_gpu_that_is_not_here():
    state = random_state() | {"cuda": [torch.zeros(16, dtype=torch.uint8)] * 99}
    with pytest.warns(UserWarning, match="the random states of 99 GPU"):
        set_random_state(state)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_dice_of_a_gpu():
    state = random_state()
    first = torch.rand(5, device="cuda")
    set_random_state(state)
    assert torch.rand(5, device="cuda").equal(first)
