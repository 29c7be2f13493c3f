"""Runs that another version's rules decided."""

from __future__ import annotations

import dataclasses

import pytest

from drs_ray.errors import CountsError
from drs_ray.results.selected_votes import open_images
from tests.unit.counts.factories import (
    adaptive,
    make_history,
    make_result,
    reduced,
)


def test_a_run_whose_stages_other_rules_decided_is_reduced_as_it_is() -> None:
    record, history = adaptive()
    started = make_history(record, record.schedule.samples, [record.schedule.samples[0]] * len(record.image_ids))
    assert open_images(started, record).any()
    with pytest.raises(CountsError, match="images need a further stage"):
        reduced(record, started)
    old = record.model_copy(update={"rules": 1})
    assert not open_images(started, old).any()
    run = reduced(old, started)
    assert run.radius.max() > 0
    assert not run.as_planned
    assert reduced(record, history).as_planned


def test_certificates_by_a_rule_of_another_version_are_not_guessed_at() -> None:
    run = make_result(images=2)
    named = {**run.certificates.schema.metadata, b"drs_ray.rule": b"probit p_A fisher"}
    unknown = dataclasses.replace(run, certificates=run.certificates.replace_schema_metadata(named))
    with pytest.raises(CountsError, match=r"no rule is named .probit p_A fisher.*drs-ray reduce"):
        _ = unknown.certified_by
