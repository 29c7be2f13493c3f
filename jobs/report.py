"""Report runs side by side, near their store: `ray job submit --working-dir . -- python jobs/report.py RUN...`.

Arguments and exit codes are those of `drs-ray report`.
"""

from drs_ray.cli import main

if __name__ == "__main__":
    main("report")
