"""The demo, cut short: it runs to its end and leaves what it promises."""

import json

import pytest
from rich.console import Console

from lc import demo


def test_demo_writes_table_picture_json_and_models(tmp_path, monkeypatch):
    pytest.importorskip("mlxtend", reason="needs mlxtend: pip install lc-ext[demo]")
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install lc-ext[demo]")
    monkeypatch.setattr(demo, "STEPS", 2)
    monkeypatch.setattr(demo, "GROWTH", 10.0)
    monkeypatch.setattr(demo, "REFERENCE_EPOCHS", 3)
    monkeypatch.setattr(demo, "EPOCHS", 1)
    console = Console(record=True, width=160)
    demo.run(tmp_path / "out", seed=0, console=console)
    text = console.export_text()
    summary = json.loads((tmp_path / "out" / "demo.json").read_text())
    assert [s["scheme"] for s in summary["schemes"]] == list(demo.SCHEMES)
    for scheme in summary["schemes"]:
        assert scheme["scheme"] in text
        assert len(scheme["curve"]) == len(scheme["history"]["steps"]) == 3
        file = tmp_path / "out" / (demo.file_name(scheme["scheme"]) + ".safetensors")
        assert file.stat().st_size == scheme["file_bytes"] < summary["reference"]["file_bytes"] / 15
    assert (tmp_path / "out" / "demo.png").read_bytes().startswith(b"\x89PNG")
    assert 0 < summary["reference"]["test_error"] < 30
