"""Derive every radius of a run again from its counts, by other code, on a node of the cluster that is near its store.

`ray job submit --working-dir . -- python jobs/audit.py RUN`. Needs the extra `audit` there, no GPU. Arguments and exit
codes are those of `drs-ray audit`.
"""

from drs_ray.cli import main

if __name__ == "__main__":
    main("audit")
