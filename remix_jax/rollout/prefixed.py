"""PrefixRL in a run: the prefixes that its bank of traces gives."""

import hashlib
import json
from typing import NamedTuple

from remix_jax.config import Config
from remix_jax.data import traces
from remix_jax.data.tasks import ProblemSet
from remix_jax.errors import InputError
from remix_jax.models.huggingface import Vocabulary
from remix_jax.rl.prefixes import draw_cuts

_BOX = "\\boxed"


class Prefix(NamedTuple):
    """The beginning of a trace that solved a problem; the model goes on from it."""

    problem: int  # its index in the training set
    ids: tuple[int, ...]
    share: float  # of the trace's tokens


class Prefixes(NamedTuple):
    """The prefixes of a run, drawn once, and what making them came to."""

    items: list[Prefix]
    traces: int  # problems of the training set with a trace
    moved: int  # cuts drawn again further ahead: they had shown the answer
    dropped: int  # cuts not to be had: nothing before the answer was left to draw
    too_long: int  # prefixes over config.prefix.tokens, left out
    attempts: int  # responses that the whole bank took
    flops: float  # that these took

    @property
    def digest(self) -> str:
        """Equal where the prefixes are."""
        return hashlib.sha256(json.dumps(self.items).encode()).hexdigest()[:16]


def load_prefixes(config: Config, train: ProblemSet, vocabulary: Vocabulary) -> Prefixes | None:
    """The prefixes of the training problems that the bank has a trace of; None without a bank.

    A prefix in which a box is opened shows the answer, whatever is in it.

    Raises:
      InputError: the bank is damaged, of another tokenizer, or has no prefix for these problems.
    """
    c = config.prefix
    if not c.bank:
        return None
    bank = traces.load(c.bank, traces.fingerprint(vocabulary.tokenizer))
    found = traces.traces_of(bank, train.problems)
    items: list[Prefix] = []
    moved = dropped = too_long = 0
    for i, trace in enumerate(found):
        if trace is None:
            continue
        ids = list(trace.response)

        def shows(length: int, ids: list[int] = ids) -> bool:
            return _BOX in vocabulary.tokenizer.decode(ids[:length])

        cuts = draw_cuts(config.seed, i, len(ids), c.cuts, c.low, c.high, shows)
        moved, dropped = moved + cuts.moved, dropped + cuts.dropped
        fitting = [n for n in cuts.lengths if n <= c.tokens]
        too_long += len(cuts.lengths) - len(fitting)
        items += [Prefix(i, tuple(ids[:n]), n / len(ids)) for n in fitting]
    if not items:
        raise InputError(
            f"config.prefix.bank = {c.bank!r}: gives no prefix of up to {c.tokens} tokens for the "
            f"problems of {config.data.train} ({too_long} are longer)"
        )
    solved = sum(trace is not None for trace in found)
    return Prefixes(items, solved, moved, dropped, too_long, bank.attempts, bank.flops)


def prefix_plan(config: Config, prefixes: Prefixes, problems: int) -> dict[str, object]:
    """Lines of the plan.

    Args:
      problems: of the training set.
    """
    made = [f"{len(prefixes.items):,} of {prefixes.traces:,} traces ({problems:,} problems)"]
    for count, why in (
        (prefixes.moved, "cut earlier: they showed the answer"),
        (prefixes.dropped, "not to be had"),
        (prefixes.too_long, f"over {config.prefix.tokens} tokens"),
    ):
        made += [f"{count:,} {why}"] if count else []
    return {
        "prefixes": "; ".join(made),
        "groups that start from a prefix": f"{config.prefix.share:.0%}",
        "spent on the traces": f"{prefixes.attempts:,} responses, {prefixes.flops:.3g} FLOPs",
    }
