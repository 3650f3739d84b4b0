"""From a composed configuration to a checked one: what is refused, and with which words."""

import copy
import shlex
from dataclasses import fields
from functools import cache
from typing import get_args, get_origin, get_type_hints

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fogzo_repro.composition import compose_run
from fogzo_repro.config import CONFIGS, ConfigError, did_you_mean, parse_config, quoted
from fogzo_repro.config.run import SECTIONS


@cache
def composed(*overrides):
    with initialize_config_dir(str(CONFIGS), version_base=None):
        return compose("config", list(overrides))


RUNS = {  # between them they have every section's text settings
    "mlp": ["model=mlp", "quantizer=round", "estimator=fogzo"],
    "resnet": ["model=resnet18", "quantizer=sign", "estimator=nspsa", "tracker=wandb"],
    "llama": ["model=llama_9m", "quantizer=lsq"],
}


CELL = "experiment=table1/deit-tiny-identity-fogzo"
# Refused with their options.
CHOICES = {"scale", "recipe.kind", "tracker.name", "quantizer.clip_gradient"}


def texts():
    """Every text setting of these runs, by its name on the command line."""
    for name, words in RUNS.items():
        config = parse_config(composed(*words))
        for field in fields(config):
            value = getattr(config, field.name)
            owner, prefix = (value, f"{field.name}.") if field.name in SECTIONS else (config, "")
            for key, hint in get_type_hints(type(owner)).items():
                text = hint is str or (str in get_args(hint) and get_origin(hint) is not list)
                if text and prefix + key not in CHOICES and key in {f.name for f in fields(owner)}:
                    yield name, prefix + key


@pytest.mark.parametrize(("run", "key"), sorted(set(texts())), ids=str)
@pytest.mark.parametrize("typed", ["2024_1_12", "true"], ids=str)
def test_a_text_that_looks_like_a_number_is_refused_with_the_quotes_that_keep_it(run, key, typed):
    word = f"{key}={typed}"
    config = copy.deepcopy(composed(*RUNS[run]))
    OmegaConf.update(config, key, OverridesParser.create().parse_override(word).value())
    with pytest.raises(ConfigError) as caught:
        parse_config(config, [word])
    said = str(caught.value)
    assert f"{key} is a text" in said and said.endswith(f" kept by {quoted(key, typed)}")


@pytest.mark.parametrize("typed", ["true", "null", "nan", "2024_11_2"], ids=str)
def test_the_quotes_that_are_proposed_keep_the_spelling(typed):
    with pytest.raises(ConfigError) as caught:
        compose_run(f"output_root={typed}")
    (word,) = shlex.split(str(caught.value).split(" kept by ")[1])
    assert compose_run(word).output_root == typed


def test_a_text_without_a_meaning_as_a_number_needs_no_quotes():
    for typed in ("2024-11-02", "12:30", "0x10", "runs/2024_1_12", "v1.0"):
        assert compose_run(f"output_root={typed}").output_root == typed


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.text(st.characters(exclude_categories=["C"], exclude_characters="$"), min_size=1))
def test_quoted_is_read_back_by_shell_and_hydra(text):
    (word,) = shlex.split(quoted("cell.row", text))
    assert OverridesParser.create().parse_override(word).value() == text


def test_a_word_that_hydra_cannot_read_is_refused_with_its_quotes():
    with pytest.raises(ConfigError) as caught:
        compose_run("cell.column=delta=0.2")
    (word,) = shlex.split(str(caught.value).split(" given as ")[1])
    assert compose_run(word).cell.column == "delta=0.2"


def test_what_is_in_a_file_has_to_be_a_text_too():
    config = copy.deepcopy(composed())
    OmegaConf.update(config, "cell.row", 0.5)
    with pytest.raises(
        ConfigError, match=r"cell.row is a text, and 0.5 without quotes is a number"
    ):
        parse_config(config)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "near"),
    [
        ("estimator.betamin", "estimator.beta_min"),
        ("estimatr.beta_min", "estimator.beta_min"),
        ("beta_min", "estimator.beta_min"),
        ("sed", "seed"),
        ("estimator.temperature", None),
        ("foo", None),
        ("x.y", None),
    ],
    ids=str,
)
def test_a_name_is_proposed_only_where_one_is_near(typed, near):
    known = ["seed", "estimator", "estimator.n", "estimator.beta_min", "model", "model.width"]
    assert did_you_mean(typed, known) == (f"; did you mean {near}?" if near else "")
    with pytest.raises(ConfigError) as caught:
        compose_run(f"{typed}=1")
    assert ("did you mean" in str(caught.value)) == bool(near)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["estimator.rho=8"], (None, None, 8.0)),
        (["estimator.noise=0.25"], (0.75, 0.25, None)),
        (["estimator.beta_min=0.75"], (0.75, 0.25, None)),
        ([], (0.999, 0.001, None)),
        (["model=deit_tiny"], (None, None, 0.1)),
        (["model=deit_tiny", "estimator.noise=0.25"], (0.75, 0.25, None)),
        (["model=deit_tiny", "estimator.beta_min=0.75"], (0.75, 0.25, None)),
        (["model=deit_tiny", "estimator.rho=8"], (None, None, 8.0)),
        ([CELL], (1 - 1e-9, 1e-9, None)),
        ([CELL, "estimator.beta_min=0.75"], (0.75, 0.25, None)),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, list) else "",
)
def test_noise_is_given_in_one_of_three_ways_and_what_is_typed_stands(words, expected):
    estimator = compose_run(*words).estimator
    assert (estimator.beta_min, estimator.noise, estimator.rho) == expected


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["estimator.rho=8", "estimator.noise=0.1"], "estimator.noise and estimator.rho say the"),
        (["estimator.beta_min=0.9", "estimator.rho=8"], "estimator.beta_min and estimator.rho say"),
        (["estimator.rho=-1"], "estimator.rho=-1.0 must be at least 0"),
        (["estimator.rho=nan"], "estimator.rho=nan must be a finite number"),
        (["estimator.beta_min=null"], "give one of estimator.beta_min, estimator.noise"),
    ],
    ids=str,
)
def test_noise_given_twice_or_wrongly_is_refused(words, said):
    with pytest.raises(ConfigError, match=said):
        compose_run(*words)


@pytest.mark.parametrize(
    ("word", "value"), [("false", False), ("true", True), ("half_step", "half_step")], ids=str
)
def test_clip_gradient_has_three_values(word, value):
    assert compose_run(f"quantizer.clip_gradient={word}").quantizer.clip_gradient == value


@pytest.mark.parametrize("word", ["1", "yes", "step"], ids=str)
def test_clip_gradient_has_no_other_values(word):
    with pytest.raises(ConfigError, match=r"quantizer\.clip_gradient"):
        compose_run(f"quantizer.clip_gradient={word}")


@pytest.mark.parametrize("key", ["model.hidden", "estimator.n"])
@pytest.mark.parametrize("value", [10**30, 10**400], ids=["30", "400"])
def test_a_size_beyond_all_machines_is_refused(key, value):
    with pytest.raises(ConfigError, match=f"^{key}={value} must be at most 2147483647$"):
        compose_run(f"{key}={value}")
