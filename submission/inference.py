"""The container's entry point: read one stack of patches, classify every page, write the challenge's JSON.

    python -m submission.inference [--input DIR] [--output DIR] [--model PATH] [--api exec|invoke] [--time-budget S]

Copied to /opt/app/inference.py beside the packages, it runs as it is. stdout tells what was used; stderr holds warnings
only, and after a failure its last line is the problem and its fix.
"""

from __future__ import annotations

import argparse
import io
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from midog.errors import MidogError
from submission.answers import make_answers, write_answers
from submission.challenge import TRACK2
from submission.stack import read_job

if TYPE_CHECKING:
    from midog.bundle import Bundle

LONGEST = 2000  # characters of a log line


def answer(input_dir: Path, output_dir: Path, load: Callable[[], Bundle], budget: float | None = None) -> None:
    """Answer one job with the bundle that `load` gives, in `budget` seconds where possible. Raises: MidogError."""
    started = time.monotonic()

    # Read: nothing heavy is imported before the input is known to be good.
    stack = read_job(input_dir)
    warn(stack.notes)

    # Predict
    bundle = load()
    ready = time.monotonic()
    if budget is None:
        result = bundle.predict(stack.pages, mpp=None)
    else:
        from submission.model import predict_by

        result = predict_by(started + budget, bundle, stack.pages)
    warn(result.notes)

    # Write
    written = write_answers(output_dir, make_answers(result.confidence, result.atypical), len(stack))
    done = time.monotonic()
    times = f"start {ready - started:.1f} s, inference {done - ready:.1f} s"
    say(f"{len(stack)} pages; {times}, peak memory {peak_megabytes()} MB; wrote {written}")


def load_bundle(model: Path | str | None) -> Bundle:
    """The bundle to use, at its operating point, announced on stdout. Raises: MidogError."""
    started = time.monotonic()
    from midog.archive import bundle_path
    from midog.bundle import open_bundle
    from submission.model import banner, choose_use, find_model, import_heavy, warn_of_processor

    path = bundle_path(model or find_model(os.environ))
    import_heavy()
    imported = time.monotonic()
    bundle = open_bundle(path)
    bundle = bundle.at(choose_use(os.environ, bundle.blend.points))
    say(banner(bundle, path))
    say(f"imports {imported - started:.1f} s, bundle checked in {time.monotonic() - imported:.1f} s")
    warn([warn_of_processor()])
    return bundle


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 answered, 1 unexpected, 2 usage, 3 data, 4 weights, 5 input, output or an unsafe bundle."""
    options = read_options(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # one byte that is no UTF-8 can hang a job
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        if options.api == "invoke":
            from submission.server import serve

            status: int = serve(options.input, options.output, partial(load_bundle, options.model), options.time_budget)
            return status
        answer(options.input, options.output, partial(load_bundle, options.model), options.time_budget)
    except Exception as error:
        return explain(error)
    return 0


def read_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line; the image sets its defaults by environment variables."""
    parser = argparse.ArgumentParser(description="Classify the mitotic figures of one challenge job.")
    parser.add_argument("--input", type=Path, default=TRACK2.input_dir, metavar="DIR", help="job folder")
    parser.add_argument("--output", type=Path, default=TRACK2.output_dir, metavar="DIR", help="where the JSON goes")
    parser.add_argument("--model", metavar="PATH", help="bundle: model.tar.gz, an unpacked folder, or default")
    parser.add_argument(
        "--api",
        choices=TRACK2.api_methods,
        default=os.environ.get(TRACK2.api_variable) or TRACK2.api_methods[0],
        help=f"exec answers one job and ends, invoke serves port {TRACK2.port} (default: {TRACK2.api_variable}, exec)",
    )
    parser.add_argument(
        "--time-budget",
        type=seconds,
        default=os.environ.get(TRACK2.budget_variable) or None,
        metavar="SECONDS",
        help="walk down to lighter operating points when the end would come later; "
        "off by default, because an answer should not depend on the clock",
    )
    options = parser.parse_args(arguments)
    if options.api not in TRACK2.api_methods:  # argparse trusts a default
        parser.error(f"{TRACK2.api_variable}={options.api} is none of {', '.join(TRACK2.api_methods)}")
    return options


def seconds(text: str) -> float:
    """A positive number of seconds. Raises: ArgumentTypeError."""
    value = float(text) if text.replace(".", "", 1).isdigit() else 0.0
    if value <= 0:
        raise argparse.ArgumentTypeError(f"{text} is no positive number of seconds")
    return value


def explain(error: Exception) -> int:
    """Say on stderr what went wrong, the problem and its fix last; returns the exit status."""
    if isinstance(error, MidogError):
        warn(error.details)
        return fail(f"{error.kind}: {error.problem}", error.fix, error.exit_code)
    traceback.print_exc()
    if isinstance(error, MemoryError):
        return fail("out of memory", f"choose a lighter operating point, such as {TRACK2.use_variable}=fast", 1)
    return fail(f"unexpected: {type(error).__name__}: {error}", "report it with the lines above", 1)


def peak_megabytes() -> int:
    """The most memory this process has held, in MB."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit // 1_000_000


def say(text: str) -> None:
    print(_line(text), flush=True)


def warn(notes: Sequence[str]) -> None:
    for note in notes:
        if note:
            print(_line(note), file=sys.stderr, flush=True)


def fail(problem: str, fix: str, status: int) -> int:
    """The last line of stderr, which is all that a participant is shown."""
    warn([f"{problem}; fix: {fix}" if fix else problem])
    return status


def _line(text: str) -> str:
    return " ".join(text.split())[:LONGEST]


if __name__ == "__main__":
    sys.exit(main())
