"""What every setting means, with its unit and range, for `python -m fogzo_repro --help`.

The ranges are said here and checked in the dataclasses of the sections. Keys of a part of the
user's are explained in its own YAML file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from fogzo_repro.config.rules import spelled

MEANINGS: dict[str, dict[str, str]] = {
    "": {
        "seed": "of every random stream; whole, 0 or more",
        "scale": "full: the paper | mini: CIFAR-100 or 36M tokens | smoke: two steps, tiny",
        "data_dir": "folder of the data; by default FOGZO_DATA, else data (docs/data.md)",
        "output_root": "folder in which each run gets a folder of its own",
        "parts_dir": "folder of your own parts, by --config-dir or FOGZO_PARTS",
        "force": "run again although the run is finished",
        "dry_run": "say what the run is and takes, and stop",
        "snapshots": "evenly spaced copies of the weights to keep, for diagnose; 0 or more",
        "checkpoint_minutes": "wall time between checkpoints; minutes, 0 or more",
        "eval_every_steps": "evaluations inside an epoch; steps, 1 or more; null: none",
    },
    "cell": {
        "table": "name of a table that the record is for; a label, changes nothing",
        "row": "its row there, likewise",
        "column": "its column there, likewise",
    },
    "model": {
        "first_last": "layers that quantizer.first_last is about; names",
        "hidden": "units of the hidden layer (LLaMA: width of its MLP); 1 or more",
        "depth": "ResNet: 18 or 50; DeiT: number of blocks, 1 or more",
        "width": "ResNet: channels of the first stage; LLaMA: of the residual stream; 1 or more",
        "stem": "imagenet: 7 x 7 and pooling | small: 3 x 3 without, for images of 32 px",
        "heads": "attention heads; 1 or more",
        "head_dim": "width of a head; 1 or more",
        "patch_size": "side of a patch; px, divides the image's",
        "drop_path": "probability that a block is skipped in training; 0 to below 1",
        "layers": "number of blocks; 1 or more",
        "context": "tokens in a sequence; 1 or more",
        "vocabulary": "tokens that the network knows; at most 65,536, at least the tokenizer's",
        "norm_eps": "added to the mean square in RMSNorm; above 0",
        "rope_theta": "base of the rotary embedding; above 0",
        "init_std": "standard deviation of the initial weights; above 0",
        "quest_lr": "QuEST's peak learning rate for this size, at 512 sequences a step; above 0",
        "tokens": "length of the paper's run; tokens, above 0",
    },
    "dataset": {
        "classes": "a list of configs/classes or a file of wnids; null: all classes that are there",
        "allow_partial": "take the classes that are there, for a trial",
        "image_size": "side of an image; px, 16 or more",
        "on_bad_image": "error | skip: what to do with an image that cannot be decoded",
        "decoded": "train from imagenet/decoded-N/; px, 16 or more; null: from the files",
        "validation": "heldout: to report on | tuning: to choose settings by | c4: C4's own split",
        "interim_windows": "windows of all evaluations but the last, which takes all; 1 or more",
        "train_windows": "training windows behind the record's train loss; 1 or more",
        "held_out": "training images kept out of training and evaluated, to choose by; 0 or more",
    },
    "quantizer": {
        "weight_bits": "bits of a weight; 1 to 8 (round: 2 to 8), 16: not quantized",
        "activation_bits": "bits of a layer's inputs; 1 to 8, 16: not quantized (round, sign: 16)",
        "first_last": "float | 8bit | quantized: the layers of model.first_last",
        "surrogate": "what the STE derives",
        "grid": "integer: ..., -1, 0, 1, ... | half_integer: ..., -1/2, 1/2, ...",
        "clip_gradient": "derivative 0: false: nowhere | true: beyond the levels | half_step",
        "scale_factor": "distance of two levels; standard deviations of initial weights, above 0",
        "per_channel": "true: a learned step for each output channel; false: one a weight",
        "unsigned_inputs": "layers whose inputs follow a ReLU; names or patterns",
        "hadamard": "full | half | none: rotation before rounding",
        "trust_width": "largest rounding error with a gradient; rms of the row; null: half a level",
        "clip_scale": "1 bit: largest weight with a gradient; in outer levels, above 0",
    },
    "estimator": {
        "n": "probe pairs a step, each two forward passes; 1 or more",
        "beta_min": "beta at the end: the share of the STE's direction in a probe's; 0 to 1",
        "noise": "the same as 1 - beta_min, for beta close to 1; 0 to 1",
        "rho": "the same as (1 - beta) d / beta, d the number of quantized weights; 0 or more",
        "beta_schedule": "constant | linear: from 1 at the first step to beta_min at the last",
        "start_fraction": "share of the steps that are the plain STE's before; 0 to 1",
        "probe_fraction": "share of the batch that the probes see; above 0, to 1",
        "evaluator": "auto | sequential | batched: probe pairs one by one or many at once",
        "random_sign": "control: draw the sign of each loss difference at random",
    },
    "recipe": {
        "kind": "plain | vision: which settings a recipe has",
        "optimizer": "adamw | sgd",
        "lr": "peak learning rate; above 0",
        "global_batch_size": "images or sequences a step, over all cards; 1 or more",
        "epochs": "passes over the training data; 1 or more",
        "max_steps": "length in steps in place of the epochs; 1 or more; null: by the epochs",
        "schedule": "cosine | constant | onecycle; vision also step | epoch_cosine",
        "weight_decay": "of the optimizer; 0 or more",
        "decay": "weights | all: what is decayed, tensors of two axes and more or everything",
        "no_decay": "modules or parameters that are not decayed; names",
        "decay_scales": "decay learned scales too (LSQ's steps)",
        "betas": "AdamW's two averages; each 0 to below 1",
        "eps": "AdamW's; above 0",
        "momentum": "SGD's; 0 to below 1",
        "clip_norm": "largest norm of the whole gradient; above 0; null: no clipping",
        "accumulate": "split a step's batch into passes of micro_batch_size",
        "micro_batch_size": "examples of one pass; divides global_batch_size",
        "autocast": "compute in hardware.precision; false: float32",
        "eval_every_epochs": "epochs between evaluations; 1 or more",
        "start_from": "folder of a finished run, or a safetensors file, to begin with; null: none",
        "step_epochs": "schedule=step: epochs between drops; 1 or more",
        "step_factor": "schedule=step: factor of a drop; 0 or more",
        "warmup_epochs": "schedule=epoch_cosine: epochs of rising rate; 0 or more",
        "warmup_lr": "learning rate of the first epoch then; 0 or more",
        "min_lr": "schedule=epoch_cosine: rate that it falls to; 0 or more",
        "lagged": "schedule=epoch_cosine: one epoch late, as in DeiT's code",
        "drop_last": "leave out the last batch of an epoch where it is not whole",
        "mixup": "mixup's alpha; 0: off",
        "cutmix": "CutMix's alpha; 0: off",
        "mix_probability": "probability that a batch is mixed; 0 to 1",
        "cutmix_share": "probability of CutMix instead of mixup; 0 to 1",
        "label_smoothing": "share of the target spread over all classes; 0 to 1",
        "augmentation": "torchvision | timm: for photographs; crop_flip | none: for small images",
        "crop_padding": "crop_flip: border of a crop; px, 0 or more",
        "interpolation": "bilinear | bicubic",
        "test_resize": "shorter side before the central crop of an evaluation; px, 1 or more",
        "rand_augment": "timm's RandAugment, as rand-m9-mstd0.5-inc1; null: off",
        "color_jitter": "timm's; without effect beside RandAugment",
        "erase_probability": "probability that a part of an image is erased; 0 to 1",
        "repeats": "copies of an image in an epoch, each augmented anew; 1 or more",
        "repeat_ranks": "processes of the upstream command that repeats are dealt to; 1 or more",
    },
    "hardware": {
        "device": "auto | cpu | cuda | cuda:N",
        "precision": "auto: by the card | fp32 | bf16 | fp16: where recipe.autocast is on",
        "compile": "torch.compile the network; null: on a GPU, but not the MLP",
        "channels_last": "memory format of convolutions; null: on a GPU",
        "sync_batchnorm": "batch statistics over all cards",
        "workers": "processes that decode images, for each card; 0 or more",
        "augmentation": "where photographs are resized: cpu | device; auto: on a GPU",
        "cuda_graph": "capture the step; null: on a GPU, but not in fp16, nor with sync_batchnorm",
        "exact_products": "8-bit products of operands of 3 bits or fewer; null: where faster",
        "probe_memory_mb": "memory for many probe pairs at once; MiB, 256 or more",
    },
    "tracker": {
        "project": "wandb's project",
        "group": "wandb's group; null: the table of the cell",
    },
}  # fmt: skip
SAID_BY_THE_GROUP = ("name", "family")

EXAMPLES = """\
python -m fogzo_repro [--config-dir DIR] [-m] [experiment=TABLE/CELL] [group=option] [setting=value]

