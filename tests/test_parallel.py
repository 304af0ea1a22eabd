"""Training on several processes: one process's losses, equal ranks, checkpoints in shares, signals and deaths.

The ranks are forked from a server that has imported torch once, and meet over a file, so no port is needed.
Whatever hangs is killed after PATIENCE seconds and fails the test.
"""

import io
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

import pytest
import torch
from torch import nn

from llm_literate.checkpoints import CheckpointError, Checkpoints
from llm_literate.data import TokenWindows
from llm_literate.loss import lm_loss
from llm_literate.model import GPTConfig, GPTModel
from llm_literate.train import make_optimizer, train

if not torch.distributed.is_available():
    pytest.skip("this PyTorch was built without torch.distributed", allow_module_level=True)

import torch.distributed as dist

from llm_literate import parallel

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="gloo over a file needs a POSIX system")

PATIENCE = 120  # seconds; far more than any of these takes on a busy machine
TINY = GPTConfig(vocab_size=61, context_length=8, emb_dim=8, n_heads=2, n_layers=2, drop_rate=0.0)
IDS = torch.arange(400) * 7 % 61


# What the ranks do; functions of a module, so that another process can find them


def _rank(rank, size, folder, work, args, answers):
    "Join the others, work, and send back what came of it."
    torch.set_num_threads(1)
    warnings.simplefilter("ignore", FutureWarning)
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=size)
        with parallel.ranks() as here:
            file = io.BytesIO()
            torch.save(work(here, *args), file)  # bytes outlive the process, shared tensors do not
            answers.put((rank, "done", file.getvalue()))
    except BaseException:
        answers.put((rank, "failed", traceback.format_exc()))
    finally:
        answers.close()
        answers.join_thread()
        os._exit(0)  # nobody waits for a rank that is gone


def together(size, work, *args):
    "Run `work(here, *args)` on so many ranks; give what each returned."
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["llm_literate.parallel", "torch.distributed.fsdp"])
    answers = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        processes = [context.Process(target=_rank, args=(rank, size, folder, work, args, answers))
                     for rank in range(size)]
        for process in processes:
            process.start()
        try:
            found = dict((rank, (how, what)) for rank, how, what in
                         (answers.get(timeout=PATIENCE) for _ in processes))
        finally:
            for process in processes:
                process.kill()
                process.join()
    failures = [what for how, what in found.values() if how == "failed"]
    assert not failures, "\n".join(failures)
    return [torch.load(io.BytesIO(found[rank][1]), weights_only=False) for rank in range(size)]


def learn(here, kind, folder=None, steps=6, config=TINY, **settings):
    "Train the tiny model; give its losses, gradient lengths, evaluations and weights."
    torch.manual_seed(here.rank)  # whatever a rank begins with, all get rank 0's
    model = GPTModel(config)
    history = parallel.train_ranks(
        model, TokenWindows(IDS, 8, 8), TokenWindows(IDS[:129], 8, 8), here=here, kind=kind, lr=1e-2,
        checkpoint=folder, max_steps=steps, eval_every=3, save_every=2, progress=False, **settings)
    columns = {name: history.columns[name] for name in ("loss", "norm", "val_loss", "step")}
    return columns, {name: w.clone() for name, w in parallel.whole(model).items()}


def alone(steps=6, config=TINY):
    "Do the same without any of this."
    from llm_literate.data import make_loader
    torch.manual_seed(0)
    model = GPTModel(config)
    loaders = [make_loader(TokenWindows(IDS[:n], 8, 8), 8, shuffle) for n, shuffle in ((None, True), (129, False))]
    history = train(model, *loaders, optimizer=make_optimizer(model, 1e-2), max_steps=steps, eval_every=3,
                    progress=False)
    return history.columns, model.state_dict()


def near(a, b, tolerance=1e-5):
    "Compare columns with holes."
    assert [x is None for x in a] == [x is None for x in b]
    return [x for x in a if x is not None] == pytest.approx([x for x in b if x is not None], abs=tolerance)


# The same training


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_train_what_one_process_trains(kind):
    one, weights = alone()
    (first, mine), (second, theirs) = together(2, learn, kind)
    for name in "loss", "norm", "val_loss":
        assert near(first[name], one[name]), name
        assert first[name] == second[name], name  # the history is the same to the last bit
    for name in weights:
        assert torch.equal(mine[name], theirs[name]), name
        assert torch.allclose(mine[name], weights[name], atol=1e-4), name


