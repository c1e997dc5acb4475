"""`ai-wam cache`: latents of a training's frozen encoders, written beside the shards."""

from argparse import ArgumentParser
from collections.abc import Sequence

import torch
from lightning import LightningModule

from ai_wam.cli.parsing import WordParser
from ai_wam.cli.shipped_configs import instantiate
from ai_wam.cli.training import settings_of_fit
from ai_wam.errors import InvalidValue
from ai_wam.types import ClipEncoder
from ai_wam.utils.counted import counted
from datamodules.latent_cache_writer import Caching, write_cache
from datamodules.shard_datamodule import ShardDataModule
from datamodules.shards.latent_cache import CACHES, PROMPTS, cache_settings
from datamodules.shards.parallel_writing import Workers

_HELP = """\
The words of the `ai-wam fit` that is to use the cache, such as --config and --data.train, and:"""


def add_options(parser: ArgumentParser) -> None:
    """Add the command's own options."""
    add = parser.add_argument
    add("--actions", action="store_true", help="action images too, if no camera moves")
    precisions = ("float16", "float32")
    add("--precision", choices=precisions, default="float16", help="of the latents (default: %(default)s)")
    add("--batch_size", type=int, default=8, help="windows encoded at a time (default: %(default)s)")
    add("--decoders", type=int, default=0, help="processes that decode pictures meanwhile (default: none)")
    add("--ray", type=int, default=0, help="workers of a Ray cluster that share the shards (default: none)")
    add("--gpus", type=float, default=0.0, help="of every Ray worker (default: none)")


def main(words: Sequence[str]) -> None:
    """Encode every training window of every folder once; the same `ai-wam fit` then finds the latents."""
    parser = WordParser(prog="ai-wam cache", description=_HELP, allow_abbrev=False)
    add_options(parser)
    known, rest = parser.parse_known_args(list(words))
    if known.batch_size < 1 or known.decoders < 0:
        parser.error(
            f"--batch_size {known.batch_size} must be at least 1, --decoders {known.decoders} at least 0"
        )
    settings = settings_of_fit(rest)
    model = instantiate(settings["model"], LightningModule)
    data = instantiate(settings["data"], ShardDataModule)
    if not isinstance(model, ClipEncoder):
        raise InvalidValue(f"{type(model).__name__} has no frozen encoders to cache")
    on_gpu = known.gpus > 0 if known.ray else torch.cuda.is_available()
    workers = Workers(0, known.ray, known.gpus)
    encoders, dataset = model.encoders(), data.train_dataset()
    for source in dataset.sets:
        part = dataset.of(source)
        caching = Caching(
            part,
            model,
            "cuda" if on_gpu else "cpu",
            known.batch_size,
            known.decoders,
            known.precision,
            known.actions,
        )
        wanted = cache_settings(encoders, source, dataset.windows, dataset.decode == "all")
        folder = write_cache(caching, wanted, workers)
        prompts = sorted(source.captions() | {""})
        kept = model.keep_prompts(source.folder / CACHES / PROMPTS, prompts)
        what = counted(len(prompts), "prompt") if kept else "prompts cost nothing and are not kept"
        print(f"{folder}: {counted(len(part), 'window')} of {len(source)} episodes; {what}")
