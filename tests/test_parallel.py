"""Training on several processes: one process's losses, equal ranks, checkpoints in shares, signals and deaths.

The ranks are forked from a server that has imported torch once, and meet over a file, so no port is needed.
Whatever hangs is killed after PATIENCE seconds and fails the test.
"""

import io
import itertools
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import pytest
import torch
from torch import nn

from llm_literate.checkpoints import CheckpointError, Checkpoints
from llm_literate.data import TokenWindows, make_loader
from llm_literate.loss import lm_loss
from llm_literate.model import GPTConfig, GPTModel
from llm_literate.train import TrainingDiverged, make_optimizer, train
from llm_literate.weights import load_model

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
    context.set_forkserver_preload(["llm_literate.parallel", "torch._dynamo", "torch.onnx"])
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


def learn(here, kind="ddp", folder=None, steps=6, config=TINY, stop=None, **settings):
    """Train the tiny model; give its columns, its weights and torch's random state.

    With `stop`, the last rank is asked to leave after so many steps, and the exit code is given.
    """
    torch.manual_seed(here.rank)  # whatever a rank begins with, all get rank 0's
    model, real, asked = GPTModel(config), parallel.any_rank, itertools.count(1)
    if stop:
        parallel.any_rank = lambda _: real(next(asked) == stop and here.rank == here.size - 1)
    try:
        history = parallel.train_ranks(
            model, TokenWindows(IDS, 8, 8), TokenWindows(IDS[:129], 8, 8), here=here, kind=kind, lr=1e-2,
            checkpoint=folder, max_steps=steps, eval_every=3, save_every=2, progress=False, **settings)
    except SystemExit as error:
        return error.code
    finally:
        parallel.any_rank = real
    columns = {name: history.columns[name] for name in ("loss", "norm", "val_loss", "step")}
    return columns, {name: w.clone() for name, w in parallel.whole(model).items()}, torch.get_rng_state()


def learn_each(here, runs):
    "Train several times, each with its own arguments."
    return [learn(here, **run) for run in runs]


def alone(batch_size=8, **settings):
    "Do the same without any of this."
    torch.manual_seed(0)
    model = GPTModel(TINY)
    loaders = [make_loader(TokenWindows(IDS[:n], 8, 8), batch_size, shuffle)
               for n, shuffle in ((None, True), (129, False))]
    history = train(model, *loaders, optimizer=make_optimizer(model, 1e-2), max_steps=6, eval_every=3,
                    progress=False, **settings)
    return history.columns, model.state_dict()


def same(columns, others):
    "Compare losses, gradient lengths and evaluations up to the order in which sums were taken."
    for name in "loss", "norm", "val_loss":
        assert [x is None for x in columns[name]] == [x is None for x in others[name]], name
        pairs = [(x, y) for x, y in zip(columns[name], others[name], strict=True) if x is not None]
        assert all(x == pytest.approx(y, abs=1e-5) for x, y in pairs), name


def close(weights, others):
    "Compare weights likewise."
    assert all(torch.allclose(weights[name], others[name], atol=1e-4) for name in {**weights, **others})


@pytest.fixture(scope="module")
def reference():
    "Train in this process, with nothing but `train`."
    return alone()


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "Train on two ranks, straight and stopped after 3 steps; by kind, and the folder of the checkpoints."
    folder = tmp_path_factory.mktemp("stopped")
    runs = [{"kind": kind} | more for kind in ("ddp", "fsdp") for more in ({}, {"folder": folder / kind, "stop": 3})]
    found = together(2, learn_each, runs)
    together(1, learn, "ddp", folder / "one", 6, TINY, 3)
    assert [rank[i] for rank in found for i in (1, 3)] == [128 + signal.SIGTERM] * 4
    return {kind: [rank[i] for rank in found] for kind, i in (("ddp", 0), ("fsdp", 2))}, folder


# The same training


@pytest.mark.parametrize("kind", ["ddp", "fsdp"])
def test_two_ranks_train_what_one_process_trains(trained, reference, kind):
    (first, mine, _), (second, theirs, _) = trained[0][kind]
    same(first, reference[0])
    close(mine, reference[1])
    assert first == second  # between ranks, to the last bit
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)


