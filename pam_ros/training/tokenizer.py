"""A small byte-level BPE in Qwen2's format: covers English and Chinese, never meets an unknown character."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from pam_ros.datasets.registry import open_sources
from pam_ros.model.text.prompts import TASK_TEXT, text_after_image

SPECIAL_TOKENS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def train_tokenizer(texts: Iterable[str], folder: Path, vocabulary: int) -> None:
    """Trains on `texts` and writes tokenizer.json and tokenizer_config.json into `folder`.

    At most `vocabulary` entries; fewer if the texts do not have enough pairs.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        clean_up_tokenization_spaces=False,
    )
    wrapped.save_pretrained(str(folder))


def texts_of(sources: Sequence[str]) -> Iterator[str]:
    """Every question and every answer of the training data."""
    for task in TASK_TEXT:
        yield text_after_image(*task)
    for sample in open_sources(sources):
        for region in sample.regions:
            yield from chain.from_iterable(region.texts.values())
            for clip in chain.from_iterable(region.clips):
                yield from chain.from_iterable(clip.captions.values())


def main(arguments: Sequence[str] | None = None) -> None:
    """`python -m pam_ros.training.tokenizer --data FOLDER --out models/pam-tiny`."""
    parser = argparse.ArgumentParser(description="Train a tokenizer on the texts of training data.")
    parser.add_argument("--data", nargs="+", required=True, help="as in a stage's YAML")
    parser.add_argument("--out", type=Path, required=True, help="the model folder that gets the tokenizer")
    parser.add_argument("--vocabulary", type=int, default=4096, help="maximum number of entries")
    given = parser.parse_args(arguments)
    train_tokenizer(texts_of(given.data), given.out, given.vocabulary)


if __name__ == "__main__":
    main()
