import pytest
import torch
from scipy.linalg import hadamard

from fogzo_repro.quantization.hadamard import block_hadamard, block_size, scaled_block_hadamard

BLOCKS = (1, 2, 16, 64, 128)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: f"block{b}")
def test_transform_equals_the_dense_sylvester_matrix(block):
    x = torch.randn(5, block, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    dense = torch.tensor(hadamard(block), dtype=torch.float64) / block**0.5
    torch.testing.assert_close(block_hadamard(x, block), x @ dense, rtol=0, atol=1e-12)


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: f"block{b}")
def test_transform_is_orthonormal_in_float32(block):
    h = block_hadamard(torch.eye(block), block)
    torch.testing.assert_close(h @ h.T, torch.eye(block), rtol=0, atol=1e-6)


def test_blocks_of_a_row_do_not_mix():
    x = torch.randn(3, 48, generator=torch.Generator().manual_seed(0))
    parts = [block_hadamard(part, 16) for part in x.split(16, dim=1)]
    assert torch.equal(block_hadamard(x, 16), torch.cat(parts, dim=1))


@pytest.mark.parametrize(
    ("row", "block"),
    [(640, 128), (192, 64), (384, 128), (784, 16), (10, 2), (576, 64), (147, 1), (4096, 128)],
    ids=lambda n: str(n),
)
def test_block_is_the_largest_power_of_two_up_to_128_in_the_row(row, block):
    assert block_size(row) == block


def test_gradient_of_the_rotation_is_the_rotation_of_the_gradient():
    x = torch.randn(4, 32, requires_grad=True)
    g = torch.randn(4, 32)
    block_hadamard(x, 32).backward(g)
    torch.testing.assert_close(x.grad, block_hadamard(g, 32))


@pytest.mark.parametrize("block", BLOCKS, ids=lambda b: f"block{b}")
@pytest.mark.parametrize("kind", [None, torch.bfloat16], ids=["float32", "bf16"])
def test_scaled_rows_are_rotated_as_if_scaled_afterwards(block, kind):
    stream = torch.Generator().manual_seed(0)
    levels = torch.randint(-2, 2, (64, 2 * block), generator=stream) + 0.5
    scale = torch.rand(64, 1, generator=stream) + 0.5
    found = scaled_block_hadamard(levels, scale, block, kind)
    expected = scale.double() * block_hadamard(levels.double(), block)
    assert found.dtype == (kind or torch.float32)
    # The products are of numbers rounded to 8 bits, the sums are taken in float32 and rounded.
    error = (found.double() - expected).norm() / expected.norm()
    assert error < (3e-7 if kind is None else 2**-8)


def test_the_product_in_float16_stays_in_its_range():
    x = torch.full((1, 128), 1000.0)
    assert block_hadamard(x, 128, torch.float16).isfinite().all()
