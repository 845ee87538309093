"""The page of `make gpu-check`, and that it refuses to be made up."""

import pytest

from tests import gpu_check


def test_the_page_has_every_figure():
    rows = [gpu_check.Row("one", (4, 8), "NC*", "forward", 1.0, {"normkit": 1.25, "PyTorch eager": 2.5, "torch.compile": 2.0}),
            gpu_check.Row("two", (4, 8), "N*C", "backward", 3.0, {"normkit": 4.0})]  # fmt: skip
    text = gpu_check.page({"device": "X"}, {"torch": (True, "9 passed"), "cupy": (False, "1 failed")}, rows, 12.34)
    assert "- device: X" in text and "| torch | passed: 9 passed |" in text and "| cupy | **FAILED**: 1 failed |" in text
    assert "| one | (4, 8) | NC* | forward | 0.80 | 1.250 | 2.500 | 2.000 |" in text
    assert "| two | (4, 8) | N*C | backward | 0.75 | 4.000 |  |  |" in text
    assert "12.3 microseconds" in text


def test_without_a_device_nothing_is_written(monkeypatch):
    from normkit._cuda import launch

    def refuse(device):
        raise RuntimeError("no NVIDIA driver answers")

    monkeypatch.setattr(launch.driver, "demand", refuse)
    before = gpu_check.PAGE.read_text()
    with pytest.raises(RuntimeError, match="no NVIDIA driver"):
        gpu_check.main()
    assert gpu_check.PAGE.read_text() == before
