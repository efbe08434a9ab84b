"""Recipes: how they merge, what the resolved one says, and the words of every refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from midog.errors import UsageError
from midog.recipe import load_recipe, resolved
from midog.recipe_source import list_recipes, recipe_text
from midog.yaml import parse_yaml, yaml_text

MICRO = "each: {pretrained: random}\nmembers: {a: {backbone: test_vit}}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "mine.yaml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("name", sorted(list_recipes()))
def test_every_shipped_recipe_loads_and_comes_back_equal(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.difference == ()
    again = load_recipe(write(tmp_path, yaml_text(resolved(recipe))))
    assert resolved(again) == resolved(recipe)
    assert list_recipes()[name]


@pytest.mark.parametrize("name", sorted(list_recipes()))
def test_every_member_of_a_shipped_recipe_finds_what_it_tunes(name: str) -> None:
    """Adapters find their layers, prompts their blocks; built without contents, so that giants take no memory."""
    import torch

    from midog.models.build import empty_backbone
    from midog.models.tuning import apply_tuning
    from midog.training.member import network_of

    for member in load_recipe(name).members.values():
        network = network_of(member)
        with torch.device("meta"):
            backbone = empty_backbone(network.backbone)
            apply_tuning(backbone, network.tune, network.backbone)
        assert any(parameter.requires_grad for parameter in backbone.parameters())


@pytest.mark.parametrize(
    ("name", "backbone", "tune", "views"),
    [
        ("winner", "vit_huge_plus_patch16_dinov3", "lora", "rot4"),
        ("third", "convnextv2_base", "full", "none"),
        ("fifth", "uni2_h", "prompts", "d4_stain"),
        ("benchmark-virchow2", "virchow2", "lora", "none"),
    ],
)
def test_recipes_after_published_entries_are_what_they_say(name: str, backbone: str, tune: str, views: str) -> None:
    recipe = load_recipe(name)
    (member,) = recipe.members.values()
    assert (member.backbone, member.tune.kind, recipe.blend.views) == (backbone, tune, views)
    if name == "third":
        assert member.image.crop == round(0.6 * 128 / 2) * 2 and member.augment.fisheye is None
    if name == "winner":
        assert (member.training.loss, member.tune.rank, member.tune.alpha) == ("domain_focal", 4, 8)
    if name == "benchmark-virchow2":
        training = member.training
        assert (training.optimizer, training.schedule, training.select) == ("adam", "plateau", "inner")


def test_the_open_recipe_needs_no_token() -> None:
    from midog.models.backbones import find_backbone

    assert not any(find_backbone(member.backbone).gated for member in load_recipe("open").members.values())


def test_the_paper_recipe_is_what_it_says() -> None:
    recipe = load_recipe("paper")
    assert list(recipe.members) == ["uni", "virchow", "virchow2", "convnext"]
    assert recipe.members["uni"].backbone == "uni"
    assert recipe.members["uni"].tune.kind == "lora"
    assert recipe.members["convnext"].backbone == "convnextv2_base"
    assert recipe.members["convnext"].tune.kind == "full"
    assert recipe.members["convnext"].training.lr == 2e-4
    assert recipe.members["convnext"].training.epochs == recipe.members["uni"].training.epochs == 30
    assert recipe.members["uni"].augment.fisheye is not None
    assert recipe.members["uni"].augment.fourier.targets == "natural"


def test_keys_merge_and_another_kind_replaces(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
each:
  pretrained: random
  tune: {kind: lora, rank: 4, dropout: 0.1}
  augment: {kind: paper, fourier: {p: 0.3, beta: [0.02, 0.05]}}
members:
  a: {backbone: test_vit, tune: {rank: 2}}
  b: {backbone: test_vit, tune: {kind: dora}}
  c: {backbone: test_vit, tune: lora, augment: {fourier: off}}
  d: {backbone: test_vit, augment: {fisheye: off, fourier: {p: 0.1}}}
  e: {backbone: test_vit, augment: none}
""",
    )
    members = load_recipe(path).members
    assert (members["a"].tune.rank, members["a"].tune.dropout) == (2, 0.1)
    assert (members["b"].tune.kind, members["b"].tune.rank, members["b"].tune.dropout) == ("dora", 8, 0)
    assert members["c"].tune.rank == 4
    assert members["c"].augment.fourier is None and members["c"].augment.fisheye is not None
    assert members["d"].augment.fisheye is None
    assert (members["d"].augment.fourier.p, members["d"].augment.fourier.beta) == (0.1, (0.02, 0.05))
    assert members["e"].augment.fourier is None and members["e"].augment.kind == "none"