def _masked(valid):
    "Make four windows, of which the first two have few targets that count."
    inputs, targets = IDS[:32].reshape(4, 8), IDS[1:33].reshape(4, 8).clone()
    targets[:2, valid:] = -100
    return inputs, targets


def _gradients(here):
    "Give loss, count and gradient of batches whose targets are unevenly shared."
    found = []
    for kind, valid in (("ddp", 1), ("fsdp", 3), ("ddp", 0)):
        torch.manual_seed(0)
        model = GPTModel(TINY)
        forward = parallel.distribute(model, kind)
        batch = [part[2 * here.rank:2 * here.rank + 2] for part in _masked(valid)]
        loss, n = parallel.shared_loss(forward)(model, batch)
        loss.backward()
        grad = next(model.parameters()).grad
        found.append((loss.item(), n, grad.full_tensor() if kind == "fsdp" else grad.clone()))
    return found


def test_every_target_counts_alike_on_whatever_rank():
    found = together(2, _gradients)
    for i, valid in enumerate((1, 3, 0)):
        torch.manual_seed(0)
        model = GPTModel(TINY)
        loss, n = lm_loss(model, _masked(valid))
        loss.backward()
        for value, count, gradient in (rank[i] for rank in found):
            assert value == pytest.approx(loss.item(), abs=1e-6)
            assert count == n
            assert torch.allclose(gradient, next(model.parameters()).grad, atol=1e-6)


def test_accumulation_is_exact_on_ranks_too():
    one, weights = alone(4, accumulate=2)
    runs = [{"kind": kind, "accumulate": 2, "batch_size": 4} for kind in ("ddp", "fsdp")]
    for columns, found, _ in (run for rank in together(2, learn_each, runs) for run in rank):
        same(columns, one)
        close(found, weights)


def _kept(here):
    "Count the bytes that a rank keeps after a step."
    def size(tensors):
        return sum(getattr(t, "_local_tensor", t).numel() * 4 for t in tensors)

    found = []
    for kind in "ddp", "fsdp":
        model = GPTModel(TINY)
        forward = parallel.distribute(model, kind)
        optimizer = make_optimizer(model, 1e-3)
        parallel.shared_loss(forward)(model, (IDS[:8][None], IDS[1:9][None]))[0].backward()
        optimizer.step()
        moments = [t for state in optimizer.state.values() for name, t in state.items() if name != "step"]
        found.append({"weights": size(model.parameters()), "gradients": size(w.grad for w in model.parameters()),
                      "optimizer": size(moments)})
    return found


def test_memory_is_what_the_formula_says():
    kept = together(2, _kept)
    for i, kind in enumerate(("ddp", "fsdp")):
        told = parallel.state_bytes(GPTModel(TINY), kind, 2)
        for name in "weights", "gradients", "optimizer":
            assert sum(rank[i][name] for rank in kept) / 2 == pytest.approx(told[name], rel=0.02), (kind, name)
        assert (told["borrowed"] > 0) == (kind == "fsdp")
        assert parallel.state_bytes(GPTModel(TINY), kind, 1)["borrowed"] == 0
        with pytest.raises(ValueError, match="size is 0, must be an integer"):
            parallel.state_bytes(GPTModel(TINY), kind, 0)


# Checkpoints


def test_any_world_goes_on_where_another_stopped(trained, reference, tmp_path):
    straight, stopped = trained
    for name in "ddp", "fsdp", "one":
        assert [path.name for path in sorted((stopped / name).iterdir())] == ["step-000000002", "step-000000003"]

    def copied(name, kind, world):
        return {"kind": kind, "folder": shutil.copytree(stopped / name, tmp_path / f"{name}-{kind}-{world}")}

    one = together(1, learn_each, [copied("fsdp", "ddp", 1)])
    two = together(2, learn_each, [copied("fsdp", "fsdp", 2), copied("ddp", "fsdp", 2), copied("one", "fsdp", 2),
                                   copied("fsdp", "ddp", 2)])
    for columns, weights, _ in (run for rank in one + two for run in rank):
        same(columns, reference[0])
        close(weights, reference[1])
    for rank in two:  # the same world goes on to the last bit
        assert rank[0][0] == straight["fsdp"][0][0]
        assert all(torch.equal(w, straight["fsdp"][0][1][name]) for name, w in rank[0][1].items())


