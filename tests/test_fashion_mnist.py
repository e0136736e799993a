"""The Fashion-MNIST study, on tiny generated data: every method makes a row, and a second run makes none."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
DIRECT, *TRAINED = ["direct", "finetune-compress", "iterated", "compress-finetune", "lc"]


@pytest.fixture
def study(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    sys.modules.pop("fashion_mnist", None)
    import fashion_mnist

    monkeypatch.setattr(fashion_mnist, "STEPS", 3)
    monkeypatch.setattr(fashion_mnist, "BATCH", 16)
    before = torch.get_num_threads()
    yield fashion_mnist
    torch.set_num_threads(before)


def write_idx(path, array):
    sizes = b"".join(n.to_bytes(4, "big") for n in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())


@pytest.fixture
def folder(tmp_path):
    """Bright bands: the class is the height of the band."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 128), ("t10k", 40)):
        labels = np.arange(n, dtype=np.uint8) % 10
        images = rng.integers(0, 60, (n, 28, 28), dtype=np.uint8)
        for image, label in zip(images, labels, strict=True):
            image[2 * label + 3 : 2 * label + 6] += 150
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", labels)
    return tmp_path


@pytest.mark.parametrize(("net", "scheme"), [("lenet5", "keep 5 %"), ("resnet8", "K=2 + 1 %")])
def test_all_methods_and_the_table(study, folder, tmp_path, net, scheme, capsys):
    out = tmp_path / "results.jsonl"
    where = ["--data", str(folder), "--out", str(out), "--cache", str(tmp_path / "cache")]
    what = ["--nets", net, "--schemes", scheme, "--seeds", "0,1"]
    study.main(["run", *where, *what, "--methods", f"{DIRECT},lc"])
    assert len(out.read_text().splitlines()) == 2 * 3  # with the references
    study.main(["run", *where, *what])
    text = out.read_text()
    study.main(["run", *where, *what])
    assert out.read_text() == text

    records = [json.loads(line) for line in text.splitlines()]
    rows = [r for r in records if r["scheme"] == scheme]
    assert sorted((r["seed"], r["method"]) for r in rows) == [
        (s, m) for s in (0, 1) for m in sorted([DIRECT, *TRAINED])
    ]
    assert {r["method"] for r in records if r["scheme"] == "none"} == {"reference", "finetuned"}
    for r in rows:
        assert 0 <= r["error"] <= 100 and 0 < r["c_share"] < 1
        assert r["epochs"] == (0 if r["method"] == DIRECT else study.STEPS / study.PARTS)
        assert r["ratio"] == pytest.approx(rows[0]["ratio"], rel=0.02)

    capsys.readouterr()
    study.main(["table", "--out", str(out)])
    printed = capsys.readouterr().out
    assert printed == out.with_suffix(".md").read_text()
    line = next(line for line in printed.splitlines() if line.startswith(f"| {scheme} "))
    assert line.count("±") == 5 and line.count("**") >= 2
    summary = json.loads(out.with_suffix(".json").read_text())
    errors = [r["error"] for r in rows if r["method"] == "lc"]
    mine = next(r for r in summary if r["method"] == "lc")
    assert mine["n"] == 2 and mine["error"] == pytest.approx(sum(errors) / 2)
    assert mine["error_se"] == pytest.approx(abs(errors[0] - errors[1]) / 2)


def test_every_scheme_fits_its_net(study):
    import lc

    for net, schemes in study.SCHEMES.items():
        assert len(schemes) == 8
        for scheme, tasks in schemes.items():
            model = study.NETS[net]()
            size = study.Projection(model, tasks)().size
            assert size.ratio > 3, scheme
            weights = {p for p in model.parameters() if p.dim() > 1}
            assert {p for task in lc.Finetuning(model).tasks for p in task.parameters} == weights


def test_settings_are_chosen_on_a_part_of_the_training_set(study, folder, tmp_path):
    out = tmp_path / "results.jsonl"
    where = ["--data", str(folder), "--out", str(out), "--cache", str(tmp_path / "cache")]
    study.main(["tune", *where, "--nets", "lenet5", "--schemes", "K=2", "--methods", "direct,lc"])
    assert not out.exists()
    records = [json.loads(line) for line in (tmp_path / "results_tuning.jsonl").read_text().splitlines()]
    assert {r["split"] for r in records} == {"validation"}
    assert [r["lr"] for r in records if r["method"] == "lc"] == [s.lr for s in study.CANDIDATES["lc"]]


def test_missing_data_says_how_to_get_it(study, tmp_path):
    with pytest.raises(SystemExit, match="apt-get install dataset-fashion-mnist"):
        study.main(["run", "--data", str(tmp_path)])
    with pytest.raises(SystemExit, match="no results yet"):
        study.main(["table", "--out", str(tmp_path / "none.jsonl")])
