"""Trains the matcher of `~/find` on the ontology's words: `python -m pam_ros.training.purposes FILE`.

Sentence embeddings of requests and of explanations go through one matrix each, so that their cosine says
whether the explained object has the requested function. The logits of several such matchers are averaged.
Requests are the ontology's functions and the words of `purposes.yaml`, put into templates; explanations are
written as the simulator writes them.

Letters: N requests, C categories, V explanations of each, D embedding width, H learned width.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, normalize

from pam_ros.model.text.matching import WIDTH, first_sentence, sentence_encoder
from pam_ros.records import Language, Task
from pam_ros.simulator.functions import fitting_functions
from pam_ros.simulator.ontology import Entry, ontology
from pam_ros.simulator.texts.captions import describe
from pam_ros.simulator.texts.facts import Facts, Mention

HIDDEN = 128
STEPS = 1500
BATCH = 128
LEARNING_RATE = 1e-3
WEIGHT_DECAY = 0.1
NOISE = 0.03  # added to embeddings of length 1: wordings that are close by mean the same
MATCHERS = 2  # trained alike from different initial weights; their mean is more often right than either
BIAS = 0.7  # added: at the default threshold, misses are then as many as wrong answers (seeds 171 to 176)
OTHER_LANGUAGE = 0.5  # of the batches match requests with explanations in the other language
POSITIVE_WEIGHT = 4.0  # about 2 of 80 categories fit a request
RANKING_WEIGHT = 0.06
VARIANTS = 16  # explanations of each category
EMBED_AT_ONCE = 256

INFINITIVE = (
    "something to {}",
    "what can I {} with",
    "I want to {}",
    "I need something to {}",
    "find a thing to {}",
    "which one can I use to {}",
    "{}",
)
GERUND = ("a tool for {}", "something for {}", "what is good for {}", "a thing used for {}")
NAME = ("where is the {}", "a {}", "give me the {}", "I need a {}")
CHINESE = (
    "用来{}的东西",
    "可以{}的",
    "{}用什么",
    "我想{}",
    "找一个能{}的东西",
    "{}的工具",
    "适合{}的物品",
    "{}",
)
CHINESE_NAME = ("{}在哪里", "拿{}给我", "一个{}", "我要{}")


class Matcher(nn.Module):
    """Requests (N, D) and explanations (C, D) → logits (N, C)."""

    def __init__(self, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.request = nn.Linear(WIDTH, hidden, bias=False)
        self.explanation = nn.Linear(WIDTH, hidden, bias=False)
        nn.init.orthogonal_(self.request.weight)
        self.explanation.weight.data.copy_(self.request.weight.data)  # similar sentences match from the start
        self.scale = nn.Parameter(torch.tensor(10.0))
        self.bias = nn.Parameter(torch.tensor(-5.0))

    def forward(self, requests: Tensor, explanations: Tensor) -> Tensor:
        """Logits of explanation c having the function of request n."""
        cosine = (
            normalize(self.request(requests), dim=-1) @ normalize(self.explanation(explanations), dim=-1).T
        )
        return self.scale * cosine + self.bias


def save(matchers: Sequence[Matcher], path: Path) -> None:
    """Writes what `PurposeMatcher` reads."""
    tensors: dict[str, list[Tensor]] = {
        "request": [each.request.weight for each in matchers],
        "explanation": [each.explanation.weight for each in matchers],
        "scale": [each.scale for each in matchers],
        "bias": [each.bias for each in matchers],
    }
    arrays: dict[str, Any] = {
        name: torch.stack(each).detach().numpy().astype(np.float16) for name, each in tensors.items()
    }
    np.savez(path, **arrays)


@dataclass(frozen=True, slots=True)
class Examples:
    """One language's examples."""

    requests: Tensor  # (N, D)
    explanations: Tensor  # (C, V, D)
    fits: Tensor  # (N, C) 1 where category c has a function that fits request n


