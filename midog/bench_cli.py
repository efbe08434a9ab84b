"""`midog bench`: speed as a ratio to a plain baseline in the same run: absolute times on a busy machine say little."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from midog.terminal import Json, show

bench_app = typer.Typer(no_args_is_help=True, help="Measure speed as a ratio to a plain baseline in the same run.")
Backbone = Annotated[
    str | None, typer.Option(help="A backbone by name (midog models list), with random weights; LoRA of rank 8.")
]


def _print(rows: Sequence[dict[str, Any]], as_json: bool) -> None:
    from midog.report.text import text_table

    show({"rows": list(rows)}, text_table(rows), as_json)


@bench_app.command()
def augment(as_json: Json = False) -> None:
    """Augmentation against albumentations' own, and the whole `paper` kind."""
    from midog.bench.augment import measure

    _print(measure(), as_json)


@bench_app.command()
def train(
    backbone: Backbone = None,
    patches: Annotated[int, typer.Option(min=16, help="Patches in the epoch.")] = 320,
    precision: Annotated[str, typer.Option(help="auto, float32, bf16 or fp16.")] = "auto",
    checkpointing: Annotated[bool, typer.Option("--checkpointing", help="Compute activations again.")] = False,
    compile_: Annotated[bool, typer.Option("--compile", help="Let torch.compile fuse the network.")] = False,
    as_json: Json = False,
) -> None:
    """An epoch against a plain loop: patches a second, waiting, memory, utilisation. Without a name: cpu-small's."""
    from midog.bench.train import measure
    from midog.training.machine import Machine

    machine = Machine(precision=precision, checkpointing=checkpointing, compile=compile_)
    _print(measure(backbone, patches, machine=machine), as_json)


@bench_app.command()
def ensemble(as_json: Json = False) -> None:
    """The search for weights and the case bootstrap against plain loops over the libraries."""
    from midog.bench.ensemble import measure

    _print(measure(), as_json)


@bench_app.command()
def predict(
    backbone: Annotated[str, typer.Option(help="A backbone by name (midog models list).")] = "vit_small_patch16_224",
    folds: Annotated[int, typer.Option(min=1, help="Fold models on the backbone.")] = 4,
    patches: Annotated[int, typer.Option(min=1, help="Patches to predict.")] = 32,
    as_json: Json = False,
) -> None:
    """Several fold models on one backbone against bare forward loops: time and memory."""
    from midog.bench.predict import measure

    _print(measure(backbone, folds, patches), as_json)


@bench_app.command("cold-start")
def cold_start(
    backbone: Backbone = None,
    copies: Annotated[int, typer.Option(min=1, help="With --backbone: members, each on its own.")] = 4,
    folds: Annotated[int, typer.Option(min=1, help="With --backbone: fold models of each.")] = 5,
    pages: Annotated[int, typer.Option(min=1, help="With --backbone: pages of the job.")] = 2,
    as_json: Json = False,
) -> None:
    """From nothing to an answered job against the least it can take: the demo's bundle, or several big backbones."""
    from midog.bench import cold_start as bench

    _print(bench.measure_copies(backbone, copies, folds, pages) if backbone else bench.measure(), as_json)
