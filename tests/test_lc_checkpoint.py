"""Checkpoints: a run that was killed ends as if it had not been."""

import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
from lc_problem import problem, step

import lc

MU = lc.exponential(1e-2, 1.8, 6)
TASKS = [lc.Task("0", lc.Quantize(3) + lc.Prune(0.05)), lc.Task("2", lc.LowRank(2))]


def run(path, stop_after=None, mu=MU, tasks=TASKS, state=True):
    """A run whose L steps use every kind of state; returns the model, or None if it was left early."""
    model, x, y = problem()
    algorithm = lc.LCAlgorithm(
        model, tasks, mu=mu, evaluate=lambda m: {"loss": float((m(x).argmax(1) != y).sum())}, best=("loss", "min")
    )
    generator = torch.Generator().manual_seed(5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    algorithm.attach(optimizer)
    kept = {"generator": generator, "optimizer": optimizer} if state else {}
    for n in algorithm.steps(checkpoint=path, state=kept):
        for _ in range(3):
            noise = torch.rand(x.shape) * random.random() * float(np.random.rand())
            rows = torch.randperm(len(x), generator=generator)[:64]
            step(model, optimizer, (x + 0.1 * noise)[rows], y[rows])
        if n == stop_after:
            return None
    history = [{**vars(s), "seconds_l": 0, "seconds_c": 0, "seconds_eval": 0} for s in algorithm.history.steps]
    return model.state_dict(), history


def seeded(path, **options):
    torch.manual_seed(0), random.seed(0), np.random.seed(0)
    return run(path, **options)


@pytest.mark.parametrize("stop_after", [0, 2, len(MU) - 1])
def test_a_run_left_early_ends_the_same_to_the_bit(tmp_path, stop_after):
    whole, history = seeded(tmp_path / "whole.ckpt")
    path = tmp_path / "run.ckpt"
    assert seeded(path, stop_after=stop_after) is None
    torch.manual_seed(99), random.seed(99), np.random.seed(99)  # what the new process starts with does not matter
    again, history_again = run(path)
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert history == history_again
    finished, history_again = run(path)  # a finished run only puts its result in place
    assert all(torch.equal(whole[name], finished[name]) for name in whole)
    assert history == history_again


def test_kill_9_and_resume_gives_the_same_file(tmp_path):
    script = tmp_path / "job.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import os, random, signal, sys
            import numpy as np, torch
            sys.path.insert(0, {str(Path(__file__).parent)!r})
            import test_lc_checkpoint as t
            torch.set_num_threads(1)
            checkpoint, out, kill_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
            if kill_at >= 0:
                forward = torch.nn.Sequential.forward
                calls = [0]
                def dying(self, x):
                    calls[0] += 1
                    if calls[0] == kill_at:
                        os.kill(os.getpid(), signal.SIGKILL)
                    return forward(self, x)
                torch.nn.Sequential.forward = dying
            weights, history = t.seeded(checkpoint)
            torch.save(weights, out)
            """
        )
    )

    def job(name, kill_at):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)  # torch.save writes the file's name into the file
        command = [sys.executable, script, folder / "run.ckpt", folder / "out.pt", str(kill_at)]
        return subprocess.run(command, capture_output=True, text=True)

    assert job("whole", -1).returncode == 0
    assert job("killed", 161).returncode == -signal.SIGKILL  # 150 calls train the net; this is in the third L step
    assert not (tmp_path / "killed" / "out.pt").exists() and (tmp_path / "killed" / "run.ckpt").exists()
    assert job("killed", -1).returncode == 0
    assert (tmp_path / "whole" / "out.pt").read_bytes() == (tmp_path / "killed" / "out.pt").read_bytes()


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    path = tmp_path / "run.ckpt"
    seeded(path, stop_after=1)
    with pytest.raises(ValueError, match="schedule"):
        seeded(path, mu=[1.0, 2.0])
    with pytest.raises(ValueError, match="tasks"):
        seeded(path, tasks=TASKS[:1])
    with pytest.raises(ValueError, match="compressions"):
        seeded(path, tasks=[TASKS[0], lc.Task("2", lc.LowRank(1))])
    with pytest.raises(ValueError, match="state"):
        seeded(path, state=False)


@pytest.mark.parametrize("damage", ["truncated", "other", "empty", "foreign"])
def test_a_damaged_checkpoint_is_refused_and_kept(tmp_path, damage):
    path = tmp_path / "run.ckpt"
    seeded(path, stop_after=1)
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "other": b"hello" * 99, "empty": b""}.get(damage, b""))
    if damage == "foreign":
        torch.save({"weights": torch.ones(3)}, path)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="checkpoint"):
        seeded(path)
    assert path.read_bytes() == before


def test_state_that_cannot_be_saved_is_named(tmp_path):
    model, _, _ = problem()
    algorithm = lc.LCAlgorithm(model, TASKS, mu=MU)
    with pytest.raises(TypeError, match=r"state\['loader'\]"):
        next(algorithm.steps(checkpoint=tmp_path / "x", state={"loader": [1, 2]}))
    assert list(tmp_path.iterdir()) == []
