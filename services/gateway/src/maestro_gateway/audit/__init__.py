"""The audit: who called what, when and from where, and how it ended; one hash chain for each tenant."""
