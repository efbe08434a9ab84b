"""`midog train`, `midog status`, `midog recipes`: carrying out a recipe."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from midog.errors import UsageError
from midog.terminal import Json, note, show, wrote

if TYPE_CHECKING:
    from midog.data.patches import PatchTable
    from midog.run import Run
    from midog.training.launch import Place
    from midog.training.machine import Machine
    from midog.training.source import Recipe

recipes_app = typer.Typer(no_args_is_help=True, help="List, show or copy the recipes that ship with the package.")
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
        str | None, typer.Option(help="GPUs to use, as 0,1; default: all, a fold on each; 0,0,0 puts three on one.")
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
    from midog.training.launch import find_place, train_recipe
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
        names = [] if varied is None else list(varied.recipes)
        place = find_place(pretrained, machine=machine, gpus=_gpus(gpus), slurm=slurm)
        _dry_run(loaded, table, place, machine if slurm else place.machine, member, names, as_json)
        return
    folder = out or Path("runs") / (Path(recipe).stem + ("" if varied is None else "-grid"))
    options: dict[str, Any] = {"members": member, "folds": fold, "pretrained": pretrained, "threads": threads}
    options |= {"machine": machine, "gpus": _gpus(gpus), "slurm": slurm, "report": note}
    if varied is not None:
        train_grid(varied.grid, varied.base, varied.recipes, table, folder, **options)
        wrote(folder, next_command=f"midog compare {folder} --by scanner")
        return
    wrote(folder, next_command=_next_command(train_recipe(loaded, table, folder, **options)))


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


def _dry_run(
    recipe: Recipe,
    table: PatchTable,
    place: Place,
    here: Machine,
    members: list[str] | None,
    runs: list[str],
    as_json: bool,
) -> None:
    """Prove each member on `here`, and say what it costs: of `runs`, the grid's where there is one, the first."""
    from midog.training.dry_run import dry_run
    from submission.challenge import TRACK2

    dry = dry_run(recipe, table, place.pretrained, here, members)
    grid, said = {"runs": runs} if runs else {}, dry.text()
    if runs:
        said = "\n".join([f"{len(runs)} runs, of which the first is proved:", *runs, "", said])
    said += f"\n  the platform may stop a job after {TRACK2.stack_seconds:.0f} s; its GPU has 16 GB"
    asked = {} if place.cluster is None else {"slurm": asdict(place.cluster)}
    if place.cluster is not None:
        said += f"\n  times above are this machine's; on the cluster each fold is a job: {place.cluster}"
    show({**grid, **dry.to_dict(), **asked}, said, as_json)


def _swapped(recipe: str, patches: Path) -> None:
    if recipe.endswith(".csv") and not patches.suffix == ".csv":
        raise UsageError("the arguments are swapped", f"midog train {patches} {recipe}")


def _next_command(run: Run) -> str:
    """Blend the members that are trained on every fold; where none is, see what is left to do."""
    whole = [name for name in run.members if all(run.done(name, k) for k in range(len(run.fold_names)))]
    if not whole:
        return f"midog status {run.path}"
    words = [str(run.path)] if len(whole) == len(run.members) else [f"{run.path}:{name}" for name in whole]
    return f"midog blend {' '.join(words)} -o blends/{run.path.name}"


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
