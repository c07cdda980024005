"""The part of a step that runs on devices, compiled: rows in, state and metrics out."""
