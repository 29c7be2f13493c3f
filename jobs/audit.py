"""Derive every radius of a run again from its counts, by separate code, on a cluster near the run's store.

`ray job submit --working-dir . -- python jobs/audit.py RUN`. The cluster needs the extra `audit`, but no GPU. Arguments
and exit codes are those of `drs-ray audit`.
"""

from drs_ray.cli import main

if __name__ == "__main__":
    main("audit")