def _gradients(here, kind, n_valid):
    "Give the loss and the gradient of a batch whose targets are unevenly shared."
    torch.manual_seed(0)
    model = GPTModel(TINY)
    forward = parallel.distribute(model, kind)
    inputs, targets = IDS[:32].reshape(4, 8), IDS[1:33].reshape(4, 8).clone()
    targets[:2, n_valid:] = -100
    part = slice(0, 2) if here.rank == 0 else slice(2, 4)
    if here.size == 1:
        part = slice(0, 4)
    loss, n = parallel.shared_loss(forward)(model, (inputs[part], targets[part]))
    loss.backward()
    grad = next(model.parameters()).grad
    return loss.item(), n, (grad.full_tensor() if hasattr(grad, "full_tensor") else grad).clone()


@pytest.mark.parametrize(("kind", "valid"), [("ddp", 1), ("fsdp", 3), ("ddp", 0)])
def test_every_target_counts_alike_on_whatever_rank(kind, valid):
    torch.manual_seed(0)
    model = GPTModel(TINY)
    inputs, targets = IDS[:32].reshape(4, 8), IDS[1:33].reshape(4, 8).clone()
    targets[:2, valid:] = -100
    loss, n = lm_loss(model, (inputs, targets))
    loss.backward()
    for value, count, gradient in together(2, _gradients, kind, valid):
        assert value == pytest.approx(loss.item(), abs=1e-6)
        assert count == n
        assert torch.allclose(gradient, next(model.parameters()).grad, atol=1e-6)


def _accumulated(here):
    columns, _ = learn(here, "fsdp", accumulate=2, batch_size=4)
    return columns


def test_accumulation_on_ranks_is_a_larger_batch():
    one, _ = alone()
    for columns in together(2, _accumulated):
        assert near(columns["loss"][1:2], one["loss"][1:2], 1)  # other samples, the same kind of number
        assert columns["step"] == one["step"]


def _kept(here, kind):
    "Count the bytes that a rank keeps after a step."
    model = GPTModel(TINY)
    forward = parallel.distribute(model, kind)
    optimizer = make_optimizer(model, 1e-3)
    parallel.shared_loss(forward)(model, (IDS[:8][None], IDS[1:9][None]))[0].backward()
    optimizer.step()

    def size(tensors):
        return sum(getattr(t, "_local_tensor", t).numel() * 4 for t in tensors)
    moments = [t for s in optimizer.state.values() for name, t in s.items() if name != "step"]
    return {"weights": size(model.parameters()), "gradients": size(w.grad for w in model.parameters()),
            "optimizer": size(moments)}


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_memory_is_what_the_formula_says(kind):
    told = parallel.state_bytes(GPTModel(TINY), kind, 2)
    kept = together(2, _kept, kind)
    for name in "weights", "gradients", "optimizer":
        assert sum(rank[name] for rank in kept) / 2 == pytest.approx(told[name], rel=0.02), name
    assert told["borrowed"] == 0 if kind == "ddp" else told["borrowed"] > 0
    assert parallel.state_bytes(GPTModel(TINY), kind, 1)["borrowed"] == 0


# Checkpoints


def _saved_then(here, kind, folder, steps):
    "Train some steps of six and stop as if somebody had asked."
    asked = iter(range(1, 100))
    real = parallel.any_rank
    parallel.any_rank = lambda _: real(next(asked) == steps and here.rank == here.size - 1)
    try:
        learn(here, kind, folder)
    except SystemExit as error:
        return error.code
    finally:
        parallel.any_rank = real


@pytest.mark.parametrize(("before", "kind", "after", "other"), [
    (2, "fsdp", 1, "ddp"), (1, "ddp", 2, "fsdp"), (2, "ddp", 2, "fsdp"), (2, "fsdp", 2, "fsdp")])
