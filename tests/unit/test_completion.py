"""What a shell completes by the script of `ai-wam completion`."""

import subprocess
import sys
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


def test_zsh_takes_the_script_of_bash(capsys):
    main(["completion", "zsh"])
    about, head, *rest = capsys.readouterr().out.splitlines()
    assert about == "# Completion of ai-wam; made by `ai-wam completion zsh`."
    assert head == "autoload -U bashcompinit && bashcompinit"
    assert rest == script("bash").splitlines()[1:]


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
