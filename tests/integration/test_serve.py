"""`ai-wam serve` in a process of its own: trials judged through it, signals, and how light its client is."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import pytest
from command_processes import command, start, wait_until
from serving_thread import get, message

from ai_wam.cli import main
from ai_wam.client import Client
from ai_wam.files.packed_policy import unpack
from ai_wam.types import Clip
from benchmarks.remote_policy import RemotePolicy

ROOT = Path(__file__).parents[2]
_ANYWHERE = ("sitecustomize", "cython_runtime")  # modules that others make by the way
BENCHMARK = "configs/benchmark/reach_target_chunked.yaml"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The policy of `ai-wam demo`."""
    file = tmp_path_factory.mktemp("served") / "policy.ckpt"
    unpack(Path(str(files("ai_wam.demo"))) / "policy.safetensors", file)
    return file


@pytest.fixture
def server(checkpoint: Path, tmp_path: Path) -> Iterator[SimpleNamespace]:
    log, output = tmp_path / "log.jsonl", tmp_path / "server.txt"
    words = ["serve", f"--ckpt_path={checkpoint}", "--port=0", f"--log={log}", "--max_batch=2", "--threads=1"]
    process = start(output, command, tmp_path, words, {})

    def lines() -> list[dict]:
        return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []

    try:
        wait_until(lambda: any(line["event"] == "ready" for line in lines()), process)
        port = lines()[0]["port"]
        yield SimpleNamespace(process=process, output=output, lines=lines, address=f"127.0.0.1:{port}")
    finally:
        process.kill()
        process.join()


def trials(patch: pytest.MonkeyPatch, folder: Path, *words: str) -> dict:
    few = "--data.benchmark.init_args.protocol.trials_per_task=2", "--seed_everything=0"
    fast = ["--data.videos=1", "--data.benchmark.init_args.protocol.max_seconds=1.0", f"--data.out={folder}"]
    patch.setattr(sys, "argv", ["ai-wam", "test", "--data", BENCHMARK, *few, *fast, *words])
    main()
    return json.loads((folder / "results.json").read_text())


def test_a_served_policy_is_judged_as_in_this_process_and_stops_on_sigterm(
    checkpoint: Path, server: SimpleNamespace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    here = trials(monkeypatch, tmp_path / "here", f"--ckpt_path={checkpoint}")
    model = "--model=tasks.fixed_policy.FixedPolicy", "--model.policy=benchmarks.remote_policy.RemotePolicy"
    there = trials(monkeypatch, tmp_path / "there", *model, f"--model.policy.address={server.address}")
    assert there["trials"] == here["trials"]
    assert there["protocol_hash"] == here["protocol_hash"]
    for trial in here["trials"]:  # chunks that continue committed actions, and failures that pictures explain
        assert trial["policy"]["seams"]["mm"]
        assert trial["policy"]["failure"]["verdict"] != "unknown"
    os.killpg(server.process.pid, signal.SIGTERM)
    server.process.join(60)
    assert server.process.exitcode == 128 + signal.SIGTERM
    said = server.output.read_text().splitlines()
    assert said[-1] == "ai-wam serve: stopped by SIGTERM; all accepted requests were answered"
    assert said[0].startswith(f"serving at ws://{server.address}; health at")
    assert [line["event"] for line in server.lines()][-3:] == ["stopping", "session_closed", "stopped"]


def test_the_default_clip_is_checked_against_the_served_one(server: SimpleNamespace):
    policy = RemotePolicy(server.address)
    policy.check_clip(Clip())
    with pytest.raises(ValueError, match=r"has \{'views': .*'left_shoulder'.* set --model.clip"):
        policy.check_clip(Clip(views=("front",)))
    policy._connection.close()
    assert get(server.address, "/healthz") == (200, "OK\n")
    with Client(server.address) as robot:
        assert robot.metadata["policy"] == "tasks.policy.PolicyControl"
        assert robot.metadata["prefixes"] == [4]
        assert robot.ask(message())["actions"].shape == (8, 8)


def test_what_cannot_be_served_is_refused_before_the_checkpoint_is_read(tmp_path: Path):
    (tmp_path / "token").write_text("two words")
    for words, said in [
        (["--host=0.0.0.0"], r"host is '0\.0\.0\.0', where other machines can connect: give --token_file"),
        ([f"--token_file={tmp_path / 'token'}"], "must hold one word in ASCII; make one with `openssl"),
        (["--max_batch=0"], "serve: max_batch must be finite and at least 1, got 0"),
        (["--limits.rate=-1"], "limits: rate must be finite and above 0, got -1"),
    ]:
        with pytest.raises(SystemExit, match=said):
            main(["serve", "--ckpt_path=nowhere.ckpt", *words])


def test_the_client_imports_nothing_but_numpy_msgpack_and_websockets():
    program = (
        "import sys; import ai_wam.client; "
        "print(*{name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names)"
    )
    found = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    third = {name for name in found.stdout.split() if not name.startswith("_") and name not in _ANYWHERE}
    assert third == {"ai_wam", "numpy", "msgpack", "websockets"}