def test_any_world_goes_on_where_another_stopped(tmp_path, before, kind, after, other):
    straight = together(before, learn, kind)[0] if (before, kind) == (after, other) else None
    assert together(before, _saved_then, kind, tmp_path, 3) == [128 + signal.SIGTERM] * before
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["step-000000002", "step-000000003"]
    one, weights = alone()
    for columns, found in together(after, learn, other, tmp_path):
        assert near(columns["loss"], one["loss"])
        assert near(columns["val_loss"], one["val_loss"])
        for name in weights:
            assert torch.allclose(found[name], weights[name], atol=1e-4), name
        if straight:  # the same world goes on to the last bit
            assert columns["loss"] == straight[0]["loss"]
            assert all(torch.equal(found[name], straight[1][name]) for name in found)


DROPPING = GPTConfig(**{**vars(TINY), "drop_rate": 0.3})


def _dropping(here, folder, stop):
    if stop:
        asked = iter(range(1, 100))
        real, parallel.any_rank = parallel.any_rank, lambda _: next(asked) == stop
        try:
            return learn(here, "ddp", folder, config=DROPPING)
        except SystemExit as error:
            return error.code
        finally:
            parallel.any_rank = real
    state = torch.get_rng_state()
    columns, _ = learn(here, "ddp", folder, config=DROPPING)
    return columns["loss"], torch.get_rng_state(), state


def test_each_rank_has_its_own_dropout_and_takes_it_up_again(tmp_path):
    straight = together(2, _dropping, None, 0)
    together(2, _dropping, tmp_path, 3)
    resumed = together(2, _dropping, tmp_path, 0)
    assert resumed[0][0] == straight[0][0]
    for rank in 0, 1:
        assert torch.equal(resumed[rank][1], straight[rank][1])
    assert not torch.equal(straight[0][1], straight[1][1])


def _refused(here, folder, config):
    with pytest.raises(ValueError) as caught:
        learn(here, "fsdp", folder, config=config)
    return str(caught.value)


def test_another_model_is_refused_in_words(tmp_path):
    together(2, learn, "fsdp", tmp_path, 2)
    wider = GPTConfig(**{**vars(TINY), "emb_dim": 12})
    for told in together(2, _refused, tmp_path, wider):
        assert "this checkpoint is of another run" in told
        assert "(61, 12)" in told


def _after_damage(here, folder):
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        columns, _ = learn(here, "fsdp", folder)
    return columns["loss"], [str(w.message) for w in told if "cannot be read" in str(w.message)]


@pytest.mark.parametrize("harm", ["torn", "gone", "table"])
def test_a_damaged_checkpoint_is_passed_over_by_all_ranks(tmp_path, harm):
    together(2, _saved_then, "fsdp", tmp_path, 4)
    newest = max(tmp_path.iterdir())
    share = max(newest.glob("__1_*"))
    if harm == "torn":
        share.write_bytes(share.read_bytes()[:100])
    elif harm == "gone":
        share.unlink()
    else:
        (newest / ".metadata").write_bytes(b"nothing")
    one, _ = alone()
    for losses, told in together(2, _after_damage, tmp_path):
        assert near(losses, one["loss"])
        assert newest.name in told[0] and "trying the one before" in told[0]
    assert newest.with_suffix(".damaged").is_dir()


def _cannot_write(here, folder):
    real = parallel.dcp.FileSystemWriter.write_data
    def full(self, *args):
        if here.rank == 1:
            raise OSError(28, "No space left on device")
        return real(self, *args)
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    FileSystemWriter.write_data = full
    with pytest.raises(CheckpointError) as caught:
        learn(here, "fsdp", folder)
    return str(caught.value)


def test_a_full_disk_of_one_rank_is_an_error_on_all(tmp_path):
    for told in together(2, _cannot_write, tmp_path):
        assert "could not write" in told and "No space left" in told
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("step-")]


def test_the_store_is_one_that_train_takes():
    public = {name for name in vars(Checkpoints) if not name.startswith("_")} | {"folder", "keep"}
    store = parallel.ShardedCheckpoints("nowhere", nn.Linear(1, 1), None)
    assert public <= {*dir(store)}
    assert store.paths() == []
    with pytest.raises(ValueError, match="keep is 0"):
        parallel.ShardedCheckpoints("nowhere", nn.Linear(1, 1), None, keep=0)


# Refusals


