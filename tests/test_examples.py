"""The examples in docstrings, docs and README run, and every public name has one."""

import doctest
import importlib
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import cvae_jax
from cvae_jax.storage.history import EpochMetrics, write_metrics

DOCS = Path(__file__).parents[1] / "docs"
API = (DOCS / "api.md").read_text(encoding="utf-8")
MODULES = [
    importlib.import_module(f"cvae_jax{name}")
    for name in ("", ".api", ".errors", ".models", ".training.step")
]
# A fence is no output of the line over it.
WITHOUT_FENCES = re.sub("^```.*", "", API, flags=re.MULTILINE)
IN_PAGE = doctest.DocTestParser().get_doctest(WITHOUT_FENCES, {}, "docs/api.md", "api.md", 0)
EXAMPLES = {
    test.name: test
    for module in MODULES
    for test in doctest.DocTestFinder(exclude_empty=True).find(module)
    if test.examples
} | {IN_PAGE.name: IN_PAGE}
METHODS = ("sample", "encode", "decode", "log_likelihood", "step")


def public_names() -> list[str]:
    errors = importlib.import_module("cvae_jax.errors")
    own = [name for name, one in vars(errors).items() if isinstance(one, type)]
    return [
        *cvae_jax.__all__,
        *(f"TrainedModel.{name}" for name in METHODS),
        *own,
    ]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the examples train into runs/


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_it_says(name: str) -> None:
    output: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    assert not runner.run(EXAMPLES[name], out=output.append).failed, "".join(output)


def test_every_public_name_is_on_the_page_and_has_an_example() -> None:
    in_page = "".join(example.source for example in IN_PAGE.examples)
    for name in public_names():
        homes = {f"{module.__name__}.{name}" for module in MODULES}
        assert homes & EXAMPLES.keys() or f".{name}(" in in_page, name
    for name in cvae_jax.__all__:
        assert re.search(rf"^\.\. auto(function|class):: cvae_jax\.{name}$", API, re.MULTILINE)
    methods = {
        name
        for name, one in vars(cvae_jax.TrainedModel).items()
        if not name.startswith("_") and (callable(one) or isinstance(one, property))
    }
    assert methods == set(METHODS)
    assert f":members: {', '.join(METHODS)}" in API


def test_the_example_of_the_readme_runs() -> None:
    text = (DOCS.parent / "README.md").read_text(encoding="utf-8")
    [example] = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    small = "epochs=1, hidden_dim=64, latent_dim=10, num_devices=1"  # as in a docstring: compiled
    shorter = example.replace("epochs=3", small)
    assert shorter != example
    names: dict[str, Any] = {}
    exec(shorter, names)
    assert names["images"].shape == (10, 28, 28, 1)
    assert names["again"].shape == (28, 28, 1)


def test_the_lines_of_the_docs_follow_metrics(tmp_path: Path) -> None:
    text = (DOCS / "watching.md").read_text(encoding="utf-8")
    [lines] = re.findall(r"<!-- reading -->\n```python\n(.*?)```", text, re.DOTALL)
    names: dict[str, Any] = {}
    exec(lines, names)
    row = EpochMetrics(1, 8, 150.25, 140.0, 10.25, 120.5, 100.25, 20.25, 1.5)
    history = [row._replace(epoch=epoch) for epoch in (1, 2, 3)]
    # While the lines wait a run goes on, is killed, loses an epoch, and trains it again.
    lengths = iter([0, 2, 1, 3, 3])
    names["time"] = SimpleNamespace(
        sleep=lambda _: write_metrics(tmp_path, history[: next(lengths)])
    )
    found = list(names["follow"](tmp_path, epochs=3))
    assert found == [row._asdict() for row in history]
