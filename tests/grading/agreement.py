"""Agreement with two reference graders, as docs/grading.md: python -m tests.grading.agreement

The references: the released grader of ReMix's authors, and math-verify 0.9.0 on whole responses.
"""

import functools
import json
import pathlib
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from math_grader.pool import GraderPool
from math_grader.verdicts import Verdict, grade_many
from tests.vectors import SHARED

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent

# Why we differ from a reference, by family. The first word says whom we contradict.
REASONS = {
    "decimals": "a rounded decimal is not the exact value; math-verify compares 6 decimals",
    "precision": "the authors compare as floats, and take what is within 1e-7 of an integer for it",
    "braces": "the authors drop braces and root indices: another expression passes",
    "text": "the authors cut \\text and all that follows; we take it off at the end only",
    "algebra": "the authors have no algebra for it, or refuse unreduced fractions and other orders",
    "parse": "math-verify extracts nothing, or a part, of what is written here in another notation",
    "kinds": "math-verify lets a set pass for a tuple and drops the base of a numeral",
    "extraction": "which text is graded: the last balanced box after </think>, and nothing else",
    "hang": "the authors' grader did not end within 10 s",
    "convention": "no verdict is right by itself; we stay strict, or follow the value",
}
_FAMILIES = {
    "decimals": "fraction sqrt",
    "precision": "tiny_number float_precision big_integer",
    "braces": "root_index_dropped braces_dropped expression",
    "kinds": "tuple set base one_digit_changed garbage",
    "extraction": "several_boxed no_boxed thinking with_prompt dollar gold_empty int_right_form",
}


class Item(NamedTuple):
    """A pair with the verdicts of the authors (None: killed), math-verify, the truth, and ours."""

    id: str
    family: str
    gold: str
    answer: str
    authors: bool | None
    math_verify: bool
    expected: bool | None  # None: depends on the convention
    ours: Verdict

    @property
    def agreed(self) -> bool:
        """Whether both references say the same."""
        return self.authors == self.math_verify


@functools.cache
def items() -> list[Item]:
    """All pairs of the shared goldens, graded by us."""
    raw = json.loads((SHARED / "grading" / "grading.json").read_text())
    parts = [x.get("response_parts", [[x.get("response"), 1]]) for x in raw]
    responses = ["".join(text * n for text, n in each) for each in parts]
    with GraderPool() as pool:
        verdicts = grade_many(responses, [x["ground_truth"] for x in raw], pool)
    return [
        Item(x["id"], x["family"], str(x["ground_truth"]).strip(), str(v.answer),
             x["authors"]["final"], x["math_verify"]["final"], x["expected"], v)
        for x, v in zip(raw, verdicts, strict=True)
    ]  # fmt: skip


def reason(item: Item) -> str:
    """The key in REASONS of a pair on which the references differ."""
    if item.authors is None:
        return "hang"
    if item.expected is None and item.family not in _FAMILIES["extraction"].split():
        return "convention"
    for key, families in _FAMILIES.items():
        if item.family in families.split():
            if key in ("decimals", "kinds", "braces") and item.ours.correct and item.math_verify:
                return "algebra"
            return "braces" if key == "decimals" and item.authors else key
    if item.ours.correct is item.math_verify:
        return "algebra" if item.ours.correct else "text"
    return "parse"


def _cell(text: str) -> str:
    short = text if len(text) <= 48 else text[:45] + "..."
    return "`" + " ".join(short.split()).replace("|", "\\|").replace("`", "'") + "`"


def _word(verdict: bool | None) -> str:
    return {True: "right", False: "wrong", None: "-"}[verdict]


def _table(rows: list[Item]) -> list[str]:
    lines = [
        "| pair | gold | answer | authors | math-verify | here |",
        "|---|---|---|---|---|---|",
    ]
    for x in rows:
        verdicts = " | ".join(map(_word, (x.authors, x.math_verify)))
        lines.append(
            f"| {x.id} | {_cell(x.gold)} | {_cell(x.answer)} | {verdicts} | {x.ours.reason} |"
        )
    return lines


def _summary(rows: list[Item]) -> list[str]:
    agreed = [x for x in rows if x.agreed]
    same = sum(x.ours.correct is x.authors for x in agreed)
    known = [x for x in rows if x.expected is not None]
    graders: dict[str, Callable[[Item], bool | None]] = {
        "the authors' grader": lambda x: x.authors,
        "math-verify": lambda x: x.math_verify,
        "here": lambda x: x.ours.correct,
    }
    lines = [
        f"{len(rows):,} pairs. Both references agree on {len(agreed):,}; on {same:,} of them "
        f"({same / len(agreed):.1%}) we say the same. The truth of {len(known):,} pairs is known "
        "by their construction, that of some by the rule of the last box. This grader was made "
        "with the pairs at hand, the others were not: the table does not say which is better "
        "elsewhere. Where both say the same and it is false, the truth is taken.",
        "",
        "| | wrong ones accepted | right ones refused, or not decided |",
        "|---|---:|---:|",
    ]
    for name, verdict in graders.items():
        accepted = sum(bool(verdict(x)) and not x.expected for x in known)
        refused = sum(not verdict(x) and bool(x.expected) for x in known)
        lines.append(f"| {name} | {accepted} | {refused} |")
    return lines


def _disputed(item: Item) -> bool:
    return not item.agreed or item.ours.correct is not item.authors


def document() -> str:
    """The text of docs/grading.md."""
    rows = items()
    differ = [x for x in rows if not x.agreed]
    head = (ROOT / "tests" / "grading" / "grading_head.md").read_text().rstrip("\n")
    lines = [head, "", "## Agreement with two reference graders", "", *_summary(rows), ""]
    lines += [f"The references differ on {len(differ)} pairs:", ""]
    counts = Counter(reason(x) for x in differ)
    lines += [f"* **{key}** ({counts[key]}): {REASONS[key]}" for key in REASONS if counts[key]]
    lines += ["", "No verdict is right by itself on these, of which they or we differ:", ""]
    lines += _table([x for x in rows if x.expected is None and _disputed(x)])
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    (ROOT / "docs" / "grading.md").write_text(document())
