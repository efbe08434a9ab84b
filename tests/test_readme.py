"""The README keeps its word: its campaign runs as written, on drawn patches, with a micro-recipe in place of hours."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from midog.cli import app, run
from midog.data.download import SOURCES
from midog.data.synthetic import draw
from midog.models.backbones import find_backbone, list_backbones
from midog.models_cli import MICRO
from midog.recipe import load_recipe
from midog.recipe_source import list_recipes

README = Path(__file__).parent.parent / "README.md"
INSTEAD = {"data/amibr": "drawn", "cpu-small": "smoke"}


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


def test_the_first_steps_name_what_midog_can_fetch() -> None:
    """The data set, the folder that the campaign reads it from, and the weights of its recipe."""
    text = README.read_text(encoding="utf-8").split("## A campaign", 1)[0]
    name = next(words for words in commands(text) if words[:2] == ["data", "get"])[2]
    assert name in SOURCES and f"data/{name}" in campaign()[0]
    pulled = next(words for words in commands(text) if words[:2] == ["models", "pull"])[2]
    recipe = load_recipe(campaign()[1][1])
    assert [find_backbone(member.backbone).name for member in recipe.members.values()] == [pulled]


@pytest.mark.parametrize("name", ["README.md", "CHANGELOG.md"])
def test_backbones_are_counted(name: str) -> None:
    counts = re.findall(r"(\S+) backbones (?:are one word each|by name)", README.with_name(name).read_text("utf-8"))
    assert counts == [str(sum(not backbone.startswith(MICRO) for backbone in list_backbones()))]


def test_every_recipe_that_ships_is_named() -> None:
    text = README.read_text(encoding="utf-8")
    assert [name for name in list_recipes() if f"`{name}`" not in text] == []
