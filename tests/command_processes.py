"""`ai-wam` in processes of its own, forked from one that has imported the libraries.

Importing torch, Lightning and diffusers takes several seconds, longer than what most commands do in a test.
So the process to fork from is a fork of the tests' own, made when all tests are collected and none has run.
Exit codes and signals are those of any process. The installed command itself is started in test_recipes.py,
on two ranks, and a command that still imports its modules in test_interrupted.py.
"""

import logging
import multiprocessing
import os
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Mapping
from multiprocessing import forkserver
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest
from lightning.fabric.plugins.environments.lightning import find_free_network_port

LONGEST = 300  # seconds of a command


def fork_server() -> None:
    """Fork the server that multiprocessing would start, so that it has the imports of this process."""
    ended, alive = os.pipe()  # the server ends when every process that has `alive` has ended
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("")  # Linux picks a free abstract name
        listener.listen()
        address = listener.getsockname()
        if not (server := os.fork()):
            os.close(alive)
            _serve(listener.detach(), ended)
    os.close(ended)
    known = forkserver._forkserver
    known._forkserver_address, known._forkserver_alive_fd, known._forkserver_pid = address, alive, server


def _serve(listener: int, ended: int) -> None:
    """Answer requests for processes, without what pytest has put in place of Python's own."""
    try:
        # pytest's handlers are replaced by one that prints, as Lightning installs it where there is none.
        logging.basicConfig(format="%(message)s", force=True)
        sys.unraisablehook, threading.excepthook = sys.__unraisablehook__, threading.__excepthook__
        warnings.resetwarnings()
        for kind in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", kind)
        forkserver.main(listener, ended, [])
    finally:
        os._exit(0)


def start(output: Path, function: Callable[..., None], *arguments: object) -> ForkServerProcess:
    """Call a function in a process and process group of its own, which prints into a file."""
    forking = multiprocessing.get_context("forkserver")
    process = forking.Process(target=_printing, args=(str(output), function, arguments))
    process.start()
    return process


def fork_workers(patch: pytest.MonkeyPatch) -> None:
    """Fork workers that write shards from the server as well, where fresh ones are not what is tested."""
    forking = multiprocessing.get_context("forkserver")
    patch.setattr("datamodules.shards.parallel_writing.get_context", lambda _: forking)


def _printing(output: str, function: Callable[..., None], arguments: Iterable[object]) -> None:
    os.setsid()
    # A fork server's processes start others by servers of their own; the command's start theirs by a fork.
    multiprocessing.set_start_method("fork", force=True)
    printed = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (
        1,
        2,
        sys.stdout.fileno(),
        sys.stderr.fileno(),
    ):  # pytest has put files in the latters' place
        os.dup2(printed, stream)
    function(*arguments)


def command(folder: Path, words: Iterable[str], environment: Mapping[str, str]) -> None:
    """Run `ai-wam` in this process; importing it is left to the process of the command."""
    os.environ.update(environment)
    os.chdir(folder)
    sys.argv = ["ai-wam", *words]
    from ai_wam.cli import main

    main()


def wait_until(ready: Callable[[], bool], process: ForkServerProcess) -> None:
    """Return as soon as something has come about that a running process does."""
    end = time.monotonic() + LONGEST
    while not ready():
        assert process.exitcode is None
        assert time.monotonic() < end
        time.sleep(0.02)


def finished(processes: Mapping[Path, ForkServerProcess]) -> list[str]:
    """What processes printed into their files, all of which must end well."""
    try:
        for output, process in processes.items():
            process.join(LONGEST)
            assert process.exitcode == 0, output.read_text()
    finally:
        for process in processes.values():
            process.kill()
    return [output.read_text() for output in processes]


def on_two_ranks(folder: Path, name: str, *words: str) -> None:
    """Run a command on two ranks, in the environment in which Lightning would start them."""
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_free_network_port())}
    shared |= {"NODE_RANK": "0", "WORLD_SIZE": "2"}
    ranks = {folder / f"{name}-{rank}.txt": shared | {"LOCAL_RANK": str(rank)} for rank in range(2)}
    finished({file: start(file, command, folder, words, own) for file, own in ranks.items()})
