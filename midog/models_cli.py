"""`midog models`: which backbones there are, what they cost, and how their published weights come to this machine."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from midog.terminal import Json, note, show, wrote

models_app = typer.Typer(
    no_args_is_help=True,
    help="List the backbones, fetch their published weights, check a weight file.\n\n"
    "Only `pull` talks to the network. Gated weights: ask for access on the model's page, then `hf auth login` once.",
)
MICRO = "test_"
"""Prefix of the micro-models of the tests."""
LEGEND = (
    "M: million parameters. px: side of the input. GFLOP: one patch forward, a multiply-add being two.\n"
    "MB: the backbone in a bundle (float16).\n"
    "LoRA GB: memory of a training step of 32 patches in bfloat16. gated: ask for access on the model's page first.\n"
    "next: midog models pull NAME DIR"
)
Name = Annotated[str, typer.Argument(help="A backbone: a name of `midog models list`, or timm/NAME.")]


@models_app.command("list")
def list_(
    everything: Annotated[bool, typer.Option("--all", help="Also the micro-models of the tests.")] = False,
    as_json: Json = False,
) -> None:
    """The backbones by name: pathology first, then natural images; size, memory and work per patch."""
    from midog import progress
    from midog.models.backbones import find_backbone, list_backbones
    from midog.models.cost import describe
    from midog.models.records import pathology
    from midog.report.text import text_table

    names = [name for name in list_backbones() if everything or not name.startswith(MICRO)]
    rows = [describe(find_backbone(name)) for name in progress.track(names, "counting", len(names))]
    slides = {record["name"] for record in pathology.RECORDS}
    groups = {
        "pathology": [row for row in rows if row["name"] in slides],
        "natural images": [row for row in rows if row["name"] not in slides],
    }
    text = "\n\n".join(f"{group}\n{text_table([_short(row) for row in of])}" for group, of in groups.items())
    show(groups, f"{text}\n\n{LEGEND}", as_json)


def _short(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of `describe` as the table shows it."""
    lora = row["lora_gb"]
    return {
        "name": row["name"],
        "M": f"{row['parameters_m']:.1f}".rjust(6),
        "px": row["input"],
        "patch": row["patch"],
        "features": row["features"],
        "pooling": row["pooling"],
        "GFLOP": f"{row['gflop']:.1f}".rjust(5),
        "MB": row["weights_mb"],
        "LoRA GB": None if lora is None else f"{lora:.1f}".rjust(7),
        "gated": row["gated"],
        "licence": row["licence"],
    }


@models_app.command()
def pull(
    name: Name,
    folder: Annotated[
        Path, typer.Argument(help="Where weights are kept; default: MIDOG_WEIGHTS.", envvar="MIDOG_WEIGHTS")
    ],
    file: Annotated[
        Path | None, typer.Option(help="A file that you downloaded yourself: checked, converted, stored in DIR.")
    ] = None,
) -> None:
    """Fetch the published weights of a backbone, once; stored as safetensors.

    The token is HF_TOKEN, or the login that `hf auth login` stored. A transfer that broke off continues when the
    command is repeated. Pickled checkpoints are read as tensors alone: code inside is refused, never executed.
    """
    from midog.models import pull as pulling
    from midog.models.backbones import find_backbone

    note(pulling.licence_note(find_backbone(name)))
    pulled = pulling.pull(name, folder, file)
    if pulled.found:
        print(f"{pulled.path} is there already and fits {pulled.name}: nothing to do")
        return
    at = f"{pulled.source} at {pulled.commit}" if pulled.commit else pulled.source
    print(f"{pulled.name} from {at}\nsha256 {pulled.sha256}, {pulled.bytes / 1e6:.1f} MB")
    if pulled.converted:
        print("converted from a pickled checkpoint: tensors only, under their own names")
    wrote(pulled.path, f"midog models verify {pulled.name} {pulled.path}")


@models_app.command()
def verify(
    name: Name,
    file: Annotated[Path, typer.Argument(help="The weight file.")],
    as_json: Json = False,
) -> None:
    """Check that a file holds a backbone's weights: every tensor there, right shapes, finite numbers, known hash."""
    from midog.models.verify import verify as check

    verified = check(name, file)
    hashed = (
        "as recorded"
        if verified.recorded
        else "none is recorded to compare with: another model of the same architecture would fit as well"
    )
    lines = [
        f"{file} fits {verified.name}: {verified.parameters:,} parameters, all there and finite",
        f"layout   {verified.layout}, {verified.tensors} tensors in the file",
        f"sha256   {verified.sha256} ({hashed})",
    ]
    if verified.commit:
        lines.append(f"source   {verified.source} at {verified.commit}")
    show(verified.plain(), "\n".join(lines), as_json)
