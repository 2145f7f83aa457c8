"""Shared parts of the command-line tools; nothing else imports them."""
