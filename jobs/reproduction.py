"""RS against DRS on CIFAR-10, from training to certificates: `make reproduction DATA=DIR`, or any part of it.

Each experiment trains the classifiers of one config of `jobs/configs/reproduction/` and certifies its images, on one
thread; several run at a time. After any interruption, run the same command again: finished checkpoints and stored votes
are kept. See docs/reproduction.md.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Annotated

import typer

from drs_ray.cli.interrupts import interruptible
from drs_ray.config import RunConfig, load_config
from drs_ray.data.datasets import open_dataset
from drs_ray.errors import DrsError, InterruptedRunError

CONFIGS = Path(__file__).parent / "configs" / "reproduction"
PUBLISHED = {"train": "5f6a5743d0b2", "test": "dd2a9f58e487"}
"""First digits of the digests of the data of docs/reproduction.md; other data give a warning."""
SECONDS_BETWEEN_LINES = 60.0


@dataclass(frozen=True)
class Experiment:
    """One run. config: name of its config; changes: overrides of the config; seed: of training and noise.

    after: the experiment of one network, from which training starts. behind: the experiment that trains the
    classifiers, if this one trains denoisers before them. certified: whether the images are certified, or only
    classifiers trained.
    """

    name: str
    config: str
    seed: int = 0
    changes: tuple[str, ...] = ()
    after: Experiment | None = None
    behind: Experiment | None = None
    certified: bool = True

    @property
    def file(self) -> Path:
        """Path of its config."""
        return CONFIGS / f"{self.config}.yaml"

    @property
    def classifiers(self) -> int:
        """Number of classifiers in its config."""
        return _classifiers(self.config)

    @property
    def needs(self) -> tuple[Experiment, ...]:
        """The experiments whose networks it uses."""
        return tuple(other for other in (self.after, self.behind) if other is not None)

    def network(self, sub_image: int) -> str:
        """Path of a network that it trains: of a denoiser's directory, or of a classifier's file without its ending."""
        ending = f"-{sub_image}" if len(load_config(self.file).networks) > 1 else ""
        return f"checkpoints/reproduction/{self.name}{ending}"

    def with_architecture(self, name: str | None) -> Experiment:
        """The same experiment with another architecture and another name; None: unchanged."""
        if name is None:
            return self
        networks = (f"classifiers.{k}.architecture={name}" for k in range(self.classifiers))
        after, behind = (other and other.with_architecture(name) for other in (self.after, self.behind))
        return replace(self, name=f"{self.name}-{name}", changes=(*self.changes, *networks), after=after, behind=behind)

    def settings(self, common: Sequence[str]) -> list[str]:
        """All overrides of the config file: checkpoints and output by the experiment's name, then `common`."""
        indices, classifiers = range(self.classifiers), self.behind or self
        start = [] if self.after is None else [f"training.start_from={self.after.network(0)}.safetensors"]
        if self.behind is not None:
            start += (f"classifiers.{k}.denoiser.checkpoint={self.network(k)}" for k in indices)
        return [
            *(f"classifiers.{k}.checkpoint={classifiers.network(k)}.safetensors" for k in indices),
            f"output=runs/reproduction/{self.name}",
            f"training.seed={self.seed}",
            f"noise.seed={self.seed}",
            *start,
            *self.changes,
            *common,
        ]


@cache
def _classifiers(config: str) -> int:
    return len(load_config(CONFIGS / f"{config}.yaml").classifiers)


_CONSISTENCY = ("training.method=consistency", "training.consistency.kl_weight=5")

_FEWER = ("budget.estimation=12500", "budget.stages=5")
"""Budget of all experiments but the first pair: a difference between two experiments needs no more samples."""


def _pair(sigma: str, seed: int) -> list[Experiment]:
    """RS and DRS; further seeds show how much the figures depend on training."""
    ending = f"-seed{seed}" if seed else ""
    return [Experiment(f"{kind}-{sigma}{ending}", f"{kind}-{sigma}", seed, _FEWER) for kind in ("rs", "drs")]


_CLEAN = {
    kind: Experiment(f"{kind}-clean", f"{kind}-0.50", changes=(*_FEWER, "training.method=clean"), certified=False)
    for kind in ("rs", "drs")
}
"""Classifiers without noise, for the denoisers to stand before."""

_SECOND_SEEDS = _pair("0.50", seed=1)

