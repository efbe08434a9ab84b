"""`midog container`: build, test, save and check the image that is submitted, and keep the list of what was."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from midog.errors import CheckFailed, UsageError
from midog.terminal import Json, note, show, wrote
from submission.engine import TAG
from submission.ledger import LEDGER_FILE

container_app = typer.Typer(
    no_args_is_help=True,
    help="Build, test, save and check the image to submit.\n\nIn this order: build, test, save (which runs preflight).",
)
BundleArgument = Annotated[
    str, typer.Argument(help="model.tar.gz, an unpacked bundle, or the word `default`; it must be typed.")
]
Tag = Annotated[str, typer.Option(help="Name of the image.")]
EngineOption = Annotated[str | None, typer.Option("--engine", help="docker or podman; else whichever answers.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print the commands, run nothing.")]
Ledger = Annotated[Path, typer.Option(help="The list of what was saved and sent.")]


@container_app.command()
def build(
    bundle: BundleArgument,
    tag: Tag = TAG,
    engine: EngineOption = None,
    weights: Annotated[str, typer.Option(help="baked into the image, or none: uploaded as a tarball.")] = "baked",
    api: Annotated[str | None, typer.Option(help="exec (one job a process) or invoke (a server).")] = None,
    time_budget: Annotated[
        float | None, typer.Option(help="Seconds after which to walk down to lighter operating points.")
    ] = None,
    base: Annotated[str | None, typer.Option(help="Base image; else the Dockerfile's.")] = None,
    digest: Annotated[str | None, typer.Option(help="sha256:… that pins the base image.")] = None,
    torch: Annotated[str | None, typer.Option(help="base: the base image's; index: the pinned pair from PyPI.")] = None,
    cuda: Annotated[str | None, typer.Option(help="CUDA build that torch must be; none for a CPU build.")] = None,
    submission: Annotated[str | None, typer.Option(help="Submission id, part of the image; default: the time.")] = None,
    from_git: Annotated[str | None, typer.Option(help="Build from `git archive` of this tag alone.")] = None,
    engine_arg: Annotated[list[str] | None, typer.Option(help="For the engine's build command; repeatable.")] = None,
    dry_run: DryRun = False,
) -> None:
    """Build the image of a bundle."""
    from midog.bundle import open_bundle
    from submission import container
    from submission.engine import Engine, find_engine

    given = {"submission": submission} if submission else {}
    plan = container.Build(
        weights, base, digest, torch, cuda, api, time_budget, arguments=tuple(engine_arg or ()), **given
    )
    opened = open_bundle(bundle)
    if dry_run:
        command = container.build_command(Engine(engine or "docker"), "CONTEXT", tag, plan, "COMMIT")
        print(shlex.join(command))
        return
    note(f"bundle {bundle}: sha256 {opened.digest}, weights {weights}")
    made = container.build_image(find_engine(engine), opened, tag, plan, from_git)
    note(f"built {tag}, {made}\nnext: midog container test {bundle} --tag {tag}")


@container_app.command()
def test(
    bundle: BundleArgument,
    tag: Tag = TAG,
    engine: EngineOption = None,
    no_engine: Annotated[bool, typer.Option("--no-engine", help="A plain process without network instead.")] = False,
    weights: Annotated[
        str, typer.Option(help="baked: the image's; none: the bundle is mounted as uploaded.")
    ] = "baked",
    patches: Annotated[
        Path | None, typer.Option(help="Patch table: its test rows make the stacks; else drawn.")
    ] = None,
    memory: Annotated[float, typer.Option(help="GB a job may hold.")] = 15.0,
    gpu: Annotated[bool, typer.Option("--gpu", help="Let the container see the GPUs.")] = False,
    stacks: Annotated[
        int, typer.Option(min=0, help="Random stacks beside the check-list, answered by one server, such as 300.")
    ] = 0,
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder for jobs and outputs.")] = Path("container-test"),
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Run the image on generated jobs under the platform's whole contract; one verdict per line of the check-list."""
    from submission import proof

    if no_engine and engine:
        raise UsageError("--engine and --no-engine", "leave one of them out")
    if no_engine and gpu:
        raise UsageError("--gpu and --no-engine: a plain process is shown no GPU", "leave one of them out")
    plan = proof.Proof(bundle, tag, engine, not no_engine, weights, patches, int(memory * 1e9), gpu, out, stacks)
    if dry_run:
        print(proof.command(plan))
        return
    result = proof.prove(plan, note)
    show(result.plain(), result.text(), as_json)
    wrote(out, "" if result.failed else f"midog container save {bundle} --tag {tag} -o image.tar.gz")
    if result.failed:
        raise CheckFailed(f"{len(result.failed)} lines of the check-list fail", "see them above; nothing was uploaded")


@container_app.command()
def save(
    bundle: BundleArgument,
    tag: Tag = TAG,
    engine: EngineOption = None,
    out: Annotated[Path, typer.Option("-o", "--out", help="Archive to write, .tar.gz.")] = Path("image.tar.gz"),
    weights: Annotated[str, typer.Option(help="baked, or none: the tarball is uploaded beside the image.")] = "baked",
    ledger: Ledger = Path(LEDGER_FILE),
    dry_run: DryRun = False,
) -> None:
    """Write the image as an archive, check it as the upload will, and enter it in the ledger."""
    from submission import container, upload
    from submission.engine import Engine, find_engine

    if dry_run:
        print(f"{shlex.join(container.save_command(Engine(engine or 'docker'), tag))} | gzip -n -1 > {out}")
        return
    found = find_engine(engine)
    container.image_digest(found, tag)
    saved = upload.save(found, tag, bundle, out, weights, ledger, note)
    print(saved.text())
    wrote(out)
    if not saved.checked.good:
        raise CheckFailed("this archive is not fit to be uploaded", "see the failing lines above")


@container_app.command()
def preflight(
    archive: Annotated[Path, typer.Argument(help="A saved image, ours or not: .tar, .tar.gz, .tar.xz.")],
    bundle: Annotated[str | None, typer.Option(help="The bundle that was tested: must be the one inside.")] = None,
    ledger: Ledger = Path(LEDGER_FILE),
    as_json: Json = False,
) -> None:
    """Check a saved archive against the platform's upload rules."""
    from submission.archive import preflight as check

    result = check(archive, bundle=bundle, ledger=ledger)
    show(result.plain(), result.text(), as_json)
    if not result.good:
        raise CheckFailed("this archive is not fit to be uploaded", "see the failing lines above")


@container_app.command("list")
def list_(
    ledger: Ledger = Path(LEDGER_FILE),
    sent: Annotated[str | None, typer.Option(help="Digest or id that was uploaded.")] = None,
    score: Annotated[
        list[str] | None, typer.Option(help="What the site reported: DIGEST or ID, then METRIC=VALUE; repeatable.")
    ] = None,
    as_json: Json = False,
) -> None:
    """What was saved and sent, our cross-fitted scores beside the site's."""
    from midog.report.text import text_table
    from submission import upload
    from submission.ledger import ledger_table, mark_sent, read_ledger

    if sent:
        mark_sent(ledger, sent)
    if score:
        upload.enter_scores(ledger, score)
    rows = ledger_table(read_ledger(ledger))
    show({"rows": rows}, text_table(rows) if rows else f"nothing in {ledger} yet: midog container save BUNDLE", as_json)
