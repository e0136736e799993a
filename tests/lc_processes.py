"""Processes with a gloo group that live as long as the tests and run functions for them."""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import signal
import traceback


class ProcessDied(Exception):
    """A process of the pool is there no more."""


class Processes:
    """``size`` processes; ``run(function, *args)`` calls it in all of them and returns what each returned.

    They are forked from a server that has imported torch and lc once.
    """

    def __init__(self, size, folder):
        context = multiprocessing.get_context("forkserver")
        multiprocessing.set_forkserver_preload(["lc_processes", "lc", "torch.distributed.fsdp", "hypothesis"])
        self.size = size
        self.pipes, self.members = [], []
        for rank in range(size):
            mine, theirs = context.Pipe()
            member = context.Process(
                target=_serve, args=(rank, size, str(folder / f"store{size}"), theirs), daemon=True
            )
            member.start()
            theirs.close()
            self.pipes.append(mine)
            self.members.append(member)

    def run(self, function, *args, timeout=25):
        assert self.pipes, "a test before this one hung"
        for pipe in self.pipes:
            pipe.send((function.__module__, function.__name__, args))
        answers = []
        for rank, pipe in enumerate(self.pipes):
            if not pipe.poll(timeout):
                for member in self.members:
                    os.kill(member.pid, signal.SIGUSR1)  # prints where each one is
                self.pipes = []
                others = "\n".join(text for good, text in answers if not good)
                raise TimeoutError(f"process {rank} of {self.size} hangs in {function.__name__}{args}\n{others}")
            try:
                answers.append(pipe.recv())
            except EOFError:
                self.pipes = []
                raise ProcessDied(f"process {rank} of {self.size} died in {function.__name__}{args}") from None
        failed = [f"process {rank}:\n{text}" for rank, (good, text) in enumerate(answers) if not good]
        assert not failed, "\n".join(failed)
        return [value for _, value in answers]

    def kill(self):
        for member in self.members:
            member.kill()

    def close(self):
        for pipe in self.pipes:
            pipe.send(None)
        for member in self.members:
            member.join(10)
            if member.is_alive():
                member.kill()


def _serve(rank, size, store, pipe):
    import importlib

    import torch
    import torch.distributed as dist

    faulthandler.register(signal.SIGUSR1)
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=size)
    while (job := pipe.recv()) is not None:
        module, name, args = job
        try:
            pipe.send((True, getattr(importlib.import_module(module), name)(*args)))
        except BaseException:
            pipe.send((False, traceback.format_exc()))
    dist.destroy_process_group()
