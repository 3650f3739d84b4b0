"""scripts/rank.py: from an estimator's file to its row beside the STE and FOGZO."""

import json
import sys

import pytest

from fogzo_repro import run
from fogzo_repro.config import ConfigError
from fogzo_repro.reporting.ranking import check_places, read_rules
from fogzo_repro.reporting.results import TUNING_SEEDS
from fogzo_repro.sweeps import side_by_side
from fogzo_repro.sweeps.queue import Outcome
from fogzo_repro.sweeps.tables import find_entries, table_files
from fogzo_repro.tracking.records import write_record
from scripts import rank, run_cells
from tests.conftest import ROOT
from tests.reporting.conftest import make_record
from tests.test_readme import FILES

TINY = """
seeds: [0..1, 100]
settings:
  {model: mlp, dataset: digits, recipe: digits_mlp, recipe.max_steps: 3, quantizer: round}
rows:
  ste:
    label: STE
    estimator: ste
    cell.column: "lr=${recipe.lr}"
    over: {recipe.lr: [0.002, 0.004]}
  fogzo:
    label: FOGZO n=1
    estimator: fogzo
    cell.column: "1-beta=${estimator.noise}"
    over: {estimator.noise: [0.1, 0.01]}
"""
OWN = """
seeds: [0..1, 100]
settings:
  {model: mlp, dataset: digits, recipe: digits_mlp, recipe.max_steps: 3, quantizer: round}
rank:
  beside: tiny
  against: [[STE, chosen], [FOGZO n=1, chosen]]
  split: train
  metric: loss
  direction: lower
  no_difference_below: 0.02
rows:
  signed:
    label: Signed
    estimator: signed
    cell.column: "size=${estimator.size}"
    over: {estimator.size: [1e-5, 10.0]}
  longer:
    label: Signed for longer
    estimator: signed
    cell.column: "-"
    recipe.max_steps: 4
"""
SIGNED = """
class Signed:
    def __init__(self, size):
        self.size = size

    def begin_step(self, step, total_steps):
        return True

    def __call__(self, weights, probes, generator, signs):
        for w in weights:
            w.parameter.grad.add_(self.size * w.parameter.grad.sign())


build = Signed
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    for name, text in {
        "table/tiny.yaml": TINY,
        "table/own.yaml": OWN,
        "estimator/signed.py": SIGNED,
        "estimator/signed.yaml": "name: signed\nfamily: signed\nsize: 0.01\n",
    }.items():
        path = tmp_path / "mine" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    monkeypatch.setenv("FOGZO_PARTS", str(tmp_path / "mine"))
    return tmp_path / "mine"


def call(monkeypatch, capsys, module, *words):
    """Call a command's main; return its status and what it printed."""
    monkeypatch.setattr(sys, "argv", [module.__name__, *map(str, words)])
    status = module.main()
    said = capsys.readouterr()
    return status, said.out + said.err


@pytest.fixture
def here(monkeypatch):
    """Train in this process, and as from a clean commit: the records of others are refused."""

    def queue(jobs, **options):
        outcome = Outcome()
        for job in jobs:
            run.execute(job.config, quiet=True)
            outcome.finished.append(job)
        return outcome

    monkeypatch.setattr(run_cells, "run_queue", queue)
    for module in (run, side_by_side):
        monkeypatch.setattr(module, "git_state", lambda: {"commit": "0" * 40, "dirty": False})


