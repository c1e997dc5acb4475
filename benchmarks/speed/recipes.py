"""Trains every recipe for a few steps on this machine: `python -m benchmarks.speed.recipes OUT [--tiny]`.

Writes a release of Wan 2.2 5B with random weights and clips of moving squares into OUT, then runs
`ai-wam fit` on each recipe with its own precision, strategy, clipping, callbacks, batch and clip, a
validation, a checkpoint and a resumed run. A recipe for several GPUs is run on one of them, sharded into one
part.
`--tiny` does the same with a tiny release, on any machine.
"""

import json
import os
import subprocess
import sys
import time
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from ai_wam.cli.shipped_configs import config_path
from benchmarks.speed.moving_squares import MovingSquares
from benchmarks.speed.released_sizes import SIZES
from datamodules.shards.convert_source import write_shards

STEPS = 2  # of the first run, and again of the resumed one
_KNOWN = ("<pad>", "</s>", "<unk>", "move", "the", "square")
_TINY = {"num_attention_heads": 2, "attention_head_dim": 12, "ffn_dim": 32, "num_layers": 2, "freq_dim": 16}
_TINY_VAE = {"base_dim": 8, "decoder_base_dim": 8, "num_res_blocks": 1}


class StepTimes(Callback):
    """Prints the seconds of optimizer steps, and the most memory that tensors took on a GPU."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to measure."""
        self._seconds: list[float] = []
        self._step, self._since = trainer.global_step, time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Note a step."""
        if trainer.global_step > self._step:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            now = time.perf_counter()
            self._seconds.append(now - self._since)
            self._step, self._since = trainer.global_step, now
            self._print()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Validations do not count."""
        self._since = time.perf_counter()

    def _print(self) -> None:
        peak = torch.cuda.max_memory_allocated() / 1e9 if torch.cuda.is_available() else 0.0
        steps = ", ".join(f"{each:.1f}" for each in self._seconds)
        print(f"measured: optimizer steps of {steps} s; {peak:.1f} GB of GPU memory at most", flush=True)


def write_release(folder: Path, tiny: bool) -> None:
    """Write a release in the hub's layout, with random weights and a text encoder of one layer."""
    from diffusers import AutoencoderKLWan, WanTransformer3DModel
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, UMT5Config, UMT5EncoderModel

    with torch.device("meta"):
        model: Any = SIZES["wan2.2-5b"]()
    width = 16 if tiny else model.denoiser.config.text_dim
    sizes = {**model.denoiser.config, **(_TINY if tiny else {}), "text_dim": width}
    vae = {**model.codec.vae.config, **(_TINY_VAE if tiny else {})}
    network = {name: value for name, value in sizes.items() if not name.startswith("_")}
    autoencoder = {name: value for name, value in vae.items() if not name.startswith("_")}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with device:
        WanTransformer3DModel(**network).bfloat16().save_pretrained(folder / "transformer")
        AutoencoderKLWan(**autoencoder).save_pretrained(folder / "vae")
    text = UMT5Config(d_model=width, d_kv=8, d_ff=32, num_layers=1, num_heads=2, vocab_size=len(_KNOWN))
    UMT5EncoderModel(text).save_pretrained(folder / "text_encoder")
    words = {word: index for index, word in enumerate(_KNOWN)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder / "tokenizer")
    parts = {"transformer": ["diffusers", "WanTransformer3DModel"], "vae": ["diffusers", "AutoencoderKLWan"]}
    index = {"_class_name": "WanPipeline", "expand_timesteps": True, **parts}
    (folder / "model_index.json").write_text(json.dumps(index))


