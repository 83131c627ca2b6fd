"""TRL's GRPOTrainer for a fit that may be killed, and for a policy that is sure of its answers.

Such a policy would never try its own answers with a keyword left out. A model that says the same in every sample has
groups without differences, and learns nothing from them, however much it could save. So a share of the answers is
edited after sampling: one keyword, drawn at random, is taken out. Where what is left earns more than the mean of its
group, the policy moves towards it; where it earns less, it is forgotten: the policy need not be taught not to say what
it does not say. Edited answers are not the policy's own samples, so this is policy gradient with proposals, not GRPO
alone: with a share of 0 it is GRPO.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

from mmsrarec_ray.summarize.keywords import halves, render


def without_one(answer: str, draw: Random) -> str:
    """The answer without one of its keywords, of a half that has several; as it is where there is none such."""
    try:
        said = halves(answer)
    except ValueError:
        return answer
    places = [(half, place) for half, words in said.items() if len(words) > 1 for place in range(len(words))]
    if not places:
        return answer
    half, place = draw.choice(places)
    said[half] = said[half][:place] + said[half][place + 1 :]
    return render(said.get("image", ()), said.get("text", ()))


def trainer_class(edits: float) -> Any:
    """TRL's GRPOTrainer, resumed with the items of an unbroken run. edits: share of its samples that lose a keyword."""
    from torch.utils.data import Sampler
    from trl import GRPOTrainer

    class Reshuffled(Sampler):
        """TRL's sampler draws the order of an epoch from what the epochs before have left of its generator: one that
        goes on in the third epoch would see the items of the first."""

        def __init__(self, sampler: Any, state: Any):
            self.sampler, self.state = sampler, state

        def __len__(self) -> int:
            return len(self.sampler)

        def __iter__(self) -> Iterator[int]:
            self.sampler.generator.manual_seed(self.sampler.seed + int(self.state().epoch or 0))
            return iter(self.sampler)

    class Resumable(GRPOTrainer):
        def _get_train_sampler(self, dataset: Any = None) -> Any:
            return Reshuffled(super()._get_train_sampler(dataset), lambda: self.state)

    return _exploring(Resumable, edits) if edits else Resumable


def _exploring(trainer: Any, share: float) -> Any:
    import torch

    class Exploring(trainer):
        # Where answers are sampled by vLLM, their log probabilities come with them, and an edit has none.
        def _generate_single_turn(self, *arguments: Any, **more: Any) -> Any:
            completions, logs = super()._generate_single_turn(*arguments, **more)
            self.edited = torch.zeros(len(completions), dtype=torch.bool)
            if logs is None and self.model.training:
                draw = Random(f"{self.args.seed} {self.state.global_step} {self.args.process_index}")
                chosen = [draw.random() < share for _ in completions]
                tried = [self._edit(ids, draw) if edit else ids for ids, edit in zip(completions, chosen, strict=True)]
                self.edited = torch.tensor([new != old for new, old in zip(tried, completions, strict=True)])
                completions = tried
            return completions, logs

        def _edit(self, ids: list[int], draw: Random) -> list[int]:
            if ids[-1] not in self.eos_token_ids:
                return ids  # it was cut off
            answer = self._tokenizer.decode(ids, skip_special_tokens=True)
            edited = without_one(answer, draw)
            return ids if edited == answer else [*self._tokenizer.encode(edited, add_special_tokens=False), ids[-1]]

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            batch = super()._generate_and_score_completions(inputs)
            worse = self.edited.to(batch["advantages"].device) & (batch["advantages"] <= 0)
            batch["completion_mask"] = batch["completion_mask"] * ~worse[:, None]
            return batch

    return Exploring
