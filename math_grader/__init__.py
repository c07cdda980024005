r"""Is an answer right? Boxed mathematics, compared exactly, without executing what a model wrote.

    grade(r"so \boxed{\frac{2}{4}}", "0.5")  ->  Verdict(True, r"\frac{2}{4}", "match")

`grade_many` takes a batch and the pool of processes that compare what needs algebra; `process_pool`
is the one of this process. `version` changes with the grader. `WorkerPool` runs any function in
processes that may hang, crash or grow. docs/grading.md says what counts as equal. No JAX here.
"""

from math_grader.pool import GraderPool, WorkerPool, process_pool
from math_grader.verdicts import Verdict, grade, grade_many, version

__all__ = ["GraderPool", "Verdict", "WorkerPool", "grade", "grade_many", "process_pool", "version"]
