"""What the command-line tools share; nothing else imports it."""
