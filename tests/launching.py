"""Processes of their own, forked from a server that has imported everything once: a new Python takes 8 s for that.

They start as fresh as spawned ones: the server has run nothing of the tests, and no threads.
"""

import multiprocessing
import os
import socket
import sys
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def fork_server() -> ForkServerContext:
    """For `Process` and executors; the server runs until the tests end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.launching", "train_accelerate", "data_mss.rendering", "matplotlib.figure"])
    with pytest.MonkeyPatch.context() as patch:
        for name, value in ENVIRONMENT.items():
            patch.setenv(name, value)
        forkserver.ensure_running()
    return context


def start_training(arguments: list[str], processes: int, **environment: str) -> list[BaseProcess]:
    """The training script in processes that find each other as those of a launcher do.

    What they say goes to files beside the output folder.
    """
    context = fork_server()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
    running = []
    for rank in range(processes):
        place = {**address, "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(processes)}
        given = {**ENVIRONMENT, **(place if processes > 1 else {}), **environment}
        running.append(context.Process(target=_train, args=(arguments, given, errors_of(arguments, rank))))
        running[-1].start()
    return running


def run_training(arguments: list[str], processes: int, **environment: str) -> None:
    """The same, until it is done."""
    running = start_training(arguments, processes, **environment)
    try:
        for rank, process in enumerate(running):
            process.join(timeout=120)
            assert process.exitcode == 0, errors_of(arguments, rank).read_text()[-4000:]
    finally:
        for process in running:
            process.kill()
            process.join()


def errors_of(arguments: list[str], rank: int) -> Path:
    """Where a process writes its errors."""
    return Path(arguments[arguments.index("--output_dir") + 1] + f"-errors-{rank}.txt")


def _train(arguments: list[str], environment: dict[str, str], errors: Path) -> None:
    import train_accelerate

    with open(errors, "w") as file, open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    os.environ.update(environment)
    torch.set_num_threads(1)
    sys.exit(train_accelerate.main(arguments))