@pytest.mark.slow
def test_an_own_estimator_is_tuned_run_and_ranked(mine, here, tmp_path, monkeypatch, capsys):
    results = tmp_path / "results"
    more = ["hardware=cpu", f"output_root={tmp_path / 'runs'}"]
    status, said = call(
        monkeypatch, capsys, run_cells, "tiny", "--records", results / "records", *more
    )
    assert status == 0, said
    rank_it = (monkeypatch, capsys, rank, "own", "--results", results)
    text = (mine / "table" / "own.yaml").read_text()
    (mine / "table" / "own.yaml").write_text(text.replace("[1e-5, 10.0]", "[1e-5, 0.1, 10.0]"))
    status, said = call(*rank_it, "--dry-run", *more)
    assert "Signed will not be ranked: tuned by 3 runs, not 2" in said.splitlines()
    (mine / "table" / "own.yaml").write_text(text)
    status, said = call(*rank_it, "--dry-run", *more)
    assert status == 0 and not (results / "records" / "own").exists()
    foreseen = [line for line in said.splitlines() if "will not be ranked" in line]
    assert foreseen == ["Signed for longer will not be ranked: recipe.max_steps=4, not 3"]
    assert said.count(" 1 of 1 ") == 2  # of each size
    assert said.count(" 2 of 2 ") == 2  # longer, and a sum
    assert "3 cells, 4 runs" in said
    more_runs = "then 2 more runs, of what the tuning chooses of Signed: it is not complete"
    assert more_runs in said.splitlines()
    status, said = call(*rank_it, "--run", *more)
    assert status == 0, said
    records = [json.loads(p.read_text()) for p in (results / "records" / "own").glob("*.json")]
    ran = {(r["row"], r["column"], r["seed"]) for r in records}
    tuned = {("Signed", f"size={size}", 100) for size in (1e-5, 10.0)}
    assert ran - tuned >= {("Signed for longer", "-", seed) for seed in (0, 1)}
    losses = {
        r["column"]: r["metrics"]["last"]["train"]["loss"] for r in records if r["seed"] == 100
    }
    assert len({*losses.values()}) == 2
    best = min(losses, key=losses.get)
    reports = {(row, column) for row, column, seed in ran if seed != 100}
    assert reports == {("Signed", best), ("Signed for longer", "-")}

    status, said = call(*rank_it, "--out", tmp_path / "ranking.md")
    assert status == 0 and (tmp_path / "ranking.md").read_text() in said
    ranked, apart = said.split("## Not ranked")
    assert ranked.count("\n| 1 |") == ranked.count("\n| 3 |") == 1 and "| 4 |" not in ranked
    assert f"| Signed | {best} | 2 runs, on the edge of its grid |" in ranked
    assert "inconclusive" in ranked and "Signed for longer" not in ranked
    assert "| Signed for longer | - |" in apart and "| steps=4, not 3 |" in apart

    status, said = call(*rank_it, "--dry-run", *more)
    assert "4 cells, 6 runs" in said and "then" not in said
    assert said.count(" 0 of ") == 5 and f"FOGZO_PARTS={mine} python scripts/smoke.py own" in said
    status, said = call(*rank_it, "--run", *more)
    assert "own: 2 cells, 2 runs, 2 over, 0 to run" in said
    assert "own: 2 cells, 4 runs, 4 over, 0 to run" in said

    file = mine / "estimator" / "signed.py"
    file.write_text(file.read_text().replace("w.parameter.grad.sign()", "1"))
    status, said = call(*rank_it)
    assert status == 0 and "Signed" not in said.split("## Not ranked")[0]
    assert said.count("of another run than the table's: another Python file of its estimator") == 2
    for option in ("--dry-run", "--run"):
        status, said = call(*rank_it, option, *more)
        assert status == 2 and said.count("error: ") == 1 and "Signed: 4 records in" in said
        assert said.endswith("; delete them, or give the row another label\n")
    file.write_text(SIGNED)
    longer = (mine / "table" / "own.yaml").read_text()
    (mine / "table" / "own.yaml").write_text(longer.replace("max_steps: 4", "max_steps: 5"))
    status, said = call(*rank_it, "--run", *more)
    assert status == 2 and "than the table's: recipe.max_steps=4, not 5; delete" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["onw"], "onw is not a table; did you mean own?"),
        (["tiny"], "tiny.yaml has no section `rank`"),
        (["own/singed"], "has no cell singed; did you mean signed?"),
        (["own", "hardware=cpu"], "hardware=cpu: settings are for --run and --dry-run"),
        (["own", "--rum"], "--rum is neither an option nor an override"),
        (["own", "--config-dir", "nowhere"], "is not a folder"),
    ],
    ids=["table", "section", "row", "setting", "option", "folder"],
)
def test_bad_input_is_one_line_and_status_2(mine, monkeypatch, capsys, words, message):
    status, said = call(monkeypatch, capsys, rank, *words)
    assert status == 2 and said.startswith("error: ") and said.count("\n") == 1
    assert message in said


def test_a_cell_that_is_not_there_is_one_line(mine, monkeypatch, capsys):
    (mine / "table" / "own.yaml").write_text(OWN.replace("[STE, chosen]", "[STEE, chosen]"))
    status, said = call(monkeypatch, capsys, rank, "own")
    assert status == 2 and "tiny has no row STEE; did you mean STE?" in said


@pytest.mark.parametrize(
    ("module", "options"),
    [(run_cells, ["--records"]), (rank, ["--run", "--results"])],
    ids=["run_cells", "rank"],
)
def test_without_the_data_a_table_fails_once_and_before_its_runs(
    module, options, mine, tmp_path, monkeypatch, capsys
):
    def offline(*args, **kwargs):
        raise RuntimeError("no network")

    monkeypatch.setattr("torchvision.datasets.MNIST.__init__", offline)
    monkeypatch.setattr(run_cells, "run_queue", lambda *args, **kwargs: pytest.fail("it has begun"))
    words = ["own", *options, tmp_path, "dataset=mnist", "recipe=mnist_mlp", "hardware=cpu"]
    words += [f"data_dir={tmp_path}/data", f"output_root={tmp_path}/runs"]
    status, said = call(monkeypatch, capsys, module, *words)
    assert status == 2 and said.count("error: ") == 1
    assert "error: MNIST is not under data_dir=" in said.splitlines()[-1]
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("option", ["--run", "--dry-run"])
def test_other_data_than_those_of_the_records_are_refused_before_a_run(
    option, mine, tmp_path, monkeypatch, capsys
):
    record = make_record("STE", "lr=0.002", 0, 0.5, table="tiny", resolved={"data": "other"})
    record["config"]["dataset"]["name"] = "digits"
    for seed in (0, 100):
        path = tmp_path / "records" / "tiny" / f"{seed}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_record(path, record | {"seed": seed})
    monkeypatch.setattr(rank, "run_tuned", lambda *args: pytest.fail("it has begun"))
    status, said = call(monkeypatch, capsys, rank, "own", "--results", tmp_path, option)
    assert status == 2 and "the records of tiny had other: Signed" in said.splitlines()[-1]


