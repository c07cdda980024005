"""Problems in, token ids out: `tasks.load_set` reads a set by its spec, `problems` its rows,
`prompts` puts them under a chat template, `traces` keeps banks of verified responses.
"""
