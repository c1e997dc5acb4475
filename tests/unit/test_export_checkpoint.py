"""A trained backbone as a folder of its own: the same predictions, diffusers' own class, a model card."""

import json
import sys
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
import yaml
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from ai_wam.cameras import Cameras
from ai_wam.canvas import Canvas, build_canvas, plan
from ai_wam.cli import export_checkpoint as command
from ai_wam.cli import main
from ai_wam.cli.shipped_configs import config_path, instantiate
from backbones.base import VideoBackbone
from backbones.codecs.patch import PatchCodec
from backbones.conditions.prompts import Context, HashedWords
from backbones.wan import Wan
from backbones.weights import denoiser_folder as folders
from backbones.weights.denoiser_folder import split_weights

SIZE, FRAMES, VIEWS = (32, 32), 9, 2
CLIP = {"frames": FRAMES, "stride": 1, "control_hz": 5, "size": list(SIZE), "views": ["a", "b"]}
MORE = {"block_rank": 4, "camera_encoders": True}
TWINS = {"wan": MORE, "cogvideox": {}, "svd": {}, "wan-i2v": {}}
CLASSES = {
    "wan": ("transformer", "WanTransformer3DModel"),
    "wan-i2v": ("transformer", "WanTransformer3DModel"),
    "cogvideox": ("transformer", "CogVideoXTransformer3DModel"),
    "svd": ("unet", "UNetSpatioTemporalConditionModel"),
}


def described(name: str) -> dict[str, Any]:
    content = yaml.safe_load(config_path(f"configs/backbone/{name}-tiny.yaml").read_text())
    content["init_args"].update(TWINS[name])
    return content


