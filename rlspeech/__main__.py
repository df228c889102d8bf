"""Entry point of the console script, and of ``python -m rlspeech``, which ``torchrun -m`` and ``accelerate launch -m`` use as well.

It makes good what a shell, a service or a scheduler may have left out, before anything is imported.
"""

import os
import sys


def main() -> None:
    """Run the command line."""
    try:
        _complete()
        from rlspeech.cli import main as run
    except KeyboardInterrupt:  # while the commands are imported
        sys.exit(130)
    run()


def _complete() -> None:
    """Give the process its three streams, and file names in UTF-8 whatever the locale: one that ASCII does not have must not end a run."""
    for number in range(3):  # a closed one (`2>&-`) would be the next file that is opened
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdin", "stdout", "stderr"):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r" if name == "stdin" else "w", encoding="utf-8"))
    if sys.getfilesystemencoding().lower() != "utf-8" and os.environ.get("PYTHONUTF8") != "1":
        os.environ["PYTHONUTF8"] = "1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


if __name__ == "__main__":
    main()
