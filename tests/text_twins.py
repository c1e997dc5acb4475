"""A text encoder of the T5 family and its tokenizer, tiny, as transformers writes them."""

from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast, T5Config, T5EncoderModel

TEXT = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2, "vocab_size": 8}


def save_text(
    folder: Path,
    encoder: PreTrainedModel | None = None,
    words: Sequence[str] = ("reach", "the", "red", "ball"),
) -> None:
    """Write text_encoder and tokenizer, which knows some words and ends every prompt."""
    (encoder or T5EncoderModel(T5Config(**TEXT))).save_pretrained(folder / "text_encoder")
    known = {word: index for index, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    tokenizer = Tokenizer(models.WordLevel(known, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    )
    fast.save_pretrained(folder / "tokenizer")