def trained(name: str, tmp_path: Path) -> tuple[VideoBackbone, Path]:
    """A backbone that has left its silent start, and the checkpoint a task would have written."""
    torch.manual_seed(0)
    content = described(name)
    backbone = instantiate(content, VideoBackbone)
    with torch.no_grad():
        for parameter in backbone.denoiser.parameters():
            parameter += torch.randn(parameter.shape) * 0.02
    file = tmp_path / "last.ckpt"
    state = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
    known = {"_class_path": "tasks.policy.PolicyControl", "backbone": content, "clip": CLIP}
    torch.save({"state_dict": state, "hyper_parameters": known, "global_step": 12}, file)
    return backbone, file


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    monkeypatch.setattr(sys, "argv", ["ai-wam", "export-checkpoint", *words])
    main()


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained Wan as the command writes it, for tests that change nothing in its folder."""
    place = tmp_path_factory.mktemp("exported")
    _, file = trained("wan", place)
    with pytest.MonkeyPatch.context() as patch:
        run(patch, f"--ckpt_path={file}", f"--out={place / 'mine'}")
    return place / "mine"


def inputs(model: VideoBackbone) -> tuple[Canvas, Context, torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    video, action = torch.rand(2, 1, VIEWS, 3, FRAMES, *SIZE, generator=g) * 2 - 1
    poses = torch.eye(4).repeat(1, VIEWS, 1, 1, 1)
    poses[:, :, :, 0, 3] = torch.arange(VIEWS)[:, None]
    cameras = Cameras((torch.eye(3) * 30).expand(1, VIEWS, 1, 3, 3), poses)
    mask = torch.ones(1, VIEWS, dtype=torch.bool)
    firsts = [part[:, :, :, :1] for part in (video, action)]
    first = [model.encode(part) for part in firsts]
    stills = [model.encode_still(*pair, FRAMES) for pair in zip(firsts, first, strict=True)]
    canvas = build_canvas(
        plan("joint"), model.spec, SIZE, cameras, mask, *first, model.encode(video), model.encode(action),
        stills=None if stills[0] is None else tuple(stills),
        camera_latents=model.encode_cameras(cameras, SIZE, FRAMES),
    )  # fmt: skip
    context = model.encode_context(["reach the red ball"], video[:, :, :, :1], mask)
    return canvas, context, torch.randn(canvas.clean.shape, generator=g)


def predicted(model: VideoBackbone) -> torch.Tensor:
    canvas, context, noise = inputs(model)
    with torch.no_grad():
        return model.eval().predict(noise, torch.tensor([0.7]), canvas, context)


@pytest.mark.parametrize("name", TWINS)
def test_it_comes_back_to_the_bit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    backbone, file = trained(name, tmp_path)
    out = tmp_path / "mine"
    run(monkeypatch, f"--ckpt_path={file}", f"--out={out}")
    folder, kind = CLASSES[name]
    assert sorted(part.name for part in out.iterdir()) == sorted(
        ["README.md", "backbone.yaml", "task.yaml", folder]
    )
    assert json.loads((out / folder / "config.json").read_text())["_class_name"] == kind
    again = instantiate(str(out / "backbone.yaml"), VideoBackbone)
    for (
        parameter
    ) in again.denoiser.parameters():  # a mapped file is not aligned, and CPU kernels differ by that
        parameter.data = parameter.data.clone()
    assert torch.equal(predicted(again), predicted(backbone))
    plain = getattr(diffusers, kind).from_pretrained(out, subfolder=folder)
    assert plain.state_dict().keys() == again.released_names
    ours, _ = split_weights(backbone.denoiser, backbone.input_projection, backbone.released_names)
    assert all(torch.equal(ours[key], value) for key, value in plain.state_dict().items())


def test_the_card_says_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _, file = trained("cogvideox", tmp_path)
    rate = {"successes": 46, "trials": 50, "rate": 0.92, "interval": [0.81, 0.968]}
    (tmp_path / "results.json").write_text(json.dumps({"tasks": {"reach": {"policy": rate, "floor": rate}}}))
    run(
        monkeypatch, f"--ckpt_path={file}", f"--out={tmp_path / 'mine'}", "--license=apache-2.0",
        "--base_model=zai-org/CogVideoX-5b", f"--metrics={tmp_path / 'results.json'}",
    )  # fmt: skip
    _, head, text = (tmp_path / "mine" / "README.md").read_text().split("---\n", 2)
    head = yaml.safe_load(head)
    assert (head["license"], head["base_model"]) == ("apache-2.0", "zai-org/CogVideoX-5b")
    facts = yaml.safe_load(text.split("```yaml\n")[1].split("```")[0])
    assert facts["task"] == "tasks.policy.PolicyControl"
    assert (facts["clip"], facts["steps"]) == (CLIP, 12)
    assert "| reach | 46/50 [81, 97] % | not run | not run | 46/50 [81, 97] % |" in text


def test_other_parts_come_from_the_base_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A fine-tuned folder without video autoencoder is asked for nothing but its denoiser."""
    base, asked = tmp_path / "base", []
    torch.manual_seed(0)
    network = diffusers.WanTransformer3DModel(
        num_attention_heads=2, attention_head_dim=24, in_channels=12, out_channels=12, text_dim=16,
        freq_dim=16, ffn_dim=64, num_layers=2,
    )  # fmt: skip
    network.save_pretrained(base / "transformer")
    monkeypatch.setattr(Wan, "released_codec", lambda _, place: asked.append(place) or PatchCodec(12))
    monkeypatch.setattr(Wan, "released_prompts", lambda _, place: asked.append(place) or HashedWords(16, 8))
    for source, name in ((base, "one"), (tmp_path / "one", "two")):
        backbone = Wan(str(source))
        content = {"class_path": "backbones.wan.Wan", "init_args": {"pretrained": str(source)}}
        state = {f"backbone.{key}": value for key, value in backbone.state_dict().items()}
        known = {"_class_path": "tasks.policy.PolicyControl", "backbone": content}
        torch.save({"state_dict": state, "hyper_parameters": known}, tmp_path / "last.ckpt")
        run(monkeypatch, f"--ckpt_path={tmp_path / 'last.ckpt'}", f"--out={tmp_path / name}")
        with safe_open(tmp_path / name / "transformer" / "adapter.safetensors", "pt") as adapter:
            assert adapter.metadata()["base_model"] == str(base)
    Wan(str(tmp_path / "two"))
    assert set(asked) == {str(base)}
    with pytest.raises(SystemExit, match=r"name its hub id by --base_model"):
        run(monkeypatch, f"--ckpt_path={tmp_path / 'last.ckpt'}", f"--out={tmp_path / 'x'}", "--push=me/mine")
    assert not (tmp_path / "x").exists()


def test_a_hub_repository_is_asked_for_its_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """With a stand-in for the hub client, which is never reached by a test."""
    asked = []

    def download(repository: str, name: str) -> str:
        asked.append((repository, name))
        if repository != "me/mine":
            raise EntryNotFoundError("there is no such file")
        return str(tmp_path / "adapter.safetensors")

    monkeypatch.setattr(folders, "hf_hub_download", download)
    save_file({}, tmp_path / "adapter.safetensors", {"base_model": "Wan-AI/Wan2.2-TI2V-5B-Diffusers"})
    assert folders.base_model("me/mine", "transformer") == "Wan-AI/Wan2.2-TI2V-5B-Diffusers"
    assert folders.base_model("them/released", "unet") == "them/released"
    assert folders.base_model(None, "unet") is None
    assert asked == [
        ("me/mine", "transformer/adapter.safetensors"),
        ("them/released", "unet/adapter.safetensors"),
    ]


