"""Language modelling on tokenised text: next-token loss, perplexity on held-out documents.

Evaluation takes non-overlapping windows from the beginning of a split, the rest dropped, in
float32 with the quantizers active; perplexity is exp of the mean loss over all their tokens
(RECIPES C.5, where a batch's mean is averaged over batches of equal size: the same number).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fogzo_repro.config import RunConfig, UserError
from fogzo_repro.data.c4 import (
    LEAST_WINDOWS,
    Corpus,
    TokenBatch,
    TokenStream,
    WindowBatches,
    check_tokenizer,
    enough_documents,
    open_split,
)
from fogzo_repro.project import script
from fogzo_repro.training.preemption import evaluated
from fogzo_repro.training.ranks import ALONE, Ranks, current_ranks

EVALUATION_BATCH = 64  # windows a pass


def token_loss(model: nn.Module, batch: TokenBatch) -> Tensor:
    """Return the mean cross-entropy of the next tokens in float32."""
    return model(batch.windows[:, :-1], batch.windows[:, 1:])


@dataclass(eq=False)
class Language:
    """Causal language modelling; see `tasks.Task` for the parts."""

    unit = "tokens"
    best_by = ("val", "perplexity", False)
    loss = staticmethod(token_loss)

    train: TokenStream
    validation: TokenStream  # documents held out of training, or C4's own validation split
    context: int  # T, tokens a window
    interim_windows: int  # of validation, in all evaluations but the last
    train_windows: int  # in the last one
    fingerprint: str
    corpus: str | None
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        self.model_arguments: dict[str, Any] = {}
        self.units_per_example = self.context
        self.device = torch.device("cpu")
        self.examples = self.batches(1).windows

    def load(self, device: torch.device) -> None:
        """Remember where batches go, begin to check the tokens; these stay on the disk."""
        self.device = device
        for stream in (self.validation, self.train):
            stream.check(self.ranks.rank, self.ranks.world_size)

    def batches(self, global_batch_size: int) -> WindowBatches:
        """Return this rank's share of shuffled full batches."""
        rank, world_size = self.ranks.rank, self.ranks.world_size
        return WindowBatches(
            self.train, self.context, global_batch_size, self.device, rank, world_size
        )

    def evaluate(self, model: nn.Module, last: bool) -> dict[str, dict[str, float]]:
        """Return the validation split, in full after the last step, then also some training.

        `windows` says on how much, so that an interim perplexity is not taken for a final one.

        Raises:
            UserError: where a shard is damaged; the last evaluation waits until all are checked.
        """
        if last:
            for _ in evaluated(self._checked(), self.ranks):
                pass
        bound = len(self.validation) if last else self.interim_windows
        found = {"val": self._evaluate(model, self.validation, bound)}
        if last:
            found["train"] = self._evaluate(model, self.train, self.train_windows)
        return found

    def _checked(self) -> Iterator[TokenStream]:
        for stream in (self.validation, self.train):
            stream.raise_damage(wait=True)
            yield stream

    @torch.no_grad()
    def _evaluate(self, model: nn.Module, stream: TokenStream, bound: int) -> dict[str, float]:
        windows = min(bound, window_count(stream, self.context))
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        stride = EVALUATION_BATCH * self.ranks.world_size
        own = (
            range(first, min(first + EVALUATION_BATCH, windows))
            for first in range(EVALUATION_BATCH * self.ranks.rank, windows, stride)
        )
        read = (stream.windows([i * self.context for i in k], self.context) for k in own)
        for batch in evaluated(read, self.ranks):
            total += self.loss(model, TokenBatch(batch.to(self.device))).double() * len(batch)
        loss = self.ranks.sum(total).item() / windows
        perplexity = math.exp(min(loss, 700.0))
        return {"loss": loss, "perplexity": perplexity, "windows": windows}

    def skipped(self) -> list[str]:
        """Return nothing: a damaged shard ends the run. Waits until all are checked.

        Raises:
            UserError: in all processes, where a shard is damaged.
        """
        with self.ranks.together():
            for _ in self._checked():
                pass
        return []


def window_count(stream: TokenStream, context: int) -> int:
    """Return the non-overlapping windows of T inputs and T targets in a stream."""
    return max(0, len(stream) - 1) // context


def c4_language(config: RunConfig, corpus: Corpus) -> Language:
    """Build the task of a tokenised corpus.

    Raises:
        UserError: where the corpus is damaged, of another tokenizer or too small.
    """
    dataset, model = config.dataset, config.model
    check_tokenizer(corpus, model.vocabulary)
    train, validation = (
        open_split(corpus, split, model.vocabulary) for split in ("train", dataset.validation)
    )
    windows = window_count(validation, model.context)
    if windows < LEAST_WINDOWS:
        splits = corpus.manifest["splits"]
        documents = splits[dataset.validation]["documents"]
        length = splits["train"]["documents"], splits["train"]["tokens"]
        option = "--validation-tokens" if dataset.validation == "c4" else "--held-out"
        raise UserError(
            f"dataset.validation={dataset.validation} has {windows} windows of {model.context} "
            f"tokens in {documents} documents, at least {LEAST_WINDOWS} are needed, which take "
            f"about {enough_documents(*length, model.context)} documents; run "
            f"{script('prepare_c4')} with another --out and a larger {option}"
        )
    return Language(
        train,
        validation,
        context=model.context,
        interim_windows=dataset.interim_windows,
        train_windows=dataset.train_windows,
        fingerprint=f"c4 {corpus.sha256[:16]}, {dataset.validation}: {windows} windows",
        corpus=corpus.name,
        ranks=current_ranks(),
    )