def words_of(recipe: str, out: Path, tiny: bool, steps: int, save: bool = True) -> list[str]:
    """Arguments of `ai-wam fit` that run a recipe here; the module's docstring says what they change."""
    import yaml

    content = yaml.safe_load(config_path(recipe).read_text())
    trainer, schedule = content["trainer"], content["model"]["init_args"]["lr_scheduler"]["class_path"]
    sharded = isinstance(trainer.get("strategy"), dict)
    every = STEPS * trainer.get("accumulate_grad_batches", 1)
    init, release = "--model.backbone.init_args", out / "release"
    words = [
        *("fit", f"--config={recipe}", "--trainer.devices=1", "--trainer.enable_progress_bar=false"),
        f"--trainer.max_steps={steps}",
        *(f"--trainer.val_check_interval={every}", "--trainer.limit_val_batches=1"),
        *("--trainer.num_sanity_val_steps=0", f"--trainer.callbacks.every_n_train_steps={STEPS}"),
        "--trainer.callbacks.save_top_k=1",
        *(f"{init}.pretrained={release}", f"{init}.prompts.init_args.pretrained={release}"),
        *(f"{init}.prompts.init_args.cache={out / 'prompts'}", "--model.sampling.steps=4"),
        *(f"--data.train={out / 'data'}", f"--data.val={out / 'data'}"),
        f"--trainer.logger.init_args.save_dir={out / 'runs'}",
    ]
    if schedule.endswith(".CosineWithWarmup"):
        words.append(f"--model.lr_scheduler.steps={2 * STEPS}")
    words += ["--trainer.strategy.init_args.data_parallel_size=1"] if sharded else []
    words += [] if save else ["--trainer.callbacks.save_last=false", "--trainer.callbacks.save_top_k=0"]
    words.append("--trainer.callbacks+=benchmarks.speed.recipes.StepTimes")
    if tiny:
        words += ["--trainer.accelerator=cpu", "--model.clip.size=[64,64]", "--model.clip.frames=5"]
        words += ["--data.workers=0"]
    return words


def run(words: list[str], log: Path) -> str:
    """Run a command; returns one line on how it ended. Its output goes to a file."""
    begin, program = time.perf_counter(), "from ai_wam.cli import main; main()"
    with log.open("w") as stream:
        command = [sys.executable, "-c", program, *words]
        done = subprocess.run(command, stdout=stream, stderr=subprocess.STDOUT, check=False, env=os.environ)
    lines = log.read_text().splitlines()
    found = [line for line in lines if line.startswith("measured: ")]
    summary = found[-1].removeprefix("measured: ") if found and not done.returncode else "\n".join(lines[-3:])
    return f"exit status {done.returncode} after {time.perf_counter() - begin:.0f} s: {summary}"


def main(out: Path, tiny: bool, recipes: list[str], save: bool) -> None:
    """Write a release and clips, run the recipes on them, print a line for each."""
    out.mkdir(parents=True, exist_ok=True)
    begin, side = time.perf_counter(), 64 if tiny else 512
    if not (out / "release").exists():
        write_release(out / "release", tiny)
        write_shards(MovingSquares(8, 40, (side, side)), out / "data", 4, workers=2, progress=False)
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    print(f"{name}; release and clips written in {time.perf_counter() - begin:.0f} s", flush=True)
    for recipe in recipes:
        stem = Path(recipe).stem
        ended = run(words_of(recipe, out, tiny, STEPS, save), out / f"{stem}.log")
        print(f"{stem}: {ended}", flush=True)
        last = out / "runs" / stem / "version_0" / "checkpoints" / "last.ckpt"
        if last.is_file():
            size = last.stat().st_size / 1e9
            again = [*words_of(recipe, out, tiny, 2 * STEPS), f"--ckpt_path={last}"]
            ended = run(again, out / f"{stem}-resumed.log")
            print(f"{stem}, resumed from a file of {size:.2f} GB: {ended}", flush=True)


if __name__ == "__main__":
    shipped = sorted(config_path("configs/recipes").glob("*.yaml"))
    parser = ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    parser.add_argument("recipes", nargs="*", default=[f"configs/recipes/{file.name}" for file in shipped])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--no-save", action="store_true", help="for disks too small for a checkpoint")
    options = parser.parse_args()
    main(options.out, options.tiny, options.recipes, not options.no_save)
