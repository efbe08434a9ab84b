"""The command line: one function call per command, imports inside the commands, and the only place that prints."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from midog.audit_cli import audit
from midog.bench_cli import bench_app
from midog.blend_cli import By, blend, compare
from midog.container_cli import container_app
from midog.errors import CheckFailed, DataError, MidogError, UsageError
from midog.features_cli import features
from midog.models_cli import models_app
from midog.terminal import Json, note, show, wrote
from midog.train_cli import Pretrained, SetOption, recipes_app, status, train

DATA, TRAIN, ENSEMBLE, SUBMIT, LOOK = "1 data", "2 train", "3 ensemble", "4 submit", "look"

app = typer.Typer(
    help="Train, blend, pack and submit an ensemble for MIDOG 2025 Track 2: atypical or normal mitotic figure.\n\n"
    "A campaign is six commands: check, train, blend, bundle, predict, evaluate. `midog demo` shows all of it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(no_args_is_help=True, help="Download a public data set.")
app.add_typer(data_app, name="data", rich_help_panel=DATA)
app.add_typer(recipes_app, name="recipes", rich_help_panel=TRAIN)
app.add_typer(models_app, name="models", rich_help_panel=TRAIN)
app.add_typer(container_app, name="container", rich_help_panel=SUBMIT)
app.add_typer(bench_app, name="bench", rich_help_panel=LOOK)


@app.command(rich_help_panel=DATA)
def check(
    data: Annotated[list[Path], typer.Argument(help="Data sets: folders or CSV files, in their published layouts.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Write the patch table here.")] = None,
    folds: Annotated[str | None, typer.Option(help="grouped:K:SEED (by case, balanced), or amibr.")] = None,
    hold_out: Annotated[float | None, typer.Option(help="Share of the cases to set aside as `test`.")] = None,
    join_duplicates: Annotated[bool, typer.Option(help="Equal pixels: keep the first row, others as aliases.")] = False,
    extend: Annotated[Path | None, typer.Option(help="A patch table whose cases stay in their folds.")] = None,
    as_json: Json = False,
) -> None:
    """Read data sets, report everything wrong at once, and write the patch table with its folds."""
    from midog import api

    checked = api.read_patches(*data, folds=folds, hold_out=hold_out, join_duplicates=join_duplicates, extend=extend)
    show(checked.summary(), checked.text(), as_json)
    if checked.problems:
        raise CheckFailed(f"{len(checked.problems)} kinds of problem; nothing was written", "see the fix of each above")
    if out:
        wrote(checked.write(out))


@data_app.command("get")
def data_get(
    name: Annotated[str, typer.Argument(help="amibr or atnorm")],
    folder: Annotated[Path, typer.Argument(help="Where to put it.")] = Path("data"),
) -> None:
    """Download a public data set; resumes where it stopped and checks what came."""
    from midog.data import download

    wrote(download.download(name, folder))


@app.command(rich_help_panel=DATA)
def preview(
    recipe: Annotated[str, typer.Argument(help="A recipe: name or file.")],
    patches: Annotated[Path, typer.Argument(help="The patch table.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="PNG to write.")] = Path("preview.png"),
    member: Annotated[str | None, typer.Option(help="Whose augmentation; default: the first member's.")] = None,
    sets: SetOption = None,
) -> None:
    """Write a contact sheet: patches, and what a member's augmentation makes of them."""
    from midog import api
    from midog.recipe import load_recipe
    from midog.training.launch import preview_augmentation

    wrote(preview_augmentation(load_recipe(recipe, sets or ()), api.as_table(patches), out, member))


app.command(rich_help_panel=TRAIN)(train)
app.command(rich_help_panel=TRAIN)(status)
app.command(rich_help_panel=ENSEMBLE)(blend)
app.command(rich_help_panel=ENSEMBLE)(compare)


@app.command(rich_help_panel=ENSEMBLE)
def report(
    source: Annotated[Path, typer.Argument(help="A run (also one that is still going) or a blend.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Default: report.html inside it.")] = None,
) -> None:
    """Write one self-contained HTML page of figures."""
    from midog.report import page

    wrote(page.report(source, out))


@app.command(rich_help_panel=SUBMIT)
def bundle(
    blend: Annotated[Path, typer.Argument(help="A blend folder.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The bundle to write.")] = Path("model.tar.gz"),
    pretrained: Pretrained = None,
    accept_licence: Annotated[
        list[str] | None,
        typer.Option("--accept-licence", metavar="BACKBONE", help="Keep to the terms of a licence that binds."),
    ] = None,
) -> None:
    """Pack everything inference needs into one archive, byte-identical when repeated."""
    from midog import api

    written = api.pack_bundle(blend, out, pretrained, accept_licence or ())
    wrote(written, next_command=f"midog predict {written} patches.csv -o out.csv")


