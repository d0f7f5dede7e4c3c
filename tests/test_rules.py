"""The rules of the house that a program can check hold in the whole tree."""

import importlib.util
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).resolve().parent.parent


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_sizes_docstrings_state_and_paths() -> None:
    rules = script("check_rules")
    found = [f"{path.relative_to(ROOT)}:{line}: {what}" for path, line, what in rules.breaches()]
    assert not found, "\n".join(found)


def test_every_cited_rule_is_defined() -> None:
    assert script("check_specs").main([]) == 0