def test_a_start_is_off_by_default_and_switched_by_a_word(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
each: {pretrained: random, backbone: test_vit, start: {kind: reconstruct, epochs: 5}}
members:
  a: {}
  b: {start: {lr: 1e-3}}
  c: {start: off}
  d: {start: {kind: distil, teacher: c}}
""",
    )
    recipe = load_recipe(path)
    a, b, c, d = (recipe.members[name].start for name in "abcd")
    assert (a.kind, a.epochs, b.epochs, b.lr) == ("reconstruct", 5, 5, 1e-3)
    assert c is None and resolved(recipe)["members"]["c"]["start"] == "off"
    assert (d.kind, d.teacher) == ("distil", "c") and d.epochs != 5
    assert resolved(load_recipe(write(tmp_path, yaml_text(resolved(recipe))))) == resolved(recipe)
    assert load_recipe(path, ["each.start=off"]).members["d"].start is None
    assert all(member.start is None for member in load_recipe("paper").members.values())


def test_an_auxiliary_loss_is_off_by_default_and_switched_by_a_word(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
each: {pretrained: random, backbone: test_vit, auxiliary: {kind: domain_adversarial, weight: 0.2}}
members:
  a: {}
  b: {auxiliary: {confounder: tumour}}
  c: {auxiliary: off}
  d: {auxiliary: scanner_contrast}
""",
    )
    recipe = load_recipe(path)
    a, b, c, d = (recipe.members[name].auxiliary for name in "abcd")
    assert (a.weight, a.confounder, b.weight, b.confounder) == (0.2, "scanner", 0.2, "tumour")
    assert c is None and resolved(recipe)["members"]["c"]["auxiliary"] == "off"
    assert (d.kind, d.mode, d.weight, d.tau, d.width) == ("scanner_contrast", "pseudo", 0.1, 0.1, 96)
    assert resolved(load_recipe(write(tmp_path, yaml_text(resolved(recipe))))) == resolved(recipe)
    assert all(member.auxiliary is None for member in load_recipe("paper").members.values())


def test_scanners_are_made_alike_where_a_word_says_so(tmp_path: Path) -> None:
    text = "each: {pretrained: random, backbone: test_vit, harmonise: macenko}\nmembers: {a: {}, b: {harmonise: off}}"
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.members["a"].harmonise.kind == "macenko" and recipe.members["b"].harmonise is None
    assert recipe.plain["members"]["b"]["harmonise"] == "off"
    assert resolved(load_recipe(write(tmp_path, yaml_text(resolved(recipe))))) == resolved(recipe)
    assert all(member.harmonise is None for member in load_recipe("paper").members.values())


def test_from_starts_from_a_shipped_recipe_and_members_can_be_dropped(tmp_path: Path) -> None:
    text = "from: paper\neach: {training: {epochs: 5}}\nmembers: {virchow: off, uni: {training: {lr: 5e-5}}}\n"
    recipe = load_recipe(write(tmp_path, text))
    assert list(recipe.members) == ["uni", "virchow2", "convnext"]
    assert "members.uni.training.lr: 0.0001 → 5e-05" in recipe.difference
    assert "members.virchow: removed" in recipe.difference
    assert "members.convnext.training.epochs: 30 → 5" in recipe.difference
    assert not any(line.startswith("members.virchow.") for line in recipe.difference)


