"""The command line: one function call per command, imports inside the commands, and the only place that prints."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from midog.bench_cli import bench_app
from midog.container_cli import container_app
from midog.errors import CheckFailed, MidogError, UsageError
from midog.models_cli import models_app
from midog.terminal import Json, note, show, wrote

DATA, TRAIN, ENSEMBLE, SUBMIT, LOOK = "1 data", "2 train", "3 ensemble", "4 submit", "look"

app = typer.Typer(
    help="Train, blend, pack and submit an ensemble for MIDOG 2025 Track 2: atypical or normal mitotic figure.\n\n"
    "A campaign is six commands: check, train, blend, bundle, predict, evaluate. `midog demo` shows all of it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
data_app = typer.Typer(no_args_is_help=True, help="Download a public data set.")
recipes_app = typer.Typer(no_args_is_help=True, help="List, show or copy the recipes that ship with the package.")
app.add_typer(data_app, name="data", rich_help_panel=DATA)
app.add_typer(recipes_app, name="recipes", rich_help_panel=TRAIN)
app.add_typer(models_app, name="models", rich_help_panel=TRAIN)
app.add_typer(container_app, name="container", rich_help_panel=SUBMIT)
app.add_typer(bench_app, name="bench", rich_help_panel=LOOK)


class By(str, Enum):
    """What a result can be split by."""

    domain = "domain"
    tumour = "tumour"
    scanner = "scanner"
    laboratory = "laboratory"


SetOption = Annotated[
    list[str] | None, typer.Option("--set", help="Override a value of the recipe: members.uni.training.lr=5e-5")
]
Pretrained = Annotated[
    Path | None, typer.Option(help="Folder or file of pretrained weights; else MIDOG_WEIGHTS. Never downloaded here.")
]
Precision = Annotated[str, typer.Option(help="auto, float32, bf16 or fp16; auto is bf16 on a GPU that computes it.")]
Checkpointing = Annotated[
    bool, typer.Option("--checkpointing", help="Compute activations again: less memory, a third more work.")
]
Compile = Annotated[bool, typer.Option("--compile", help="Let torch.compile fuse the network; bench train tells.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; the weights of a run depend on it, so keep it.")]


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


@app.command(rich_help_panel=TRAIN)
def train(
    recipe: Annotated[str, typer.Argument(help="A recipe: name (midog recipes list) or YAML file.")],
    patches: Annotated[Path, typer.Argument(help="The patch table that `midog check` wrote.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Run folder; default: runs/<recipe>.")] = None,
    member: Annotated[list[str] | None, typer.Option(help="Only this member (repeatable).")] = None,
    fold: Annotated[list[str] | None, typer.Option(help="Only this fold (repeatable).")] = None,
    sets: SetOption = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            help="A grid of runs: augment.fisheye=off,on (repeatable; a key of every member, baseline first)."
        ),
    ] = None,
    seeds: Annotated[
        str | None, typer.Option(help="With --vary: each combination with each of these, as 0,1,2.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the recipe, prove each member for real, say what it will cost.")
    ] = False,
    pretrained: Pretrained = None,
    gpus: Annotated[
        str | None, typer.Option(help="GPUs to use, as 0,1; default: every visible one, a fold on each.")
    ] = None,
    slurm: Annotated[
        str, typer.Option(help="Submit to a SLURM cluster: partition=gpu,time=8:00:00 and more, see above.")
    ] = "",
    threads: Threads = None,
    precision: Precision = "auto",
    checkpointing: Checkpointing = False,
    compile_: Compile = False,
    as_json: Annotated[bool, typer.Option("--json", help="With --dry-run: the costs as JSON.")] = False,
) -> None:
    """Train every member on every fold that is not done yet. The same command continues after a stop.

    With several GPUs, or --slurm, each fold is a process of its own (job.log in its folder) that is started again when
    it dies. On a cluster it is a job, requeued at its time limit; --slurm takes partition, time, cpus (4), gpus (1),
    mem, account, qos, constraint. This command waits for the jobs, which go on without it; see `midog status`.

    With --vary, an ordinary run for each combination and seed in the folder -o, such as fisheye=off,crop=64,seed=0;
    a run that fails does not stop the others. `midog compare FOLDER` says what each ingredient is worth.
    """
    from midog import api
    from midog.recipe import load_recipe
    from midog.training.grid import train_grid
    from midog.training.launch import train_recipe
    from midog.training.machine import Machine
    from midog.variation import vary_recipe

    _swapped(recipe, patches)
    if seeds is not None and not vary:
        raise UsageError(f"--seeds {seeds} without --vary", "--set seed=1 for one seed, or --vary KEY=VALUE,VALUE too")
    varied = vary_recipe(recipe, vary, _numbers("--seeds", seeds), sets or ()) if vary else None
    loaded = load_recipe(recipe, sets or ()) if varied is None else next(iter(varied.recipes.values()))
    table = api.as_table(patches)
    machine = Machine(threads=threads, precision=precision, checkpointing=checkpointing, compile=compile_)
    if dry_run:
        from midog.training.dry_run import dry_run as prove_all
        from submission.challenge import TRACK2

        dry = prove_all(loaded, table, pretrained, machine, member)
        limit = f"  the platform may stop a job after {TRACK2.stack_seconds:.0f} s; its GPU has 16 GB"
        names = [] if varied is None else list(varied.recipes)
        whole = "\n".join([f"{len(names)} runs, of which the first is proved:", *names, "", ""]) if names else ""
        show({**({"runs": names} if names else {}), **dry.to_dict()}, f"{whole}{dry.text()}\n{limit}", as_json)
        return
    folder = out or Path("runs") / (Path(recipe).stem + ("" if varied is None else "-grid"))
    options: dict[str, Any] = {"members": member, "folds": fold, "pretrained": pretrained, "threads": threads}
    options |= {"machine": machine, "gpus": _gpus(gpus), "slurm": slurm, "report": note}
    if varied is not None:
        train_grid(varied.grid, varied.base, varied.recipes, table, folder, **options)
        wrote(folder, next_command=f"midog compare {folder} --by scanner")
        return
    train_recipe(loaded, table, folder, **options)
    wrote(folder, next_command=f"midog blend {folder} -o blends/{folder.name}")


@app.command(rich_help_panel=TRAIN)
def status(
    run: Annotated[Path | None, typer.Argument(help="A run, or a folder of runs; default: ./runs.")] = None,
    as_json: Json = False,
) -> None:
    """What is done, what runs, what failed, how long the rest takes, and the scores so far."""
    from midog.report.status import is_folder_of_runs, runs_rows, status_rows
    from midog.report.text import text_table

    folder = run or Path("runs")
    rows, folds = runs_rows(folder) if run is None or is_folder_of_runs(folder) else status_rows(folder)
    show({"rows": rows, "folds": folds}, "\n\n".join(map(text_table, [rows, folds] if folds else [rows])), as_json)


@recipes_app.command("list")
def recipes_list(as_json: Json = False) -> None:
    """The recipes that ship with the package, and what each is for."""
    from midog.recipe_source import list_recipes
    from midog.report.text import text_table

    rows = [{"recipe": name, "what for": purpose} for name, purpose in list_recipes().items()]
    show({"recipes": rows}, text_table(rows), as_json)


@recipes_app.command("show")
def recipes_show(name: Annotated[str, typer.Argument(help="A shipped recipe.")]) -> None:
    """Print a shipped recipe."""
    from midog.recipe_source import recipe_text

    print(recipe_text(name), end="")


@recipes_app.command("copy")
def recipes_copy(
    name: Annotated[str, typer.Argument(help="A shipped recipe.")],
    out: Annotated[Path | None, typer.Argument(help="File to write; default: <name>.yaml")] = None,
) -> None:
    """Copy a shipped recipe, to change it."""
    from midog.files import write_text
    from midog.recipe_source import recipe_text

    target = out or Path(f"{name}.yaml")
    if target.exists():
        raise UsageError(f"{target} exists", f"midog recipes copy {name} ANOTHER.yaml")
    wrote(write_text(target, recipe_text(name)), next_command=f"midog train {target} patches.csv --dry-run")


@app.command(rich_help_panel=ENSEMBLE)
def blend(
    runs: Annotated[list[str], typer.Argument(help="Runs, or members of runs as RUN:MEMBER.")],
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Blend folder; default: blends/<run>.")] = None,
    kind: Annotated[str | None, typer.Option(help="tuned, equal or stack.")] = None,
    trials: Annotated[int | None, typer.Option(help="Optuna trials.")] = None,
    views: Annotated[
        str | None, typer.Option(help="none, rot4, d4, stain or d4_stain: views averaged for each patch.")
    ] = None,
    threshold: Annotated[str | None, typer.Option(help="pooled, or across: one that serves each domain.")] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the search and of the cross-fitting.")] = None,
    as_json: Json = False,
) -> None:
    """Tune weights, calibration and threshold on out-of-fold logits, every score cross-fitted by case."""
    from ensemble.oof import split_spec
    from midog import api
    from midog.report.text import text_table

    folder = out or Path("blends") / split_spec(runs[0])[0].name
    result = api.blend_runs(*runs, folder=folder, kind=kind, trials=trials, views=views, threshold=threshold, seed=seed)
    written = result.write(folder)
    show({"rows": result.table()}, text_table([_short_row(row) for row in result.table(by_domain=False)]), as_json)
    wrote(written, next_command=f"midog bundle {folder} -o model.tar.gz")


@app.command(rich_help_panel=ENSEMBLE)
def compare(
    results: Annotated[
        list[str], typer.Argument(help="Two runs, RUN:MEMBER, blends or prediction tables; or the runs of a grid.")
    ],
    by: Annotated[By | None, typer.Option(help="Also within each of these.")] = None,
    truth: Annotated[Path | None, typer.Option(help="Patch table with labels, for prediction tables.")] = None,
    as_json: Json = False,
) -> None:
    """Paired case-bootstrap: which differences are noise. Runs are scored with one view, blends with their own.

    Of the runs that `midog train --vary` made (their folder, or more than two of them): what each varied key is worth,
    averaged over the other keys and the seeds, with intervals over cases and seeds.
    """
    from ensemble.oof import split_spec
    from midog import api
    from midog.grid import is_grid
    from midog.report.ablation import ablation_text
    from midog.report.text import text_table

    group = by.value if by else None
    if len(results) > 2 or any(is_grid(split_spec(name)[0]) for name in results):
        if truth is not None:
            raise UsageError("--truth is for two prediction tables", "leave it out: runs know what is true")
        found = api.compare_grid(*results, by=group)
        show(found.to_dict(), ablation_text(found), as_json)
        return
    if len(results) < 2:
        raise UsageError(f"{results[0]} and what?", f"midog compare {results[0]} ANOTHER, or the folder of a grid")
    a, b = results
    comparison = api.compare_results(a, b, by=group, truth=truth)
    says = f"A is {comparison.a}, B is {comparison.b}: {comparison.verdict} (the bootstrap drew {comparison.drawn})"
    if any(comparison.left_out):
        says += (
            f"; left out: {comparison.left_out[0]} patches that only A has, {comparison.left_out[1]} that only B has"
        )
    content = {"verdict": comparison.verdict, "drawn": comparison.drawn, "rows": comparison.table()}
    show(content, f"{text_table(comparison.table())}\n\n{says}", as_json)


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
) -> None:
    """Pack everything inference needs into one archive, byte-identical when repeated."""
    from midog import api

    written = api.pack_bundle(blend, out, pretrained)
    wrote(written, next_command=f"midog predict {written} patches.csv -o out.csv")


@app.command(rich_help_panel=SUBMIT)
def predict(
    bundle: Annotated[str, typer.Argument(help="A bundle: archive or folder.")],
    what: Annotated[Path, typer.Argument(help="A patch table, a folder of images, a stack, or a job folder.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="CSV to write: patch_id,logit,confidence,class.")],
    use: Annotated[str, typer.Option(help="Operating point: full, fast, only:MEMBER, …, each also with /1.")] = "full",
    split: Annotated[str | None, typer.Option(help="Only this split of a patch table: train or test.")] = None,
) -> None:
    """Classify patches, in input order; `confidence` is the probability of atypical."""
    from midog import api
    from submission.predict import predict_what

    if Path(what).suffix == ".gz" or Path(bundle).suffix == ".csv":
        raise UsageError("the arguments are swapped", f"midog predict {what} {bundle} -o {out}")
    result = predict_what(api.load_bundle(bundle, use=use), what, split=split)
    for line in result.notes:
        note(line)
    wrote(result.write(out), next_command=f"midog evaluate {out} {what}")


@app.command(rich_help_panel=SUBMIT)
def evaluate(
    predictions: Annotated[Path, typer.Argument(help="A table from `midog predict`, or the platform's folder.")],
    truth: Annotated[Path, typer.Argument(help="Labels: a patch table or data set; for a folder ground_truth.json.")],
    by: Annotated[By, typer.Option(help="Scores by these, beside the overall ones.")] = By.domain,
    split: Annotated[str | None, typer.Option(help="Only this split of the truth: train or test.")] = None,
    bundle: Annotated[Path | None, typer.Option(help="Bundle whose training patches are to be recognised.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the official metrics.json object.")] = False,
) -> None:
    """The challenge's metrics, overall and by domain, with case-bootstrap intervals."""
    from submission import evaluate as evaluation

    if predictions.is_dir():
        result = evaluation.evaluate_folder(predictions, truth)
    else:
        result = evaluation.evaluate_predictions(predictions, truth, by=by.value, split=split, bundle=bundle)
    show(result.metrics(), result.text(), as_json)
    if not result.official:
        raise CheckFailed("the official evaluator would have refused this", "see the problems above")


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


def _swapped(recipe: str, patches: Path) -> None:
    if recipe.endswith(".csv") and not patches.suffix == ".csv":
        raise UsageError("the arguments are swapped", f"midog train {patches} {recipe}")


def _gpus(text: str | None) -> list[int] | None:
    return _numbers("--gpus", text, "; CUDA_VISIBLE_DEVICES= hides all of them")


def _numbers(option: str, text: str | None, more: str = "") -> list[int] | None:
    """`0,1,2` → [0, 1, 2]."""
    if text is None:
        return None
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() for word in words):
        raise UsageError(f"{option} {text}: numbers are expected", f"{option} 0,1{more}")
    return [int(word) for word in words]


def _short_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """What fits a terminal of a blend's row; the page and --json have the rest, domains included."""
    names = {
        "name": "blend",
        "n": "n",
        "balanced_accuracy": "BA",
        "balanced_accuracy_interval": "95 %",
        "balanced_accuracy_in_sample": "in-sample",
        "roc_auc": "AUROC",
        "roc_auc_interval": "95 % ",
        "log_loss": "log-loss",
    }
    return {title: row[key] for key, title in names.items()}
