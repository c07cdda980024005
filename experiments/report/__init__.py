"""What the experiments report: tables and figures, drawn from their stored JSON alone.

Four kinds of results, each a file KIND.json, KIND.md and figures: `comparison` (methods against
their on-policy bases), `dynamics` (how they train), `prefix` (PrefixRL at equal FLOPs) and `family`
(the off-policy family). `python -m experiments.report` draws stored ones again.
"""