def test_what_is_typed_counts_last() -> None:
    recipe = load_recipe(
        "paper",
        [
            "each.training.lr=9e-4",
            "each.tune.rank=4",
            "members.uni.training.lr=5e-5",
            "members.virchow2.tune=full",
            "members.virchow.augment.fisheye=off",
            "blend=equal",
            "seed=7",
            "folds=scanner",
        ],
    )
    assert recipe.members["convnext"].training.lr == 9e-4, "also where the member says otherwise"
    assert recipe.members["uni"].training.lr == 5e-5
    assert recipe.members["uni"].tune.rank == 4
    assert recipe.members["convnext"].tune.kind == recipe.members["virchow2"].tune.kind == "full"
    assert recipe.members["virchow"].augment.fisheye is None
    assert (recipe.blend.kind, recipe.blend.seed, recipe.seed, recipe.folds) == ("equal", 7, 7, "scanner")
    assert all(member.seed == 7 for member in recipe.members.values())


def test_yaml_is_of_this_century(tmp_path: Path) -> None:
    assert parse_yaml("{a: off, b: 1e-4, c: no, d: 0o10}", "here") == {"a": "off", "b": 1e-4, "c": "no", "d": 8}


def test_an_inline_backbone_and_a_member_that_says_nothing(tmp_path: Path) -> None:
    text = (
        "each: {pretrained: random}\nmembers: {test_vit: , x: {backbone: {timm: vit_tiny_patch16_224}, tune: head}}\n"
    )
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.members["test_vit"].backbone == "test_vit"
    assert recipe.members["x"].backbone == {"timm": "vit_tiny_patch16_224"}
    assert resolved(load_recipe(write(tmp_path, yaml_text(resolved(recipe))))) == resolved(recipe)


