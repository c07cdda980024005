"""The papers' equations: arrays in, arrays out; no model, no device, no file.

`objectives`, `off_policy`, `sequence`, `bounds`, `expert`: one function a method, all listed in
`family.METHODS`. `advantages.ESTIMATORS`, `constraints` (KL), `schedules`, `replay` (the ring of
rows), `priorities.SAMPLERS`, `prefixes`, and `masked` for all means.
"""