One training run; with -m, one for each combination of the values in comma lists. Examples:

  python -m fogzo_repro dataset=digits recipe=digits_mlp           a run that needs no download
  python -m fogzo_repro -m estimator=ste,fogzo seed=0,1,2          a sweep
  python -m fogzo_repro model=llama_30m estimator.noise=1e-8       another network, another noise
  python -m fogzo_repro quantizer=lsq --help                       the settings of another option
  python -m fogzo_repro experiment=table1/deit-tiny-identity-fogzo   a cell of a table

Flags: --help; --plain prints the command that a cell stands for; --config-dir DIR finds your own
parts and tables; --cfg job prints the configuration as YAML; --hydra-help lists Hydra's others
(https://hydra.cc)."""
STATUS = """\
Exit status: 0 finished or skipped; 2 an error to mend, in one line; 3 a run diverged; 75 stopped by
a signal with the checkpoint written, the same command goes on."""


def help_text(
    settings: Mapping[str, Any], options: Mapping[str, list[str]], surrogates: Iterable[str]
) -> str:
    """Return what --help prints, by a run's settings, the groups' options and OPERATOR_NAMEs."""
    of_operator: dict[str, list[str]] = {}
    for operator, _, name in (each.partition("_") for each in surrogates):
        of_operator.setdefault(operator, []).append(name)
    listed = "".join(f"; {key}: {' | '.join(names)}" for key, names in of_operator.items())
    groups = [f"  {group + '=':<11} {', '.join(names)}" for group, names in options.items()]
    parts = [EXAMPLES, "\n".join(["Groups, each with its options:", *groups])]
    outside = {k: v for k, v in settings.items() if not isinstance(v, Mapping)}
    sections: dict[str, Mapping[str, Any]] = {"": outside}
    sections |= {k: v for k, v in settings.items() if isinstance(v, Mapping)}
    for section, values in sections.items():
        lines = []
        for key in [key for key in values if key not in SAID_BY_THE_GROUP]:
            name = f"{section}.{key}".lstrip(".")
            meaning = MEANINGS.get(section, {}).get(key, "see its YAML file")
            more = listed if name == "quantizer.surrogate" else ""
            lines.append(f"  {f'{name}={spelled(values[key])}':<42}  {meaning}{more}".rstrip())
        title = f"Settings of {section}" if section else "Settings"
        if section not in ("", "cell", "hardware", "tracker"):
            title += f"={values.get('name')}"
        parts += ["\n".join([f"{title}:", *lines])] if lines else []
    return "\n\n".join([*parts, STATUS])
