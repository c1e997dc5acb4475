"""Actions read off latents against decoded images: `python -m benchmarks.speed.latents`.

First for tiny backbones: the fit takes the seconds named; then errors of poses on other clips (smooth random
motions before two cameras 1.3 m away) by decoded images and by latents, through the same codec, with white
noise on the latents as wide as the given share of their standard deviation. "squared" is the mean squared
error over the predicted variance, of positions and of rotations; 1 is calibrated. The last column is CPU time
on one thread, with that of the video decoder. Then, for released sizes, the work of reading two views of a
chunk's executed beginning, over that of their video decoder, by shapes alone.
"""

import time
from argparse import ArgumentParser
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from ai_wam.action_images import ActionImageTokenizer, DecodedActions
from ai_wam.cameras import Cameras
from benchmarks.report.text_tables import aligned
from benchmarks.speed.codec_rig import EYES, Errors, rig, trajectory
from benchmarks.speed.computed_work import EXECUTED, computed_work
from benchmarks.speed.measuring import fitting_size, shipped, whole_clip
from benchmarks.speed.released_sizes import SIZES
from tasks.decoding.latent_reading import Codec, LatentReader, fit_reader, pixels_of_cell

TINY = ("wan-tiny", "wan2.2-tiny", "cogvideox-tiny", "svd-tiny", "ltx-tiny")
NOISE = (0.0, 0.03, 0.1, 0.3)
TOKENIZER = ActionImageTokenizer()
_HEAD = ["", "noise", "median mm", "p95 mm", "p95 degrees", "valid", "squared", "ms a clip"]


def main(backbones: Sequence[str], sizes: Sequence[str], size: int, clips: int) -> None:
    """Print both tables; the parser at the end says what the arguments mean."""
    torch.set_num_threads(1)
    for name in backbones:
        print("\n".join(measured(name, size, clips)), end="\n\n")
    if sizes:
        print(
            "\n".join(aligned([["", "latents, GFLOP", "video decoder, GFLOP", "share"], *map(work, sizes)]))
        )


@torch.no_grad()
def measured(name: str, size: int, clips: int) -> list[str]:
    """Lines about one tiny backbone."""
    backbone, square = shipped(name), (size, size)
    codec = Codec(backbone.encode, backbone.decode, backbone.spec, torch.device("cpu"))
    begun = time.process_time()
    reader = fit_reader(codec, TOKENIZER, square)
    seconds = time.process_time() - begun
    frames = whole_clip(backbone.spec, EXECUTED)
    actions = torch.cat([trajectory(frames, 100 + seed) for seed in range(clips)])
    cameras = rig(EYES[:2], frames, size).map(lambda matrix: matrix.expand(clips, *matrix.shape[1:]))
    clean = backbone.encode(TOKENIZER.encode(actions, cameras, square) * 2 - 1)
    rows = [_HEAD]
    for noise in NOISE:
        drawn = torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
        latents = clean + noise * clean.std() * drawn
        for way, read in (("decoded", _decoded(codec, cameras)), ("latents", _read(reader, cameras))):
            begun = time.process_time()
            found = read(latents)
            spent = 1e3 * (time.process_time() - begun) / clips
            rows.append([f"  {way}", f"{noise:g}", *_cells(Errors.of(found, actions)), f"{spent:.1f}"])
    title = f"{name}, {size} px, {frames} frames, 2 views, {clips} clips; fitted in {seconds:.1f} s"
    return [title, *aligned(rows)]


def _decoded(codec: Codec, cameras: Cameras) -> Callable[[Tensor], DecodedActions]:
    return lambda latents: TOKENIZER.decode((codec.decode(latents) + 1) / 2, cameras)


def _read(reader: LatentReader, cameras: Cameras) -> Callable[[Float[Tensor, "b v c l h w"]], DecodedActions]:
    return lambda latents: reader.read(reader.images(latents), cameras)


def _cells(errors: Errors) -> list[str]:
    position, rotation = errors.kept(errors.position), errors.kept(errors.rotation)
    squared = [float(errors.kept(each).mean()) for each in (errors.position_score, errors.rotation_score)]
    numbers = (position.median(), position.quantile(0.95), rotation.quantile(0.95))
    valid = 100 * float((~errors.flagged).double().mean())
    return [
        *(f"{float(number):.2f}" for number in numbers),
        f"{valid:.0f} %",
        ", ".join(f"{each:.2f}" for each in squared),
    ]


def work(name: str) -> list[str]:
    """Cells of one released size at 512 pixels."""
    spec_work = computed_work(name, (), (512, 512), 41)
    spec = spec_work.model.spec
    size = fitting_size(spec, (512, 512))
    frames = 41 if spec_work.model.codec.causal == "encoder" else EXECUTED
    later = spec.latent_frames(whole_clip(spec, frames)) - 1
    pixels = 3 * pixels_of_cell(spec, TOKENIZER, size) ** 2
    rows, columns = spec.grid(size)
    inputs = 9 * (spec.channels + 1) + 1
    reading = 2 * 2 * rows * columns * inputs * pixels * (1 + later * spec.temporal_stride)
    decoding = 2 * spec_work.decode_beginning
    return [name, f"{reading / 1e9:.2f}", f"{decoding / 1e9:.0f}", f"{100 * reading / decoding:.1g} %"]


if __name__ == "__main__":
    parser = ArgumentParser(description=__doc__)
    parser.add_argument("--backbones", nargs="*", default=TINY, help="tiny YAMLs of configs/backbone")
    parser.add_argument("--sizes", nargs="*", default=list(SIZES), help="released sizes")
    parser.add_argument("--size", type=int, default=64, help="pixels")
    parser.add_argument("--clips", type=int, default=24, help="that are measured")
    main(**vars(parser.parse_args()))