_SHARED = [
    Experiment(f"{kind}-{sigma}{ending}", f"{kind}-{sigma}", seed, _FEWER)
    for sigma in ("0.50", "0.25")
    for seed, ending in enumerate(("", "-seed1"))
    for kind in ("drs-shared", "drs-columns-shared", "k4-shared")
]
"""One network for all sub-images."""


def _finetuned(kind: str, start: Experiment) -> Experiment:
    """Trained as long again, from the network of `start`."""
    changes = (*_FEWER, "training.learning_rate=0.002")
    return Experiment(f"{kind}-0.50-finetuned", f"{kind}-0.50", 1, changes, after=start)


def _unshuffled(kind: str, side: int, epochs: int, seed: int, sigma: str = "0.50") -> Experiment:
    """By a network that stacks squares of side x side pixels, for as many epochs as cost the same time."""
    name = f"{kind}-unshuffled{side if side > 2 else ''}-{sigma}{f'-seed{seed}' if seed else ''}"
    networks = (f"classifiers.{k}.arguments.unshuffle={side}" for k in range(_classifiers(f"{kind}-{sigma}")))
    return Experiment(name, f"{kind}-{sigma}", seed, (*_FEWER, f"training.epochs={epochs}", *networks))


def _changed(one: Experiment, name: str, *changes: str) -> Experiment:
    """With further changes of its config."""
    return replace(one, name=f"{one.name}-{name}", changes=(*one.changes, *changes))


def _across(one: Experiment, epochs: int) -> Experiment:
    """`consistency` with one copy of each sub-image; a step sees as many sub-images in all as without."""
    copies = one.classifiers
    return _changed(
        one,
        "across",
        *_CONSISTENCY,
        "training.consistency.across=true",
        f"training.consistency.copies={copies}",
        f"training.epochs={epochs}",
        f"training.batch={128 // copies}",
    )


_EQUAL_CONSISTENCY = [
    _changed(_unshuffled("rs", 2, 14, 0), "consistency", *_CONSISTENCY),
    *(_across(one, 7) for one in _SHARED if one.name in {"drs-shared-0.50", "k4-shared-0.50"}),
]
"""`consistency` at the cost of the others: m copies of an image for an m-th of the epochs."""


EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment("rs-0.50", "rs-0.50"),
    Experiment("drs-0.50", "drs-0.50"),
    *_SECOND_SEEDS,
    *_pair("0.25", seed=0),
    *(_finetuned(kind, _SECOND_SEEDS[0]) for kind in ("drs", "rs")),
    *_SHARED,
    *(_finetuned(one.config.removesuffix("-0.50"), one) for one in _SHARED if one.name.endswith("-0.50-seed1")),
    # Four times as long as the others.
    *(
        Experiment(f"{kind}-0.50-long", f"{kind}-0.50", changes=(*_FEWER, f"training.epochs={epochs}"))
        for kind, epochs in (("rs", 36), ("k4-shared", 112))
    ),
    *(
        _unshuffled(kind, 2, epochs, seed)
        for seed in (0, 1)
        for kind, epochs in (("rs", 28), ("k4-shared", 61), ("drs-shared", 40))
    ),
    _unshuffled("rs", 2, 28, 0, "0.25"),
    _unshuffled("rs", 4, 60, 0),
    # At the rate that was better on held-out images.
    *(
        _changed(one, "rate-0.01", "training.learning_rate=0.01")
        for one in (_unshuffled("rs", 2, 28, 0), *_SHARED)
        if one.name in {"rs-unshuffled-0.50", "k4-shared-0.50", "drs-shared-0.50"}
    ),
    *_EQUAL_CONSISTENCY,
    *(replace(one, name=f"{one.name}-seed1", seed=1) for one in _EQUAL_CONSISTENCY),
    # As many steps of the optimizer as `k4-shared`, with its rate reduced as the root of the batch.
    Experiment("rs-0.50-small-batch", "rs-0.50", 1, (*_FEWER, "training.batch=41", "training.learning_rate=0.0028")),
    *(
        Experiment(f"{kind}-{sigma}", f"{kind}-{sigma}", changes=_FEWER)
        for sigma in ("0.50", "0.25")
        for kind in ("k4", "drs-filled")
    ),
    *_pair("0.25", seed=1),
    *(
        Experiment(f"{kind}-{sigma}-consistency", f"{kind}-{sigma}", changes=(*_FEWER, *_CONSISTENCY))
        for sigma in ("0.50", "0.25")
        for kind in ("rs", "drs", "k4-shared")
    ),
    *_CLEAN.values(),
    Experiment("rs-denoised-0.50", "rs-denoised-0.50", behind=_CLEAN["rs"]),
    Experiment("drs-denoised-0.50", "drs-denoised-0.50", behind=_CLEAN["drs"]),
    Experiment("drs-denoised-masked-0.50", "drs-denoised-masked-0.50", behind=_CLEAN["rs"]),
)
"""In order of importance: the first ones answer the main question, later ones its details."""