MINIS = ["mini-rivals-deit", "mini-rivals-llama", "mini-rivals-resnet"]


@pytest.mark.parametrize("table", ["rivals", *MINIS])
def test_the_tables_of_the_rivals_stand_beside_cells_that_there_are(table, monkeypatch):
    monkeypatch.setenv("FOGZO_PARTS", str(ROOT / "examples" / "rivals"))
    known = table_files()
    rules = read_rules(known[table])
    check_places(rules, rank.labels(find_entries(rules.beside, known)))
    with pytest.raises(ConfigError):
        check_places(rules, {})


@pytest.mark.slow
def test_rivals_differ_from_the_row_beside_them_in_their_rule_alone(monkeypatch):
    monkeypatch.setenv("FOGZO_PARTS", str(ROOT / "examples" / "rivals"))
    (first,) = (
        cell
        for cell in run_cells.table_cells("figure-shallow/ste", [])
        if cell.config.quantizer.grid == "integer"
    )
    tried = run_cells.table_cells("figure-shallow/sweep-ste", [])
    of_the_ste = {first.config.recipe.lr, *(cell.config.recipe.lr for cell in tried)}
    rates, values = {}, {}
    for cell in run_cells.table_cells("rivals", []):
        config, row = cell.config, cell.config.cell.row
        assert (config.model, config.dataset) == (first.config.model, first.config.dataset)
        assert vars(config.recipe) == {**vars(first.config.recipe), "lr": config.recipe.lr}
        assert config.quantizer.grid == "integer" and config.quantizer.weight_bits == 2
        assert {*TUNING_SEEDS} <= {*cell.seeds}
        rates.setdefault(row, {first.config.recipe.lr}).add(config.recipe.lr)
        values[row] = values.get(row, 0) + 1
    assert len(rates) == 6
    for row, tuned in rates.items():
        assert tuned >= of_the_ste if len(tuned) > 1 else values[row] == 6


@pytest.mark.parametrize("table", MINIS)
def test_rivals_of_a_mini_differ_from_the_ste_beside_them_in_their_rule_alone(table, monkeypatch):
    monkeypatch.setenv("FOGZO_PARTS", str(ROOT / "examples" / "rivals"))
    beside = read_rules(table_files()[table]).beside
    (ste,) = run_cells.table_cells(f"{beside}/hardtanh-ste", [])
    tried = run_cells.table_cells(f"{beside}/sweep-lr-hardtanh-ste", [])
    grid = {cell.config.recipe.lr for cell in tried}
    rows = {}
    for cell in run_cells.table_cells(table, []):
        config = cell.config
        assert (config.model, config.dataset) == (ste.config.model, ste.config.dataset)
        assert vars(config.recipe) == {**vars(ste.config.recipe), "lr": config.recipe.lr}
        assert {*cell.seeds} == {*ste.seeds, 100}
        assert getattr(config.quantizer, "weight_bits", 1) == 1
        if config.estimator.name == "cage":
            assert config.recipe.lr * config.estimator.strength < 0.1
        rows.setdefault(config.cell.row, []).append(config.recipe.lr)
    for rates in rows.values():
        assert len(rates) in (6, 9, 12) and {*rates} <= grid  # two or three strengths, a wider rate
        assert min(rates) < ste.config.recipe.lr < max(rates)


def test_the_table_of_the_page_is_one_that_can_be_ranked(tmp_path, monkeypatch, capsys):
    for name in ("table/own.yaml", "estimator/signed.py", "estimator/signed.yaml"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(FILES[name])
    words = ("own", "--config-dir", tmp_path, "--results", ROOT / "results")
    monkeypatch.setenv("FOGZO_PARTS", "elsewhere")  # put back by the end of the test
    status, said = call(monkeypatch, capsys, rank, *words)
    assert status == 0 and "| Signed |" in said and "its tuning is not complete" in said
    columns = rank.labels(find_entries("figure-shallow", table_files()))
    assert len(run_cells.table_cells("own", [])) == len(columns["STE, integer grid"]) == 8


@pytest.mark.parametrize("table", ["rivals", *MINIS])
def test_a_kept_ranking_is_that_of_the_records(monkeypatch, tmp_path, capsys, table):
    monkeypatch.setenv("FOGZO_PARTS", str(ROOT / "examples" / "rivals"))
    out = tmp_path / "ranking.md"
    status, _ = call(monkeypatch, capsys, rank, table, "--results", ROOT / "results", "--out", out)
    file = table.replace("mini-rivals", "ranking-mini").replace("rivals", "ranking") + ".md"
    kept = (ROOT / "examples" / "rivals" / file).read_text()
    assert status == 0 and out.read_text() == kept, f"write it anew: scripts/rank.py {table} --out"
