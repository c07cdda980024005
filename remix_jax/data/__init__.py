"""Problems in, token ids out: `tasks.load_set` reads a set by its spec and puts it under a chat
template, `problems` reads rows, `traces` keeps banks of verified responses.
"""
