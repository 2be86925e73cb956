"""The page of the benchmarks and README show the results that were measured."""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import pages, report
from cvae_jax.errors import UserError


def test_the_page_shows_the_results() -> None:
    expected = pages.contents()
    assert pages.PAGE.read_text(encoding="utf-8") == expected, "run benchmarks/run.py --no-measure"


def test_the_readme_claims_what_was_measured() -> None:
    on_cpu, *_ = report.read("training_speed").values()
    text = (pages.PAGE.parents[1] / "README.md").read_text(encoding="utf-8")
    for claim in pages.BENCHMARKS["training_speed"].claims(on_cpu):
        assert claim.ours in text
        assert f"{claim.ratio.split()[0]} times" in text


@pytest.mark.parametrize("name", pages.BENCHMARKS)
def test_every_benchmark_has_results_with_a_picture(name: str) -> None:
    files = report.read(name)
    assert files
    for file, result in files.items():
        assert file.with_suffix(".png").is_file()
        assert pages.BENCHMARKS[name].draw(result).axes
        assert result["command"].startswith(f"python benchmarks/{name}.py")


def test_the_results_of_a_gpu_stand_beside_those_of_the_cpu(tmp_path: Path) -> None:
    shutil.copytree(report.RESULTS, tmp_path, dirs_exist_ok=True)
    result = json.loads((tmp_path / "training_speed.json").read_text(encoding="utf-8"))
    result["hardware"] |= {"platform": "gpu", "jax_devices": "1 x Some GPU (gpu)"}
    (tmp_path / "gpu").mkdir(exist_ok=True)
    (tmp_path / "gpu" / "training_speed.json").write_text(json.dumps(result), encoding="utf-8")
    here, there = pages.contents(), pages.contents(tmp_path)
    assert "**1 x Some GPU (gpu)**" in there
    assert "results/gpu/training_speed.png" in there
    assert there.count("| 1 x Some GPU (gpu) |") == 2  # in the summary
    assert all(line in there for line in here.splitlines())


def test_a_block_is_replaced_and_all_else_stays(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- one -->\nold\n<!-- end -->\nbetween\n<!-- two -->\n<!-- end -->\n"
    )
    filled = pages.fill(page, {"one": r"new \1", "two": "2"})
    assert filled == (
        "before\n<!-- one -->\nnew \\1\n<!-- end -->\nbetween\n<!-- two -->\n2\n<!-- end -->\n"
    )
    with pytest.raises(UserError, match="needs <!-- three -->"):
        pages.fill(page, {"three": ""})


def test_ratios_are_taken_round_by_round() -> None:
    assert report.ratios([2, 40, 9], [1, 10, 3]) == (3, 2, 4)
    assert str(report.ratios([2, 40, 9], [1, 10, 3])) == "3 (2 to 4)"
    assert str(report.spread([1234.5])) == "1,234"
    assert [report.number(value) for value in (99.96, 0.28349, 5.1597)] == ["100", "0.283", "5.16"]
