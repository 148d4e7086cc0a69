"""The worker process, ``python -m harness.run``: waits for its job, then imports what the job needs.

The parent places this process under its memory limit before it writes the job to standard input, so that all
imports below that line are charged to the limit.
"""

from __future__ import annotations

import sys

from harness.run.enter import end_with_parent


def main() -> None:
    end_with_parent()  # a killed run leaves no worker behind
    text = sys.stdin.readline()
    from harness.run.worker import work

    work(text)


if __name__ == "__main__":
    main()
