"""Runs the study of transfer, and writes its page.

python -m benchmarks.transfer --out runs/transfer                        everything, hours on two cores
python -m benchmarks.transfer --out runs/transfer --only cameras --seeds 1
python -m benchmarks.transfer --out runs/transfer --page docs/transfer.md   the page of what is finished
"""

import signal
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from collections.abc import Sequence
from pathlib import Path

from ai_wam.cli.shipped_configs import config_path
from ai_wam.cli.signals import interruptible
from ai_wam.errors import InvalidValue
from benchmarks.transfer.outcomes import Outcomes
from benchmarks.transfer.page import write_page
from benchmarks.transfer.running import finished, run
from benchmarks.transfer.study import TRAININGS, jobs


def main(words: Sequence[str]) -> None:
    """Run what is not finished, or list it, or write the page."""
    parser = ArgumentParser(
        prog="python -m benchmarks.transfer", description=__doc__, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of data, checkpoints and results")
    help = f"some of: {', '.join(TRAININGS)}"
    parser.add_argument("--only", nargs="+", choices=list(TRAININGS), metavar="TRAINING", help=help)
    parser.add_argument("--seeds", type=int, default=3, help="of every training: 0, 1, ...")
    parser.add_argument("--at_once", type=int, default=2, help="commands side by side, one thread each")
    parser.add_argument("--list", action="store_true", help="print the commands and whether they are done")
    parser.add_argument("--page", type=Path, help="write the page of what is finished, and run nothing")
    asked = parser.parse_args(words)
    if asked.seeds < 1 or asked.at_once < 1:
        raise InvalidValue(f"seeds is {asked.seeds}, at_once {asked.at_once}; both are at least 1")
    listed, seeds = jobs(asked.only or list(TRAININGS), range(asked.seeds)), range(asked.seeds)
    if asked.list:
        for job in listed:
            print(
                f"{'done' if finished(job, asked.out) else '    '} {job.name}: ai-wam {' '.join(job.words)}"
            )
        return
    if asked.page is None:
        run(listed, asked.out, asked.at_once)
    else:
        write_page(Outcomes(asked.out, seeds), config_path("configs/sweep/reach_target.yaml"), asked.page)


if __name__ == "__main__":
    try:
        with interruptible():  # SIGTERM ends the study's commands, too; each of them keeps what it has done
            main(sys.argv[1:])
    except InvalidValue as error:
        sys.exit(f"benchmarks.transfer: {error}")
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
