"""Video metrics against figures worked out by hand; networks from local files alone."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torchmetrics.functional.image import lpips

from ai_wam.types import Clip
from tasks.metrics.networks import Extractor, Perceptual, check_names, left_out, load_networks
from tasks.metrics.video import FrechetVideoDistance, VideoQuality, frechet_distance, square_clips

CLIP = Clip(frames=5, size=(16, 24))


def clips(rows: int = 3, seed: int = 0) -> torch.Tensor:
    return 2 * torch.rand(rows, 2, 3, 5, 16, 24, generator=torch.Generator().manual_seed(seed)) - 1


def every(video: torch.Tensor) -> torch.Tensor:
    return torch.ones(*video.shape[:2], video.shape[3], dtype=torch.bool)


def judged(metric, *arguments) -> dict[str, float]:
    metric.update(*arguments)
    return {name: float(value) for name, value in metric.compute().items() if not value.isnan()}


def test_a_constant_error_in_decibels():
    """Off by 0.2 in [-1, 1], hence by 0.1 in [0, 1]: 20 dB. Frame 0 is given and does not count."""
    truth = clips() * 0.8
    video = truth + 0.2
    video[:, :, :, 0] = -1
    found = judged(VideoQuality(), video, truth, every(truth))
    assert found["psnr"] == pytest.approx(20, abs=1e-4)


def test_ssim_of_constant_pictures():
    """Without variance what is left is (2 m n + c) / (m^2 + n^2 + c), c = 0.01^2."""
    truth = torch.full((1, 1, 3, 2, 16, 16), 0.0)
    found = judged(VideoQuality(), truth + 0.5, truth, every(truth))
    m, n, c = 0.75, 0.5, 1e-4
    assert found["ssim"] == pytest.approx((2 * m * n + c) / (m**2 + n**2 + c), abs=5e-4)


def test_frames_without_error_count_as_rounding():
    truth = clips()
    found = judged(VideoQuality(), truth, truth, every(truth))
    assert found["psnr"] == pytest.approx(58.92, abs=0.01)
    assert found["ssim"] == pytest.approx(1)


def test_frames_that_do_not_count_do_not():
    truth, counted = clips() * 0.5, every(clips())
    video = truth + 0.2
    video[1], counted[1] = -1, False
    video[:, 1, :, 3:], counted[:, 1, 3:] = 1, False
    assert judged(VideoQuality(), video, truth, counted)["psnr"] == pytest.approx(20, abs=1e-4)
    assert judged(VideoQuality(), video, truth, torch.zeros_like(counted)) == {}


def test_distance_of_two_gaussians():
    """Covariances that do not commute: for 2 x 2, tr (A B)^(1/2) = (tr A B + 2 (det A B)^(1/2))^(1/2)."""
    a, b = torch.tensor([[2.0, 1], [1, 2]]).double(), torch.tensor([[3.0, 0], [0, 1]]).double()
    cross = (8 + 2 * (3 * 3) ** 0.5) ** 0.5
    found = frechet_distance(torch.tensor([0.0, 1]), a, torch.tensor([3.0, 5]), b)
    assert float(found) == pytest.approx(25 + 4 + 4 - 2 * cross, rel=1e-12)
    assert float(frechet_distance(torch.zeros(2), a, torch.zeros(2), a)) == pytest.approx(0, abs=1e-12)


class Colours(nn.Module):
    """Three features: the mean of each colour."""

    def forward(self, video: torch.Tensor) -> torch.Tensor:
        return video.mean((2, 3, 4))


def test_distance_of_features_is_that_of_their_means_and_covariances():
    video, truth = clips(8), clips(8, seed=1) * 0.5 + 0.2
    found = judged(FrechetVideoDistance("fvd_colours", Colours(), 3), video, truth, every(video))
    features = [Colours()(each.flatten(0, 1)).double() for each in (video, truth)]
    moments = [part for each in features for part in (each.mean(0), each.T.cov())]
    assert found == {"fvd_colours": pytest.approx(float(frechet_distance(*moments)), rel=1e-6)}
    only = every(video)
    only[:, 1, 2] = False  # a clip with a missing frame is no sample
    metric = FrechetVideoDistance("fvd_colours", Colours(), 3)
    metric.update(video, truth, only)
    assert metric.counts.tolist() == [8, 8]


def test_two_clips_are_the_least():
    video, counted = clips(1), every(clips(1))
    counted[:, 1] = False
    assert judged(FrechetVideoDistance("fvd_colours", Colours(), 3), video, video, counted) == {}


def test_ranks_add_up():
    video, truth = clips(6), clips(6, seed=1)
    for make in (VideoQuality, lambda: FrechetVideoDistance("fvd_colours", Colours(), 3)):
        whole, parts = make(), (make(), make())
        whole.update(video, truth, every(video))
        for part, rows in zip(parts, (slice(2), slice(2, 6)), strict=True):
            part.update(video[rows], truth[rows], every(video)[rows])
        parts[0].merge_state(parts[1])
        for name, value in whole.compute().items():
            assert float(parts[0].compute()[name]) == pytest.approx(float(value), rel=1e-6), name


@pytest.fixture(scope="module")
def alexnet(tmp_path_factory) -> Path:
    """Weights of the right shapes, convolutions only."""
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("weights") / "alexnet.pth"
    features = torchvision.models.alexnet(weights=None).features.state_dict()
    torch.save({f"features.{name}": value for name, value in features.items()}, file)
    return file


def test_lpips_with_local_weights(alexnet: Path):
    """Squared distances of normalised features behind each ReLU, weighed by torchmetrics' own heads."""
    guess = clips(1)[0, 0].transpose(0, 1).repeat_interleave(3, 2).repeat_interleave(3, 3)
    truth = guess.flip(0)
    network = load_networks({"lpips_alex": str(alexnet)}, CLIP)["lpips_alex"]
    weights = torch.load(alexnet, weights_only=True)
    convolutions = torchvision.models.alexnet(weights=None).features
    convolutions.load_state_dict({name.removeprefix("features."): value for name, value in weights.items()})
    heads = torch.load(Path(lpips.__file__).parent / "lpips_models" / "alex.pth", "cpu", weights_only=True)
    shift, scale = (torch.tensor(c)[:, None, None] for c in ([-0.03, -0.088, -0.188], [0.458, 0.448, 0.45]))
    x, y, expected = (guess - shift) / scale, (truth - shift) / scale, torch.zeros(len(guess))
    with torch.no_grad():
        for index, layer in enumerate(convolutions[:12]):
            x, y = layer(x), layer(y)
            if index in (1, 4, 7, 9, 11):
                head = heads[f"lin{(1, 4, 7, 9, 11).index(index)}.model.1.weight"].flatten()[:, None, None]
                apart = (nn.functional.normalize(x, dim=1) - nn.functional.normalize(y, dim=1)) ** 2
                expected += (head * apart).sum(1).mean((1, 2))
    torch.testing.assert_close(network(guess, truth), expected, rtol=1e-3, atol=1e-5)
    metric = VideoQuality({"lpips_alex": network})
    video = guess.transpose(0, 1)[None, None]
    found = judged(metric, video, video.flip(3), every(video))
    assert found["lpips_alex"] == pytest.approx(float(expected[1:].mean()), rel=1e-3)


