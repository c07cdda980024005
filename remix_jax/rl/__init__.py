"""The papers' equations: arrays in, arrays out; no model, no device, no file.

`objectives` (Mix-PPG, PPO) and `off_policy`: one function a method, all listed in `family.METHODS`.
`advantages.ESTIMATORS`, `constraints` (KL), `schedules`, `replay` (the ring of rows, its
SAMPLERS), `prefixes`, and `masked` for all means.
"""