def test_each_rank_has_its_own_dropout_and_takes_it_up_again(tmp_path):
    dropping = GPTConfig(**{**vars(TINY), "drop_rate": 0.3})
    runs = [{"config": dropping}, {"config": dropping, "folder": tmp_path, "stop": 3}]
    straight = together(2, learn_each, runs)
    resumed = together(2, learn_each, [{"config": dropping, "folder": tmp_path}])
    for rank in 0, 1:
        assert resumed[rank][0][0] == straight[rank][0][0]
        assert torch.equal(resumed[rank][0][2], straight[rank][0][2])
    assert not torch.equal(straight[0][0][2], straight[1][0][2])


def _troubled(here, folder):
    "Meet another model's checkpoint, and damaged ones."
    with pytest.raises(ValueError) as caught:
        learn(here, "fsdp", folder / "other", config=GPTConfig(**{**vars(TINY), "emb_dim": 12}))
    found = []
    for harm in "torn", "gone", "table":
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            columns, _, _ = learn(here, "fsdp", folder / harm)
        found.append((columns, [str(w.message) for w in told if "cannot be read" in str(w.message)]))
    with pytest.raises(CheckpointError) as last, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        learn(here, "fsdp", folder / "all")
    return str(caught.value), found, str(last.value)


def test_other_and_damaged_checkpoints(trained, reference, tmp_path):
    for name in "other", "torn", "gone", "table", "all":
        shutil.copytree(trained[1] / "fsdp", tmp_path / name)
    newest = "step-000000003"
    share = max((tmp_path / "torn" / newest).glob("__1_*"))
    share.write_bytes(share.read_bytes()[:100])
    max((tmp_path / "gone" / newest).glob("__1_*")).unlink()
    (tmp_path / "table" / newest / ".metadata").write_bytes(b"nothing")
    for path in (tmp_path / "all").glob("step-*"):
        (path / ".metadata").unlink()
    for refused, passed_over, unreadable in together(2, _troubled, tmp_path):
        assert "this checkpoint is of another run" in refused and "(61, 12)" in refused
        for columns, told in passed_over:
            same(columns, reference[0])
            assert newest in told[0] and "trying the one before" in told[0]
        assert "step-000000002 cannot be read" in unreadable and "begin anew" in unreadable
    for harm in "torn", "gone", "table":
        assert (tmp_path / harm / f"{newest}.damaged").is_dir()


def _full_disk(here, folder):
    "Let rank 1 find the disk full."
    from torch.distributed.checkpoint.filesystem import FileSystemWriter
    real = FileSystemWriter.write_data

    def write(*args):
        if here.rank == 1:
            raise OSError(28, "No space left on device")
        return real(*args)

    FileSystemWriter.write_data = write
    with pytest.raises(CheckpointError) as caught:
        learn(here, "fsdp", folder)
    return str(caught.value)


def test_a_full_disk_of_one_rank_is_an_error_on_all(tmp_path):
    for told in together(2, _full_disk, tmp_path):
        assert "could not write" in told and "No space left" in told and "there is no other" in told
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("step-")]


def test_what_could_not_be_read_again_is_not_written(tmp_path):
    with parallel.ranks():
        model = GPTModel(TINY)
        optimizer = make_optimizer(model, 1e-3)
        store = parallel.ShardedCheckpoints(tmp_path, model, optimizer)
        with pytest.raises(ValueError, match="plain data only: Unsupported"):
            store.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                        "history": {"lr": [np.float64(1e-3)]}}, 1)
    assert not [*tmp_path.iterdir()]


def test_numbers_of_numpy_can_be_saved_and_taken_up(tmp_path):
    settings = {"folder": tmp_path, "schedule": lambda step, total: np.float64(1), "max_norm": np.float64(1),
                "weight_decay": np.float64(0.1), "batch_size": np.int64(8), "seed": np.int64(1)}
    with parallel.ranks() as here:
        learn(here, steps=np.int64(2), **settings)
        assert [path.name for path in tmp_path.iterdir()] == ["step-000000002"]
        columns, _, _ = learn(here, steps=np.int64(2), **settings)
    assert columns["step"] == [0, 1, 2]


