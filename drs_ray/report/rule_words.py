"""A certification rule in plain sentences."""

from __future__ import annotations

from drs_ray.certificates.confidence import level_region
from drs_ray.certificates.rounding import exact_text
from drs_ray.certificates.rule import Rule


def rule_in_words(rule: Rule, sub_images: int) -> tuple[str, ...]:
    """How votes become a radius by a rule, in plain sentences."""
    sentences = []
    if sub_images > 1 and rule.vote == "probit":
        weighted = ", weighted," if rule.weights is not None and len(set(rule.weights)) > 1 else ""
        sentences.append(
            "The smoothed classifier takes each sub-image's class probabilities as standard-normal quantiles"
            f"{weighted} and adds them (the probit vote); margins add up, negative ones included."
        )
    elif sub_images > 1:
        sentences.append("The smoothed classifier takes the mean of the sub-images' class probabilities (mean vote).")
    if rule.radius is not None:
        sentences.append(
            f"Fixed radius {exact_text(rule.radius)}: an image is certified at it or not at all, and nothing is "
            "claimed about larger radii. It is certified if the e-value against all vote probabilities whose radius is "
            "not larger reaches 1 / alpha; evaluating it after every stage costs no alpha."
        )
        return tuple(sentences)
    if rule.rivals:
        sentences.append(
            "Pairs: the selected class's probability is bounded from below with half of the allowed error. Every other "
            "class's probability is bounded from above, each with all of the other half; the closest rival decides. "
            "Only the bound of the rival that would be first to win must hold, and this rival is fixed before the "
            "votes: the radius is certified, not all rivals' bounds at once."
        )
    else:
        sentences.append(
            "p_A: the selected class's probability is bounded from below; all other votes may be for one rival."
        )
    if sub_images > 1 and rule.confidence == "staircase":
        ways = level_region(rule.confidence, 0.5, sub_images).count(sub_images)  # the same number at every alpha
        sentences.append(
            f"Staircase: alpha is spent on {ways:,} ways of sharing it between the {sub_images} sub-images, one of "
            "which holds with probability at least 1 - alpha; the least radius over them is certified."
        )
    elif sub_images > 1:
        sentences.append("Bonferroni: the sub-images get equal shares of alpha.")
    if rule.pooled:
        sentences.append(
            "Pooled: where no selection vote went against the class, half of alpha goes to one bound on it from all "
            "sub-images' samples, half to the above, and the larger radius is certified. Selection votes decide which "
            "images these are, before their estimation votes are seen."
        )
    return tuple(sentences)
