"""What a shell completes by the script of `ai-wam completion`."""

import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ai_wam.cli import LIGHTNING, OWN, main
from ai_wam.cli.completion import script


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("completion") / "ai-wam.bash"
    place.write_text(script("bash"))
    return place


@pytest.mark.parametrize(
    ("words", "found"),
    [
        (["ex"], {"export", "export-checkpoint"}),
        (["demo", "--t"], {"--threads", "--trials"}),
        (["collect", "--on_error", ""], {"raise", "skip"}),
        (["inspect", "--limits.of"], {"--limits.off_screen"}),
        (["fit", "--trainer.max_s"], {"--trainer.max_steps"}),
        (["fit", "--w"], {"--weights"}),
        (["test", "--tri"], {"--trial"}),
        (["cache", "--pre"], {"--precision"}),
        (["cache", "--precision", "float1"], {"float16"}),
        (["sweep", "--po"], {"--points"}),
        (["fit", "--config", "configs/quickstart_h"], {"configs/quickstart_head.yaml"}),
        (["view", "a_file"], set()),  # the shell's own completion of files follows
    ],
)
def test_bash_completes(file, words, found):
    quoted = " ".join(f'"{word}"' for word in ["ai-wam", *words])
    code = f'source {file}; COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; _ai_wam; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "--norc", "-c", code], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) == found


def test_every_command_is_completed(file):
    text = file.read_text()
    assert all(f"            {command}) words=" in text for command in (*OWN, *LIGHTNING))


def typed_in_zsh(line: str, zshrc: str, home: Path) -> str:
    """The line that an interactive zsh makes of it when tab is pressed."""
    process, terminal = pty.fork()
    if process == 0:
        os.execve(
            "/bin/sh", ["sh", "-c", "exec zsh -f -i"], {**os.environ, "HOME": str(home), "TERM": "dumb"}
        )
    shown, begin = "", time.monotonic()

    def until(pattern: str) -> str:
        nonlocal shown
        while not (found := re.search(pattern, shown)):
            assert time.monotonic() - begin < 30, shown
            if select.select([terminal], [], [], 0.1)[0]:
                shown += os.read(terminal, 4096).decode(errors="replace")
        shown = shown[found.end() :]
        return found[0]

    try:
        shows = 'show() { print -r -- "<$BUFFER>" }; zle -N show; bindkey "^O" show'
        os.write(terminal, f"{zshrc}; {shows}; echo sou''rced\n".encode())
        until("sourced")
        os.write(terminal, f"{line}\t\x0f".encode())
        return until(r"(?<=<)[^$>]*(?=>)").strip()
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(terminal)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
@pytest.mark.parametrize("before", ["", "autoload -U compinit && compinit -u; "])
@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("true ai-wam", "true ai-wam"),
        ("ai-wam dem", "ai-wam demo"),
        ("ai-wam fit --trainer.max_st", "ai-wam fit --trainer.max_steps"),
        ("ai-wam fit --config configs/quickstart_h", "ai-wam fit --config configs/quickstart_head.yaml"),
    ],
)
def test_zsh_completes(before, line, completed, tmp_path):
    (tmp_path / "ai-wam.zsh").write_text(script("zsh"))
    assert typed_in_zsh(line, f"{before}cd; source ./ai-wam.zsh", tmp_path) == completed


@pytest.mark.parametrize("command", ["", *sorted({*OWN, *LIGHTNING} - {"validate", "predict"})])
def test_help_fits_eighty_columns(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(sys, "argv", ["ai-wam", *filter(None, [command]), "--help"])
    if command:
        with pytest.raises(SystemExit):
            main()
    else:
        main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) > 5
    assert [line for line in lines if len(line) > 80] == []
