"""Least time of a chunk at full size: `python -m benchmarks.speed.sizes [--only wan2.2-5b]`.

For every released size and plan: work of one forward, and the least seconds of a chunk by the number of steps
on an H100 and an H200. A step takes the longer of its work at the card's matrix rate and of reading the
weights once at its bandwidth; decoding the executed beginning of both action segments is added. No
implementation is faster on that card without fewer bits or skipped work. Below it stands what was measured,
if there is a GPU.
"""

from argparse import ArgumentParser
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from tqdm import tqdm

from ai_wam.utils.counted import counted
from benchmarks.report.text_tables import aligned
from benchmarks.speed.computed_work import Work, computed_work
from benchmarks.speed.gpu_times import acting, matrix_rate
from benchmarks.speed.released_sizes import SIZES

PLANS = ("policy", "joint", "labeling")
BYTES = 2  # of a weight in bfloat16


@dataclass(frozen=True)
class Card:
    """A GPU's rates.

    Attributes:
        name: as printed.
        rate: floating-point operations per second in bfloat16 matrix products.
        bandwidth: of its memory, bytes per second.
        source: where the rates come from.
    """

    name: str
    rate: float
    bandwidth: float
    source: str


CARDS = (
    Card("H100", 989e12, 3.35e12, "data sheet"),
    Card("H200", 762e12, 4.8e12, "rate measured in matrix products, bandwidth by data sheet"),
)


def least_seconds(work: Work, plan: str, steps: int, card: Card) -> float:
    """The least time of one chunk.

    Args:
        work: of the size.
        plan: its canvas.
        steps: evaluations of the denoiser.
        card: the GPU.
    """
    step = max(work.forward[plan] / card.rate, BYTES * work.parameters / card.bandwidth)
    return steps * step + 2 * work.decode_beginning / card.rate


def rows(name: str, work: Work, steps: Sequence[int]) -> list[list[str]]:
    """Cells of one size, a row per plan."""
    found = []
    for plan in work.forward:
        least = [f"{least_seconds(work, plan, n, card):.2f} s" for card in CARDS for n in steps]
        cells = [f"{work.forward[plan] / 1e12:.0f}", f"{BYTES * work.parameters / 1e9:.1f} GB", *least]
        found.append([f"{name} {plan}", *cells])
    return found


def main(only: Sequence[str] | None, steps: Sequence[int], size: int, frames: int) -> None:
    """Print the table; the parser at the end says what the arguments mean."""
    for card in CARDS:
        rates = f"{card.rate / 1e12:.0f} TFLOP/s in bfloat16, {card.bandwidth / 1e12:.2f} TB/s"
        print(f"{card.name}: {rates} ({card.source})")
    print(f"{size} x {size} pixels or the nearest that fit, {frames} frames, two views, one row")
    names = list(only or SIZES)
    table = [
        ["", "TFLOP", "weights", *(f"{card.name}, {counted(n, 'step')}" for card in CARDS for n in steps)]
    ]
    for name in tqdm(names, desc="sizes", leave=False):
        table += rows(name, computed_work(name, PLANS, (size, size), frames), steps)
    print("\n".join(aligned(table)))
    print("\n".join(measured(names, steps, size, frames)))


def measured(names: Sequence[str], steps: Sequence[int], size: int, frames: int) -> list[str]:
    """What policy chunks took on this machine's GPU."""
    if not torch.cuda.is_available():
        return ["measured: nothing, for there is no GPU here"]
    device = torch.device("cuda")
    rate = matrix_rate(device)
    found = f"{rate / 1e12:.0f} TFLOP/s in matrix products of 8192"
    lines = [f"measured on {torch.cuda.get_device_name()}, {found}:"]
    for name in names:
        for n in steps:
            try:
                lines.append(f"  {name} policy: {acting(name, (size, size), frames, n, rate, device)}")
            except torch.cuda.OutOfMemoryError:
                lines.append(f"  {name} policy does not fit into this GPU's memory")
    return lines


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument(
        "--only", nargs="+", choices=list(SIZES), metavar="NAME", help="some of the released sizes"
    )
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[1, 4, 50], help="evaluations of the denoiser"
    )
    parser.add_argument("--size", type=int, default=512, help="height and width in pixels")
    parser.add_argument("--frames", type=int, default=41, help="of the clip")
    main(**vars(parser.parse_args()))