def requests_of(language: Language) -> list[tuple[str, str]]:
    """(function, request in words) of every training request."""
    words = yaml.safe_load(Path(__file__).with_name("purposes.yaml").read_text(encoding="utf-8"))
    found: list[tuple[str, str]] = []
    english = language is Language.EN
    for key, function in ontology().functions.items():
        more = words.get(key, {}).get(language.value, [])
        if english:
            forms = [infinitive.removeprefix("be ") for infinitive, _ in function.english] + more
            found += [(key, form.format(each)) for each in forms for form in INFINITIVE]
            found += [(key, form.format(each)) for _, each in function.english for form in GERUND]
        else:
            found += [(key, form.format(each)) for each in [*function.chinese, *more] for form in CHINESE]
    for entry in ontology().entries.values():
        if entry.kind != "part":
            forms = NAME if english else CHINESE_NAME
            found += [(entry.function, form.format(name)) for name in entry.names[language] for form in forms]
    return found


def entries() -> list[Entry]:
    """Every category that an explanation can be about."""
    return list(ontology().entries.values())


def explanations_of(entry: Entry, language: Language, rng: np.random.Generator) -> list[str]:
    """Explanations of one category as the simulator writes them, in different looks and places."""
    others = ontology().of_kind("object")
    texts = []
    for _ in range(VARIANTS):
        other = Mention(others[int(rng.integers(len(others)))].id, "")
        facts = Facts(category=entry.id, kind=entry.kind, surface="wood")
        if entry.kind == "object":
            material, colours = entry.looks[int(rng.integers(len(entry.looks)))]
            beside = other if rng.random() < 0.7 else None
            facts = Facts(
                category=entry.id,
                kind=entry.kind,
                colour=colours[int(rng.integers(len(colours)))],
                material=material,
                place=("table", "wood"),
                neighbour=beside,
                relation="left" if beside else "",
            )
        elif entry.kind == "part":
            facts = Facts(category=entry.id, kind=entry.kind, colour="red", whole=other)
        texts.append(first_sentence(describe(facts, Task.EXPLAIN, language, rng)))
    return texts


def examples(language: Language, rng: np.random.Generator) -> Examples:
    """Every request and explanation, embedded."""
    requests, known = requests_of(language), entries()
    fits = [[float(each.function in fitting_functions(key)) for each in known] for key, _ in requests]
    explanations = [_embedded(explanations_of(entry, language, rng)) for entry in known]
    return Examples(_embedded([text for _, text in requests]), torch.stack(explanations), torch.tensor(fits))


def train(count: int = MATCHERS, steps: int = STEPS) -> list[Matcher]:
    """Matchers of both languages; less than a minute each on a CPU."""
    rng = np.random.default_rng(0)
    data = [examples(language, rng) for language in Language]
    return [_trained(data, seed, steps) for seed in range(count)]


def _trained(data: Sequence[Examples], seed: int, steps: int) -> Matcher:
    """Trains on requests of the languages in turn."""
    torch.manual_seed(seed)
    matcher = Matcher()
    optimizer = torch.optim.AdamW(matcher.parameters(), lr=LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    for step in range(steps):
        asked = data[step % len(data)]
        other = float(torch.rand(())) < OTHER_LANGUAGE
        explanations = (data[(step + 1) % len(data)] if other else asked).explanations
        chosen = torch.randint(len(asked.requests), (BATCH,))
        categories = torch.arange(len(explanations))
        variant = torch.randint(explanations.shape[1], (len(categories),))
        logits = matcher(_disturbed(asked.requests[chosen]), _disturbed(explanations[categories, variant]))
        loss = matching_loss(logits, asked.fits[chosen])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    with torch.no_grad():
        matcher.bias.add_(BIAS)
    return matcher


def matching_loss(logits: Tensor, fits: Tensor) -> Tensor:
    """The loss of whether each category fits (N, C), and of ranking one that fits first."""
    weight = torch.tensor(POSITIVE_WEIGHT)
    each = binary_cross_entropy_with_logits(logits, fits, pos_weight=weight)
    right = torch.where(fits > 0, logits, -torch.inf).logsumexp(1)
    return each + RANKING_WEIGHT * (logits.logsumexp(1) - right).mean()


def _disturbed(embeddings: Tensor) -> Tensor:
    return embeddings + NOISE * torch.randn_like(embeddings)


def _embedded(sentences: Sequence[str]) -> Tensor:
    encoder = sentence_encoder()
    parts = [
        encoder.embed(sentences[start : start + EMBED_AT_ONCE])
        for start in range(0, len(sentences), EMBED_AT_ONCE)
    ]
    return torch.from_numpy(np.concatenate(parts))


if __name__ == "__main__":
    save(train(), Path(sys.argv[1]))