def _wrong(here):
    told = []
    for work in (lambda: parallel.distribute(nn.Linear(1, 1), "tp"),
                 lambda: parallel.train_ranks(GPTModel(TINY), TokenWindows(IDS, 8, 8), here=here, batch_size=5),
                 lambda: parallel.train_ranks(GPTModel(TINY), TokenWindows(IDS, 8, 8), here=here, compile=True)):
        with pytest.raises(ValueError) as caught:
            work()
        told.append(str(caught.value))
    return told


def test_impossible_arguments_are_refused():
    for told in together(2, _wrong):
        assert "'ddp' or 'fsdp'" in told[0]
        assert "multiple of the 2 ranks" in told[1]
        assert "model.compile()" in told[2]


def _nan(here):
    from llm_literate.train import TrainingDiverged
    def sick(model, batch):
        loss, n = lm_loss(model, batch)
        return (loss * float("nan"), n) if here.rank == 1 else (loss, n)
    with pytest.raises(TrainingDiverged) as caught:
        learn(here, "ddp", loss_fn=sick)
    return caught.value.step


def test_a_loss_that_is_no_number_on_one_rank_stops_all():
    assert together(2, _nan) == [1, 1]


# torchrun: signals and deaths


def launch(folder, *options):
    "Start the program with torchrun; return it and the process numbers of its ranks."
    run = subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m",
         "llm_literate.parallel", "--stories=12", "--width=32", "--layers=1", f"--folder={folder}", *options],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    return run


def wait_for(run, folder, what="step-*"):
    "Wait until there is a checkpoint, and give the numbers of the ranks' processes."
    end = time.monotonic() + PATIENCE
    while not [*Path(folder).glob(f"checkpoints/{what}")]:
        assert run.poll() is None, run.stdout.read()
        assert time.monotonic() < end, "no checkpoint in time"
        time.sleep(0.05)
    found = {}
    while len(found) < 2:
        if match := re.search(r"rank (\d) of 2: process (\d+)", run.stdout.readline()):
            found[int(match[1])] = int(match[2])
    return found


def finish(run):
    "Give what a run printed; if it hangs, end its whole session and fail."
    try:
        return run.communicate(timeout=PATIENCE)[0]
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        run.communicate()
        pytest.fail(f"the job did not end within {PATIENCE} seconds")


def state_of(folder):
    "Read the newest checkpoint in this process, a world of one."
    config = GPTConfig(2048, 64, 32, 1, 1, 0.0)
    with parallel.ranks():
        model = GPTModel(config)
        state = parallel.ShardedCheckpoints(Path(folder) / "checkpoints", model, make_optimizer(model, 1e-3)).load()
    assert set(state["model"]) == set(model.state_dict())
    model.load_state_dict(state["model"])
    return state


def test_sigterm_saves_on_all_ranks_at_one_step(tmp_path):
    run = launch(tmp_path, "--kind=fsdp", "--steps=100000", "--save-every=5")
    numbers = wait_for(run, tmp_path)
    os.kill(numbers[1], signal.SIGTERM)  # only one of them is told
    out = finish(run)
    assert run.returncode != 0
    stopped = re.findall(r"stopped after step (\d+)", out)
    assert len(stopped) == 2 and len(set(stopped)) == 1, out
    state = state_of(tmp_path)
    assert state["step"] == int(stopped[0])
    assert len(state["history"]["loss"]) == state["step"] + 1


def test_a_killed_rank_ends_the_job_and_leaves_a_checkpoint(tmp_path):
    run = launch(tmp_path, "--kind=ddp", "--steps=100000", "--save-every=5")
    numbers = wait_for(run, tmp_path)
    os.kill(numbers[1], signal.SIGKILL)
    out = finish(run)
    assert run.returncode != 0
    assert "SIGKILL" in out
    assert state_of(tmp_path)["step"] % 5 == 0
    for number in numbers.values():
        with pytest.raises(ProcessLookupError):
            os.kill(number, 0)


def test_the_program_leaves_a_plain_model(tmp_path):
    from llm_literate.weights import load_model
    parallel.main(folder=tmp_path, steps=2, stories=12, width=32, layers=1)
    model = load_model(tmp_path / "model.safetensors")
    assert model.config.emb_dim == 32
    assert len(json.loads((tmp_path / "history.json").read_text())["loss"]) == 3
