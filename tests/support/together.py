"""A function in several processes at once, connected by gloo as Ray Train connects workers between CPUs."""

import multiprocessing
import pickle
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing import connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# Processes are forked from one that has imported everything and computed nothing: fast, and clean.
_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["torch.distributed.fsdp", "cmcore.assemble.training", "cmcore.nets.edm2"])
PATIENCE = 170.0  # seconds


def together(world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """`function(rank, *args)` in `world` processes; what they return, by rank. The first error is raised here."""
    with tempfile.TemporaryDirectory() as folder:
        answers = [_SERVER.Pipe(duplex=False) for _ in range(world)]
        processes = [
            _SERVER.Process(target=_work, args=(rank, world, folder, answer, function, args), daemon=True)
            for rank, (_, answer) in enumerate(answers)
        ]
        for process in processes:
            process.start()
        for _, answer in answers:
            answer.close()
        try:
            return _received([reader for reader, _ in answers])
        finally:
            for process in processes:
                process.terminate()
                process.join()


def _received(readers: list[Any]) -> list[Any]:
    results: dict[int, Any] = {}
    while len(results) < len(readers):
        ready = connection.wait([reader for rank, reader in enumerate(readers) if rank not in results], PATIENCE)
        if not ready:
            raise TimeoutError(f"no process has said anything for {PATIENCE:g} s")
        for reader in ready:
            error, results[readers.index(reader)] = pickle.loads(reader.recv_bytes())
            if error:
                raise RuntimeError(error)
    return [results[rank] for rank in range(len(readers))]


def _work(rank: int, world: int, folder: str, answer: Any, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    try:
        dist.init_process_group("gloo", init_method=f"file://{Path(folder, 'store')}", rank=rank, world_size=world)
        answer.send_bytes(pickle.dumps(("", function(rank, *args))))  # by value, as the process goes away
        dist.barrier()
        dist.destroy_process_group()
    except BaseException:
        answer.send_bytes(pickle.dumps((traceback.format_exc(), None)))
