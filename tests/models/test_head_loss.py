"""The chunked head loss is the plain one, in value and gradients."""

import math

import pytest
import torch
import torch.nn.functional as F

from fogzo_repro.models.head_loss import kernel_agrees, linear_cross_entropy


def _inputs(tokens, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(tokens, 8, generator=generator, dtype=dtype)
    weight = torch.randn(50, 8, generator=generator, dtype=dtype)
    targets = torch.randint(50, (tokens,), generator=generator)
    return hidden.requires_grad_(), weight.requires_grad_(), targets


@pytest.mark.parametrize("tokens", [64, 37], ids=["whole-chunks", "ragged-chunk"])
@pytest.mark.parametrize("chunk_logits", [10**6, 500], ids=["one-chunk", "many-chunks"])
def test_loss_and_gradients_equal_the_plain_cross_entropy(tokens, chunk_logits):
    hidden, weight, targets = _inputs(tokens)
    plain = F.cross_entropy(hidden @ weight.T, targets)
    wanted = torch.autograd.grad(3 * plain, (hidden, weight))
    loss = linear_cross_entropy(hidden, weight, targets, chunk_logits)
    found = torch.autograd.grad(3 * loss, (hidden, weight))
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=0)
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-7)


def test_gradients_pass_gradcheck_in_float64():
    hidden, weight, targets = _inputs(12, torch.float64)
    assert torch.autograd.gradcheck(
        lambda h, w: linear_cross_entropy(h, w, targets, 200), (hidden, weight)
    )


def test_the_pass_without_gradients_gives_the_same_loss_bit_for_bit():
    hidden, weight, targets = _inputs(64)
    with_gradients = linear_cross_entropy(hidden, weight, targets, 500)
    with torch.no_grad():
        assert linear_cross_entropy(hidden, weight, targets, 500) == with_gradients


def test_small_probabilities_are_not_lost_in_float16():
    """1/(N V) = 3e-8 underflows in float16; the sum's gradient 1/V, scaled afterwards, does not."""
    tokens, vocabulary = 2**12, 2**13
    hidden = torch.ones(tokens, 1, dtype=torch.float16, requires_grad=True)
    weight = torch.zeros(vocabulary, 1, requires_grad=True)
    with torch.autocast("cpu", torch.float16):
        loss = linear_cross_entropy(hidden, weight, torch.zeros(tokens, dtype=torch.long))
    loss.backward()
    assert loss.item() == pytest.approx(math.log(vocabulary), rel=1e-5)
    assert weight.grad[1:].mean().item() == pytest.approx(1 / vocabulary, rel=1e-3)


def test_autocast_runs_the_product_in_bf16_and_the_softmax_in_float32():
    hidden, weight, targets = _inputs(64)
    plain = F.cross_entropy((hidden.bfloat16() @ weight.bfloat16().T).float(), targets)
    with torch.autocast("cpu", torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets)
    loss.backward()
    assert loss.dtype == torch.float32
    assert weight.grad.dtype == torch.float32
    torch.testing.assert_close(loss, plain, rtol=1e-6, atol=0)


def losses(hidden, weight, targets):
    return F.cross_entropy(hidden.float() @ weight.float().T, targets, reduction="none")


def gradients_in_place(logits, targets):
    losses = F.cross_entropy(logits, targets, reduction="none")
    logits.copy_(logits.softmax(-1) - F.one_hot(targets, logits.shape[1]))
    return losses


def product(total, left, right):
    total += left.float().T @ right.float()


def broken(*_):
    raise RuntimeError("this Triton does not compile it")


@pytest.mark.parametrize(
    ("broken_part", "is_taken"),
    [
        ({}, True),
        ({"token_losses": lambda h, w, t: losses(h, w[:-1], t.clamp(max=998))}, False),
        ({"token_losses": lambda h, w, t: losses(h, w, t.roll(1))}, False),
        ({"token_losses": broken}, False),
        ({"softmax_gradients": lambda x, t: gradients_in_place(x, t.roll(1))}, False),
        ({"softmax_gradients": lambda x, t: F.cross_entropy(x, t, reduction="none")}, False),
        ({"add_product": lambda total, left, right: None}, False),
        ({"add_product": lambda total, left, right: total.copy_(left.T @ right)}, False),
    ],
    ids=[
        "right", "a-word-is-lost", "other-targets", "broken", "other-rows", "logits-are-kept",
        "no-product", "no-sum",
    ],
)  # fmt: skip
def test_the_kernels_are_taken_only_where_they_give_what_float64_does(
    monkeypatch, broken_part, is_taken
):
    pytest.importorskip("triton")
    parts = {
        "token_losses": losses, "softmax_gradients": gradients_in_place, "add_product": product,
    }  # fmt: skip
    for name, part in (parts | broken_part).items():
        monkeypatch.setattr(f"fogzo_repro.models.head_kernel.{name}", part)
    assert kernel_agrees(torch.device("cpu")) == is_taken
