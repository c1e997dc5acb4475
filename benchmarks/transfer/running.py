"""Runs jobs, some at a time; logs and records are kept, so that a study continues where it stopped."""

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from shlex import join
from typing import Any

from ai_wam.errors import InvalidValue
from ai_wam.files.atomic import write_json
from ai_wam.files.json_yaml import read_json
from benchmarks.transfer.study import Job

_ENVIRONMENT = {"OMP_NUM_THREADS": "1"}  # several processes run at once


def run(jobs: Sequence[Job], folder: Path, at_once: int) -> None:
    """Run every job that is not finished, in order, each after those it needs.

    Args:
        jobs: to be run.
        folder: of the study; commands run in it.
        at_once: jobs that run side by side.

    Raises:
        ValueError: a job that failed, with the last line of its log, once those that still ran are done; or
            a finished job whose command was another one.
    """
    waiting = [job for job in jobs if not finished(job, folder)]
    running: dict[str, _Running] = {}
    failed: list[str] = []
    try:
        while running or (waiting and not failed):
            unfinished = {job.name for job in waiting} | running.keys()
            ready = [] if failed else [job for job in waiting if not unfinished.intersection(job.needs)]
            for job in ready[: at_once - len(running)]:
                waiting.remove(job)
                running[job.name] = _Running(job, folder)
            time.sleep(1)
            for name in [name for name, one in running.items() if one.ended]:
                failed += running.pop(name).finish()
    finally:
        for one in running.values():
            one.process.terminate()
        for one in running.values():
            one.process.wait()
    if failed:
        raise InvalidValue("; ".join(failed))


def finished(job: Job, folder: Path) -> bool:
    """Whether a job is done.

    Raises:
        ValueError: it was done by another command.
    """
    record = _record(job, folder)
    if not record.is_file():
        return False
    if (was := read_json(record)["words"]) != list(job.words):
        raise InvalidValue(
            f"{record}: this job was done by\n  ai-wam {join(was)}\nand would now be\n  ai-wam "
            f"{join(job.words)}\nGive another --out, or remove what it made"
        )
    return True


def cpu_minutes(job: str, folder: Path) -> float | None:
    """Minutes of processors that a finished job took; None where it was resumed, or that is not known."""
    record = folder / "jobs" / f"{job}.json"
    content = read_json(record) if record.is_file() else {}
    seconds = None if content.get("resumed") else content.get("cpu_seconds")
    return None if seconds is None else seconds / 60


def _record(job: Job, folder: Path) -> Path:
    return folder / "jobs" / f"{job.name}.json"


class _Running:
    """A job that runs."""

    def __init__(self, job: Job, folder: Path) -> None:
        self.job, self.folder, self.begun = job, folder, time.monotonic()
        self.log = folder / "logs" / f"{job.name}.log"
        self.log.parent.mkdir(parents=True, exist_ok=True)
        words = list(job.words)
        self.resumed = job.checkpoint is not None and (folder / job.checkpoint).is_file()
        if self.resumed:
            words.append(f"--ckpt_path={job.checkpoint}")
        print(f"[{datetime.now(UTC):%H:%M}] ai-wam {join(words)}", flush=True)
        command = [str(Path(sys.executable).with_name("ai-wam")), *words]
        with self.log.open("w") as stream:
            self.process: Any = subprocess.Popen(
                command,
                cwd=folder,
                stdout=stream,
                stderr=subprocess.STDOUT,
                env={**os.environ, **_ENVIRONMENT},
            )

    @property
    def ended(self) -> bool:
        """Whether it has; what it used is kept then."""
        pid, status, self.used = os.wait4(self.process.pid, os.WNOHANG)
        if pid:
            self.process.returncode = os.waitstatus_to_exitcode(status)
        return bool(pid)

    def finish(self) -> list[str]:
        """Keep the record of a job that ended well; else a sentence that says what went wrong."""
        name, status = self.job.name, self.process.returncode
        seconds, cpu = round(time.monotonic() - self.begun), round(self.used.ru_utime + self.used.ru_stime)
        print(f"[{datetime.now(UTC):%H:%M}] {name}: exit status {status} after {seconds} s", flush=True)
        if status != 0:
            lines = self.log.read_text(errors="replace").replace("\r", "\n").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "it printed nothing")
            return [f"{name} ended with status {status}: {last} (its log: {self.log})"]
        ended = datetime.now(UTC).isoformat(timespec="seconds")
        spent = {"seconds": seconds, "cpu_seconds": cpu, "resumed": self.resumed}
        content = {"words": list(self.job.words), **spent, "ended": ended}
        write_json(_record(self.job, self.folder), content)
        return []
