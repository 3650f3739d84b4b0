"""LLaMA: sizes, initialisation, equality with transformers."""

import math
from dataclasses import replace

import pytest
import torch

from fogzo_repro.composition import compose_run
from fogzo_repro.config import build_part

COUNTS = {  # PAPER 3 and RECIPES C.1, C.9: non-embedding, total
    "llama_9m": (8_851_584, 8_851_584 + 2 * 50304 * 384),
    "llama_20m": (20_453_888, 20_453_888 + 2 * 50304 * 512),
    "llama_30m": (30_482_560, 94_871_680),
    "llama_95m": (30_482_560, 94_871_680),
    "llama_200m": (102_777_856, 102_777_856 + 2 * 50304 * 1024),
    "llama_300m": (203_188_480, 203_188_480 + 2 * 50304 * 1280),
}


def _build(section):
    return build_part("model", section, None)


def _tiny():
    model = compose_run("model=llama_9m").model
    return replace(model, width=32, heads=2, hidden=64, vocabulary=96, layers=2, context=16)


@pytest.mark.slow
@pytest.mark.parametrize("name", COUNTS, ids=COUNTS)
def test_counts_by_shape_are_those_of_the_paper(name):
    with torch.device("meta"):
        model = _build(compose_run(f"model={name}").model)
    total = sum(p.numel() for p in model.parameters())
    assert (total - model.embedding_parameters, total) == COUNTS[name]


def test_llama_95m_is_the_same_run_as_llama_30m():
    assert compose_run("model=llama_95m").model == compose_run("model=llama_30m").model


def test_smoke_divides_the_widths_by_eight():
    full, smoke = (
        compose_run("model=llama_30m").model,
        compose_run("model=llama_30m", "scale=smoke").model,
    )
    assert (smoke.width, smoke.hidden) == (full.width // 8, full.hidden // 8)


def test_logits_equal_those_of_transformers_with_the_same_weights():
    from transformers import LlamaConfig, LlamaForCausalLM

    section = _tiny()
    model = _build(section)
    reference = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=96, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=2, rms_norm_eps=1e-5, attn_implementation="eager",
        )
    )  # fmt: skip
    state = {
        name if name.startswith("lm_head") else f"model.{name}": value
        for name, value in model.state_dict().items()
    }
    assert set(state) == set(reference.state_dict())
    reference.load_state_dict(state)
    tokens = torch.randint(96, (3, 16), generator=torch.Generator().manual_seed(0))
    wanted = reference(tokens, use_cache=False)
    torch.testing.assert_close(model(tokens), wanted.logits, rtol=1e-5, atol=1e-6)
    loss = model(tokens[:, :-1], tokens[:, 1:])
    torch.testing.assert_close(loss, reference(tokens, labels=tokens, use_cache=False).loss)


def test_initial_loss_is_the_log_of_the_vocabulary():
    torch.manual_seed(0)
    section = replace(_tiny(), vocabulary=5000)
    model = _build(section)
    tokens = torch.randint(5000, (8, 17), generator=torch.Generator().manual_seed(0))
    loss = model(tokens[:, :-1], tokens[:, 1:])
    # Logits of deviation 0.02 sqrt(32) = 0.11 raise the expected loss by half their variance.
    assert abs(loss.item() - math.log(5000) - 0.02**2 * 32 / 2) < 0.03


def test_residual_outputs_start_smaller_by_the_root_of_twice_the_layers():
    torch.manual_seed(0)
    model = _build(replace(_tiny(), width=256, hidden=512))
    for name, parameter in model.named_parameters():
        if parameter.dim() < 2:
            assert (parameter == 1).all()
            continue
        std = 0.02 / math.sqrt(2 * 2) if "o_proj" in name or "down_proj" in name else 0.02
        assert parameter.std().item() == pytest.approx(std, rel=0.02)
