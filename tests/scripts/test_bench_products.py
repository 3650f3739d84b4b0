"""The bench of products runs and notes what it must, on tiny products."""

import json

from scripts.bench import products


def test_the_record_has_each_layer_the_head_and_how_far_sums_are_exact(tmp_path, monkeypatch):
    path = tmp_path / "products.json"
    monkeypatch.setattr("sys.argv", ["products", "--toy", "--out", str(path)])
    monkeypatch.setattr(products, "LAYERS", {"small": (2048, [(64, 32), (32, 64)])})
    assert products.main() == 0
    record = json.loads(path.read_text())
    assert list(record["layers"]) == ["small 64 to 32", "small 32 to 64"]
    for found in record["layers"].values():
        assert all(value > 0 for value in found.values())
    assert record["exact_to"]["4 bits"] == {"by_row": 5120, "one": 5120}  # in float32
    assert all(value > 0 for value in record["head"].values())
