"""Reduce a run again, near its store: `ray job submit --working-dir . -- python jobs/reduce.py RUN --alpha 0.01`.

Arguments and exit codes are those of `drs-ray reduce`.
"""

from drs_ray.cli import main

if __name__ == "__main__":
    main("reduce")
