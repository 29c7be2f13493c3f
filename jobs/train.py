"""Train the sub-image classifiers of a config: `ray job submit --working-dir . -- python jobs/train.py CONFIG`.

Arguments and exit codes are those of `drs-ray train`.
"""

from drs_ray.cli import main

if __name__ == "__main__":
    main("train")
