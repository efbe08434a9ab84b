"""Local evaluation against scikit-learn, the official verdicts, and the flaws that the official one overlooks."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score, recall_score, roc_auc_score

from midog.errors import ContractError, DataError, UsageError
from midog.files import sha256_file, write_csv, write_json
from submission.challenge import TRACK2
from submission.evaluate import evaluate_folder, evaluate_predictions

WORDS = np.array(TRACK2.classes)


def make_folder(folder, stacks, outputs=None, both=True, status="Succeeded"):
    """`stacks`: name → (labels 0/1, domains, confidences, classes 0/1); `outputs` replaces the content of a stack."""
    truth, jobs = [], []
    for number, (name, (labels, domains, confidence, called)) in enumerate(stacks.items()):
        truth.append({"image": name, "labels": WORDS[labels].tolist(), "tumordomains": list(domains)})
        slots = {}
        for side, slug, path in (
            ("inputs", TRACK2.input_slug, TRACK2.image_folder),
            ("outputs", TRACK2.output_slug, TRACK2.output_file),
        ):
            slot = {"slug": slug, "relative_path": path}
            item = {"image": {"name": name} if side == "inputs" else None, "socket": slot}
            slots[side] = [item | ({"interface": slot} if both else {})]
        jobs.append({"pk": f"job-{number}", "status": status, "exec_duration": "PT4.2S", **slots})
        content = [{"class": str(WORDS[k]), "confidence": float(p)} for p, k in zip(confidence, called, strict=True)]
        content = (outputs or {}).get(name, content)
        if content is not None:
            path = folder / f"job-{number}" / "output" / TRACK2.output_file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    (folder / "predictions.json").write_text(json.dumps(jobs[::-1]))
    (folder / "ground_truth.json").write_text(json.dumps(truth))
    return folder


def random_stacks(seed, n=6):
    rng = np.random.default_rng(seed)
    stacks = {}
    for number in range(n):
        size = int(rng.integers(1, 17))
        confidence = np.round(rng.random(size), 1)  # ties
        stacks[f"stack_{number}.tiff"] = (
            rng.integers(0, 2, size),
            rng.integers(0, 3, size).tolist(),
            confidence,
            (confidence + rng.normal(0, 0.3, size) > 0.5).astype(int),
        )
    return stacks


def independent(label, confidence, called):
    both = len(set(label)) == 2
    return {
        "sensitivity": recall_score(label, called, pos_label=1) if 1 in label else None,
        "specificity": recall_score(label, called, pos_label=0) if 0 in label else None,
        "balanced_accuracy": balanced_accuracy_score(label, called) if both else None,
        "accuracy": accuracy_score(label, called),
        "roc_auc": roc_auc_score(label, confidence) if both else None,
    }


def close(found, expected):
    return set(found) == set(expected) and all(
        found[key] is None if expected[key] is None else found[key] == pytest.approx(expected[key], abs=1e-12)
        for key in expected
    )


@given(st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_scores_equal_an_independent_computation(tmp_path_factory, seed):
    stacks = random_stacks(seed)
    found = evaluate_folder(make_folder(tmp_path_factory.mktemp("f"), stacks), draws=10)
    label, domain, confidence, called = (np.concatenate([np.asarray(s[i]) for s in stacks.values()]) for i in range(4))
    assert found.official and found.header == ""
    aggregates = found.metrics()["aggregates"]
    overall = {key.removeprefix("overall_"): value for key, value in aggregates.items() if key.startswith("overall_")}
    assert close(overall, independent(label, confidence, called))
    for name in sorted(set(domain.tolist())):
        rows = domain == name
        assert close(aggregates[f"domain_{name}"], independent(label[rows], confidence[rows], called[rows]))


def test_metrics_json_has_the_official_keys_and_is_strict_json(tmp_path):
    stacks = {"a.tiff": ([0, 1, 0], [0, 10, 2], [0.1, 0.9, 0.2], [0, 1, 0])}
    found = evaluate_folder(make_folder(tmp_path, stacks))
    path, details = found.write(tmp_path / "metrics.json")
    content = json.loads(path.read_text(), parse_constant=lambda token: pytest.fail(token))
    assert list(content) == ["results", "aggregates"]
    names = ("sensitivity", "specificity", "balanced_accuracy", "roc_auc", "accuracy")
    assert list(content["aggregates"]) == [*(f"overall_{n}" for n in names), "domain_0", "domain_2", "domain_10"]
    one_class = content["aggregates"]["domain_0"]
    assert one_class == {
        "sensitivity": None,
        "specificity": 1.0,
        "balanced_accuracy": None,
        "accuracy": 1.0,
        "roc_auc": None,
    }
    assert details.name == "metrics_details.json"
    second = json.loads(details.read_text())
    assert (second["overall"]["n"], second["overall"]["atypical"]) == (3, 1)
    assert second["jobs"][0]["exec_duration"] == "PT4.2S"


def test_a_set_of_one_class_gives_null_not_a_crash(tmp_path):
    found = evaluate_folder(make_folder(tmp_path, {"a.tiff": ([0, 0], [1, 1], [0.1, 0.2], [0, 1])}))
    aggregates = found.metrics()["aggregates"]
    assert aggregates["overall_specificity"] == 0.5
    assert aggregates["overall_sensitivity"] is aggregates["overall_balanced_accuracy"] is None
    assert aggregates["overall_roc_auc"] is None


GOOD = ([0, 1, 0, 1], [1, 1, 2, 2], [0.1, 0.9, 0.2, 0.7], [0, 1, 0, 1])


@pytest.mark.parametrize(
    ("output", "fatal", "word"),
    [
        ([{"class": "normal", "confidence": 1}], True, "not a float"),
        ([{"class": "AMF", "confidence": 0.5}], True, "AMF"),
        ([], True, "0 entries"),
        ({"class": "normal", "confidence": 0.5}, True, "not a list"),
        ("not json", True, "cannot be read"),
        (None, True, "cannot be read"),
        ([{"class": "normal", "confidence": float("nan")}], True, "nan"),
        ([{"class": "normal", "confidence": 1.7}], False, "1.7"),
    ],
)
def test_one_bad_job_is_named_and_the_others_are_scored(tmp_path, output, fatal, word):
    stacks = {"bad.tiff": ([1], [1], [0.5], [1]), "good.tiff": GOOD}
    outputs = {"bad.tiff": output}
    found = evaluate_folder(make_folder(tmp_path, stacks, outputs))
    assert not found.official
    assert any(word in str(problem) and problem.fatal is fatal for problem in found.problems)
    assert ("stops at" in found.header) is fatal
    assert found.scores.n == (4 if fatal else 5)
    json.dumps(found.metrics(), allow_nan=False)


def test_an_output_that_was_never_produced(tmp_path):
    folder = make_folder(tmp_path, {"a.tiff": GOOD, "b.tiff": GOOD})
    (folder / "job-0" / "output" / TRACK2.output_file).unlink()
    found = evaluate_folder(folder)
    assert [str(p).split(":")[0] for p in found.problems] == ["a.tiff", "a.tiff"]
    assert found.scores.n == 4


def test_confidences_out_of_range_rank_as_they_do_officially(tmp_path):
    label, confidence = np.array([0, 1, 0, 1, 1]), [0.3, 1.7, 0.9, 0.9, -3.0]
    found = evaluate_folder(make_folder(tmp_path, {"a.tiff": (label, [1] * 5, confidence, label)}))
    assert found.scores.roc_auc == pytest.approx(roc_auc_score(label, confidence))
    assert found.scores.log_loss is None


def test_joining_missing_doubled_and_unknown_stacks(tmp_path):
    stacks = {"stack_1.tiff": GOOD, "stack_2.tiff": GOOD, "stack_3.tiff": GOOD}
    folder = make_folder(tmp_path, stacks)
    jobs = json.loads((folder / "predictions.json").read_text())
    by_name = {job["inputs"][0]["image"]["name"]: job for job in jobs}
    by_name["stack_1.tiff"]["inputs"][0]["image"]["name"] = "stack_1.tif"
    by_name["stack_3.tiff"]["status"] = "Failed"
    jobs.append(by_name["stack_2.tiff"])
    (folder / "predictions.json").write_text(json.dumps(jobs))
    texts = [str(problem) for problem in evaluate_folder(folder).problems]
    assert any("stack_1.tif: is not in" in text and "did you mean stack_1.tiff?" in text for text in texts)
    assert any("stack_1.tiff: has a ground truth but no prediction" in text for text in texts)
    assert any("stack_2.tiff: has two jobs" in text for text in texts)
    assert any("stack_3.tiff: job status is Failed" in text for text in texts)


def test_a_job_with_sockets_alone_would_stop_the_official_evaluator(tmp_path):
    found = evaluate_folder(make_folder(tmp_path, {"a.tiff": GOOD}, both=False))
    assert found.scores.n == 4
    assert any("no interface" in str(problem) and problem.fatal for problem in found.problems)


def test_a_flawed_ground_truth_is_told_first(tmp_path):
    folder = make_folder(tmp_path, {"a.tiff": GOOD, "b.tiff": GOOD})
    truth = json.loads((folder / "ground_truth.json").read_text())
    truth[0]["tumordomains"].pop()
    (folder / "ground_truth.json").write_text(json.dumps([*truth, truth[1]]))
    texts = [str(problem) for problem in evaluate_folder(folder).problems]
    assert "4 labels, 3 tumordomains" in texts[0]
    assert "b.tiff: is twice in the ground truth" in texts[1]


def test_every_flaw_of_a_ground_truth_is_listed_whatever_json_it_is(tmp_path):
    folder = make_folder(tmp_path, {"a.tiff": GOOD, "b.tiff": GOOD, "c.tiff": GOOD})
    truth = json.loads((folder / "ground_truth.json").read_text())
    truth[0]["labels"] = [{"x": 1}, "atypical", ["normal"], "AMF", None]
    truth[1]["labels"][2] = True
    (folder / "ground_truth.json").write_text(json.dumps([*truth, 7]))
    jobs = json.loads((folder / "predictions.json").read_text())
    (folder / "predictions.json").write_text(json.dumps([*jobs, {"pk": "x", "status": "Succeeded", "inputs": 5}]))
    found = evaluate_folder(folder)
    texts = [str(problem) for problem in found.problems if str(problem).startswith("ground_truth.json")]
    assert [text.partition(" is not one of ")[0] for text in texts] == [
        "ground_truth.json entry 0: 5 labels, 4 tumordomains",
        "ground_truth.json entry 0: page 0: label {'x': 1}",
        "ground_truth.json entry 0: page 2: label ['normal']",
        "ground_truth.json entry 0: page 3: label AMF",
        "ground_truth.json entry 0: page 4: label None",
        "ground_truth.json entry 1: page 2: label True",
        "ground_truth.json entry 3: lacks image, labels or tumordomains",
    ]
    assert any("predictions.json job 3: no stacked" in str(problem) for problem in found.problems)
    assert not found.official and found.scores.n == 4


def test_nothing_to_score_and_no_listing(tmp_path):
    folder = make_folder(tmp_path, {"a.tiff": GOOD}, {"a.tiff": "{"})
    with pytest.raises(ContractError, match="nothing can be scored"):
        evaluate_folder(folder)
    with pytest.raises(DataError, match="no such file"):
        evaluate_folder(tmp_path / "nowhere")


# ------------------------------------------------------------------------------------------------ prediction tables


@pytest.fixture
def tables(tmp_path):
    """A patch table of 40 patches in two splits and three domains, and predictions for it. Images are not needed."""
    rng = np.random.default_rng(5)
    names = [f"set/{i}" for i in range(40)]
    label = rng.integers(0, 2, 40)
    header = ["patch_id", "path", "label", "case", "domain", "split", "fold", "aliases"]
    rows = [
        [name, f"{i}.png", int(label[i]), f"case{i // 2}", f"dom{i % 3}", "test" if i % 4 == 0 else "train", i % 2, ""]
        for i, name in enumerate(names)
    ]
    rows = [[*row[:6], "" if row[5] == "test" else row[6], "other/7" if row[0] == "set/7" else ""] for row in rows]
    write_csv(tmp_path / "patches.csv", header, rows)
    confidence = rng.random(40)
    called = confidence > 0.4
    write_csv(
        tmp_path / "out.csv",
        ["patch_id", "logit", "confidence", "class"],
        [[n, 0.0, float(p), str(WORDS[int(k)])] for n, p, k in zip(names, confidence, called, strict=True)],
    )
    return tmp_path, label, confidence, called.astype(int), np.arange(40)


def rewrite(path, change):
    header, *lines = path.read_text().splitlines()
    path.write_text("\n".join([header, *change(lines)]) + "\n")


def test_a_table_is_scored_by_domain_with_intervals(tables):
    folder, label, confidence, called, index = tables
    found = evaluate_predictions(folder / "out.csv", folder / "patches.csv")
    assert found.official
    assert close(
        {key: getattr(found.scores, key) for key in TRACK2.overall_keys}, independent(label, confidence, called)
    )
    assert list(found.domains) == ["dom0", "dom1", "dom2"]
    rows = index % 3 == 1
    assert close(found.metrics()["aggregates"]["domain_dom1"], independent(label[rows], confidence[rows], called[rows]))
    low, high = found.intervals["balanced_accuracy"].low, found.intervals["balanced_accuracy"].high
    assert low <= found.scores.balanced_accuracy <= high
    assert [row["domain"] for row in found.rows()] == ["all", "dom0", "dom1", "dom2"]
    assert any("not known" in note for note in found.notes)


def test_order_of_rows_and_aliases_do_not_matter(tables):
    folder, *_ = tables
    before = evaluate_predictions(folder / "out.csv", folder / "patches.csv", draws=20)
    rewrite(folder / "out.csv", lambda lines: [line.replace("set/7,", "other/7,") for line in lines[::-1]])
    assert evaluate_predictions(folder / "out.csv", folder / "patches.csv", draws=20) == before


def test_flaws_of_a_table_are_told_together(tables):
    folder, *_ = tables

    def spoil(lines):
        lines[1] = lines[1].rsplit(",", 1)[0] + ",AMF"
        lines[2] = "set/2,0,high,normal"
        lines[3] = "set/3,0,1.5,normal"
        lines[5] = "sett/5,0,0.5,normal"
        return [*lines, lines[10]]

    rewrite(folder / "out.csv", spoil)
    found = evaluate_predictions(folder / "out.csv", folder / "patches.csv")
    texts = "\n".join(str(problem) for problem in found.problems)
    for word in (
        "class AMF",
        "confidence high",
        "1.5 is not in",
        "predicted twice",
        "sett/5: has no label",
        "set/5: has a",
    ):
        assert word in texts
    assert not found.official


def test_predictions_that_cover_one_split_are_scored_on_it(tables):
    folder, label, _, called, index = tables
    rewrite(folder / "out.csv", lambda lines: lines[::4])
    found = evaluate_predictions(folder / "out.csv", folder / "patches.csv")
    rows = index % 4 == 0
    assert found.official and found.scores.n == 10
    assert found.scores.accuracy == accuracy_score(label[rows], called[rows])
    assert any("split test" in note for note in found.notes)


def test_a_split_can_be_asked_for(tables):
    folder, *_ = tables
    found = evaluate_predictions(folder / "out.csv", folder / "patches.csv", split="test")
    assert found.official and found.scores.n == 10
    with pytest.raises(UsageError, match="tset"):
        evaluate_predictions(folder / "out.csv", folder / "patches.csv", split="tset")
    with pytest.raises(UsageError, match="did you mean scanner"):
        evaluate_predictions(folder / "out.csv", folder / "patches.csv", by="scaner")


def test_seen_in_training_heads_the_scores_and_the_rest_is_scored_apart(tables):
    folder, *_ = tables
    seen = [f"set/{i}" for i in range(40) if i % 4]
    sidecar = {"sha256": sha256_file(folder / "out.csv"), "seen_in_training": seen}
    write_json(folder / "out.csv.json", sidecar)
    found = evaluate_predictions(folder / "out.csv", folder / "patches.csv")
    assert found.seen == 30
    assert found.header.startswith("seen in training: 30 of 40 patches")
    test = evaluate_predictions(folder / "out.csv", folder / "patches.csv", split="test")
    assert test.seen == 0 and test.header == "" and test.held_out is None
    assert found.held_out is not None and found.held_out.scores == test.scores
    write_json(folder / "out.csv.json", sidecar | {"sha256": "0"})
    changed = evaluate_predictions(folder / "out.csv", folder / "patches.csv")
    assert any("changed after prediction" in note for note in changed.notes)


def test_swapped_arguments_and_nothing_in_common(tables):
    folder, *_ = tables
    with pytest.raises(DataError, match="no prediction table"):
        evaluate_predictions(folder / "patches.csv", folder / "out.csv")
    rewrite(folder / "out.csv", lambda lines: ["x/1,0,0.5,normal"])
    with pytest.raises(ContractError, match="nothing can be scored"):
        evaluate_predictions(folder / "out.csv", folder / "patches.csv")