def test_a_cause_is_one_plain_line():
    long = UnpicklingError("Weights only load failed. \x1b[1mdo those steps\x1b[0m\n\tWeightsUnpickler error: "
                           "Unsupported global: GLOBAL numpy. Please use that.")
    assert parallel._cause(long) == "UnpicklingError: Unsupported global: GLOBAL numpy."


def test_the_store_is_one_that_train_takes():
    public = {name for name in vars(Checkpoints) if not name.startswith("_")} | {"folder", "keep"}
    store = parallel.ShardedCheckpoints("nowhere", nn.Linear(1, 1), None)
    assert public <= {*dir(store)}
    assert store.paths() == []
    with pytest.raises(ValueError, match="keep is 0"):
        parallel.ShardedCheckpoints("nowhere", nn.Linear(1, 1), None, keep=0)


# Refusals


def _refusals(here):
    "Give what is said to impossible arguments, and the step where a loss of NaN on rank 1 stopped this rank."
    told = []
    for work in (lambda: parallel.distribute(nn.Linear(1, 1), "tp"), lambda: learn(here, batch_size=5),
                 lambda: learn(here, compile=True), lambda: learn(here, batch_size="8")):
        with pytest.raises(ValueError) as caught:
            work()
        told.append(str(caught.value))

    def sick(model, batch):
        loss, n = lm_loss(model, batch)
        return (loss * float("nan"), n) if here.rank == 1 else (loss, n)

    with pytest.raises(TrainingDiverged) as diverged:
        learn(here, loss_fn=sick)
    return told, diverged.value.step


def test_impossible_arguments_are_refused_and_nan_stops_all():
    for (kind, batch, compiled, text), step in together(2, _refusals):
        assert "'ddp' or 'fsdp'" in kind
        assert "multiple of the 2 ranks" in batch
        assert "model.compile()" in compiled
        assert "batch_size is '8', must be an integer, 1 or more" in text
        assert step == 1


# torchrun: signals and deaths


def launch(folder, *options):
    "Start the program with torchrun, in a session of its own."
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m",
         "llm_literate.parallel", "--stories=12", "--width=32", "--layers=1", f"--folder={folder}", *options],
        env=os.environ | {"OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}, text=True, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def wait_for(run, folder, what="step-*"):
    "Wait until there is a checkpoint, and give the numbers of the ranks' processes."
    end = time.monotonic() + PATIENCE
    while not [*Path(folder).glob(f"checkpoints/{what}")]:
        assert run.poll() is None, run.stdout.read()
        assert time.monotonic() < end, "no checkpoint in time"
        time.sleep(0.05)
    found = {}
    while len(found) < 2:
        for rank, number in re.findall(r"rank (\d) of 2: process (\d+)", run.stdout.readline()):
            found[int(rank)] = int(number)
        assert run.poll() is None or len(found) == 2
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
    stopped = {int(step) for step in re.findall(r"stopped after step (\d+)", out)}
    state = state_of(tmp_path)
    assert stopped == {state["step"]}, out
    assert len(state["history"]["loss"]) == state["step"] + 1
    newest = max((tmp_path / "checkpoints").glob("step-*"))
    known = parallel.dcp.FileSystemReader(newest).read_metadata().state_dict_metadata
    rests = {name: torch.empty(known[name].size, dtype=torch.uint8) for name in ("rest.0", "rest.1")}
    parallel.dcp.load(rests, checkpoint_id=newest, no_dist=True)
    for data in rests.values():  # both ranks wrote their share, of the same step
        assert torch.load(io.BytesIO(data.numpy().tobytes()), weights_only=True)["step"] == state["step"]


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
    parallel.main(folder=tmp_path, steps=2, stories=12, width=32, layers=1)
    model = load_model(tmp_path / "model.safetensors")
    assert model.config.emb_dim == 32
    assert len(json.loads((tmp_path / "history.json").read_text())["loss"]) == 3
