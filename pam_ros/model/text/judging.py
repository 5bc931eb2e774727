"""How well regions fit a purpose, by the language model: the likelihood that it answers yes.

The model is asked in plain text, without the image: the question holds the request and the region's texts.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pam_ros.model.interface import Described
from pam_ros.model.text.language_model import LanguageModel
from pam_ros.model.text.prompts import AFTER_TASK, TEXT_BEFORE_IMAGE
from pam_ros.records import Language

QUESTION = {
    Language.EN: "An object in front of a robot: {label}. {explanation}\n"
    'A person asks the robot for: "{purpose}"\n'
    "Is this object what the person needs? Answer with yes or no.",
    Language.ZH: "机器人面前的一个物体：{label}。{explanation}\n有人向机器人要：“{purpose}”\n"
    "这个物体是他需要的吗？请回答“是”或“不是”。",
}
# First tokens of the answers; each counts with every spelling that the tokenizer knows.
YES = {Language.EN: ("Yes", "yes", " Yes", " yes"), Language.ZH: ("是", "是的", "对")}
NO = {Language.EN: ("No", "no", " No", " no"), Language.ZH: ("不", "不是", "否")}
AT_ONCE = 8  # questions in one batch: bounds the memory


class LikelihoodJudge:
    """Implements `interface.PurposeJudge` with Qwen2.5."""

    def __init__(self, language: LanguageModel) -> None:
        self._language = language

    @torch.inference_mode()
    def fits(self, purpose: str, regions: Sequence[Described], language: Language) -> list[float]:
        """P(yes) / (P(yes) + P(no)) of each region's question; see `interface.PurposeJudge`."""
        questions = [self._question(purpose, each.label, each.explanation, language) for each in regions]
        scores: list[float] = []
        for start in range(0, len(questions), AT_ONCE):
            scores += self._batch(questions[start : start + AT_ONCE], language)
        return scores

    def _question(self, purpose: str, label: str, explanation: str, language: Language) -> list[int]:
        text = QUESTION[language].format(label=label, explanation=explanation, purpose=purpose)
        # Special tokens in the user's words would be parsed as such.
        text = text.replace("<|", "< |")
        return self._language.encode_text(f"{TEXT_BEFORE_IMAGE}{text}{AFTER_TASK}")

    def _batch(self, questions: Sequence[list[int]], language: Language) -> list[float]:
        transformer, longest = self._language.transformer, max(map(len, questions))
        # Padding on the right: no token attends to what follows it.
        ids = torch.tensor([each + each[-1:] * (longest - len(each)) for each in questions])
        ids = ids.to(transformer.lm_head.weight.device)
        positions = torch.arange(longest, device=ids.device).expand(len(ids), -1)
        hidden = transformer.model(
            inputs_embeds=transformer.model.embed_tokens(ids),
            attention_mask=self._language.mask(positions, positions),
            use_cache=False,
        ).last_hidden_state
        ends = torch.tensor([len(each) - 1 for each in questions], device=ids.device)
        logits = transformer.lm_head(hidden[torch.arange(len(ids), device=ids.device), ends]).float()
        yes_ids, no_ids = self._answers(language)
        yes, no = logits[:, yes_ids].logsumexp(1), logits[:, no_ids].logsumexp(1)
        return [float(score) for score in (yes - no).sigmoid().tolist()]

    def _answers(self, language: Language) -> tuple[list[int], list[int]]:
        """First tokens of yes and of no; one that begins both, such as a space of its own, tells nothing."""
        yes, no = ({self._language.encode_text(word)[0] for word in words[language]} for words in (YES, NO))
        return sorted(yes - no), sorted(no - yes)
