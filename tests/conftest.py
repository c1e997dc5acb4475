"""The default run is offline and uses one thread per process."""

import os
import signal
import sys

import pytest
import type_checks

type_checks.install()
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when the hub client is imported
os.environ.setdefault("OMP_NUM_THREADS", "1")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job in the background; tests send it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop() -> None:
    """Fork the server of processes that tests start, before a test makes threads and renderers."""
    if processes := sys.modules.get("command_processes"):
        graphics = sys.modules.get("benchmarks.simulators.mujoco_graphics")
        if graphics is not None and hasattr(graphics._thread, "context"):
            raise pytest.UsageError(
                "a module drew with MuJoCo while it was collected; forks of it would hang"
            )
        processes.fork_server()
