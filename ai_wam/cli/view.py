"""`ai-wam view`: recordings, trials and predictions in the Rerun viewer, or as a file for it."""

import os
import tempfile
from pathlib import Path
from typing import Any

from ai_wam.cli.view_inputs import Scenes, scenes_of
from ai_wam.errors import CannotContinue, ExistingFile, InvalidValue
from ai_wam.files.atomic import PARTIAL, publish, unwritten
from ai_wam.utils.number_checks import check_numbers
from ai_wam.viewing.rerun_recording import SceneWriter, recording_of, rerun
from benchmarks.simulators.opengl_platform import headless
from datamodules.export.episode_choice import Episodes, chosen_episodes

_SUFFIX = ".rrd"


def view(
    path: str,
    out: str | None = None,
    episodes: Episodes = 0,
    shards: str | None = None,
    jpeg: int | None = None,
) -> None:
    """Show cameras, pictures, action images, poses and predictions along time, in the Rerun viewer.

    Args:
        path: a folder of shards, of a test (results.json) or of predictions.
        out: a new .rrd file to write instead of opening the viewer, for a machine without a screen; `rerun
            FILE` shows it elsewhere.
        episodes: the episodes, trials or samples to show, as numbers from 0 on, ranges such as 3-7 (both
            included) or keys: [0, 3-7, pick-0001].
        shards: of predictions on shards, the folder of those shards, which are then shown with them.
        jpeg: quality of the pictures, 1 to 100, for a small file; every pixel is kept exactly if left out.
    """
    check_numbers("view", at_least=1, at_most=100, jpeg=jpeg)
    rerun()
    if out is None and headless(os.environ):
        raise CannotContinue(
            f"there is no display for the viewer: write a file with --out scenes{_SUFFIX}, and open it by "
            f"`rerun scenes{_SUFFIX}` on a machine with one"
        )
    file = None if out is None else _free_file(out)
    scenes = scenes_of(path, shards)
    numbers = chosen_episodes(episodes, scenes.names, path)
    with recording_of("ai-wam") as recording:
        if file is None:
            recording.spawn()
            _write(recording, scenes, numbers, jpeg)
        else:
            _save(recording, file, scenes, numbers, jpeg)
    shown = f"{len(numbers)} of {len(scenes.names)}: {', '.join(scenes.names[i] for i in numbers[:3])}"
    print(f"{out or 'the viewer'}: {shown}{' ...' if len(numbers) > 3 else ''}")


def _free_file(out: str) -> Path:
    """The place of a new file."""
    file = Path(out)
    if file.suffix != _SUFFIX:
        raise InvalidValue(f"--out is {out!r}; Rerun opens files by their ending, so name it x{_SUFFIX}")
    if file.exists():
        raise ExistingFile(f"{out} exists; name another file, or delete this one")
    return file


def _save(recording: Any, file: Path, scenes: Scenes, numbers: list[int], jpeg: int | None) -> None:
    """Write a file that appears when it is complete."""
    file.parent.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(dir=file.parent, prefix=f"{file.name}.", suffix=PARTIAL)
    os.close(handle)
    try:
        recording.save(partial)
        _write(recording, scenes, numbers, jpeg)
        recording.disconnect()  # writes the rest, and the file's footer
        publish(Path(partial), file)
    except OSError as error:
        if error.filename is not None:  # of what is read
            raise
        raise unwritten(error, file) from error
    finally:
        Path(partial).unlink(missing_ok=True)


def _write(recording: Any, scenes: Scenes, numbers: list[int], jpeg: int | None) -> None:
    writer = SceneWriter(recording, jpeg=jpeg)
    for number in numbers:
        writer.write(scenes.read(number))
    writer.finish()
