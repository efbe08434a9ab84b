"""`--vary`: how it is split and read, what each run's recipe then says, and the words of every refusal."""

from __future__ import annotations

import pytest

from midog.errors import UsageError
from midog.recipe import load_recipe
from midog.variation import split_values, vary_recipe


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("off,on", ["off", "on"]),
        ("off, [0.1, 0.2] ,{p: 1, strength: [0, 1]}", ["off", "[0.1, 0.2]", "{p: 1, strength: [0, 1]}"]),
        ("'a,b',\"c,d\"", ["'a,b'", '"c,d"']),
        ("on", ["on"]),
        ("a,,b", ["a", "", "b"]),
    ],
)
def test_values_are_split_at_commas_outside_of_brackets(text: str, values: list[str]) -> None:
    assert split_values(text) == values


def test_each_run_gets_its_recipe() -> None:
    varied = vary_recipe(
        "smoke", ["augment.fisheye=off,{p: 1.0}", "members.vit.tune=lora,full"], [0, 7], ["each.training.lr=1e-2"]
    )
    assert len(varied.recipes) == 8
    name, recipe = list(varied.recipes.items())[-1]
    assert name.startswith("fisheye=p-1.0-") and name.endswith(",tune=full,seed=7")
    assert recipe.seed == 7 and recipe.members["vit"].tune.kind == "full"
    for member in recipe.members.values():  # a key of a member is every member's
        assert member.augment.fisheye is not None and member.augment.fisheye.p == 1.0
        assert member.training.lr == 1e-2 and member.seed == 7
    assert varied.base.plain == load_recipe("smoke", ["each.training.lr=1e-2"]).plain


def test_folds_vary_too_and_the_seed_is_the_recipes_own() -> None:
    varied = vary_recipe("smoke", ["folds=fold,scanner"], sets=["seed=5"])
    assert {name: recipe.folds for name, recipe in varied.recipes.items()} == {
        "folds=fold,seed=5": "fold",
        "folds=scanner,seed=5": "scanner",
    }
    assert all(recipe.seed == 5 for recipe in varied.recipes.values())


@pytest.mark.parametrize(
    ("vary", "says"),
    [
        ("augment.fisheye", "KEY=VALUE,VALUE is expected"),
        ("augment.fisheye=on", "one value varies nothing"),
        ("augment.fisheye=on,on", "on is there twice"),
        ("augment.fisheye=on,", "a value is empty"),
        ("augmnt.fisheye=off,on", "did you mean augment?"),
        ("augment.fisheie=off,on", "each.augment.fisheie: did you mean fisheye?"),
        ("members.vitt.tune=lora,full", "members.vitt: did you mean vit?"),
        ("image.crop=64,65", "image.crop is 65"),
        ("augment.fisheye=off,[1", "line 1"),
        ("folds=fold,scaner", "did you mean scanner?"),
        ("seed=0,1", "--seeds 0,1,2"),
        ("blend.kind=equal,tuned", "stored out-of-fold logits answer it"),
    ],
)
def test_a_mistake_is_told_as_a_recipes_is(vary: str, says: str) -> None:
    with pytest.raises(UsageError) as error:
        vary_recipe("smoke", [vary])
    assert says in str(error.value) and error.value.fix


def test_all_mistakes_at_once() -> None:
    with pytest.raises(UsageError) as error:
        vary_recipe("smoke", ["image.crop=64,128", "each.image.crop=32,64", "tune=lora"])
    assert len(error.value.details) == 2 and "each.image.crop varies already" in error.value.details[0]
    with pytest.raises(UsageError) as error:
        vary_recipe("smoke", ["image.crop=65,67", "training.epochs=0,2"])
    assert {line.partition(":")[0] for line in error.value.details} >= {"each.image", "each.training"}


@pytest.mark.parametrize("seeds", [[0, 0], [], [-1]])
def test_seeds_are_different_whole_numbers(seeds: list[int]) -> None:
    with pytest.raises(UsageError, match="seeds"):
        vary_recipe("smoke", ["tune=lora,full"], seeds)