BAD = [
    ("sed: 1\n" + MICRO, "sed: did you mean seed?"),
    ("each: {trainin: {}}\nmembers: {test_vit: {}}", "each.trainin: did you mean training?"),
    ("members: {uni: {training: {lrr: 1}}}", "members.uni.training.lrr: did you mean lr?"),
    ("each: {training: {lrr: 1}}\nmembers: {uni: {}, virchow: {}}", "each.training.lrr: did you mean lr?"),
    ("members: {uni: {bakbone: uni}}", "members.uni.bakbone: did you mean backbone?"),
    (
        "members: {uni: {augment: {fourier: {bta: [0, 1]}}}}",
        "members.uni.augment.fourier.bta: did you mean beta?",
    ),
    (
        "members: {uni: {augment: {normalise: {method: makenko}}}}",
        "members.uni.augment: unknown normalise.method: makenko; did you mean macenko?",
    ),
    ("members: {uni: {augment: {fisheyes: off}}}", "members.uni.augment.fisheyes: did you mean fisheye?"),
    ("members: {uni: {tune: {kind: full, rank: 4}}}", "members.uni.tune.rank: unknown key; the keys here are kind"),
    ("members: {uni: {tune: ful}}", "members.uni.tune.kind: no kind ful; did you mean full?"),
    ("members: {uni: {tune: {rank: 1.5}}}", "members.uni.tune.rank: 1.5 is not a whole number"),
    ('members: {uni: {training: {lr: "1e-4"}}}', 'members.uni.training.lr: "1e-4" is not a number'),
    ("members: {uni: {training: {soft_labels: 1}}}", "members.uni.training.soft_labels: 1 is not true or false"),
    ("members: {uni: {image: 64}}", "members.uni.image: 64 is not a mapping of keys to values"),
    ("members: {uni: {image: {crop: 63}}}", "members.uni.image: image.crop is 63"),
    ("members: {uni: {training: {loss: focl}}}", "members.uni.training: unknown training.loss: focl"),
    ("members: {vrchow2: {}}", "members.vrchow2.backbone: unknown backbone: vrchow2; did you mean virchow2?"),
    ("members: {uni: {image: {size: 225}}}", "members.uni: image.size 225 is no multiple"),
    ("members: {a/b: {backbone: uni}}", "members.a/b: a member's name becomes a folder"),
    ("members: {uni: {}, UNI: {backbone: uni}}", "members.UNI: differs from uni in capitals alone"),
    (MICRO + "blend: {kind: tunned}", "blend.kind: "),
    ("members: {uni: {start: reconstuct}}", "members.uni.start.kind: no kind reconstuct; did you mean reconstruct?"),
    ("members: {uni: {start: {kind: reconstruct, epoch: 1}}}", "members.uni.start.epoch: did you mean epochs?"),
    ("members: {uni: {start: {kind: reconstruct, teacher: x}}}", "members.uni.start.teacher: unknown key"),
    ("members: {uni: {start: {epochs: 3}}}", "members.uni.start.epochs: the kind is off"),
    ("members: {uni: {start: distil}}", "members.uni.start: start.teacher names no member"),
    (
        "members: {uni: {start: {kind: distil, teacher: virchw}}, virchow: {}}",
        "members.uni.start.teacher: no member virchw; did you mean virchow?",
    ),
    (
        "each: {start: {kind: distil, teacher: uni}}\nmembers: {uni: {}, virchow: {}}",
        "members.uni.start.teacher: uni cannot teach itself",
    ),
    (
        "members:\n"
        "  uni: {start: {kind: distil, teacher: virchow}}\n"
        "  virchow: {start: {kind: distil, teacher: virchow2}}\n"
        "  virchow2: {start: {kind: distil, teacher: uni}}",
        "members.virchow.start.teacher: learns from itself by way of virchow2, uni",
    ),
    (
        "members: {uni: {auxiliary: domain_adversarail}}",
        "members.uni.auxiliary.kind: no kind domain_adversarail; did you mean domain_adversarial?",
    ),
    ("members: {uni: {auxiliary: {weight: 1}}}", "members.uni.auxiliary.weight: the kind is off"),
    (
        "members: {uni: {auxiliary: {kind: domain_adversarial, confouder: scanner}}}",
        "members.uni.auxiliary.confouder: did you mean confounder?",
    ),
    (
        "members: {uni: {auxiliary: {kind: domain_adversarial, confounder: scaner}}}",
        "members.uni.auxiliary: unknown auxiliary.confounder: scaner; did you mean scanner?",
    ),
    (
        "members: {uni: {auxiliary: {kind: scanner_contrast, mode: pseud}}}",
        "members.uni.auxiliary: unknown auxiliary.mode: pseud; did you mean pseudo?",
    ),
    (
        "members: {uni: {auxiliary: {kind: scanner_contrast, mode: paired}}}",
        "members.uni.auxiliary: auxiliary.mode is paired, auxiliary.pairs is empty",
    ),
    (
        "each: {auxiliary: {kind: scanner_contrast, tau: small}}\nmembers: {uni: {}}",
        'each.auxiliary.tau: "small" is not a number',
    ),
    ("members: {uni: {harmonise: makenko}}", "members.uni.harmonise.kind: no kind makenko; did you mean macenko?"),
    ("members: {uni: {harmonise: {kind: reinhard, mean: 3}}}", "members.uni.harmonise.mean: unknown key"),
    (
        "members: {uni: {harmonise: {kind: low_pass, radius: 0}}}",
        "members.uni.harmonise: low_pass.radius is 0",
    ),
    ("members: {uni: {auxiliary: {kind: adversarial, epsilon: 4}}}", "members.uni.auxiliary: auxiliary.epsilon is 4"),
    ("members: {uni: {auxiliary: {kind: adversarial, alpha: 1}}}", "members.uni.auxiliary.alpha: unknown key"),
    (MICRO + "blend: {trails: 3}", "blend.trails: did you mean trials?"),
    ("members: {uni: {}}\nblend: {fold_models: {unni: 1}}", "blend.fold_models.unni: did you mean uni?"),
    (MICRO + "blend: {fold_models: {a: 0}}", "blend: blend fold_models a: 0"),
    (MICRO + "blend: {fold_models: {a: few}}", 'blend.fold_models.a: "few" is not a whole number'),
    (MICRO + "blend: {fold_models: 3}", "blend.fold_models: 3 is not a mapping"),
    (MICRO + "folds: scaner", "folds: no such column scaner; did you mean scanner?"),
    (MICRO + "seed: -1", "seed: -1 is not a whole number from 0"),
    ("each: {}", "members: no member"),
]


