"""timm's RandAugment on the device: the operations that were drawn for each image, a batch at once.

A worker draws by timm itself, whose operations it hands a list to note down in place of an image.
What an operation does to single values it does to a ramp of all 256, where it moves an image, it
says the matrix: both by the library's own code. The rest is Pillow's arithmetic (Blend.c, Filter.c,
Geometry.c, ImageOps.py) in Pillow's order, so that the pixels are the same.

Shapes: B images of a batch, n of them that an operation is for, S their side.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

# timm's functions: those that change single values, those that move an image, the others.
TABLES = ("invert", "posterize", "solarize", "solarize_add", "brightness")
MOVES = (
    "rotate", "shear_x", "shear_y", "translate_x_rel", "translate_y_rel",
    "translate_x_abs", "translate_y_abs",
)  # fmt: skip
OTHERS = ("auto_contrast", "equalize", "contrast", "color", "sharpness")
KINDS = ("table", "auto_contrast", "equalize", "contrast", "color", "sharpness", "move")


class Operation(NamedTuple):
    """One operation on one image.

    Attributes:
        kind: of KINDS.
        table: what becomes of each value, (256,) uint8; for `table`.
        numbers: the factor, or the matrix of `move`, from places of the new image to the old one.
    """

    kind: str
    table: np.ndarray | None
    numbers: tuple[float, ...]


class Layer(NamedTuple):
    """What is done to the images of a batch, once to each at most.

    Attributes:
        images: their places in the batch, (n,) int64, by kind.
        counts: how many of each of KINDS.
        tables: (images of kind `table`, 256) uint8.
        factors: of the images of kinds `contrast`, `color` and `sharpness`, float32.
        matrices: (images of kind `move`, 6) float64.
    """

    images: Tensor
    counts: tuple[int, ...]
    tables: Tensor
    factors: Tensor
    matrices: Tensor


def repaired(augment: Any) -> Any:
    """Return timm's RandAugment, whose Posterize keeps 0 bits where it draws that: black.

    So did Pillow before 13, which refuses it.
    """
    for operation in getattr(augment, "ops", ()):
        if operation.aug_fn.__name__ == "posterize":
            operation.aug_fn = posterize
    return augment


def posterize(image: Any, bits: int, **more: Any) -> Any:
    """Keep the upper bits of each value, as timm's `posterize`."""
    from timm.data import auto_augment

    if bits < 1:
        return image.point([0] * 256 * len(image.getbands()))
    return auto_augment.posterize(image, bits, **more)


def noting(augment: Any, size: int) -> Callable[[], list[Operation]] | None:
    """Return what draws as timm's RandAugment does, and says the operations; None if it cannot."""
    from PIL import Image
    from timm.data.auto_augment import RandAugment

    if not isinstance(augment, RandAugment):
        return None
    known = {*TABLES, *MOVES, *OTHERS}
    noted = copy.deepcopy(augment)
    for operation in noted.ops:
        name, filter = operation.aug_fn.__name__, operation.kwargs.get("resample")
        if name not in known or (name in MOVES and filter != Image.Resampling.BICUBIC):
            return None
        operation.aug_fn = partial(_note, operation.aug_fn, size)
    fill = {operation.kwargs["fillcolor"] for operation in noted.ops}
    return partial(noted, []) if len(fill) == 1 else None


def fill_colour(augment: Any) -> tuple[int, int, int]:
    """Return what is put where a moved image has nothing."""
    return augment.ops[0].kwargs["fillcolor"]


def _note(
    function: Callable[..., Any],
    size: int,
    noted: list[Operation],
    *arguments: float,
    **more: Any,
) -> list[Operation]:
    from PIL import Image

    name = function.__name__
    if name in TABLES:
        ramp = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(1, 256))
        table = np.asarray(function(ramp, *arguments, **more)).reshape(-1)
        return [*noted, Operation("table", table, ())]
    if name in MOVES:
        moved = _Moved(size)
        function(moved, *arguments, **more)
        return [*noted, Operation("move", None, moved.matrix)] if moved.matrix else noted
    return [*noted, Operation(name, None, tuple(map(float, arguments)))]


