"""Recompute random units of a run on a node of the cluster, and compare their votes with the stored ones.

`ray job submit --working-dir . --entrypoint-num-gpus 1 -- python jobs/verify.py RUN --units 20`: without a GPU the job
runs on the head, which may have no `cuda`. Arguments and exit codes are those of `drs-ray verify`.
"""

from drs_ray.cli import main

if __name__ == "__main__":
    main("verify")