def test_fold_models_of_a_member_that_is_off_count_for_nothing(tmp_path: Path) -> None:
    """A recipe that starts `from:` another may drop a member whose number it cannot unsay."""
    text = "members: {a: {backbone: timm/test_vit}, b: off}\nblend: {fold_models: {a: 2, b: 1}}"
    recipe = load_recipe(write(tmp_path, text))
    assert recipe.blend.fold_models == {"a": 2} and recipe.plain["blend"]["fold_models"] == {"a": 2}


@pytest.mark.parametrize(("text", "line"), BAD, ids=[line for _, line in BAD])
def test_a_bad_recipe_is_refused_by_key(text: str, line: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(write(tmp_path, text))
    assert any(detail.startswith(line) for detail in caught.value.details), caught.value
    assert caught.value.fix


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("members:\n  uni: {}\n  uni: {}\n", "line 3: uni is there twice"),
        ("members: {uni: {}\n", "mine.yaml, line 2"),
        ("- uni\n", "is no recipe: a mapping is expected"),
        ("", "is no recipe: a mapping is expected"),
        ("members: {}\nfrom: paper\n", "`from` is not the first key"),
        ("from: papr\n", "did you mean paper?"),
    ],
)
def test_a_file_that_is_no_recipe(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe(write(tmp_path, text))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        ("members.uni.training.lrr=1", "members.uni.training.lrr: did you mean lr?"),
        ("members.unii.training.lr=1", "--set members.unii: did you mean uni?"),
        ("each.training.epochs=many", 'training.epochs: "many" is not a whole number'),
        ("epochs=2", "--set epochs: unknown key; the keys here are folds, seed, each, members, blend"),
        ("each.training.epochs", "--set each.training.epochs: KEY=VALUE is expected"),
        ("each=2", "--set each=2: this is a whole section"),
        ("each.training.lr={1", "--set each.training.lr={1, line 1"),
    ],
)
def test_bad_set_options(typed: str, line: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_recipe("paper", [typed])
    assert any(line in detail for detail in caught.value.details), caught.value


def test_all_problems_are_reported_at_once(tmp_path: Path) -> None:
    text = "sed: 1\nfolds: x\nmembers: {uni: {training: {lrr: 1, epochs: 1.5}, tune: {rnk: 2}}}"
    with pytest.raises(UsageError) as caught:
        load_recipe(write(tmp_path, text), ["foo=1"])
    assert len(caught.value.details) == 6
    assert "6 problems" in caught.value.problem


def test_unknown_names_get_the_nearest_one() -> None:
    with pytest.raises(UsageError, match="did you mean paper"):
        load_recipe("papr")
    with pytest.raises(UsageError, match="did you mean paper"):
        recipe_text("papr")


def test_a_recipe_may_be_given_as_what_its_file_holds(tmp_path):
    content = {"from": "smoke", "each": {"training": {"epochs": 3, "warmup": 1}}}
    (tmp_path / "own.yaml").write_text(yaml_text(content))
    given, read = load_recipe(content, ["seed=4"]), load_recipe(tmp_path / "own.yaml", ["seed=4"])
    assert given.plain == read.plain and given.difference == read.difference and given.base == "smoke"
    with pytest.raises(UsageError, match="ech"):
        load_recipe({"ech": {}, "members": {"a": {"backbone": "test_vit"}}})


@pytest.mark.parametrize(
    "key", ["training.clip", "training.gamma", "training.weight_decay", "augment.fisheye.strength"]
)
@pytest.mark.parametrize("number", [".inf", ".nan"])
def test_numbers_without_end_are_told_beside_everything_else(key: str, number: str) -> None:
    value = f"[0, {number}]" if key.endswith("strength") else number
    with pytest.raises(UsageError) as caught:
        load_recipe("smoke", [f"each.{key}={value}", "each.training.epochs=many"])
    told = [line for line in caught.value.details if "is not a finite number" in line]
    assert [line.partition(": ")[0] for line in told] == [f"each.{key}"]
    assert any(line.startswith("each.training.epochs") for line in caught.value.details)