@app.command(rich_help_panel=SUBMIT)
def predict(
    bundle: Annotated[str, typer.Argument(help="A bundle: archive, folder, or `default`, which ships.")],
    what: Annotated[Path, typer.Argument(help="A patch table, a folder of images, a stack, or a job folder.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="CSV to write: patch_id,logit,confidence,class.")],
    use: Annotated[str, typer.Option(help="Operating point: full, fast, only:MEMBER, …, each also with /1.")] = "full",
    split: Annotated[str | None, typer.Option(help="Only this split of a patch table: train or test.")] = None,
) -> None:
    """Classify patches, in input order; `confidence` is the probability of atypical."""
    from midog import api
    from submission.predict import predict_what

    if what.suffix == ".gz" or Path(bundle).suffix == ".csv" or (str(what) == "default" and not what.exists()):
        raise UsageError("the arguments are swapped", f"midog predict {what} {bundle} -o {out}")
    result = predict_what(api.load_bundle(bundle, use=use), what, split=split)
    for line in result.notes:
        note(line)
    wrote(result.write(out), next_command=f"midog evaluate {out} {what}" if _labelled(what, split) else "")


def _labelled(what: Path, split: str | None) -> bool:
    """Whether `midog evaluate` finds a truth in what was predicted: only a table has labels, and not every table."""
    from midog.data.readers import read_layout
    from submission.predict import TABLE_SUFFIXES

    if what.is_dir() or what.suffix.casefold() not in TABLE_SUFFIXES:
        return False
    return any(patch.label is not None and split in (None, patch.split) for patch in read_layout([what]))


@app.command(rich_help_panel=SUBMIT)
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="A table from `midog predict`, or the platform's folder.")],
    truth: Annotated[Path, typer.Argument(help="Labels: a patch table or data set; for a folder ground_truth.json.")],
    by: Annotated[By, typer.Option(help="Scores by these, beside the overall ones.")] = By.domain,
    split: Annotated[str | None, typer.Option(help="Only this split of the truth: train or test.")] = None,
    bundle: Annotated[str | None, typer.Option(help="Bundle whose training patches are to be recognised.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the official metrics.json object.")] = False,
) -> None:
    """The challenge's metrics, overall and by domain, with case-bootstrap intervals."""
    from submission import evaluate as evaluation

    if not predictions.exists():
        raise DataError(f"no such file or folder: {predictions}", f"midog predict BUNDLE {truth} -o {predictions}")
    if predictions.is_dir():
        result = evaluation.evaluate_folder(predictions, truth)
    else:
        result = evaluation.evaluate_predictions(predictions, truth, by=by.value, split=split, bundle=bundle)
    show(result.metrics(), result.text(), as_json)
    if not result.official:
        raise CheckFailed("the official evaluator would have refused this", "see the problems above")


app.command(rich_help_panel=LOOK)(audit)
app.command(rich_help_panel=LOOK)(features)


@app.command(rich_help_panel=LOOK)
def demo(
    out: Annotated[Path, typer.Argument(help="Folder for everything it makes.")] = Path("demo"),
    quick: Annotated[
        bool, typer.Option(help="Fewer patches and epochs: proves the path, says nothing of quality.")
    ] = False,
) -> None:
    """The main job on real patches, in minutes: check, train, blend, bundle, challenge job, score, report."""
    from midog import demo as main_job

    main_job.run_demo(out, quick=quick, say=lambda line: print(line, flush=True))


def run(arguments: Sequence[str]) -> int:
    """Run one command; returns the exit code: 0 fine, 1 check, 2 usage, 3 data, 4 weights, 5 contract."""
    usage_error: type[Exception] = typer.BadParameter.__mro__[1]  # typer keeps click's UsageError private
    try:
        code = app(list(arguments), prog_name="midog", standalone_mode=False)
    except MidogError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except usage_error as error:
        print(_usage(error, arguments), file=sys.stderr)
        return UsageError.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except BrokenPipeError:
        return 0
    if code == INTERRUPTED:  # typer turns Ctrl-C into this code
        print("stopped: nothing is lost, the same command continues", file=sys.stderr)
    return code if isinstance(code, int) else 0


INTERRUPTED = 130
HABITS = {
    "--lr": "--set each.training.lr=1e-4",
    "--learning-rate": "--set each.training.lr=1e-4",
    "--epochs": "--set each.training.epochs=30",
    "--batch-size": "--set each.training.batch=32",
    "--batch": "--set each.training.batch=32",
    "--seed": "--set seed=1",
    "--resume": "repeat the same command: it resumes by itself",
    "--device": "leave it out: a GPU is used where there is one (CUDA_VISIBLE_DEVICES chooses)",
    "--output": "-o PATH",
    "--model": "give the bundle as the first argument",
}


def _usage(error: Exception, arguments: Sequence[str]) -> str:
    """A usage error with the option or command that was meant."""
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    wrong = str(getattr(error, "option_name", ""))
    words = [
        name
        for name in _command_names()
        if arguments and difflib.SequenceMatcher(None, name, arguments[0]).ratio() > 0.6
    ]
    fix = HABITS.get(wrong) or next((f"midog {name} --help" for name in words), "midog --help")
    return UsageError(message.rstrip("."), fix).render()


def _command_names() -> list[str]:
    named = [command.name or command.callback.__name__ for command in app.registered_commands if command.callback]
    return named + [group.name for group in app.registered_groups if isinstance(group.name, str)]