class _Moved:
    """Stands in for an image, and notes the matrix by which timm moves it."""

    def __init__(self, size: int) -> None:
        from PIL import Image

        self.size = size, size
        self.width = self.height = size
        self.matrix: tuple[float, ...] = ()
        self.rotate = partial(Image.Image.rotate, self)  # type: ignore[arg-type]

    def copy(self) -> None:
        """Timm asks for a copy where nothing moves."""

    def transform(
        self, size: Any, method: Any, matrix: Sequence[float], *_: Any, **__: Any
    ) -> None:
        """Note the matrix."""
        self.matrix = tuple(map(float, matrix))


def pack_operations(drawn: Sequence[Sequence[Operation]]) -> list[Layer]:
    """Return the first operation of each image of a batch, then the second, and so on."""
    layers = []
    for step in range(max(map(len, drawn), default=0)):
        own = [
            (i, operations[step]) for i, operations in enumerate(drawn) if len(operations) > step
        ]
        own.sort(key=lambda each: KINDS.index(each[1].kind))
        kinds = [operation.kind for _, operation in own]
        tables = [o.table for _, o in own if o.table is not None]
        layers.append(
            Layer(
                torch.tensor([i for i, _ in own]),
                tuple(map(kinds.count, KINDS)),
                torch.from_numpy(np.array(tables, np.uint8).reshape(-1, 256)),
                torch.tensor([o.numbers[0] for _, o in own if len(o.numbers) == 1]),
                torch.tensor(
                    [o.numbers for _, o in own if o.kind == "move"], dtype=torch.float64
                ).view(-1, 6),
            )
        )
    return layers


def apply(layer: Layer, pixels: Tensor, fill: tuple[int, int, int]) -> Tensor:
    """Do a layer's operations to a batch (B, 3, S, S) uint8, in place; return it."""
    groups = dict(zip(KINDS, layer.images.split(list(layer.counts)), strict=True))
    toned = torch.cat([groups[kind] for kind in ("table", "auto_contrast", "equalize")])
    if len(toned):
        old = pixels[toned]
        _, stretched, equal = old.split([len(groups[kind]) for kind in KINDS[:3]])
        tables = [layer.tables.unsqueeze(1).expand(-1, 3, -1)]
        tables += [_stretching(stretched)] if len(stretched) else []
        tables += [_equalizing(equal)] if len(equal) else []
        table = torch.cat(tables)
        pixels[toned] = table.gather(2, old.flatten(2).long()).view_as(old)
    factors = layer.factors.split([len(groups[kind]) for kind in KINDS[3:6]])
    for kind, low, factor in zip(KINDS[3:6], (_mean, _grey, _smooth), factors, strict=True):
        if len(factor):
            old = pixels[groups[kind]]
            pixels[groups[kind]] = _blend(low(old), old, factor.view(-1, 1, 1, 1))
    if len(layer.matrices):
        moved = move(pixels, groups["move"], layer.matrices, fill)
        pixels[groups["move"]] = moved
    return pixels


def _stretching(old: Tensor) -> Tensor:
    """Return the tables (n, 3, 256) of ImageOps.autocontrast."""
    low, high = (v.double().unsqueeze(2) for v in old.flatten(2).aminmax(dim=2))
    value = torch.arange(256, dtype=torch.float64, device=old.device)
    scale = torch.full_like(low, 255.0) / (high - low)  # 255.0 / x would multiply by 1 / x
    stretched = (value * scale + -low * scale).clamp(0, 255)
    return torch.where(high > low, stretched, value).to(torch.uint8)


