#!/bin/bash
# A sweep over sigma: one job for each sigma, all on one cluster; further arguments go to drs-ray submit.
#   bash jobs/configs/sweep.sh --address http://127.0.0.1:8265
# Each sigma is a run with its own classifiers: the names of checkpoints and output contain sigma.
set -euo pipefail
for sigma in 0.09 0.18 0.36 0.71; do
    drs-ray submit jobs/configs/cifar10-drs-0.18.yaml --no-wait "$@" \
        --set "classifiers.0.sigma=$sigma" --set "classifiers.1.sigma=$sigma" \
        --set "classifiers.0.checkpoint=s3://my-bucket/checkpoints/cifar10-drs-$sigma-0.safetensors" \
        --set "classifiers.1.checkpoint=s3://my-bucket/checkpoints/cifar10-drs-$sigma-1.safetensors" \
        --set "output=s3://my-bucket/cifar10-drs-$sigma"
done
