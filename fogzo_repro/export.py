"""Export a finished run: integer levels, scales, and whatever is not quantized.

    python -m fogzo_repro.export runs/<run_id> OUT

OUT is a folder with two files. `weights.safetensors` holds `{layer}.levels` (int8) and
`{layer}.scale` (float32, broadcastable) for every quantized layer, and every other parameter and
buffer under its own name. `export.json` holds the configuration and, per layer, the offset of its
grid. The quantized weight is

    weight = (levels + offset) * scale

with offset 1/2 for a half-integer grid, so that what is stored is level - 1/2, and 0 otherwise.
That is the very product that the quantizer computes, so a reloaded model has bitwise equal logits
on the same machine. An export needs one byte per quantized weight, at any bit width.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fogzo_repro import files
from fogzo_repro.config import UserError, own_files_named, parse_stored, published
from fogzo_repro.stored import open_run
from fogzo_repro.terminal import command_parser, one_line_errors
from fogzo_repro.training.checkpoint import (
    another_network,
    checksum_of,
    load_weights,
    pack_tensors,
    read_tensors,
)
from fogzo_repro.training.network import build_network

FORMAT = 1
WEIGHTS, METADATA = "weights.safetensors", "export.json"


@torch.no_grad()
def export_run(path: str | Path, out: str | Path) -> Path:
    """Write the trained model of a run as integer levels and scales; return the weights' file.

    Args:
        path: the run folder.
        out: a folder; made where it is missing, an older export in it is replaced.

    Raises:
        UserError: where the run has no checkpoint, or a quantizer is not levels times a scale.
    """
    run = open_run(path)
    network, step = run.trained_network(torch.device("cpu"))
    tensors = dict(network.model.state_dict())
    offsets: dict[str, float] = {}
    for name, layer in _quantized_layers(network.model).items():
        quantizer = layer.weight_quantizer
        levels, scale, offset = _integers(name, quantizer, layer.weight)
        for key in [k for k in tensors if k.startswith(f"{name}.weight_quantizer.")]:
            del tensors[key]
        del tensors[f"{name}.weight"]
        tensors[f"{name}.levels"], tensors[f"{name}.scale"] = levels, scale
        offsets[name] = offset
    metadata = {
        "format": FORMAT,
        "run_id": run.folder.resolve().name,
        "step": step,
        "model_arguments": run.model_arguments,
        "offsets": offsets,
        "config": published(run.config),
    }
    folder = Path(out)
    files.make_folder(folder, f"OUT={out}")
    content = pack_tensors(tensors)
    metadata["sha256"] = hashlib.sha256(content).hexdigest()  # the two files belong together
    metadata["checksum"] = checksum_of(metadata)
    files.write(folder / WEIGHTS, content)
    files.write(folder / METADATA, json.dumps(metadata, indent=1))
    return folder / WEIGHTS


def load_export(path: str | Path) -> nn.Module:
    """Rebuild the model of an export, in evaluation mode, with equal logits.

    Args:
        path: the folder that `export_run` wrote.

    Raises:
        UserError: where the path is not an export, or one of another network.
    """
    folder = Path(path)
    try:
        metadata = files.parse_json((folder / METADATA).read_bytes())
        digest = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
        readable = metadata["format"] == FORMAT
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{folder} is not an export ({METADATA} and {WEIGHTS} are not both there); "
            "give the folder that fogzo_repro.export has written"
        ) from None
    if not readable:
        raise UserError(f"{folder} has format {metadata['format']}, this code reads {FORMAT}")
    if metadata.get("checksum", own := checksum_of(metadata)) != own:
        raise UserError(f"{folder / METADATA} was changed since it was written; export again")
    if metadata.get("sha256", digest) != digest:
        raise UserError(f"{folder}: {WEIGHTS} is not the one of {METADATA}; export again")
    tensors = read_tensors(folder / WEIGHTS)
    config = parse_stored(metadata["config"])
    model = build_network(config, metadata["model_arguments"], torch.device("cpu")).model
    layers = _quantized_layers(model)
    if layers.keys() != metadata["offsets"].keys():
        raise another_network(folder)
    for name, layer in layers.items():
        levels, scale = tensors.pop(f"{name}.levels"), tensors.pop(f"{name}.scale")
        layer.weight_quantizer = nn.Identity()  # the weight is already quantized
        tensors[f"{name}.weight"] = (levels.to(scale.dtype) + metadata["offsets"][name]) * scale
    load_weights(model, tensors, folder)
    return model.eval()


def _quantized_layers(model: nn.Module) -> dict[str, Any]:
    """Return the layers with a weight quantizer, by name."""
    layers = model.named_modules()
    return {name: m for name, m in layers if getattr(m, "weight_quantizer", None) is not None}


def _integers(name: str, quantizer: Any, weight: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return levels as int8, scale and offset of one weight.

    Raises:
        UserError: where (levels + offset) * scale is not, bit for bit, what the quantizer gives.
    """
    levels = quantizer.levels(quantizer.units(weight))
    scale = quantizer.perturbation_scale(weight)
    offset = 0.0 if torch.equal(levels, levels.round()) else 0.5
    integers = (levels - offset).clamp(-128, 127).to(torch.int8)
    if not torch.equal((integers.to(scale.dtype) + offset) * scale, quantizer(weight)):
        raise UserError(
            f"{name}: the weights of its quantizer are not levels of at most 8 bits times a scale; "
            "export supports quantizer=round, sign and none, and of 2 bits and more quantizer=lsq, "
            "and quantizer=quest with quantizer.hadamard=none"
        )
    return integers, scale, offset


@one_line_errors
@own_files_named
def main() -> None:
    """Export a run and print what it takes."""
    parser = command_parser(__doc__, "fogzo_repro.export")
    parser.add_argument("run", type=Path, help="a run folder, as runs/RUN_ID")
    parser.add_argument("out", type=Path, help="the folder to write; it is made")
    arguments = parser.parse_args()
    weights = export_run(arguments.run, arguments.out)
    sizes = [path.stat().st_size for path in (weights, weights.with_name(METADATA))]
    print(f"{weights}: {sizes[0]:,} bytes, and {sizes[1]:,} bytes of {METADATA}")


if __name__ == "__main__":
    sys.exit(main())
