"""What the experiments report: tables and figures, drawn from their stored JSON alone.

Four kinds of results, each a file KIND.json, KIND.md and figures: `comparison` (methods against
their on-policy bases), `dynamics` (how they train), `prefix` (PrefixRL at equal FLOPs) and `family`
(the off-policy family). `python -m experiments.report experiments/results` draws stored ones again.
"""

import importlib.util
import sys

if importlib.util.find_spec("pandas") is None:
    print("error: reports need pandas: pip install -e '.[experiments]'", file=sys.stderr)
    sys.exit(2)
