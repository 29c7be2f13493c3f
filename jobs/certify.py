"""Certify on the cluster that this is submitted to: `ray job submit --working-dir . -- python jobs/certify.py CONFIG`.

Arguments and exit codes are those of `drs-ray certify`; the address is `auto`, the cluster's own, unless one is given.
"""

from drs_ray.cli import main

if __name__ == "__main__":
    main("certify", "--address", "auto")
