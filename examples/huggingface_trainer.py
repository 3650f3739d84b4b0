"""FOGZO in a Trainer of Hugging Face: a small LLaMA with 2-bit weights on Python's help in bytes.

    python -m examples.huggingface_trainer [--steps 200] [--seeds 2]

Prints the STE's and FOGZO's losses on the same seeds; minutes on a CPU; needs accelerate too.
"""

import argparse
import tempfile
from pydoc_data.topics import topics

import torch
from torch import nn
from torch.nn.utils import parametrize
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments, set_seed

from fogzo_repro.adapters import quantized_weights
from fogzo_repro.estimators import FogzoStep

TEXT = torch.tensor(list("\n".join(topics.values()).encode())).unfold(0, 128, 128)
WINDOWS = [{"input_ids": tokens, "labels": tokens} for tokens in TEXT]


class Round(nn.Module):
    """Weights of 2 bits, -2 .. 1 times a scale a row, with the identity STE."""

    def __init__(self, weight):
        super().__init__()
        self.scale = nn.Buffer(weight.detach().std(1, keepdim=True))

    def forward(self, weight):
        value = self.scale * (weight / self.scale).round().clamp(-2, 1)
        return weight + (value - weight).detach()


class FogzoTrainer(Trainer):
    fogzo = None

    def compute_loss(self, model, inputs, return_outputs=False, **options):
        plain = super().compute_loss
        if not model.training:
            return plain(model, inputs, return_outputs, **options)
        if self.fogzo is None:
            given = {"seed": self.args.seed, "scaler": self.accelerator.scaler}
            given |= {"schedule": "linear", "total_steps": self.args.max_steps}
            self.fogzo = FogzoStep(model, self.optimizer, quantized_weights(model), **given)
        return self.fogzo.loss(lambda batch: plain(model, batch, **options), inputs)

    def training_step(self, *arguments, **options):
        loss = super().training_step(*arguments, **options)
        if self.accelerator.sync_gradients:  # the last micro-batch; clipping comes afterwards
            self.fogzo.estimate()
        return loss


def train(kind, seed, steps):
    set_seed(seed)
    size = {"hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=256, num_attention_heads=4, **size))
    for layer in [m for m in model.model.modules() if isinstance(m, nn.Linear)]:
        parametrize.register_parametrization(layer, "weight", Round(layer.weight))
    with tempfile.TemporaryDirectory() as folder:
        options = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=8, gradient_accumulation_steps=2,
            learning_rate=3e-3, lr_scheduler_type="cosine", max_grad_norm=1.0, seed=seed,
            report_to=[], disable_tqdm=True, save_strategy="no", logging_strategy="no",
        )  # fmt: skip
        trainer = kind(model, options, train_dataset=WINDOWS[256:], eval_dataset=WINDOWS[:256])
        return trainer.train().training_loss, trainer.evaluate()["eval_loss"]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in {"--steps": 200, "--seeds": 2}.items():
        parser.add_argument(name, type=int, default=default)
    given = parser.parse_args()
    for seed in range(given.seeds):
        for name, kind in {"ste": Trainer, "fogzo": FogzoTrainer}.items():
            mean, held_out = train(kind, seed, given.steps)
            print(f"seed {seed} {name:5}  mean train loss {mean:.4f}  held out {held_out:.4f}")