def test_a_named_adapter_that_is_not_there_is_missed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _, file = trained("wan", tmp_path)
    out = tmp_path / "mine"
    run(monkeypatch, f"--ckpt_path={file}", f"--out={out}")
    (out / "transformer" / "adapter.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"adapter\.safetensors, which its config.json names"):
        instantiate(str(out / "backbone.yaml"), VideoBackbone)

    def offline(*_: str) -> str:
        raise LocalEntryNotFoundError("it is not in the cache and the hub is not to be asked")

    monkeypatch.setattr(folders, "hf_hub_download", offline)
    monkeypatch.setattr(folders, "find", lambda *_: out / "transformer" / "config.json")
    with pytest.raises(FileNotFoundError, match=r"names: it is not in the cache.*hf download me/mine"):
        folders.base_model("me/mine", "transformer")
    (out / "transformer" / "config.json").write_text("{}")
    assert folders.base_model("them/released", "transformer") == "them/released"


@pytest.mark.parametrize(
    ("option", "value"),
    [("prediction", "native"), ("given_attention", "one_way"), ("time", "per_token"), ("path", "EDM")],
)
def test_a_network_is_used_as_it_was_trained(option: str, value: str, exported: Path):
    content = yaml.safe_load((exported / "backbone.yaml").read_text())
    content["init_args"][option] = (
        {"class_path": "ai_wam.diffusion.noise_paths.EDM"} if option == "path" else value
    )
    message = rf"was trained with {option}: '.*', not '.*{value}'.*backbone\.yaml"
    with pytest.raises(ValueError, match=message):
        instantiate(content, VideoBackbone)


def test_an_adapter_that_does_not_fit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    _, file = trained("wan", tmp_path)
    out = tmp_path / "mine"
    run(monkeypatch, f"--ckpt_path={file}", f"--out={out}")
    content = yaml.safe_load((out / "backbone.yaml").read_text())
    for option, value, message in (
        (
            "camera_encoders",
            False,
            r"holds camera_encoders\.maps\.0\.bias, which the backbone lacks.* and 3 more",
        ),
        ("block_rank", 2, r"block_conditions\.down\.0\.weight is \(4, .*in it, \(2, .*in the backbone"),
        ("known_observation", False, r"patch_embedding\.extra\.weight is "),
    ):
        changed = {**content["init_args"], option: value}
        with pytest.raises(ValueError, match=message):
            instantiate({**content, "init_args": changed}, VideoBackbone)
    adapter = out / "transformer" / "adapter.safetensors"
    found = load_file(adapter)
    save_file({key: value for key, value in found.items() if not key.endswith("maps.1.bias")}, adapter)
    with pytest.raises(ValueError, match=r"it lacks camera_encoders\.maps\.1\.bias"):
        instantiate(content, VideoBackbone)


def test_what_the_folder_lacks_starts_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(TWINS, "wan", {})
    backbone, file = trained("wan", tmp_path)
    out = tmp_path / "mine"
    run(monkeypatch, f"--ckpt_path={file}", f"--out={out}")
    content = yaml.safe_load((out / "backbone.yaml").read_text())
    content["init_args"].update(MORE)
    more = instantiate(content, VideoBackbone)
    assert more.denoiser.camera_encoders is not None
    torch.testing.assert_close(predicted(more), predicted(backbone), atol=1e-6, rtol=0)


def test_low_rank_adapters_are_merged_into_a_copy(tmp_path: Path, exported: Path):
    content = yaml.safe_load((exported / "backbone.yaml").read_text())
    content["init_args"]["training"] = {"lora": {"rank": 2}}
    adapted = instantiate(content, VideoBackbone)
    for name, parameter in adapted.denoiser.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.5, generator=torch.Generator().manual_seed(0))
    wanted = predicted(adapted)
    command.write_backbone(adapted, tmp_path / "merged", None)
    torch.testing.assert_close(predicted(adapted), wanted, atol=0, rtol=0)
    content["init_args"].update(training={"lora": None}, pretrained=str(tmp_path / "merged"))
    merged = instantiate(content, VideoBackbone)
    assert not any("lora" in name for name in merged.denoiser.state_dict())
    torch.testing.assert_close(predicted(merged), wanted, atol=1e-4, rtol=1e-4)
    content["init_args"]["pretrained"] = str(exported)
    assert not torch.allclose(predicted(instantiate(content, VideoBackbone)), wanted, atol=1e-2)


