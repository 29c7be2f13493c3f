"""Train the sub-image classifiers of a config: `ray job submit --working-dir . -- python jobs/train.py CONFIG`."""

import sys

import drs_ray

if len(sys.argv) != 2:
    raise SystemExit("usage: python jobs/train.py CONFIG")
try:
    for path in drs_ray.train(drs_ray.load_config(sys.argv[1])):
        print(path)
except drs_ray.DrsError as error:
    print(f"error: {error}", file=sys.stderr)
    raise SystemExit(error.exit_code) from error