_TUNED = {
    **{f"rate-{rate}": f"training.learning_rate={rate}" for rate in ("0.002", "0.005", "0.01")},
    "shift-4": "training.shift=4",
}


def _tuning(kind: str, epochs: int, setting: str, change: str) -> Experiment:
    """One setting, tried for fewer epochs on training images that are held out."""
    whole = _unshuffled(kind, 2, epochs, 0)
    changes = (
        change,
        "training.hold_out.skip=10",
        "dataset.split=train",
        "dataset.images.skip=100",
        "budget.stages=1",
        "budget.estimation=500",
    )
    return replace(whole, name=f"tuning-{kind}-{setting}", changes=(*whole.changes, *changes))


TUNING: tuple[Experiment, ...] = tuple(
    _tuning(kind, epochs, setting, change)
    for setting, change in _TUNED.items()
    for kind, epochs in (("rs", 9), ("drs-shared", 13), ("k4-shared", 20))
)
"""Choice of the rate and of the shifts, one at a time, with the cheaper networks: a third of the epochs, without every
10th training image; 500 of these images are certified."""


@dataclass
class ProgressBoard:
    """The state of every experiment, for a progress message each minute, and the expected remaining time."""

    total: int
    started: float = field(default_factory=time.monotonic)
    weights: dict[str, float] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    lines: dict[str, str] = field(default_factory=dict)
    children: dict[str, subprocess.Popen[str]] = field(default_factory=dict)
    stopped: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, name: str, arguments: Sequence[str]) -> subprocess.Popen[str]:
        """Start an experiment's next command; after `stop` this raises."""
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        with self.lock:
            if self.stopped:
                raise RuntimeError(f"{name}: stopped")
            child = subprocess.Popen(
                arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
            )
            self.children[name] = child
            return child

    def stop(self) -> None:
        """End all running commands; what they have stored remains."""
        with self.lock:
            self.stopped = True
            for child in self.children.values():
                child.terminate()

    def note(self, name: str, line: str) -> None:
        """Keep the last line that an experiment's command printed."""
        with self.lock:
            self.lines[name] = line

    def finish(self, name: str) -> None:
        """Mark an experiment as done."""
        with self.lock:
            self.done.add(name)
            self.lines.pop(name, None)

    def text(self) -> str:
        """The progress message."""
        with self.lock:
            done, whole = sum(self.weights[name] for name in self.done), sum(self.weights.values())
            left = (time.monotonic() - self.started) * (whole - done) / done if done else None
            guess = "" if left is None else f", about {left / 3600:.1f} h left"
            each = "".join(f"\n  {name}: {line}" for name, line in sorted(self.lines.items()))
            return f"reproduction: {len(self.done)} of {self.total} experiments are done{guess}{each}"


def weight(config: RunConfig) -> float:
    """Expected cost, in forward passes of full-size images."""
    training = config.training
    copies = training.consistency.copies if training.method == "consistency" else 1
    dearer = 5 if config.classifiers[0].denoiser is not None else 1  # a U-Net
    share = 1 / config.partition.sub_images if config.partition.layout == "packed" else 1.0
    cheaper = int(str(config.classifiers[0].arguments.get("unshuffle", 1))) ** 1.5  # measured: 3 for 2, 7 for 4
    trained = len(config.networks) * 50_000 * training.epochs * copies * 3  # a backward pass costs about two forward
    certified = len(config.classifiers) * 500 * config.budget.estimation / 8  # stages draw about an eighth
    return dearer / cheaper * share * (trained + certified)


def warn_of_other_data(config: RunConfig) -> None:
    """Warn if the data are not those of docs/reproduction.md.

    Raises:
        ConfigError, DataError: there are no such data.
    """
    for split, digest in PUBLISHED.items():
        found = open_dataset(config.dataset, split).digest
        if not found.startswith(digest):
            print(
                f"warning: the {split} images have the digest {found[:12]}, those of docs/reproduction.md {digest}: "
                "figures will differ",
                file=sys.stderr,
            )


