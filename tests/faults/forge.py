"""Starts `octavo <verb>` as forks of one process that has imported everything, so that a kill costs no new imports.

Reads one JSON object a line: {"argv", "root", "log", "inject"} starts a verb in a process group of its own and answers
with its process id; {"wait": pid} answers with its exit status (negative: the signal that ended it).
"""

from __future__ import annotations

import json
import os
import sys
import time
from datetime import UTC, datetime, timedelta


def imports() -> None:
    """What every verb needs, once."""
    from octavo.cpu.backend import install

    install()
    import matplotlib.pyplot  # noqa: F401
    import pandas  # noqa: F401
    import torch._dynamo  # noqa: F401
    import typst  # noqa: F401

    import octavo.accounting.ledger
    import octavo.cli
    import octavo.evidence.aggregate
    import octavo.evidence.verdicts
    import octavo.report.content
    import octavo.report.figures
    import octavo.report.html
    import octavo.report.inputs
    import octavo.report.paint
    import octavo.report.pdf
    import octavo.training.trainer
    import octavo.verification.verify  # noqa: F401


def inject(fault: str | None) -> None:
    """Break something inside this process."""
    from octavo.training import journal, step, trainer

    trainer.STARTED = datetime.now(UTC)
    if fault == "clock":
        behind, now = timedelta(days=1), time.time

        class Behind(datetime):
            @classmethod
            def now(cls, tz=None):  # type: ignore[no-untyped-def]
                return datetime.now(tz) - behind

        time.time = lambda: now() - behind.total_seconds()
        trainer.STARTED -= behind
        journal.datetime = Behind  # type: ignore[misc]
    if fault == "nan":
        whole = step.Stepper.step

        def broken(self, number, *rest, **more):  # type: ignore[no-untyped-def]
            if number == 9:
                parameter = next(one for one in self._chunks[0].parameters() if one.dim() == 1)  # a norm's: all use it
                parameter.data.view(-1)[0] = float("nan")
            return whole(self, number, *rest, **more)

        step.Stepper.step = broken  # type: ignore[method-assign]


def child(order: dict) -> None:
    """The verb, in a process group of its own; never returns."""
    os.setsid()
    os.chdir(order["root"])
    os.environ["OCTAVO_ROOT"] = order["root"]
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    sys.argv = ["octavo", *order["argv"]]
    status = 1
    try:
        inject(order.get("inject"))
        from octavo.cli import main

        main()
        status = 0
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def serve() -> None:
    """Until the input ends."""
    imports()
    print(json.dumps("ready"), flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            _, ended = os.waitpid(order["wait"], 0)
            answer = os.waitstatus_to_exitcode(ended)
        else:
            answer = os.fork()
            if answer == 0:
                child(order)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    serve()
