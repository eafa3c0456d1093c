"""Claude Code as a second provider of this adapter: one run of its command line per answer. Off unless enabled."""