def test_weights_of_another_network_are_refused(alexnet: Path):
    with pytest.raises(ValueError, match=r"no weights of torchvision's vgg: features\.0\.weight"):
        Perceptual("vgg", str(alexnet))


class Scripted(nn.Module):
    """Takes what the common I3D file takes."""

    def forward(
        self, x: torch.Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> torch.Tensor:
        assert not rescale
        assert not resize
        assert return_features
        assert x.shape[2] >= 4, "too short"
        return x.mean((3, 4)).amax(2)


@pytest.fixture(scope="module")
def script(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "scripted.pt"
    with pytest.warns(FutureWarning, match="deprecated"):
        torch.jit.script(Scripted()).save(str(file))
    return file


def test_a_script_extracts_features(script: Path):
    extractor = load_networks({"fvd_own": str(script)}, CLIP)["fvd_own"]
    assert isinstance(extractor, Extractor)
    assert extractor.features == 3
    video = clips(1)[0]
    expected = square_clips(video, 224).mean((3, 4)).amax(2)
    torch.testing.assert_close(extractor(video), expected)
    with pytest.raises(ValueError, match=r"does not take clips of 3 frames[\s\S]*too short"):
        Extractor(str(script), replace(CLIP, frames=3))


def test_the_centre_square_is_taken():
    video = torch.zeros(1, 3, 2, 4, 8)
    video[..., 2:6] = 1
    assert square_clips(video, 7).shape == (1, 3, 2, 7, 7)
    assert float(square_clips(video, 7).min()) == pytest.approx(1)


def test_nothing_is_downloaded_or_guessed():
    with pytest.raises(FileNotFoundError, match=r"lpips_alex is to be read from 'nowhere\.pth'"):
        load_networks({"lpips_alex": "nowhere.pth"}, CLIP)
    with pytest.raises(ValueError, match=r"unknown metric 'fid'; choose lpips_alex, lpips_vgg or fvd_NAME"):
        check_names({"fid": "x"})
    check_names({"lpips_vgg": "x", "fvd_i3d": "y"})
    assert set(left_out({})) == {"lpips", "fvd"}
    assert "evaluation.networks: {fvd_i3d: FILE}" in left_out({"lpips_vgg": "x"})["fvd"]
    assert left_out({"lpips_vgg": "x", "fvd_i3d": "y"}) == {}
