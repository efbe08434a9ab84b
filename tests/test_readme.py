"""The README keeps its word: its campaign runs as written, on drawn patches, with a micro-recipe in place of hours."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from midog.cli import app, run
from midog.data.synthetic import draw
from midog.recipe_source import list_recipes

README = Path(__file__).parent.parent / "README.md"
INSTEAD = {"AMi-Br": "drawn", "cpu-small": "smoke"}


def commands(text: str) -> list[list[str]]:
    """Words of every `$ midog …` line."""
    return [shlex.split(line)[1:] for line in re.findall(r"^\$ (midog .*)$", text, flags=re.MULTILINE)]


def campaign() -> list[list[str]]:
    section = README.read_text(encoding="utf-8").split("## A campaign", 1)[1].split("\n## ", 1)[0]
    return commands(section)


def test_the_campaign_has_its_six_commands() -> None:
    assert [words[0] for words in campaign()] == ["check", "train", "blend", "bundle", "predict", "evaluate"]


def test_the_campaign_runs_as_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    draw(tmp_path / "drawn", cases=40, per_case=3)
    for words in campaign():
        typed = [INSTEAD.get(word, word) for word in words]
        if typed[0] == "train":
            typed += ["--set", "each.image.size=32", "--set", "each.training.epochs=1"]
        assert run(typed) == 0, typed


def test_every_command_that_the_readme_names_exists() -> None:
    known = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    known |= {str(group.name) for group in app.registered_groups}
    named = set(re.findall(r"`midog ([a-z]+)", README.read_text(encoding="utf-8")))
    assert named and named <= known


def test_every_recipe_that_ships_is_named() -> None:
    text = README.read_text(encoding="utf-8")
    assert [name for name in list_recipes() if f"`{name}`" not in text] == []
