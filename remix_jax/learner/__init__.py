"""The part of a step that runs on devices, compiled: rows in, state and metrics out.

`state` holds what changes and makes it, `step.learn` is the learning phase, `batch` and `losses`
are its parts, `programs` compiles it.
"""
