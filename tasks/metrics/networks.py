"""Feature networks of video metrics, from files that the user names: nothing is ever downloaded.

`lpips_alex`, `lpips_vgg`: weights of torchvision's AlexNet or VGG-16 trained on ImageNet, a state_dict as its
authors publish it (the classifier is not needed); the linear heads come with torchmetrics. Read with
`weights_only`.

`fvd_NAME`: a TorchScript module from clips "n 3 t 224 224" in [-1, 1] to features "n d", such as the I3D file
that most FVD figures rest on (`fvd_i3d`). Where its forward takes `rescale`, `resize` and `return_features`,
as that file's does, they are False, False and True. TorchScript is a program: load files you trust only.
"""

import re
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchmetrics.functional.image import lpips

from ai_wam.errors import InvalidValue, MissingFile
from ai_wam.files.weights import check_weights, read_torch
from ai_wam.types import Clip
from tasks.metrics.video import square_clips

_PERCEPTUAL = {"lpips_alex": "alex", "lpips_vgg": "vgg"}
_SIDE = 224
_FORWARD = {"rescale": False, "resize": False, "return_features": True}


def check_names(networks: Mapping[str, str]) -> None:
    """Refuse names that are no metric's.

    Raises:
        ValueError: a name that is neither one of LPIPS nor begins with `fvd_`.
    """
    for name in networks:
        if name not in _PERCEPTUAL and not re.fullmatch(r"fvd_\w+", name):
            raise InvalidValue(
                f"evaluation.networks: unknown metric {name!r}; choose {', '.join(_PERCEPTUAL)} or fvd_NAME, "
                "where NAME says which extractor the file holds"
            )


def left_out(networks: Mapping[str, str]) -> dict[str, str]:
    """Why video metrics that need a network are missing, by metric."""
    why = "no network given; evaluation.networks: {%s: FILE} names one"
    wanted = {"lpips": "lpips_alex", "fvd": "fvd_i3d"}
    return {
        kind: why % example
        for kind, example in wanted.items()
        if not any(name.startswith(kind) for name in networks)
    }


def load_networks(networks: Mapping[str, str], clip: Clip) -> dict[str, nn.Module]:
    """The networks by the metric's name, for the frames of a clip.

    Raises:
        FileNotFoundError: a file that is not there.
        ValueError: weights of another network, or a program that does not take such clips.
    """
    for name, file in networks.items():
        if not Path(file).is_file():
            raise MissingFile(
                f"evaluation.networks: {name} is to be read from {file!r}, which is no file; nothing is "
                "downloaded for a metric. Give the path, or leave the metric out"
            )
    return {
        name: Perceptual(_PERCEPTUAL[name], file) if name in _PERCEPTUAL else Extractor(file, clip)
        for name, file in networks.items()
    }


class Perceptual(nn.Module):
    """LPIPS (arXiv 1801.03924) of two pictures: torchmetrics' network with local weights.

    Args:
        network: "alex" or "vgg".
        file: weights of its convolutions.
    """

    def __init__(self, network: str, file: str) -> None:
        super().__init__()
        # The public class would download the convolutions; with pnet_rand the file below fills them.
        self.net = lpips._NoTrainLpips(net=network, pnet_rand=True)  # type: ignore[arg-type]
        given = check_weights(read_torch(file), file)
        wanted = self.net.net.state_dict()  # slice2.3.weight is the file's features.3.weight
        names = {name: re.sub(r"^slice\d+", "features", name) for name in wanted}
        missing = [
            name for own, name in names.items() if name not in given or given[name].shape != wanted[own].shape
        ]
        if missing:
            raise InvalidValue(f"{file}: no weights of torchvision's {network}: {missing[0]} does not fit")
        self.net.net.load_state_dict({own: given[name] for own, name in names.items()})

    def forward(self, video: Float[Tensor, "n 3 h w"], truth: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n"]:
        """Distances of pictures in [-1, 1]."""
        distance: Tensor = self.net(video, truth)
        return distance.flatten()


class Extractor(nn.Module):
    """Features of clips by a TorchScript module.

    Attributes:
        features: their number.

    Args:
        file: a program; it must be trusted.
        clip: it is tried on black frames of this clip.

    Raises:
        ValueError: the program fails on them, for instance because they are too few.
    """

    def __init__(self, file: str, clip: Clip) -> None:
        super().__init__()
        with warnings.catch_warnings():  # the format that the field compares by, deprecated or not
            warnings.filterwarnings("ignore", message=".*torch.jit.load.* is deprecated")
            try:
                self.script = torch.jit.load(file, map_location="cpu").eval()
            except RuntimeError as error:
                said = str(error).splitlines()[0]
                raise InvalidValue(f"{file}: no TorchScript program, or damaged: {said}") from error
        known = {argument.name for argument in self.script.forward.schema.arguments}
        self.arguments = {name: value for name, value in _FORWARD.items() if name in known}
        try:
            self.features = self(torch.zeros(1, 3, clip.frames, *clip.size)).shape[1]
        except (RuntimeError, torch.jit.Error) as error:
            raise InvalidValue(
                f"{file}: the program does not take clips of {clip.frames} frames: {error}"
            ) from error

    @torch.no_grad()
    def forward(self, video: Float[Tensor, "n 3 t h w"]) -> Float[Tensor, "n d"]:
        """Features of clips in [-1, 1]."""
        found = [self.script(square_clips(clip[None], _SIDE), **self.arguments) for clip in video]
        return torch.cat(found).flatten(1)
