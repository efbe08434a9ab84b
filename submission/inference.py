"""The container's entry point: read one stack of patches, classify every page, write the challenge's JSON.

    python -m submission.inference [--input DIR] [--output DIR] [--model PATH]

Copied to /opt/app/inference.py beside the packages, it runs as it is. stdout tells what was used; stderr holds warnings
only, and after a failure its last line is the problem and its fix.
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path

from midog.errors import MidogError
from submission.answers import make_answers, write_answers
from submission.challenge import TRACK2
from submission.stack import read_job

LONGEST = 2000  # characters of a log line


def answer(input_dir: Path, output_dir: Path, model: Path | None) -> None:
    """Answer one job. Raises: MidogError."""
    started = time.monotonic()

    # Read: nothing heavy is imported before the input is known to be good.
    stack = read_job(input_dir)
    warn(stack.notes)

    # Predict
    from midog.bundle import open_bundle
    from submission.model import banner, choose_use, find_model, warn_of_processor

    path = model or find_model(os.environ)
    bundle = open_bundle(path)
    bundle = bundle.at(choose_use(os.environ, bundle.blend.points))
    say(banner(bundle, path))
    warn([warn_of_processor()])
    ready = time.monotonic()
    result = bundle.predict(stack.pages, mpp=None)
    warn(result.notes)

    # Write
    written = write_answers(output_dir, make_answers(result.confidence, result.atypical), len(stack))
    done = time.monotonic()
    say(f"{len(stack)} pages, start {ready - started:.1f} s, inference {done - ready:.1f} s; wrote {written}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit status: 0 answered, 1 unexpected, 2 usage, 3 data, 4 weights, 5 input, output or an unsafe bundle."""
    parser = argparse.ArgumentParser(description="Classify the mitotic figures of one challenge job.")
    parser.add_argument("--input", type=Path, default=TRACK2.input_dir, metavar="DIR", help="job folder")
    parser.add_argument("--output", type=Path, default=TRACK2.output_dir, metavar="DIR", help="where the JSON goes")
    parser.add_argument("--model", type=Path, metavar="PATH", help="bundle: model.tar.gz or an unpacked folder")
    options = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # one byte that is no UTF-8 can hang a job
            stream.reconfigure(encoding="utf-8", errors="backslashreplace")
    try:
        answer(options.input, options.output, options.model)
    except MidogError as error:
        warn(error.details)
        return fail(f"{error.kind}: {error.problem}", error.fix, error.exit_code)
    except MemoryError:
        traceback.print_exc()
        return fail("out of memory", f"choose a lighter operating point, such as {TRACK2.use_variable}=fast", 1)
    except Exception as error:
        traceback.print_exc()
        return fail(f"unexpected: {type(error).__name__}: {error}", "report it with the lines above", 1)
    return 0


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