def run(experiment: Experiment, common: Sequence[str], earlier: dict[str, Future[None]], board: ProgressBoard) -> None:
    """Train and certify one experiment.

    Raises:
        RuntimeError: a command failed; with its last line.
    """
    for needed in experiment.needs:
        if needed.name in earlier:
            earlier[needed.name].result()
    sets = [argument for setting in experiment.settings(common) for argument in ("--set", setting)]
    log = Path("runs/reproduction") / f"{experiment.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    for command in ("train", "certify") if experiment.certified else ("train",):
        arguments = [sys.executable, "-m", "drs_ray", command, str(experiment.file), *sets]
        child = board.start(experiment.name, arguments)
        last = ""
        with log.open("a") as kept, child:
            assert child.stdout is not None
            for line in child.stdout:
                kept.write(line)
                kept.flush()
                last = line.strip() or last
                board.note(experiment.name, last)
        if child.returncode:
            failed = f"{experiment.name}: drs-ray {command} ended with {child.returncode}"
            raise RuntimeError(f"{failed}: {last.removeprefix('error: ')} (see {log})")
    board.finish(experiment.name)


def run_all(
    chosen: Sequence[Experiment], common: dict[str, list[str]], workers: int, board: ProgressBoard
) -> list[str]:
    """Run the experiments in order, `workers` at a time, with a progress message each minute; returns the failures."""
    futures: dict[str, Future[None]] = {}
    with ThreadPoolExecutor(workers) as pool:
        for experiment in chosen:
            futures[experiment.name] = pool.submit(run, experiment, common[experiment.name], dict(futures), board)
        try:
            with interruptible("run the same command to go on"):
                print(board.text(), flush=True)
                while wait(futures.values(), SECONDS_BETWEEN_LINES).not_done:
                    print(board.text(), flush=True)
        except InterruptedRunError:
            pool.shutdown(wait=False, cancel_futures=True)
            board.stop()
            raise
    print(board.text(), flush=True)
    return [str(error) for future in futures.values() if (error := future.exception()) is not None]


def main(
    data: Annotated[str, typer.Option(help="Root of the data set: what `drs-ray pack` wrote.")] = "data/cifar10",
    only: Annotated[list[str] | None, typer.Option(help="An experiment by name; repeat it for several.")] = None,
    tune: Annotated[bool, typer.Option(help="The choice of rate and shifts, on held-out training images.")] = False,
    workers: Annotated[int, typer.Option(min=1, help="Experiments at a time, one thread each.")] = os.cpu_count() or 1,
    set_: Annotated[list[str] | None, typer.Option("--set", help="KEY=VALUE over all configs.")] = None,
    architecture: Annotated[str | None, typer.Option(help="Of all classifiers, such as resnet110.")] = None,
    list_: Annotated[bool, typer.Option("--list", help="Print the experiments' names, and stop.")] = False,
) -> None:
    """Train and certify RS and DRS on CIFAR-10, resumably, in order of importance."""
    listed = TUNING if tune else EXPERIMENTS
    unknown = set(only or ()) - {experiment.name for experiment in listed}
    if unknown:
        sys.exit(f"error: --only {min(unknown)}: no such experiment; `--list` prints their names")
    chosen = [
        experiment.with_architecture(architecture) for experiment in listed if not only or experiment.name in only
    ]
    if list_:
        print(*(experiment.name for experiment in chosen), sep="\n")
        return
    board = ProgressBoard(len(chosen))
    common: dict[str, list[str]] = {}
    try:
        for experiment in chosen:
            common[experiment.name] = [f"dataset.root={data}", "engine.address=inline", *(set_ or ())]
            config = load_config(experiment.file, experiment.settings(common[experiment.name]))
            board.weights[experiment.name] = weight(config)
        warn_of_other_data(config)
    except DrsError as error:
        sys.exit(f"error: {error}")
    try:
        failures = run_all(chosen, common, workers, board)
    except InterruptedRunError as interrupted:
        print(f"reproduction: {interrupted}", file=sys.stderr)
        sys.exit(interrupted.exit_code)
    if failures:
        sys.exit("\n".join(f"error: {failure}" for failure in failures))


if __name__ == "__main__":
    typer.run(main)