@pytest.mark.parametrize("what", ["both", "merged", "adapters"])
def test_what_is_written_of_low_rank_adapters_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], what: str
):
    _, file = trained("wan", tmp_path)
    with pytest.raises(SystemExit, match=r"last\.ckpt has no low-rank adapters; leave --what out"):
        run(monkeypatch, f"--ckpt_path={file}", f"--out={tmp_path / 'base'}", "--what=adapters")
    run(monkeypatch, f"--ckpt_path={file}", f"--out={tmp_path / 'base'}")
    assert "base: written, transformer in float32\n" in capsys.readouterr().out
    content = yaml.safe_load((tmp_path / "base" / "backbone.yaml").read_text())
    content["init_args"].update(training={"lora": {"rank": 2}, "dtype": "bfloat16"})
    adapted = instantiate(content, VideoBackbone)
    saved = torch.load(file, weights_only=True)
    saved["state_dict"] = {f"backbone.{key}": value for key, value in adapted.state_dict().items()}
    saved["hyper_parameters"]["backbone"] = content
    torch.save(saved, file)
    out = tmp_path / "mine"
    run(monkeypatch, f"--ckpt_path={file}", f"--out={out}", f"--what={what}")
    merged = ["low-rank adapters merged into transformer in float32"] * (what != "adapters")
    alone = ["low-rank adapters alone in float32: pytorch_lora_weights.safetensors"] * (what != "merged")
    said = "; ".join(merged + alone)
    assert f"mine: written, {said}\n" in capsys.readouterr().out
    assert f"Written: {said}." in (out / "README.md").read_text()
    names = ["README.md", *["backbone.yaml", "task.yaml", "transformer"] * len(merged)]
    names += ["pytorch_lora_weights.safetensors"] * len(alone)
    assert sorted(part.name for part in out.iterdir()) == sorted(names)
    if merged:
        assert (
            yaml.safe_load((out / "backbone.yaml").read_text())["init_args"]["training"]["dtype"] == "float32"
        )


def test_pushing_asks_the_hub_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The client's arguments only: nothing was ever uploaded by a test."""
    _, file = trained("cogvideox", tmp_path)
    asked: list[tuple[str, Any]] = []

    class Client:
        def create_repo(self, *args: Any, **options: Any) -> None:
            asked.append(("create_repo", (args, options)))

        def upload_folder(self, **options: Any) -> None:
            asked.append(("upload_folder", options))

    monkeypatch.setattr(command, "HfApi", Client)
    out = tmp_path / "mine"
    run(monkeypatch, f"--ckpt_path={file}", f"--out={out}", "--push=me/mine")
    assert asked[0] == ("create_repo", (("me/mine",), {"private": True, "exist_ok": True}))
    assert asked[1][1] == {
        "repo_id": "me/mine",
        "folder_path": str(out),
        "commit_message": "Export of ai-wam",
    }
    assert yaml.safe_load((out / "backbone.yaml").read_text())["init_args"]["pretrained"] == "me/mine"
    with pytest.raises(SystemExit, match="push must be user/repository, got 'mine'"):
        run(monkeypatch, f"--ckpt_path={file}", f"--out={tmp_path / 'x'}", "--push=mine")
    with pytest.raises(SystemExit, match="mine is already there and is not overwritten"):
        run(monkeypatch, f"--ckpt_path={file}", f"--out={out}")
    with pytest.raises(SystemExit, match=r"is no results\.json of `ai-wam test`"):
        run(
            monkeypatch,
            f"--ckpt_path={file}",
            f"--out={tmp_path / 'x'}",
            f"--metrics={out / 'backbone.yaml'}",
        )
    assert not (tmp_path / "x").exists()


def test_a_task_of_which_no_trial_counts_has_no_rate_in_the_card(tmp_path):
    """As where the simulator brought no scene back as asked."""
    arm = {"successes": 0, "trials": 0, "rate": None, "interval": None}
    (tmp_path / "results.json").write_text(json.dumps({"tasks": {"open": {"policy": arm}}}))
    assert "| open | no trial counts | not run |" in command._results(tmp_path / "results.json")
