"""What quantising the language model changes: its logits and tokens, against the unquantised model's.

Letters: P tokens of a prompt, H model width, L tokens of an answer, V vocabulary.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pam_ros.evaluation.bench_paths import PREFIX_TOKENS, SUFFIX_TOKENS, noise_frames, token_ids
from pam_ros.evaluation.fixed_texts import plain_texts
from pam_ros.model.interface import FIRST_FRAME_STRIDE
from pam_ros.model.pam import Pam
from pam_ros.model.text.language_model import LanguageModel
from pam_ros.model.text.prompts import TEXT_BEFORE_IMAGE, text_after_image
from pam_ros.model.vision.features import Observation
from pam_ros.records import Language, Prompt, Task
from pam_ros.share import share_folder
from pam_ros.videos import read_video

ANSWER_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer to one prompt."""

    prompt: Tensor  # (P, H)
    tokens: list[int]  # greedy
    logits: Tensor  # (L, V) float32 on the CPU: before each of the tokens


@torch.inference_mode()
def record_answers(model: Pam) -> list[Answer]:
    """Greedy answers about every object in the first frame of the demo clip."""
    language, (before, after) = model.language, _texts_around(model.language)
    answers = []
    for observation in _objects(model):
        (found,) = model.embeddings([observation], stride=FIRST_FRAME_STRIDE, crop=True)
        prefix = torch.cat([language.embed(before), found.tensor])
        (tokens,) = plain_texts(language, prefix[None], [(0, ANSWER_TOKENS)], after, language.stop_ids)
        if tokens:
            prompt = torch.cat([prefix, language.embed(after)])
            answers.append(Answer(prompt, tokens, _logits(language, prompt, tokens)))
    return answers


def _objects(model: Pam) -> list[Observation]:
    folder = share_folder("config", "demo/*.json") / "demo"
    if model.language.tokenizer is None:  # random weights: any image will do
        image = noise_frames(1)[0]
    else:
        image = next(iter(read_video(folder / "clip.mp4"))).image
    objects = json.loads((folder / "clip.json").read_text(encoding="utf-8"))["objects"]
    prompts = [Prompt.from_clicks(box_xyxy=each["box"]) for each in objects]
    return model.segment(model.encode(image), prompts, [model.new_memory() for _ in prompts])


def _texts_around(language: LanguageModel) -> tuple[list[int], list[int]]:
    """Token ids before and after a region's embeddings; a model of random weights has no tokenizer."""
    if language.tokenizer is None:
        return token_ids(PREFIX_TOKENS), token_ids(SUFFIX_TOKENS)
    after = text_after_image(Task.DETAIL, Language.EN, None)
    return language.encode_text(TEXT_BEFORE_IMAGE), language.encode_text(after)


@torch.inference_mode()
def compare_answers(model: Pam, answers: Sequence[Answer]) -> tuple[float, float]:
    """A model's logits before every recorded token: mean relative error, and share of equal greedy tokens."""
    errors, equal = [], []
    for answer in answers:
        found = _logits(model.language, answer.prompt, answer.tokens)
        errors.append((found - answer.logits).norm(dim=-1) / answer.logits.norm(dim=-1))
        equal.append(found.argmax(-1) == torch.tensor(answer.tokens))
    return float(torch.cat(errors).mean()), float(torch.cat(equal).float().mean())


def _logits(language: LanguageModel, prompt: Tensor, tokens: Sequence[int]) -> Tensor:
    """Prompt (P, H) and an answer's tokens → logits (L, V) before each of them."""
    embeddings = torch.cat([prompt, language.embed(tokens[:-1])])
    positions = torch.arange(len(embeddings), device=embeddings.device)[None]
    hidden = language.transformer.model(
        inputs_embeds=embeddings[None], attention_mask=language.mask(positions, positions), use_cache=False
    ).last_hidden_state
    logits: Tensor = language.transformer.lm_head(hidden[0, len(prompt) - 1 :])
    return logits[:, : language.tokens].float().cpu()
