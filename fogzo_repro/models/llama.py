"""LLaMA by transformers: pre-norm blocks, rotary embeddings, SwiGLU, untied embedding and head.

Differences from QuEST's network (RECIPES C.2), stated in docs/choices.md: q, k and v are three
linear layers where QuEST has one fused projection, and rotary pairs are half a head apart (a
permutation of the head's columns) where QuEST's are neighbours.

Shapes: B sequences, T tokens, D width, V vocabulary.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from fogzo_repro.models.head_loss import linear_cross_entropy, takes_kernel

RESIDUAL_OUTPUTS = ("o_proj.weight", "down_proj.weight")


class Llama(nn.Module):
    """A LLaMA that returns its loss without ever holding all logits.

    The layers are transformers'. They are called one by one, without transformers' mask: under
    torch.compile with torch before 2.14 it builds an explicit causal mask, which rules out the
    flash kernel; without a mask the attention is causal by its own flag.
    """

    regions = ("embed", "block", "head")  # of training.compilation
    shared_inputs = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # of quantization

    def __init__(
        self,
        *,
        layers: int,
        width: int,
        heads: int,
        hidden: int,
        context: int,
        vocabulary: int,
        norm_eps: float,
        rope_theta: float,
        init_std: float,
    ) -> None:
        super().__init__()
        from transformers import LlamaConfig, LlamaForCausalLM

        dimensions: dict[str, Any] = {
            "vocab_size": vocabulary,
            "hidden_size": width,
            "intermediate_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": heads,
            "max_position_embeddings": context,
            "rms_norm_eps": norm_eps,
            "rope_parameters": {"rope_theta": rope_theta, "rope_type": "default"},
            "hidden_act": "silu",
            "attention_bias": False,
            "mlp_bias": False,
            "tie_word_embeddings": False,
            "attn_implementation": "sdpa",
        }
        causal = LlamaForCausalLM(LlamaConfig(**dimensions))
        self.embed_tokens: nn.Embedding = causal.model.embed_tokens
        self.layers: nn.ModuleList = causal.model.layers
        self.norm: nn.Module = causal.model.norm
        self.rotary: nn.Module = causal.model.rotary_emb
        self.lm_head: Any = causal.lm_head
        self._initialise(init_std)

    @torch.no_grad()
    def _initialise(self, std: float) -> None:
        """Draw all matrices from N(0, std), residual outputs from N(0, std / sqrt(2 L)).

        Explicitly, since an overridden `_init_weights` reaches only part of the network.
        """
        for name, parameter in self.named_parameters():
            if parameter.dim() < 2:  # RMSNorm gains
                parameter.fill_(1)
                continue
            residual = name.endswith(RESIDUAL_OUTPUTS)
            parameter.normal_(0, std / math.sqrt(2 * len(self.layers)) if residual else std)

    @property
    def embedding_parameters(self) -> int:
        """Parameters of embedding and head, which the non-embedding count leaves out (PAPER 3)."""
        return self.embed_tokens.weight.numel() + self.lm_head.weight.numel()

    def head_by_kernel(self, autocast: torch.dtype | None) -> bool:
        """Return whether a pass without gradients in autocast's type takes the head's kernel."""
        weight = self.lm_head.weight
        return takes_kernel(weight.shape[1], autocast or weight.dtype, weight.device)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Return logits (B, T, V), or with `targets` (B, T) the mean cross-entropy in nats."""
        x, *rotary = self.embed(tokens)
        for layer in self.layers:
            x = self.block(layer, x, *rotary)
        return self.head(x, targets)

    def embed(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map tokens (B, T) int to (B, T, D), and give the cosines and sines of the positions."""
        x = self.embed_tokens(tokens)
        positions = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        cosines, sines = self.rotary(x, position_ids=positions)
        return x, cosines, sines

    def block(self, layer: nn.Module, x: Tensor, cosines: Tensor, sines: Tensor) -> Tensor:
        """Map (B, T, D) to the same shape by one of the layers."""
        rotary = cosines, sines
        return layer(x, attention_mask=None, position_embeddings=rotary, use_cache=False)

    def head(self, x: Tensor, targets: Tensor | None) -> Tensor:
        """Return logits or the loss, as `forward` does."""
        hidden = self.norm(x)
        if targets is None:
            return self.lm_head(hidden)
        weight = self.lm_head.weight
        # A head that is quantized too (quantizer.first_last) does here what its forward would do.
        for_input = getattr(self.lm_head, "input_quantizer", None)
        for_weight = getattr(self.lm_head, "weight_quantizer", None)
        hidden = hidden if for_input is None else for_input(hidden)
        weight = weight if for_weight is None else for_weight(weight)
        return linear_cross_entropy(hidden.flatten(0, 1), weight, targets.flatten().long())


build = Llama
