"""Certify on the cluster of this job: `ray job submit --working-dir . -- python jobs/certify.py CONFIG`.

Arguments and exit codes are those of `drs-ray certify`; the default address is `auto`, which means this cluster.
"""

from drs_ray.cli import main

if __name__ == "__main__":
    main("certify", "--address", "auto")
