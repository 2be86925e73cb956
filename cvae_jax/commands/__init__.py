"""Commands: the options of each command and what it does."""