def _equalizing(old: Tensor) -> Tensor:
    """Return the tables (n, 3, 256) of ImageOps.equalize."""
    flat = old.flatten(2).long()
    counts = torch.zeros(*flat.shape[:2], 256, dtype=torch.int64, device=old.device)
    counts.scatter_add_(
        2, flat, torch.ones(1, dtype=torch.int64, device=old.device).expand_as(flat)
    )
    last = counts.gather(2, flat.amax(2, keepdim=True))
    step = (flat.shape[2] - last) // 255
    before = counts.cumsum(2) - counts
    table = ((step // 2 + before) // step.clamp(min=1)).clamp(max=255)
    value = torch.arange(256, device=old.device)
    return torch.where(step > 0, table, value).to(torch.uint8)


def _luma(old: Tensor) -> Tensor:
    """Return Pillow's grey, (n, 1, S, S) int32."""
    red, green, blue = old.int().split(1, dim=1)
    return (19595 * red + 38470 * green + 7471 * blue + 0x8000) >> 16


def _grey(old: Tensor) -> Tensor:
    return _luma(old).float()


def _mean(old: Tensor) -> Tensor:
    total = _luma(old).sum(dim=(1, 2, 3), keepdim=True).double()
    return (total / old[0, 0].numel() + 0.5).floor().float()


def _smooth(old: Tensor) -> Tensor:
    """Return ImageFilter.SMOOTH's image; the outermost pixels stay."""
    side, centre = 1.0 / 13.0, 5.0 / 13.0
    x = old.float()
    rows = []
    for y, middle in ((2, side), (1, centre), (0, side)):  # the row below comes first
        row = x[:, :, y : y + x.shape[2] - 2]
        rows.append(row[..., :-2] * side + row[..., 1:-1] * middle + row[..., 2:] * side)
    out = x.clone()
    total = rows[0] + 0.5 + rows[1] + rows[2]
    out[:, :, 1:-1, 1:-1] = total.clamp(0, 255).floor()
    return out


def _blend(low: Tensor, high: Tensor, factor: Tensor) -> Tensor:
    """Return low + factor (high - low) in float32, cut at 0 and 255, without its fraction."""
    high = high.float()
    return (low + factor * (high - low)).clamp(0, 255).to(torch.uint8)


def move(pixels: Tensor, images: Tensor, matrices: Tensor, fill: tuple[int, int, int]) -> Tensor:
    """Return some images of a batch moved, by Pillow's bicubic filter: (n, 3, S, S) uint8.

    Args:
        pixels: (B, 3, S, S) uint8.
        images: places of n of them.
        matrices: (n, 6) float64; a place of the new image times it is one of the old.
        fill: what is put where there was nothing.
    """
    if pixels.is_cuda:
        from fogzo_repro.data.operations_kernel import move as by_kernel

        return by_kernel(pixels, images, matrices, fill)
    return _move(pixels, images, matrices, fill)


def _move(pixels: Tensor, images: Tensor, matrices: Tensor, fill: tuple[int, int, int]) -> Tensor:
    """Move in plain torch: what the kernel is tested against."""
    size = pixels.shape[-1]
    a, b, c, d, e, f = matrices.view(-1, 6, 1, 1).unbind(1)
    along = torch.arange(size, dtype=torch.float64, device=pixels.device) + 0.5
    x, y = along.view(1, 1, -1), along.view(1, -1, 1)
    u, v = a * x + b * y + c, d * x + e * y + f
    inside = (u >= 0) & (u < size) & (v >= 0) & (v < size)
    u, v = u - 0.5, v - 0.5
    left, top = u.floor(), v.floor()
    across, down = (u - left).unsqueeze(1), (v - top).unsqueeze(1)
    columns = [(left.long() + k).clamp(0, size - 1) for k in (-1, 0, 1, 2)]
    old = pixels[images].flatten(2)

    def along_row(k: int) -> Tensor:
        row = (top.long() + k).clamp(0, size - 1) * size
        v1, v2, v3, v4 = (
            old.gather(2, (row + column).view(len(old), 1, -1).expand(-1, 3, -1))
            .view(len(old), 3, size, size)
            .double()
            for column in columns
        )
        return _cubic(v1, v2, v3, v4, across)

    found = _cubic(along_row(-1), along_row(0), along_row(1), along_row(2), down)
    found = found.clamp(0, 255).to(torch.uint8)
    blank = torch.tensor(fill, dtype=torch.uint8, device=pixels.device).view(3, 1, 1)
    return torch.where(inside.unsqueeze(1), found, blank)


def _cubic(v1: Tensor, v2: Tensor, v3: Tensor, v4: Tensor, d: Tensor) -> Tensor:
    """Interpolate between v2 and v3, as the macro BICUBIC of Geometry.c."""
    p2 = -v1 + v3
    p3 = 2 * (v1 - v2) + v3 - v4
    p4 = -v1 + v2 - v3 + v4
    return v2 + d * (p2 + d * (p3 + d * p4))
