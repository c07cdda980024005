"""The papers' equations: arrays in, arrays out; no model, no device, no file."""
