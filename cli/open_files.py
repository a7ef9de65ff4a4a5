"""The limit of open files: every connection is one, and most systems start processes with 1,024."""

import resource


def raise_open_files_limit() -> int:
    """Raise the soft limit to the hard one, which needs no privilege; the limit that holds from now on."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
